//! For tests: a journal without sockets, and damage to its memory.
#![cfg_attr(
    not(test),
    allow(dead_code, reason = "used by tests, by the fuzz target and by benchmarks")
)]

use bytes::Bytes;

use super::Journal;
use super::header::HEADER_LEN;
#[cfg(test)]
use super::header::{Commit, Header};
use super::record::{Fields, Kind};
use super::replay::Remains;
use super::store::{Medium, Memfd};
use crate::broker::PeerId;

impl Journal {
    /// As if these bytes had been received.
    #[expect(unsafe_code, reason = "writes into the log's room")]
    pub(crate) fn pretend_received(&mut self, peer: PeerId, taken: u64, bytes: &[u8]) -> Bytes {
        let room = self.log.room();
        let len = bytes.len().min(room.len);
        // SAFETY: room for that many bytes, which nobody looks at.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), room.start, len) };
        let fields = Fields::new(peer.to_u64(), taken + len as u64);
        self.log.finish_read(fields, len, &[])
    }

    /// Reads from a link as [`receive`](Self::receive) does, and leaves it at that: the process dies when the system call
    /// returns. `lost_fds`: as if the kernel had dropped descriptors that came with the bytes.
    #[cfg(test)]
    pub(crate) fn die_receiving(
        &mut self,
        socket: std::os::fd::RawFd,
        peer: PeerId,
        taken: u64,
        lost_fds: bool,
    ) {
        self.arm_receive(taken);
        let read = self.call_receive(socket, peer, super::header::InFlight::Receive);
        assert!(read.unwrap().unwrap().0 > 0);
        if lost_fds {
            self.header.slot.message.msg_hdr.msg_flags |= libc::MSG_CTRUNC;
        }
    }

    /// As if these bytes had been received, and the descriptors that came with them had been dropped.
    #[cfg(test)]
    pub(crate) fn pretend_received_without_fds(&mut self, peer: PeerId, taken: u64, len: usize) {
        self.log.room();
        let fields = Fields {
            lost_fds: true,
            ..Fields::new(peer.to_u64(), taken + len as u64)
        };
        self.log.finish_read(fields, len, &[]);
    }

    /// Whether there is to be no room for checkpoints.
    #[cfg(test)]
    pub(crate) fn pretend_full(&mut self, is_full: bool) {
        self.checkpoints.is_full = is_full;
    }

    /// As if something had happened that does not fit into the log.
    #[cfg(test)]
    pub(crate) fn pretend_incomplete(&mut self) {
        self.log.demand_checkpoint();
    }

    /// As if a socket had taken all bytes up to this absolute offset.
    pub(crate) fn pretend_sent(&mut self, peer: PeerId, upto: u64) {
        self.log.append(Kind::Sent, Fields::new(peer.to_u64(), upto), &[]);
    }
}

impl Flip {
    /// Whether it is in the store.
    pub(crate) fn is_in_store(&self) -> bool {
        self.what == "store"
    }
}

impl Remains {
    /// How many records a replay would read.
    pub(crate) fn since_checkpoint(&self) -> u64 {
        let checkpoint = self.header.newest_checkpoint();
        self.records() - checkpoint.map_or(0, |checkpoint| checkpoint.sequence)
    }
}

/// One bit that was flipped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flip {
    what: &'static str,
    offset: usize,
    bit: u8,
}

impl Remains {
    /// Flips a bit in the header, in the first segments of the log, or in the part of the checkpoint that is used.
    /// `choose(limit)` gives a number below `limit`.
    pub(crate) fn flip_a_bit(&self, mut choose: impl FnMut(usize) -> usize) -> Flip {
        let (what, offset) = match choose(4) {
            0 => ("header", choose(HEADER_LEN)),
            1 => ("table", self.table_byte(choose(4), choose(128 * 80))),
            2 => ("arena", self.arena_start() + choose(64 << 10)),
            _ => ("log", HEADER_LEN + choose(1 << 20)),
        };
        let flip = Flip {
            what,
            offset,
            bit: 1 << choose(8),
        };
        self.undo(&flip);
        flip
    }

    /// The same at a place of the caller's choice, which may be in the store too.
    pub(crate) fn flip(&self, region: u8, offset: usize, bits: u8) -> Flip {
        let (what, offset) = match region % 4 {
            _ if region >= 192 => (
                "store",
                offset
                    % Memfd::reopen(self.store)
                        .len()
                        .map_or(1, |len| len.max(1) as usize),
            ),
            0 => ("header", offset % HEADER_LEN),
            1 => ("table", self.table_byte(offset % 4, offset / 4 % (128 * 80))),
            2 => ("arena", self.arena_start() + offset % (64 << 10)),
            _ => ("log", HEADER_LEN + offset % (1 << 20)),
        };
        let flip = Flip {
            what,
            offset,
            bit: bits,
        };
        self.undo(&flip);
        flip
    }

    /// Cuts the log, or else the checkpoints, off at a byte: what comes after is zero. Returns what was there.
    #[cfg(test)]
    pub(crate) fn cut(&self, is_log: bool, at: usize) -> Vec<Vec<u8>> {
        let cut = |rest: &'static mut [u8]| {
            let old = rest.to_vec();
            rest.fill(0);
            old
        };
        self.rest(is_log, at).into_iter().map(cut).collect()
    }

    /// Undoes the cut.
    #[cfg(test)]
    pub(crate) fn mend(&self, is_log: bool, at: usize, old: &[Vec<u8>]) {
        for (rest, old) in self.rest(is_log, at).into_iter().zip(old) {
            rest.copy_from_slice(old);
        }
    }

    /// Where a byte of one of the tables of entries is.
    pub(crate) fn table_byte(&self, table: usize, byte: usize) -> usize {
        super::checkpoint::table_start(&self.checkpoints, table) + byte
    }

    /// Where the bodies of checkpoints begin.
    pub(crate) fn arena_start(&self) -> usize {
        super::checkpoint::table_start(&self.checkpoints, 4)
    }

    /// What comes after a byte, as far as the tests use it.
    #[cfg(test)]
    #[expect(unsafe_code, reason = "a view of mapped memory")]
    fn rest(&self, is_log: bool, at: usize) -> Vec<&'static mut [u8]> {
        let (region, parts) = if is_log {
            (self.log, vec![(0, HEADER_LEN + (1 << 20))])
        } else {
            let table = |table| (self.table_byte(table, 0), 4096 * 80);
            let arena = (self.arena_start(), 64 << 10);
            (
                self.checkpoints,
                vec![table(0), table(1), table(2), table(3), arena],
            )
        };
        let mut rest = Vec::new();
        for (start, len) in parts {
            let end = start + len;
            let start = at.clamp(start, end);
            // SAFETY: in the mapping, and no other part; the test looks at nothing of it meanwhile.
            rest.push(unsafe { std::slice::from_raw_parts_mut(region.at(start, end - start), end - start) });
        }
        rest
    }

    /// As if another build had written it. Done twice, it is as before.
    #[cfg(test)]
    #[expect(unsafe_code, reason = "writes into mapped memory")]
    pub(crate) fn change_build(&self) {
        use std::mem::offset_of;
        let change = |offset: usize| {
            // SAFETY: fields of the header, which nothing refers to now.
            unsafe { *self.log.at(offset, 4).cast::<u32>() ^= 0x5a5a_5a5a };
        };
        change(offset_of!(Header, salt));
        for index in 0..2 {
            change(offset_of!(Header, commits) + index * size_of::<Commit>() + offset_of!(Commit, crc));
        }
    }

    /// Flips it back.
    #[expect(unsafe_code, reason = "writes into mapped memory")]
    pub(crate) fn undo(&self, flip: &Flip) {
        if flip.what == "store" {
            let (store, at, mut byte) = (Memfd::reopen(self.store), flip.offset as u64, [0]);
            if store.pread(at, &mut byte).is_ok() {
                let written = store.pwrite(at, &[byte[0] ^ flip.bit]);
                debug_assert!(written.is_ok(), "{written:?}");
            }
            return;
        }
        let region = if matches!(flip.what, "header" | "log") {
            self.log
        } else {
            self.checkpoints
        };
        // SAFETY: in the mapping; the test looks at nothing of it meanwhile.
        unsafe { *region.at(flip.offset, 1) ^= flip.bit };
    }
}
