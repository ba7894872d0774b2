//! The image: the broker's state and its links, as one container.
//!
//! A damaged record costs the peers that it concerns, and says so; only without the record of what belongs to no
//! single peer there is nothing to go on with.

use std::collections::{BTreeMap, BTreeSet};

use bus_wire::Fd;
use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError};
use super::container::{ContainerError, IfUnknown, Reader, Writer};
use crate::broker::{Blob, Broker, Dropped, GlobalV1, PeerId, PeerV1, RestoreError, SharedBodies};

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

/// A body that waits in several send queues, in version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct BodyV1 {
    /// Its place in the table that the records of the peers refer to.
    index: u32,
    bytes: Blob,
}

/// More descriptors than any machine has: a link beyond this is nonsense.
const MOST_LINKS: u32 = 1 << 22;

/// Writes an image.
///
/// # Errors
/// When a value is too long for a record.
pub fn save(broker: &Broker, worker: &WorkerV1) -> Result<Vec<u8>, CodecError> {
    let salt = crc32c::crc32c(&broker.identity().hash_seed.to_le_bytes());
    let mut writer = Writer::new(salt);
    writer.record(kind::WORKER, 1, IfUnknown::Refuse, worker)?;
    writer.record(kind::GLOBAL, 1, IfUnknown::Refuse, &broker.save_global())?;
    let mut shared = SharedBodies::new();
    // One after the other: each needs the memory of the one before it.
    for peer in broker
        .peer_ids()
        .filter_map(|id| broker.save_peer(id, &mut shared))
    {
        writer.record(kind::PEER, 1, IfUnknown::Refuse, &peer)?;
    }
    for (index, bytes) in (0..).zip(shared.into_bodies()) {
        writer.record(kind::BODY, 1, IfUnknown::Refuse, &BodyV1 { index, bytes })?;
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
    let mut peers: Vec<&[u8]> = Vec::new();
    let mut bodies: Vec<BodyV1> = Vec::new();
    let mut damage = Vec::new();
    for record in Reader::new(bytes)? {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                damage.push(error.to_string());
                continue;
            }
        };
        let outcome = match (record.kind, record.version) {
            (kind::WORKER, 1) => codec::decode(record.body).map(|value| worker = Some(value)),
            (kind::GLOBAL, 1) => codec::decode(record.body).map(|value| global = Some(value)),
            (kind::BODY, 1) => codec::decode(record.body).map(|value| bodies.push(value)),
            (kind::PEER, 1) => {
                peers.push(record.body);
                Ok(())
            }
            (kind, version) => match record.if_unknown {
                IfUnknown::Refuse => return Err(ImageError::Unknown { kind, version }),
                IfUnknown::Skip => Ok(()),
            },
        };
        if let Err(error) = outcome {
            damage.push(unreadable(record.kind, &error));
        }
    }
    let global = global.ok_or(ImageError::NoGlobal)?;
    let shared = table(bodies, &mut damage);
    let peers = peers.into_iter().filter_map(|record| {
        codec::decode::<PeerV1>(record)
            .map_err(|error| damage.push(unreadable(kind::PEER, &error)))
            .ok()
    });
    let (broker, mut dropped) = Broker::restore_from(global, peers, &shared)?;
    tidy_dropped(&broker, &mut dropped, &mut damage);
    let worker = agree_on_links(&broker, &dropped, worker, &mut damage);
    Ok(Restored {
        broker,
        worker,
        dropped,
        damage,
    })
}

fn unreadable(kind: u16, error: &CodecError) -> String {
    format!("a record of type {kind} cannot be read: {error}")
}

/// The bodies by their index; one that is missing is empty, and costs those who wait for it the connection.
fn table(bodies: Vec<BodyV1>, damage: &mut Vec<String>) -> Vec<Blob> {
    let mut shared: Vec<Blob> = Vec::with_capacity(bodies.len());
    // Records that are missing leave gaps; no image has lost more of them than could have been between two others.
    let most = 2 * bodies.len() + 1024;
    for BodyV1 { index, bytes } in bodies {
        let index = index as usize;
        if index >= most {
            damage.push(format!("the index {index} of a body is too large"));
            continue;
        }
        if index >= shared.len() {
            shared.resize_with(index + 1, Blob::default);
        }
        match shared.get_mut(index) {
            Some(place) if place.0.is_empty() => *place = bytes,
            _ => damage.push(format!("body {index} is there twice")),
        }
    }
    shared
}

/// What a second record of a peer named is not to be closed: the peer is there, by its first one.
fn tidy_dropped(broker: &Broker, dropped: &mut Vec<Dropped>, damage: &mut Vec<String>) {
    if dropped.is_empty() {
        return;
    }
    let present: BTreeSet<PeerId> = broker.peer_ids().collect();
    let owned: BTreeSet<Fd> = broker.owned_fds().into_iter().collect();
    dropped.retain(|one| {
        let is_gone = !present.contains(&one.peer);
        if !is_gone {
            damage.push(format!(
                "a further record of peer {}: {}",
                one.peer.index, one.reason
            ));
        }
        is_gone
    });
    for one in dropped {
        one.fds.retain(|fd| !owned.contains(fd));
    }
}

/// One link for each peer that is there, and one to be closed for each that was dropped; what is missing in the
/// worker's record is as it must have been, as far as the broker knows.
fn agree_on_links(
    broker: &Broker,
    dropped: &[Dropped],
    saved: Option<WorkerV1>,
    damage: &mut Vec<String>,
) -> WorkerV1 {
    let saved = match saved {
        // Both are in the order of the index.
        Some(saved)
            if dropped.is_empty()
                && saved
                    .links
                    .iter()
                    .map(|link| link.peer)
                    .eq(broker.peer_ids().map(PeerId::to_u64)) =>
        {
            return saved;
        }
        other => other,
    };
    // By the descriptor: whoever is there has it, and of those who are not the first.
    let mut links: BTreeMap<u32, LinkV1> = BTreeMap::new();
    let expected = broker.peer_ids().chain(dropped.iter().map(|one| one.peer));
    for peer in expected.filter(|peer| peer.index <= MOST_LINKS) {
        links.entry(peer.index).or_insert_with(|| LinkV1 {
            peer: peer.to_u64(),
            // Whatever waits for a peer, its socket did not take.
            blocked: broker.send_queue(peer).is_some_and(|queue| !queue.is_empty()),
            stopped: broker.peer(peer).is_some_and(|peer| peer.is_stopped),
            broken: false,
        });
    }
    let expected = links.len();
    let mut told = BTreeSet::new();
    let mut generation = links
        .values()
        .map(|link| PeerId::from_u64(link.peer).generation)
        .max()
        .unwrap_or(0);
    // Those of peers of whom nothing is left count as well.
    generation = generation.saturating_add(1 << 16);
    let mut stopped_at = 0;
    if let Some(saved) = saved {
        (generation, stopped_at) = (saved.generation, saved.stopped_at);
        for link in saved.links {
            match links.get_mut(&PeerId::from_u64(link.peer).index) {
                Some(place) if place.peer == link.peer && told.insert(link.peer) => *place = link,
                _ => damage.push(format!("the link of peer {} leads nowhere", link.peer as u32)),
            }
        }
    }
    if told.len() < expected {
        damage.push(format!(
            "{} links are told of by the records of their peers alone",
            expected - told.len()
        ));
    }
    WorkerV1 {
        stopped_at,
        generation,
        links: links.into_values().collect(),
    }
}
