//! What the worker and the keeper have to do with each other: what the keeper tells, errands, and the hand-over at the
//! end.

use std::io::Error;
use std::os::fd::RawFd;

use bus_wire::Fd;

use super::Worker;
use crate::broker::{Errand, Event};
use crate::control::{self, Entry, Request, Told, worker_exit};
use crate::handoff::form::Form;
use crate::handoff::image::{self, Spill, WorkerState};
use crate::journal::{Journal, RareEvent, failed_outcome, outcome_in, small_outcome};
use crate::os::clock::{self, Nanos};
use crate::os::{descriptor, memfd, process};
use crate::runtime::links::Writing;

/// Most bytes of a reason that is noted: nothing that is told grows beyond a record.
const LONGEST_REASON: usize = 4096;

/// Turns that saving the state may wait for changes to be written ahead: where changes come as fast, it would wait for ever.
const MOST_PUT_OFF: u32 = 4096;

/// What is to be done when the turn's events are applied and sent: it is no part of any event.
pub(super) enum FollowUp {
    /// Ask the keeper for an errand.
    Ask { id: u64, errand: Errand },
    /// Hand the state over.
    HandOver,
}

impl Spill for memfd::Spilled {
    fn put(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        Self::put(self, offset, bytes)
    }
}

impl Worker {
    /// Hears what the keeper has told, in order. An entry is acknowledged when it is in the journal: a death before that
    /// leaves it to the next worker, one after it finds it in the journal. While there is something that is in neither log
    /// nor checkpoint, nothing more is heard: its number would stand for the entries before it, too.
    pub(super) fn listen_to_keeper(&mut self) {
        self.record.control.take_wakes();
        let mut has_heard = false;
        while !self.journal.is_incomplete()
            && let Some(entry) = self.inbox.next(self.journal.heard())
        {
            self.hear(entry);
            has_heard = true;
        }
        if has_heard {
            // There is room for what waits.
            self.record.control.wake_keeper();
        }
    }

    fn hear(&mut self, Entry { number, told }: Entry) {
        #[cfg(feature = "test-hooks")]
        crate::fault::kill_in("request");
        match told {
            Told::ReloadWanted => {
                self.note_heard(number, &RareEvent::ReloadRequested);
                self.apply(Event::ReloadRequested);
            }
            Told::UpgradeWanted => {
                self.note_heard(number, &RareEvent::UpgradeRequested);
                self.apply(Event::UpgradeRequested);
            }
            Told::ErrandEnded { errand, payload } => self.hear_outcome(number, errand, payload),
        }
    }

    fn note_heard(&mut self, number: u64, note: &RareEvent) {
        self.journal.note_told(number, note);
        #[cfg(feature = "test-hooks")]
        crate::fault::kill_in("request");
        self.acknowledge();
        #[cfg(feature = "test-hooks")]
        crate::fault::kill_in("request");
    }

    /// As if the keeper had told something under this number that is too large for the log.
    #[cfg(test)]
    pub(in crate::runtime) fn hear_what_does_not_fit(&mut self, number: u64) {
        let reason = "x".repeat(300_000);
        self.note_heard(number, &RareEvent::UpgradeFailed { reason });
        self.apply(Event::ReloadRequested);
    }

    /// Acknowledges what was heard, unless a death could lose it: what does not fit into the log is safe in the next
    /// checkpoint only.
    pub(super) fn acknowledge(&self) {
        if !self.journal.is_incomplete() {
            self.inbox.acknowledge(self.journal.heard());
        }
    }

    fn hear_outcome(&mut self, number: u64, errand: u64, payload: RawFd) {
        if payload >= 0
            && let Some(handle) = self.journal.assign(payload)
        {
            let bytes = memfd::read(payload);
            return self.end_errand(number, errand, Some(handle), bytes.as_deref());
        }
        // It cannot be kept, so the errand has failed, whatever it brought: whoever waits for it is told.
        let text = format!(
            "there is no handle for the outcome of errand {errand}: too many descriptors are open, or there is no memory"
        );
        tracing::error!("{text}");
        let bytes = failed_outcome(&text);
        self.end_errand(number, errand, None, bytes.as_deref());
        // Not before the outbox has let go of it.
        if self.inbox.heard() >= number {
            descriptor::close(payload);
        }
    }

    /// An errand has ended with an outcome that stands in the memfd of `handle`, if it has one.
    fn end_errand(&mut self, number: u64, errand: u64, handle: Option<Fd>, bytes: Result<&[u8], &Error>) {
        let small = bytes.ok().and_then(small_outcome);
        let is_small = small.is_some();
        let note = RareEvent::ErrandEnded {
            errand,
            payload: handle,
            outcome: small,
        };
        let event = Event::ErrandEnded {
            errand,
            outcome: outcome_in(bytes.map_err(|error| error.kind().into())),
            payload: handle,
        };
        self.note_heard(number, &note);
        let is_noted = is_small && !self.journal.is_incomplete();
        self.held_back = Some(Vec::new());
        self.apply(event);
        if !self.broker.is_upgrading() {
            self.spare = None;
        }
        let closing = self.held_back.take().unwrap_or_default();
        // A replay from the checkpoint before this would read them: the configuration that was in force there, or an
        // outcome that the log does not have.
        let is_needed = closing.iter().any(|fd| Some(*fd) != handle || !is_noted);
        if is_needed {
            self.needed_until_checkpoint.extend(closing);
            if Journal::are_many_changed(&self.broker) {
                self.journal.want_checkpoint();
            } else {
                self.take_checkpoint();
            }
        } else {
            self.close_descriptors(&closing);
        }
    }

    /// What a worker before this one had been asked to do and may not have come to do. The keeper knows by their numbers
    /// the errands that it was asked for.
    pub(super) fn catch_up(&mut self) {
        self.acknowledge();
        if self.broker.is_handing_over() && self.inbox.approved().is_some() {
            self.follow_ups.push_back(FollowUp::HandOver);
        } else if self.broker.is_handing_over() {
            self.fail_upgrade(
                "the worker died by its own fault while it handed its state over; try again".into(),
            );
        }
        for (id, errand) in self.broker.open_errands() {
            self.follow_ups.push_back(FollowUp::Ask { id, errand });
        }
    }

    /// Does what the broker asked for in the course of the turn. What cannot be done now is tried again at a tick.
    pub(super) fn follow_up(&mut self) {
        while let Some(next) = self.follow_ups.pop_front() {
            if self.is_put_off(&next) {
                return self.follow_ups.push_front(next);
            }
            match next {
                FollowUp::HandOver => self.hand_over(self.inbox.approved().unwrap_or(Form::OWN)),
                FollowUp::Ask { id, errand } => {
                    if let Err(error) = self.ask(id, &errand) {
                        tracing::warn!("the keeper cannot be asked for errand {id} now: {error}");
                        return self.follow_ups.push_front(FollowUp::Ask { id, errand });
                    }
                }
            }
        }
    }

    /// Whether so much has changed that it is to be written ahead, in parts, before the state is saved: nobody waits for it
    /// then.
    fn is_put_off(&mut self, next: &FollowUp) -> bool {
        let saves = match next {
            FollowUp::HandOver => true,
            FollowUp::Ask { errand, .. } => matches!(errand, Errand::TryBinary { .. }),
        };
        let is_worth_it = saves && Journal::are_many_changed(&self.broker) && !self.has_no_checkpoint_now();
        if !is_worth_it || self.put_off >= MOST_PUT_OFF {
            self.put_off = 0;
            return false;
        }
        self.put_off += 1;
        self.journal.want_checkpoint();
        true
    }

    fn ask(&mut self, id: u64, errand: &Errand) -> std::io::Result<()> {
        let (errand, image) = match errand {
            Errand::LoadConfiguration => (control::Errand::LoadConfiguration, None),
            Errand::ReadKeyring => (control::Errand::ReadKeyring, None),
            Errand::TryBinary { binary } => match self.save(Form::OWN, clock::monotonic()) {
                Ok(image) => {
                    let binary = binary.clone();
                    // The keeper closes its own.
                    self.spare = memfd::another(image).ok();
                    (control::Errand::TryBinary { binary, image }, Some(image))
                }
                Err(error) => {
                    self.fail_upgrade(format!("the state cannot be given to the new binary: {error}"));
                    return Ok(());
                }
            },
        };
        let asked = self.record.control.ask_keeper(&Request::Errand { id, errand });
        if let (Err(_), Some(image)) = (&asked, image) {
            self.spare = None;
            descriptor::close(image);
        }
        asked
    }

    fn fail_upgrade(&mut self, mut reason: String) {
        while reason.len() > LONGEST_REASON {
            reason.pop();
        }
        self.journal.note(
            None,
            &RareEvent::UpgradeFailed {
                reason: reason.clone(),
            },
        );
        self.apply(Event::UpgradeFailed { reason });
        self.spare = None;
    }

    /// The last act of this worker: its state to the keeper, which replaces the process image. Where it cannot be written in the
    /// form that the next one reads, nothing has happened.
    pub(crate) fn hand_over(&mut self, form: Form) {
        self.flush();
        #[cfg(feature = "test-hooks")]
        crate::fault::kill_in("hand-over");
        let handed = self.save(form, clock::monotonic()).and_then(|image| {
            #[cfg(feature = "test-hooks")]
            crate::fault::damage_worker(image);
            let asked = self.record.control.ask_keeper(&Request::Exec { image });
            asked.inspect_err(|_| descriptor::close(image))
        });
        #[cfg(feature = "test-hooks")]
        crate::fault::kill_in("hand-over");
        match handed {
            Ok(()) => process::exit(worker_exit::HANDED_OVER),
            Err(error) => self.fail_upgrade(format!("the state cannot be handed over: {error}")),
        }
    }

    /// All state in this form, in a new memfd.
    fn save(&mut self, form: Form, stopped_at: Nanos) -> std::io::Result<RawFd> {
        // So all that waits is in the store, which goes on as it is.
        if !self.take_checkpoint() {
            return Err(Error::other("no checkpoint can be taken"));
        }
        let with = |writing: Writing| -> Vec<u64> {
            let links = self.links.iter().filter(|link| link.writing == writing);
            links.map(|link| link.peer.to_u64()).collect()
        };
        let worker = WorkerState {
            stopped_at: stopped_at.0,
            generation: self.links.generation(),
            blocked: with(Writing::Blocked),
            broken: with(Writing::Broken),
            stored: Some(self.journal.stored(&self.broker)),
            foreign: self.journal.foreign().to_vec(),
        };
        let (number, mut output) = self.journal.for_image();
        let mut state = match self.spare.take() {
            Some(spare) => memfd::Spilled::over(spare),
            None => memfd::Spilled::create(c"bus-state")?,
        };
        image::save_to(&mut state, form, &self.broker, &worker, number, &mut output).map_err(Error::other)?;
        #[cfg(feature = "test-hooks")]
        crate::fault::kill_in("hand-over");
        state.finish()
    }
}
