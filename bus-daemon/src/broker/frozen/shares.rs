//! Whose bytes wait for whom, and who waits for that.

use serde::{Deserialize, Serialize};

use crate::broker::event::{Millis, PeerId};
use crate::broker::shares::Party;

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SharesV1 {
    /// What belongs to no single peer.
    pub pacing: PacingV1,
    /// Peers for which something waits, or which wait themselves.
    pub peers: Vec<PeerShareV1>,
}

impl SharesV1 {
    /// Whether there is nothing to go on with.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What belongs to no single peer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PacingV1 {
    /// Milliseconds in which the bus was awake.
    pub(in crate::broker) awake: u64,
    /// How far parties are ahead, in microseconds on the clock of the deadlines.
    pub(in crate::broker) clocks: Vec<(PartyV1, u64)>,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerShareV1 {
    pub(in crate::broker) peer: PeerId,
    /// Whose how much of its output is, in the order of the parties.
    pub(in crate::broker) cells: Vec<(PartyV1, u64)>,
    /// When its output began to wait, in awake milliseconds.
    pub(in crate::broker) since: u64,
    /// A moment of the same clock, and what had been sent then.
    pub(in crate::broker) earlier: (u64, u64),
    /// Another one, some seconds later.
    pub(in crate::broker) later: (u64, u64),
    /// Microseconds that it has waited already for what it sends next.
    pub(in crate::broker) credit: u64,
    /// Until when its next message waits.
    pub(in crate::broker) paced: Option<Millis>,
}

impl PeerShareV1 {
    /// The same of another peer.
    pub fn moved_to(&mut self, peer: PeerId) {
        self.peer = peer;
    }

    /// Whether it is known of any of the output whose it is.
    pub fn has_cells(&self) -> bool {
        !self.cells.is_empty()
    }
}

/// Who makes bytes wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::broker) enum PartyV1 {
    Own,
    Peer(PeerId),
    User(Option<u32>),
}

/// No peer is this one: it stands for all peers that have no cell of their own, so that each build can read it.
const PEERS: PeerId = PeerId {
    index: u32::MAX,
    generation: u32::MAX,
};

impl From<Party> for PartyV1 {
    fn from(party: Party) -> Self {
        match party {
            Party::Own => Self::Own,
            Party::Peer(id) => Self::Peer(id),
            Party::Peers => Self::Peer(PEERS),
            Party::User(uid) => Self::User(uid),
        }
    }
}

impl From<PartyV1> for Party {
    fn from(party: PartyV1) -> Self {
        match party {
            PartyV1::Own => Self::Own,
            PartyV1::Peer(PEERS) => Self::Peers,
            PartyV1::Peer(id) => Self::Peer(id),
            PartyV1::User(uid) => Self::User(uid),
        }
    }
}
