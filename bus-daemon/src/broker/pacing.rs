//! Senders of broadcasts are slowed down to what live receivers read, and never stopped: `docs/fair-shares.md`.
//!
//! A broadcast is never refused. One that goes beyond its party's [share](super::shares) of the queue of a live receiver
//! advances the *clock* of its party by the time in which that receiver reads it at the least. A signal of a party whose
//! clock is ahead of the present waits, in the framer of its sender, which is not read from meanwhile. Where several peers
//! of a party wait, each has reserved a time of its own, so that each of them waits once and not for ever.
//!
//! What the driver says of names is a broadcast of the peer whose doing it is. So calls that have such signals wait too.

use std::collections::BTreeMap;

use bus_wire::{Framer, NextCall};

use super::agenda::Agenda;
use super::deadline::Deadline;
use super::event::{Millis, PeerId};
use super::frozen::{PacingV1, PartyV1, PeerShareV1, SharesV1};
use super::invariants::Violation;
use super::liveness::{AwakeTime, LIVE, Liveness};
use super::peer::Peer;
use super::shares::{Cells, Party, reading_time};
use super::{Action, Broker, DRIVER};

/// A party may be so many microseconds ahead: to wait for less would wake the bus for every message.
const AHEAD: u64 = 10_000;
/// A peer that waits reserves the time for its message, and for so many bytes at the least: so often a party's small messages
/// wake the bus.
const RESERVED: u64 = 1024;
/// No call waits longer, in microseconds: its caller waits too, and many give up after 25 seconds. What is still missing
/// then its party's other messages wait for.
const LONGEST_CALL: u64 = 5_000_000;
/// Methods of the driver after which it has something to tell others.
const TOLD_TO_ALL: [&str; 3] = ["Hello", "RequestName", "ReleaseName"];
/// No clock is further ahead, and no wait longer, in microseconds: a day. So whatever was made is restored.
const LONGEST: u64 = 86_400_000_000;

/// The clocks of parties that are ahead.
#[derive(Debug, Default)]
pub(super) struct Pacing {
    /// In microseconds on the clock of the deadlines.
    clocks: BTreeMap<Party, u64>,
}

/// How long a broadcast makes its sender's parties wait, in microseconds: the longest of all its receivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Wait {
    /// As a user, for receivers of others.
    user: u64,
    /// As a peer, for receivers of its own user.
    peer: u64,
}

impl Wait {
    fn is_none(self) -> bool {
        self.longest() == 0
    }

    fn longest(self) -> u64 {
        self.user.max(self.peer)
    }

    /// And for another receiver.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            user: self.user.max(other.user),
            peer: self.peer.max(other.peer),
        }
    }
}

impl Pacing {
    /// Whether anybody is ahead, or was a moment ago.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        !self.clocks.is_empty()
    }

    /// Time has gone on.
    pub(super) fn note_time(&mut self, now: Millis) {
        if self.is_on() {
            self.clocks.retain(|_, clock| *clock > micros(now));
        }
    }

    /// A peer is gone.
    pub(super) fn forget(&mut self, id: PeerId) {
        if self.is_on() {
            self.clocks.remove(&Party::Peer(id));
        }
    }

    fn clock(&self, party: Party) -> u64 {
        self.clocks.get(&party).copied().unwrap_or(0)
    }

    /// The clock of a party goes on by so much, from the present at the least.
    fn advance(&mut self, party: Party, now: u64, by: u64) {
        if by > 0 {
            let clock = self.clocks.entry(party).or_insert(now);
            *clock = (*clock)
                .max(now)
                .saturating_add(by)
                .min(now.saturating_add(LONGEST));
        }
    }
}

impl Broker {
    /// A message was queued for a peer of which much waits: counts whose it is. `queued` bytes waited before. How long a
    /// broadcast makes its sender wait for that.
    #[cold]
    pub(super) fn count_share(&mut self, to: PeerId, origin: Option<PeerId>, queued: u64) -> Wait {
        let uid = origin.and_then(|id| self.uid(id));
        let own_uid = self.identity.own_uid;
        let (awake, limit) = (self.awake, self.config.limits.max_outgoing_bytes);
        let Some(peer) = self.roster.get_mut(to) else {
            return Wait::default();
        };
        let party = party_at(peer, origin, uid);
        let party = peer.cells.holder(party);
        let message = peer.out.len() - queued;
        let is_over = queued > super::shares::counted_from(limit)
            && !peer
                .cells
                .is_within_share(party, message, limit.saturating_sub(queued));
        peer.cells.add(party, message);
        if !is_over || !peer.reading.is_live(awake, peer.out.sent(), LIVE) {
            return Wait::default();
        }
        let time = reading_time(message, peer.cells.parts_with(party));
        match party {
            Party::Own => Wait::default(),
            // Those whom a user must not be able to slow down.
            Party::User(Some(uid)) if uid == 0 || uid == own_uid => Wait::default(),
            Party::Peer(_) | Party::Peers if peer.credentials.uid == Some(0) => Wait::default(),
            Party::User(_) => Wait { user: time, peer: 0 },
            Party::Peer(_) | Party::Peers => Wait { user: 0, peer: time },
        }
    }

    /// Whether a message is too much for what a party may have of a queue of which much waits already.
    #[cold]
    pub(super) fn is_beyond_share(&self, receiver: &Peer, from: PeerId, message: u64) -> bool {
        let party = receiver
            .cells
            .holder(party_at(receiver, Some(from), self.uid(from)));
        let limit = self.config.limits.max_outgoing_bytes;
        let free = limit.saturating_sub(receiver.out.len());
        receiver.cells.of(party) > 0 && !receiver.cells.is_within_share(party, message, free)
    }

    /// A broadcast, or what the driver says of a peer's doing, was queued for all.
    pub(super) fn note_broadcast(&mut self, id: PeerId, wait: Wait) {
        if wait.is_none() && !self.pacing.is_on() {
            return;
        }
        let uid = self.uid(id);
        let now = micros(self.deadlines.now());
        let Some(peer) = self.roster.get_mut(id) else {
            return;
        };
        // What it has reserved beyond its need is no credit for later.
        let credit = std::mem::take(&mut peer.credit);
        if wait.is_none() {
            return;
        }
        peer.credit = credit.saturating_sub(wait.longest());
        let rest = |time: u64| time.saturating_sub(credit);
        self.pacing.advance(Party::User(uid), now, rest(wait.user));
        self.pacing.advance(Party::Peer(id), now, rest(wait.peer));
    }

    /// Whether the next message of a peer has to wait. If so, it is not read from until the time has come.
    #[cold]
    pub(super) fn is_held(&mut self, id: PeerId) -> bool {
        let now = micros(self.deadlines.now());
        // What its framer has is not changed by being looked at.
        let Some(peer) = self.roster.at_mut(id.index).filter(|peer| peer.id == id) else {
            return false;
        };
        if peer.credit > 0 || peer.agenda.puts_off_input() {
            return false;
        }
        let parties = [Party::User(peer.credentials.uid), Party::Peer(id)];
        let latest = parties.map(|party| self.pacing.clock(party)).into_iter().max();
        let Some(latest) = latest.filter(|latest| *latest > now + AHEAD) else {
            return false;
        };
        let Some(next) = Broadcast::next_of(&mut peer.framer) else {
            return false;
        };
        let reserved = reading_time(RESERVED.max(next.length), 1);
        let until = latest.min(now.saturating_add(next.longest));
        for party in parties {
            if self.pacing.clock(party) > now {
                self.pacing.advance(party, now, reserved);
            }
        }
        self.hold(id, Millis(until.div_ceil(1000)), reserved);
        true
    }

    /// The next message of a peer waits. How long it has waited by then is the `credit`, in microseconds.
    pub(super) fn hold(&mut self, id: PeerId, until: Millis, credit: u64) {
        let is_read = self.may_read(id);
        let Some(peer) = self.roster.get_mut(id) else {
            return;
        };
        peer.credit = credit;
        peer.agenda = Agenda::Paced { until };
        // It may wait for long, and a part of the log must not wait with it.
        peer.framer.let_go();
        // Its message is complete. Routing expects what is behind it again, once the wait is over.
        self.deadlines.expect_fds(peer, None);
        // Nor is a Hello that is there overdue.
        self.deadlines.expect_hello(peer, None);
        self.deadlines.change(Deadline::Paced(id), None, Some(until));
        if is_read {
            self.outgoing.ask(Action::StopReading(id));
        }
    }

    /// The time of a peer's next message has come.
    pub(super) fn end_wait(&mut self, id: PeerId) {
        let Some(peer) = self.roster.get_mut(id) else {
            return;
        };
        if matches!(peer.agenda, Agenda::Paced { .. }) {
            if peer.is_incomplete() {
                let until = self.deadlines.later(self.config.limits.auth_timeout);
                self.deadlines.expect_hello(peer, Some(until));
            }
            self.put_off_input(id);
            if self.may_read(id) {
                self.outgoing.ask(Action::ResumeReading(id));
            }
        }
    }

    /// The messages of a peer that gives up what it has do not wait any more.
    pub(super) fn drop_wait(&mut self, id: PeerId) {
        let Some(peer) = self.roster.get_mut(id) else {
            return;
        };
        if let Agenda::Paced { until } = peer.agenda {
            peer.agenda = Agenda::Idle;
            self.deadlines.change(Deadline::Paced(id), Some(until), None);
        }
    }

    /// Whether a peer's next message waits for its time: nothing is to be read from it, not even its end.
    pub fn is_paced(&self, id: PeerId) -> bool {
        self.paced_until(id).is_some()
    }

    /// Until when a peer's next message waits, if it does.
    pub fn paced_until(&self, id: PeerId) -> Option<Millis> {
        self.roster.get(id).and_then(paced_until)
    }

    /// Shares and waits, for a state.
    pub fn save_shares(&self) -> SharesV1 {
        let peers = self.roster.iter().filter_map(save_share);
        SharesV1 {
            pacing: self.save_pacing(),
            peers: peers.collect(),
        }
    }

    /// The part of them that belongs to no single peer.
    pub fn save_pacing(&self) -> PacingV1 {
        let clocks = self.pacing.clocks.iter();
        PacingV1 {
            awake: self.awake.now(),
            clocks: clocks
                .map(|(party, clock)| (PartyV1::from(*party), *clock))
                .collect(),
        }
    }

    /// The part of them of the peer with this index, if there is one.
    pub fn save_share_at(&self, index: u32) -> Option<PeerShareV1> {
        save_share(self.roster.at(index)?)
    }

    /// Goes on with them. What cannot be is left out: then nobody waits for it, and of what waits it is not known whose it is.
    pub fn resume_shares(&mut self, shares: SharesV1) {
        let SharesV1 {
            pacing: PacingV1 { awake, clocks },
            peers,
        } = shares;
        self.awake = AwakeTime::restore(awake);
        let now = micros(self.deadlines.now());
        let latest = now.saturating_add(LONGEST);
        let clocks = clocks.into_iter().map(|(party, clock)| (party.into(), clock));
        self.pacing.clocks = clocks.filter(|(_, clock)| *clock <= latest).collect();
        let ids: Vec<PeerId> = self.peer_ids().collect();
        for id in ids {
            if let Some(peer) = self.roster.at_mut(id.index) {
                peer.reading = Liveness::begun(self.awake, peer.out.sent());
            }
        }
        for share in peers {
            self.resume_share(share, latest);
        }
    }

    fn resume_share(&mut self, share: PeerShareV1, latest: u64) {
        let PeerShareV1 {
            peer: id,
            cells,
            since,
            earlier,
            later,
            credit,
            paced,
        } = share;
        let awake = self.awake;
        let Some(peer) = self.roster.at_mut(id.index).filter(|peer| peer.id == id) else {
            return;
        };
        let cells = cells.into_iter().map(|(party, bytes)| (party.into(), bytes));
        peer.cells = Cells::restore(cells.collect(), peer.out.len()).unwrap_or_default();
        let reading = Liveness {
            since,
            marks: [earlier, later],
            ..peer.reading
        };
        if reading.is_sound(awake, peer.out.sent()) {
            peer.reading = reading;
        }
        peer.credit = credit.min(LONGEST);
        let may_wait = matches!(peer.agenda, Agenda::Idle | Agenda::Input);
        if let Some(until) = paced.filter(|until| micros(*until) <= latest && may_wait) {
            peer.agenda = Agenda::Paced { until };
            self.deadlines.expect_fds(peer, None);
            self.deadlines.change(Deadline::Paced(id), None, Some(until));
        }
    }

    /// Cells are those of their queues.
    pub(super) fn check_shares(&self) -> Result<(), Violation> {
        self.roster
            .iter()
            .try_for_each(|peer| peer.cells.check(peer.out.len()))
    }
}

/// What comes next from a peer, if that is told to all.
struct Broadcast {
    /// Bytes that are told, as far as that is known.
    length: u64,
    /// How long it waits at the most, in microseconds.
    longest: u64,
}

impl Broadcast {
    fn next_of(framer: &mut Framer) -> Option<Self> {
        if let Some(length) = framer.next_signal() {
            return Some(Self {
                length: length as u64,
                longest: LONGEST,
            });
        }
        let is_told = match framer.next_call()? {
            NextCall::Named {
                destination: Some(DRIVER),
                member,
            } => TOLD_TO_ALL.contains(&member),
            NextCall::Named { .. } => false,
            // So that a name that nobody reads is no way around it.
            NextCall::Long => true,
        };
        is_told.then_some(Self {
            length: 0,
            longest: LONGEST_CALL,
        })
    }
}

/// Who a sender is for a receiver.
fn party_at(receiver: &Peer, origin: Option<PeerId>, uid: Option<u32>) -> Party {
    match origin {
        None => Party::Own,
        Some(id) if uid == receiver.credentials.uid => Party::Peer(id),
        Some(_) => Party::User(uid),
    }
}

fn save_share(peer: &Peer) -> Option<PeerShareV1> {
    let paced = paced_until(peer);
    let is_needed = !peer.out.is_empty() || peer.credit > 0 || paced.is_some();
    let Liveness {
        since,
        marks: [earlier, later],
        // Only advises.
        input_since: _,
    } = if peer.out.is_empty() {
        // It begins anew with what waits next.
        Liveness::default()
    } else {
        peer.reading
    };
    is_needed.then(|| PeerShareV1 {
        peer: peer.id,
        cells: peer
            .cells
            .iter()
            .map(|(party, bytes)| (party.into(), bytes))
            .collect(),
        since,
        earlier,
        later,
        credit: peer.credit,
        paced,
    })
}

fn paced_until(peer: &Peer) -> Option<Millis> {
    if let Agenda::Paced { until } = peer.agenda {
        Some(until)
    } else {
        None
    }
}

fn micros(time: Millis) -> u64 {
    time.0.saturating_mul(1000)
}
