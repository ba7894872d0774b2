//! What each client must see: the rules of the bus once more, in the plainest way, against which every message that
//! the broker queues is held.
//!
//! The model knows the clients' messages as they meant them, never as the broker read them. It walks through an event
//! after the broker did, and takes each message that it expects from what the broker queued ([`Seen`]); a message that
//! is missing, other than expected or left over is a failure.

mod driver;
mod errands;
mod life;
mod names;
mod route;
mod shares;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use bus_daemon::broker::{Errand, PeerId};
use bus_daemon::config::Limits;
use bus_wire::Message;

use crate::files::File;
use crate::letter::Letter;
use crate::random::Random;
use crate::rule::Rule;
pub(crate) use errands::End;
use errands::{Reload, Upgrade};
pub(crate) use shares::Paced;
use shares::Party;

/// What the model says to what the broker did.
pub(crate) type Check<T = ()> = Result<T, Trouble>;

/// Why a run does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The broker did something else than it must.
    Wrong(String),
    /// The model cannot know what is right: a queue was about as long as its limit when its peer was disconnected, and
    /// what the texts of errors added to it is not known.
    Unknowable,
}

impl From<String> for Trouble {
    fn from(what: String) -> Self {
        Self::Wrong(what)
    }
}

pub(crate) fn wrong<T>(what: impl Into<String>) -> Check<T> {
    Err(Trouble::Wrong(what.into()))
}

/// What a client wrote, as far as it makes a difference.
#[derive(Debug, Clone)]
pub(crate) enum Meaning {
    /// A line of authentication that is answered with a line beginning so.
    Line(&'static str),
    /// It must be disconnected at this.
    Kick,
    /// BEGIN: a uid, and whether descriptors may be passed.
    Begin { uid: u32, takes_fds: bool },
    /// A message.
    Letter(Rc<Letter>),
    /// A message of an unknown type, with so many files.
    Ignored(usize),
    /// Bytes that are no message: from the first of them on the client may be disconnected, at the last it must be.
    Malformed,
}

/// One piece of a client's stream, by its place in the stream.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) meaning: Meaning,
}

/// What the broker did in one event.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Messages added to the queues of those who are still there.
    pub(crate) messages: BTreeMap<PeerId, VecDeque<(Message, Vec<File>)>>,
    /// The same of lines of authentication.
    pub(crate) lines: BTreeMap<PeerId, VecDeque<String>>,
    /// Who was disconnected, in order.
    pub(crate) gone: Vec<PeerId>,
    /// How each duplication of a descriptor ended, in order.
    pub(crate) duplicates: VecDeque<bool>,
    /// The files that stand for processes.
    pub(crate) pidfds: VecDeque<Option<File>>,
    /// Errands that were asked for, in order.
    pub(crate) errands: VecDeque<(u64, Errand)>,
    /// How often the state was to be handed over.
    pub(crate) hand_overs: u32,
    /// Whose next message waits after it.
    pub(crate) paced: BTreeMap<PeerId, Paced>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Authenticating,
    Greeting,
    Active,
    Monitor,
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
    pub(crate) pid: u32,
    pub(crate) phase: Phase,
    pub(crate) unique: Option<u64>,
    is_reachable: bool,
    /// It has no link.
    is_parked: bool,
    takes_fds: bool,
    is_condemned: bool,
    stream: VecDeque<Piece>,
    delivered: u64,
    held: VecDeque<File>,
    queued: u64,
    queued_fds: u64,
    /// Whose how much of it is, once much waits.
    cells: BTreeMap<Party, u64>,
    /// Its next message waits.
    paced: Option<Paced>,
    /// The length of its queue is not known for certain.
    is_uncertain: bool,
    hello_deadline: Option<u64>,
    /// Its user has no slot for one more that has not said Hello.
    is_waiting: bool,
    fds_deadline: Option<u64>,
    /// Names that it owns or waits for, by request.
    names: Vec<String>,
    pub(crate) rules: Vec<Rule>,
    /// Caller and serial of the calls that it has to answer.
    owed: BTreeMap<(PeerId, u32), Option<u64>>,
    awaited: BTreeSet<(PeerId, u32)>,
    /// Until when what it sends to others and adds to the state is refused.
    refused_until: u64,
}

impl Peer {
    /// The next piece of its stream that the bus has read completely.
    fn next_piece(&mut self, held_at: u64) -> Option<Piece> {
        let is_whole = self
            .stream
            .front()
            .is_some_and(|piece| piece.end <= self.delivered && piece.start < held_at);
        if is_whole { self.stream.pop_front() } else { None }
    }

    pub(crate) fn name(&self) -> String {
        self.unique
            .map_or_else(|| ":not.active.yet".to_owned(), |number| format!(":1.{number}"))
    }
}

/// The bus as it must be.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) now: u64,
    pub(crate) limits: Limits,
    pub(crate) eavesdrop_allowed: bool,
    pub(crate) peers: BTreeMap<PeerId, Peer>,
    /// Owner first, then who waits, with the flags of their requests.
    pub(crate) names: BTreeMap<String, VecDeque<(PeerId, u32)>>,
    next_unique: u64,
    next_errand: u64,
    reload: Reload,
    upgrade: Upgrade,
    /// Upgrades that succeeded, and one.
    generation: u32,
    condemned: VecDeque<PeerId>,
    /// Who sent what is being queued, if it counts as the sender's.
    origin: Option<PeerId>,
    seen: Seen,
    closed: Vec<PeerId>,
    /// Whose BecomeMonitor is being dealt with, and its filters.
    monitor_to_be: Option<(PeerId, Vec<Rule>)>,
    /// Messages that were as expected.
    pub(crate) matched: u64,
}

/// The user that the bus runs as, and its process.
pub(crate) const OWN_UID: u32 = 1000;
pub(crate) const KEEPER_PID: u32 = 42;
/// What GetId answers.
pub(crate) const BUS_ID: [u8; 16] = [0xab; 16];

impl Model {
    pub(crate) fn new(limits: Limits, eavesdrop_allowed: bool, now: u64) -> Self {
        Self {
            now,
            limits,
            eavesdrop_allowed,
            peers: BTreeMap::new(),
            names: BTreeMap::new(),
            next_unique: 0,
            next_errand: 1,
            reload: Reload::default(),
            upgrade: Upgrade::None,
            generation: 1,
            condemned: VecDeque::new(),
            origin: None,
            seen: Seen::default(),
            closed: Vec::new(),
            monitor_to_be: None,
            matched: 0,
        }
    }

    /// Takes in what the broker did in the event that comes next.
    pub(crate) fn begin(&mut self, seen: Seen) {
        self.seen = seen;
        self.closed.clear();
    }

    /// The event is over: nothing may be left of what the broker did.
    pub(crate) fn end(&mut self) -> Check {
        self.bury()?;
        self.note_waits()?;
        for (peer, messages) in &self.seen.messages {
            if let Some((message, _)) = messages.front() {
                return wrong(format!(
                    "{peer:?} is sent a message that is not for it, or twice: {message:?}"
                ));
            }
        }
        for (peer, lines) in &self.seen.lines {
            if let Some(line) = lines.front() {
                return wrong(format!("{peer:?} is told {line:?} without reason"));
            }
        }
        // Of several that go at once whoever has nothing to give up is gone before others, who need steps for that.
        self.closed.sort_unstable();
        self.seen.gone.sort_unstable();
        if self.seen.gone != self.closed {
            return wrong(format!(
                "disconnected are {:?}, and {:?} must be",
                self.seen.gone, self.closed
            ));
        }
        if !self.seen.duplicates.is_empty() || !self.seen.pidfds.is_empty() {
            return wrong("descriptors were made that nobody needs");
        }
        if !self.seen.errands.is_empty() || self.seen.hand_overs > 0 {
            return wrong(format!("nobody wants {:?} to be done", self.seen.errands));
        }
        Ok(())
    }

    /// The unique name of the peer that owns a name.
    pub(crate) fn owner(&self, name: &str) -> Option<PeerId> {
        self.names.get(name)?.front().map(|(peer, _)| *peer)
    }

    /// The names that a peer is the owner of.
    pub(crate) fn owned(&self, id: PeerId) -> Vec<String> {
        self.names
            .iter()
            .filter(|(_, queue)| queue.front().is_some_and(|(owner, _)| *owner == id))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// A peer between two messages, and something of its that a method of this name would take away.
    pub(crate) fn victim(&self, method: &str) -> Option<(PeerId, String)> {
        self.peers.iter().find_map(|(id, peer)| {
            let is_between = peer
                .stream
                .front()
                .is_none_or(|piece| piece.start >= peer.delivered);
            let thing = match method {
                "RemoveMatch" => peer.rules.first().map(|rule| rule.text(&mut Random::new(1))),
                _ => peer.names.first().cloned(),
            };
            (is_between && peer.phase == Phase::Active).then_some((*id, thing?))
        })
    }

    /// All names by which a peer can be meant in a rule.
    fn names_of(&self, id: PeerId) -> Vec<String> {
        let mut names = self.owned(id);
        names.extend(
            self.peers
                .get(&id)
                .and_then(|peer| peer.unique)
                .map(|number| format!(":1.{number}")),
        );
        names
    }

    /// Who is reached by a name.
    pub(crate) fn resolve(&self, name: &str) -> Option<PeerId> {
        if name.starts_with(':') {
            let found = self
                .peers
                .iter()
                .find(|(_, peer)| peer.is_reachable && peer.name() == name);
            found.map(|(id, _)| *id)
        } else {
            self.owner(name)
        }
    }
}
