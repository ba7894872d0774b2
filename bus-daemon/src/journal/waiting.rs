//! What waits for slow readers, in the [store](super::store), and where each peer's part of it is.
//!
//! At a checkpoint the tail of each changed peer's send queue is appended to its backlog, and the queue keeps positions
//! only. A replay re-creates positions, never places: how much of a backlog was sent since is told by the queue.

use std::collections::BTreeSet;
use std::os::fd::RawFd;

use bus_wire::{PieceState, SendQueue, TailPiece};
use bytes::Bytes;

use super::extent::ExtentPool;
use super::store::{BacklogV1, Exported, ExtentPlace, LARGEST_BLOCK, Memfd, Store, StoreError};
use crate::broker::{Broker, PeerId};
use crate::handoff::stored::{Backlogs, Stored};
use crate::os::descriptor;

/// Bytes read from the store for one write.
const WRITE: usize = 256 * 1024;
/// Units of work put off that are done in one go: less than a millisecond.
const STEP: usize = 4096;
/// Bytes that are not needed any more and wait for a checkpoint to be freed; or else an eighth of what is held.
const NEEDLESS: u64 = 4 << 20;
/// Indexes of peers are smaller.
const MOST_PEERS: u32 = 1 << 22;
/// Checkpoints between two counts of everything, at most.
const MOST_LEFT_OUT: u32 = 1024;
/// Bytes for which a checkpoint is wanted however much is held.
const MOST_NEEDLESS: u64 = 32 << 20;

/// The store, and the backlogs of the peers.
pub(super) struct Waiting {
    store: Store<Memfd>,
    salt: u32,
    /// By index.
    backlogs: Vec<Option<BacklogV1>>,
    /// Bodies that the store knows by their addresses until the checkpoint is complete, which may be turns from now: no
    /// other bytes must come to lie there before.
    shared: Vec<Bytes>,
    /// Bytes on their way from the store to a socket.
    buffer: Vec<u8>,
    /// Whether the store has work that was put off.
    has_chores: bool,
    /// Bytes that were sent, or whose receivers are gone, since the last checkpoint.
    released: u64,
    /// Bytes that the store may take.
    limit: u64,
    recounts: Recounts,
}

/// How often everything is counted once more for damage: at once, and then after twice as many checkpoints each time, so that
/// damage that comes again and again, or that counting cannot mend, does not cost each checkpoint a walk over all that waits.
#[derive(Debug, Default)]
struct Recounts {
    /// Checkpoints that are left out before the next.
    left_out: u32,
    /// How many were left out before the last.
    waited: u32,
}

impl Recounts {
    /// A checkpoint is complete, and there is something to be counted: whether it is.
    fn is_time(&mut self) -> bool {
        if self.left_out > 0 {
            self.left_out -= 1;
            return false;
        }
        self.waited = (2 * self.waited).clamp(1, MOST_LEFT_OUT);
        self.left_out = self.waited;
        true
    }
}

impl Waiting {
    /// An empty store in a new memfd.
    pub(super) fn create(salt: u32) -> std::io::Result<Self> {
        let memfd = Memfd::create(c"bus-store")?;
        Ok(Self::over(Store::create(memfd, salt), salt))
    }

    /// The store of a worker that died, before its backlogs are known.
    pub(super) fn reopen(fd: RawFd, salt: u32) -> std::io::Result<Self> {
        let store = Store::reopen(Memfd::reopen(fd), salt).map_err(std::io::Error::other)?;
        Ok(Self::over(store, salt))
    }

    fn over(store: Store<Memfd>, salt: u32) -> Self {
        Self {
            store,
            salt,
            backlogs: Vec::new(),
            shared: Vec::new(),
            buffer: Vec::new(),
            has_chores: false,
            released: 0,
            limit: u64::MAX,
            recounts: Recounts::default(),
        }
    }

    /// Its memory.
    pub(super) fn fd(&self) -> RawFd {
        self.store.medium().fd()
    }

    /// What its checksums begin with.
    pub(super) fn salt(&self) -> u32 {
        self.salt
    }

    /// Bytes of memory that it takes, extents included.
    pub(super) fn memory(&self) -> u64 {
        self.store.held()
    }

    /// Bytes of it that are in use.
    pub(super) fn used(&self) -> u64 {
        self.store.used()
    }

    /// Bytes of it that the next checkpoint sets free.
    pub(super) fn freed_by_commit(&self) -> u64 {
        self.store.freed_by_commit()
    }

    /// Refuses, from now on, to take more.
    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
        self.store.set_limit(limit);
    }

    /// Takes the place of the empty store: that of another process image, whose memfd has this number.
    pub(super) fn adopt(&mut self, number: RawFd, salt: u32) -> std::io::Result<()> {
        let fd = self.fd();
        descriptor::replace(number, fd)?;
        let limit = self.limit;
        *self = Self::reopen(fd, salt)?;
        self.set_limit(limit);
        Ok(())
    }

    /// Puts into this store, which is empty, what waits in that of another process image, which has an older layout.
    pub(super) fn rewrite(&mut self, stored: &Stored) -> Result<(), StoreError> {
        let mut old = Store::reopen_older(Memfd::reopen(stored.number), stored.salt, stored.layout)?;
        let mut known = Exported::default();
        let mut bytes = 0;
        for backlog in stored.backlogs.iter().filter(|backlog| !backlog.is_empty()) {
            let mut new = BacklogV1::empty(backlog.owner, backlog.start);
            for piece in old.export(backlog, backlog.start, &mut known)? {
                match piece {
                    PieceState::Inline(bytes) => self.store.append_inline(&mut new, &bytes)?,
                    // It stays where it is until all are written.
                    PieceState::Shared(body) => {
                        let end = body.as_ptr() as usize + body.len();
                        self.store.append_body(&mut new, end, &body)?;
                    }
                }
            }
            bytes += new.len();
            self.set(PeerId::from_u64(backlog.owner).index, Some(new));
        }
        self.store.flush()?;
        tracing::warn!(
            "{bytes} bytes of waiting output were rewritten from a store of layout {}",
            stored.layout
        );
        Ok(())
    }

    /// The backlogs as a checkpoint or an image has them. References are counted from now on, in steps.
    pub(super) fn restore(&mut self, backlogs: impl IntoIterator<Item = BacklogV1>) {
        // One that no store can have written costs its owner, to whom what waits cannot be sent.
        let is_sound = |backlog: &BacklogV1| {
            let is_sound = backlog.is_sound() && PeerId::from_u64(backlog.owner).index < MOST_PEERS;
            if !is_sound {
                tracing::error!("what is said to wait for peer {:#x} is nowhere", backlog.owner);
            }
            is_sound
        };
        // Of two records of one peer the first counts, here as in the broker.
        let mut seen = BTreeSet::new();
        let is_first = |backlog: &BacklogV1| seen.insert(PeerId::from_u64(backlog.owner).index);
        let backlogs: Vec<BacklogV1> = (backlogs.into_iter()).filter(is_sound).filter(is_first).collect();
        self.store.begin_rebuild(backlogs.iter().copied());
        for backlog in backlogs {
            let index = PeerId::from_u64(backlog.owner).index as usize;
            if index >= self.backlogs.len() {
                self.backlogs.resize(index + 1, None);
            }
            if let Some(place) = self.backlogs.get_mut(index) {
                *place = Some(backlog);
            }
        }
        self.has_chores = true;
    }

    /// All backlogs and extents of a store that another worker had are named.
    pub(super) fn end_naming(&mut self) {
        self.store.end_naming();
        self.has_chores = true;
    }

    // Extents

    /// An extent for so many bytes.
    pub(super) fn lend_extent(&mut self, len: usize) -> std::io::Result<ExtentPlace> {
        self.store.lend_extent(len).map_err(std::io::Error::other)
    }

    /// An extent that another worker was lent is held by this one. False: there can be no such extent.
    pub(super) fn hold_extent(&mut self, place: ExtentPlace) -> bool {
        self.store.hold_extent(place).is_ok()
    }

    /// Whether a backlog may refer to an extent.
    pub(super) fn is_shared(&mut self, place: ExtentPlace) -> bool {
        self.store.is_shared(place)
    }

    /// An extent is the store's again.
    pub(super) fn release_extent(&mut self, place: ExtentPlace) {
        if let Err(error) = self.store.release_extent(place) {
            tracing::error!("the store: {error}");
        }
    }

    // Checkpoints

    /// Every backlog that is not empty.
    pub(super) fn backlogs(&self) -> impl Iterator<Item = BacklogV1> {
        self.backlogs
            .iter()
            .flatten()
            .copied()
            .filter(|backlog| !backlog.is_empty())
    }

    /// The backlog of the peer with this index.
    pub(super) fn at(&self, index: u32) -> Option<BacklogV1> {
        self.backlogs.get(index as usize).copied().flatten()
    }

    /// A checkpoint begins.
    pub(super) fn begin_checkpoint(&mut self) {
        self.store.begin_checkpoint();
        self.shared = Vec::new();
    }

    /// A checkpoint is complete: what no backlog reaches any more is free. `extents` are those that this process holds.
    pub(super) fn committed(&mut self, extents: &ExtentPool) {
        self.store.committed();
        if self.store.has_lost_items() && self.recounts.is_time() {
            self.recount(extents);
        }
        self.shared = Vec::new();
        self.has_chores = true;
        self.released = 0;
    }

    /// Counts the references to everything once more, as after a death: somebody is gone for whom damaged bytes waited, and what
    /// lay behind them is not needed by anybody. The checkpoint that is just complete has every backlog as it is.
    fn recount(&mut self, extents: &ExtentPool) {
        let mut store = match Store::reopen(Memfd::reopen(self.fd()), self.salt) {
            Ok(store) => store,
            Err(error) => return tracing::error!("the store cannot be counted again: {error}"),
        };
        store.set_limit(self.limit);
        for place in extents.places() {
            // Held in the store as it was, so there is such an extent.
            let _ = store.hold_extent(place);
        }
        store.begin_rebuild(self.backlogs());
        store.end_naming();
        self.store = store;
    }

    /// Brings the backlog of the peer with this index up to date with its queue: what was sent goes, the tail is appended.
    ///
    /// What cannot be stored is told of, and stays in the queue and in the peer's own entry.
    pub(super) fn take_over(&mut self, broker: &mut Broker, extents: &ExtentPool, index: u32) {
        let known = self.at(index);
        let output = broker.output_at(index);
        if let Some(known) = known
            && output.is_none_or(|(id, _)| id.to_u64() != known.owner)
        {
            self.store.abandon(known);
            self.set(index, None);
        }
        let Some((id, queue)) = output else { return };
        let known = self.at(index);
        if known.is_none() && queue.is_tail_empty() {
            return;
        }
        let mut backlog = known.unwrap_or(BacklogV1::empty(id.to_u64(), queue.sent()));
        let advanced = self.store.advance(&mut backlog, queue.sent());
        // Even after an error: what was dropped must not be dropped once more.
        self.set(index, (!backlog.is_empty()).then_some(backlog));
        if let Err(error) = advanced {
            // It keeps memory until its owner goes. Whether that can still be sent anything, a read shows; a checkpoint
            // that was given up for it would cost everybody.
            return tracing::error!("{error}");
        }
        if queue.is_tail_empty() {
            return;
        }
        if backlog.is_empty() {
            backlog = BacklogV1::empty(id.to_u64(), queue.sent());
        }
        let before = backlog;
        if let Err(error) = append_tail(&mut self.store, extents, &mut self.shared, &mut backlog, queue) {
            // What cannot be stored stays where it is, and stands in the checkpoint itself: that one peer's part cannot be
            // written is nothing that others should pay for.
            if let Err(lost) = self.store.revert(&mut backlog, before) {
                tracing::error!("{lost}");
            }
            self.set(index, (!before.is_empty()).then_some(before));
            tracing::error!("what waits for peer {index} is not stored: {error}");
            return;
        }
        self.set(index, Some(backlog));
        broker.note_output_kept(index);
    }

    /// So many bytes of backlogs are not needed any more.
    pub(super) fn note_released(&mut self, bytes: u64) {
        self.released += bytes;
    }

    /// The peer is gone.
    pub(super) fn note_gone(&mut self, peer: PeerId) {
        if let Some(backlog) = self
            .at(peer.index)
            .filter(|backlog| backlog.owner == peer.to_u64())
        {
            self.released += backlog.len();
        }
    }

    /// Whether a checkpoint would free much.
    pub(super) fn wants_checkpoint(&self) -> bool {
        let needless = self.released.max(self.store.freed_by_commit());
        // A share of what is held, so that freeing costs little beside what it frees; but never so much that it takes long.
        needless >= (self.store.held() / 8).clamp(NEEDLESS, MOST_NEEDLESS)
    }

    fn set(&mut self, index: u32, backlog: Option<BacklogV1>) {
        let index = index as usize;
        if index >= self.backlogs.len() {
            if backlog.is_none() {
                return;
            }
            self.backlogs.resize(index + 1, None);
        }
        if let Some(place) = self.backlogs.get_mut(index) {
            *place = backlog;
        }
    }

    /// Writes everything that was appended.
    pub(super) fn flush(&mut self) -> Result<(), StoreError> {
        self.store.flush()
    }

    /// The bytes of a peer's stream from the absolute offset `at` on, at most `most`.
    pub(super) fn read(&mut self, index: u32, at: u64, most: u64) -> Result<&[u8], StoreError> {
        let Some(backlog) = self.at(index) else {
            return Ok(&[]);
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(WRITE);
        if self.buffer.len() < most {
            self.buffer.resize(most, 0);
        }
        let read = match self.buffer.get_mut(..most) {
            Some(room) => self.store.read(&backlog, at, room)?,
            None => 0,
        };
        Ok(self.buffer.get(..read).unwrap_or_default())
    }

    /// For an image that is to hold the output itself.
    pub(super) fn export(&mut self) -> Export<'_> {
        Export {
            store: &mut self.store,
            known: Exported::default(),
        }
    }

    /// All bytes that wait for a peer.
    #[cfg(any(test, feature = "test-hooks"))]
    pub(super) fn output_of(&mut self, peer: PeerId, queue: &SendQueue) -> Result<Vec<u8>, StoreError> {
        let mut all = Vec::new();
        while queue.sent() + (all.len() as u64) < queue.stored() {
            let at = queue.sent() + all.len() as u64;
            let read = self.read(peer.index, at, queue.stored() - at)?;
            if read.is_empty() {
                return Err(StoreError::Caller("nothing is stored there"));
            }
            all.extend_from_slice(read);
        }
        all.extend_from_slice(&queue.to_bytes());
        Ok(all)
    }

    /// What the store keeps to be used again goes back to the system, as work that is put off.
    pub(super) fn return_idle(&mut self) {
        self.buffer = Vec::new();
        self.store.return_idle();
        self.has_chores = true;
    }

    /// Whether the store has work that was put off.
    pub(super) fn has_chores(&self) -> bool {
        self.has_chores
    }

    /// Does some of it.
    pub(super) fn do_chores(&mut self) {
        match self.store.step(STEP) {
            Ok(has_more) => self.has_chores = has_more,
            Err(error) => {
                // Memory that is not given back: the next checkpoint tries again.
                tracing::error!("the store: {error}");
                self.has_chores = false;
            }
        }
        for damage in self.store.take_damaged() {
            tracing::error!("{damage}");
        }
    }
}

/// Reads backlogs for an image that is to hold them itself. Bodies that wait for several are read once.
pub(crate) struct Export<'a> {
    store: &'a mut Store<Memfd>,
    known: Exported,
}

impl Backlogs for Export<'_> {
    fn pieces(&mut self, backlog: &BacklogV1, from: u64, _: &[u64]) -> Result<Vec<PieceState>, String> {
        // A message with descriptors begins a record of its own.
        let exported = self.store.export(backlog, from, &mut self.known);
        exported.map_err(|error| error.to_string())
    }
}

fn append_tail(
    store: &mut Store<Memfd>,
    extents: &ExtentPool,
    shared: &mut Vec<Bytes>,
    backlog: &mut BacklogV1,
    queue: &SendQueue,
) -> Result<(), StoreError> {
    /// Shared bytes below this length were meant for one peer, or are hardly longer than what refers to them.
    const SHARED: usize = 64;
    for piece in queue.tail() {
        match piece {
            TailPiece::Shared { bytes, sent } if bytes.len() >= SHARED => {
                let end = bytes.as_ptr() as usize + bytes.len();
                let rest = bytes.get(sent..).unwrap_or_default();
                // A short rest is copied: it is not to keep a whole extent.
                let range = (rest.len() > LARGEST_BLOCK)
                    .then(|| extents.locate(rest))
                    .flatten();
                if let Some(range) = range {
                    store.append_extent(backlog, range.place(), range.start as u32, range.len as u32)?;
                    continue;
                }
                let known = store.shared_bodies();
                let appended = store.append_body(backlog, end, rest);
                if store.shared_bodies() != known {
                    shared.push(bytes.clone());
                }
                appended?;
            }
            TailPiece::Shared { bytes, sent } => {
                store.append_inline(backlog, bytes.get(sent..).unwrap_or_default())?;
            }
            TailPiece::Inline(bytes) => store.append_inline(backlog, bytes)?,
        }
    }
    Ok(())
}
