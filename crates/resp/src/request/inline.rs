//! A line typed by hand, split into arguments.
//!
//! Words are separated by white space. `"…"` knows `\n \r \t \b \a`, `\xHH` and a backslash before
//! any other byte; `'…'` knows only `\'`. Quotes may begin and end inside a word, as in a shell:
//! so Valkey 9 has it, while Redis refuses a closing quote that is not followed by white space.
//! What Redis accepts means the same here, and what is passed on is re-encoded, so that no server
//! reads the line again.

use super::Span;
use crate::{encode, ErrorKind, ProtocolError};

/// What is left of the line.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn skip(&mut self, n: usize) {
        self.0 = self.0.get(n..).unwrap_or_default();
    }
}

/// Splits `line` and leaves it in `out` as multibulk, each argument's range in `args`. An empty
/// line leaves both empty.
pub(super) fn split(
    line: &[u8],
    out: &mut Vec<u8>,
    args: &mut Vec<Span>,
) -> Result<(), ProtocolError> {
    out.clear();
    args.clear();
    let mut words: Vec<Vec<u8>> = Vec::new();
    let mut rest = Rest(line);
    loop {
        let blank = rest.0.iter().take_while(|byte| is_space(**byte)).count();
        rest.skip(blank);
        if rest.0.is_empty() {
            break;
        }
        words.push(word(&mut rest)?);
    }
    if words.is_empty() {
        return Ok(());
    }
    encode::array_header(out, words.len());
    for word in &words {
        encode::bulk(out, word);
        let end = (out.len() - 2) as u32;
        args.push(Span {
            start: end - word.len() as u32,
            end,
        });
    }
    Ok(())
}

fn word(rest: &mut Rest<'_>) -> Result<Vec<u8>, ProtocolError> {
    let mut word = Vec::new();
    loop {
        let Some(&byte) = rest.0.first() else {
            return Ok(word);
        };
        match byte {
            // Fewer than `is_space` knows: within a word the servers keep VT and FF.
            b' ' | b'\n' | b'\r' | b'\t' => return Ok(word),
            b'"' => double_quoted(rest, &mut word)?,
            b'\'' => single_quoted(rest, &mut word)?,
            _ => {
                word.push(byte);
                rest.skip(1);
            }
        }
    }
}

/// Takes `"…"`, of which the opening quote is still there.
fn double_quoted(rest: &mut Rest<'_>, word: &mut Vec<u8>) -> Result<(), ProtocolError> {
    rest.skip(1);
    loop {
        match *rest.0 {
            [] => return Err(ErrorKind::UnbalancedQuotes.into()),
            [b'"', ..] => {
                rest.skip(1);
                return Ok(());
            }
            [b'\\', b'x', high, low, ..] if is_hex(high) && is_hex(low) => {
                word.push(hex(high) << 4 | hex(low));
                rest.skip(4);
            }
            [b'\\', escaped, ..] => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => other,
                });
                rest.skip(2);
            }
            [byte, ..] => {
                word.push(byte);
                rest.skip(1);
            }
        }
    }
}

/// Takes `'…'`, of which the opening quote is still there.
fn single_quoted(rest: &mut Rest<'_>, word: &mut Vec<u8>) -> Result<(), ProtocolError> {
    rest.skip(1);
    loop {
        match *rest.0 {
            [] => return Err(ErrorKind::UnbalancedQuotes.into()),
            [b'\'', ..] => {
                rest.skip(1);
                return Ok(());
            }
            [b'\\', b'\'', ..] => {
                word.push(b'\'');
                rest.skip(2);
            }
            [byte, ..] => {
                word.push(byte);
                rest.skip(1);
            }
        }
    }
}

/// C's `isspace` in the "C" locale.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

fn is_hex(byte: u8) -> bool {
    byte.is_ascii_hexdigit()
}

fn hex(digit: u8) -> u8 {
    char::from(digit).to_digit(16).unwrap_or(0) as u8
}
