//! A connection as the kernel has it: two byte streams with bounded buffers, and descriptors at their places.

use std::collections::VecDeque;
use std::io::IoSlice;

use bus_daemon::broker::{Broker, PeerId};
use bus_wire::Fd;
use bytes::Bytes;

use crate::files::{File, Files};
use crate::model::Check;
use crate::random::Random;
use crate::store::Store;

/// What was written at once; the files go with its first byte.
#[derive(Debug)]
struct Chunk {
    bytes: VecDeque<u8>,
    files: Vec<File>,
}

/// A large message that the bus is in the middle of reading into memory of its own.
#[derive(Debug)]
pub(crate) struct Large {
    pub(crate) bytes: Vec<u8>,
    pub(crate) total: usize,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: PeerId,
    to_bus: VecDeque<Chunk>,
    from_bus: VecDeque<Chunk>,
    /// How many bytes the client's socket holds at most.
    capacity: usize,
    /// The client has closed its end.
    pub(crate) is_hung_up: bool,
    /// The bus has closed its end.
    pub(crate) is_closed: bool,
    /// The bus does not read for now.
    pub(crate) is_stopped: bool,
    /// Its next message waits.
    pub(crate) is_paced: bool,
    pub(crate) large: Option<Large>,
    /// The bus's end; `None`: the link is gone, and comes back or is closed.
    pub(crate) socket: Option<Fd>,
    /// How many bytes the bus has read, and the last of them.
    pub(crate) taken: u64,
    pub(crate) recent: Vec<u8>,
    /// How many bytes the bus has sent.
    pub(crate) sent: u64,
}

/// How many bytes are kept of what was read, to be told again.
const RECENT: usize = 300;

/// What one read of the bus brought.
#[derive(Debug)]
pub(crate) enum Read {
    Bytes(Vec<u8>, Vec<File>),
    End,
    Nothing,
}

impl Link {
    pub(crate) fn new(id: PeerId, capacity: usize, socket: Fd) -> Self {
        Self {
            id,
            to_bus: VecDeque::new(),
            from_bus: VecDeque::new(),
            capacity,
            is_hung_up: false,
            is_closed: false,
            is_stopped: false,
            is_paced: false,
            large: None,
            socket: Some(socket),
            taken: 0,
            recent: Vec::new(),
            sent: 0,
        }
    }

    /// The client writes, in one or more system calls.
    pub(crate) fn write(&mut self, mut bytes: &[u8], mut files: Vec<File>, random: &mut Random) {
        while !bytes.is_empty() {
            let count = if random.percent(70) {
                bytes.len()
            } else {
                1 + random.index(bytes.len())
            };
            let (now, later) = bytes.split_at(count);
            self.to_bus.push_back(Chunk {
                bytes: now.iter().copied().collect(),
                files: std::mem::take(&mut files),
            });
            bytes = later;
        }
    }

    /// How many bytes wait for the bus.
    pub(crate) fn unread(&self) -> usize {
        self.to_bus.iter().map(|chunk| chunk.bytes.len()).sum()
    }

    /// Whether the bus has anything to do here.
    pub(crate) fn is_readable(&self) -> bool {
        let may_read = !self.is_stopped && self.socket.is_some();
        !self.is_closed && !self.is_paced && (self.is_hung_up || (may_read && !self.to_bus.is_empty()))
    }

    /// The bus reads at most so many bytes. As on Linux, a read ends with the write that files came with.
    pub(crate) fn read(&mut self, max: usize) -> Read {
        let (mut bytes, mut files) = (Vec::new(), Vec::new());
        while bytes.len() < max && self.socket.is_some() {
            let Some(chunk) = self.to_bus.front_mut() else {
                break;
            };
            let count = (max - bytes.len()).min(chunk.bytes.len());
            bytes.extend(chunk.bytes.drain(..count));
            files = std::mem::take(&mut chunk.files);
            if chunk.bytes.is_empty() {
                self.to_bus.pop_front();
            }
            if !files.is_empty() {
                break;
            }
        }
        self.taken += bytes.len() as u64;
        self.recent.extend_from_slice(&bytes);
        let old = self.recent.len().saturating_sub(RECENT);
        self.recent.drain(..old);
        match (bytes.is_empty(), self.is_hung_up) {
            (false, _) => Read::Bytes(bytes, files),
            (true, true) => Read::End,
            (true, false) => Read::Nothing,
        }
    }

    /// How many bytes the client's socket still takes.
    pub(crate) fn room(&self) -> usize {
        if self.is_hung_up || self.socket.is_none() {
            return 0;
        }
        let held: usize = self.from_bus.iter().map(|chunk| chunk.bytes.len()).sum();
        self.capacity.saturating_sub(held)
    }

    /// The bus writes from the head of the queue, once. How many bytes, and how many files, went.
    pub(crate) fn send(
        &mut self,
        broker: &Broker,
        store: &Store,
        files: &Files,
        random: &mut Random,
    ) -> Check<Option<(u64, usize)>> {
        let room = self.room();
        let Some(queue) = broker
            .send_queue(self.id)
            .filter(|queue| !queue.is_empty() && room > 0)
        else {
            return Ok(None);
        };
        let mut slices: Vec<IoSlice<'_>> = Vec::new();
        let stored: Vec<u8>;
        let fds = match queue.next_stored_write() {
            None => queue.next_write(&mut slices, 1 + random.index(8)),
            Some((most, fds)) => {
                stored = store.read(self.id, queue.sent(), most.min(room as u64))?;
                slices.push(IoSlice::new(&stored));
                fds
            }
        };
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        let most = offered.min(room);
        let count = if random.percent(60) {
            most
        } else {
            1 + random.index(most)
        };
        let bytes = slices
            .iter()
            .flat_map(|slice| slice.iter().copied())
            .take(count)
            .collect();
        let mut gone = Vec::new();
        for fd in fds {
            gone.push(files.get(*fd)?);
        }
        let gone_count = gone.len();
        self.from_bus.push_back(Chunk { bytes, files: gone });
        self.sent += count as u64;
        Ok(Some((count as u64, gone_count)))
    }

    /// The client reads about so many bytes.
    pub(crate) fn take(&mut self, max: usize) -> (Vec<u8>, Vec<File>) {
        let (mut bytes, mut files) = (Vec::new(), Vec::new());
        while bytes.len() < max {
            let Some(chunk) = self.from_bus.front_mut() else {
                break;
            };
            let count = (max - bytes.len()).min(chunk.bytes.len());
            bytes.extend(chunk.bytes.drain(..count));
            files.append(&mut chunk.files);
            if chunk.bytes.is_empty() {
                self.from_bus.pop_front();
            }
        }
        (bytes, files)
    }

    /// Everything that was sent has been read.
    pub(crate) fn is_drained(&self) -> bool {
        self.from_bus.is_empty()
    }

    /// As the runtime does after a read, and when it takes over: a large message that has begun gets memory of its own.
    pub(crate) fn continue_large(&mut self, broker: &Broker) {
        if self.large.is_none()
            && let Some((large, prefix)) = broker.large_message(self.id)
        {
            self.large = Some(Large {
                bytes: prefix.to_vec(),
                total: large.total,
            });
        }
    }

    /// The next part of the large message; all of it so far.
    pub(crate) fn grow_large(&mut self, bytes: &[u8]) -> Option<Bytes> {
        let large = self.large.as_mut()?;
        large.bytes.extend_from_slice(bytes);
        let prefix = Bytes::copy_from_slice(&large.bytes);
        if large.bytes.len() >= large.total {
            self.large = None;
        }
        Some(prefix)
    }
}
