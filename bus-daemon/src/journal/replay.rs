//! Reading the journal of a worker that died: the events since the checkpoint, and the one that was under way.

#![allow(unsafe_code, reason = "reads what the kernel wrote into the in-flight slot")]

use std::io::Result as IoResult;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::checkpoint::Checkpoints;
use super::extent::{Extent, ExtentPool, ExtentRange};
use super::header::{CONTROL, Header, InFlight};
use super::io::take_fds;
use super::log::{Log, Position, Record};
use super::manifest::Manifest;
use super::outcome::outcome_in;
use super::record::{Fields, Kind};
use super::store::ExtentPlace;
use super::waiting::Waiting;
use super::{Answer, Journal, RareEvent, Serving};
use crate::broker::{Event, Millis, PeerId};
use crate::handoff::codec;

/// What is known of a journal without the process that wrote it: kept by the keeper for the next worker.
#[derive(Clone, Copy)]
pub(crate) struct Remains {
    pub(super) log: crate::os::region::Region,
    pub(super) checkpoints: crate::os::region::Region,
    pub(super) manifest: crate::os::region::Region,
    pub(super) store: std::os::fd::RawFd,
    pub(super) header: &'static Header,
}

impl Remains {
    /// The descriptors of the shared memory.
    pub(crate) fn fds(&self) -> [std::os::fd::RawFd; 4] {
        [
            self.log.fd(),
            self.checkpoints.fd(),
            self.manifest.fd(),
            self.store,
        ]
    }

    /// Lets go of it: nobody goes on from it. An image may refer to the store, so whoever begins with one adopts that, or
    /// sweeps it away.
    pub(crate) fn discard(self) {
        for fd in self.fds().into_iter().filter(|fd| *fd != self.store) {
            let _ = nix::unistd::close(fd);
        }
        self.log.unmap();
        self.checkpoints.unmap();
        self.manifest.unmap();
    }

    /// The memfd of what waits for slow readers, which an image refers to.
    pub(crate) fn store(&self) -> std::os::fd::RawFd {
        self.store
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

    /// The number of the received unit that was being applied, if one was that had never been applied to the end before:
    /// a replay applies the others again, and they have proved harmless. Units that are not input are never suspected.
    pub(crate) fn suspect(&self) -> Option<u64> {
        let applying = self.header.applying.load(Ordering::Acquire);
        let is_newest = applying == self.header.newest_event.load(Ordering::Acquire);
        let is_input = self.header.is_input.load(Ordering::Acquire) != 0;
        applying.checked_sub(1).filter(|_| is_newest && is_input)
    }
}

/// The unit that a worker is applying, readable from a signal handler.
#[derive(Clone, Copy)]
pub(crate) struct UnitAtWork {
    number: &'static AtomicU64,
    is_input: &'static AtomicU32,
}

impl UnitAtWork {
    /// Its number, plus 1; 0 between events.
    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }

    /// Whether it is input of a peer.
    pub(crate) fn is_input(&self) -> bool {
        self.is_input.load(Ordering::Relaxed) != 0
    }
}

/// What the log has of an answer that the system gave in the middle of an event.
pub(crate) enum Recorded {
    /// The answer.
    Answer(Answer),
    /// It was never given: the system is to be asked.
    AskNow,
    /// It is not where it must be. The system must not be asked again, since it may answer something else.
    Missing,
}

impl Journal {
    /// What the keeper keeps.
    pub(crate) fn remains(&self) -> Remains {
        Remains {
            log: self.log.region(),
            checkpoints: self.checkpoints.region(),
            manifest: self.manifest.region(),
            store: self.waiting.fd(),
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
            extents: ExtentPool::default(),
            checkpoints: Checkpoints::reopen(remains.checkpoints),
            manifest: Manifest::reopen(remains.manifest),
            waiting: Waiting::reopen(remains.store, header.store_salt.load(Ordering::Acquire))?,
            header,
            changed: Vec::new(),
            changed_entries: Vec::new(),
            is_checkpoint_begun: false,
            is_checkpoint_wanted: false,
            queued_before: 0,
            is_reading: true,
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
            address_room: super::address_room(),
            is_thrifty: false,
            has_agenda: true,
            has_admissions: true,
        })
    }

    /// Whether nothing has been noted: the worker died before it served.
    pub(crate) fn is_empty(&self) -> bool {
        self.header.records.load(Ordering::Acquire) == 0
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
        if record.kind != Kind::Answer {
            self.log.note_found(sequence);
        }
        let is_input = matches!(record.kind, Kind::Received | Kind::ReceivedLarge);
        self.mark_applying(sequence, is_input);
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
        if header.lost_fds != 0 {
            self.lost_fds = Some(peer);
        }
        Ok(match kind {
            Kind::Received => Event::Received {
                peer,
                upto: header.number,
                data,
                fds: fds.into(),
            },
            Kind::ReceivedLarge => {
                let place = ExtentPlace {
                    offset: header.extent,
                    class: header.class,
                };
                let range = ExtentRange::first(place, header.filled.into());
                let prefix = self
                    .extents
                    .adopt(&mut self.waiting, range)
                    .ok_or_else(|| format!("record {sequence} of the journal: its extent is not there"))?;
                Event::ReceivedLarge {
                    peer,
                    upto: header.number,
                    prefix,
                    fds: fds.into(),
                }
            }
            Kind::Sent => Event::Sent {
                peer,
                upto: header.number,
            },
            Kind::Tick => Event::Tick {
                now: Millis(header.number),
            },
            Kind::Rare => {
                self.has_heard(header.number);
                let event: RareEvent = codec::decode(&data)
                    .map_err(|error| format!("record {sequence} of the journal: {error}"))?;
                match event {
                    RareEvent::Accepted {
                        listener,
                        socket,
                        attested,
                    } => Event::Accepted {
                        peer,
                        listener,
                        socket,
                        attested,
                    },
                    RareEvent::Closed { .. } => Event::Closed {
                        peer,
                        reason: "closed",
                    },
                    RareEvent::Step => Event::Step { peer },
                    RareEvent::ReloadRequested => Event::ReloadRequested,
                    RareEvent::UpgradeRequested => Event::UpgradeRequested,
                    RareEvent::ErrandEnded {
                        errand,
                        payload,
                        outcome,
                    } => Event::ErrandEnded {
                        errand,
                        outcome: match outcome {
                            Some(bytes) => outcome_in(Ok(&bytes.0)),
                            None => self.read_outcome(payload),
                        },
                        payload,
                    },
                    RareEvent::UpgradeFailed { reason } => Event::UpgradeFailed { reason },
                    RareEvent::Serving { worker_pid, start } => Event::Serving { worker_pid, start },
                    RareEvent::Relieved(relief) => Event::Relieved(relief),
                    RareEvent::DescriptorLimit { limit } => Event::DescriptorLimit { limit },
                }
            }
            Kind::Answer => {
                return Err(format!(
                    "record {sequence} of the journal: an answer that nobody asked for"
                ));
            }
        })
    }

    /// What the system answered at this point when the event was first applied.
    pub(crate) fn recorded_answer(&mut self) -> Recorded {
        if !self.is_reading {
            return Recorded::AskNow;
        }
        if !self.log.has_more() {
            // The worker died in the newest event, before it had this answer.
            self.finish_reading();
            return Recorded::AskNow;
        }
        let answer = self
            .log
            .is_answer_next()
            .then(|| self.log.read_next().ok())
            .flatten();
        match answer.and_then(|record| codec::decode(&record.data).ok()) {
            Some(answer) => Recorded::Answer(answer),
            None => {
                self.is_answer_missing = true;
                Recorded::Missing
            }
        }
    }

    /// Whether the log lacked an answer that the system had given: nothing after it can be trusted.
    pub(crate) fn is_answer_missing(&self) -> bool {
        self.is_answer_missing
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
        let lost_fds = slot.has_lost_fds();
        let event = match what {
            InFlight::Nothing => None,
            InFlight::Receive => {
                let numbers = take_fds(&slot.control.0[..control]);
                let upto = slot.offset.load(Ordering::Acquire) + len as u64;
                if len > self.log.room().len {
                    return Err("the in-flight slot is damaged".into());
                }
                let fds = self.assign_all(&numbers);
                let fields = Fields {
                    lost_fds: lost_fds || fds.len() < numbers.len(),
                    ..Fields::new(peer.to_u64(), upto)
                };
                self.lost_fds = fields.lost_fds.then_some(peer).or(self.lost_fds);
                let data = self.log.finish_read(fields, len, &fds);
                Some(Event::Received {
                    peer,
                    upto,
                    data,
                    fds,
                })
            }
            InFlight::ReceiveLarge => {
                let numbers = take_fds(&slot.control.0[..control]);
                let class = slot.class.load(Ordering::Acquire) as u8;
                let filled = slot.filled.load(Ordering::Acquire) + len as u64;
                let upto = slot.offset.load(Ordering::Acquire) + len as u64;
                let extent = slot.extent.load(Ordering::Acquire);
                let place = ExtentPlace {
                    offset: extent,
                    class,
                };
                let prefix = self
                    .extents
                    .adopt(&mut self.waiting, ExtentRange::first(place, filled))
                    .ok_or("the in-flight slot names no extent")?;
                let fds = self.assign_all(&numbers);
                let fields = Fields {
                    extent,
                    filled: filled as u32,
                    class,
                    lost_fds: lost_fds || fds.len() < numbers.len(),
                    ..Fields::new(peer.to_u64(), upto)
                };
                self.lost_fds = fields.lost_fds.then_some(peer).or(self.lost_fds);
                self.log.append(Kind::ReceivedLarge, fields, &fds);
                Some(Event::ReceivedLarge {
                    peer,
                    upto,
                    prefix,
                    fds,
                })
            }
            InFlight::Send => {
                let upto = slot.offset.load(Ordering::Acquire) + len as u64;
                self.log.append(Kind::Sent, Fields::new(peer.to_u64(), upto), &[]);
                Some(Event::Sent { peer, upto })
            }
        };
        self.header.slot.disarm();
        let is_input = matches!(what, InFlight::Receive | InFlight::ReceiveLarge);
        self.mark_applying(self.log.sequence() - 1, is_input);
        Ok(event)
    }

    /// The peer of whose newest input descriptors were lost, as far as the log was read. Its link is closed, unless it was.
    pub(crate) fn take_lost_fds(&mut self) -> Option<PeerId> {
        self.lost_fds.take()
    }

    /// The journal goes on from here: whatever of the store's memory is needed has been named.
    pub(crate) fn resume(&mut self) {
        self.finish_reading();
        self.waiting.end_naming();
    }

    /// The extent that a large message was being received into, if `prefix` lies at the beginning of one.
    pub(crate) fn take_adopted(&mut self, prefix: &[u8]) -> Option<Extent> {
        let extent = self.extents.take_adopted(prefix)?;
        self.lent_bytes += extent.len();
        self.lent_untouched += extent.untouched();
        Some(extent)
    }

    /// The number of the event that is about to be applied, and whether it is input of a peer.
    pub(crate) fn mark_applying(&self, sequence: u64, is_input: bool) {
        self.header.is_input.store(u32::from(is_input), Ordering::Release);
        self.header.applying.store(sequence + 1, Ordering::Release);
    }

    /// What is being applied, for whoever watches this process.
    pub(crate) fn unit(&self) -> UnitAtWork {
        let header = self.log.header();
        UnitAtWork {
            number: &header.applying,
            is_input: &header.is_input,
        }
    }

    /// No event is being applied.
    pub(crate) fn mark_applied(&self) {
        self.header.applying.store(0, Ordering::Release);
    }

    /// The number of the newest event.
    pub(crate) fn newest(&self) -> u64 {
        self.log.sequence().saturating_sub(1)
    }

    /// For the keeper: whether the worker has begun to serve.
    pub(crate) fn serving(&self) -> Serving {
        Serving(self.log.serving())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without that the bus would end of it: a worker dies of the input again and again, and it is never left out.
    #[test]
    fn input_is_suspected_though_the_worker_was_killed_right_behind_its_record() {
        let peer = PeerId {
            index: 3,
            generation: 1,
        };
        let mut journal = Journal::create().unwrap();
        let remains = journal.remains();
        journal.pretend_received(peer, 0, b"harmless");
        let before = remains.header.newest_event.load(Ordering::Acquire);
        journal.pretend_received(peer, 8, b"deadly");
        // The record is there, and the store behind it was not made.
        remains.header.newest_event.store(before, Ordering::Release);
        let mut successor = Journal::reopen(remains).unwrap();
        successor.rewind(None);
        let (first, _) = successor.next_event().unwrap().unwrap();
        let (second, _) = successor.next_event().unwrap().unwrap();
        assert_eq!((first, second, remains.suspect()), (0, 1, Some(1)));
    }
}
