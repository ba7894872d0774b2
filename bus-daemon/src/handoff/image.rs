//! The image: the broker's state and its links, as one container.
//!
//! A damaged record costs the peers that it concerns, and says so; only without the record of what belongs to no
//! single peer there is nothing to go on with.

mod error;
#[cfg(feature = "next-version")]
mod next;
mod records;

use std::collections::{BTreeMap, BTreeSet};

use bus_wire::{Fd, PieceState};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError};
#[cfg(feature = "runtime")]
use super::container;
pub use super::container::Spill;
use super::container::{IfUnknown, Reader, Record, Writer};
use super::form::{Form, Output, VERSION};
use super::stored::{BacklogV1, Backlogs, InputV1, LAYOUTS, StandIn, Stored};
use crate::broker::{
    AdmissionsV1, AgendaV1, Blob, Broker, Dropped, GlobalV1, GlobalV2, InForceV1, Millis, PeerId,
    SharedBodies, SharesV1, Unexpressed,
};
pub use error::{ImageError, SaveError, Whose};
use records::{BodyV1, GlobalV5, ManifestV1, PeerV3, PeerV4, WorkerV1, WorkerV2, WorkerV3, kind};

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
    /// Records of later versions, to be written again as they are.
    pub foreign: Vec<ForeignRecord>,
}

/// A record that this build does not know, and that is carried along for a later build which does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignRecord {
    /// Its type.
    pub kind: u16,
    /// Its version.
    pub version: u16,
    /// Its encoded value.
    pub body: Blob,
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

/// Entries in one record of the manifest: damage to one costs no more peers.
const MANIFEST_PART: usize = 256;

/// Bytes that wait for one peer and stand in its record at most: well below the longest record.
const MOST_INLINE: u64 = 1 << 30;

/// Writes an image in this build's own form. `number` tells which descriptor number a handle stands for.
///
/// # Errors
/// When a value is too long for a record.
pub fn save(
    broker: &Broker,
    worker: &WorkerState,
    number: impl Fn(Fd) -> Option<i32>,
) -> Result<Vec<u8>, SaveError> {
    // Nothing that it is asked for: this form refers to the store.
    save_as(Form::OWN, broker, worker, number, &mut StandIn)
}

/// Writes an image in this form. `output` gives what waits in the store, where the form has it in the image itself.
///
/// # Errors
/// When there is something in the state that this form cannot express, or a value is too long for a record, or `output`
/// cannot give what waits.
pub fn save_as(
    form: Form,
    broker: &Broker,
    worker: &WorkerState,
    number: impl Fn(Fd) -> Option<i32>,
    output: &mut dyn Backlogs,
) -> Result<Vec<u8>, SaveError> {
    let writer = write(Writer::new(salt(broker)), form, broker, worker, number, output)?;
    Ok(writer.finish())
}

/// The same to where it is to be: nothing of it stays in the memory of this process.
///
/// # Errors
/// As [`save_as`], or where it cannot be written there.
pub fn save_to(
    spill: &mut dyn Spill,
    form: Form,
    broker: &Broker,
    worker: &WorkerState,
    number: impl Fn(Fd) -> Option<i32>,
    output: &mut dyn Backlogs,
) -> Result<(), SaveError> {
    let writer = Writer::spilling(salt(broker), spill);
    let writer = write(writer, form, broker, worker, number, output)?;
    writer.finish_spilled().map_err(SaveError::from)
}

/// Nothing that a client could know.
fn salt(broker: &Broker) -> u32 {
    crc32c::crc32c(&broker.identity().hash_seed.to_le_bytes())
}

fn write<'a>(
    writer: Writer<'a>,
    form: Form,
    broker: &'a Broker,
    worker: &WorkerState,
    number: impl Fn(Fd) -> Option<i32>,
    output: &mut dyn Backlogs,
) -> Result<Writer<'a>, SaveError> {
    let stored = worker.stored.as_ref();
    let backlogs = stored.map_or(&[][..], |stored| &stored.backlogs);
    // Otherwise the records of the peers have them, as far as the broker does.
    let is_in_store = form.refers_to_input();
    let inputs = stored
        .filter(|_| is_in_store)
        .map_or(&[][..], |stored| &stored.inputs);
    let mut saver = Saver {
        form,
        broker,
        writer,
        backlogs: backlogs.iter().map(|backlog| (backlog.owner, *backlog)).collect(),
        inputs: inputs.iter().map(|input| (input.owner, *input)).collect(),
        shared: SharedBodies::new(),
        #[cfg(feature = "next-version")]
        hints: next::HintsV1::default(),
    };
    saver.put_worker(worker)?;
    saver.put_global()?;
    saver.put_agenda()?;
    saver.put_shares()?;
    saver.put_admissions()?;
    saver.put_manifest(number)?;
    // One after the other: each needs the memory of the one before it.
    for id in broker.peer_ids() {
        saver.put_peer(id, output)?;
    }
    saver.put_bodies()?;
    saver.put_foreign(&worker.foreign)?;
    #[cfg(feature = "next-version")]
    saver.put_next()?;
    Ok(saver.writer)
}

/// An image in the making.
struct Saver<'a> {
    form: Form,
    broker: &'a Broker,
    writer: Writer<'a>,
    /// By their owners.
    backlogs: BTreeMap<u64, BacklogV1>,
    inputs: BTreeMap<u64, InputV1>,
    shared: SharedBodies,
    #[cfg(feature = "next-version")]
    hints: next::HintsV1,
}

impl Saver<'_> {
    fn put(&mut self, kind: u16, version: u16, record: &impl Serialize) -> Result<(), SaveError> {
        let written = self.writer.record(kind, version, IfUnknown::Refuse, record);
        written.map_err(SaveError::from)
    }

    /// What a version before has no place for.
    fn inexpressible(&self, whose: Whose) -> impl FnOnce(Unexpressed) -> SaveError {
        let version = self.form.version();
        move |what| SaveError::Inexpressible { whose, what, version }
    }

    /// The first record: its version is that of the state.
    fn put_worker(&mut self, worker: &WorkerState) -> Result<(), SaveError> {
        let mut record = WorkerV3::from(worker.clone());
        if self.form.output() == Output::Inline {
            record.store = None;
        }
        match self.form.version() {
            2 => {
                let record = WorkerV2::try_from(record).map_err(self.inexpressible(Whose::Bus))?;
                self.put(kind::WORKER, 2, &record)
            }
            version => self.put(kind::WORKER, version, &record),
        }
    }

    /// What belongs to no single peer.
    fn put_global(&mut self) -> Result<(), SaveError> {
        let global = self.broker.save_global();
        if self.form.knows_policy() {
            let in_force = self.broker.save_in_force();
            return self.put(kind::GLOBAL, 5, &GlobalV5 { global, in_force });
        }
        if !self.broker.has_simple_policy() {
            let what = Unexpressed("a policy that allows some things and not others");
            return Err(self.inexpressible(Whose::Bus)(what));
        }
        self.put(kind::GLOBAL, 2, &global)
    }

    /// Only if there is something in it: versions before 4 do not know it.
    fn put_agenda(&mut self) -> Result<(), SaveError> {
        let agenda = self.broker.save_agenda();
        if agenda.is_empty() {
            return Ok(());
        }
        if !self.form.knows_agenda() {
            let what = Unexpressed("a connection that is ending, which takes a while");
            return Err(self.inexpressible(Whose::Bus)(what));
        }
        self.put(kind::AGENDA, 1, &agenda)
    }

    /// Only if there is something in it. A reader that does not know it goes on without: it learns anew whose is what waits.
    fn put_shares(&mut self) -> Result<(), SaveError> {
        let shares = self.broker.save_shares();
        if shares.is_empty() || !self.form.knows_agenda() {
            return Ok(());
        }
        let written = self.writer.record(kind::SHARES, 1, IfUnknown::Skip, &shares);
        written.map_err(SaveError::from)
    }

    /// Only if there is something in it. Nobody goes on without: a door that has a nonce would be open.
    fn put_admissions(&mut self) -> Result<(), SaveError> {
        let admissions = self.broker.save_admissions();
        if admissions.is_empty() {
            return Ok(());
        }
        self.put(kind::ADMISSIONS, 1, &admissions)
    }

    fn put_manifest(&mut self, number: impl Fn(Fd) -> Option<i32>) -> Result<(), SaveError> {
        let mut handles = self.broker.owned_fds();
        // The configuration itself is in the image, so nobody goes on to read it there.
        handles.retain(|handle| Some(*handle) != self.broker.config_source());
        for part in handles.chunks(MANIFEST_PART) {
            let entries = part.iter().filter_map(|handle| Some((*handle, number(*handle)?)));
            let part = ManifestV1 {
                entries: entries.collect(),
            };
            self.put(kind::MANIFEST, 1, &part)?;
        }
        Ok(())
    }

    fn put_peer(&mut self, id: PeerId, output: &mut dyn Backlogs) -> Result<(), SaveError> {
        let mut backlog = self.backlogs.remove(&id.to_u64());
        let before = match self.form.output() {
            Output::InStore => Vec::new(),
            Output::Inline => self.stored_output(id, backlog.take(), output)?,
        };
        let Some(mut peer) = self.broker.save_peer_behind(before, id, &mut self.shared) else {
            return Ok(());
        };
        let input = self.inputs.remove(&id.to_u64());
        if input.is_some() {
            peer.set_input(Bytes::new());
        }
        #[cfg(feature = "next-version")]
        let peer = match self.older_peer(peer, backlog, input)? {
            Some(peer) => peer,
            None => return Ok(()),
        };
        match (backlog, input) {
            (None, None) => self.put(kind::PEER, 2, &peer),
            (Some(backlog), None) => self.put(kind::PEER, 3, &PeerV3 { peer, backlog }),
            (backlog, Some(input)) => {
                let record = PeerV4 { peer, backlog, input };
                self.put(kind::PEER, 4, &record)
            }
        }
    }

    /// What waits for a peer in the store and was not sent.
    fn stored_output(
        &self,
        id: PeerId,
        backlog: Option<BacklogV1>,
        output: &mut dyn Backlogs,
    ) -> Result<Vec<PieceState>, SaveError> {
        let (Some(backlog), Some(queue)) = (backlog, self.broker.send_queue(id)) else {
            return Ok(Vec::new());
        };
        let whose = Whose::of(self.broker, id);
        if backlog.len() > MOST_INLINE {
            return Err(self.inexpressible(whose)(Unexpressed(
                "more than a gigabyte of output that waits",
            )));
        }
        let cuts: Vec<u64> = queue.fd_positions().filter(|at| *at > queue.sent()).collect();
        let pieces = output.pieces(&backlog, queue.sent(), &cuts);
        pieces.map_err(|reason| SaveError::Unreadable { whose, reason })
    }

    fn put_bodies(&mut self) -> Result<(), SaveError> {
        for (index, bytes) in (0..).zip(std::mem::take(&mut self.shared).into_bodies()) {
            self.put(kind::BODY, 1, &BodyV1 { index, bytes })?;
        }
        Ok(())
    }

    /// As they were read.
    fn put_foreign(&mut self, records: &[ForeignRecord]) -> Result<(), SaveError> {
        if !records.is_empty() && !self.form.carries() {
            let what = Unexpressed("a record of a later version that is to be carried along");
            return Err(self.inexpressible(Whose::Bus)(what));
        }
        for record in records {
            self.writer.encoded(Record {
                kind: record.kind,
                version: record.version,
                if_unknown: IfUnknown::Carry,
                body: &record.body.0,
            });
        }
        Ok(())
    }
}

/// The records of an image, as far as they can be read.
#[derive(Default)]
struct Records<'a> {
    worker: Option<WorkerV3>,
    global: Option<GlobalV2>,
    in_force: Option<InForceV1>,
    agenda: AgendaV1,
    shares: SharesV1,
    admissions: AdmissionsV1,
    /// With their versions.
    peers: Vec<(u16, &'a [u8])>,
    bodies: Vec<BodyV1>,
    manifest: Vec<(Fd, i32)>,
    foreign: Vec<ForeignRecord>,
    #[cfg(feature = "next-version")]
    next: next::Next,
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
                (kind::WORKER, 3..=VERSION) => match codec::decode::<WorkerV3>(body) {
                    Ok(WorkerV3 {
                        store: Some(store), ..
                    }) if !LAYOUTS.contains(&store.layout) => {
                        return Err(ImageError::Layout(store.layout));
                    }
                    decoded => decoded.map(|value| all.worker = Some(value)),
                },
                (kind::GLOBAL, 1) => {
                    codec::decode::<GlobalV1>(body).map(|value| all.global = Some(value.into()))
                }
                (kind::GLOBAL, 2..=4) => codec::decode(body).map(|value| all.global = Some(value)),
                (kind::GLOBAL, 5..=VERSION) => codec::decode(body).map(|GlobalV5 { global, in_force }| {
                    (all.global, all.in_force) = (Some(global), Some(in_force));
                }),
                (kind::AGENDA, 1) => codec::decode(body).map(|value| all.agenda = value),
                (kind::SHARES, 1) => codec::decode(body).map(|value| all.shares = value),
                (kind::ADMISSIONS, 1) => codec::decode(body).map(|value| all.admissions = value),
                (kind::BODY, 1) => codec::decode(body).map(|value| all.bodies.push(value)),
                (kind::MANIFEST, 1) => {
                    codec::decode::<ManifestV1>(body).map(|value| all.manifest.extend(value.entries))
                }
                (kind::PEER, 1..=VERSION) => {
                    all.peers.push((record.version, body));
                    Ok(())
                }
                #[cfg(feature = "next-version")]
                (kind, 1) if next::is_known(kind) => all.next.read(kind, body),
                (kind, version) => match record.if_unknown {
                    IfUnknown::Refuse => return Err(ImageError::Unknown { kind, version }),
                    IfUnknown::Skip => Ok(()),
                    IfUnknown::Carry => {
                        let body = Blob(Bytes::copy_from_slice(body));
                        all.foreign.push(ForeignRecord { kind, version, body });
                        Ok(())
                    }
                },
            };
            if let Err(error) = outcome {
                all.damage.push(unreadable(record.kind, &error));
            }
        }
        Ok(all)
    }
}

/// As [`load`]. The texts of rules stay in `bytes`: the broker is to be [settled](Broker::settle_rules) before that memory is
/// free.
///
/// # Errors
/// As [`load`].
pub fn load_lent(bytes: &Bytes, now: Millis) -> Result<Restored, ImageError> {
    let mut restored = crate::broker::lending(bytes.clone(), || load(bytes, now))?;
    restored.broker.note_lent();
    Ok(restored)
}

/// Reads an image and continues the broker in it. The beginnings of large messages lie in the store: see
/// [`Stored::inputs`] and [`Broker::resume_input`]. `now` is the present on the monotonic clock: version 1 counted time
/// on another clock, and its deadlines are as far from the present as they were.
///
/// # Errors
/// See [`ImageError`]. Damage that concerns single peers only is none: they are in [`Restored::dropped`].
pub fn load(bytes: &[u8], now: Millis) -> Result<Restored, ImageError> {
    let Records {
        worker,
        global,
        in_force,
        agenda,
        shares,
        admissions,
        peers,
        bodies,
        mut manifest,
        foreign,
        #[cfg(feature = "next-version")]
        mut next,
        version,
        mut damage,
    } = Records::read(bytes)?;
    let mut global = global.ok_or(ImageError::NoGlobal)?;
    let saved_at = if version == 1 { global.move_to(now) } else { now };
    let shared = table(bodies, &mut damage);
    let has_store = worker.as_ref().is_some_and(|worker| worker.store.is_some());
    let (mut backlogs, mut inputs) = (Vec::new(), Vec::new());
    let peers = peers.into_iter().filter_map(|(version, record)| {
        let (peer, backlog, input) = records::peer(version, record, saved_at, now)
            .map_err(|error| damage.push(unreadable(kind::PEER, &error)))
            .ok()?;
        #[cfg(feature = "next-version")]
        let peer = next.complete(peer);
        let owners = backlog
            .map(|backlog| backlog.owner)
            .into_iter()
            .chain(input.map(|input| input.owner));
        let own = peer.id().to_u64();
        if owners.into_iter().any(|owner| !has_store || owner != own) {
            let index = peer.id().index;
            damage.push(format!(
                "what waits for peer {index}, or comes from it, is nowhere"
            ));
            return None;
        }
        backlogs.extend(backlog);
        inputs.extend(input);
        Some((peer, backlog.map(|backlog| backlog.end)))
    });
    let (mut broker, mut dropped) = Broker::restore_from(global, in_force, peers, &shared, agenda)?;
    broker.resume_shares(shares);
    broker.resume_admissions(admissions);
    #[cfg(feature = "next-version")]
    damage.extend(next.damage(version));
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
        Some(worker) => worker.with(backlogs, inputs, foreign),
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

/// The form of an image that a binary wrote for itself, and so reads: where it is to be given its state back. `read` gives so many
/// bytes of it, from there on. `None`: this build does not write that form.
#[cfg(feature = "runtime")]
pub(crate) fn form_of(read: impl Fn(usize, usize) -> Option<Vec<u8>>) -> Option<Form> {
    let (version, body) = container::first_record(read)?;
    // Before there were stores, the record said nothing else that matters here.
    let worker = codec::decode::<WorkerV3>(&body).ok();
    let layout = worker.and_then(|worker| worker.store).map(|store| store.layout);
    Form::new(version, layout)
}

/// The version that an image was written in: that of its first record, which is the worker's.
#[cfg(feature = "runtime")]
pub(crate) fn version_of(bytes: &[u8]) -> Option<u16> {
    let read = |from: usize, len: usize| Some(bytes.get(from..from.checked_add(len)?)?.to_vec());
    container::first_record(read).map(|(version, _)| version)
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
        foreign: Vec::new(),
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
