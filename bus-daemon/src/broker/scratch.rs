//! Buffers that are kept for their memory only.

use super::event::PeerId;

/// Empty between messages. Each buffer is taken out while it is in use, and put back cleared.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// The header under which a message is forwarded.
    pub(super) head: Vec<u8>,
    /// A message of the driver.
    pub(super) speech: Vec<u8>,
    /// Who gets a message.
    pub(super) receivers: Vec<PeerId>,
}
