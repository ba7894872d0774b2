//! What goes into the broker: every input that can change an output.

use std::hash::{Hash, Hasher};

use bus_wire::Fd;
pub use bus_wire::Fds;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::errand::ErrandOutcome;
use super::relief::Relief;

/// Milliseconds on the clock that the runtime chose (`CLOCK_BOOTTIME`); the broker only compares them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize)]
pub struct Millis(pub u64);

/// One accepted connection, for as long as the bus lives.
///
/// The runtime chooses it: `index` is dense (it reuses the small numbers of links that are gone) and so can index
/// a table, `generation` tells the users of one index apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PeerId {
    /// Dense; free again after [`Action::Close`](super::Action::Close) was emitted for its last user.
    pub index: u32,
    /// Grows with every use of `index`.
    pub generation: u32,
}

impl PeerId {
    /// As one number, for an epoll registration or a log record.
    pub const fn to_u64(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    /// The inverse of [`to_u64`](Self::to_u64).
    pub const fn from_u64(bits: u64) -> Self {
        Self {
            index: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

/// In one step: each open call is looked up by two peers' ids.
impl Hash for PeerId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.to_u64());
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Credentials {
    /// User id; `None` where the transport has none (TCP).
    pub uid: Option<u32>,
    /// Primary group id.
    pub gid: Option<u32>,
    /// Process id.
    pub pid: Option<u32>,
}

/// What the kernel tells of the process at the other end when it is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Attested {
    /// `SO_PEERCRED`
    pub credentials: Credentials,
    /// All group ids (`SO_PEERGROUPS`, with the primary one), ascending.
    pub groups: Option<Vec<u32>>,
    /// Security label (`SO_PEERSEC`), without a terminating nul.
    pub label: Option<Vec<u8>>,
}

/// What carries the links of a listener, and so what a link can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// A unix socket: passes descriptors, and the kernel tells who is at the other end.
    Unix,
    /// TCP: neither.
    Tcp,
}

impl Transport {
    /// Whether file descriptors can be passed.
    pub fn passes_fds(self) -> bool {
        match self {
            Self::Unix => true,
            Self::Tcp => false,
        }
    }

    /// Whether the kernel tells of the process at the other end.
    pub fn attests(self) -> bool {
        match self {
            Self::Unix => true,
            Self::Tcp => false,
        }
    }
}

/// An input of the broker. The event log holds these, in this order; replaying them gives the same broker.
#[derive(Debug, Clone)]
pub enum Event {
    /// A listener accepted a connection.
    Accepted {
        /// Who it is from now on; its index is not in use.
        peer: PeerId,
        /// Which listener accepted it (index in the order of the config).
        listener: u32,
        /// The handle of its socket, which the broker owns.
        socket: Fd,
        /// What the kernel knows of it.
        attested: Attested,
    },
    /// A peer's link is gone, and the peer stays: what is for it waits until it has a link again.
    Detached {
        /// Whose.
        peer: PeerId,
    },
    /// A peer that was parked has a link again.
    Attached {
        /// Whose.
        peer: PeerId,
        /// The handle of the new link's socket, which the broker owns.
        socket: Fd,
    },
    /// Bytes arrived, in a chunk of their own.
    Received {
        /// From whom.
        peer: PeerId,
        /// Absolute offset in the peer's stream behind the last of these bytes. What was taken before is ignored.
        upto: u64,
        /// At least one byte.
        data: Bytes,
        /// Descriptors that came with them.
        fds: Fds,
    },
    /// Bytes arrived in the extent of a large message ([`Broker::large_message`](super::Broker::large_message)).
    ReceivedLarge {
        /// From whom.
        peer: PeerId,
        /// Absolute offset in the peer's stream behind the last of these bytes. What was taken before is ignored.
        upto: u64,
        /// All of the message that has arrived so far, from its first byte.
        prefix: Bytes,
        /// Descriptors that came with the newest part.
        fds: Fds,
    },
    /// The peer's link took bytes from the head of its send queue.
    Sent {
        /// Whose.
        peer: PeerId,
        /// Absolute offset in the stream to the peer behind the last byte taken. Less than is known already says nothing new.
        upto: u64,
    },
    /// More of what is on a peer's agenda is to be done ([`Broker::wants_step`](super::Broker::wants_step)).
    Step {
        /// Whose.
        peer: PeerId,
    },
    /// Bytes arrived that killed the worker, and are left out. The link is closed once the peer has been told.
    Quarantined {
        /// From whom.
        peer: PeerId,
        /// The first 16 of them, or fewer: perhaps the beginning of a call, which is then answered.
        begins_with: Bytes,
    },
    /// The link is gone, and the peer with it: end of file, or an error of the socket.
    Closed {
        /// Whose.
        peer: PeerId,
        /// For the log: `"end of file"`, or the system's error.
        reason: &'static str,
    },
    /// Time has passed. It never goes backwards.
    Tick {
        /// The present.
        now: Millis,
    },
    /// The configuration is to be read again (SIGHUP).
    ReloadRequested,
    /// An upgrade to the binary at the path that this one was started from (SIGUSR2).
    UpgradeRequested,
    /// An errand has ended, however it ended.
    ErrandEnded {
        /// Its number.
        errand: u64,
        /// How.
        outcome: ErrandOutcome,
        /// The memfd that holds the outcome, which the broker owns.
        payload: Option<Fd>,
    },
    /// The upgrade that was about to happen did not.
    UpgradeFailed {
        /// Why, for the caller.
        reason: String,
    },
    /// This process image serves from now on. After an upgrade that succeeded or was rolled back it answers the caller.
    Serving {
        /// Pid of the worker.
        worker_pid: u32,
        /// How it came to serve.
        start: Start,
    },
    /// The process may have so many descriptors open beside its own.
    DescriptorLimit {
        /// How many.
        limit: u64,
    },
    /// Memory is short, and this is to be done about it, as [`Broker::relief`](super::Broker::relief) says.
    Relieved(Relief),
}

/// How the process that serves came to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// A clean start.
    Clean,
    /// An upgrade in place.
    Upgraded {
        /// Microseconds from the old worker's last action to now.
        pause: u32,
    },
    /// An upgrade that failed after it had begun; this is the old binary again.
    RolledBack {
        /// Why, for the caller.
        reason: String,
        /// Microseconds from the old worker's last action to now.
        pause: u32,
    },
    /// The worker died and this one replaces it.
    Recovered {
        /// Microseconds from the old worker's death to now.
        pause: u32,
        /// Messages that were skipped because they had killed the worker.
        quarantined: u32,
    },
}
