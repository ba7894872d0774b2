//! What comes out of the broker besides queued bytes: what it asks of the system.

use std::borrow::Cow;

use bus_wire::Fd;
use bytes::Bytes;

use super::errand::Errand;
use super::event::{Fds, PeerId};

/// A request to the runtime. In replay nothing of this is carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Shut the link down and close its descriptor. The peer is gone from the broker already.
    Close {
        /// Whose.
        peer: PeerId,
        /// For the log: who is at fault, and the clause of the specification where there is one.
        reason: Cow<'static, str>,
        /// Whose peer it was, if that is known.
        uid: Option<u32>,
        /// False where the peer hung up by itself: not worth a warning.
        is_fault: bool,
        /// What is written before, as far as the socket takes it at once: answers of the authentication, which say what
        /// went wrong. A worker that dies at this moment may leave them out.
        last_words: Bytes,
    },
    /// Shut the link down and close its descriptor: the peer is being taken out of the broker, which takes more than a step.
    /// [`Close`](Self::Close) follows.
    HangUp {
        /// Whose.
        peer: PeerId,
        /// The handle of its socket, which belongs to nobody any more.
        socket: Fd,
    },
    /// There is more to do for a peer: an [`Event::Step`](super::Event::Step) is wanted in its turn, as long as
    /// [`Broker::wants_step`](super::Broker::wants_step) says so.
    ScheduleStep(PeerId),
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
    /// Have an errand done, and report its end with [`Event::ErrandEnded`](super::Event::ErrandEnded).
    RunErrand {
        /// Its number.
        id: u64,
        /// What to do.
        errand: Errand,
    },
    /// Hand the state over to the binary that has passed its trial; where that cannot be done, report
    /// [`Event::UpgradeFailed`](super::Event::UpgradeFailed).
    HandOver,
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
    /// What waits for slow readers.
    pub store: u64,
    /// Of all these, what is in use: the rest is kept to be used again.
    pub used: u64,
    /// Bytes that the whole bus may hold.
    pub cap: u64,
}

/// The machine's id.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum MachineId {
    /// 32 hex digits in lower case.
    Found(String),
    /// No file has one.
    #[default]
    Missing,
    /// A file has something else, for one because the machine has not finished its first boot.
    Invalid,
}

/// What the broker must know of the system in the middle of an event. The runtime records each answer in the event
/// log, so that replay reads it back.
pub trait System {
    /// A new descriptor of the process at the other end of this socket (`SO_PEERPIDFD`). The broker owns it.
    fn peer_pidfd(&mut self, socket: Fd) -> Option<Fd>;
    /// Bytes of memory that the journal uses; `None` where there is no journal.
    fn journal_memory(&mut self) -> Option<JournalMemory> {
        None
    }
    /// Whether this user sits at the machine now: a session of the user has a seat (`SEATS=` in logind's file).
    fn is_at_console(&mut self, _uid: u32) -> bool {
        false
    }
    /// The machine's id as it is now.
    fn machine_id(&mut self) -> MachineId {
        MachineId::default()
    }
    /// Another descriptor of the same open file (`F_DUPFD`), for one more receiver of a message. The broker
    /// owns it.
    fn duplicate(&mut self, fd: Fd) -> Option<Fd>;
}
