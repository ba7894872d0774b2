//! For tests: a journal without sockets, and damage to its memory.
#![cfg_attr(not(test), allow(dead_code, reason = "used by tests and by the fuzz target"))]

use bytes::Bytes;

use super::Journal;
use super::header::HEADER_LEN;
#[cfg(test)]
use super::header::{Commit, Header};
use super::log::Fields;
use super::record::Kind;
use super::replay::Remains;
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
            1 => ("table", choose(128 * 80)),
            2 => ("arena", super::checkpoint::ARENA as usize + choose(64 << 10)),
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

    /// The same at a place of the caller's choice.
    pub(crate) fn flip(&self, region: u8, offset: usize, bits: u8) -> Flip {
        let (what, offset) = match region % 4 {
            0 => ("header", offset % HEADER_LEN),
            1 => ("table", offset % (128 * 80)),
            2 => ("arena", super::checkpoint::ARENA as usize + offset % (64 << 10)),
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
    pub(crate) fn cut(&self, is_log: bool, at: usize) -> Vec<u8> {
        let rest = self.rest(is_log, at);
        let old = rest.to_vec();
        rest.fill(0);
        old
    }

    /// Where the bodies of checkpoints begin.
    #[cfg(test)]
    pub(crate) fn arena_start(&self) -> usize {
        super::checkpoint::ARENA as usize
    }

    /// Undoes the cut.
    #[cfg(test)]
    pub(crate) fn mend(&self, is_log: bool, at: usize, old: &[u8]) {
        self.rest(is_log, at).copy_from_slice(old);
    }

    #[cfg(test)]
    #[expect(unsafe_code, reason = "a view of mapped memory")]
    fn rest(&self, is_log: bool, at: usize) -> &'static mut [u8] {
        let (region, len) = if is_log {
            (self.log, HEADER_LEN + (1 << 20))
        } else {
            (self.checkpoints, super::checkpoint::ARENA as usize + (64 << 10))
        };
        let at = at.min(len);
        // SAFETY: in the mapping; the test looks at nothing of it meanwhile.
        unsafe { std::slice::from_raw_parts_mut(region.at(at, len - at), len - at) }
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
        let region = if matches!(flip.what, "header" | "log") {
            self.log
        } else {
            self.checkpoints
        };
        // SAFETY: in the mapping; the test looks at nothing of it meanwhile.
        unsafe { *region.at(flip.offset, 1) ^= flip.bit };
    }
}
