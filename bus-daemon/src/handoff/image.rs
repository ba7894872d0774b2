//! The image: the broker's state and its links, as one container.
//!
//! A damaged record costs the peers that it concerns, and says so; only without the record of what belongs to no
//! single peer there is nothing to go on with.

use std::collections::{BTreeMap, BTreeSet};

use bus_wire::Fd;
use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError};
use super::container::{ContainerError, IfUnknown, Reader, Writer};
use super::stored::{BacklogV1, Stored};
use crate::broker::{
    AgendaV1, Blob, Broker, Dropped, GlobalV1, GlobalV2, Millis, PeerId, PeerV1, PeerV2, RestoreError,
    SharedBodies,
};

/// Record types. Never used for anything else.
mod kind {
    pub(super) const WORKER: u16 = 10;
    pub(super) const GLOBAL: u16 = 11;
    pub(super) const BODY: u16 = 12;
    pub(super) const PEER: u16 = 13;
    pub(super) const MANIFEST: u16 = 14;
    pub(super) const AGENDA: u16 = 15;
}

/// What the worker knows besides the broker.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WorkerState {
    /// Nanoseconds on the monotonic clock when it did its last work.
    pub stopped_at: u64,
    /// The generation of the newest link.
    pub generation: u32,
    /// Peers whose sockets are full, by their ids as numbers.
    pub blocked: Vec<u64>,
    /// Peers to whose sockets writing has failed for good.
    pub broken: Vec<u64>,
    /// What waits for slow readers. Versions before 3 had it in the peers' records.
    pub stored: Option<Stored>,
}

/// What the worker knows besides the broker, in version 3.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct WorkerV3 {
    stopped_at: u64,
    generation: u32,
    blocked: Vec<u64>,
    broken: Vec<u64>,
    store: Option<StoreV1>,
}

/// Where the store is that records of backlogs refer to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StoreV1 {
    /// The number of its memfd.
    number: i32,
    salt: u32,
    /// The layout of its pages and blocks.
    layout: u32,
}

/// The version of the state that this build writes: that of the worker's record, which is the first.
pub(crate) const VERSION: u16 = 3;

/// The layout that this build reads and writes.
const LAYOUT: u32 = 1;

/// A peer for which something waits in the store, in version 3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PeerV3 {
    peer: PeerV2,
    backlog: BacklogV1,
}

/// What the worker knew besides the broker, in version 2.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct WorkerV2 {
    stopped_at: u64,
    generation: u32,
    blocked: Vec<u64>,
    broken: Vec<u64>,
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

impl From<&WorkerState> for WorkerV3 {
    fn from(state: &WorkerState) -> Self {
        let WorkerState {
            stopped_at,
            generation,
            blocked,
            broken,
            stored,
        } = state;
        Self {
            stopped_at: *stopped_at,
            generation: *generation,
            blocked: blocked.clone(),
            broken: broken.clone(),
            store: stored.as_ref().map(|stored| StoreV1 {
                number: stored.number,
                salt: stored.salt,
                layout: LAYOUT,
            }),
        }
    }
}

impl WorkerV3 {
    fn with(self, backlogs: Vec<BacklogV1>) -> WorkerState {
        WorkerState {
            stopped_at: self.stopped_at,
            generation: self.generation,
            blocked: self.blocked,
            broken: self.broken,
            stored: self.store.map(|store| Stored {
                number: store.number,
                salt: store.salt,
                backlogs,
            }),
        }
    }
}

/// A part of the manifest: handles, and the descriptor numbers that they stand for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct ManifestV1 {
    entries: Vec<(Fd, i32)>,
}

/// Entries in one record of the manifest: damage to one costs no more peers.
const MANIFEST_PART: usize = 256;

/// What the worker knew in version 1, when a descriptor's handle was its number.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct WorkerV1 {
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

/// What an image gives.
#[derive(Debug)]
pub struct Restored {
    /// The broker, to be continued.
    pub broker: Broker,
    /// The worker's own part.
    pub worker: WorkerState,
    /// Which descriptor number each handle stands for.
    pub manifest: Vec<(Fd, i32)>,
    /// The version that it was written in. In version 1 groups and labels were not saved, and links were registered without
    /// EPOLLRDHUP.
    pub version: u16,
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
    /// What waits for slow readers is laid out in a way that this build cannot read.
    #[error("the store of the state has layout {0}, which this build does not know")]
    Layout(u32),
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

/// Writes an image. `number` tells which descriptor number a handle stands for.
///
/// # Errors
/// When a value is too long for a record.
pub fn save(
    broker: &Broker,
    worker: &WorkerState,
    number: impl Fn(Fd) -> Option<i32>,
) -> Result<Vec<u8>, CodecError> {
    let salt = crc32c::crc32c(&broker.identity().hash_seed.to_le_bytes());
    let mut writer = Writer::new(salt);
    writer.record(kind::WORKER, VERSION, IfUnknown::Refuse, &WorkerV3::from(worker))?;
    writer.record(kind::GLOBAL, 2, IfUnknown::Refuse, &broker.save_global())?;
    let agenda = broker.save_agenda();
    if !agenda.is_empty() {
        writer.record(kind::AGENDA, 1, IfUnknown::Refuse, &agenda)?;
    }
    let mut handles = broker.owned_fds();
    // The configuration itself is in the image, so nobody goes on to read it there.
    handles.retain(|handle| Some(*handle) != broker.config_source());
    for part in handles.chunks(MANIFEST_PART) {
        let entries = part.iter().filter_map(|handle| Some((*handle, number(*handle)?)));
        let part = ManifestV1 {
            entries: entries.collect(),
        };
        writer.record(kind::MANIFEST, 1, IfUnknown::Refuse, &part)?;
    }
    let backlogs: &[BacklogV1] = worker.stored.as_ref().map_or(&[], |stored| &stored.backlogs);
    let backlogs: BTreeMap<u64, BacklogV1> =
        backlogs.iter().map(|backlog| (backlog.owner, *backlog)).collect();
    let mut shared = SharedBodies::new();
    // One after the other: each needs the memory of the one before it.
    for peer in broker
        .peer_ids()
        .filter_map(|id| broker.save_peer(id, &mut shared))
    {
        match backlogs.get(&peer.id().to_u64()) {
            None => writer.record(kind::PEER, 2, IfUnknown::Refuse, &peer)?,
            Some(backlog) => {
                let backlog = *backlog;
                writer.record(kind::PEER, 3, IfUnknown::Refuse, &PeerV3 { peer, backlog })?;
            }
        }
    }
    for (index, bytes) in (0..).zip(shared.into_bodies()) {
        writer.record(kind::BODY, 1, IfUnknown::Refuse, &BodyV1 { index, bytes })?;
    }
    Ok(writer.finish())
}

/// The records of an image, as far as they can be read.
#[derive(Default)]
struct Records<'a> {
    worker: Option<WorkerV3>,
    global: Option<GlobalV2>,
    agenda: AgendaV1,
    /// With their versions.
    peers: Vec<(u16, &'a [u8])>,
    bodies: Vec<BodyV1>,
    manifest: Vec<(Fd, i32)>,
    version: u16,
    damage: Vec<String>,
}

impl<'a> Records<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let mut all = Self::default();
        for record in Reader::new(bytes)? {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    all.damage.push(error.to_string());
                    continue;
                }
            };
            if matches!(record.kind, kind::WORKER | kind::GLOBAL | kind::PEER) {
                all.version = all.version.max(record.version);
            }
            let body = record.body;
            let outcome = match (record.kind, record.version) {
                (kind::WORKER, 1) => codec::decode::<WorkerV1>(body)
                    .map(|value| all.worker = Some(WorkerV2::from(value).into())),
                (kind::WORKER, 2) => {
                    codec::decode::<WorkerV2>(body).map(|value| all.worker = Some(value.into()))
                }
                (kind::WORKER, 3) => match codec::decode::<WorkerV3>(body) {
                    Ok(WorkerV3 {
                        store: Some(store), ..
                    }) if store.layout != LAYOUT => {
                        return Err(ImageError::Layout(store.layout));
                    }
                    decoded => decoded.map(|value| all.worker = Some(value)),
                },
                (kind::GLOBAL, 1) => {
                    codec::decode::<GlobalV1>(body).map(|value| all.global = Some(value.into()))
                }
                (kind::GLOBAL, 2) => codec::decode(body).map(|value| all.global = Some(value)),
                (kind::AGENDA, 1) => codec::decode(body).map(|value| all.agenda = value),
                (kind::BODY, 1) => codec::decode(body).map(|value| all.bodies.push(value)),
                (kind::MANIFEST, 1) => {
                    codec::decode::<ManifestV1>(body).map(|value| all.manifest.extend(value.entries))
                }
                (kind::PEER, 1..=3) => {
                    all.peers.push((record.version, body));
                    Ok(())
                }
                (kind, version) => match record.if_unknown {
                    IfUnknown::Refuse => return Err(ImageError::Unknown { kind, version }),
                    IfUnknown::Skip => Ok(()),
                },
            };
            if let Err(error) = outcome {
                all.damage.push(unreadable(record.kind, &error));
            }
        }
        Ok(all)
    }
}

/// Reads an image and continues the broker in it. `now` is the present on the monotonic clock: version 1 counted time
/// on another clock, and its deadlines are as far from the present as they were.
///
/// # Errors
/// See [`ImageError`]. Damage that concerns single peers only is none: they are in [`Restored::dropped`].
pub fn load(bytes: &[u8], now: Millis) -> Result<Restored, ImageError> {
    let Records {
        worker,
        global,
        agenda,
        peers,
        bodies,
        mut manifest,
        version,
        mut damage,
    } = Records::read(bytes)?;
    let mut global = global.ok_or(ImageError::NoGlobal)?;
    let saved_at = if version == 1 { global.move_to(now) } else { now };
    let shared = table(bodies, &mut damage);
    let has_store = worker.as_ref().is_some_and(|worker| worker.store.is_some());
    let mut backlogs = Vec::new();
    let peers = peers.into_iter().filter_map(|(version, record)| {
        let peer = match version {
            1 => codec::decode::<PeerV1>(record).map(|peer| (PeerV2::from(peer).moved(saved_at, now), None)),
            2 => codec::decode::<PeerV2>(record).map(|peer| (peer, None)),
            _ => codec::decode::<PeerV3>(record).map(|record| (record.peer, Some(record.backlog))),
        };
        let (peer, backlog) = peer
            .map_err(|error| damage.push(unreadable(kind::PEER, &error)))
            .ok()?;
        if let Some(backlog) = backlog {
            if !has_store || backlog.owner != peer.id().to_u64() {
                damage.push(format!("what waits for peer {} is nowhere", peer.id().index));
                return None;
            }
            backlogs.push(backlog);
        }
        Some((peer, backlog.map(|backlog| backlog.end)))
    });
    let (broker, mut dropped) = Broker::restore_from(global, peers, &shared, agenda)?;
    tidy_dropped(&broker, &mut dropped, &mut damage);
    if version == 1 {
        // A handle was the number; what peers had whose records are lost is known by their indexes.
        let lost = dropped.iter().flat_map(|one| {
            let socket = i32::try_from(one.peer.index)
                .ok()
                .filter(|index| *index <= MOST_FDS);
            one.fds.iter().copied().chain(socket.map(Fd))
        });
        manifest = broker
            .owned_fds()
            .into_iter()
            .chain(lost)
            .map(|fd| (fd, fd.0))
            .collect();
    }
    let worker = match worker {
        Some(worker) => worker.with(backlogs),
        None => {
            damage.push("there is no readable record of the worker".into());
            without_record(&broker, &dropped)
        }
    };
    Ok(Restored {
        broker,
        worker,
        manifest,
        version,
        dropped,
        damage,
    })
}

/// Bytes of an image that tell its version.
#[cfg(feature = "runtime")]
pub(crate) const BEGINNING: usize = 64;

/// The version that an image was written in, by its first [`BEGINNING`] bytes: that of its first record, which is the
/// worker's.
#[cfg(feature = "runtime")]
pub(crate) fn version_of(beginning: &[u8; BEGINNING]) -> Option<u16> {
    let [.., b'b', b'r', b'e', b'c', a, b, c, d, _, _, _, _, _, _, _, _] = beginning else {
        return None;
    };
    (u16::from_le_bytes([*a, *b]) == kind::WORKER).then(|| u16::from_le_bytes([*c, *d]))
}

/// More descriptors than any machine has: a number beyond this is nonsense.
const MOST_FDS: i32 = 1 << 22;

/// What the worker's record must have said, as far as the broker knows.
fn without_record(broker: &Broker, dropped: &[Dropped]) -> WorkerState {
    let known = broker.peer_ids().chain(dropped.iter().map(|one| one.peer));
    let newest = known.map(|peer| peer.generation).max().unwrap_or(0);
    let has_output = |peer: &PeerId| broker.send_queue(*peer).is_some_and(|queue| !queue.is_empty());
    WorkerState {
        stopped_at: 0,
        // Those of peers of whom nothing is left count as well.
        generation: newest.saturating_add(1 << 16),
        // Whatever waits for a peer, its socket did not take.
        blocked: broker.peer_ids().filter(has_output).map(PeerId::to_u64).collect(),
        broken: Vec::new(),
        stored: None,
    }
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
