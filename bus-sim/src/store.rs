//! The store of what waits for slow readers, simulated: bytes by peer and absolute offset, and what the broker in use
//! has in it.

use std::collections::BTreeMap;

use bus_daemon::broker::{Broker, PeerId};
use bus_daemon::handoff::stored::BacklogV1;
use bus_wire::{SendQueue, TailPiece};
use bytes::Bytes;

use crate::model::{Check, wrong};
use crate::random::Random;

/// What was written, by the absolute offsets that pieces begin at. No piece goes across another.
type Pieces = BTreeMap<u64, Bytes>;

/// The store, and the backlogs of the peers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Store {
    /// In so many of a hundred cases the tail of a changed peer's queue is moved here.
    pub(crate) chance: u32,
    /// It outlives who wrote it.
    written: BTreeMap<PeerId, Pieces>,
    /// By index; they go with the broker in use.
    backlogs: BTreeMap<u32, BacklogV1>,
    /// How many bytes were written for a checkpoint that was never complete.
    pub(crate) forgotten: u64,
}

impl Store {
    /// Brings the backlog of the peer with this index up to date with its queue: what was sent goes, and, if it comes to
    /// that, the tail is appended.
    pub(crate) fn take_over(&mut self, broker: &mut Broker, index: u32, random: &mut Random) -> Check {
        let output = broker.output_at(index);
        let known = self.backlogs.remove(&index);
        let Some((id, queue)) = output else { return Ok(()) };
        let (sent, stored) = (queue.sent(), queue.stored());
        let known = known.filter(|known| known.owner() == id.to_u64());
        let (mut start, mut end) = known.map_or((sent, sent), |known| (known.start().max(sent), known.end()));
        if start >= end {
            (start, end) = (sent, sent);
        }
        if end != stored {
            return wrong(format!(
                "of the output of {id:?}, {end} is the end of what is stored, and not {stored}"
            ));
        }
        if !queue.is_tail_empty() && random.percent(self.chance) {
            self.append(id, queue);
            end = queue.end();
            broker.note_output_kept(index);
        }
        if start < end {
            let backlog = BacklogV1::without_pages(id.to_u64(), start, end);
            self.backlogs.insert(index, backlog);
        }
        Ok(())
    }

    fn append(&mut self, id: PeerId, queue: &SendQueue) {
        let pieces = self.written.entry(id).or_default();
        let mut at = queue.stored();
        for piece in queue.tail() {
            let bytes = match piece {
                TailPiece::Inline(bytes) => Bytes::copy_from_slice(bytes),
                TailPiece::Shared { bytes, sent } => bytes.slice(sent..),
            };
            let length = bytes.len() as u64;
            if length > 0 {
                pieces.insert(at, bytes);
            }
            at += length;
        }
    }

    /// A checkpoint is complete: what no backlog reaches any more is free.
    pub(crate) fn committed(&mut self) {
        let backlogs = &self.backlogs;
        self.written.retain(|id, pieces| {
            let backlog = backlogs
                .get(&id.index)
                .filter(|backlog| backlog.owner() == id.to_u64());
            backlog.is_some_and(|backlog| {
                pieces.retain(|at, bytes| at + bytes.len() as u64 > backlog.start());
                true
            })
        });
    }

    /// The backlogs as a checkpoint or an image has them. What was written behind them was for a checkpoint that is not to
    /// be: it is forgotten.
    pub(crate) fn restore(&mut self, backlogs: impl Iterator<Item = BacklogV1>) {
        self.backlogs = backlogs
            .map(|backlog| (PeerId::from_u64(backlog.owner()).index, backlog))
            .collect();
        let (backlogs, forgotten) = (&self.backlogs, &mut self.forgotten);
        self.written.retain(|id, pieces| {
            let backlog = backlogs
                .get(&id.index)
                .filter(|backlog| backlog.owner() == id.to_u64());
            let end = backlog.map_or(0, BacklogV1::end);
            let behind = pieces.split_off(&end);
            *forgotten += behind.values().map(|bytes| bytes.len() as u64).sum::<u64>();
            if let Some(mut last) = pieces.last_entry() {
                let length = end - *last.key();
                if length < last.get().len() as u64 {
                    last.get_mut().truncate(length as usize);
                }
            }
            backlog.is_some()
        });
    }

    /// Every backlog that is not empty.
    pub(crate) fn backlogs(&self) -> impl Iterator<Item = BacklogV1> {
        self.backlogs.values().copied()
    }

    /// The backlog of the peer with this index.
    pub(crate) fn backlog_at(&self, index: u32) -> Option<BacklogV1> {
        self.backlogs.get(&index).copied()
    }

    /// So many bytes of a peer's stream from the absolute offset `at` on.
    pub(crate) fn read(&self, id: PeerId, mut at: u64, count: u64) -> Check<Vec<u8>> {
        let end = at + count;
        let mut all = Vec::with_capacity(count as usize);
        while at < end {
            let pieces = self.written.get(&id);
            let piece = pieces.and_then(|pieces| pieces.range(..=at).next_back());
            let rest = piece.and_then(|(begin, bytes)| bytes.get((at - begin) as usize..));
            let Some(rest) = rest.filter(|rest| !rest.is_empty()) else {
                return wrong(format!("what waits for {id:?} from {at} on is not stored"));
            };
            let count = (rest.len() as u64).min(end - at);
            all.extend_from_slice(&rest[..count as usize]);
            at += count;
        }
        Ok(all)
    }

    /// All bytes that wait for a peer, wherever they are kept.
    pub(crate) fn output_of(&self, id: PeerId, queue: &SendQueue) -> Check<Vec<u8>> {
        let mut all = self.read(id, queue.sent(), queue.stored() - queue.sent())?;
        all.extend_from_slice(&queue.to_bytes());
        Ok(all)
    }
}
