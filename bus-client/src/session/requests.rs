//! What the session itself asks of the bus, in order and pipelined, but never so much that the bus refuses it for its number.

use std::collections::{BTreeMap, VecDeque};

use bus_wire::{BodyWriter, MessageBuilder, Serial};

use super::event::Refusal;
use super::ledger::Change;
use super::own_names::Ask;

/// The bus itself: its name and interface.
pub(super) const DRIVER: &str = "org.freedesktop.DBus";
const PATH: &str = "/org/freedesktop/DBus";

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Rule(Change),
    Name(Ask, Box<str>),
    /// Who owns it?
    Owner(Box<str>),
}

/// A question, and whether the replay waits for its answer.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) in_replay: bool,
}

/// Questions that wait, and those that wait for an answer.
#[derive(Debug, Default)]
pub(super) struct Requests {
    queue: VecDeque<Asked>,
    flying: BTreeMap<u32, Asked>,
    /// Answers that the replay waits for still.
    replay_left: usize,
    /// What was refused in the replay.
    pub(super) failed: Vec<Refusal>,
}

impl Requests {
    /// To be asked after all others.
    pub(super) fn push(&mut self, request: Request) {
        let in_replay = false;
        self.queue.push_back(Asked { request, in_replay });
    }

    /// A replay: these, in this order, before anything else.
    pub(super) fn replay(&mut self, requests: Vec<Request>) {
        self.replay_left = requests.len();
        self.failed.clear();
        let in_replay = true;
        self.queue = requests
            .into_iter()
            .map(|request| Asked { request, in_replay })
            .collect();
    }

    /// The next one, where not more than so many wait for an answer.
    pub(super) fn next(&mut self, window: usize) -> Option<Asked> {
        if self.flying.len() >= window {
            return None;
        }
        self.queue.pop_front()
    }

    /// Whether some were not sent yet. What is made after them must not overtake them: a call may bring about the very signal that
    /// a rule is for.
    pub(super) fn are_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// It was sent with this serial.
    pub(super) fn sent(&mut self, serial: Serial, asked: Asked) {
        self.flying.insert(serial.get(), asked);
    }

    pub(super) fn has_serial(&self, serial: u32) -> bool {
        self.flying.contains_key(&serial)
    }

    /// The one that was asked with this serial; it has its answer.
    pub(super) fn answered(&mut self, serial: Serial) -> Option<Asked> {
        self.flying.remove(&serial.get())
    }

    /// One of the replay is done with, or was not needed any more.
    pub(super) fn replayed(&mut self) {
        self.replay_left = self.replay_left.saturating_sub(1);
    }

    pub(super) fn is_replay_over(&self) -> bool {
        self.replay_left == 0
    }

    /// The link is gone.
    pub(super) fn lost(&mut self) {
        self.queue.clear();
        self.flying.clear();
        self.replay_left = 0;
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.queue.len() + self.flying.len()
    }
}

/// A call to the bus.
pub(super) fn call_driver(member: &str, serial: Serial, body: impl FnOnce(&mut BodyWriter)) -> Vec<u8> {
    let call = MessageBuilder::method_call(PATH, member)
        .destination(DRIVER)
        .interface(DRIVER)
        .serial(serial)
        .body(body);
    // All that is in it is valid: the names above, and what was checked when it came into the ledger.
    call.build().unwrap_or_default()
}
