//! Reading the journal of a worker that died: the events since the checkpoint, and the one that was under way.

#![allow(unsafe_code, reason = "reads what the kernel wrote into the in-flight slot")]

use std::io::Result as IoResult;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bus_wire::Fd;

use super::checkpoint::Checkpoints;
use super::extent::{Extent, ExtentPool, ExtentRange};
use super::header::{CONTROL, Header, InFlight};
use super::io::take_fds;
use super::log::{Log, Position, Record};
use super::record::Kind;
use super::{Answer, Journal, RareEvent, Serving};
use crate::broker::{Event, Fds, Millis, PeerId};
use crate::handoff::codec;

/// What is known of a journal without the process that wrote it: kept by the keeper for the next worker.
#[derive(Clone, Copy)]
pub(crate) struct Remains {
    pub(super) log: super::region::Region,
    pub(super) checkpoints: super::region::Region,
    pub(super) extents: std::os::fd::RawFd,
    pub(super) header: &'static Header,
}

impl Remains {
    /// The descriptors of the shared memory.
    pub(crate) fn fds(&self) -> [std::os::fd::RawFd; 3] {
        [self.log.fd(), self.checkpoints.fd(), self.extents]
    }

    /// Lets go of it all: nobody goes on from it.
    pub(crate) fn discard(self) {
        for fd in self.fds() {
            let _ = nix::unistd::close(fd);
        }
        self.log.unmap();
        self.checkpoints.unmap();
    }

    /// Whether there is a checkpoint to go on from.
    pub(crate) fn has_checkpoint(&self) -> bool {
        self.header.committed.load(Ordering::Acquire) > 0
    }

    /// Whether a replay would apply the event of this number.
    pub(crate) fn is_replayed(&self, event: u64) -> bool {
        let checkpoint = self.header.newest_checkpoint();
        checkpoint.is_none_or(|checkpoint| checkpoint.sequence <= event)
    }

    /// How many events were noted.
    pub(crate) fn records(&self) -> u64 {
        self.header.records.load(Ordering::Acquire)
    }

    /// The number of the event that was being applied, if one was that had never been applied to the end before: a
    /// replay applies the others again, and they have proved harmless.
    pub(crate) fn applying(&self) -> Option<u64> {
        let applying = self.header.applying.load(Ordering::Acquire);
        let is_newest = applying == self.header.newest_event.load(Ordering::Acquire);
        applying.checked_sub(1).filter(|_| is_newest)
    }
}

impl Journal {
    /// What the keeper keeps.
    pub(crate) fn remains(&self) -> Remains {
        Remains {
            log: self.log.region(),
            checkpoints: self.checkpoints.region(),
            extents: self.extents.fd(),
            header: self.log.header(),
        }
    }

    /// The journal of a worker that died, to be read and then continued.
    pub(crate) fn reopen(remains: Remains) -> IoResult<Self> {
        let (log, header) = Log::reopen(remains.log);
        header.serving.store(0, Ordering::Release);
        header.applying.store(0, Ordering::Release);
        Ok(Self {
            log,
            extents: ExtentPool::reopen(remains.extents)?,
            checkpoints: Checkpoints::reopen(remains.checkpoints),
            header,
            changed: Vec::new(),
            is_checkpoint_begun: false,
            is_reading: true,
        })
    }

    /// Goes to where the events begin that are not part of the checkpoint; the log's first one, if there is none.
    pub(crate) fn rewind(&mut self, to: Option<Position>) {
        self.log.rewind(to.unwrap_or(Position {
            sequence: 0,
            segment: 0,
            offset: Log::FIRST,
        }));
    }

    /// The next event and its number; `None` at the end. `Err`: it cannot be read, nor can what comes after be trusted.
    pub(crate) fn next_event(&mut self) -> Result<Option<(u64, Event)>, String> {
        if !self.log.has_more() {
            return Ok(None);
        }
        let record = self.log.read_next()?;
        let sequence = record.header.sequence;
        self.mark_applying(sequence);
        self.event_of(record).map(|event| Some((sequence, event)))
    }

    fn event_of(&mut self, record: Record) -> Result<Event, String> {
        let Record {
            header,
            kind,
            data,
            fds,
        } = record;
        let sequence = header.sequence;
        let peer = PeerId::from_u64(header.peer);
        Ok(match kind {
            Kind::Received => Event::Received {
                peer,
                data,
                fds: fds.into(),
            },
            Kind::ReceivedLarge => {
                let range = ExtentRange {
                    offset: header.number,
                    class: header.class,
                    start: 0,
                    len: header.filled,
                };
                let prefix = self
                    .extents
                    .adopt(range)
                    .ok_or_else(|| format!("record {sequence} of the journal: its extent is not there"))?;
                Event::ReceivedLarge {
                    peer,
                    prefix,
                    fds: fds.into(),
                }
            }
            Kind::Drained => Event::Drained {
                peer,
                bytes: header.number,
            },
            Kind::Tick => Event::Tick {
                now: Millis(header.number),
            },
            Kind::Rare => {
                let event: RareEvent = codec::decode(&data)
                    .map_err(|error| format!("record {sequence} of the journal: {error}"))?;
                match event {
                    RareEvent::Accepted {
                        listener,
                        credentials,
                        can_pass_fds,
                    } => Event::Accepted {
                        peer,
                        listener,
                        credentials,
                        can_pass_fds,
                    },
                    RareEvent::Closed { .. } => Event::Closed {
                        peer,
                        reason: "closed",
                    },
                    RareEvent::ConfigLoaded { config } => Event::ConfigLoaded {
                        config: Arc::new(*config),
                    },
                    RareEvent::ConfigRefused { name, reason } => Event::ConfigRefused { name, reason },
                    RareEvent::UpgradeRequested => Event::UpgradeRequested,
                    RareEvent::UpgradeRefused { reason } => Event::UpgradeRefused { reason },
                    RareEvent::Serving { worker_pid, start } => Event::Serving { worker_pid, start },
                }
            }
            Kind::Answer => {
                return Err(format!(
                    "record {sequence} of the journal: an answer that nobody asked for"
                ));
            }
        })
    }

    /// What the system answered at this point when the event was first applied. `None`: this is the first time.
    pub(crate) fn recorded_answer(&mut self) -> Option<Answer> {
        if !self.is_reading {
            return None;
        }
        if !self.log.has_more() {
            self.finish_reading();
            return None;
        }
        let record = self.log.read_next().ok()?;
        (record.kind == Kind::Answer)
            .then(|| codec::decode(&record.data).ok())
            .flatten()
    }

    /// Goes past what the system answered to an event that is left out. Descriptors among it belong to nobody.
    pub(crate) fn pass_answers(&mut self) {
        while self.is_reading && self.log.is_answer_next() && self.log.read_next().is_ok() {}
    }

    /// The log has been read: from here on it is written.
    fn finish_reading(&mut self) {
        if self.is_reading {
            self.log.follow();
            self.log.resume();
            self.is_reading = false;
        }
    }

    /// Notes what the system call that was under way has done, if anything, and gives it as an event.
    pub(crate) fn finish_in_flight(&mut self) -> Result<Option<Event>, String> {
        self.finish_reading();
        let slot = &self.header.slot;
        let what = slot.armed();
        let len = slot.message.msg_len as usize;
        let is_noted = slot.sequence.load(Ordering::Acquire) != self.log.sequence();
        if what == InFlight::Nothing || is_noted || len == 0 {
            slot.disarm();
            return Ok(None);
        }
        let peer = PeerId::from_u64(slot.peer.load(Ordering::Acquire));
        let control = slot.message.msg_hdr.msg_controllen.min(CONTROL);
        let event = match what {
            InFlight::Nothing => None,
            InFlight::Receive => {
                let fds = take_fds(&slot.control.0[..control]);
                if len > self.log.room().len {
                    return Err("the in-flight slot is damaged".into());
                }
                let data = self.log.finish_read(peer.to_u64(), len, &fds);
                Some(Event::Received { peer, data, fds })
            }
            InFlight::ReceiveLarge => {
                let fds: Fds = take_fds(&slot.control.0[..control]);
                let class = slot.class.load(Ordering::Acquire) as u8;
                let filled = slot.filled.load(Ordering::Acquire) + len as u64;
                let offset = slot.offset.load(Ordering::Acquire);
                let range = ExtentRange {
                    offset,
                    class,
                    start: 0,
                    len: filled,
                };
                let prefix = self
                    .extents
                    .adopt(range)
                    .ok_or("the in-flight slot names no extent")?;
                self.log
                    .append(Kind::ReceivedLarge, (peer.to_u64(), offset, filled, class), &fds);
                Some(Event::ReceivedLarge { peer, prefix, fds })
            }
            InFlight::Send => {
                self.log
                    .append(Kind::Drained, (peer.to_u64(), len as u64, 0, 0), &[]);
                Some(Event::Drained {
                    peer,
                    bytes: len as u64,
                })
            }
        };
        self.header.slot.disarm();
        self.mark_applying(self.log.sequence() - 1);
        Ok(event)
    }

    /// The rest of the extents' memory is not needed: all that is has been named.
    pub(crate) fn resume(&mut self) -> IoResult<()> {
        self.finish_reading();
        self.extents.resume()
    }

    /// The extent that a large message was being received into, if `prefix` lies at the beginning of one.
    pub(crate) fn take_adopted(&mut self, prefix: &[u8]) -> Option<Extent> {
        self.extents.take_adopted(prefix)
    }

    /// The number of the event that is about to be applied.
    pub(crate) fn mark_applying(&self, sequence: u64) {
        self.header.applying.store(sequence + 1, Ordering::Release);
    }

    /// The number of the event being applied, plus 1; 0 between events.
    pub(crate) fn applying(&self) -> &'static std::sync::atomic::AtomicU64 {
        &self.log.header().applying
    }

    /// No event is being applied.
    pub(crate) fn mark_applied(&self) {
        self.header.applying.store(0, Ordering::Release);
    }

    /// The number of the newest event.
    pub(crate) fn newest(&self) -> u64 {
        self.log.sequence().saturating_sub(1)
    }

    /// Notes which socket was accepted as a peer; zero = none.
    pub(crate) fn set_cookie(&mut self, peer: PeerId, cookie: u64) {
        self.checkpoints
            .set_cookie(PEER_COOKIES + peer.index as usize, cookie);
    }

    /// Which socket was last accepted under a descriptor number.
    pub(crate) fn cookie(&self, fd: Fd) -> u64 {
        usize::try_from(fd.0).map_or(0, |index| self.checkpoints.cookie(PEER_COOKIES + index))
    }

    /// For the keeper: whether the worker has begun to serve.
    pub(crate) fn serving(&self) -> Serving {
        Serving(self.log.serving())
    }
}

/// Where the cookies of sockets begin in the table of entries.
const PEER_COOKIES: usize = 16;
