//! Following a stream of replies without keeping it.

use super::header::{self, Found, Header};
use crate::{ErrorKind, Limits, ProtocolError};

/// What [`ReplyScanner::scan`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// So many bytes of the buffer belong to the current frame and may be passed on.
    pub consumed: usize,
    /// The frame ended there; the next call begins another.
    pub complete: bool,
}

/// Tells where the replies of a connection end.
///
/// *Shape.* A frame is a tree; of it only the path to the element in hand is kept, as the number
/// of elements still to come at each level. The innermost is a field, so that a reply that does
/// not nest allocates nothing.
#[derive(Debug)]
pub struct ReplyScanner {
    limits: Limits,
    /// Bytes of the bulk in hand still to come, its CR LF included.
    bulk: usize,
    /// Bytes of the header line in hand that were searched in vain. They were not consumed.
    seen: usize,
    /// Elements still to come at the innermost level, the one in hand included.
    left: u64,
    /// The same for the levels around it.
    outer: Vec<u64>,
    /// Open levels.
    depth: usize,
}

impl ReplyScanner {
    /// A scanner at the start of a stream.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            bulk: 0,
            seen: 0,
            left: 0,
            outer: Vec::new(),
            depth: 0,
        }
    }

    /// Consumes the rest of the current frame as far as `buf` reaches.
    ///
    /// Header lines (`$12`, `+OK`, errors, numbers) are consumed only whole: what is not consumed
    /// is to be passed again, with more behind it. The content of bulks is consumed in any pieces.
    /// At most one frame is consumed per call.
    ///
    /// # Errors
    ///
    /// The bytes are no reply; the stream cannot be resumed.
    #[inline]
    pub fn scan(&mut self, buf: &[u8]) -> Result<Scan, ProtocolError> {
        let mut at = 0;
        loop {
            if self.bulk > 0 {
                let rest = buf.get(at..).unwrap_or_default();
                let taken = self.take_bulk(rest)?;
                at += taken;
                if self.bulk > 0 {
                    return Ok(Scan {
                        consumed: at,
                        complete: false,
                    });
                }
                if self.element_done() {
                    return Ok(Scan {
                        consumed: at,
                        complete: true,
                    });
                }
            }
            let rest = match buf.get(at..) {
                Some(rest) if !rest.is_empty() => rest,
                _ => {
                    return Ok(Scan {
                        consumed: at,
                        complete: false,
                    })
                }
            };
            let header = match header::read(rest, self.seen, &self.limits)? {
                Found::Partial { seen } => {
                    self.seen = seen;
                    return Ok(Scan {
                        consumed: at,
                        complete: false,
                    });
                }
                Found::Whole(header, _, len) => {
                    self.seen = 0;
                    at += len;
                    header
                }
            };
            match header {
                Header::Bulk(n) => {
                    self.bulk = n + 2;
                    continue;
                }
                Header::Elements(n) if n > 0 => {
                    if self.depth >= self.limits.depth_max {
                        return Err(ErrorKind::TooDeep.into());
                    }
                    if self.depth > 0 {
                        self.outer.push(self.left);
                    }
                    self.depth += 1;
                    self.left = n;
                }
                Header::Elements(_) | Header::Line | Header::Null => {
                    if self.element_done() {
                        return Ok(Scan {
                            consumed: at,
                            complete: true,
                        });
                    }
                }
            }
        }
    }

    /// Whether no byte of a frame has been consumed that is not complete.
    pub fn is_at_start(&self) -> bool {
        self.depth == 0 && self.bulk == 0
    }

    /// Takes what `rest` has of the bulk in hand, and checks its CR LF.
    #[inline]
    fn take_bulk(&mut self, rest: &[u8]) -> Result<usize, ProtocolError> {
        let taken = self.bulk.min(rest.len());
        let left = self.bulk - taken;
        if left < 2 {
            // The last byte or two of what was taken belong to the line end.
            let tail = taken.min(2 - left);
            let end = rest.get(taken - tail..taken).unwrap_or_default();
            let skipped = 2 - left - tail;
            let expected = b"\r\n".get(skipped..skipped + tail).unwrap_or_default();
            if end != expected {
                return Err(ErrorKind::MissingCrlf.into());
            }
        }
        self.bulk = left;
        Ok(taken)
    }

    /// Counts one element, and every level that ends with it. Whether the frame ended.
    #[inline]
    fn element_done(&mut self) -> bool {
        while self.depth > 0 {
            self.left -= 1;
            if self.left > 0 {
                return false;
            }
            self.depth -= 1;
            self.left = self.outer.pop().unwrap_or_default();
        }
        true
    }
}
