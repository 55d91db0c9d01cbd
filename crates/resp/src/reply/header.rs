//! The line that every element of a reply begins with.

use crate::number::{self, Line};
use crate::{ErrorKind, Limits, ProtocolError};

/// More elements than any server can hold in one reply.
const ELEMENTS_MAX: i64 = u32::MAX as i64;

/// What a header line announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// The line is all there is.
    Line,
    /// The line says "nothing": `_`, `$-1` or `*-1`.
    Null,
    /// So many bytes follow, and CR LF.
    Bulk(usize),
    /// So many elements follow.
    Elements(u64),
}

/// A header line found at the start of a buffer.
pub(super) enum Found<'a> {
    /// The line, what stands in it after the type byte, and its length with CR LF.
    Whole(Header, &'a [u8], usize),
    /// It is not whole; so many bytes need not be searched again.
    Partial { seen: usize },
}

/// Reads the header line at the start of `buf`, which is not empty, and of which `seen` bytes were
/// searched before.
#[inline]
pub(super) fn read<'a>(
    buf: &'a [u8],
    seen: usize,
    limits: &Limits,
) -> Result<Found<'a>, ProtocolError> {
    let kind = buf.first().copied().unwrap_or_default();
    if seen == 0 && matches!(kind, b'$' | b'*') {
        if let Some((n, next)) = number::short_length(buf, 0) {
            if kind == b'*' {
                return Ok(Found::Whole(Header::Elements(n as u64), &[], next));
            } else if n <= limits.bulk_max_bytes {
                return Ok(Found::Whole(Header::Bulk(n), &[], next));
            }
        }
    }
    if !b"+-:$*_#,(!=%~>|".contains(&kind) {
        return Err(ErrorKind::UnknownReplyType(kind).into());
    }
    match number::line(buf, 0, seen, limits.line_max_bytes()) {
        Line::Whole { len } => {
            let text = buf.get(1..len).unwrap_or_default();
            Ok(Found::Whole(classify(kind, text, limits)?, text, len + 2))
        }
        Line::Partial { seen } => Ok(Found::Partial { seen }),
        Line::TooLong => Err(ErrorKind::TooBigReplyLine.into()),
        // Inside a simple string or an error a lone CR would be odd, but no server sends one.
        Line::NoLf => Err(ErrorKind::InvalidReplyLine.into()),
    }
}

fn classify(kind: u8, text: &[u8], limits: &Limits) -> Result<Header, ProtocolError> {
    let line = |valid: bool| {
        if valid {
            Ok(Header::Line)
        } else {
            Err(ErrorKind::InvalidReplyLine.into())
        }
    };
    match kind {
        b'+' | b'-' => Ok(Header::Line),
        b':' => line(signed(text).is_some()),
        b'#' => line(matches!(text, b"t" | b"f")),
        b',' => line(double(text).is_some()),
        // Servers pass on what a script calls a number; to refuse it would cost the connection.
        b'(' => line(true),
        b'_' if text.is_empty() => Ok(Header::Null),
        b'_' => Err(ErrorKind::InvalidReplyLine.into()),
        _ => {
            let invalid = ErrorKind::InvalidReplyLength;
            let n = number::integer(text).ok_or(invalid)?;
            if n == -1 && matches!(kind, b'$' | b'*') {
                return Ok(Header::Null);
            }
            if n > ELEMENTS_MAX && !matches!(kind, b'$' | b'!' | b'=') {
                return Err(invalid.into());
            }
            let n = usize::try_from(n).map_err(|_| invalid)?;
            match kind {
                b'$' | b'!' | b'=' if n > limits.bulk_max_bytes => Err(invalid.into()),
                // A verbatim string begins with three letters and a colon.
                b'=' if n < 4 => Err(invalid.into()),
                b'$' | b'!' | b'=' => Ok(Header::Bulk(n)),
                b'%' => Ok(Header::Elements(2 * n as u64)),
                // Its pairs, and the reply that they describe.
                b'|' => Ok(Header::Elements(2 * n as u64 + 1)),
                _ => Ok(Header::Elements(n as u64)),
            }
        }
    }
}

/// An integer reply; a plus is allowed here.
pub(super) fn signed(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A double, with `inf`, `-inf` and `nan`.
pub(super) fn double(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
