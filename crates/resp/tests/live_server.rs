//! Our reading of the protocol beside a real server's.
//!
//! These tests start a Valkey of their own on a Unix socket. They need its binary:
//! `KEYHEAT_TEST_SERVER=/path/to/valkey-server`; without it they say so and pass.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helpers may stop at the first surprise, as its tests may"
)]

use keyheat_resp::command::{lookup, KeyError};
use keyheat_resp::reply::{self, Value};
use keyheat_resp::request::{Parse, RequestParser};
use keyheat_resp::{encode, slot, Limits};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// In the server's own directory: no two tests can meet on a port.
const SOCKET: &str = "s";

struct Server {
    process: Child,
    directory: PathBuf,
}

impl Server {
    /// A server, or `None` with the reason printed.
    fn start(options: &[&str]) -> Option<Server> {
        let Ok(binary) = std::env::var("KEYHEAT_TEST_SERVER") else {
            eprintln!("skipped: KEYHEAT_TEST_SERVER does not name a valkey-server binary");
            return None;
        };
        let test = std::thread::current().name().unwrap_or("main").to_string();
        let directory = std::env::temp_dir().join(format!("{}-{test}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let process = Command::new(binary)
            .args(["--port", "0", "--unixsocket", SOCKET])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .args(options)
            .current_dir(&directory)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let server = Server { process, directory };
        let deadline = Instant::now() + Duration::from_secs(10);
        while UnixStream::connect(server.directory.join(SOCKET)).is_err() {
            assert!(Instant::now() < deadline, "the server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(server)
    }

    fn connect(&self) -> Connection {
        let stream = UnixStream::connect(self.directory.join(SOCKET)).unwrap();
        Connection {
            stream,
            buf: Vec::new(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

struct Connection {
    stream: UnixStream,
    buf: Vec<u8>,
}

impl Connection {
    fn send(&mut self, bytes: &[u8]) {
        // The server may close in the midst of what it refuses.
        let _ = self.stream.write_all(bytes);
    }

    /// The next reply, or `None` if the server says nothing for as long as `wait`, or closes.
    fn receive(&mut self, wait: Duration) -> Option<Value> {
        self.stream.set_read_timeout(Some(wait)).unwrap();
        loop {
            if let Some((value, len)) = reply::parse(&self.buf, &Limits::default()).unwrap() {
                self.buf.drain(..len);
                return Some(value);
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.buf.extend_from_slice(&piece[..n]),
            }
        }
    }

    fn call(&mut self, args: &[&[u8]]) -> Value {
        let mut out = Vec::new();
        encode::command(&mut out, args);
        self.send(&out);
        self.receive(Duration::from_secs(10)).expect("a reply")
    }
}

/// A line as one would type it, taken apart by the inline parser.
fn words(line: &str) -> Vec<Vec<u8>> {
    let mut parser = RequestParser::new(Limits::default());
    let buf = format!("{line}\r\n").into_bytes();
    assert_eq!(parser.parse(&buf), Ok(Parse::Complete { len: buf.len() }));
    let frame = parser.frame(&buf);
    (0..parser.argc())
        .map(|i| parser.arg(frame, i).to_vec())
        .collect()
}

/// The keys as this crate finds them, sorted: the server gives a destination last where this
/// crate gives it first.
fn our_keys(words: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, KeyError> {
    let mut command = lookup(&words[0]).expect("a known command");
    if let Some(sub) = words.get(1).and_then(|name| command.sub(name)) {
        command = sub;
    }
    assert!(command.arity_ok(words.len()), "{words:?}");
    let mut keys = Vec::new();
    command.for_each_key(words.len(), |i| &words[i], |i| keys.push(words[i].clone()))?;
    keys.sort();
    Ok(keys)
}

const LINES: &[&str] = &[
    "GET k",
    "SET k v GET",
    "MGET a b c",
    "MSET a 1 b 2",
    "MSETNX a 1 b 2",
    "MSETEX 2 a 1 b 2 EX 9",
    "DELIFEQ k v",
    "DEL a b",
    "WATCH a b",
    "LCS a b LEN",
    "BITOP AND d a b",
    "BITFIELD k GET u8 0",
    "PFCOUNT a b",
    "PFMERGE d a b",
    "COPY a b",
    "RENAME a b",
    "BLPOP a b 0",
    "BLMOVE a b LEFT RIGHT 0",
    "BRPOPLPUSH a b 0",
    "LMPOP 2 a b LEFT",
    "BLMPOP 0 2 a b LEFT COUNT 3",
    "ZMPOP 2 a b MIN",
    "BZMPOP 0 2 a b MIN",
    "BZPOPMIN a b 0",
    "SINTERCARD 2 a b LIMIT 1",
    "SUNIONSTORE d a b",
    "ZUNION 2 a b WITHSCORES",
    "ZINTER 2 a b WEIGHTS 1 2",
    "ZDIFF 2 a b",
    "ZINTERCARD 2 a b",
    "ZUNIONSTORE d 2 a b",
    "ZINTERSTORE d 1 a",
    "ZDIFFSTORE d 2 a b",
    "ZRANGESTORE d a 0 -1",
    "SMOVE a b m",
    "EVAL s 2 a b x",
    "EVALSHA s 1 a x",
    "EVAL_RO s 2 a b",
    "EVALSHA_RO s 1 a",
    "FCALL f 2 a b x",
    "FCALL_RO f 1 a",
    "XREAD COUNT 1 STREAMS a b 0 0",
    "XREAD BLOCK 1 STREAMS STREAMS 0",
    "XREADGROUP GROUP STREAMS COUNT BLOCK 1 NOACK STREAMS a >",
    "SORT k",
    "SORT k BY w LIMIT 0 10 GET # STORE d ALPHA",
    "SORT k BY STORE GET STORE STORE d",
    "SORT k STORE x STORE d",
    "SORT_RO k BY w",
    "GEORADIUS k 1 2 3 m",
    "GEORADIUS k 1 2 3 m STORE d",
    "GEORADIUS k 1 2 3 m STORE x STOREDIST d",
    "GEORADIUSBYMEMBER k m 3 m STOREDIST d",
    "GEOSEARCHSTORE d k FROMMEMBER m BYRADIUS 1 m",
    "MIGRATE h 1 k 0 9",
    "MIGRATE h 1 k 0 9 COPY REPLACE",
    "MIGRATE h 1 \"\" 0 9 KEYS a b",
    "MIGRATE h 1 \"\" 0 9 AUTH KEYS KEYS a b",
    "MIGRATE h 1 \"\" 0 9 AUTH2 KEYS KEYS KEYS a b",
    "OBJECT ENCODING k",
    "OBJECT FREQ k",
    "MEMORY USAGE k",
    "XGROUP CREATE k g $",
    "XGROUP CREATECONSUMER k g c",
    "XINFO STREAM k",
    "HEXPIRE k 9 FIELDS 1 f",
    "HPEXPIREAT k 9 FIELDS 1 f",
    "HGETEX k EX 9 FIELDS 1 f",
    "HSETEX k EX 9 FIELDS 1 f v",
    "RESTORE k 0 x",
    // Without keys, or without sense. (Of streams that do not pair up with ids the server names
    // half, and refuses the command when it runs; here that is an error.)
    "PING",
    "EVAL s 0 x",
    "FCALL f 0",
    "EVAL s x a",
    "EVAL s 3 a",
    "ZUNION 0 a",
    "ZUNION 3 a b",
    "MSETEX 3 a 1 b 2",
    "CLIENT ID",
    "CLUSTER KEYSLOT k",
    "SPUBLISH c m",
];

/// What `COMMAND GETKEYS` says of a command that it does not know.
const UNKNOWN: &[u8] = b"ERR Invalid command specified";

#[test]
fn keys_are_where_the_server_says() {
    let Some(server) = Server::start(&[]) else {
        return;
    };
    let mut connection = server.connect();
    for line in LINES {
        let words = words(line);
        let mut request: Vec<&[u8]> = vec![b"COMMAND", b"GETKEYS"];
        request.extend(words.iter().map(Vec::as_slice));
        let theirs = match connection.call(&request) {
            Value::Array(keys) => {
                let mut keys: Vec<Vec<u8>> = keys
                    .into_iter()
                    .map(|key| match key {
                        Value::Bulk(key) => key,
                        other => panic!("{line}: {other:?}"),
                    })
                    .collect();
                keys.sort();
                keys
            }
            // Each server has commands that the other does not know.
            Value::Error(text) if text.starts_with(UNKNOWN) => continue,
            Value::Error(_) => vec![],
            other => panic!("{line}: {other:?}"),
        };
        // The server answers "no keys" and "no sense" with an error each.
        let ours = our_keys(&words).unwrap_or_default();
        let text = |keys: &[Vec<u8>]| {
            keys.iter()
                .map(|key| String::from_utf8_lossy(key).into_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(text(&ours), text(&theirs), "{line}");
    }
}

/// The data that the table is made of, by name.
fn data() -> serde_json::Map<String, serde_json::Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/commands.json");
    let text = std::fs::read_to_string(path).unwrap();
    let data: serde_json::Value = serde_json::from_str(&text).unwrap();
    data["commands"].as_object().unwrap().clone()
}

#[test]
fn every_command_with_movable_keys_has_a_line() {
    for (name, command) in data() {
        let movable = command["flags"]
            .as_array()
            .unwrap()
            .iter()
            .any(|f| f == "movablekeys");
        let has_line = LINES.iter().any(|line| {
            line.split(' ')
                .next()
                .is_some_and(|first| first.eq_ignore_ascii_case(&name))
        });
        assert!(!movable || has_line, "{name}");
    }
}

#[test]
fn fixed_keys_are_where_the_server_says() {
    let Some(server) = Server::start(&[]) else {
        return;
    };
    let mut connection = server.connect();
    let mut compared = 0;
    for (name, command) in data() {
        let range = &command["keys"]["range"];
        if range.is_null() {
            continue;
        }
        // Long enough for every key, and for a step of two to come out even.
        let least = command["arity"].as_i64().unwrap().unsigned_abs();
        let last = range[1].as_i64().unwrap().max(0).unsigned_abs();
        let mut words: Vec<Vec<u8>> = name.split('|').map(|part| part.into()).collect();
        while (words.len() as u64) < least.max(last + 1) {
            words.push(format!("argument{}", words.len()).into());
        }
        let mut request: Vec<&[u8]> = vec![b"COMMAND", b"GETKEYS"];
        request.extend(words.iter().map(Vec::as_slice));
        let theirs = match connection.call(&request) {
            Value::Array(keys) => keys,
            Value::Error(text) if text.starts_with(UNKNOWN) => continue,
            Value::Error(_) => vec![],
            other => panic!("{name}: {other:?}"),
        };
        let mut ours: Vec<Value> = our_keys(&words)
            .unwrap_or_default()
            .into_iter()
            .map(Value::Bulk)
            .collect();
        ours.sort_by_key(|key| theirs.iter().position(|other| other == key));
        assert_eq!(ours, theirs, "{name}");
        compared += 1;
    }
    assert!(compared > 150, "{compared}");
}

#[test]
fn bad_requests_are_refused_in_the_servers_words() {
    let Some(server) = Server::start(&[]) else {
        return;
    };
    let long = "1".repeat(70_000);
    for input in [
        "*x\r\n".to_string(),
        "*\r\n".to_string(),
        "*01\r\n".to_string(),
        "*+1\r\n".to_string(),
        "*99999999999999999999\r\n".to_string(),
        "*1\r\nx\r\n".to_string(),
        "*1\r\n:1\r\n".to_string(),
        "*1\r\n$-1\r\n".to_string(),
        "*1\r\n$x\r\n".to_string(),
        "*1\r\n$\r\n".to_string(),
        "*1\r\n$536870913\r\n".to_string(),
        "\"a\r\n".to_string(),
        "'a'b'\r\n".to_string(),
        format!("*{long}"),
        format!("*1\r\n${long}"),
        format!("GET {long}"),
    ] {
        let mut connection = server.connect();
        connection.send(input.as_bytes());
        let theirs = connection.receive(Duration::from_secs(10));
        let error = RequestParser::new(Limits::default())
            .parse(input.as_bytes())
            .unwrap_err();
        let ours = Value::Error(error.message().into_owned().into_bytes());
        assert_eq!(theirs, Some(ours), "{:?}", &input[..input.len().min(20)]);
    }
}

#[test]
fn inline_requests_mean_what_they_mean_to_the_server() {
    let Some(server) = Server::start(&[]) else {
        return;
    };
    for line in [
        "echo a",
        "echo  \ta ",
        "echo 'a b'",
        "echo \"\\x41\\n\\q\\xq\"",
        "echo 'it\\'s \\n'",
        "echo a\"b c\"",
        "echo \"\"",
        "echo a\x0bb",
        "echo 'a'\"b\"c",
        "echo \"a\"\x0b",
        "\x0becho a",
    ] {
        let mut connection = server.connect();
        let buf = format!("{line}\r\n");
        connection.send(buf.as_bytes());
        let typed = connection.receive(Duration::from_secs(10));
        let mut parser = RequestParser::new(Limits::default());
        parser.parse(buf.as_bytes()).unwrap();
        connection.send(parser.frame(buf.as_bytes()));
        let encoded = connection.receive(Duration::from_secs(10));
        assert!(matches!(typed, Some(Value::Bulk(_))), "{line:?}: {typed:?}");
        assert_eq!(typed, encoded, "{line:?}");
    }
}

#[test]
fn empty_requests_get_no_reply() {
    let Some(server) = Server::start(&[]) else {
        return;
    };
    let mut connection = server.connect();
    connection.send(b"\r\n*0\r\n*-1\r\n*-7\r\n   \r\nPING\r\n");
    let wait = Duration::from_secs(10);
    assert_eq!(
        connection.receive(wait),
        Some(Value::Simple(b"PONG".to_vec()))
    );
}

#[test]
fn slots_are_the_servers() {
    let Some(server) = Server::start(&[
        "--cluster-enabled",
        "yes",
        "--cluster-config-file",
        "resp-test-nodes.conf",
    ]) else {
        return;
    };
    let mut connection = server.connect();
    for key in [
        "",
        "a",
        "foo",
        "{a}b",
        "{}a",
        "{{a}}",
        "a{b",
        "123456789",
        "key:000000001234",
    ] {
        let theirs = connection.call(&[b"CLUSTER", b"KEYSLOT", key.as_bytes()]);
        assert_eq!(
            theirs,
            Value::Int(slot::slot(key.as_bytes()).into()),
            "{key:?}"
        );
    }
}

#[test]
fn replies_of_every_type_are_read() {
    let Some(server) = Server::start(&["--enable-debug-command", "yes"]) else {
        return;
    };
    let mut connection = server.connect();
    assert!(matches!(connection.call(&[b"HELLO", b"3"]), Value::Map(_)));
    let mut protocol = |kind: &str| connection.call(&[b"DEBUG", b"PROTOCOL", kind.as_bytes()]);
    assert!(matches!(protocol("string"), Value::Bulk(_)));
    assert!(matches!(protocol("integer"), Value::Int(_)));
    assert!(matches!(protocol("double"), Value::Double(_)));
    assert_eq!(protocol("null"), Value::Null);
    assert!(matches!(protocol("array"), Value::Array(_)));
    assert!(matches!(protocol("set"), Value::Set(_)));
    assert!(matches!(protocol("map"), Value::Map(_)));
    assert!(matches!(protocol("attrib"), Value::Attribute { .. }));
    assert!(matches!(protocol("bignum"), Value::BigNumber(_)));
    assert_eq!(protocol("true"), Value::Bool(true));
    let verbatim = Value::Verbatim {
        format: *b"txt",
        text: b"This is a verbatim\nstring".to_vec(),
    };
    assert_eq!(protocol("verbatim"), verbatim);
    // The push, and the reply to the command.
    let mut two = vec![protocol("push")];
    two.extend(connection.receive(Duration::from_secs(10)));
    assert!(
        two.iter().any(|value| matches!(value, Value::Push(_))),
        "{two:?}"
    );
}
