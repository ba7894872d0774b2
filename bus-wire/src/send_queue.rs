//! A byte stream out of messages.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
#[cfg(feature = "std")]
use std::io::IoSlice;

use bytes::Bytes;

use crate::fd::{Fd, Fds};

/// A shared piece shorter than this is copied: a slice of its own costs the system more than the copy.
const MIN_SHARED: usize = 1024;
/// A buffer of copied bytes does not grow beyond this, so that what was sent is freed before all is.
const MAX_BUFFER: usize = 64 * 1024;

/// The bytes that one connection is still to be sent, with the file descriptors that go with them.
///
/// Positions are absolute: they count from the first byte ever sent on the connection. Small pieces lie in one buffer
/// one after the other, large ones are shared with all queues they are in. An empty queue holds no memory to speak of.
///
/// ```text
///    sent              stored                end
///     |--- kept elsewhere |--- the tail: here ---|
/// ```
/// What waits for long can be moved to somebody else's store ([`set_stored`](Self::set_stored)): the queue then knows
/// positions only, and the bytes from `sent` to `stored` are read from there.
#[derive(Debug, Clone, Default)]
pub struct SendQueue {
    /// The tail: from `stored`, or `sent` if that is further, to `end`.
    pieces: VecDeque<Piece>,
    /// How much of the first piece was sent.
    head: usize,
    sent: u64,
    stored: u64,
    end: u64,
    /// Before which byte file descriptors go, in order. That byte is the first of its piece.
    fds: VecDeque<(u64, Fds)>,
    fd_count: usize,
}

#[derive(Debug, Clone)]
enum Piece {
    Buffer(Vec<u8>),
    Shared(Bytes),
}

/// Bytes of the [tail](SendQueue::tail) of a queue.
#[derive(Debug, Clone, Copy)]
pub enum TailPiece<'a> {
    /// Of this queue alone.
    Inline(&'a [u8]),
    /// Perhaps of other queues too: then the same memory.
    Shared {
        /// All of them.
        bytes: &'a Bytes,
        /// How many of the first ones were sent.
        sent: usize,
    },
}

/// What a [`SendQueue`] holds, to be saved.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SendQueueState {
    /// Absolute position of the first byte that was not sent.
    pub sent: u64,
    /// Absolute position up to which the bytes are kept elsewhere; what is not beyond `sent` says that none are.
    pub stored: u64,
    /// The bytes from there on.
    pub pieces: Vec<PieceState>,
    /// At which absolute position file descriptors go, and which.
    pub fds: Vec<(u64, Vec<Fd>)>,
}

/// Bytes of a [`SendQueueState`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum PieceState {
    /// Of this queue alone.
    Inline(Vec<u8>),
    /// Perhaps of other queues too: then the same memory.
    Shared(Bytes),
}

impl SendQueue {
    /// At the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// As it was when it was saved. Positions of file descriptors that make no sense are moved to the nearest that do.
    pub fn restore(state: SendQueueState) -> Self {
        let stored = state.stored.max(state.sent);
        let mut queue = Self {
            sent: state.sent,
            stored,
            end: stored,
            ..Self::default()
        };
        let mut fds = state.fds;
        fds.sort_by_key(|(at, _)| *at);
        let mut fds = fds.into_iter().peekable();
        while let Some((at, fds)) = fds.next_if(|(at, _)| *at < stored) {
            queue.fd_count += fds.len();
            let at = at.max(state.sent);
            match queue.fds.back_mut() {
                // No write is empty, so all that begin at one place are one.
                Some((last, waiting)) if *last == at => waiting.extend(fds),
                _ => queue.fds.push_back((at, fds.into())),
            }
        }
        for piece in state.pieces {
            let mut bytes = match piece {
                PieceState::Inline(bytes) => Bytes::from(bytes),
                PieceState::Shared(bytes) => bytes,
            };
            while !bytes.is_empty() {
                while let Some((_, fds)) = fds.next_if(|(at, _)| *at <= queue.end) {
                    queue.begin_fds(fds.into());
                }
                let until = fds.peek().map_or(u64::MAX, |(at, _)| at - queue.end);
                queue.push_shared(
                    bytes.split_to(usize::try_from(until).unwrap_or(usize::MAX).min(bytes.len())),
                );
            }
        }
        for (_, fds) in fds {
            queue.begin_fds(fds.into());
        }
        queue
    }

    /// To be continued by [`restore`](Self::restore).
    pub fn save(&self) -> SendQueueState {
        let pieces = self.pieces.iter().enumerate().map(|(index, piece)| {
            let skip = if index == 0 { self.head } else { 0 };
            match piece {
                Piece::Buffer(bytes) => PieceState::Inline(bytes[skip..].to_vec()),
                Piece::Shared(bytes) => PieceState::Shared(bytes.slice(skip..)),
            }
        });
        SendQueueState {
            sent: self.sent,
            stored: self.stored.max(self.sent),
            pieces: pieces.collect(),
            fds: self.fds.iter().map(|(at, fds)| (*at, fds.to_vec())).collect(),
        }
    }

    /// Queues a copy of these bytes.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let begins_write = self.begins_write();
        self.end += bytes.len() as u64;
        if let Some(Piece::Buffer(buffer)) = self.pieces.back_mut()
            && !begins_write
            && buffer.len() + bytes.len() <= MAX_BUFFER
        {
            buffer.extend_from_slice(bytes);
        } else {
            self.pieces.push_back(Piece::Buffer(bytes.to_vec()));
        }
    }

    /// Queues these bytes without a copy, unless they are few.
    pub fn push_shared(&mut self, bytes: Bytes) {
        if bytes.len() < MIN_SHARED {
            return self.push(&bytes);
        }
        self.end += bytes.len() as u64;
        self.pieces.push_back(Piece::Shared(bytes));
    }

    /// Queues these bytes without a copy, however few they are: they are to wait in many queues for long.
    pub fn push_kept(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.end += bytes.len() as u64;
            self.pieces.push_back(Piece::Shared(bytes));
        }
    }

    /// These file descriptors go with the next byte queued, which begins a write of its own: the receiver must not find
    /// them with another message's bytes.
    pub fn begin_fds(&mut self, fds: Fds) {
        if fds.is_empty() {
            return;
        }
        self.fd_count += fds.len();
        match self.fds.back_mut() {
            Some((at, waiting)) if *at == self.end => waiting.extend(fds),
            _ => self.fds.push_back((self.end, fds)),
        }
    }

    /// The bytes of the tail, in order. Of the first piece a part may have been sent: how much, and the rest of them.
    pub fn tail(&self) -> impl Iterator<Item = TailPiece<'_>> {
        let mut head = self.head;
        self.pieces.iter().map(move |piece| {
            let sent = core::mem::take(&mut head);
            match piece {
                Piece::Buffer(bytes) => TailPiece::Inline(&bytes[sent..]),
                Piece::Shared(bytes) => TailPiece::Shared { bytes, sent },
            }
        })
    }

    /// Whether the tail is empty: whatever waits is kept elsewhere.
    pub fn is_tail_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The whole [`tail`](Self::tail) is kept elsewhere from now on.
    pub fn set_stored(&mut self) {
        self.stored = self.end;
        self.pieces = VecDeque::new();
        self.head = 0;
    }

    /// Absolute position up to which bytes that were not sent are kept elsewhere; that of the first byte that was not sent,
    /// if none are.
    pub fn stored(&self) -> u64 {
        self.stored.max(self.sent)
    }

    /// The next write, where what comes next is kept elsewhere: how many bytes of it at most, and the file descriptors that
    /// go with the first. `None`: it is not, and [`next_write`](Self::next_write) has them.
    pub fn next_stored_write(&self) -> Option<(u64, &[Fd])> {
        if self.stored <= self.sent {
            return None;
        }
        let (fds, limit) = self.next_fds();
        Some((limit.min(self.stored) - self.sent, fds))
    }

    /// How many file descriptors go with the next byte.
    #[inline]
    pub fn next_fd_count(&self) -> usize {
        if self.fds.is_empty() {
            0
        } else {
            self.next_fds().0.len()
        }
    }

    /// The file descriptors that go with the next byte, and the position of the next ones, or else the end.
    fn next_fds(&self) -> (&[Fd], u64) {
        let mut limits = self.fds.iter();
        let mut limit = limits.next();
        let mut fds: &[Fd] = &[];
        if let Some((at, first)) = limit
            && *at == self.sent
        {
            fds = first;
            limit = limits.next();
        }
        (fds, limit.map_or(self.end, |(at, _)| *at))
    }

    /// Whether no byte is queued.
    pub fn is_empty(&self) -> bool {
        self.sent == self.end
    }

    /// How many bytes are queued.
    pub fn len(&self) -> u64 {
        self.end - self.sent
    }

    /// A copy of the bytes of the tail.
    pub fn to_bytes(&self) -> Bytes {
        let mut skip = self.head;
        let slices = self.pieces.iter().map(|piece| {
            let slice = &piece.as_slice()[skip..];
            skip = 0;
            slice
        });
        slices.flatten().copied().collect()
    }

    /// How many file descriptors are queued.
    pub fn queued_fds(&self) -> usize {
        self.fd_count
    }

    /// The file descriptors that are queued, in order.
    pub fn fds(&self) -> impl Iterator<Item = Fd> {
        self.fds.iter().flat_map(|(_, fds)| fds.iter().copied())
    }

    /// Before which absolute positions file descriptors go, in order.
    pub fn fd_positions(&self) -> impl Iterator<Item = u64> {
        self.fds.iter().map(|(at, _)| *at)
    }

    /// Absolute position of the first byte that was not sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Absolute position after the last byte queued.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Adds to `iov` the slices of one write, at most `max_iov`, and returns the file descriptors that go with its first
    /// byte. The write ends before the next byte that has file descriptors of its own. There are none while bytes that come
    /// first are kept elsewhere: see [`next_stored_write`](Self::next_stored_write).
    #[cfg(feature = "std")]
    pub fn next_write<'a>(&'a self, iov: &mut impl Extend<IoSlice<'a>>, max_iov: usize) -> &'a [Fd] {
        let (slices, fds) = self.slices(max_iov);
        iov.extend(slices.map(IoSlice::new));
        fds
    }

    /// As [`next_write`](Self::next_write), for who writes without an operating system.
    pub fn next_slices<'a>(&'a self, slices: &mut impl Extend<&'a [u8]>, max: usize) -> &'a [Fd] {
        let (next, fds) = self.slices(max);
        slices.extend(next);
        fds
    }

    #[inline]
    fn slices(&self, max: usize) -> (impl Iterator<Item = &[u8]>, &[Fd]) {
        let is_here = self.stored <= self.sent;
        let (fds, limit) = if is_here { self.next_fds() } else { (&[][..], 0) };
        let mut at = self.sent;
        let mut skip = self.head;
        let slices = self.pieces.iter().take(max).map_while(move |piece| {
            let slice = &piece.as_slice()[skip..];
            skip = 0;
            // Pieces do not go across the limit.
            (is_here && at < limit).then(|| {
                at += slice.len() as u64;
                slice
            })
        });
        (slices, fds)
    }

    /// The next `n` bytes were sent (not more than are queued). Returns the file descriptors that went with them, and so
    /// are to be closed.
    pub fn advance(&mut self, n: u64) -> Fds {
        debug_assert!(n <= self.len(), "more was sent than queued");
        let elsewhere = self.stored.saturating_sub(self.sent);
        self.sent += n.min(self.len());
        let mut gone = Fds::new();
        while let Some((_, fds)) = self.fds.front().filter(|(at, _)| *at < self.sent) {
            self.fd_count -= fds.len();
            gone.extend_from_slice(fds);
            self.fds.pop_front();
        }
        if self.is_empty() {
            self.pieces.clear();
            self.head = 0;
            self.shrink();
            return gone;
        }
        // Less than is queued, so it ends within a piece.
        let mut left = n.saturating_sub(elsewhere);
        while let Some(piece) = self.pieces.front() {
            let rest = (piece.as_slice().len() - self.head) as u64;
            if left < rest {
                self.head += left as usize;
                break;
            }
            left -= rest;
            self.head = 0;
            self.pieces.pop_front();
        }
        gone
    }

    /// Drops all that is queued: the connection has ended. Returns the file descriptors, which are to be closed.
    pub fn clear(&mut self) -> Vec<Fd> {
        let fds = self.fds().collect();
        *self = Self {
            sent: self.sent,
            stored: self.sent,
            end: self.sent,
            ..Self::default()
        };
        fds
    }

    /// Whether the next byte queued must begin a piece.
    #[inline]
    fn begins_write(&self) -> bool {
        self.fds.back().is_some_and(|(at, _)| *at == self.end)
    }

    /// Once empty: keeps a table of a few pieces at most.
    fn shrink(&mut self) {
        if self.pieces.capacity() > 4 {
            self.pieces = VecDeque::new();
        }
        if self.fds.is_empty() && self.fds.capacity() > 0 {
            self.fds = VecDeque::new();
        }
    }
}

impl Piece {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Buffer(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}
