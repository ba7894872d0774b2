//! What a session asks of its owner.

use crate::frame::Reason;
use crate::limits::DATA_HEADER;
use crate::moment::Moment;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Names a carrier: whoever owns it gives each another number.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CarrierId(pub u64);

/// What has to be done, in this order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// A client wants a carrier: answer with [`attach`](super::Session::attach) or
    /// [`connect_failed`](super::Session::connect_failed).
    Connect {
        /// Where the host asked the client to go instead. A hint: identities are checked there as everywhere.
        address: Option<String>,
    },
    /// These bytes came; say [`committed`](super::Session::committed) when they are safe.
    Deliver {
        /// Where they stand in the other side's stream; without gaps.
        offset: u64,
        /// They.
        bytes: Bytes,
    },
    /// The other side's stream ends here; what came before may still have to be committed.
    Finished {
        /// Its length.
        offset: u64,
    },
    /// The other side has these for good: forget them.
    Acked {
        /// Offset behind the last one.
        upto: u64,
    },
    /// This carrier is of no use any more.
    Close {
        /// Which one.
        carrier: CarrierId,
        /// What was taken from [`transmit`](super::Session::transmit) is written first.
        flush: bool,
    },
    /// The session exists, and serves.
    Opened,
    /// The carrier is lost; the session is not.
    Parked {
        /// Since when.
        at: Moment,
    },
    /// There is a carrier again.
    Resumed {
        /// How many bytes are sent for a second time.
        again: u64,
        /// The client could not rely on the session in between: others may have acted in its place.
        fenced: bool,
    },
    /// From now on a client may not rely on the session any more, until it is resumed.
    Fenced,
    /// The session is over. Where this side ended it, the other side hears that what is committed was taken, and nothing
    /// else: whoever has bytes that are delivered and not committed forgets them.
    Ended(Ending),
}

/// How a session ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Ending {
    /// Why.
    pub reason: Reason,
    /// Who said so.
    pub by: Side,
    /// How many bytes of this side's stream the other side took in all. None: nobody knows.
    pub taken: Option<u64>,
    /// How many bytes of this side's stream there were.
    pub produced: u64,
}

impl Ending {
    /// Both streams ended, and all of them arrived.
    #[must_use]
    pub fn clean(&self) -> bool {
        self.reason == Reason::Ended && self.taken == Some(self.produced)
    }
}

/// Who ended a session.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Side {
    /// This side.
    Us,
    /// The peer.
    Peer,
}

/// What to write on the carrier next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Transmit {
    /// These bytes.
    Control(Vec<u8>),
    /// This header, and the bytes of this side's stream that it announces.
    Data {
        /// Goes first.
        header: [u8; DATA_HEADER],
        /// Where the bytes begin.
        offset: u64,
        /// How many there are.
        length: usize,
    },
}
