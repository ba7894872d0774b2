//! Reading an array element by element.

use super::{BodyReader, ReadError, is_same, is_same_text};

/// The elements of an array.
#[derive(Debug, Clone)]
pub struct ArrayReader<'a> {
    /// What `reader` reads. The cursor is lent for each element, and may be another one when it comes back.
    bytes: &'a [u8],
    signature: &'a str,
    depth: u8,
    reader: BodyReader<'a>,
    /// Where the element begins that is being read.
    element_start: Option<usize>,
}

impl<'a> ArrayReader<'a> {
    /// Of a cursor at the first element, which goes to the end of the last.
    #[inline]
    pub(super) fn new(reader: BodyReader<'a>) -> Self {
        Self {
            bytes: reader.bytes,
            signature: reader.signature,
            depth: reader.depth,
            reader,
            element_start: None,
        }
    }

    /// The bytes of the elements that are left.
    #[inline]
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.reader.at..]
    }

    /// A cursor at the next element; `None` after the last. What was left unread of the element before is skipped.
    ///
    /// # Errors
    /// See [`ReadError`].
    #[expect(clippy::should_implement_trait, reason = "the item borrows the reader")]
    pub fn next(&mut self) -> Result<Option<&mut BodyReader<'a>>, ReadError> {
        if let Some(start) = self.element_start {
            self.reader.skip_rest()?;
            let is_same =
                is_same(self.reader.bytes, self.bytes) && is_same_text(self.reader.signature, self.signature);
            let is_read = is_same && self.reader.next == self.signature.len();
            if self.reader.at == start || !is_read {
                return Err(ReadError::Invalid { at: start });
            }
        }
        if self.is_empty() {
            return Ok(None);
        }
        self.reader.next = 0;
        self.reader.depth = self.depth;
        self.element_start = Some(self.reader.at);
        Ok(Some(&mut self.reader))
    }

    /// The cursor at the element that [`next`](Self::next) returned last.
    #[cfg(feature = "serde")]
    pub(crate) fn element(&mut self) -> &mut BodyReader<'a> {
        &mut self.reader
    }

    /// The signature of the elements.
    pub fn element_signature(&self) -> &'a str {
        self.signature
    }

    /// How many bytes of elements are left, with the padding between them.
    pub fn remaining(&self) -> usize {
        self.reader.bytes.len().saturating_sub(self.reader.at)
    }

    /// Whether all elements were read.
    pub fn is_empty(&self) -> bool {
        self.reader.at >= self.reader.bytes.len()
    }
}
