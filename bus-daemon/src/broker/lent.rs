//! Texts that lie in a state that was read. Tens of thousands of copies, in memory that is touched for the first time, would be a
//! third of what a recovery takes.

use std::cell::RefCell;

use bytes::Bytes;
use bytestring::ByteString;

thread_local! {
    /// What is being decoded.
    static SOURCE: RefCell<Bytes> = const { RefCell::new(Bytes::new()) };
}

/// Decodes something in `source`. Names and rules in it refer to their texts there, and so do the rules of a broker that is
/// restored from it, until they are [settled](super::Broker::settle_rules): so long `source` stays in memory.
pub fn lending<T>(source: Bytes, decode: impl FnOnce() -> T) -> T {
    struct Before(Bytes);
    impl Drop for Before {
        fn drop(&mut self) {
            SOURCE.set(std::mem::take(&mut self.0));
        }
    }
    let _before = Before(SOURCE.replace(source));
    decode()
}

/// The text in these bytes, which lies in what is being decoded, if that is [lent](lending); otherwise a copy. `None`: they are
/// none.
pub(super) fn text(bytes: &[u8]) -> Option<ByteString> {
    let bytes = SOURCE.with_borrow(|source| {
        let (all, part) = (source.as_ptr_range(), bytes.as_ptr_range());
        let is_within = all.start <= part.start && part.end <= all.end;
        if is_within {
            source.slice_ref(bytes)
        } else {
            Bytes::copy_from_slice(bytes)
        }
    });
    ByteString::try_from(bytes).ok()
}
