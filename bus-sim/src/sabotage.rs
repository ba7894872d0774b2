//! Faults put in on purpose, to show that they are found.

use std::collections::{BTreeMap, VecDeque};

use bus_daemon::broker::{Broker, Event, Fds, PeerId, System};
use bus_daemon::handoff::stored::BacklogV1;
use bus_wire::{Fd, Flags, Message, MessageBuilder};

use crate::files::File;

/// A fault of the bus; the number says at which occasion it strikes, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// A message is not queued.
    Lose(u64),
    /// A message is queued twice.
    Double(u64),
    /// Two messages that one event queues for a peer are in the wrong order.
    Swap(u64),
    /// A message is lost on the way from its queue to its client.
    LoseOnTheWay(u64),
    /// A message comes twice from its queue to its client.
    DoubleOnTheWay(u64),
    /// A match rule does not survive a restart.
    LoseRule(u64),
    /// A name does not survive a restart.
    LoseName(u64),
    /// A descriptor that is to be closed stays open.
    LeakFd(u64),
    /// Input that comes twice is taken twice.
    TakeTwice(u64),
    /// Output that is told to be sent twice counts twice.
    SendTwice(u64),
    /// What waits for a parked peer is forgotten when it has a link again.
    LoseParked(u64),
    /// The end of an errand is told under another number.
    LoseErrand(u64),
    /// Whoever serves after an upgrade does not say so.
    LoseServing(u64),
    /// A checkpoint forgets that output is in the store.
    ForgetStored(u64),
    /// A checkpoint is wrong by one about the end of what is in the store.
    ShiftStored(u64),
    /// Whoever serves after an upgrade does not know that output is in the store.
    ForgetCarried(u64),
    /// Whoever serves after an upgrade is wrong by one about the end of what is in the store.
    ShiftCarried(u64),
}

/// Waits for the occasion.
#[derive(Debug, Clone)]
pub(crate) struct Saboteur {
    fault: Option<Sabotage>,
    occasions: u64,
    /// The deed is done.
    pub(crate) has_struck: bool,
}

impl Saboteur {
    pub(crate) fn new(fault: Option<Sabotage>) -> Self {
        Self {
            fault,
            occasions: 0,
            has_struck: false,
        }
    }

    fn strikes(&mut self, at: u64) -> bool {
        self.occasions += 1;
        let strikes = !self.has_struck && self.occasions > at;
        self.has_struck |= strikes;
        strikes
    }

    /// With what an event has queued.
    pub(crate) fn meddle(&mut self, queued: &mut BTreeMap<PeerId, VecDeque<(Message, Vec<File>)>>) {
        let Some(fault) = self.fault else { return };
        for messages in queued.values_mut() {
            match fault {
                Sabotage::Lose(at) => {
                    if self.strikes(at) {
                        messages.pop_back();
                    }
                }
                Sabotage::Double(at) => {
                    if let Some(last) = messages.back().cloned()
                        && self.strikes(at)
                    {
                        messages.push_back(last);
                    }
                }
                Sabotage::Swap(at) => {
                    if messages.len() > 1 && self.strikes(at) {
                        messages.swap(0, 1);
                    }
                }
                Sabotage::LoseOnTheWay(_)
                | Sabotage::DoubleOnTheWay(_)
                | Sabotage::LoseRule(_)
                | Sabotage::LoseName(_)
                | Sabotage::LeakFd(_)
                | Sabotage::TakeTwice(_)
                | Sabotage::SendTwice(_)
                | Sabotage::LoseParked(_)
                | Sabotage::LoseErrand(_)
                | Sabotage::LoseServing(_)
                | Sabotage::ForgetStored(_)
                | Sabotage::ShiftStored(_)
                | Sabotage::ForgetCarried(_)
                | Sabotage::ShiftCarried(_) => {}
            }
        }
    }

    /// How often a message comes to its client: once, by rights.
    pub(crate) fn arrivals(&mut self) -> usize {
        let fault = self.fault;
        match fault {
            Some(Sabotage::LoseOnTheWay(at)) if self.strikes(at) => 0,
            Some(Sabotage::DoubleOnTheWay(at)) if self.strikes(at) => 2,
            Some(_) | None => 1,
        }
    }

    /// Whether input that comes again is told as if it were new.
    pub(crate) fn takes_twice(&mut self) -> bool {
        let fault = self.fault;
        matches!(fault, Some(Sabotage::TakeTwice(at)) if self.strikes(at))
    }

    /// The same of output.
    pub(crate) fn sends_twice(&mut self) -> bool {
        let fault = self.fault;
        matches!(fault, Some(Sabotage::SendTwice(at)) if self.strikes(at))
    }

    /// Whether what waits for a parked peer is forgotten.
    pub(crate) fn loses_parked(&mut self) -> bool {
        let fault = self.fault;
        matches!(fault, Some(Sabotage::LoseParked(at)) if self.strikes(at))
    }

    /// Whether the end of an errand is told under another number.
    pub(crate) fn loses_errand(&mut self) -> bool {
        let fault = self.fault;
        matches!(fault, Some(Sabotage::LoseErrand(at)) if self.strikes(at))
    }

    /// Whether it is not told that an upgrade is over.
    pub(crate) fn loses_serving(&mut self) -> bool {
        let fault = self.fault;
        matches!(fault, Some(Sabotage::LoseServing(at)) if self.strikes(at))
    }

    /// Whether these descriptors are closed.
    pub(crate) fn closes(&mut self, fds: &Fds) -> bool {
        let fault = self.fault;
        match fault {
            Some(Sabotage::LeakFd(at)) => fds.is_empty() || !self.strikes(at),
            Some(_) | None => true,
        }
    }

    /// What a checkpoint says of a peer's part of the store.
    pub(crate) fn spoil_backlog(&mut self, backlog: BacklogV1) -> Option<BacklogV1> {
        let fault = self.fault;
        match fault {
            Some(Sabotage::ForgetStored(at)) if self.strikes(at) => None,
            Some(Sabotage::ShiftStored(at)) if self.strikes(at) => Some(shifted(backlog, at)),
            Some(_) | None => Some(backlog),
        }
    }

    /// The same in an upgrade.
    pub(crate) fn spoil_image(&mut self, backlog: BacklogV1) -> Option<BacklogV1> {
        let fault = self.fault;
        match fault {
            Some(Sabotage::ForgetCarried(at)) if self.strikes(at) => None,
            Some(Sabotage::ShiftCarried(at)) if self.strikes(at) => Some(shifted(backlog, at)),
            Some(_) | None => Some(backlog),
        }
    }

    /// Takes something from a broker that was restored, behind its back. `victim` finds a peer, and what it has that the
    /// method of this name takes away.
    pub(crate) fn spoil(
        &mut self,
        broker: &mut Broker,
        victim: impl FnOnce(&str) -> Option<(PeerId, String)>,
    ) {
        let (at, member) = match self.fault {
            Some(Sabotage::LoseRule(at)) => (at, "RemoveMatch"),
            Some(Sabotage::LoseName(at)) => (at, "ReleaseName"),
            Some(
                Sabotage::Lose(_)
                | Sabotage::Double(_)
                | Sabotage::Swap(_)
                | Sabotage::LoseOnTheWay(_)
                | Sabotage::DoubleOnTheWay(_)
                | Sabotage::LeakFd(_)
                | Sabotage::TakeTwice(_)
                | Sabotage::SendTwice(_)
                | Sabotage::LoseParked(_)
                | Sabotage::LoseErrand(_)
                | Sabotage::LoseServing(_)
                | Sabotage::ForgetStored(_)
                | Sabotage::ShiftStored(_)
                | Sabotage::ForgetCarried(_)
                | Sabotage::ShiftCarried(_),
            )
            | None => return,
        };
        let Some((peer, thing)) = victim(member).filter(|_| self.strikes(at)) else {
            return;
        };
        let call = MessageBuilder::method_call("/org/freedesktop/DBus", member)
            .destination("org.freedesktop.DBus")
            .flags(Flags::NO_REPLY_EXPECTED)
            .serial(1u32)
            .body(|w| {
                w.str(&thing);
            })
            .build();
        let Ok(call) = call else { return };
        broker.handle(
            Event::Received {
                peer,
                upto: broker.taken(peer) + call.len() as u64,
                data: call.into(),
                fds: Fds::new(),
            },
            &mut Deaf,
        );
    }
}

/// With an end that is too large by one, or too small.
fn shifted(backlog: BacklogV1, at: u64) -> BacklogV1 {
    let end = if at.is_multiple_of(2) {
        backlog.end() + 1
    } else {
        backlog.end() - 1
    };
    BacklogV1::without_pages(backlog.owner(), backlog.start(), end)
}

struct Deaf;

impl System for Deaf {
    fn peer_pidfd(&mut self, _: Fd) -> Option<Fd> {
        None
    }
    fn duplicate(&mut self, _: Fd) -> Option<Fd> {
        None
    }
}
