//! Texts that arrive in parts.

use crate::error::MessageError;
use crate::names::{NameError, PathSoFar};

/// A string or object path that has not arrived completely.
#[derive(Debug, Clone)]
pub(super) struct Text {
    start: usize,
    end: usize,
    /// Up to where it was validated.
    checked: usize,
    content: Content,
}

/// What is known of a text so far.
#[derive(Debug, Clone)]
enum Content {
    String { is_utf8: bool, nul_at: Option<usize> },
    Path(Result<PathSoFar, NameError>),
}

impl Text {
    /// An object path between two offsets of the message, none of it validated.
    pub(super) fn path(start: usize, end: usize) -> Self {
        Self {
            start,
            end,
            checked: start,
            content: Content::Path(Ok(PathSoFar::default())),
        }
    }

    /// The same of a string.
    pub(super) fn string(start: usize, end: usize) -> Self {
        Self {
            start,
            end,
            checked: start,
            content: Content::String {
                is_utf8: true,
                nul_at: None,
            },
        }
    }

    /// Where it begins.
    pub(super) fn start(&self) -> usize {
        self.start
    }

    /// How many bytes it has.
    pub(super) fn length(&self) -> usize {
        self.end - self.start
    }

    /// Looks at what has arrived.
    pub(super) fn advance(&mut self, have: &[u8]) {
        let upto = have.len().min(self.end);
        if upto <= self.checked {
            return;
        }
        let mut bytes = &have[self.checked..upto];
        match &mut self.content {
            Content::Path(path) => {
                if let Ok(so_far) = path {
                    *path = so_far.extended(bytes);
                }
            }
            Content::String { is_utf8, nul_at } => {
                if upto < self.end {
                    bytes = whole_characters(bytes);
                }
                *is_utf8 = *is_utf8 && simdutf8::basic::from_utf8(bytes).is_ok();
                if nul_at.is_none() {
                    *nul_at = nul(bytes).map(|index| self.checked + index);
                }
            }
        }
        self.checked += bytes.len();
    }

    /// Whether the text, which is whole, is valid.
    pub(super) fn verdict(&self) -> Result<(), MessageError> {
        match self.content {
            Content::Path(path) => path
                .and_then(PathSoFar::finish)
                .map_err(|cause| bad_path(self.start, cause)),
            Content::String { is_utf8: false, .. } => Err(MessageError::Utf8 { at: self.start }),
            Content::String { nul_at: Some(at), .. } => Err(MessageError::Nul { at }),
            Content::String { .. } => Ok(()),
        }
    }
}

/// Without the beginning of a character at the end.
fn whole_characters(bytes: &[u8]) -> &[u8] {
    for (index, byte) in bytes.iter().enumerate().rev().take(3) {
        let length = match byte {
            0x80..=0xbf => continue,
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0.. => 4,
            _ => 1,
        };
        if index + length > bytes.len() {
            return &bytes[..index];
        }
        break;
    }
    bytes
}

/// Where a text has a nul byte.
#[inline]
pub(super) fn nul(text: &[u8]) -> Option<usize> {
    // `contains` of bytes is memchr; the search for the place is only for the error.
    if text.contains(&0) {
        text.iter().position(|&byte| byte == 0)
    } else {
        None
    }
}

#[cold]
pub(super) fn bad_path(at: usize, cause: NameError) -> MessageError {
    MessageError::Name {
        at,
        what: "an object path",
        cause,
    }
}
