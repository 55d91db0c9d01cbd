//! However a stream of requests is split, the same requests are found in it, and a request that
//! is passed on is read as the same request.
//!
//! Input: one byte for the limits, one for the number of splits, so many bytes for where they
//! are, and the stream.

#![no_main]

use keyheat_resp::request::{Parse, RequestParser};
use keyheat_resp::{Limits, ProtocolError};
use libfuzzer_sys::fuzz_target;

type Args = Vec<Vec<u8>>;

fn args(parser: &RequestParser, frame: &[u8]) -> Args {
    (0..parser.argc())
        .map(|i| parser.arg(frame, i).to_vec())
        .collect()
}

fn requests(limits: Limits, input: &[u8], ends: &[usize]) -> (Vec<Args>, Option<ProtocolError>) {
    let mut parser = RequestParser::new(limits);
    let (mut found, mut start) = (Vec::new(), 0);
    for &end in ends.iter().chain([&input.len()]) {
        loop {
            let buf = &input[start..end.max(start)];
            match parser.parse(buf) {
                Ok(Parse::Complete { len }) => {
                    assert!(0 < len && len <= buf.len());
                    let args = args(&parser, parser.frame(buf));
                    comes_back(limits, &parser, parser.frame(buf), &args);
                    found.push(args);
                    start += len;
                }
                Ok(Parse::Incomplete { need }) => {
                    assert!(need > 0);
                    break;
                }
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

/// The frame, read again, is the same request.
fn comes_back(limits: Limits, parser: &RequestParser, frame: &[u8], expected: &Args) {
    if parser.argc() == 0 {
        return;
    }
    // Canonical encoding may be longer than the line it comes from.
    let limits = if parser.is_inline() {
        Limits::default()
    } else {
        limits
    };
    let mut again = RequestParser::new(limits);
    assert_eq!(again.parse(frame), Ok(Parse::Complete { len: frame.len() }));
    assert!(!again.is_inline());
    assert_eq!(&args(&again, again.frame(frame)), expected);
}

fuzz_target!(|data: &[u8]| {
    let [choice, splits, rest @ ..] = data else {
        return;
    };
    let (places, input) = rest.split_at(rest.len().min(usize::from(splits % 16)));
    let limits = match choice % 3 {
        0 => Limits::default(),
        1 => Limits {
            inline_max_bytes: 16,
            ..Limits::default()
        },
        _ => Limits {
            bulk_max_bytes: 8,
            args_max: 4,
            request_max_bytes: 64,
            ..Limits::default()
        },
    };
    let mut ends: Vec<usize> = places
        .iter()
        .map(|place| usize::from(*place) * input.len() / 256)
        .collect();
    ends.sort_unstable();
    assert_eq!(requests(limits, input, &ends), requests(limits, input, &[]));
});
