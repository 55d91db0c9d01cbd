//! Requests and replies, appended to a buffer.
//!
//! Every function appends one element. Where RESP2 has no type of its own for what is meant, the
//! functions that take a [`Protocol`] write what a server writes to a RESP2 client.

use crate::number::push_decimal;

/// The version of the protocol that a connection has agreed on with `HELLO`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Every connection starts here.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

fn header(out: &mut Vec<u8>, kind: u8, n: usize) {
    out.push(kind);
    push_decimal(out, i64::try_from(n).unwrap_or(i64::MAX));
    out.extend_from_slice(b"\r\n");
}

/// A whole request: an array of bulk strings.
pub fn command(out: &mut Vec<u8>, args: &[&[u8]]) {
    array_header(out, args.len());
    for arg in args {
        bulk(out, arg);
    }
}

/// The head of an array of `n` elements, which follow.
pub fn array_header(out: &mut Vec<u8>, n: usize) {
    header(out, b'*', n);
}

/// The head of a map of `n` pairs; in RESP2 an array of twice as many elements.
pub fn map_header(out: &mut Vec<u8>, n: usize, proto: Protocol) {
    match proto {
        Protocol::Resp2 => header(out, b'*', n.saturating_mul(2)),
        Protocol::Resp3 => header(out, b'%', n),
    }
}

/// The head of a set of `n` elements; in RESP2 an array.
pub fn set_header(out: &mut Vec<u8>, n: usize, proto: Protocol) {
    header(out, if proto == Protocol::Resp3 { b'~' } else { b'*' }, n);
}

/// The head of a push of `n` elements; in RESP2 an array, as for pub/sub messages.
pub fn push_header(out: &mut Vec<u8>, n: usize, proto: Protocol) {
    header(out, if proto == Protocol::Resp3 { b'>' } else { b'*' }, n);
}

/// A bulk string.
pub fn bulk(out: &mut Vec<u8>, value: &[u8]) {
    header(out, b'$', value.len());
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// A simple string. CR and LF become spaces, since they would end it.
pub fn simple(out: &mut Vec<u8>, text: &str) {
    line(out, b'+', text.as_bytes());
}

/// An error, `msg` being code and text without the leading `-`. CR and LF become spaces.
pub fn error(out: &mut Vec<u8>, msg: &str) {
    line(out, b'-', msg.as_bytes());
}

/// An integer.
pub fn integer(out: &mut Vec<u8>, value: i64) {
    out.push(b':');
    push_decimal(out, value);
    out.extend_from_slice(b"\r\n");
}

/// A missing value.
pub fn null(out: &mut Vec<u8>, proto: Protocol) {
    out.extend_from_slice(match proto {
        Protocol::Resp2 => b"$-1\r\n",
        Protocol::Resp3 => b"_\r\n",
    });
}

/// A missing array, as `EXEC` answers after a failed `WATCH`.
pub fn null_array(out: &mut Vec<u8>, proto: Protocol) {
    out.extend_from_slice(match proto {
        Protocol::Resp2 => b"*-1\r\n",
        Protocol::Resp3 => b"_\r\n",
    });
}

/// A truth value; in RESP2 the integer 1 or 0.
pub fn boolean(out: &mut Vec<u8>, value: bool, proto: Protocol) {
    out.extend_from_slice(match (proto, value) {
        (Protocol::Resp2, true) => b":1\r\n",
        (Protocol::Resp2, false) => b":0\r\n",
        (Protocol::Resp3, true) => b"#t\r\n",
        (Protocol::Resp3, false) => b"#f\r\n",
    });
}

fn line(out: &mut Vec<u8>, kind: u8, text: &[u8]) {
    out.push(kind);
    out.extend(text.iter().map(|&byte| {
        if matches!(byte, b'\r' | b'\n') {
            b' '
        } else {
            byte
        }
    }));
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_command_is_an_array_of_bulks() {
        assert_eq!(
            written(|out| command(out, &[b"GET", b"k\r\n"])),
            "*2\r\n$3\r\nGET\r\n$3\r\nk\r\n\r\n"
        );
    }

    #[test]
    fn a_line_break_cannot_leave_an_error() {
        assert_eq!(written(|out| error(out, "ERR a\r\nb")), "-ERR a  b\r\n");
        assert_eq!(written(|out| simple(out, "a\nb")), "+a b\r\n");
    }

    #[test]
    fn what_resp2_lacks_is_written_in_its_terms() {
        use Protocol::{Resp2, Resp3};
        assert_eq!(written(|out| map_header(out, 2, Resp2)), "*4\r\n");
        assert_eq!(written(|out| map_header(out, 2, Resp3)), "%2\r\n");
        assert_eq!(written(|out| set_header(out, 2, Resp2)), "*2\r\n");
        assert_eq!(written(|out| set_header(out, 2, Resp3)), "~2\r\n");
        assert_eq!(written(|out| push_header(out, 2, Resp2)), "*2\r\n");
        assert_eq!(written(|out| push_header(out, 2, Resp3)), ">2\r\n");
        assert_eq!(written(|out| null(out, Resp2)), "$-1\r\n");
        assert_eq!(written(|out| null(out, Resp3)), "_\r\n");
        assert_eq!(written(|out| null_array(out, Resp2)), "*-1\r\n");
        assert_eq!(written(|out| boolean(out, true, Resp2)), ":1\r\n");
        assert_eq!(written(|out| boolean(out, false, Resp3)), "#f\r\n");
        assert_eq!(written(|out| integer(out, -12)), ":-12\r\n");
    }
}
