use super::*;
use crate::encode;
use proptest::prelude::*;

type Args = Vec<Vec<u8>>;

fn args(parser: &RequestParser, buf: &[u8]) -> Args {
    let frame = parser.frame(buf);
    (0..parser.argc())
        .map(|i| parser.arg(frame, i).to_vec())
        .collect()
}

/// Every request of `input`, which arrives in pieces that end at `ends`; and the error, if any.
fn requests_in_pieces(
    limits: Limits,
    input: &[u8],
    ends: &[usize],
) -> (Vec<(Args, usize)>, Option<ProtocolError>) {
    let mut parser = RequestParser::new(limits);
    let (mut found, mut start) = (Vec::new(), 0);
    for &end in ends.iter().chain([&input.len()]) {
        loop {
            let buf = &input[start..end.max(start)];
            match parser.parse(buf) {
                Ok(Parse::Complete { len }) => {
                    found.push((args(&parser, buf), len));
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

fn requests(input: &[u8]) -> (Vec<(Args, usize)>, Option<ProtocolError>) {
    requests_in_pieces(Limits::default(), input, &[])
}

fn one(input: &[u8]) -> Result<Args, String> {
    match requests(input) {
        (_, Some(error)) => Err(error.to_string()),
        (mut found, None) if found.len() == 1 => Ok(found.remove(0).0),
        (found, None) => panic!("{} requests", found.len()),
    }
}

#[test]
fn a_pipeline_is_taken_apart() {
    let input = b"*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$0\r\n\r\nGET k\r\n";
    let (found, error) = requests(input);
    assert_eq!(error, None);
    assert_eq!(
        found,
        [
            (vec![b"PING".to_vec()], 14),
            (vec![b"GET".to_vec(), b"".to_vec()], 19),
            (vec![b"GET".to_vec(), b"k".to_vec()], 7),
        ]
    );
}

#[test]
fn empty_requests_are_complete_and_have_no_arguments() {
    for input in ["\r\n", "\n", "  \r\n", "*0\r\n", "*-1\r\n", "*-100\r\n"] {
        assert_eq!(
            requests(input.as_bytes()),
            (vec![(vec![], input.len())], None),
            "{input:?}"
        );
    }
}

#[test]
fn an_inline_request_is_re_encoded() {
    let mut parser = RequestParser::new(Limits::default());
    let buf = b"set 'a b' \"\\x00\\n\"\r\n";
    assert_eq!(parser.parse(buf), Ok(Parse::Complete { len: buf.len() }));
    assert!(parser.is_inline());
    assert_eq!(
        parser.frame(buf),
        b"*3\r\n$3\r\nset\r\n$3\r\na b\r\n$2\r\n\0\n\r\n"
    );
    assert_eq!(parser.arg(parser.frame(buf), 3), b"");
}

#[test]
fn inline_words_are_split_as_the_server_splits_them() {
    for (line, words) in [
        ("a b", Some(vec!["a", "b"])),
        ("\t a\x0b\x0c b ", Some(vec!["a\x0b\x0c", "b"])),
        ("a\"b c\"", Some(vec!["ab c"])),
        ("'it\\'s' x", Some(vec!["it's", "x"])),
        (
            "\"\\a\\b\\t\\r\\n\\\\\\\"\\q\\xq\"",
            Some(vec!["\x07\x08\t\r\n\\\"qxq"]),
        ),
        ("'\\n'", Some(vec!["\\n"])),
        ("\"\" ''", Some(vec!["", ""])),
        ("a\rb", Some(vec!["a", "b"])),
        ("\"a\"b'c d'e", Some(vec!["abc de"])),
        ("\"a\"\x0b", Some(vec!["a\x0b"])),
        ("\"a", None),
        ("'a", None),
        ("\"a\\", None),
        ("\"a\\\"", None),
        ("'a\\'", None),
        ("a\\\"b", None),
    ] {
        let found = one(format!("{line}\n").as_bytes());
        let words = words.map(|words| words.iter().map(|word| word.as_bytes().to_vec()).collect());
        let unbalanced = "ERR Protocol error: unbalanced quotes in request".to_string();
        assert_eq!(found, words.ok_or(unbalanced), "{line:?}");
    }
}

#[test]
fn what_is_no_request_is_refused_in_the_servers_words() {
    let long = "1".repeat(70_000);
    for (input, message) in [
        ("*x\r\n".to_string(), "invalid multibulk length"),
        ("*\r\n".to_string(), "invalid multibulk length"),
        ("*01\r\n".to_string(), "invalid multibulk length"),
        ("*2147483648\r\n".to_string(), "invalid multibulk length"),
        (
            "*99999999999999999999\r\n".to_string(),
            "invalid multibulk length",
        ),
        (format!("*{long}"), "too big mbulk count string"),
        (format!("*1\r\n${long}"), "too big bulk count string"),
        (format!("GET {long}"), "too big inline request"),
        ("*1\r\nx\r\n".to_string(), "expected '$', got 'x'"),
        ("*1\r\n:1\r\n".to_string(), "expected '$', got ':'"),
        ("*1\r\n\x01\r\n".to_string(), "expected '$', got '\\x01'"),
        ("GET\0".to_string(), "NUL byte in inline request"),
        ("*1\r\n$-1\r\n".to_string(), "invalid bulk length"),
        ("*1\r\n$x\r\n".to_string(), "invalid bulk length"),
        ("*1\r\n$536870913\r\n".to_string(), "invalid bulk length"),
        ("*1\r\n$1\r\nabc".to_string(), "expected CRLF"),
        ("*1\rx".to_string(), "expected CRLF"),
    ] {
        let error = requests(input.as_bytes()).1.map(|error| error.to_string());
        let start = &input[..input.len().min(20)];
        assert_eq!(
            error,
            Some(format!("ERR Protocol error: {message}")),
            "{start:?}"
        );
    }
}

#[test]
fn a_request_past_its_limit_is_refused_at_its_header() {
    let limits = Limits {
        request_max_bytes: 100,
        ..Limits::default()
    };
    let (_, error) = requests_in_pieces(limits, b"*3\r\n$50\r\n", &[]);
    assert_eq!(error, None);
    let (_, error) = requests_in_pieces(limits, b"*3\r\n$100\r\n", &[]);
    assert_eq!(
        error.map(|error| error.kind),
        Some(ErrorKind::TooBigRequest)
    );
}

#[test]
fn a_request_has_as_many_arguments_as_there_is_room_for() {
    let count = 1_500_000;
    let mut buf = format!("*{count}\r\n").into_bytes();
    buf.extend(b"$0\r\n\r\n".repeat(count));
    let limits = Limits {
        request_max_bytes: buf.len(),
        ..Limits::default()
    };
    let mut parser = RequestParser::new(limits);
    assert_eq!(parser.parse(&buf), Ok(Parse::Complete { len: buf.len() }));
    assert_eq!(parser.argc(), count);
    assert!(parser.memory() >= count * 8);
    parser.trim();
    assert!(parser.memory() < 1024);
    let less = Limits {
        request_max_bytes: 6 * count - 1,
        ..limits
    };
    // It is known from the count alone.
    let (_, error) = requests_in_pieces(less, &buf[..10], &[]);
    assert_eq!(
        error.map(|error| error.kind),
        Some(ErrorKind::TooBigRequest)
    );
}

#[test]
fn arguments_that_are_announced_and_have_not_come_take_no_memory() {
    let limits = Limits {
        request_max_bytes: usize::MAX,
        ..Limits::default()
    };
    let mut parser = RequestParser::new(limits);
    for buf in [&b"*700000000\r\n"[..], b"*700000000\r\n$1\r\nx\r\n"] {
        assert!(matches!(parser.parse(buf), Ok(Parse::Incomplete { .. })));
        assert!(parser.memory() < 1024);
    }
    let mut parser = RequestParser::new(Limits::default());
    let error = parser.parse(b"*2000000000\r\n").unwrap_err();
    assert_eq!(error.kind, ErrorKind::TooBigRequest);
    assert_eq!(parser.memory(), 0);
}

#[test]
fn the_need_is_what_is_missing_of_an_argument() {
    let mut parser = RequestParser::new(Limits::default());
    assert!(parser.is_idle());
    assert_eq!(
        parser.parse(b"*1\r\n$10\r\nabc"),
        Ok(Parse::Incomplete { need: 9 })
    );
    assert!(!parser.is_idle());
    assert_eq!(
        parser.parse(b"*1\r\n$10\r\n0123456789\r"),
        Ok(Parse::Incomplete { need: 1 })
    );
    assert_eq!(
        parser.parse(b"*1\r\n$10\r\n0123456789\r\n"),
        Ok(Parse::Complete { len: 21 })
    );
    assert!(parser.is_idle());
}

#[test]
fn an_idle_parser_is_small_after_a_giant_request() {
    let mut parser = RequestParser::new(Limits::default());
    let mut buf = Vec::new();
    encode::command(&mut buf, &vec![&b"x"[..]; 100_000]);
    assert_eq!(parser.parse(&buf), Ok(Parse::Complete { len: buf.len() }));
    assert_eq!(parser.argc(), 100_000);
    let line = format!("{}\r\n", "x ".repeat(10_000));
    assert_eq!(
        parser.parse(line.as_bytes()),
        Ok(Parse::Complete { len: line.len() })
    );
    assert_eq!(parser.argc(), 10_000);
    assert_eq!(parser.parse(b""), Ok(Parse::Incomplete { need: 1 }));
    assert!(parser.args.capacity() <= RequestParser::KEPT_ARGS);
    assert!(parser.inline.capacity() <= RequestParser::KEPT_INLINE_BYTES);
    assert!(std::mem::size_of::<RequestParser>() <= 160);
}

#[test]
fn a_million_arguments_byte_by_byte_take_a_moment() {
    let mut parser = RequestParser::new(Limits::default());
    let mut buf = Vec::new();
    encode::command(&mut buf, &vec![&b""[..]; 1_000_000]);
    for end in 0..buf.len() {
        assert!(matches!(
            parser.parse(&buf[..end]),
            Ok(Parse::Incomplete { .. })
        ));
    }
    assert_eq!(parser.parse(&buf), Ok(Parse::Complete { len: buf.len() }));
    assert_eq!(parser.argc(), 1_000_000);
}

#[test]
fn a_line_end_that_does_not_come_is_searched_for_once() {
    // 64 KiB byte by byte would be two thousand million looks if each call began anew.
    let mut input = b"*1\r\n$".to_vec();
    input.extend(vec![b'1'; (64 << 10) - 1]);
    let ends: Vec<usize> = (0..input.len()).collect();
    let (_, error) = requests_in_pieces(Limits::default(), &input, &ends);
    assert_eq!(error, None);
    input.push(b'1');
    let ends: Vec<usize> = (0..input.len()).collect();
    let (_, error) = requests_in_pieces(Limits::default(), &input, &ends);
    assert_eq!(
        error.map(|error| error.kind),
        Some(ErrorKind::TooBigBulkCount)
    );
}

/// Bytes that are nearly requests.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(b"\r\n".to_vec()),
        2 => Just(b"*".to_vec()),
        2 => Just(b"$".to_vec()),
        3 => (0u8..4).prop_map(|n| n.to_string().into_bytes()),
        1 => Just(b"-1".to_vec()),
        1 => Just(b"\"".to_vec()),
        1 => Just(b"' ".to_vec()),
        2 => proptest::collection::vec(any::<u8>(), 0..4),
        4 => proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 1..4)
            .prop_map(|args| {
                let mut out = Vec::new();
                encode::command(&mut out, &args.iter().map(Vec::as_slice).collect::<Vec<_>>());
                out
            }),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn what_was_encoded_comes_back(
        commands in proptest::collection::vec(
            proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..20), 0..5)
    ) {
        let mut input = Vec::new();
        for args in &commands {
            encode::command(&mut input, &args.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }
        let (found, error) = requests(&input);
        prop_assert_eq!(error, None);
        prop_assert_eq!(found.iter().map(|(_, len)| len).sum::<usize>(), input.len());
        prop_assert_eq!(found.into_iter().map(|(args, _)| args).collect::<Vec<_>>(), commands);
    }

    #[test]
    fn no_split_changes_what_is_found(input in nearly(), small in any::<bool>()) {
        let limits = if small {
            Limits { inline_max_bytes: 16, bulk_max_bytes: 5, request_max_bytes: 40, ..Limits::default() }
        } else {
            Limits::default()
        };
        let whole = requests_in_pieces(limits, &input, &[]);
        for end in 0..input.len() {
            prop_assert_eq!(&requests_in_pieces(limits, &input, &[end]), &whole);
        }
        let every: Vec<usize> = (0..input.len()).collect();
        prop_assert_eq!(&requests_in_pieces(limits, &input, &every), &whole);
    }
}
