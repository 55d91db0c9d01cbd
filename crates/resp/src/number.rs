//! Decimal numbers as the protocol writes them, and the end of a line.

use memchr::memchr;

/// An integer, by the server's own rule: an optional minus, no plus, no leading zero, no space.
#[must_use]
pub fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    match digits {
        [] => return None,
        [b'0'] => return if negative { None } else { Some(0) },
        [b'0', ..] => return None,
        _ => {}
    }
    let mut value: i64 = 0;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        let digit = i64::from(digit);
        // Counting downwards reaches i64::MIN, which has no positive twin.
        value = value.checked_mul(10)?.checked_sub(digit)?;
    }
    if negative {
        Some(value)
    } else {
        value.checked_neg()
    }
}

/// The usual length line, `$12\r\n`, whole at `at` and of few digits: its value and what follows.
///
/// Anything else (incomplete, malformed, negative, long) is `None` and left to the slow road.
#[inline]
pub(crate) fn short_length(buf: &[u8], at: usize) -> Option<(usize, usize)> {
    const DIGITS_MAX: usize = 7;
    let rest = buf.get(at + 1..)?;
    let first = rest.first()?.wrapping_sub(b'0');
    if first > 9 {
        return None;
    }
    let mut value = usize::from(first);
    let mut i = 1;
    loop {
        let digit = rest.get(i)?.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        if first == 0 || i == DIGITS_MAX {
            return None;
        }
        value = value * 10 + usize::from(digit);
        i += 1;
    }
    if rest.get(i..i + 2)? == b"\r\n" {
        Some((value, at + 1 + i + 2))
    } else {
        None
    }
}

/// What a search for the end of a line found.
pub(crate) enum Line {
    /// The line is `buf[at..at + len]`, and CR LF follow it.
    Whole { len: usize },
    /// No end yet; this many bytes from `at` need not be searched again.
    Partial { seen: usize },
    /// More than `max` bytes without a CR.
    TooLong,
    /// A CR without its LF.
    NoLf,
}

/// Searches for the CR LF of the line at `at`, of which `seen` bytes were searched before.
///
/// The verdict depends on the bytes alone, not on how they were split.
pub(crate) fn line(buf: &[u8], at: usize, seen: usize, max: usize) -> Line {
    let rest = buf.get(at..).unwrap_or_default();
    let window = rest.get(..max.saturating_add(1)).unwrap_or(rest);
    let seen = seen.min(window.len());
    match memchr(b'\r', window.get(seen..).unwrap_or_default()) {
        None if window.len() > max => Line::TooLong,
        None => Line::Partial { seen: window.len() },
        Some(i) => match rest.get(seen + i + 1) {
            None => Line::Partial { seen: seen + i },
            Some(b'\n') => Line::Whole { len: seen + i },
            Some(_) => Line::NoLf,
        },
    }
}

/// Appends `value` in decimal.
pub(crate) fn push_decimal(out: &mut Vec<u8>, value: i64) {
    // Nineteen digits and a sign.
    let mut text = [0u8; 20];
    let mut at = text.len();
    let mut rest = value.unsigned_abs();
    for slot in text.iter_mut().rev() {
        *slot = b'0' + (rest % 10) as u8;
        at -= 1;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(text.get(at..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_follow_the_servers_rule() {
        for (text, value) in [
            ("0", Some(0)),
            ("7", Some(7)),
            ("-7", Some(-7)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("-9223372036854775809", None),
            ("", None),
            ("-", None),
            ("-0", None),
            ("+1", None),
            ("01", None),
            (" 1", None),
            ("1 ", None),
            ("1x", None),
        ] {
            assert_eq!(integer(text.as_bytes()), value, "{text:?}");
        }
    }

    #[test]
    fn decimals_come_back() {
        for value in [0, 1, -1, 9, 10, 1234567, i64::MAX, i64::MIN] {
            let mut out = Vec::new();
            push_decimal(&mut out, value);
            assert_eq!(out, value.to_string().as_bytes());
        }
    }

    #[test]
    fn a_short_length_is_taken_only_when_whole_and_plain() {
        assert_eq!(short_length(b"$0\r\n", 0), Some((0, 4)));
        assert_eq!(short_length(b"x$12\r\nab", 1), Some((12, 6)));
        assert_eq!(short_length(b"$1234567\r\n", 0), Some((1234567, 10)));
        for text in [
            "",
            "$",
            "$1",
            "$1\r",
            "$12345678\r\n",
            "$-1\r\n",
            "$01\r\n",
            "$1\rx",
            "$\r\n",
        ] {
            assert_eq!(short_length(text.as_bytes(), 0), None, "{text:?}");
        }
    }
}
