//! The lines that the protocol is made of.

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;

use nom::{
    IResult, Parser,
    bytes::complete::{take_till, take_while},
    combinator::rest,
    sequence::separated_pair,
};

/// The longest line that is accepted, in bytes and without its end. The specification sets no limit; the reference
/// implementation stops at this one.
pub const MAX_LINE: usize = 16 * 1024;

/// Cuts a stream into lines, of which none is longer than [`MAX_LINE`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Lines {
    /// A line that has not arrived completely.
    partial: Vec<u8>,
}

/// How many bytes of the input belong to a line, and the line without its end.
type Line<'i> = (usize, Cow<'i, [u8]>);

/// No end of line in [`MAX_LINE`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLong;

impl Lines {
    /// With the beginning of a line.
    pub(super) fn new(partial: Vec<u8>) -> Self {
        Self { partial }
    }

    pub(super) fn into_partial(self) -> Vec<u8> {
        self.partial
    }

    /// How many bytes of an incomplete line are held.
    pub(super) fn buffered(&self) -> usize {
        self.partial.len()
    }

    /// The next line, without its end, and how many bytes of `input` it took. `None`: all were taken, and it is not complete.
    pub(super) fn take<'i>(&mut self, input: &'i [u8]) -> Result<Option<Line<'i>>, TooLong> {
        let Some(used) = end_of_line(&self.partial, input) else {
            // The last byte may be the carriage return of the line's end.
            if self.partial.len() + input.len() > MAX_LINE + 1 {
                return Err(TooLong);
            }
            self.partial.extend_from_slice(input);
            return Ok(None);
        };
        let line = if self.partial.is_empty() {
            Cow::Borrowed(&input[..used - 2])
        } else {
            let mut line = core::mem::take(&mut self.partial);
            line.extend_from_slice(&input[..used]);
            line.truncate(line.len() - 2);
            Cow::Owned(line)
        };
        if line.len() > MAX_LINE {
            return Err(TooLong);
        }
        Ok(Some((used, line)))
    }
}

/// How many bytes of `input` belong to the line that begins with `partial`; `None` if it does not end there.
fn end_of_line(partial: &[u8], input: &[u8]) -> Option<usize> {
    if partial.last() == Some(&b'\r') && input.first() == Some(&b'\n') {
        return Some(1);
    }
    input
        .windows(2)
        .position(|pair| pair == b"\r\n")
        .map(|position| position + 2)
}

/// "All bytes must be in the ASCII character set", "A nul byte in any context other than the initial byte is an error".
pub(super) fn ascii(line: &[u8]) -> Option<&str> {
    let is_plain = line.iter().all(|byte| byte.is_ascii() && *byte != 0);
    core::str::from_utf8(line).ok().filter(|_| is_plain)
}

/// A word, and what follows it after blanks.
pub(super) fn split_blank(text: &str) -> (&str, &str) {
    fn is_blank(c: char) -> bool {
        matches!(c, ' ' | '\t')
    }
    let parsed: IResult<&str, (&str, &str)> =
        separated_pair(take_till(is_blank), take_while(is_blank), rest).parse(text);
    parsed.map_or((text, ""), |(_, pair)| pair)
}

pub(super) fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|value| value as u8);
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    pairs
        .iter()
        .map(|[high, low]| Some(digit(high)? << 4 | digit(low)?))
        .collect()
}

/// "hex-encoded": each byte as two lower-case digits.
pub(super) fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        out.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
    }
}

/// The same as a text.
pub(super) fn to_hex(bytes: &[u8]) -> String {
    let mut digits = Vec::with_capacity(2 * bytes.len());
    push_hex(&mut digits, bytes);
    digits.into_iter().map(char::from).collect()
}
