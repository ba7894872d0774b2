//! Who is here: the peers, their unique names, and how many there are of each kind.

use std::collections::{BTreeMap, BTreeSet};

use bus_wire::SaslDone;
use hashbrown::HashMap;

use super::event::PeerId;
use super::invariants::Violation;
use super::newcomers::Newcomers;
use super::peer::{Peer, Peers, Phase, Unique};
use super::{Action, Seeded};

/// All peers, and what is counted and found by their phase.
///
/// A peer's phase, unique name and user change only in here, so that the counts and the table of unique names agree
/// with the peers.
#[derive(Debug)]
pub(super) struct Roster {
    peers: Peers,
    /// The active peers, by the number of their unique name.
    unique: HashMap<u64, PeerId, Seeded>,
    /// The same, in the order in which they said Hello.
    in_order: BTreeMap<u64, PeerId>,
    /// The number of the next unique name; never used again, not even over an upgrade.
    next_unique: u64,
    /// Peers that have not said Hello.
    incomplete: u32,
    /// Peers that have said Hello, monitors among them.
    active: u32,
    /// How many of the latter are of each user.
    users: HashMap<u32, u32, Seeded>,
    /// These, by user.
    newcomers: Newcomers,
    /// Whether the runtime was told to stop accepting, because the table of descriptors is full.
    is_accepting_stopped: bool,
}

impl Roster {
    pub(super) fn new(hasher: Seeded) -> Self {
        Self {
            peers: Peers::default(),
            unique: HashMap::with_hasher(hasher.clone()),
            in_order: BTreeMap::new(),
            next_unique: 0,
            incomplete: 0,
            active: 0,
            newcomers: Newcomers::new(),
            users: HashMap::with_hasher(hasher),
            is_accepting_stopped: false,
        }
    }

    /// Goes on with what [`save`](Self::save) gave, and with room for so many peers.
    pub(super) fn resume(&mut self, next_unique: u64, is_accepting_stopped: bool, count: usize) {
        self.next_unique = next_unique;
        self.is_accepting_stopped = is_accepting_stopped;
        self.unique.reserve(count);
    }

    /// What is saved besides the peers: the number of the next unique name, and whether accepting is stopped.
    pub(super) fn save(&self) -> (u64, bool) {
        let Self {
            next_unique,
            is_accepting_stopped,
            // A record each.
            peers: _,
            // Rebuilt from the peers.
            unique: _,
            in_order: _,
            incomplete: _,
            active: _,
            newcomers: _,
            users: _,
        } = self;
        (*next_unique, *is_accepting_stopped)
    }

    pub(super) fn get(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id)
    }

    /// The peer is marked as changed.
    pub(super) fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.peers.get_mut(id)
    }

    /// The same as [`at`](Self::at), for what does not change the peer: where its bytes are kept.
    pub(super) fn at_mut(&mut self, index: u32) -> Option<&mut Peer> {
        self.peers.at_mut(index)
    }

    /// Who has an index now.
    pub(super) fn at(&self, index: u32) -> Option<&Peer> {
        self.peers.at(index)
    }

    /// All peers, in the order of their index.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter()
    }

    /// The same, for what is not saved.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.peers.iter_mut()
    }

    /// How many peers there are.
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    /// What belongs to a peer and is kept elsewhere has changed.
    pub(super) fn mark_changed(&mut self, id: PeerId) {
        self.peers.mark_changed(id);
    }

    /// How many indexes are marked as changed.
    pub(super) fn changed_count(&self) -> usize {
        self.peers.changed_count()
    }

    /// Moves to `out` the marked indexes, each once: at most `most` of them, those that have waited longest.
    pub(super) fn take_changed(&mut self, most: usize, out: &mut Vec<u32>) {
        self.peers.take_changed(most, out);
    }

    /// The active peer whose unique name has this number.
    pub(super) fn by_unique(&self, number: u64) -> Option<PeerId> {
        self.unique.get(&number).copied()
    }

    /// The peers that can be reached by a unique name, in the order in which they said Hello.
    pub(super) fn in_order(&self) -> impl Iterator<Item = &Peer> {
        self.in_order.values().filter_map(|id| self.peers.get(*id))
    }

    /// How many unique names can be reached.
    pub(super) fn unique_count(&self) -> usize {
        self.unique.len()
    }

    /// How many peers have not said Hello.
    pub(super) fn incomplete(&self) -> u32 {
        self.incomplete
    }

    /// How many peers have said Hello, monitors among them.
    pub(super) fn active(&self) -> u32 {
        self.active
    }

    /// How many of these are of a user.
    pub(super) fn of_user(&self, uid: u32) -> u32 {
        self.users.get(&uid).copied().unwrap_or(0)
    }

    /// The unique name that the next Hello will be answered with.
    pub(super) fn next_unique(&self) -> Unique {
        Unique::new(self.next_unique)
    }

    /// Whether a number can be that of a restored peer: it was given out, and no active peer has it.
    pub(super) fn is_unclaimed(&self, number: u64) -> bool {
        number < self.next_unique && !self.unique.contains_key(&number)
    }

    /// Takes in a new or a restored peer. False, and the peer is dropped, where its index is in use.
    pub(super) fn enter(&mut self, peer: Peer) -> bool {
        let (id, uid, is_active) = (peer.id, peer.credentials.uid, peer.is_active());
        let number = peer.unique.as_ref().map(|unique| unique.number);
        if !self.peers.insert(peer) {
            return false;
        }
        match number {
            None => {
                self.incomplete += 1;
                self.newcomers.insert(uid, id);
            }
            Some(number) => {
                self.count_in(uid);
                if is_active {
                    self.unique.insert(number, id);
                    self.in_order.insert(number, id);
                }
            }
        }
        true
    }

    /// The peer has authenticated: it is known who it is, and it may say Hello.
    pub(super) fn admit(&mut self, id: PeerId, done: &SaslDone) {
        if let Some(peer) = self.peers.get_mut(id) {
            if peer.credentials.uid != done.uid {
                self.newcomers.remove(peer.credentials.uid, id);
                self.newcomers.insert(done.uid, id);
            }
            if peer.credentials.uid.is_some() && peer.credentials.uid != done.uid {
                // The process is another user's: its groups say nothing of this one.
                peer.credentials.gid = None;
                peer.groups = None;
            }
            peer.credentials.uid = done.uid;
            peer.takes_fds = done.fds;
            peer.phase = Phase::Greeting;
        }
    }

    /// The peer said Hello: it gets the next unique name, by which it can be reached.
    pub(super) fn activate(&mut self, id: PeerId) -> Option<(&mut Peer, Unique)> {
        let unique = self.next_unique();
        let peer = self.peers.get_mut(id).filter(|peer| peer.is_incomplete())?;
        peer.phase = Phase::Active;
        peer.unique = Some(unique.clone());
        let uid = peer.credentials.uid;
        self.next_unique += 1;
        self.unique.insert(unique.number, id);
        self.in_order.insert(unique.number, id);
        self.incomplete -= 1;
        self.newcomers.remove(uid, id);
        self.count_in(uid);
        Some((self.peers.get_mut(id)?, unique))
    }

    /// The peer cannot be reached by its unique name any more. The name, if it could be until now.
    ///
    /// To be followed by [`begin_monitoring`](Self::begin_monitoring) or [`remove`](Self::remove).
    pub(super) fn retire(&mut self, id: PeerId) -> Option<Unique> {
        let unique = self.peers.get(id)?.unique.as_ref()?;
        self.in_order.remove(&unique.number);
        self.unique.remove(&unique.number).map(|_| unique.clone())
    }

    /// Whether a peer was [retired](Self::retire) and has become neither a monitor nor gone.
    pub(super) fn is_retired(&self, peer: &Peer) -> bool {
        let unique = peer.unique.as_ref().filter(|_| peer.is_active());
        unique.is_some_and(|unique| !self.unique.contains_key(&unique.number))
    }

    /// The peer, which was [retired](Self::retire), is a monitor from now on. False if it is gone.
    pub(super) fn begin_monitoring(&mut self, id: PeerId) -> bool {
        let peer = self.peers.get_mut(id);
        peer.map(|peer| peer.phase = Phase::Monitor).is_some()
    }

    /// Takes out a peer, which was [retired](Self::retire).
    pub(super) fn remove(&mut self, id: PeerId) -> Option<Box<Peer>> {
        let peer = self.peers.remove(id)?;
        if peer.is_incomplete() {
            self.incomplete -= 1;
            self.newcomers.remove(peer.credentials.uid, id);
        } else {
            self.count_out(peer.credentials.uid);
        }
        Some(peer)
    }

    /// How many peers of this user have not said Hello.
    pub(super) fn newcomers_of(&self, uid: Option<u32>) -> u64 {
        self.newcomers.count(uid)
    }

    /// Each user has so many slots for peers that have not said Hello. Of which peers it has changed whether they have one,
    /// since this was last asked: they are told what is so now.
    pub(super) fn regulate_newcomers(&mut self, slots: u64) -> Vec<PeerId> {
        self.newcomers.set_slots(slots);
        let mut turned = self.newcomers.take_turned();
        turned.retain(|id| {
            let Some(peer) = self.peers.get(*id) else {
                return false;
            };
            let is_waiting = peer.is_incomplete() && !self.newcomers.is_heard(peer.credentials.uid, *id);
            let is_news = is_waiting != peer.is_waiting;
            if is_news && let Some(peer) = self.peers.get_mut(*id) {
                peer.is_waiting = is_waiting;
            }
            is_news
        });
        turned
    }

    /// Stops and resumes accepting, as the table of descriptors is full or not. What the runtime is to be told, if anything.
    pub(super) fn regulate_accepting(&mut self, is_full: bool) -> Option<Action> {
        if is_full == self.is_accepting_stopped {
            return None;
        }
        self.is_accepting_stopped = is_full;
        Some(if is_full {
            Action::StopAccepting
        } else {
            Action::ResumeAccepting
        })
    }

    /// Whether the runtime was told to stop accepting.
    pub(super) fn is_accepting_stopped(&self) -> bool {
        self.is_accepting_stopped
    }

    /// Every count and the table of unique names agree with the peers.
    pub(super) fn check(&self) -> Result<(), Violation> {
        let (mut active, mut incomplete, mut reachable) = (0, 0, 0);
        let mut newcomers: BTreeMap<Option<u32>, BTreeSet<PeerId>> = BTreeMap::new();
        let mut users: HashMap<u32, u32, Seeded> = HashMap::with_hasher(Seeded::default());
        for peer in self.peers.iter() {
            let id = peer.id;
            match (&peer.unique, peer.is_incomplete()) {
                (None, true) => {
                    incomplete += 1;
                    let uid = peer.credentials.uid;
                    newcomers.entry(uid).or_default().insert(id);
                    if peer.is_waiting == self.newcomers.is_heard(uid, id) {
                        let text = format!("{id:?} waits for a slot that it has, or has none and does not");
                        return Err(Violation::new(text));
                    }
                }
                (Some(unique), false) => {
                    active += 1;
                    if let Some(uid) = peer.credentials.uid {
                        *users.entry(uid).or_insert(0) += 1;
                    }
                    let is_retired = peer.agenda.is_shedding() && self.is_retired(peer);
                    let is_reachable = peer.is_active() && !is_retired;
                    let found = self.by_unique(unique.number);
                    if found != is_reachable.then_some(id) {
                        let text = format!("{} leads to {found:?}, not to {id:?}", unique.name);
                        return Err(Violation::new(text));
                    }
                    reachable += usize::from(is_reachable);
                    if unique.number >= self.next_unique {
                        return Err(Violation::new(format!("{} was never given out", unique.name)));
                    }
                }
                (Some(_), true) | (None, false) => {
                    let text = format!("{id:?} has a unique name that does not fit its phase");
                    return Err(Violation::new(text));
                }
            }
        }
        self.newcomers.check(&newcomers)?;
        let is_listed = |(number, id): (&u64, &PeerId)| self.in_order.get(number) == Some(id);
        if self.in_order.len() != self.unique.len() || !self.unique.iter().all(is_listed) {
            return Err(Violation::new("the unique names in order are others"));
        }
        if reachable != self.unique.len() {
            let text = format!("{} unique names for {reachable} peers", self.unique.len());
            return Err(Violation::new(text));
        }
        let counted = (active, incomplete);
        if counted != (self.active, self.incomplete) {
            return Err(Violation::new(format!(
                "active and incomplete peers: {counted:?}, and not {:?}",
                (self.active, self.incomplete)
            )));
        }
        if users != self.users {
            let text = format!("peers per user: {users:?}, and not {:?}", self.users);
            return Err(Violation::new(text));
        }
        Ok(())
    }

    fn count_in(&mut self, uid: Option<u32>) {
        self.active += 1;
        if let Some(uid) = uid {
            *self.users.entry(uid).or_insert(0) += 1;
        }
    }

    fn count_out(&mut self, uid: Option<u32>) {
        self.active -= 1;
        if let Some(uid) = uid
            && let Some(count) = self.users.get_mut(&uid)
        {
            *count -= 1;
            if *count == 0 {
                self.users.remove(&uid);
            }
        }
    }
}
