//! File descriptors as numbers.

use smallvec::SmallVec;

/// A file descriptor as an opaque handle: only a number, so nothing is closed when it is dropped.
///
/// Whoever holds the state decides when the descriptor is closed (specification, "Type system: UNIX_FD").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Fd(pub i32);

/// A UNIX_FD: which of the file descriptors that go with the message, counted from 0.
///
/// A message may name one twice, or an index that it has none for (specification, "Type system: UNIX_FD").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FdIndex(pub u32);

/// The file descriptors of a message. Up to four, which is more than most have, need no memory of their own.
pub type Fds = SmallVec<[Fd; 4]>;

impl core::fmt::Display for Fd {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.fmt(f)
    }
}
