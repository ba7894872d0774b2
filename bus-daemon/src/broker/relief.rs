//! What is done when the bus as a whole is short of memory.
//!
//! How much is held and how much may be is told by the runtime, which knows: what waits for many is in memory once, and
//! charged to each. It asks [`Broker::relief`] what is to be done, notes the answer in the event log, and tells it with
//! [`Event::Relieved`](super::Event::Relieved). So what the answer rests on (who sent what waits, who reads) need not be
//! saved: a replay does what was done.
//!
//! ```text
//! held:   ... 7/8 of the cap ........ cap .................. 5/4 of it .................. 3/2 of it
//!          |   who sent most is held  |   and receivers that   |   and those that do not    |   and whoever makes
//!          |   back (refused, and not |   are not live go, the |   read at this moment, and |   it hold most
//!          |   read for a while)      |   largest first        |   unfinished messages      |
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::agenda::Agenda;
use super::deadline::{Deadline, Deadlines};
use super::disconnect::Excess;
use super::event::{Millis, PeerId};
use super::invariants::Violation;
use super::ledger::{CALL, NAME, RULE};
use super::liveness::{LIVE, LIVE_RATE};
use super::peer::Peer;
use super::{Action, Broker};

/// How long a peer that is held back is not read from, in milliseconds. All waiting ends by time.
const UNREAD: u64 = 100;
/// How long its unicast messages are refused; each time it is found to have sent most it begins anew.
const REFUSED: u64 = 1000;
/// Whose share is below this is not to blame.
const LEAST: u64 = 32 * 1024;
/// A receiver that has taken nothing for so long is not [live](super::liveness) in an emergency, in which there is no time to wait for who reads.
const LIVE_IN_EMERGENCY: u64 = 250;

/// What a peer that is held back is told.
pub(crate) const MEMORY_SHORT: &str =
    "The bus is short of memory, and this connection sent most of what it holds";

/// Bytes of memory, as the runtime counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Held.
    pub held: u64,
    /// Allowed.
    pub cap: u64,
}

impl Memory {
    /// Whether it is time to do something.
    pub fn is_short(self) -> bool {
        self.held > self.near()
    }

    fn near(self) -> u64 {
        self.cap - self.cap / 8
    }

    fn is_emergency(self) -> bool {
        self.held > self.cap + self.cap / 4
    }

    /// On what grounds peers are disconnected, the best first.
    fn grounds(self) -> &'static [Ground] {
        if self.held > self.cap + self.cap / 2 {
            &[Ground::Stalled, Ground::Unfinished, Ground::Large]
        } else if self.is_emergency() {
            &[Ground::Stalled, Ground::Unfinished]
        } else {
            &[Ground::Stalled]
        }
    }
}

/// Why a peer may have to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ground {
    /// It does not read, or its message does not get on.
    Stalled,
    /// Its message is not whole, though it gets on: many such messages may never all be held.
    Unfinished,
    /// It makes the bus hold much.
    Large,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Relief {
    /// Who is not read from for a while, and whose unicast messages are refused.
    pub hold_back: Vec<PeerId>,
    /// Who is disconnected.
    pub dismiss: Vec<PeerId>,
}

/// Who is disconnected, in what order, and each once.
#[derive(Debug, Default)]
struct Dismissal {
    order: Vec<PeerId>,
    all: BTreeSet<PeerId>,
}

impl Dismissal {
    fn add(&mut self, id: PeerId) {
        if self.all.insert(id) {
            self.order.push(id);
        }
    }

    fn contains(&self, id: PeerId) -> bool {
        self.all.contains(&id)
    }
}

/// A peer that sent most of what waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HeldBack {
    /// Until when it is not read from; `None`: it is, again.
    unread: Option<Millis>,
    /// Until when its messages are refused.
    refused: Millis,
}

impl HeldBack {
    fn due(self) -> Millis {
        self.unread.unwrap_or(self.refused)
    }
}

/// Who is held back, and how often something was done.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    held_back: BTreeMap<PeerId, HeldBack>,
    counts: Counts,
}

/// How often memory was short for somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Counts {
    /// Messages and calls refused.
    pub(super) refused: u64,
    /// How often a peer was not read from for a while.
    pub(super) paced: u64,
    /// Peers disconnected.
    pub(super) dismissed: u64,
}

/// A [`Broker`]'s shortage of memory as a checkpoint has it. An upgrade does not take it along: nobody is held back after it,
/// until memory is found to be short again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SavedShortage {
    held_back: Vec<(PeerId, HeldBack)>,
    counts: Counts,
}

impl Shortage {
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether a peer is not to be read from.
    pub(super) fn is_unread(&self, id: PeerId) -> bool {
        self.held_back.get(&id).is_some_and(|held| held.unread.is_some())
    }

    fn is_refused(&self, id: PeerId) -> bool {
        self.held_back.contains_key(&id)
    }

    pub(super) fn forget(&mut self, id: PeerId, deadlines: &mut Deadlines) {
        if let Some(held) = self.held_back.remove(&id) {
            deadlines.change(Deadline::HeldBack(id), Some(held.due()), None);
        }
    }

    /// All that is due.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = (Millis, Deadline)> {
        let held = self.held_back.iter();
        held.map(|(id, held)| (held.due(), Deadline::HeldBack(*id)))
    }

    pub(super) fn check(&self, is_here: impl Fn(PeerId) -> bool) -> Result<(), Violation> {
        match self.held_back.keys().find(|id| !is_here(**id)) {
            Some(id) => Err(Violation::new(format!("{id:?} is gone and held back"))),
            None => Ok(()),
        }
    }
}

/// Which peers would be to blame, and for how much.
struct Share {
    id: PeerId,
    uid: Option<u32>,
    bytes: u64,
}

impl Broker {
    /// What is to be done about the memory that is held. `None`: nothing.
    pub fn relief(&self, memory: Memory) -> Option<Relief> {
        let mut hold_back = Vec::new();
        let mut dismissal = Dismissal::default();
        self.too_large(memory.cap)
            .into_iter()
            .for_each(|id| dismissal.add(id));
        if memory.is_short() {
            hold_back = self.sent_most(memory);
            if memory.held > memory.cap {
                self.give_up(memory, &mut dismissal);
            }
        }
        hold_back.retain(|id| !dismissal.contains(*id));
        let relief = Relief {
            hold_back,
            dismiss: dismissal.order,
        };
        (relief != Relief::default()).then_some(relief)
    }

    /// Bytes of memory that the state takes beside what the journal holds, at most; what has arrived of large messages is
    /// among them, wherever it lies.
    pub fn held_outside(&self) -> u64 {
        self.ledger.loose() + self.state_charge() + self.activation_environment.charge()
    }

    /// What match rules, names, open calls and long lists of groups are charged.
    pub(super) fn state_charge(&self) -> u64 {
        let rules = self.subscriptions.len() as u64 * RULE;
        let names = (self.names.len() + self.roster.unique_count()) as u64 * NAME;
        let calls = self.calls.entries().len() as u64 * CALL;
        rules + names + calls + self.ledger.groups()
    }

    /// Who is in the middle of a message that could not be held beside anything else.
    fn too_large(&self, cap: u64) -> Vec<PeerId> {
        if cap / 2 >= bus_wire::limits::MAX_MESSAGE as u64 {
            return Vec::new();
        }
        let is_too_large = |peer: &&Peer| {
            let large = peer.framer.large();
            large.is_some_and(|large| large.total as u64 > cap / 2)
        };
        self.roster
            .iter()
            .filter(is_too_large)
            .map(|peer| peer.id)
            .collect()
    }

    /// The peers of the user who sent most of what waits, or otherwise makes the bus hold it: those who sent most of that.
    /// Beyond the cap everybody who sent much.
    fn sent_most(&self, memory: Memory) -> Vec<PeerId> {
        let mut shares: Vec<Share> = self.roster.iter().map(|peer| self.share_of(peer)).collect();
        shares.retain(|share| share.bytes > 0);
        let mut users: BTreeMap<Option<u32>, u64> = BTreeMap::new();
        for share in &shares {
            *users.entry(share.uid).or_insert(0) += share.bytes;
        }
        let is_over = memory.held > memory.cap;
        let most = users.values().max().copied().unwrap_or(0);
        shares.sort_unstable_by_key(|share| (Reverse(share.bytes), share.id));
        // Much beside what others sent.
        let least = LEAST.max(shares.first().map_or(0, |share| share.bytes / 32));
        let mut taken: BTreeMap<Option<u32>, u64> = BTreeMap::new();
        let mut chosen = Vec::new();
        for share in shares {
            let of_user = users.get(&share.uid).copied().unwrap_or(0);
            let taken = taken.entry(share.uid).or_insert(0);
            let is_meant = is_over || (of_user == most && *taken < of_user.div_ceil(2));
            if is_meant && share.bytes >= least {
                *taken += share.bytes;
                if !self.shortage.is_unread(share.id) {
                    chosen.push(share.id);
                }
            }
        }
        chosen
    }

    fn share_of(&self, peer: &Peer) -> Share {
        let rules = self.subscriptions.held_count(peer.id) as u64 * RULE;
        let names = self.names.held_count(peer.id) as u64 * NAME;
        let calls = self.calls.awaited_count(peer.id) as u64 * CALL;
        Share {
            id: peer.id,
            uid: peer.credentials.uid,
            bytes: self.ledger.sent_by(peer.id)
                + peer.charge.input
                + peer.charge.groups
                + rules
                + names
                + calls,
        }
    }

    /// Dismisses peers that make the bus hold much, on the best ground there is, until enough is free: the largest first, but
    /// those who get on, slowly as it may be, after all that do not.
    fn give_up(&self, memory: Memory, dismissal: &mut Dismissal) {
        let excess = memory.held - memory.near();
        let mut freed = 0;
        for ground in memory.grounds() {
            let mut all: Vec<(bool, Reverse<u64>, PeerId)> = self
                .roster
                .iter()
                .filter(|peer| !dismissal.contains(peer.id))
                .map(|peer| {
                    let bytes = self.holding(peer, *ground, memory);
                    (self.gets_on(peer, *ground), Reverse(bytes), peer.id)
                })
                .filter(|(_, bytes, _)| bytes.0 >= LEAST)
                .collect();
            // Who holds next to nothing of it goes only if nobody holds much.
            let is_much = |bytes: u64| bytes >= excess / 128;
            if freed > 0 || all.iter().any(|(_, bytes, _)| is_much(bytes.0)) {
                all.retain(|(_, bytes, _)| is_much(bytes.0));
            }
            all.sort_unstable();
            for (_, Reverse(bytes), id) in all {
                if freed >= excess {
                    return;
                }
                freed += bytes;
                dismissal.add(id);
            }
        }
    }

    /// What a peer makes the bus hold that is given up on this ground.
    fn holding(&self, peer: &Peer, ground: Ground, memory: Memory) -> u64 {
        let charge = peer.charge;
        let within = if memory.is_emergency() {
            LIVE_IN_EMERGENCY
        } else {
            LIVE
        };
        let awake = self.awake;
        match ground {
            Ground::Stalled => {
                let is_read = charge.queued == 0 || peer.reading.is_live(awake, peer.out.sent(), within);
                let age = awake.now() - peer.reading.input_since;
                let waits = matches!(peer.agenda, Agenda::Paced { .. });
                let gets_on = waits || age < within || charge.input >= LIVE_RATE * age;
                let unread = if is_read { 0 } else { charge.queued };
                let unfinished = if gets_on { 0 } else { charge.input };
                unread + unfinished
            }
            Ground::Unfinished => charge.input,
            Ground::Large => charge.queued + charge.input,
        }
    }

    /// Whether a peer that is slow will have read all before long, as a monitor that is not as fast as the bus.
    fn gets_on(&self, peer: &Peer, ground: Ground) -> bool {
        ground == Ground::Stalled
            && peer
                .reading
                .gets_on(self.awake, peer.out.sent(), peer.charge.queued)
    }

    /// Does what [`relief`](Self::relief) said.
    pub(super) fn relieved(&mut self, relief: Relief) {
        for id in relief.hold_back {
            self.hold_back(id);
        }
        for id in relief.dismiss {
            if let Some(peer) = self.roster.get(id) {
                self.shortage.counts.dismissed += 1;
                let held = peer.charge.queued + peer.charge.input;
                self.disconnect(id, Excess::Memory(held).into());
            }
        }
    }

    fn hold_back(&mut self, id: PeerId) {
        let Some(peer) = self.roster.get(id) else { return };
        let is_read = !peer.is_unread() && !self.shortage.is_unread(id);
        let is_news = !self.shortage.is_refused(id);
        let held = HeldBack {
            unread: Some(self.deadlines.later(UNREAD)),
            refused: self.deadlines.later(REFUSED),
        };
        if is_news {
            let text = format!(
                "{}: memory is short, and it sent most of what waits: its messages are refused",
                peer.unique_name()
            );
            self.warn(self.uid(id), text);
        }
        self.shortage.counts.paced += 1;
        let before = self.shortage.held_back.insert(id, held).map(HeldBack::due);
        self.deadlines
            .change(Deadline::HeldBack(id), before, Some(held.due()));
        if is_read {
            self.outgoing.ask(Action::StopReading(id));
        }
    }

    /// The time has come for a peer that is held back: it is read from again, or its messages are not refused any more.
    pub(super) fn end_hold_back(&mut self, id: PeerId) {
        let Some(held) = self.shortage.held_back.get_mut(&id) else {
            return;
        };
        if held.unread.take().is_none() {
            self.shortage.held_back.remove(&id);
            return;
        }
        let due = held.due();
        self.deadlines.change(Deadline::HeldBack(id), None, Some(due));
        if self.roster.get(id).is_some_and(|peer| !peer.is_unread()) {
            self.outgoing.ask(Action::ResumeReading(id));
        }
    }

    /// Whether what a peer wants to add is refused, because memory is short; counted if so.
    pub(crate) fn refuses(&mut self, id: PeerId) -> bool {
        let is_refused = !self.shortage.held_back.is_empty() && self.shortage.is_refused(id);
        self.shortage.counts.refused += u64::from(is_refused);
        is_refused
    }

    /// Input has come; whether a message is complete with it.
    pub(super) fn note_input(&mut self, id: PeerId, is_complete: bool) {
        let awake = self.awake;
        if let Some(peer) = self.roster.get_mut(id) {
            if is_complete || peer.charge.input == 0 {
                peer.reading.input_since = awake.now();
            }
            self.ledger.settle(peer);
        }
    }

    /// For a checkpoint.
    pub fn save_shortage(&self) -> SavedShortage {
        let Shortage { held_back, counts } = &self.shortage;
        SavedShortage {
            held_back: held_back.iter().map(|(id, held)| (*id, *held)).collect(),
            counts: *counts,
        }
    }

    /// As a checkpoint has it.
    pub(super) fn restore_shortage(&mut self, saved: SavedShortage) {
        let SavedShortage { held_back, counts } = saved;
        self.shortage.counts = counts;
        for (id, held) in held_back {
            if self.roster.get(id).is_some() {
                self.shortage.held_back.insert(id, held);
                self.deadlines
                    .change(Deadline::HeldBack(id), None, Some(held.due()));
            }
        }
    }
}
