//! Writing a body whose signature was given before.

use smallvec::SmallVec;

use super::{BodyWriter, OpenArray};
use crate::endian::Endian;
use crate::error::MessageError;
use crate::signature::{self, type_end};

/// A place to rewind to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    length: usize,
    depth: u32,
    next: usize,
}

impl BodyWriter {
    /// A body whose values must be those of `signature`.
    pub(crate) fn declared(signature: &str, endian: Endian) -> Self {
        let mut writer = Self::new(endian);
        if let Err(cause) = signature::check(signature.as_bytes()) {
            writer.fail(MessageError::Signature { at: 0, cause });
        }
        writer.declared.extend_from_slice(signature.as_bytes());
        writer.push_frame(0, signature.len(), false, 0);
        writer.signature.extend_from_slice(signature.as_bytes());
        writer
    }

    /// The type code that must come next, inside of an array or a variant or where a signature is declared.
    pub(crate) fn expected(&self) -> Option<u8> {
        let frame = self.frames.last()?;
        let next = if frame.next == frame.end && frame.repeats {
            frame.start
        } else {
            frame.next
        };
        self.declared[..frame.end].get(next).copied()
    }

    /// The array whose type must come next.
    pub(crate) fn begin_declared_array(&mut self) -> OpenArray {
        let element: SmallVec<[u8; 64]> = match self.frames.last() {
            Some(frame) if self.expected() == Some(b'a') => {
                let at = if frame.next == frame.end {
                    frame.start
                } else {
                    frame.next
                };
                self.declared[at + 1..type_end(&self.declared, at)].into()
            }
            _ => SmallVec::new(),
        };
        self.begin_array(&element)
    }

    /// Where it is now, to [`rewind`](Self::rewind) to; while the same arrays and variants are open.
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            depth: self.depth,
            length: self.bytes.len(),
            next: self.frames.last().map_or(0, |frame| frame.next),
        }
    }

    /// Unwrites all since `mark`.
    pub(crate) fn rewind(&mut self, mark: Mark) {
        self.bytes.truncate(mark.length);
        self.depth = mark.depth;
        if let Some(frame) = self.frames.last_mut() {
            frame.next = mark.next;
        }
    }
}
