//! What is wrong with a stream of bytes, in the server's own words.

use std::borrow::Cow;
use std::fmt;

/// The ways in which bytes can fail to be RESP.
///
/// After any of them the stream has lost its frame: answer [`ProtocolError::message`] and close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The count after `*` is no number, or too great.
    InvalidMultibulkLength,
    /// The length after `$` is no number, negative, or too great.
    InvalidBulkLength,
    /// An argument began with this byte instead of `$`.
    ExpectedBulk(u8),
    /// No line end within the limit after `*`.
    TooBigMultibulkCount,
    /// No line end within the limit after `$`.
    TooBigBulkCount,
    /// No line end within the limit in an inline request.
    TooBigInline,
    /// A quote of an inline request is not closed.
    UnbalancedQuotes,
    /// An inline request holds a NUL byte: it is binary data, perhaps of another protocol.
    NulInInline,
    /// Something else stands where CR LF belongs. The server skips two bytes unseen here; a proxy
    /// that did so would let two readers of one stream disagree about where a request ends.
    MissingCrlf,
    /// The request is longer than `request_max_bytes`. The server closes without a word.
    TooBigRequest,
    /// A reply began with this byte, which is no RESP type.
    UnknownReplyType(u8),
    /// A line of a reply does not hold what its type promises.
    InvalidReplyLine,
    /// The length or count in a reply is no number, or too great.
    InvalidReplyLength,
    /// A line of a reply exceeds the limit.
    TooBigReplyLine,
    /// A reply nests deeper than `depth_max`.
    TooDeep,
}

/// The other side broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolError {
    /// What was wrong.
    pub kind: ErrorKind,
}

impl ProtocolError {
    /// The text of the error reply, without the leading `-`; for requests it is the server's.
    pub fn message(&self) -> Cow<'static, str> {
        let text = match self.kind {
            ErrorKind::InvalidMultibulkLength => "ERR Protocol error: invalid multibulk length",
            ErrorKind::InvalidBulkLength => "ERR Protocol error: invalid bulk length",
            ErrorKind::ExpectedBulk(byte) => {
                let got = std::ascii::escape_default(byte);
                let got = if (b' '..=b'~').contains(&byte) {
                    char::from(byte).to_string()
                } else {
                    got.to_string()
                };
                return Cow::Owned(format!("ERR Protocol error: expected '$', got '{got}'"));
            }
            ErrorKind::TooBigMultibulkCount => "ERR Protocol error: too big mbulk count string",
            ErrorKind::TooBigBulkCount => "ERR Protocol error: too big bulk count string",
            ErrorKind::TooBigInline => "ERR Protocol error: too big inline request",
            ErrorKind::UnbalancedQuotes => "ERR Protocol error: unbalanced quotes in request",
            ErrorKind::NulInInline => "ERR Protocol error: NUL byte in inline request",
            ErrorKind::MissingCrlf => "ERR Protocol error: expected CRLF",
            ErrorKind::TooBigRequest => "ERR Protocol error: too big request",
            ErrorKind::UnknownReplyType(_) => "ERR Protocol error: unknown reply type",
            ErrorKind::InvalidReplyLine => "ERR Protocol error: invalid line in reply",
            ErrorKind::InvalidReplyLength => "ERR Protocol error: invalid length in reply",
            ErrorKind::TooBigReplyLine => "ERR Protocol error: too big line in reply",
            ErrorKind::TooDeep => "ERR Protocol error: reply nested too deep",
        };
        Cow::Borrowed(text)
    }
}

impl From<ErrorKind> for ProtocolError {
    fn from(kind: ErrorKind) -> Self {
        Self { kind }
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())
    }
}

impl std::error::Error for ProtocolError {}
