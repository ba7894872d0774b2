//! The first pages of the journal's memory: where the log ends, and the in-flight slot of the system call under way.
//!
//! A SIGKILL takes effect when a system call returns, so bytes may have moved before user code could note it. But
//! `recvmmsg` and `sendmmsg` make the *kernel* write the count of bytes (`msg_len`) and the received descriptors into
//! the caller's memory. That memory is here, shared with the keeper and locked, so what moved is known exactly.

#![allow(unsafe_code, reason = "gives out references into mapped memory")]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence};

use super::log::{Position, SEGMENTS};
use crate::os::build;
use crate::os::region::Region;

/// Descriptors that one message to or from the kernel may carry (`SCM_MAX_FD`).
pub(crate) const MAX_FDS: usize = 253;

/// Bytes of control data for [`MAX_FDS`] descriptors: `CMSG_SPACE(4 * 253)`.
pub(crate) const CONTROL: usize = 16 + 4 * MAX_FDS + 4;

/// What the system call under way does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum InFlight {
    /// None is under way, or its result is in the log.
    Nothing = 0,
    /// Receives into the log, behind the record header at the log's end.
    Receive = 1,
    /// Receives into the extent of a large message.
    ReceiveLarge = 2,
    /// Sends from the head of a send queue.
    Send = 3,
}

/// One system call that moves bytes, as the kernel and a recovering process see it.
#[repr(C)]
pub(crate) struct Slot {
    /// An [`InFlight`].
    armed: AtomicU32,
    /// The link's [`PeerId`](crate::broker::PeerId) as a number.
    pub(crate) peer: AtomicU64,
    /// The number that the record of this call gets.
    pub(crate) sequence: AtomicU64,
    /// Absolute offset in the link's stream of the first byte.
    pub(crate) offset: AtomicU64,
    /// `ReceiveLarge`: offset of the extent in the store.
    pub(crate) extent: AtomicU64,
    /// `ReceiveLarge`: bytes of the message that had arrived before.
    pub(crate) filled: AtomicU64,
    /// `ReceiveLarge`: size class of the extent.
    pub(crate) class: AtomicU32,
    /// The kernel writes `msg_len`, `msg_controllen` and `msg_flags` here.
    pub(crate) message: libc::mmsghdr,
    /// Where received bytes go.
    pub(crate) iov: libc::iovec,
    /// Descriptors, in and out.
    pub(crate) control: ControlBuffer,
}

/// Aligned as `cmsghdr` wants it.
#[repr(C, align(8))]
pub(crate) struct ControlBuffer(pub(crate) [u8; CONTROL]);

impl Slot {
    /// Announces a call; the other fields are written.
    pub(crate) fn arm(&mut self, what: InFlight) {
        self.message.msg_len = 0;
        compiler_fence(Ordering::SeqCst);
        self.armed.store(what as u32, Ordering::Release);
    }

    /// What was under way.
    pub(crate) fn armed(&self) -> InFlight {
        match self.armed.load(Ordering::Acquire) {
            1 => InFlight::Receive,
            2 => InFlight::ReceiveLarge,
            3 => InFlight::Send,
            _ => InFlight::Nothing,
        }
    }

    /// Whether the kernel had to drop descriptors that came with the bytes, for want of room in the descriptor table.
    pub(crate) fn has_lost_fds(&self) -> bool {
        self.message.msg_hdr.msg_flags & libc::MSG_CTRUNC != 0
    }

    /// Its result is in the log.
    pub(crate) fn disarm(&self) {
        self.armed.store(InFlight::Nothing as u32, Ordering::Release);
    }
}

/// The journal's first pages.
#[repr(C)]
pub(crate) struct Header {
    /// Begins every checksum of a record: what a client sent, left in the memory of an old segment, is never taken for
    /// one.
    pub(crate) salt: AtomicU32,
    /// Begins every checksum of the store.
    pub(crate) store_salt: AtomicU32,
    /// Number of records in the log: the next one's sequence number.
    pub(crate) records: AtomicU64,
    /// 1 from the moment the worker is about to do its first I/O on a link.
    pub(crate) serving: AtomicU32,
    /// The number of the event being applied, plus 1; 0 between events.
    pub(crate) applying: AtomicU64,
    /// 1 while that event is input of a peer: only such a unit can be guilty of a death.
    pub(crate) is_input: AtomicU32,
    /// The number of the newest event, plus 1. Answers of the system have numbers too, and are no events.
    pub(crate) newest_event: AtomicU64,
    /// Epoch of the newest complete checkpoint; 0 = none. It is described in `commits[epoch % 2]`.
    pub(crate) committed: AtomicU64,
    /// The last two checkpoints, of which one may be in the making.
    pub(crate) commits: [Commit; 2],
    /// For each segment of the log, the number of its first record. Here, so that looking for one touches no page of the
    /// others.
    pub(crate) begins: [AtomicU64; SEGMENTS],
    /// The call under way.
    pub(crate) slot: Slot,
}

/// Where a checkpoint stands in the order of events.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Commit {
    /// Grows by one with each checkpoint.
    pub(crate) epoch: u64,
    /// The number of the first event that is not part of it.
    pub(crate) sequence: u64,
    /// Where that event's record is, or would be.
    pub(crate) segment: u32,
    /// In that segment.
    pub(crate) offset: u32,
    /// Entries of each of the checkpoint's tables that are in use.
    pub(crate) entries: [u64; 4],
    /// Where the checkpoint's arena ends.
    pub(crate) arena_end: u64,
    /// Of all entries, as [`checkpoint`](super::checkpoint) makes it.
    pub(crate) digest: u64,
    /// CRC-32C of the fields above.
    pub(crate) crc: u32,
    /// Zero.
    pub(crate) reserved: u32,
}

impl Commit {
    /// The checksum that belongs into `crc`.
    pub(crate) fn checksum(&self) -> u32 {
        [
            self.epoch,
            self.sequence,
            u64::from(self.segment) << 32 | u64::from(self.offset),
            self.arena_end,
            self.digest,
        ]
        .iter()
        .chain(&self.entries)
        .fold(build::id(), |crc, field| {
            crc32c::crc32c_append(crc, &field.to_ne_bytes())
        })
    }

    /// The place in the log.
    pub(crate) fn position(&self) -> Position {
        Position {
            sequence: self.sequence,
            segment: self.segment,
            offset: self.offset,
        }
    }
}

/// Bytes of shared memory before the first segment.
pub(crate) const HEADER_LEN: usize = 4096;
const _: () = assert!(size_of::<Header>() <= HEADER_LEN);

impl Header {
    /// The newest complete checkpoint, if its description is whole.
    pub(crate) fn newest_checkpoint(&self) -> Option<Commit> {
        let epoch = self.committed.load(Ordering::Acquire);
        let commit = self.commits[(epoch % 2) as usize];
        (epoch > 0 && commit.epoch == epoch && commit.crc == commit.checksum()).then_some(commit)
    }

    /// What the checksums of records begin with: what another build has written is nowhere taken for whole.
    pub(crate) fn salt(&self) -> u32 {
        self.salt.load(Ordering::Relaxed) ^ build::id()
    }

    /// Makes a checkpoint the newest: all of it is written.
    pub(crate) fn commit(&mut self, mut commit: Commit) {
        commit.crc = commit.checksum();
        self.commits[(commit.epoch % 2) as usize] = commit;
        compiler_fence(Ordering::SeqCst);
        self.committed.store(commit.epoch, Ordering::Release);
    }

    /// The header of a region that holds a journal.
    ///
    /// # Safety
    /// No other reference made by this function may be in use in this process.
    pub(crate) unsafe fn of(region: &Region) -> &'static mut Self {
        // SAFETY: in range, page aligned, any bit pattern is a value of its fields, mapped for the life of the
        // process; the caller vouches for uniqueness.
        unsafe { &mut *region.at(0, HEADER_LEN).cast::<Self>() }
    }
}
