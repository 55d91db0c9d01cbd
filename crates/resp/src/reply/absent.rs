//! Whether a reply is what a key that is not there answers.
//!
//! Told by the frame as it stands: of a bulk only its header is looked at, of an aggregate only as many elements
//! as it takes. It errs on one side: a key that is there may answer the same (a counter at 0, an empty string), so
//! "absent" means that somebody else has to be asked, and anything else proves that the key was there.

use super::scan::ReplyScanner;
use crate::{number, Limits};

/// Whether an absent key gives this reply: null, 0, an empty string or aggregate, or nothing but these.
///
/// Errors say nothing of the key, and are not absent.
pub fn is_absent(frame: &[u8]) -> bool {
    match frame.first() {
        Some(b'$') => frame.starts_with(b"$-1\r") || frame.starts_with(b"$0\r"),
        Some(b'=') => frame.starts_with(b"=4\r"),
        Some(b':') => matches!(frame, b":0\r\n" | b":-2\r\n"),
        Some(b'+') => frame == b"+none\r\n",
        Some(b'#') => frame == b"#f\r\n",
        Some(b'_') => true,
        Some(b'*' | b'~') => elements(frame).all(is_absent),
        Some(b'%') => frame == b"%0\r\n",
        _ => false,
    }
}

/// Whether one of several keys that were asked for gives null.
pub fn has_null(frame: &[u8]) -> bool {
    let is_null = |element: &[u8]| matches!(element, b"$-1\r\n" | b"*-1\r\n" | b"_\r\n");
    frame.first() == Some(&b'*') && (is_null(frame) || elements(frame).any(is_null))
}

/// The elements of an array or set, as they stand; none of what is no such thing.
fn elements(frame: &[u8]) -> impl Iterator<Item = &[u8]> {
    let end = frame.iter().position(|byte| *byte == b'\r').unwrap_or(0);
    let count = frame.get(1..end).and_then(number::integer).unwrap_or(0);
    let mut rest = frame.get(end + 2..).unwrap_or_default();
    let mut scanner = ReplyScanner::new(Limits::default());
    (0..count).map_while(move |_| {
        let scan = scanner.scan(rest).ok().filter(|scan| scan.complete)?;
        let (element, tail) = rest.split_at_checked(scan.consumed)?;
        rest = tail;
        Some(element)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_absent_key_answers_is_known() {
        for frame in [
            &b"$-1\r\n"[..],
            b"$0\r\n\r\n",
            b"_\r\n",
            b":0\r\n",
            b":-2\r\n",
            b"+none\r\n",
            b"#f\r\n",
            b"=4\r\ntxt:\r\n",
            b"*-1\r\n",
            b"*0\r\n",
            b"~0\r\n",
            b"%0\r\n",
            b"*3\r\n$-1\r\n_\r\n:0\r\n",
            b"*2\r\n*0\r\n*1\r\n$-1\r\n",
        ] {
            assert!(is_absent(frame), "{frame:?}");
        }
    }

    #[test]
    fn anything_else_proves_that_the_key_was_there() {
        for frame in [
            &b"$1\r\nv\r\n"[..],
            b"$05\r\nvalue\r\n",
            b":7\r\n",
            b":-1\r\n",
            b"+OK\r\n",
            b"+string\r\n",
            b",0\r\n",
            b"#t\r\n",
            b"=5\r\ntxt:a\r\n",
            b"*2\r\n$-1\r\n$1\r\nv\r\n",
            b"*2\r\n*1\r\n$-1\r\n*1\r\n:5\r\n",
            b"~1\r\n$1\r\nm\r\n",
            b"%1\r\n$1\r\nf\r\n$1\r\nv\r\n",
            b"-ERR x\r\n",
        ] {
            assert!(!is_absent(frame), "{frame:?}");
        }
    }

    #[test]
    fn a_null_among_several_is_found() {
        for frame in [
            &b"*2\r\n$1\r\nv\r\n$-1\r\n"[..],
            b"*1\r\n_\r\n",
            b"*2\r\n*-1\r\n:0\r\n",
            b"*-1\r\n",
        ] {
            assert!(has_null(frame), "{frame:?}");
        }
        for frame in [
            &b"*2\r\n$1\r\nv\r\n$0\r\n\r\n"[..],
            b"*0\r\n",
            b"*1\r\n*1\r\n$-1\r\n",
            b"$-1\r\n",
        ] {
            assert!(!has_null(frame), "{frame:?}");
        }
    }
}
