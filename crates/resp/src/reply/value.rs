//! Replies as owned values.

use super::header::{self, Found, Header};
use crate::{ErrorKind, Limits, ProtocolError};

/// A reply, of any type of RESP2 and RESP3.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `+`
    Simple(Vec<u8>),
    /// `-` or `!`, code and text
    Error(Vec<u8>),
    /// `:`
    Int(i64),
    /// `$`
    Bulk(Vec<u8>),
    /// `_`, `$-1` or `*-1`
    Null,
    /// `*`
    Array(Vec<Value>),
    /// `%`
    Map(Vec<(Value, Value)>),
    /// `~`
    Set(Vec<Value>),
    /// `>`
    Push(Vec<Value>),
    /// `,`
    Double(f64),
    /// `#`
    Bool(bool),
    /// `(`, its digits
    BigNumber(Vec<u8>),
    /// `=`
    Verbatim {
        /// `txt` or `mkd`.
        format: [u8; 3],
        /// The text.
        text: Vec<u8>,
    },
    /// `|` and the reply that follows it
    Attribute {
        /// The attribute's pairs.
        attrs: Vec<(Value, Value)>,
        /// What they describe.
        value: Box<Value>,
    },
}

/// Reads the reply at the start of `buf`: the value and its length, or `None` if it goes on past
/// the buffer.
///
/// Every call starts over, so a large reply that arrives in pieces is better followed with
/// [`super::ReplyScanner`] and parsed when whole.
///
/// # Errors
///
/// The bytes are no reply.
pub fn parse(buf: &[u8], limits: &Limits) -> Result<Option<(Value, usize)>, ProtocolError> {
    let mut reader = Reader { buf, at: 0, limits };
    Ok(reader.value(0)?.map(|value| (value, reader.at)))
}

struct Reader<'a> {
    buf: &'a [u8],
    at: usize,
    limits: &'a Limits,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a [u8] {
        self.buf.get(self.at..).unwrap_or_default()
    }

    /// Recursion is bounded by [`Limits::DEPTH_CAP`].
    fn value(&mut self, depth: usize) -> Result<Option<Value>, ProtocolError> {
        let rest = self.rest();
        let Some(&kind) = rest.first() else {
            return Ok(None);
        };
        let Found::Whole(header, text, len) = header::read(rest, 0, self.limits)? else {
            return Ok(None);
        };
        self.at += len;
        match header {
            Header::Null => Ok(Some(Value::Null)),
            Header::Line => line(kind, text).map(Some),
            Header::Bulk(n) => Ok(self.content(n)?.map(|content| bulk(kind, content))),
            Header::Elements(n) => {
                if n > 0 && depth >= self.limits.depth() {
                    return Err(ErrorKind::TooDeep.into());
                }
                self.aggregate(kind, n, depth + 1)
            }
        }
    }

    fn content(&mut self, n: usize) -> Result<Option<&'a [u8]>, ProtocolError> {
        let rest = self.rest();
        // A wrong line end is an error as soon as its first byte is there, as for the scanner.
        match (rest.get(n), rest.get(n + 1)) {
            (Some(b'\r'), Some(b'\n')) => {
                self.at += n + 2;
                Ok(rest.get(..n))
            }
            (None, _) | (Some(b'\r'), None) => Ok(None),
            _ => Err(ErrorKind::MissingCrlf.into()),
        }
    }

    fn aggregate(
        &mut self,
        kind: u8,
        n: u64,
        depth: usize,
    ) -> Result<Option<Value>, ProtocolError> {
        Ok(match kind {
            b'%' => self.pairs(n / 2, depth)?.map(Value::Map),
            b'|' => {
                let Some(attrs) = self.pairs(n / 2, depth)? else {
                    return Ok(None);
                };
                self.value(depth)?.map(|value| Value::Attribute {
                    attrs,
                    value: Box::new(value),
                })
            }
            b'~' => self.elements(n, depth)?.map(Value::Set),
            b'>' => self.elements(n, depth)?.map(Value::Push),
            _ => self.elements(n, depth)?.map(Value::Array),
        })
    }

    /// Room for `n` elements, as far as that may be believed before they are there.
    fn room<T>(n: u64) -> Vec<T> {
        const BELIEVED: u64 = 256;
        Vec::with_capacity(n.min(BELIEVED) as usize)
    }

    fn elements(&mut self, n: u64, depth: usize) -> Result<Option<Vec<Value>>, ProtocolError> {
        let mut elements = Self::room(n);
        for _ in 0..n {
            let Some(value) = self.value(depth)? else {
                return Ok(None);
            };
            elements.push(value);
        }
        Ok(Some(elements))
    }

    fn pairs(&mut self, n: u64, depth: usize) -> Result<Option<Pairs>, ProtocolError> {
        let mut pairs = Self::room(n);
        for _ in 0..n {
            let Some(key) = self.value(depth)? else {
                return Ok(None);
            };
            let Some(value) = self.value(depth)? else {
                return Ok(None);
            };
            pairs.push((key, value));
        }
        Ok(Some(pairs))
    }
}

type Pairs = Vec<(Value, Value)>;

fn line(kind: u8, text: &[u8]) -> Result<Value, ProtocolError> {
    let invalid = ErrorKind::InvalidReplyLine;
    Ok(match kind {
        b'+' => Value::Simple(text.to_vec()),
        b'-' => Value::Error(text.to_vec()),
        b':' => Value::Int(header::signed(text).ok_or(invalid)?),
        b',' => Value::Double(header::double(text).ok_or(invalid)?),
        b'#' => Value::Bool(text == b"t"),
        _ => Value::BigNumber(text.to_vec()),
    })
}

fn bulk(kind: u8, content: &[u8]) -> Value {
    match (kind, content) {
        (b'!', _) => Value::Error(content.to_vec()),
        (b'=', [a, b, c, _, text @ ..]) => Value::Verbatim {
            format: [*a, *b, *c],
            text: text.to_vec(),
        },
        _ => Value::Bulk(content.to_vec()),
    }
}
