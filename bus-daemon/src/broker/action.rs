//! What comes out of the broker besides queued bytes: what it asks of the system.

use bus_wire::Fd;
use bytes::Bytes;

use super::event::{Fds, PeerId};

/// A request to the runtime. In replay nothing of this is carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Shut the link down and close its descriptor. The peer is gone from the broker already.
    Close {
        /// Whose.
        peer: PeerId,
        /// For the log: who is at fault, and the clause of the specification where there is one.
        reason: String,
        /// Whose peer it was, if that is known.
        uid: Option<u32>,
        /// False where the peer hung up by itself: not worth a warning.
        is_fault: bool,
        /// What is written before, as far as the socket takes it at once: answers of the authentication, which say what
        /// went wrong. A worker that dies at this moment may leave them out.
        last_words: Bytes,
    },
    /// Close these descriptors, which were received and now belong to nobody (sent on, or dropped).
    CloseFds(Fds),
    /// Stop reading from a peer: it has used its share of memory for incoming messages.
    StopReading(PeerId),
    /// Read from it again.
    ResumeReading(PeerId),
    /// Stop accepting connections: too many of those accepted have not said Hello yet.
    StopAccepting,
    /// Accept connections again.
    ResumeAccepting,
    /// Read the configuration again, and report [`Event::ConfigLoaded`](super::Event::ConfigLoaded) or
    /// [`Event::ConfigRefused`](super::Event::ConfigRefused).
    ReloadConfig,
    /// Begin an upgrade in place; the caller is noted in the broker.
    Upgrade {
        /// Path of the new binary; empty = the path this one was started from.
        binary: String,
    },
    /// A warning for the log.
    Warn {
        /// The user whose peer brought it about, if one did and is known.
        uid: Option<u32>,
        /// A line.
        text: String,
    },
}

/// Bytes of shared memory that the journal uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct JournalMemory {
    /// Segments of the event log.
    pub log: u64,
    /// Extents of large messages.
    pub extents: u64,
    /// Checkpoints.
    pub checkpoints: u64,
}

/// What the broker must know of the system in the middle of an event. The runtime records each answer in the event
/// log, so that replay reads it back.
pub trait System {
    /// Group ids of the peer's process (`SO_PEERGROUPS`, with the primary one), if the kernel tells.
    fn peer_groups(&mut self, peer: PeerId) -> Option<Vec<u32>>;
    /// Security label (`SO_PEERSEC`), without a terminating nul.
    fn peer_label(&mut self, peer: PeerId) -> Option<Vec<u8>>;
    /// A new descriptor of the peer's process (`SO_PEERPIDFD`). The broker owns it.
    fn peer_pidfd(&mut self, peer: PeerId) -> Option<Fd>;
    /// Bytes of memory that the journal uses; `None` where there is no journal.
    fn journal_memory(&mut self) -> Option<JournalMemory> {
        None
    }
    /// Another descriptor of the same open file (`F_DUPFD`), for one more receiver of a message. The broker
    /// owns it.
    fn duplicate(&mut self, fd: Fd) -> Option<Fd>;
}
