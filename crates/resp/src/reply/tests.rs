use super::*;
use crate::{ErrorKind, Limits, ProtocolError};
use proptest::prelude::*;
use redis_protocol::resp3::{self, types::Resp3Frame};

/// Where each frame of `input` ends when it arrives in pieces that end at `ends`; and the error.
fn frames_in_pieces(
    limits: Limits,
    input: &[u8],
    ends: &[usize],
) -> (Vec<usize>, Option<ProtocolError>) {
    let mut scanner = ReplyScanner::new(limits);
    let (mut found, mut start) = (Vec::new(), 0);
    for &end in ends.iter().chain([&input.len()]) {
        while start < end {
            match scanner.scan(&input[start..end]) {
                Ok(Scan { consumed, complete }) => {
                    start += consumed;
                    if complete {
                        assert!(scanner.is_at_start());
                        found.push(start);
                    } else {
                        break;
                    }
                }
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

fn value(input: &str) -> Result<Option<(Value, usize)>, ErrorKind> {
    parse(input.as_bytes(), &Limits::default()).map_err(|error| error.kind)
}

fn bulk(text: &str) -> Value {
    Value::Bulk(text.as_bytes().to_vec())
}

#[test]
fn every_type_is_read() {
    for (input, expected) in [
        ("+OK\r\n", Value::Simple(b"OK".to_vec())),
        ("-ERR no\r\n", Value::Error(b"ERR no".to_vec())),
        ("!6\r\nERR\r\n!\r\n", Value::Error(b"ERR\r\n!".to_vec())),
        (":-12\r\n", Value::Int(-12)),
        ("$3\r\na\r\n\r\n", bulk("a\r\n")),
        ("$0\r\n\r\n", bulk("")),
        ("$-1\r\n", Value::Null),
        ("*-1\r\n", Value::Null),
        ("_\r\n", Value::Null),
        ("*0\r\n", Value::Array(vec![])),
        ("*2\r\n:1\r\n*1\r\n+a\r\n", {
            Value::Array(vec![
                Value::Int(1),
                Value::Array(vec![Value::Simple(b"a".to_vec())]),
            ])
        }),
        (
            "%1\r\n+a\r\n:1\r\n",
            Value::Map(vec![(Value::Simple(b"a".to_vec()), Value::Int(1))]),
        ),
        ("~1\r\n:1\r\n", Value::Set(vec![Value::Int(1)])),
        (">2\r\n$1\r\na\r\n*1\r\n$1\r\nk\r\n", {
            Value::Push(vec![bulk("a"), Value::Array(vec![bulk("k")])])
        }),
        (",1.5e3\r\n", Value::Double(1500.0)),
        (",-inf\r\n", Value::Double(f64::NEG_INFINITY)),
        ("#t\r\n", Value::Bool(true)),
        (
            "(-123456789012345678901\r\n",
            Value::BigNumber(b"-123456789012345678901".to_vec()),
        ),
        (
            "=7\r\ntxt:abc\r\n",
            Value::Verbatim {
                format: *b"txt",
                text: b"abc".to_vec(),
            },
        ),
        (
            "|1\r\n+ttl\r\n:9\r\n$1\r\nv\r\n",
            Value::Attribute {
                attrs: vec![(Value::Simple(b"ttl".to_vec()), Value::Int(9))],
                value: Box::new(bulk("v")),
            },
        ),
    ] {
        assert_eq!(value(input), Ok(Some((expected, input.len()))), "{input:?}");
        let scanned = frames_in_pieces(Limits::default(), input.as_bytes(), &[]);
        assert_eq!(scanned, (vec![input.len()], None), "{input:?}");
    }
}

#[test]
fn what_is_no_reply_is_refused() {
    for (input, kind) in [
        ("x", ErrorKind::UnknownReplyType(b'x')),
        (":x\r\n", ErrorKind::InvalidReplyLine),
        ("#x\r\n", ErrorKind::InvalidReplyLine),
        (",x\r\n", ErrorKind::InvalidReplyLine),
        ("_x\r\n", ErrorKind::InvalidReplyLine),
        ("+a\rb", ErrorKind::InvalidReplyLine),
        ("$-2\r\n", ErrorKind::InvalidReplyLength),
        ("$?\r\n", ErrorKind::InvalidReplyLength),
        ("$536870913\r\n", ErrorKind::InvalidReplyLength),
        ("*4294967296\r\n", ErrorKind::InvalidReplyLength),
        ("%-1\r\n", ErrorKind::InvalidReplyLength),
        ("=3\r\n", ErrorKind::InvalidReplyLength),
        ("$1\r\nabc", ErrorKind::MissingCrlf),
        ("$1\r\na\rc", ErrorKind::MissingCrlf),
    ] {
        assert_eq!(value(input), Err(kind), "{input:?}");
        let (_, error) = frames_in_pieces(Limits::default(), input.as_bytes(), &[]);
        assert_eq!(error.map(|error| error.kind), Some(kind), "{input:?}");
    }
}

#[test]
fn nesting_and_lines_are_limited() {
    let limits = Limits {
        depth_max: 3,
        ..Limits::default()
    };
    let deep = |n: usize| "*1\r\n".repeat(n) + ":1\r\n";
    assert!(parse(deep(3).as_bytes(), &limits).unwrap().is_some());
    assert_eq!(
        frames_in_pieces(limits, deep(3).as_bytes(), &[]),
        (vec![16], None)
    );
    let too_deep = Some(ProtocolError {
        kind: ErrorKind::TooDeep,
    });
    assert_eq!(parse(deep(4).as_bytes(), &limits).err(), too_deep);
    assert_eq!(
        frames_in_pieces(limits, deep(4).as_bytes(), &[]).1,
        too_deep
    );
    let limits = Limits {
        depth_max: usize::MAX,
        ..limits
    };
    assert_eq!(parse(deep(100_000).as_bytes(), &limits).err(), too_deep);
    let whole = deep(100_000);
    assert_eq!(
        frames_in_pieces(limits, whole.as_bytes(), &[]),
        (vec![whole.len()], None)
    );

    let too_long = Some(ProtocolError {
        kind: ErrorKind::TooBigReplyLine,
    });
    let line = format!("+{}", "x".repeat(64 << 10));
    assert_eq!(
        frames_in_pieces(Limits::default(), line.as_bytes(), &[]).1,
        too_long
    );
}

#[test]
fn a_bulk_streams_and_a_line_waits_until_it_is_whole() {
    let mut scanner = ReplyScanner::new(Limits::default());
    let scan = |consumed, complete| Ok(Scan { consumed, complete });
    assert_eq!(scanner.scan(b"$10\r"), scan(0, false));
    assert!(scanner.is_at_start());
    assert_eq!(scanner.scan(b"$10\r\n01"), scan(7, false));
    assert!(!scanner.is_at_start());
    assert_eq!(scanner.scan(b"23456789\r"), scan(9, false));
    assert_eq!(scanner.scan(b"\n+OK\r\n"), scan(1, true));
    assert_eq!(scanner.scan(b"+OK\r\n"), scan(5, true));
}

#[test]
fn a_large_array_byte_by_byte_takes_a_moment() {
    let mut input = b"*1000000\r\n".to_vec();
    input.extend(b"$1\r\nx\r\n".repeat(1_000_000));
    let ends: Vec<usize> = (0..input.len()).collect();
    assert_eq!(
        frames_in_pieces(Limits::default(), &input, &ends),
        (vec![input.len()], None)
    );
}

fn leaf() -> impl Strategy<Value = resp3::types::OwnedFrame> {
    use resp3::types::{OwnedFrame as Frame, VerbatimStringFormat};
    let bytes = || proptest::collection::vec(any::<u8>(), 0..20);
    prop_oneof![
        bytes().prop_map(|data| Frame::BlobString {
            data,
            attributes: None
        }),
        bytes().prop_map(|data| Frame::BlobError {
            data,
            attributes: None
        }),
        "[a-z ]{0,9}".prop_map(|s| Frame::SimpleString {
            data: s.into(),
            attributes: None
        }),
        "[A-Z ]{1,9}".prop_map(|data| Frame::SimpleError {
            data,
            attributes: None
        }),
        any::<i64>().prop_map(|data| Frame::Number {
            data,
            attributes: None
        }),
        any::<f64>()
            .prop_filter("a number", |f| !f.is_nan())
            .prop_map(|data| Frame::Double {
                data,
                attributes: None
            }),
        any::<bool>().prop_map(|data| Frame::Boolean {
            data,
            attributes: None
        }),
        Just(Frame::Null),
        "-?[1-9][0-9]{0,30}".prop_map(|s| Frame::BigNumber {
            data: s.into(),
            attributes: None
        }),
        bytes().prop_map(|data| Frame::VerbatimString {
            data,
            format: VerbatimStringFormat::Markdown,
            attributes: None,
        }),
    ]
}

/// Frames of the other implementation.
fn frame() -> impl Strategy<Value = resp3::types::OwnedFrame> {
    use resp3::types::OwnedFrame as Frame;
    leaf().prop_recursive(4, 40, 6, |inner| {
        let (a, b) = (inner.clone(), inner.clone());
        let many = |inner| proptest::collection::vec(inner, 0..6);
        prop_oneof![
            many(a).prop_map(|data| Frame::Array {
                data,
                attributes: None
            }),
            many(b).prop_map(|data| Frame::Push {
                data,
                attributes: None
            }),
            // Its maps hash their keys, which not every type can be.
            proptest::collection::hash_map("[a-z]{1,5}", inner, 0..6).prop_map(|pairs| {
                let key = |key: String| Frame::BlobString {
                    data: key.into(),
                    attributes: None,
                };
                Frame::Map {
                    data: pairs.into_iter().map(|(k, v)| (key(k), v)).collect(),
                    attributes: None,
                }
            }),
        ]
    })
}

/// What the other implementation holds, in our words. Maps have no order there.
fn same(theirs: &resp3::types::OwnedFrame, ours: &Value) -> bool {
    use resp3::types::OwnedFrame as Frame;
    let all = |theirs: &[Frame], ours: &[Value]| {
        theirs.len() == ours.len() && theirs.iter().zip(ours).all(|(a, b)| same(a, b))
    };
    match (theirs, ours) {
        (Frame::BlobString { data, .. }, Value::Bulk(text))
        | (Frame::BlobError { data, .. }, Value::Error(text))
        | (Frame::SimpleString { data, .. }, Value::Simple(text))
        | (Frame::BigNumber { data, .. }, Value::BigNumber(text)) => data == text,
        (Frame::VerbatimString { data, .. }, Value::Verbatim { format, text }) => {
            data == text && format == b"mkd"
        }
        (Frame::SimpleError { data, .. }, Value::Error(text)) => data.as_bytes() == text,
        (Frame::Number { data, .. }, Value::Int(n)) => data == n,
        (Frame::Double { data, .. }, Value::Double(f)) => data == f,
        (Frame::Boolean { data, .. }, Value::Bool(b)) => data == b,
        (Frame::Null, Value::Null) => true,
        (Frame::Array { data, .. }, Value::Array(values))
        | (Frame::Push { data, .. }, Value::Push(values)) => all(data, values),
        (Frame::Map { data, .. }, Value::Map(pairs)) => {
            data.len() == pairs.len()
                && data
                    .iter()
                    .all(|(k, v)| pairs.iter().any(|(a, b)| same(k, a) && same(v, b)))
        }
        _ => false,
    }
}

fn encoded(frame: &resp3::types::OwnedFrame) -> Vec<u8> {
    let mut buf = vec![0; frame.encode_len(false)];
    let len = resp3::encode::complete::encode(&mut buf, frame, false).unwrap();
    buf.truncate(len);
    buf
}

/// Bytes that are nearly replies.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(b"\r\n".to_vec()),
        4 => proptest::sample::select(b"+-:$*_#,(!=%~>|".to_vec()).prop_map(|kind| vec![kind]),
        3 => (0u8..5).prop_map(|n| n.to_string().into_bytes()),
        1 => Just(b"-1".to_vec()),
        2 => proptest::collection::vec(any::<u8>(), 0..4),
        4 => frame().prop_map(|frame| encoded(&frame)),
        2 => proptest::sample::select(b"*%~>|".to_vec())
            .prop_map(|kind| vec![kind, b'1', b'\r', b'\n']),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn another_implementations_frames_are_read(frame in frame()) {
        let input = encoded(&frame);
        let (value, len) = parse(&input, &Limits::default()).unwrap().unwrap();
        prop_assert_eq!(len, input.len());
        prop_assert!(same(&frame, &value), "{:?} {:?}", frame, value);
        let scanned = frames_in_pieces(Limits::default(), &input, &[]);
        prop_assert_eq!(scanned, (vec![input.len()], None));
        for end in 0..input.len() {
            prop_assert_eq!(parse(&input[..end], &Limits::default()), Ok(None));
        }
    }

    #[test]
    fn no_split_changes_where_frames_end(input in nearly(), small in any::<bool>()) {
        let limits = if small {
            Limits { inline_max_bytes: 16, bulk_max_bytes: 5, depth_max: 2, ..Limits::default() }
        } else {
            Limits::default()
        };
        let whole = frames_in_pieces(limits, &input, &[]);
        for end in 0..input.len() {
            prop_assert_eq!(&frames_in_pieces(limits, &input, &[end]), &whole);
        }
        let every: Vec<usize> = (0..input.len()).collect();
        prop_assert_eq!(&frames_in_pieces(limits, &input, &every), &whole);

        // And the parser finds the same frames.
        let (ends, error) = whole;
        let mut start = 0;
        for end in ends {
            let parsed = parse(&input[start..], &limits).map(|found| found.map(|(_, len)| len));
            prop_assert_eq!(parsed, Ok(Some(end - start)));
            start = end;
        }
        let rest = parse(&input[start..], &limits).map(|found| found.map(|(_, len)| len));
        prop_assert_eq!(rest, error.map_or(Ok(None), Err));
    }
}
