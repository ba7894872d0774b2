//! What must be true of a session, whatever the bus does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bus_client::session::{CallOptions, Fate, Known, Missed, Outcome, OwnerChange};

use super::SessionStats;
use super::bus::SERVICES;

/// What is known of a call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) options: CallOptions,
    pub(super) destination: String,
    /// In which epoch its unique destination was learnt.
    pub(super) learnt: Option<u64>,
    deadline: Option<Duration>,
    is_abandoned: bool,
    ended: Option<Ended>,
    runs: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Answered,
    Done,
    Failed(Fate),
}

/// What is known of a stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) topic: usize,
    is_ready: bool,
    /// The link was lost since it was last told that all is well.
    is_behind: bool,
    is_refused: bool,
    pub(super) has_ended: bool,
    /// The number of its last signal.
    pub(super) last: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Checker {
    pub(super) calls: BTreeMap<u64, Call>,
    pub(super) streams: BTreeMap<u64, Stream>,
    /// Owners as watches were told.
    pub(super) owners: BTreeMap<u64, Option<String>>,
    /// First runs by service: the greatest call.
    order: BTreeMap<&'static str, u64>,
    /// Descriptors that the session has.
    pub(super) fds: BTreeSet<i32>,
    pub(super) stats: SessionStats,
}

type Check = Result<(), String>;

impl Checker {
    pub(super) fn made(
        &mut self,
        id: u64,
        options: CallOptions,
        destination: &str,
        learnt: Option<u64>,
        now: Duration,
    ) {
        let call = Call {
            options,
            destination: destination.to_owned(),
            learnt,
            deadline: options.timeout.map(|timeout| now + timeout),
            is_abandoned: false,
            ended: None,
            runs: 0,
        };
        self.calls.insert(id, call);
        self.stats.calls += 1;
    }

    pub(super) fn abandoned(&mut self, id: u64) {
        if let Some(call) = self.calls.get_mut(&id) {
            call.is_abandoned = true;
        }
    }

    /// A call has ended: once, in time, and as it should.
    pub(super) fn ended(&mut self, id: u64, outcome: &Outcome, now: Duration) -> Check {
        let Some(call) = self.calls.get_mut(&id) else {
            return Err(format!("call {id} ended and was never made"));
        };
        if call.ended.is_some() || call.is_abandoned {
            return Err(format!(
                "call {id} ended twice, or after it was abandoned: {call:?}"
            ));
        }
        if call.deadline.is_some_and(|deadline| now > deadline) {
            return Err(format!(
                "call {id} ended at {now:?}, after its deadline: {call:?}"
            ));
        }
        let ended = match outcome {
            Outcome::Reply { message, .. } => {
                let service_unknown = message.error_name().is_some();
                let is_right = service_unknown || message.body().read_u64().ok() == Some(id);
                if !is_right {
                    return Err(format!("call {id} got the answer to another: {message:?}"));
                }
                if !service_unknown && call.runs == 0 {
                    return Err(format!("call {id} was answered and never ran"));
                }
                self.stats.answered += 1;
                Ended::Answered
            }
            Outcome::Done => Ended::Done,
            Outcome::Failed { fate, .. } => {
                if *fate != Fate::NotSent {
                    self.stats.unknown += 1;
                    self.stats.unknown_ran += u64::from(call.runs > 0);
                } else if call.runs > 0 {
                    return Err(format!(
                        "call {id} is said not to have been sent, and ran: {outcome:?}"
                    ));
                } else {
                    self.stats.not_sent += 1;
                }
                Ended::Failed(*fate)
            }
        };
        call.ended = Some(ended);
        Ok(())
    }

    /// The same where the bus lies: then no more can be said than that it was once, and in time.
    pub(super) fn ended_somehow(&mut self, id: u64, now: Duration) -> Check {
        let Some(call) = self.calls.get_mut(&id) else {
            return Err(format!("call {id} ended and was never made"));
        };
        let is_late = call.deadline.is_some_and(|deadline| now > deadline);
        if call.ended.is_some() || call.is_abandoned || is_late {
            return Err(format!(
                "call {id} ended twice, late, or after it was abandoned: {call:?}"
            ));
        }
        call.ended = Some(Ended::Done);
        Ok(())
    }

    /// A service ran a call.
    pub(super) fn ran(&mut self, id: u64, service: &'static str, lies: bool) -> Check {
        let Some(call) = self.calls.get_mut(&id) else {
            return Err(format!("call {id} ran and was never made"));
        };
        call.runs += 1;
        if call.runs > 1 && !call.options.idempotent {
            return Err(format!("call {id} ran twice: {call:?}"));
        }
        if call.ended == Some(Ended::Failed(Fate::NotSent)) {
            return Err(format!("call {id} is said not to have been sent, and runs now"));
        }
        // Whom a liar says to be back need not be.
        if call.runs == 1 && call.destination == service && !lies {
            let last = self.order.entry(service).or_default();
            if id < *last {
                return Err(format!("call {id} to {service} ran after call {last}"));
            }
            *last = id;
        }
        Ok(())
    }

    pub(super) fn subscribed(&mut self, id: u64, topic: usize) {
        let stream = Stream {
            topic,
            is_ready: false,
            is_behind: false,
            is_refused: false,
            has_ended: false,
            last: None,
        };
        self.streams.insert(id, stream);
    }

    pub(super) fn lost(&mut self) {
        for stream in self.streams.values_mut() {
            stream.is_behind = stream.is_ready;
        }
    }

    pub(super) fn ready(&mut self, id: u64) -> Check {
        match self.streams.get_mut(&id) {
            Some(stream) if !stream.is_ready => {
                stream.is_ready = true;
                stream.is_refused = false;
                Ok(())
            }
            Some(stream) => Err(format!("stream {id} is ready twice: {stream:?}")),
            None => Ok(()),
        }
    }

    pub(super) fn missed(&mut self, id: u64, missed: &Missed) -> Check {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(());
        };
        if matches!(missed, Missed::Outage { .. }) {
            if !stream.is_behind {
                return Err(format!(
                    "stream {id} is told of an outage that was none: {stream:?}"
                ));
            }
            self.stats.notes += 1;
            stream.is_behind = false;
            stream.is_refused = false;
            stream.last = None;
        } else if matches!(missed, Missed::Epoch) {
            stream.has_ended = true;
        } else {
            stream.is_refused = true;
        }
        Ok(())
    }

    /// A stream got a signal: the one after the last, unless it was told that it missed some.
    pub(super) fn signal(&mut self, id: u64, number: u64, lies: bool) -> Check {
        self.stats.signals += 1;
        let Some(stream) = self.streams.get_mut(&id) else {
            return Err(format!("stream {id} is gone and gets a signal"));
        };
        if !stream.is_ready || stream.is_behind {
            return Err(format!(
                "stream {id} gets signal {number} before it was told that it is ready: {stream:?}"
            ));
        }
        if stream.last.is_some_and(|last| last + 1 != number) && !lies {
            return Err(format!(
                "stream {id} gets signal {number} and was not told what it missed: {stream:?}"
            ));
        }
        stream.last = Some(number);
        Ok(())
    }

    pub(super) fn owner_changed(&mut self, watch: u64, change: &OwnerChange) -> Check {
        let Some(owner) = self.owners.get_mut(&watch) else {
            return Ok(());
        };
        let old = change.old.as_deref().map(str::to_owned);
        if change.how == Known::Inferred {
            self.stats.inferred += 1;
        }
        if change.how != Known::First && *owner != old {
            return Err(format!(
                "watch {watch} was told of {owner:?} and now of {change:?}"
            ));
        }
        *owner = change.new.as_deref().map(str::to_owned);
        Ok(())
    }

    pub(super) fn fds_closed(&mut self, fds: impl IntoIterator<Item = i32>) -> Check {
        for fd in fds {
            if !self.fds.remove(&fd) {
                return Err(format!("descriptor {fd} is closed and is not the session's"));
            }
        }
        Ok(())
    }

    /// At the end, when there was an honest bus for long enough.
    pub(super) fn all_ended(&self) -> Check {
        for (id, call) in &self.calls {
            if call.ended.is_none() && !call.is_abandoned && call.deadline.is_some() {
                return Err(format!("call {id} has not ended: {call:?}"));
            }
        }
        Ok(())
    }

    /// The streams have the newest signals.
    pub(super) fn up_to_date(&self, ticks: &BTreeMap<&'static str, u64>) -> Check {
        for (id, stream) in &self.streams {
            let newest = ticks.get(super::bus::TOPICS[stream.topic]).copied();
            if !stream.has_ended && stream.last != newest {
                return Err(format!(
                    "stream {id} of {} should have signal {newest:?}: {stream:?}",
                    SERVICES[stream.topic]
                ));
            }
        }
        Ok(())
    }
}
