//! Buffers that are used again: whoever sends or receives much asks the system for no memory meanwhile.

use bytes::Bytes;
use std::cell::RefCell;

/// What one buffer holds.
pub(crate) const BUFFER: usize = crate::limits::MAX_FRAME;
/// Buffers that a thread keeps without using them: a megabyte.
const KEPT: usize = 64;
/// What fills less of a buffer is copied out of it: a short message holds no long buffer.
#[cfg(feature = "runtime")]
const WORTH: usize = BUFFER / 2;

thread_local! {
    static KEEP: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`BUFFER`] bytes, which goes back to its thread's store when nobody has a view of it any more.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    length: usize,
}

impl Buffer {
    pub(crate) fn new() -> Self {
        let kept = KEEP.try_with(|keep| keep.borrow_mut().pop()).ok().flatten();
        Self {
            bytes: kept.unwrap_or_else(|| vec![0; BUFFER]),
            length: 0,
        }
    }

    /// All of it, whatever it was used for before.
    pub(crate) fn whole(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Its first `length` bytes, to be passed on, and another buffer in its place.
    #[cfg(feature = "runtime")]
    pub(crate) fn share(&mut self, length: usize) -> Bytes {
        if length < WORTH {
            return Bytes::copy_from_slice(&self.bytes[..length]);
        }
        std::mem::replace(self, Self::new()).into_bytes(length)
    }

    /// Its first `length` bytes.
    pub(crate) fn into_bytes(mut self, length: usize) -> Bytes {
        self.length = length.min(BUFFER);
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // A thread that ends keeps nothing.
        let _ = KEEP.try_with(|keep| {
            let mut keep = keep.borrow_mut();
            if keep.len() < KEPT {
                keep.push(bytes);
            }
        });
    }
}

#[cfg(all(test, feature = "runtime"))]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_when_its_last_view_is_gone_and_no_more_are_kept_than_that() {
        let mut buffer = Buffer::new();
        buffer.whole().fill(7);
        let short = buffer.share(10);
        let long = buffer.share(BUFFER - 1);
        let mut part = long.clone();
        drop(long);
        let rest = part.split_off(5);
        drop(part);
        buffer.whole().fill(8);
        assert!(
            rest.iter().chain(&short).all(|byte| *byte == 7),
            "nobody writes where somebody reads"
        );
        let at = rest.as_ptr() as usize - 5;
        drop((rest, buffer));
        assert!(KEEP.with_borrow(|keep| keep.iter().any(|bytes| bytes.as_ptr() as usize == at)));
        let many: Vec<_> = (0..2 * KEPT).map(|_| Buffer::new()).collect();
        drop(many);
        assert_eq!(KEEP.with_borrow(Vec::len), KEPT);
    }
}
