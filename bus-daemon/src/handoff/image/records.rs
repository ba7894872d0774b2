//! The records of an image, besides those that the broker saves. Frozen: what is new gets a new version, a `From` that reads
//! the one before, and a `TryFrom` that writes it, which may refuse.

use bus_wire::Fd;
use serde::{Deserialize, Serialize};

use super::{ForeignRecord, WorkerState};
use crate::broker::{Blob, GlobalV2, InForceV1, Millis, PeerRecord, PeerV1, PeerV2, Unexpressed};
use crate::handoff::codec::{self, CodecError};
use crate::handoff::stored::{BacklogV1, InputV1, Stored};

/// Record types. Never used for anything else.
pub(super) mod kind {
    pub(crate) const WORKER: u16 = 10;
    pub(crate) const GLOBAL: u16 = 11;
    pub(crate) const BODY: u16 = 12;
    pub(crate) const PEER: u16 = 13;
    pub(crate) const MANIFEST: u16 = 14;
    pub(crate) const AGENDA: u16 = 15;
    pub(crate) const SHARES: u16 = 16;
    pub(crate) const ADMISSIONS: u16 = 17;
}

/// What the worker knew in version 1, when a descriptor's handle was its number.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct WorkerV1 {
    stopped_at: u64,
    generation: u32,
    links: Vec<LinkV1>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LinkV1 {
    peer: u64,
    blocked: bool,
    stopped: bool,
    broken: bool,
}

/// What the worker knew besides the broker, in version 2.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct WorkerV2 {
    stopped_at: u64,
    generation: u32,
    blocked: Vec<u64>,
    broken: Vec<u64>,
}

/// What the worker knows besides the broker, since version 3.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct WorkerV3 {
    stopped_at: u64,
    generation: u32,
    blocked: Vec<u64>,
    broken: Vec<u64>,
    pub(super) store: Option<StoreV1>,
}

/// Where the store is that records of backlogs refer to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoreV1 {
    /// The number of its memfd.
    number: i32,
    salt: u32,
    /// The layout of its pages and blocks.
    pub(super) layout: u32,
}

/// A peer for which something waits in the store, in version 3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PeerV3 {
    pub(super) peer: PeerV2,
    pub(super) backlog: BacklogV1,
}

/// A peer that is in the middle of a large message, which its record lacks, in version 4.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PeerV4 {
    pub(super) peer: PeerV2,
    /// What waits for it, if anything does.
    pub(super) backlog: Option<BacklogV1>,
    pub(super) input: InputV1,
}

/// What belongs to no single peer, since version 5 with the policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GlobalV5 {
    pub(super) global: GlobalV2,
    pub(super) in_force: InForceV1,
}

/// A part of the manifest: handles, and the descriptor numbers that they stand for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct ManifestV1 {
    pub(super) entries: Vec<(Fd, i32)>,
}

/// A body that waits in several send queues, in version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BodyV1 {
    /// Its place in the table that the records of the peers refer to.
    pub(super) index: u32,
    pub(super) bytes: Blob,
}

impl From<WorkerV1> for WorkerV2 {
    fn from(old: WorkerV1) -> Self {
        let with = |is_so: fn(&LinkV1) -> bool| -> Vec<u64> {
            let links = old.links.iter().filter(|link| is_so(link));
            links.map(|link| link.peer).collect()
        };
        Self {
            blocked: with(|link| link.blocked),
            broken: with(|link| link.broken),
            stopped_at: old.stopped_at,
            generation: old.generation,
        }
    }
}

impl From<WorkerV2> for WorkerV3 {
    fn from(old: WorkerV2) -> Self {
        let WorkerV2 {
            stopped_at,
            generation,
            blocked,
            broken,
        } = old;
        Self {
            stopped_at,
            generation,
            blocked,
            broken,
            store: None,
        }
    }
}

impl TryFrom<WorkerV3> for WorkerV2 {
    type Error = Unexpressed;

    fn try_from(new: WorkerV3) -> Result<Self, Unexpressed> {
        let WorkerV3 {
            stopped_at,
            generation,
            blocked,
            broken,
            store,
        } = new;
        match store {
            None => Ok(Self {
                stopped_at,
                generation,
                blocked,
                broken,
            }),
            Some(_) => Err(Unexpressed("a store")),
        }
    }
}

impl From<WorkerState> for WorkerV3 {
    fn from(state: WorkerState) -> Self {
        let WorkerState {
            stopped_at,
            generation,
            blocked,
            broken,
            stored,
            // Records of their own.
            foreign: _,
        } = state;
        Self {
            stopped_at,
            generation,
            blocked,
            broken,
            store: stored.map(|stored| StoreV1 {
                number: stored.number,
                salt: stored.salt,
                layout: stored.layout,
            }),
        }
    }
}

impl WorkerV3 {
    pub(super) fn with(
        self,
        backlogs: Vec<BacklogV1>,
        inputs: Vec<InputV1>,
        foreign: Vec<ForeignRecord>,
    ) -> WorkerState {
        WorkerState {
            stopped_at: self.stopped_at,
            generation: self.generation,
            blocked: self.blocked,
            broken: self.broken,
            stored: self.store.map(|store| Stored {
                number: store.number,
                salt: store.salt,
                layout: store.layout,
                backlogs,
                inputs,
            }),
            foreign,
        }
    }
}

/// A peer in any version, as it is saved today, and what waits for it or has come from it in a store. Version 1 was saved at `saved_at` on another
/// clock, on which it is `now`.
pub(super) fn peer(
    version: u16,
    body: &[u8],
    saved_at: Millis,
    now: Millis,
) -> Result<(PeerRecord, Option<BacklogV1>, Option<InputV1>), CodecError> {
    #[cfg(feature = "next-version")]
    if version == super::VERSION {
        return super::next::peer(body);
    }
    let (peer, backlog, input) = match version {
        1 => {
            let peer = codec::decode::<PeerV1>(body)?;
            (PeerV2::from(peer).moved(saved_at, now), None, None)
        }
        2 => (codec::decode::<PeerV2>(body)?, None, None),
        3 => {
            let PeerV3 { peer, backlog } = codec::decode(body)?;
            (peer, Some(backlog), None)
        }
        _ => {
            let PeerV4 { peer, backlog, input } = codec::decode(body)?;
            (peer, backlog, Some(input))
        }
    };
    #[cfg(feature = "next-version")]
    let peer = PeerRecord::from(peer);
    Ok((peer, backlog, input))
}
