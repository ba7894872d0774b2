//! File descriptors as numbers.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// A file descriptor as an opaque handle: only a number, so nothing is closed when it is dropped.
///
/// Whoever holds the state decides when the descriptor is closed (specification, "Type system: UNIX_FD").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fd(pub i32);

/// The file descriptors of a message. Up to four, which is more than most have, need no memory of their own.
pub type Fds = SmallVec<[Fd; 4]>;

impl std::fmt::Display for Fd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
