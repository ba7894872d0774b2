//! What goes into the broker: every input that can change an output.

use std::sync::Arc;

use bus_wire::Fd;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::config::Config;

/// Milliseconds on the clock that the runtime chose (`CLOCK_BOOTTIME`); the broker only compares them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize)]
pub struct Millis(pub u64);

/// One accepted connection, for as long as the bus lives.
///
/// The runtime chooses it: `index` is dense (it reuses the small numbers of links that are gone) and so can index
/// a table, `generation` tells the users of one index apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

/// What the kernel says of the process at the other end when it is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Credentials {
    /// User id; `None` where the transport has none (TCP).
    pub uid: Option<u32>,
    /// Primary group id.
    pub gid: Option<u32>,
    /// Process id.
    pub pid: Option<u32>,
}

/// The file descriptors that came with one read, in order.
pub type Fds = SmallVec<[Fd; 2]>;

/// An input of the broker. The event log holds these, in this order; replaying them gives the same broker.
#[derive(Debug, Clone)]
pub enum Event {
    /// A listener accepted a connection.
    Accepted {
        /// Who it is from now on; its index is not in use.
        peer: PeerId,
        /// Which listener accepted it (index in the order of the config).
        listener: u32,
        /// What the kernel knows of it.
        credentials: Credentials,
        /// Whether file descriptors can be passed over this transport.
        can_pass_fds: bool,
    },
    /// Bytes arrived, in a chunk of their own.
    Received {
        /// From whom.
        peer: PeerId,
        /// At least one byte.
        data: Bytes,
        /// Descriptors that came with them.
        fds: Fds,
    },
    /// Bytes arrived in the extent of a large message ([`Broker::large_message`](super::Broker::large_message)).
    ReceivedLarge {
        /// From whom.
        peer: PeerId,
        /// All of the message that has arrived so far, from its first byte.
        prefix: Bytes,
        /// Descriptors that came with the newest part.
        fds: Fds,
    },
    /// The peer's socket took bytes from the head of its send queue.
    Drained {
        /// Whose.
        peer: PeerId,
        /// How many bytes since the last such event.
        bytes: u64,
    },
    /// Bytes arrived that killed the worker, and are left out. The link is closed once the peer has been told.
    Quarantined {
        /// From whom.
        peer: PeerId,
        /// The first 16 of them, or fewer: perhaps the beginning of a call, which is then answered.
        begins_with: Bytes,
    },
    /// The link is gone: end of file, or an error of the socket.
    Closed {
        /// Whose.
        peer: PeerId,
        /// For the log: `"end of file"`, or the system's error.
        reason: &'static str,
    },
    /// Time has passed.
    Tick {
        /// The present.
        now: Millis,
    },
    /// A configuration was loaded (at start, or by a reload).
    ConfigLoaded {
        /// The new one, complete.
        config: Arc<Config>,
    },
    /// A reload failed; the configuration in force stays. Answers the callers of ReloadConfig.
    ConfigRefused {
        /// Name of the D-Bus error for the callers.
        name: String,
        /// What, where, whose fault.
        reason: String,
    },
    /// An upgrade was asked for by a signal; nobody waits for an answer.
    UpgradeRequested,
    /// The preflight of an upgrade said no.
    UpgradeRefused {
        /// Why.
        reason: String,
    },
    /// This process image serves from now on. After an upgrade that succeeded or was rolled back it answers the caller.
    Serving {
        /// Pid of the worker.
        worker_pid: u32,
        /// How it came to serve.
        start: Start,
    },
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
