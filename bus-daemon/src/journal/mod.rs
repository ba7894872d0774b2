//! The journal: every input of the broker, in shared memory that outlives the worker.
//!
//! All bytes that enter or leave over a link pass through here: they are received straight into the [log](log) (or, for
//! a large message, into an [extent](extent)), and each system call that moves them is noted in the in-flight slot
//! ([header]) before it begins, so that a worker killed in the middle leaves exact counts behind. From time to time a
//! [checkpoint](checkpoint) bounds what a [replay](replay) has to read.

mod checkpoint;
#[cfg(any(test, feature = "test-hooks"))]
mod damage;
mod extent;
mod header;
mod io;
mod log;
#[cfg(all(test, target_arch = "x86_64"))]
mod mirror;
#[cfg(feature = "bench-hooks")]
mod plain;
mod record;
mod region;
mod replay;
mod snapshot;
mod view;

use std::io::Result;
use std::sync::atomic::{AtomicU32, Ordering};

use bus_wire::Fd;
use serde::{Deserialize, Serialize};

use crate::broker::{Credentials, JournalMemory, MachineId, PeerId, Start};
use crate::config::Config;

use checkpoint::Checkpoints;
pub(crate) use checkpoint::LARGEST_FILE;
#[cfg(any(test, feature = "test-hooks"))]
pub(crate) use damage::Flip;
pub(crate) use extent::Extent;
use extent::ExtentPool;
use header::Header;
pub(crate) use io::Read;
use log::Log;
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) use log::Position;
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) use mirror::{Mirror, Sabotage};
use record::Kind;
pub(crate) use replay::Remains;

/// An event that is too rare to have a record layout of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum RareEvent {
    /// [`Event::Accepted`](crate::broker::Event::Accepted).
    Accepted {
        /// The listener's index.
        listener: u32,
        /// As the kernel told them.
        credentials: Credentials,
        /// Whether the transport passes descriptors.
        can_pass_fds: bool,
    },
    /// [`Event::Closed`](crate::broker::Event::Closed).
    Closed {
        /// The reason given.
        reason: String,
    },
    /// [`Event::ConfigLoaded`](crate::broker::Event::ConfigLoaded).
    ConfigLoaded {
        /// The new one.
        config: Box<Config>,
    },
    /// [`Event::ConfigRefused`](crate::broker::Event::ConfigRefused).
    ConfigRefused {
        /// The error's name.
        name: String,
        /// The reason given.
        reason: String,
    },
    /// [`Event::UpgradeRequested`](crate::broker::Event::UpgradeRequested).
    UpgradeRequested,
    /// [`Event::UpgradeRefused`](crate::broker::Event::UpgradeRefused).
    UpgradeRefused {
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
}

/// What the system answered to the broker in the middle of an event.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Group ids.
    Groups(Option<Vec<u32>>),
    /// Security label.
    Label(Option<Vec<u8>>),
    /// A descriptor that the broker now owns.
    Descriptor(Option<Fd>),
    /// The journal's own memory.
    Memory(JournalMemory),
    /// The machine's id.
    MachineId(MachineId),
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
    header: &'static mut Header,
    /// Indexes of peers that are being written; those that could not be are for the next checkpoint.
    changed: Vec<u32>,
    /// The next checkpoint has been begun.
    is_checkpoint_begun: bool,
    /// The log is being read, after a death.
    is_reading: bool,
}

impl Journal {
    /// An empty journal in fresh shared memory.
    pub(crate) fn create() -> Result<Self> {
        let (log, header) = Log::create()?;
        Ok(Self {
            log,
            extents: ExtentPool::create()?,
            checkpoints: Checkpoints::create()?,
            header,
            changed: Vec::new(),
            is_checkpoint_begun: false,
            is_reading: false,
        })
    }

    /// Notes an event that has no bytes.
    pub(crate) fn note(&mut self, peer: Option<PeerId>, event: &RareEvent) {
        self.append_encoded(Kind::Rare, peer, event);
    }

    /// Notes what the system answered in the middle of the newest event.
    pub(crate) fn note_answer(&mut self, peer: PeerId, answer: &Answer) {
        self.append_encoded(Kind::Answer, Some(peer), answer);
    }

    /// Notes that time passed.
    pub(crate) fn note_tick(&mut self, milliseconds: u64) {
        self.log.append(Kind::Tick, (0, milliseconds, 0, 0), &[]);
    }

    /// An extent for a large message of `total` bytes, of which `prefix` has arrived.
    pub(crate) fn lend_extent(&mut self, total: usize, prefix: &[u8]) -> Result<Extent> {
        let mut extent = self.extents.lend(total)?;
        extent.fill(prefix);
        Ok(extent)
    }

    /// Takes an extent back, when its message is complete or its link is gone.
    pub(crate) fn give_back(&mut self, extent: Extent) {
        self.extents.give_back(extent);
    }

    /// Bytes of shared memory in use.
    pub(crate) fn memory(&self) -> JournalMemory {
        JournalMemory {
            log: self.log.memory() as u64,
            extents: self.extents.memory() as u64,
            checkpoints: self.checkpoints.memory(),
        }
    }

    /// The worker is about to do its first I/O on a link: from here on there is no way back to the state it was given.
    pub(crate) fn mark_serving(&self) {
        self.header.serving.store(1, Ordering::Release);
    }

    fn append_encoded(&mut self, kind: Kind, peer: Option<PeerId>, value: &impl Serialize) {
        match crate::handoff::codec::encode(value) {
            Ok(data) if data.len() <= Log::MOST_DATA => {
                self.log.append_data(kind, peer.map_or(0, PeerId::to_u64), &data);
            }
            // A replay cannot know of it, and need not once a checkpoint does.
            Ok(data) => {
                tracing::warn!("an event of {} bytes does not fit into the journal", data.len());
                self.log.demand_checkpoint();
            }
            Err(error) => {
                tracing::error!("an event cannot be written to the journal: {error}");
                self.log.demand_checkpoint();
            }
        }
    }
}
