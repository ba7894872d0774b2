//! The image: the broker's state and its links, as one container.
//!
//! A damaged record costs the peers that it concerns, and says so; only without the record of what belongs to no
//! single peer there is nothing to go on with.

use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError};
use super::container::{ContainerError, IfUnknown, Reader, Writer};
use crate::broker::{Blob, Broker, BrokerState, Dropped, GlobalV1, PeerV1, RestoreError};

/// Record types. Never used for anything else.
mod kind {
    pub(super) const WORKER: u16 = 10;
    pub(super) const GLOBAL: u16 = 11;
    pub(super) const BODY: u16 = 12;
    pub(super) const PEER: u16 = 13;
}

/// What the worker knows besides the broker, in version 1.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkerV1 {
    /// Nanoseconds on the monotonic clock when it did its last work.
    pub stopped_at: u64,
    /// The generation of the newest link.
    pub generation: u32,
    /// The links that are open.
    pub links: Vec<LinkV1>,
}

/// One link, in version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkV1 {
    /// Its peer's id as a number.
    pub peer: u64,
    /// It waits until the socket is writable.
    pub blocked: bool,
    /// Nothing is read from it for now.
    pub stopped: bool,
    /// Writing has failed for good.
    pub broken: bool,
}

/// What an image gives.
#[derive(Debug)]
pub struct Restored {
    /// The broker, to be continued.
    pub broker: Broker,
    /// The links.
    pub worker: WorkerV1,
    /// Peers that the image could not give back.
    pub dropped: Vec<Dropped>,
    /// What was wrong with the image, for the log.
    pub damage: Vec<String>,
}

/// An image that cannot be restored at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Not a container this build can read.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// A record that this build does not know and that says it must not be passed over.
    #[error("the state has a record of type {kind} version {version}, which this build does not know")]
    Unknown {
        /// Its type.
        kind: u16,
        /// Its version.
        version: u16,
    },
    /// The record of what belongs to no single peer is missing or damaged.
    #[error("the state has no readable record of the bus itself")]
    NoGlobal,
    /// The records contradict each other.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// Writes an image.
///
/// # Errors
/// When a value is too long for a record.
pub fn save(broker: &Broker, worker: &WorkerV1) -> Result<Vec<u8>, CodecError> {
    let BrokerState { global, peers, shared } = broker.save();
    let mut writer = Writer::new();
    writer.record(kind::WORKER, 1, IfUnknown::Refuse, worker)?;
    writer.record(kind::GLOBAL, 1, IfUnknown::Refuse, &global)?;
    for body in &shared {
        writer.record(kind::BODY, 1, IfUnknown::Refuse, body)?;
    }
    for peer in &peers {
        writer.record(kind::PEER, 1, IfUnknown::Refuse, peer)?;
    }
    Ok(writer.finish())
}

/// Reads an image and continues the broker in it.
///
/// # Errors
/// See [`ImageError`]. Damage that concerns single peers only is none: they are in [`Restored::dropped`].
pub fn load(bytes: &[u8]) -> Result<Restored, ImageError> {
    let mut worker: Option<WorkerV1> = None;
    let mut global: Option<GlobalV1> = None;
    let mut peers: Vec<PeerV1> = Vec::new();
    let mut shared: Vec<Blob> = Vec::new();
    let mut damage = Vec::new();
    for record in Reader::new(bytes)? {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                if let ContainerError::Damaged { kind: kind::BODY, .. } = error {
                    // Those behind it keep their numbers.
                    shared.push(Blob::default());
                }
                damage.push(error.to_string());
                continue;
            }
        };
        let outcome = match (record.kind, record.version) {
            (kind::WORKER, 1) => codec::decode(record.body).map(|value| worker = Some(value)),
            (kind::GLOBAL, 1) => codec::decode(record.body).map(|value| global = Some(value)),
            (kind::BODY, 1) => codec::decode(record.body).map(|value| shared.push(value)),
            (kind::PEER, 1) => codec::decode(record.body).map(|value| peers.push(value)),
            (kind, version) => match record.if_unknown {
                IfUnknown::Refuse => return Err(ImageError::Unknown { kind, version }),
                IfUnknown::Skip => Ok(()),
            },
        };
        if let Err(error) = outcome {
            damage.push(format!("a record of type {} cannot be read: {error}", record.kind));
        }
    }
    let global = global.ok_or(ImageError::NoGlobal)?;
    let (broker, dropped) = Broker::restore(BrokerState { global, peers, shared })?;
    let worker = worker.unwrap_or_else(|| links_of(&broker));
    Ok(Restored { broker, worker, dropped, damage })
}

/// What the worker's record must have said, as far as the broker knows it.
fn links_of(broker: &Broker) -> WorkerV1 {
    let links = broker.peer_ids().map(|peer| LinkV1 {
        peer: peer.to_u64(),
        blocked: false,
        stopped: false,
        broken: false,
    });
    let generation = broker.peer_ids().map(|peer| peer.generation).max().unwrap_or(0);
    WorkerV1 { stopped_at: 0, generation: generation.saturating_add(1 << 16), links: links.collect() }
}
