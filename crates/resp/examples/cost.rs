//! What the hot paths cost, in nanoseconds: a parsed request, a scanned reply, a looked-up command,
//! a slot.
//!
//!     cargo run --release -p keyheat-resp --example cost
//!
//! Each figure is the median of several rounds; the machine's own noise is not hidden, so compare
//! figures of one run only.

use keyheat_resp::command::lookup;
use keyheat_resp::reply::ReplyScanner;
use keyheat_resp::request::{Parse, RequestParser};
use keyheat_resp::{encode, slot, Limits};
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 15;

/// Runs `work`, which does `n` things, and prints the nanoseconds each took.
fn measure(name: &str, n: usize, mut work: impl FnMut()) {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_nanos() as f64 / n as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let median = times.get(ROUNDS / 2).copied().unwrap_or_default();
    let least = times.first().copied().unwrap_or_default();
    println!("{name:<44} {median:>9.1} ns  (least {least:.1})");
}

/// Parses a pipeline of requests to its end.
fn drain(parser: &mut RequestParser, mut buf: &[u8]) {
    while let Ok(Parse::Complete { len }) = parser.parse(buf) {
        let frame = parser.frame(buf);
        black_box((parser.arg(frame, 0), parser.arg(frame, 1)));
        buf = buf.get(len..).unwrap_or_default();
    }
}

fn requests() {
    const N: usize = 100_000;
    // A GET whose frame is 64 bytes long.
    let key = [b'k'; 44];
    let mut one = Vec::new();
    encode::command(&mut one, &[b"GET", &key]);
    assert_eq!(one.len(), 64);
    let mut parser = RequestParser::new(Limits::default());

    let pipeline = one.repeat(16);
    measure("GET of 64 B, pipeline of 16", N, || {
        for _ in 0..N / 16 {
            drain(&mut parser, black_box(&pipeline));
        }
    });
    measure("GET of 64 B, one at a time", N, || {
        for _ in 0..N {
            drain(&mut parser, black_box(&one));
        }
    });
    measure("GET of 64 B, lookup and slot too", N, || {
        for _ in 0..N {
            if let Ok(Parse::Complete { .. }) = parser.parse(black_box(&one)) {
                let frame = parser.frame(&one);
                let command = lookup(parser.arg(frame, 0));
                let arg = |i| parser.arg(frame, i);
                let key = command.and_then(|command| command.first_key(parser.argc(), arg));
                black_box(slot::slot(key.map(arg).unwrap_or_default()));
            }
        }
    });

    let mut large = Vec::new();
    let value = vec![b'v'; 200 << 20];
    encode::command(&mut large, &[b"SET", b"k", &value]);
    let pieces = large.len().div_ceil(16 << 10);
    measure(
        "SET of 200 MiB in pieces of 16 KiB, a piece",
        pieces,
        || {
            for end in (0..large.len()).step_by(16 << 10).chain([large.len()]) {
                let _ = black_box(parser.parse(large.get(..end).unwrap_or_default()));
            }
        },
    );
    let mut many = Vec::new();
    encode::command(&mut many, &vec![&b"x"[..]; 1 << 20]);
    measure(
        "a million arguments byte by byte, a byte",
        many.len(),
        || {
            for end in 0..=many.len() {
                let _ = black_box(parser.parse(many.get(..end).unwrap_or_default()));
            }
        },
    );
}

fn replies() {
    const N: usize = 100_000;
    let mut scanner = ReplyScanner::new(Limits::default());
    let mut bulk = Vec::new();
    encode::bulk(&mut bulk, &[b'v'; 64]);
    let mut array = Vec::new();
    encode::command(&mut array, &[&b"0123456789"[..]; 100]);
    for (name, reply) in [
        ("scan a bulk of 64 B", &bulk[..]),
        ("scan +OK", b"+OK\r\n"),
        ("scan :1", b":1\r\n"),
        ("scan an array of 100", &array),
    ] {
        measure(name, N, || {
            for _ in 0..N {
                let _ = black_box(scanner.scan(black_box(reply)));
            }
        });
    }
}

fn names_and_slots() {
    const N: usize = 1_000_000;
    for name in [
        "GET",
        "HGETALL",
        "zrangebyscore",
        "GEORADIUSBYMEMBER_RO",
        "NOSUCHCOMMAND",
    ] {
        measure(&format!("lookup {name}"), N, || {
            for _ in 0..N {
                black_box(lookup(black_box(name.as_bytes())));
            }
        });
    }
    for key in [
        "key:000000001234",
        "{user:1000}:session:0123456789abcdef0123456789",
    ] {
        measure(&format!("slot of {} bytes", key.len()), N, || {
            for _ in 0..N {
                black_box(slot::slot(black_box(key.as_bytes())));
            }
        });
    }
}

fn main() {
    requests();
    replies();
    names_and_slots();
}
