//! Who holds how much of the table of descriptors: a share for each user, and for each connection of a user.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::event::PeerId;
use super::invariants::Violation;
use super::peer::Peer;

/// Of the table, what no peer is charged: what one read brings before it is known whose share it is (the kernel passes at
/// most 253), errands, and whoever is turned away.
const IN_PASSING: u64 = 288;

/// Who is charged for descriptors that wait in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Payer {
    /// Who has a share of what the user may hold.
    part: Part,
    /// The user, who is charged even when the peer is gone.
    uid: Option<u32>,
}

/// Among whom it is divided what a user may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Part {
    /// Who of the user's peers sent them; the receiver, of what it asked for.
    Peer(PeerId),
    /// Another user, all of whose peers' broadcasts to peers of this one have one share.
    Guest(Option<u32>),
}

impl Payer {
    /// Nobody in particular: after an upgrade it is not known who sent what waits.
    pub(super) const UNKNOWN: Self = Self {
        part: Part::Peer(PeerId {
            index: u32::MAX,
            generation: 0,
        }),
        uid: None,
    };

    pub(super) fn of(peer: &Peer) -> Self {
        Self {
            part: Part::Peer(peer.id),
            uid: peer.credentials.uid,
        }
    }

    /// Of the copy of a broadcast: its sender, within its own user; to another user's peer that user, who can have as many
    /// subscribers as it likes, and let them not read.
    pub(super) fn of_copy(sender: &Peer, receiver: &Peer) -> Self {
        let (from, to) = (sender.credentials.uid, receiver.credentials.uid);
        if from == to {
            return Self::of(sender);
        }
        Self {
            part: Part::Guest(from),
            uid: to,
        }
    }

    /// Whether it is another user than the sender's who is charged.
    pub(super) fn is_host(self) -> bool {
        match self.part {
            Part::Guest(_) => true,
            Part::Peer(_) => false,
        }
    }
}

/// What a user holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Held {
    /// Links.
    sockets: u64,
    /// Descriptors that its peers have sent and that wait, in queues or for the rest of their message.
    passed: u64,
    /// Peers that have sent these.
    senders: u64,
}

impl Held {
    fn all(&self) -> u64 {
        self.sockets + self.passed
    }
}

/// The table of descriptors, as far as peers fill it.
///
/// A user may hold what is left of the table beside the others, divided by the number of users and one: so there is always
/// something left for one more. A sixteenth is for root and the bus's own user, which may use all that is free. Within what
/// a user may hold the same goes for the descriptors that each of its connections has sent: whoever fills its share keeps
/// nobody else of the same user from connecting or from passing descriptors.
#[derive(Debug)]
pub(super) struct Descriptors {
    /// What all peers together may hold; `None`: not known yet, and so without end.
    table: Option<u64>,
    own_uid: u32,
    users: BTreeMap<Option<u32>, Held>,
    /// How many of these are neither root nor the bus's own.
    ordinary: u64,
    /// By who is charged, how many descriptors wait.
    senders: BTreeMap<Payer, u64>,
    total: u64,
}

impl Descriptors {
    pub(super) fn new(own_uid: u32) -> Self {
        Self {
            table: None,
            own_uid,
            users: BTreeMap::new(),
            ordinary: 0,
            senders: BTreeMap::new(),
            total: 0,
        }
    }

    /// The process may have so many descriptors beside its own.
    pub(super) fn set_limit(&mut self, limit: u64) {
        self.table = Some(limit - IN_PASSING.min(limit / 4));
    }

    /// What [`set_limit`](Self::set_limit) made of the limit, for a checkpoint.
    pub(super) fn table(&self) -> Option<u64> {
        self.table
    }

    /// As a checkpoint has it.
    pub(super) fn set_table(&mut self, table: Option<u64>) {
        self.table = table;
    }

    /// Whether nobody can be let in any more.
    pub(super) fn is_full(&self) -> bool {
        self.table.is_some_and(|table| self.total >= table)
    }

    /// Whether one more link of this user is within the user's share.
    pub(super) fn has_room_for_link(&self, uid: Option<u32>) -> bool {
        self.room(uid).is_none_or(|room| room > self.held(uid).all())
    }

    /// Whether so many descriptors more are within the shares of the user and of the connection.
    pub(super) fn has_room(&self, payer: Payer, count: u64) -> bool {
        let own = self.senders.get(&payer).copied().unwrap_or(0);
        self.is_within(payer, own, own, count)
    }

    /// The same of descriptors whose message has not arrived completely: what else of the connection's waits does not count,
    /// so that a message too many is refused, however its bytes are cut.
    pub(super) fn has_room_for_input(&self, payer: Payer, count: u64) -> bool {
        let own = self.senders.get(&payer).copied().unwrap_or(0);
        self.is_within(payer, own, 0, count)
    }

    /// Whether `counted` of the `own` descriptors of a connection and `count` more are within its share.
    fn is_within(&self, payer: Payer, own: u64, counted: u64, count: u64) -> bool {
        let Some(room) = self.room(payer.uid) else {
            return true;
        };
        let held = self.held(payer.uid);
        let senders = held.senders + u64::from(own == 0);
        let of_others = held.all() - own;
        room >= held.all() + count
            && (senders + 1)
                .checked_mul(counted + count)
                .is_some_and(|wanted| of_others + wanted <= room)
    }

    /// What a user may hold, as things are.
    fn room(&self, uid: Option<u32>) -> Option<u64> {
        let table = self.table?;
        let held = self.held(uid).all();
        let of_others = self.total - held;
        if self.is_privileged(uid) {
            return Some(table.saturating_sub(of_others));
        }
        let users = self.ordinary + u64::from(held == 0);
        let shared = table - table / 16;
        Some(shared.saturating_sub(of_others) / (users + 1))
    }

    pub(super) fn is_privileged(&self, uid: Option<u32>) -> bool {
        uid == Some(0) || uid == Some(self.own_uid)
    }

    fn held(&self, uid: Option<u32>) -> Held {
        self.users.get(&uid).copied().unwrap_or_default()
    }

    /// A link of this user.
    pub(super) fn add_link(&mut self, uid: Option<u32>) {
        self.change(uid, |held| held.sockets += 1);
        self.total += 1;
    }

    /// It is closed, or was another user's.
    pub(super) fn remove_link(&mut self, uid: Option<u32>) {
        self.change(uid, |held| held.sockets -= 1);
        self.total -= 1;
    }

    /// So many descriptors more wait.
    pub(super) fn hold(&mut self, payer: Payer, count: u64) {
        if count == 0 {
            return;
        }
        let own = self.senders.entry(payer).or_default();
        let is_first = *own == 0;
        *own += count;
        self.change(payer.uid, |held| {
            held.senders += u64::from(is_first);
            held.passed += count;
        });
        self.total += count;
    }

    /// So many wait no longer.
    pub(super) fn release(&mut self, payer: Payer, count: u64) {
        let Some(own) = self.senders.get_mut(&payer).filter(|_| count > 0) else {
            return;
        };
        *own -= count;
        let is_last = *own == 0;
        if is_last {
            self.senders.remove(&payer);
        }
        self.change(payer.uid, |held| {
            held.passed -= count;
            held.senders -= u64::from(is_last);
        });
        self.total -= count;
    }

    fn change(&mut self, uid: Option<u32>, how: impl FnOnce(&mut Held)) {
        let is_ordinary = u64::from(!self.is_privileged(uid));
        let held = self.users.entry(uid).or_default();
        self.ordinary += if *held == Held::default() { is_ordinary } else { 0 };
        how(held);
        if *held == Held::default() {
            self.users.remove(&uid);
            self.ordinary -= is_ordinary;
        }
    }

    /// A restored peer, of which it is not known who pays for what waits for it.
    pub(super) fn take_up(&mut self, peer: &mut Peer) {
        if peer.socket.is_some() {
            self.add_link(peer.credentials.uid);
        }
        peer.pending_fds = peer.framer.pending_fds() as u64;
        self.hold(Payer::of(peer), peer.pending_fds);
        self.set_payers(peer, Vec::new());
    }

    /// Who pays for what waits for a peer, as a checkpoint has it.
    pub(super) fn set_payers(&mut self, peer: &mut Peer, runs: Vec<(Payer, u64)>) {
        peer.payers.pop(u64::MAX, self);
        peer.payers = Payers::restore(runs, peer.out.queued_fds() as u64);
        for (payer, count) in peer.payers.runs() {
            self.hold(payer, count);
        }
    }

    /// A peer is leaving: neither its link nor what waits in its queues is held any more.
    pub(super) fn let_go(&mut self, peer: &mut Peer) {
        let pending = std::mem::take(&mut peer.pending_fds);
        self.release(Payer::of(peer), pending);
        peer.payers.pop(u64::MAX, self);
        if peer.socket.is_some() {
            self.remove_link(peer.credentials.uid);
        }
    }

    /// What is charged is what the peers hold.
    pub(super) fn check<'a>(&self, peers: impl Iterator<Item = &'a Peer>) -> Result<(), Violation> {
        let mut counted = Self::new(self.own_uid);
        for peer in peers {
            if peer.socket.is_some() {
                counted.add_link(peer.credentials.uid);
            }
            if peer.pending_fds != peer.framer.pending_fds() as u64 {
                let text = format!(
                    "{:?} is charged {} descriptors of its input",
                    peer.id, peer.pending_fds
                );
                return Err(Violation::new(text));
            }
            counted.hold(Payer::of(peer), peer.pending_fds);
            let mut runs = 0;
            for (payer, count) in peer.payers.runs() {
                counted.hold(payer, count);
                runs += count;
            }
            if runs != peer.out.queued_fds() as u64 {
                let text = format!("{:?}: {runs} of its queue's descriptors are charged", peer.id);
                return Err(Violation::new(text));
            }
        }
        let sums = |one: &Self| (one.ordinary, one.total);
        if (&counted.users, &counted.senders, sums(&counted)) != (&self.users, &self.senders, sums(self)) {
            return Err(Violation::new(format!(
                "descriptors are charged as {self:?}, and held as {counted:?}"
            )));
        }
        Ok(())
    }
}

/// Who is charged for the descriptors in a send queue, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Payers {
    runs: VecDeque<(Payer, u64)>,
}

impl Payers {
    /// So many at the end.
    pub(super) fn push(&mut self, payer: Payer, count: u64) {
        match self.runs.back_mut() {
            Some((last, run)) if *last == payer => *run += count,
            _ => self.runs.push_back((payer, count)),
        }
    }

    /// The first so many leave the queue.
    pub(super) fn pop(&mut self, mut count: u64, descriptors: &mut Descriptors) {
        let mut gone = 0;
        for (payer, run) in &mut self.runs {
            let taken = count.min(*run);
            descriptors.release(*payer, taken);
            *run -= taken;
            count -= taken;
            if *run > 0 {
                break;
            }
            gone += 1;
        }
        self.runs.drain(..gone);
    }

    /// Who is charged for how many.
    pub(super) fn runs(&self) -> impl Iterator<Item = (Payer, u64)> {
        self.runs.iter().copied()
    }

    /// As a checkpoint has it; `count` is how many there are.
    pub(super) fn restore(runs: Vec<(Payer, u64)>, count: u64) -> Self {
        let sum = runs.iter().try_fold(0_u64, |sum, (_, run)| sum.checked_add(*run));
        if sum == Some(count) && runs.iter().all(|(_, run)| *run > 0) {
            return Self { runs: runs.into() };
        }
        let unknown = (count > 0).then_some((Payer::UNKNOWN, count));
        Self {
            runs: unknown.into_iter().collect(),
        }
    }
}
