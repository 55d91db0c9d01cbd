//! Requests: where each begins and ends, and where its arguments lie.
//!
//! A client sends arrays of bulk strings (`*2\r\n$3\r\nGET\r\n$1\r\nk\r\n`), or a line as typed by
//! hand (`GET k\r\n`, an *inline* request). [`RequestParser`] finds the next request in the bytes
//! received so far. It keeps no copy of them: an argument is a range of the caller's buffer, so
//! that a request can be passed on as it came.
//!
//! *Shape.* A small state machine: the count line, then a header line and its content per
//! argument. `at` is the first byte not yet taken, `seen` how much of the line there was searched
//! in vain, so that a call resumes where the last one ended. The content of a bulk is not looked
//! at, only its last two bytes.
//!
//! *Cost.* O(bytes) in all, however the input is split. An argument costs eight bytes while its
//! request lives; nothing is reserved for arguments that were announced and have not come.
//!
//! *Departures from the server.* It skips the two bytes after a length or a bulk without looking;
//! here they must be CR LF (see [`ErrorKind::MissingCrlf`]). A first byte that is not `$` is
//! reported at once, not when its line is whole. A NUL byte in an inline request is an error: the
//! server, which looks for the line's end in a C string, would wait for it until the limit.

use memchr::memchr2;

use crate::number::{self, Line};
use crate::{ErrorKind, Limits, ProtocolError};

mod inline;

/// What [`RequestParser::parse`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parse {
    /// A request, in the first `len` bytes of the buffer.
    Complete {
        /// Bytes of the buffer that the request takes.
        len: usize,
    },
    /// The request goes on past the buffer.
    Incomplete {
        /// At least this many more bytes will come: a hint for reserving room. It may be as large
        /// as the limits allow on the word of the client alone.
        need: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Between requests.
    Start,
    /// In a line that does not begin with `*`.
    Inline,
    /// In the line after `*`.
    Count,
    /// In the line after `$`.
    Header,
    /// In the content of an argument.
    Content,
}

/// What the shortest argument takes: `$0`, and two line ends.
const ARG_MIN_BYTES: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: u32,
    end: u32,
}

/// Finds the requests in a connection's bytes, one after another.
///
/// ```
/// use keyheat_resp::{request::{Parse, RequestParser}, Limits};
///
/// let mut parser = RequestParser::new(Limits::default());
/// let buf = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\nPING\r\n";
/// assert_eq!(parser.parse(buf), Ok(Parse::Complete { len: 20 }));
/// let frame = parser.frame(buf);
/// assert_eq!((parser.arg(frame, 0), parser.arg(frame, 1)), (&b"GET"[..], &b"k"[..]));
///
/// let buf = &buf[20..];
/// assert_eq!(parser.parse(buf), Ok(Parse::Complete { len: 6 }));
/// assert_eq!(parser.frame(buf), b"*1\r\n$4\r\nPING\r\n");
/// ```
#[derive(Debug)]
pub struct RequestParser {
    limits: Limits,
    args: Vec<Span>,
    /// The last inline request as multibulk; its spans refer to this.
    inline: Vec<u8>,
    /// First byte not yet taken: where a line or a content starts.
    at: usize,
    /// Bytes from `at` already searched for the end of the line.
    seen: usize,
    /// Length of the content at `at`, in [`Stage::Content`].
    bulk: usize,
    /// Arguments still to come, the present one included.
    left: usize,
    /// Length of the last complete request.
    len: usize,
    stage: Stage,
    is_inline: bool,
}

impl RequestParser {
    /// A parser keeps its argument list for the next request up to this many arguments.
    const KEPT_ARGS: usize = 32;
    /// And its inline buffer up to this many bytes.
    const KEPT_INLINE_BYTES: usize = 256;

    /// A parser at the start of a connection.
    pub fn new(limits: Limits) -> Self {
        let mut limits = limits;
        // Spans are 32 bits wide, and lengths must add up without overflow.
        let widest = (u32::MAX as usize).min(isize::MAX as usize / 2);
        limits.request_max_bytes = limits.request_max_bytes.min(widest);
        limits.bulk_max_bytes = limits.bulk_max_bytes.min(widest);
        limits.inline_max_bytes = limits.line_max_bytes().min(widest / 8);
        Self {
            limits,
            args: Vec::new(),
            inline: Vec::new(),
            at: 0,
            seen: 0,
            bulk: 0,
            left: 0,
            len: 0,
            stage: Stage::Start,
            is_inline: false,
        }
    }

    /// Looks for the end of the request that starts at `buf[0]`.
    ///
    /// Until it is complete, every call passes the same request from its first byte, with more
    /// bytes behind; what was examined before is not examined again. After
    /// [`Parse::Complete`] the next call starts afresh.
    ///
    /// # Errors
    ///
    /// The bytes are no request. The stream cannot be resumed: answer and close.
    #[inline]
    pub fn parse(&mut self, buf: &[u8]) -> Result<Parse, ProtocolError> {
        if self.stage == Stage::Start {
            self.trim();
            let Some(&first) = buf.first() else {
                return Ok(Parse::Incomplete { need: 1 });
            };
            self.at = 0;
            self.seen = 0;
            self.is_inline = first != b'*';
            self.stage = if self.is_inline {
                Stage::Inline
            } else {
                Stage::Count
            };
        }
        match self.stage {
            Stage::Inline => self.parse_inline(buf),
            Stage::Count => match self.parse_count(buf)? {
                Some(result) => Ok(result),
                None => self.parse_args(buf),
            },
            _ => self.parse_args(buf),
        }
    }

    /// Number of arguments of the last complete request, its name included.
    ///
    /// Zero means an empty request (a bare CR LF, `*0` or `*-1`): it is ignored, without a reply.
    #[inline]
    pub fn argc(&self) -> usize {
        self.args.len()
    }

    /// The last complete request as RESP: `buf[..len]` as it came, or, where it was inline, its
    /// canonical encoding, kept in the parser.
    #[inline]
    pub fn frame<'a>(&'a self, buf: &'a [u8]) -> &'a [u8] {
        if self.is_inline {
            &self.inline
        } else {
            buf.get(..self.len).unwrap_or(buf)
        }
    }

    /// The `i`-th argument of the last complete request in `frame`, which [`Self::frame`] gave;
    /// empty when there is none.
    #[inline]
    pub fn arg<'a>(&self, frame: &'a [u8], i: usize) -> &'a [u8] {
        match self.args.get(i) {
            Some(span) => frame
                .get(span.start as usize..span.end as usize)
                .unwrap_or_default(),
            None => &[],
        }
    }

    /// Whether the last complete request was typed as a line.
    pub fn is_inline(&self) -> bool {
        self.is_inline
    }

    /// Whether the parser is between requests.
    pub fn is_idle(&self) -> bool {
        self.stage == Stage::Start
    }

    /// Memory that it takes for arguments and an inline request, in bytes.
    pub fn memory(&self) -> usize {
        self.args.capacity() * size_of::<Span>() + self.inline.capacity()
    }

    /// Forgets the last complete request and gives back what a large one took.
    ///
    /// [`Self::parse`] does so itself when it begins a request, even with an empty buffer; call
    /// this where a connection falls idle without another call.
    #[inline]
    pub fn trim(&mut self) {
        if self.stage != Stage::Start {
            return;
        }
        self.args.clear();
        self.inline.clear();
        self.len = 0;
        if self.args.capacity() > Self::KEPT_ARGS {
            self.args.shrink_to(Self::KEPT_ARGS);
        }
        if self.inline.capacity() > Self::KEPT_INLINE_BYTES {
            self.inline.shrink_to(Self::KEPT_INLINE_BYTES);
        }
    }

    fn complete(&mut self, len: usize) -> Parse {
        self.stage = Stage::Start;
        self.len = len;
        Parse::Complete { len }
    }

    /// The line after `*`. `None` when arguments follow.
    #[inline]
    fn parse_count(&mut self, buf: &[u8]) -> Result<Option<Parse>, ProtocolError> {
        let fast = if self.seen == 0 {
            number::short_length(buf, 0)
        } else {
            None
        };
        let count = match fast {
            Some((count, next)) => {
                self.at = next;
                count
            }
            None => {
                let taken = self.take_length(
                    buf,
                    ErrorKind::TooBigMultibulkCount,
                    ErrorKind::InvalidMultibulkLength,
                )?;
                match taken {
                    None => return Ok(Some(Parse::Incomplete { need: 1 })),
                    // A negative count is an empty request, as for the server.
                    Some(count) => usize::try_from(count).unwrap_or(0),
                }
            }
        };
        if count > self.limits.args_max {
            return Err(ErrorKind::InvalidMultibulkLength.into());
        }
        if count == 0 {
            return Ok(Some(self.complete(self.at)));
        }
        if count.saturating_mul(ARG_MIN_BYTES) > self.limits.request_max_bytes {
            return Err(ErrorKind::TooBigRequest.into());
        }
        self.left = count;
        self.seen = 0;
        self.stage = Stage::Header;
        Ok(None)
    }

    /// The arguments, from wherever the last call stopped.
    #[inline]
    fn parse_args(&mut self, buf: &[u8]) -> Result<Parse, ProtocolError> {
        loop {
            if self.stage == Stage::Header {
                let Some(&first) = buf.get(self.at) else {
                    return Ok(Parse::Incomplete { need: 1 });
                };
                if first != b'$' {
                    return Err(ErrorKind::ExpectedBulk(first).into());
                }
                let fast = if self.seen == 0 {
                    number::short_length(buf, self.at)
                } else {
                    None
                };
                self.bulk = match fast {
                    Some((length, next)) => {
                        self.at = next;
                        length
                    }
                    None => {
                        let invalid = ErrorKind::InvalidBulkLength;
                        match self.take_length(buf, ErrorKind::TooBigBulkCount, invalid)? {
                            None => return Ok(Parse::Incomplete { need: 1 }),
                            Some(length) => usize::try_from(length).map_err(|_| invalid)?,
                        }
                    }
                };
                if self.bulk > self.limits.bulk_max_bytes {
                    return Err(ErrorKind::InvalidBulkLength.into());
                }
                if self.at + self.bulk + 2 > self.limits.request_max_bytes {
                    return Err(ErrorKind::TooBigRequest.into());
                }
                self.stage = Stage::Content;
            }
            let end = self.at + self.bulk;
            match buf.get(end..end + 2) {
                Some(b"\r\n") => {}
                Some(_) => return Err(ErrorKind::MissingCrlf.into()),
                None => {
                    return Ok(Parse::Incomplete {
                        need: (end + 2).saturating_sub(buf.len()),
                    })
                }
            }
            // Both fit: `request_max_bytes` does.
            self.args.push(Span {
                start: self.at as u32,
                end: end as u32,
            });
            self.at = end + 2;
            self.seen = 0;
            self.left -= 1;
            if self.left == 0 {
                return Ok(self.complete(self.at));
            }
            self.stage = Stage::Header;
        }
    }

    /// Takes the length line at `at`, or remembers how much of it was searched.
    #[cold]
    fn take_length(
        &mut self,
        buf: &[u8],
        too_long: ErrorKind,
        invalid: ErrorKind,
    ) -> Result<Option<i64>, ProtocolError> {
        match number::line(buf, self.at, self.seen, self.limits.inline_max_bytes) {
            Line::Whole { len } => {
                let digits = buf.get(self.at + 1..self.at + len).unwrap_or_default();
                self.at += len + 2;
                number::integer(digits).map(Some).ok_or(invalid.into())
            }
            Line::Partial { seen } => {
                self.seen = seen;
                Ok(None)
            }
            Line::TooLong => Err(too_long.into()),
            Line::NoLf => Err(ErrorKind::MissingCrlf.into()),
        }
    }

    #[cold]
    fn parse_inline(&mut self, buf: &[u8]) -> Result<Parse, ProtocolError> {
        let max = self.limits.inline_max_bytes;
        let window = buf.get(..max.saturating_add(1)).unwrap_or(buf);
        let seen = self.seen.min(window.len());
        let Some(found) = memchr2(b'\n', 0, window.get(seen..).unwrap_or_default()) else {
            if window.len() > max {
                return Err(ErrorKind::TooBigInline.into());
            }
            self.seen = window.len();
            return Ok(Parse::Incomplete { need: 1 });
        };
        let newline = seen + found;
        if window.get(newline) == Some(&0) {
            return Err(ErrorKind::NulInInline.into());
        }
        let line = window.get(..newline).unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        inline::split(line, &mut self.inline, &mut self.args)?;
        Ok(self.complete(newline + 1))
    }
}

#[cfg(test)]
mod tests;
