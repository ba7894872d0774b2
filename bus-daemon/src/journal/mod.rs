//! The journal: every input of the broker, in shared memory that outlives the worker.
//!
//! All bytes that enter or leave over a link pass through here: they are received straight into the [log](log) (or, for
//! a large message, into an [extent](extent)), and each system call that moves them is noted in the in-flight slot
//! ([header]) before it begins, so that a worker killed in the middle leaves exact counts behind. From time to time a
//! [checkpoint](checkpoint) bounds what a [replay](replay) has to read.

mod arena;
mod checkpoint;
#[cfg(any(test, feature = "test-hooks", feature = "bench-hooks"))]
mod damage;
mod extent;
mod handles;
mod header;
mod io;
mod log;
mod manifest;
mod memory;
#[cfg(all(test, target_arch = "x86_64"))]
mod mirror;
mod outcome;
#[cfg(feature = "bench-hooks")]
mod plain;
mod record;
mod replay;
mod snapshot;
mod store;
mod view;
mod waiting;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::Result;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use bus_wire::Fd;
use serde::{Deserialize, Serialize};

use crate::broker::{Attested, Blob, Broker, EntryKind, JournalMemory, MachineId, PeerId, Relief, Start};
use crate::handoff::image::ForeignRecord;
use crate::handoff::stored::{InputV1, LAYOUT, Stored};
use crate::os::region::Region;

use checkpoint::Checkpoints;
pub(crate) use checkpoint::LARGEST_FILE;
#[cfg(test)]
pub(crate) use checkpoint::Written;
#[cfg(any(test, feature = "test-hooks"))]
pub(crate) use damage::Flip;
pub(crate) use extent::Extent;
use extent::{ExtentPool, ExtentRange};
use header::Header;
pub(crate) use io::Read;
use log::Log;
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) use log::Position;
use manifest::Manifest;
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) use mirror::{Mirror, Sabotage};
pub(crate) use outcome::{decode_config, failed_outcome, outcome_in, small_outcome};
use record::{Fields, Kind};
pub(crate) use replay::{Recorded, Remains, UnitAtWork};
pub(crate) use store::BacklogV1;
use store::ExtentPlace;
#[cfg(feature = "test-hooks")]
pub use store::fuzz::store as fuzz_store;
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) use store::{Medium, Memfd};
use waiting::{Export, Waiting};

/// The buffer for a record's data keeps at most so many bytes.
const KEPT: usize = 4096;

/// An event that is too rare to have a record layout of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum RareEvent {
    /// [`Event::Accepted`](crate::broker::Event::Accepted).
    Accepted {
        /// The listener's index.
        listener: u32,
        /// Its socket.
        socket: Fd,
        /// What the kernel told of the process at the other end.
        attested: Attested,
    },
    /// [`Event::Closed`](crate::broker::Event::Closed).
    Closed {
        /// The reason given.
        reason: Cow<'static, str>,
    },
    /// [`Event::Step`](crate::broker::Event::Step).
    Step,
    /// [`Event::ReloadRequested`](crate::broker::Event::ReloadRequested).
    ReloadRequested,
    /// [`Event::UpgradeRequested`](crate::broker::Event::UpgradeRequested).
    UpgradeRequested,
    /// [`Event::ErrandEnded`](crate::broker::Event::ErrandEnded).
    ErrandEnded {
        /// Its number.
        errand: u64,
        /// The memfd with the outcome; `None`: there was no handle for it.
        payload: Option<Fd>,
        /// What stands in it, where that is not much: the broker may close it long before a replay.
        outcome: Option<Blob>,
    },
    /// [`Event::UpgradeFailed`](crate::broker::Event::UpgradeFailed).
    UpgradeFailed {
        /// The reason given.
        reason: String,
    },
    /// [`Event::Serving`](crate::broker::Event::Serving).
    Serving {
        /// Pid of the worker.
        worker_pid: u32,
        /// How it came to serve.
        start: Start,
    },
    /// [`Event::Relieved`](crate::broker::Event::Relieved).
    Relieved(Relief),
    /// [`Event::DescriptorLimit`](crate::broker::Event::DescriptorLimit).
    DescriptorLimit {
        /// How many.
        limit: u64,
    },
}

/// What the system answered to the broker in the middle of an event.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// A descriptor that the broker now owns.
    Descriptor(Option<Fd>),
    /// The journal's own memory.
    Memory(JournalMemory),
    /// The machine's id.
    MachineId(MachineId),
    /// Whether a user sits at the machine.
    AtConsole(bool),
}

/// Tells whether the worker that uses a journal has begun to serve.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Serving(&'static AtomicU32);

impl Serving {
    /// Whether it has.
    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }
}

/// The log, the extents and the in-flight slot of one worker.
pub(crate) struct Journal {
    log: Log,
    extents: ExtentPool,
    checkpoints: Checkpoints,
    manifest: Manifest,
    waiting: Waiting,
    header: &'static mut Header,
    /// Indexes of peers that are being written; those that could not be are for the next checkpoint.
    changed: Vec<u32>,
    /// The same for names, match rules and open calls.
    changed_entries: Vec<(EntryKind, u32)>,
    /// The next checkpoint has been begun.
    is_checkpoint_begun: bool,
    /// The next checkpoint is to come soon.
    is_checkpoint_wanted: bool,
    /// [`Broker::queued_to_wait`] at the last checkpoint.
    queued_before: u64,
    /// The log is being read, after a death.
    is_reading: bool,
    /// Something that a replay needs is not in the log.
    is_answer_missing: bool,
    /// Whose newest input lacks descriptors that came with it, as a replay finds it.
    lost_fds: Option<PeerId>,
    /// The number of the newest entry of the keeper's outbox that is in the log or the state before it.
    heard: u64,
    /// Records of later versions, for the next image.
    foreign: Vec<ForeignRecord>,
    /// They are not in the checkpoint.
    is_foreign_new: bool,
    /// A record's data, while it is encoded.
    encoded: Vec<u8>,
    /// Bytes of memory that the bus may hold.
    cap: u64,
    /// Extents lent since this process began.
    lent: u64,
    /// Bytes of those that are lent now.
    lent_bytes: usize,
    /// Bytes of these that took no memory when they were lent.
    lent_untouched: usize,
    /// What is kept to be used again is being given back.
    is_thrifty: bool,
    /// Whether the newest checkpoint may have an agenda that is not empty.
    has_agenda: bool,
    has_admissions: bool,
    /// Bytes of address space that extents may take.
    address_room: usize,
}

/// The same as [`Journal::resume_inputs`] where the store has an older layout, which is rewritten: the beginnings are copied,
/// since extents are plain bytes in any layout.
fn copy_inputs(broker: &mut Broker, stored: &Stored) -> Vec<PeerId> {
    let mut lost = Vec::new();
    for input in &stored.inputs {
        let peer = PeerId::from_u64(input.owner);
        let len = usize::try_from(input.len).unwrap_or(usize::MAX);
        let bytes = (len <= bus_wire::limits::MAX_MESSAGE)
            .then(|| crate::os::memfd::read_at(stored.number, input.offset, len).ok())
            .flatten();
        if !bytes.is_some_and(|bytes| broker.resume_input(peer, bytes.into())) {
            lost.push(peer);
        }
    }
    lost
}

/// An eighth of a limited address space: there is enough else that needs some.
fn address_room() -> usize {
    let limit = crate::os::memory::address_space();
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit / 8).unwrap_or(usize::MAX)
    })
}

impl Journal {
    /// An empty journal in fresh shared memory.
    pub(crate) fn create() -> Result<Self> {
        let mut made: Vec<Region> = Vec::new();
        Self::create_noting(&mut made).inspect_err(|_| made.into_iter().for_each(Region::undo))
    }

    fn create_noting(made: &mut Vec<Region>) -> Result<Self> {
        let checkpoints = Checkpoints::create()?;
        made.push(checkpoints.region());
        let manifest = Manifest::create()?;
        made.push(manifest.region());
        let (log, header) = Log::create()?;
        made.push(log.region());
        let mut salt = [0; 4];
        crate::os::random::fill(&mut salt);
        // The last one that may fail.
        let waiting = Waiting::create(u32::from_ne_bytes(salt))?;
        header.store_salt.store(waiting.salt(), Ordering::Release);
        Ok(Self {
            log,
            extents: ExtentPool::default(),
            checkpoints,
            manifest,
            waiting,
            header,
            changed: Vec::new(),
            changed_entries: Vec::new(),
            is_checkpoint_begun: false,
            is_checkpoint_wanted: false,
            queued_before: 0,
            is_reading: false,
            is_answer_missing: false,
            lost_fds: None,
            heard: 0,
            foreign: Vec::new(),
            is_foreign_new: false,
            encoded: Vec::new(),
            cap: u64::MAX,
            lent: 0,
            lent_bytes: 0,
            lent_untouched: 0,
            is_thrifty: false,
            has_agenda: false,
            has_admissions: false,
            address_room: address_room(),
        })
    }

    /// Records that are carried along from one image to the next.
    pub(crate) fn foreign(&self) -> &[ForeignRecord] {
        &self.foreign
    }

    /// Keeps these records for the next image.
    pub(crate) fn carry(&mut self, foreign: Vec<ForeignRecord>) {
        self.is_foreign_new |= foreign != self.foreign;
        self.foreign = foreign;
    }

    /// Notes an event that has no bytes.
    pub(crate) fn note(&mut self, peer: Option<PeerId>, event: &RareEvent) {
        self.append_encoded(Kind::Rare, peer, event);
    }

    /// Notes an event that the keeper told of with the entry of this number.
    pub(crate) fn note_told(&mut self, number: u64, event: &RareEvent) {
        self.append_numbered(Kind::Rare, None, number, event);
        self.heard = number;
    }

    /// The number of the newest entry that was noted.
    pub(crate) fn heard(&self) -> u64 {
        self.heard
    }

    /// Entries up to this number are part of the state that the journal goes on from.
    pub(crate) fn has_heard(&mut self, number: u64) {
        self.heard = self.heard.max(number);
    }

    /// Notes what the system answered in the middle of the newest event.
    pub(crate) fn note_answer(&mut self, answer: &Answer) {
        self.append_encoded(Kind::Answer, None, answer);
    }

    /// Notes that time passed.
    pub(crate) fn note_tick(&mut self, milliseconds: u64) {
        self.log.append(Kind::Tick, Fields::new(0, milliseconds), &[]);
    }

    /// An extent for a large message of `total` bytes, of which `prefix` has arrived.
    pub(crate) fn lend_extent(&mut self, total: usize, prefix: &[u8]) -> Result<Extent> {
        if self.extents.memory() as usize + total > self.address_room {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        let mut extent = self.extents.lend(&mut self.waiting, total)?;
        self.lent += 1;
        self.lent_bytes += extent.len();
        self.lent_untouched += extent.untouched();
        extent.fill(prefix);
        Ok(extent)
    }

    /// What waits for slow readers, and large messages that are not complete: where they are, for an image.
    pub(crate) fn stored(&self, broker: &Broker) -> Stored {
        let inputs = broker.peer_ids().filter_map(|peer| {
            let (_, prefix) = broker.large_message(peer)?;
            let range = self.extents.locate(prefix).filter(|range| range.start == 0)?;
            Some(InputV1 {
                owner: peer.to_u64(),
                offset: range.offset,
                class: range.class,
                len: range.len,
            })
        });
        Stored {
            number: self.waiting.fd(),
            salt: self.waiting.salt(),
            layout: LAYOUT,
            backlogs: self.waiting.backlogs().collect(),
            inputs: inputs.collect(),
        }
    }

    /// Gives the peers of a broker that was restored from an image the beginnings of their large messages. Returns those for
    /// whom there is none: no two messages are in the same extent.
    pub(crate) fn resume_inputs(&mut self, broker: &mut Broker, stored: &Stored) -> Vec<PeerId> {
        if stored.layout != LAYOUT {
            return copy_inputs(broker, stored);
        }
        let mut seen = BTreeSet::new();
        let mut lost = Vec::new();
        for input in &stored.inputs {
            let place = ExtentPlace {
                offset: input.offset,
                class: input.class,
            };
            let peer = PeerId::from_u64(input.owner);
            let bytes = seen
                .insert(input.offset)
                .then(|| {
                    self.extents
                        .adopt(&mut self.waiting, ExtentRange::first(place, input.len))
                })
                .flatten();
            if !bytes.is_some_and(|bytes| broker.resume_input(peer, bytes)) {
                lost.push(peer);
            }
        }
        lost
    }

    /// Everything is named that the state needs of a store which another process image had.
    pub(crate) fn end_naming(&mut self) {
        self.waiting.end_naming();
    }

    /// For an image: which descriptor number a handle stands for, and the output that waits in the store.
    pub(crate) fn for_image(&mut self) -> (impl Fn(Fd) -> Option<RawFd> + '_, Export<'_>) {
        let manifest = &self.manifest;
        (|handle| manifest.number(handle), self.waiting.export())
    }

    /// Goes on with what another process image had in its store. Where that is laid out in an older way it is rewritten, which
    /// takes as long as it is large; from the next checkpoint on it is not needed any more.
    ///
    /// # Errors
    /// Where the memfd is not there, or what is in it is damaged.
    pub(crate) fn adopt_stored(&mut self, stored: &Stored) -> std::result::Result<(), String> {
        if stored.layout != LAYOUT {
            let rewritten = self.waiting.rewrite(stored);
            return rewritten.map_err(|error| format!("the store cannot be rewritten: {error}"));
        }
        self.waiting
            .adopt(stored.number, stored.salt)
            .map_err(|error| format!("the store: {error}"))?;
        self.header.store_salt.store(stored.salt, Ordering::Release);
        self.waiting.restore(stored.backlogs.iter().copied());
        Ok(())
    }

    /// The same after a worker's death, which may have come to it.
    pub(crate) fn go_on_with(&mut self, stored: &Stored) -> std::result::Result<(), String> {
        if self.waiting.salt() != stored.salt {
            return self.adopt_stored(stored);
        }
        self.waiting.restore(stored.backlogs.iter().copied());
        Ok(())
    }

    /// All bytes that wait for a peer, in the store or not.
    #[cfg(test)]
    pub(crate) fn output_of(&mut self, peer: PeerId, queue: &bus_wire::SendQueue) -> Vec<u8> {
        self.try_output_of(peer, queue).unwrap()
    }

    /// The same, unless it is damaged.
    #[cfg(any(test, feature = "test-hooks"))]
    pub(crate) fn try_output_of(
        &mut self,
        peer: PeerId,
        queue: &bus_wire::SendQueue,
    ) -> std::result::Result<Vec<u8>, String> {
        let output = self.waiting.output_of(peer, queue);
        output.map_err(|error| format!("peer {}: {error}", peer.index))
    }

    /// Whether the store has work that was put off.
    pub(crate) fn has_chores(&self) -> bool {
        self.waiting.has_chores() || self.is_thrifty || self.checkpoints.wants_trim(true)
    }

    /// Does some of it: less than a millisecond.
    pub(crate) fn do_chores(&mut self) {
        if self.waiting.has_chores() {
            self.waiting.do_chores();
        } else {
            self.checkpoints.trim(!self.is_thrifty);
            self.is_thrifty &= self.checkpoints.wants_trim(false);
        }
    }

    /// Whether a checkpoint would free much of the store. It does not depend on what comes next, so it is not waited for.
    pub(crate) fn has_needless_output(&self) -> bool {
        self.waiting.wants_checkpoint()
    }

    /// The peer is gone, and what waited for it in the store is not needed any more.
    pub(crate) fn note_gone(&mut self, peer: PeerId) {
        self.waiting.note_gone(peer);
    }

    /// Takes an extent back, when its message is complete or its link is gone.
    pub(crate) fn give_back(&mut self, extent: Extent) {
        self.lent_bytes -= extent.len();
        self.lent_untouched -= extent.untouched();
        self.extents.give_back(extent);
    }

    /// Whether something has happened that is not in the log: nothing may be sent before a checkpoint has it.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.log.is_incomplete()
    }

    /// Whether the log may have no room for the records of another turn before a checkpoint has been taken.
    pub(crate) fn is_short_of_segments(&self) -> bool {
        self.log.is_short_of_segments()
    }

    /// The worker is about to do its first I/O on a link: from here on there is no way back to the state it was given.
    pub(crate) fn mark_serving(&self) {
        self.header.serving.store(1, Ordering::Release);
    }

    fn append_encoded(&mut self, kind: Kind, peer: Option<PeerId>, value: &impl Serialize) {
        self.append_numbered(kind, peer, 0, value);
    }

    fn append_numbered(&mut self, kind: Kind, peer: Option<PeerId>, number: u64, value: &impl Serialize) {
        let mut data = std::mem::take(&mut self.encoded);
        match crate::handoff::codec::encode_into(value, &mut data) {
            Ok(()) if data.len() <= Log::MOST_DATA => {
                self.log
                    .append_data(kind, peer.map_or(0, PeerId::to_u64), number, &data);
            }
            // A replay cannot know of it, and need not once a checkpoint does.
            Ok(()) => {
                tracing::warn!("an event of {} bytes does not fit into the journal", data.len());
                self.log.demand_checkpoint();
            }
            Err(error) => {
                tracing::error!("an event cannot be written to the journal: {error}");
                self.log.demand_checkpoint();
            }
        }
        data.clear();
        data.shrink_to(KEPT);
        self.encoded = data;
    }
}
