//! What a host asks of its owner.

use super::Identity;
use crate::frame::FrameError;
use crate::limits::Terms;
use crate::resume::SessionId;
use crate::session::{Action, CarrierId};

/// What has to be done, in this order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HostAction {
    /// May `who` have a session? Answer with [`grant`](super::Host::grant), when it is noted, or
    /// [`refuse`](super::Host::refuse).
    AskNew {
        /// Where.
        carrier: CarrierId,
        /// Who.
        who: Identity,
        /// What would hold.
        terms: Terms,
    },
    /// May `who` go on with its session? Answer with [`grant_resume`](super::Host::grant_resume), when the attempt is noted,
    /// or [`refuse`](super::Host::refuse). Nothing more comes from the carrier before.
    AskResume {
        /// Where.
        carrier: CarrierId,
        /// Who.
        who: Identity,
        /// Which.
        session: SessionId,
        /// How many attempts there were.
        attempt: u64,
    },
    /// A session asks for something. Never `Close` or `Connect`.
    Session {
        /// Which.
        session: SessionId,
        /// What.
        action: Action,
    },
    /// Something is due on the carrier of this session: ask [`transmit`](super::Host::transmit).
    Writable {
        /// Which.
        session: SessionId,
    },
    /// The same, for a carrier that has no session, or none any more.
    WritableCarrier {
        /// Which.
        carrier: CarrierId,
    },
    /// This carrier is of no use any more.
    Close {
        /// Which.
        carrier: CarrierId,
        /// What was taken from `transmit` is written first.
        flush: bool,
    },
    /// A session is over; what is kept of it may be noted.
    Buried {
        /// Which.
        session: SessionId,
    },
    /// Somebody who has no session was turned away. For the log, at most once per source and second.
    Trouble {
        /// Where.
        carrier: CarrierId,
        /// Who, if that was known.
        who: Option<Identity>,
        /// Why.
        trouble: Trouble,
    },
}

/// Why somebody was turned away. The peer is at fault, except where it says otherwise.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Trouble {
    /// Not this protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Neither HELLO nor RESUME came first.
    #[error("the peer began with another frame than HELLO or RESUME")]
    Place,
    /// No version in common.
    #[error("the peer speaks versions {oldest} to {newest}")]
    Version {
        /// From.
        oldest: u8,
        /// To.
        newest: u8,
    },
    /// Nobody could live under what was asked for.
    #[error("the peer asks for terms that no session could have")]
    Terms,
    /// 10 s were not enough, for the peer or for whoever grants.
    #[error("nothing came of the carrier in time")]
    TooSlow,
    /// This identity has as many sessions as one may have.
    #[error("the identity has too many sessions")]
    TooManySessions,
    /// There are too many carriers on which nobody asks for anything.
    #[error("too many carriers wait for a first frame")]
    TooManyGreetings,
    /// No such session, or not this identity's.
    #[error("the peer asks for a session that it does not have")]
    Unknown,
    /// The MAC is not that of the session on this carrier.
    #[error("the peer's proof for a session is wrong")]
    BadMac,
    /// A newer attempt has been here before.
    #[error("the peer's attempt is older than one before")]
    OlderAttempt,
}
