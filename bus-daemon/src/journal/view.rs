//! Counted views of shared memory, as [`Bytes`].

#![allow(unsafe_code, reason = "makes byte slices of mapped memory")]

use std::sync::Arc;

use bytes::Bytes;

/// Tells the owner of a range of shared memory whether anybody still looks at it.
#[derive(Debug, Default)]
pub(crate) struct Lookers(Arc<()>);

impl Lookers {
    /// Whether a view made by [`view`] is alive.
    pub(crate) fn any(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

struct View {
    start: *const u8,
    len: usize,
    _lookers: Arc<()>,
}

// SAFETY: the memory outlives every view (it is never unmapped while one is alive) and is not written while a view
// of the bytes concerned exists: see `view`.
unsafe impl Send for View {}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `view`'s caller vouches for the range.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

/// A view of `len` bytes at `start`, counted in `lookers` until the last slice of it is gone.
///
/// # Safety
/// The range must stay mapped while `lookers.any()`, and a byte of it may only be written while no slice of a view
/// *that covers this byte* has been handed out.
pub(crate) unsafe fn view(start: *const u8, len: usize, lookers: &Lookers) -> Bytes {
    Bytes::from_owner(View {
        start,
        len,
        _lookers: Arc::clone(&lookers.0),
    })
}
