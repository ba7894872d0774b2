//! How much load, and of which kinds.

use std::time::Duration;

/// The size of the load. The default is 200 raw connections.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    /// Pairs of connections that call each other, both ways.
    pub pairs: u32,
    /// Connections that broadcast numbered signals.
    pub broadcasters: u32,
    /// Connections that each subscribe, with filters, to two broadcasters.
    pub subscribers: u32,
    /// Pairs of which one calls the other with a descriptor in every message.
    pub fd_pairs: u32,
    /// Of the messages of all other pairs and of the broadcasters, one in so many carries a descriptor.
    pub fd_every: u64,
    /// Owners that queue for one name.
    pub queued_owners: u32,
    /// Connections that come, call and go, over and over.
    pub churners: u32,
    /// The time between two calls of one caller, and between two signals of one broadcaster.
    pub interval: Duration,
    /// The body of the large message, in bytes.
    pub large_message: usize,
    /// Names of services outside the raw load (scripts, other implementations) that raw connections call too.
    /// They need to own their names before [`crate::Load::go`].
    pub call_also: Vec<String>,
    /// Where handshakes are cut, and whatever else is drawn.
    pub seed: u64,
}

impl Default for LoadPlan {
    fn default() -> LoadPlan {
        LoadPlan {
            pairs: 60,
            broadcasters: 6,
            subscribers: 48,
            fd_pairs: 6,
            fd_every: 10,
            queued_owners: 5,
            churners: 2,
            interval: Duration::from_millis(20),
            large_message: 16 << 20,
            call_also: Vec::new(),
            seed: crate::clock::seed("BUS_LOAD_SEED"),
        }
    }
}

impl LoadPlan {
    /// How many connections are open at a time.
    pub fn connections(&self) -> u32 {
        let fixed = 2 + 2 + 2 + 1; // large sender and receiver, stopped reader and its sender, pending, monitor
        self.pairs * 2
            + self.broadcasters
            + self.subscribers
            + self.fd_pairs * 2
            + self.queued_owners
            + self.churners
            + fixed
    }

    /// A load of a few connections of each kind, for quick tests.
    pub fn small() -> LoadPlan {
        LoadPlan {
            pairs: 3,
            broadcasters: 2,
            subscribers: 4,
            fd_pairs: 1,
            queued_owners: 3,
            churners: 1,
            ..LoadPlan::default()
        }
    }
}

/// Something that a client can be in the middle of. Held, it stays in the middle until it is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Half of the large message is written.
    HalfLargeMessage,
    /// A new connection has sent its handshake up to some byte.
    HalfHandshake,
    /// A receiver reads nothing, and its messages pile up in the bus.
    StoppedReader,
    /// Calls were made and are not yet answered.
    PendingReplies,
}

impl Hook {
    /// All of them.
    pub const ALL: [Hook; 4] = [
        Hook::HalfLargeMessage,
        Hook::HalfHandshake,
        Hook::StoppedReader,
        Hook::PendingReplies,
    ];
}
