//! The match rules of all peers, hashed so that a message meets only the rules that can match it (specification,
//! "Match Rules").
//!
//! A rule is filed by the *set* of its exact conditions (sender, interface, member, path, arg0, and the two
//! namespaces) and by the hash of their values. Few sets are in use at a time; a message is looked up once in the
//! table of each, and once per prefix where the condition is a namespace. What the hash does not cover is checked
//! rule by rule. Equal rules are stored once, with all peers that have them: a fan-out to a thousand subscribers is
//! one check.

mod held;
mod key;
mod named;
mod rule;
mod table;
#[cfg(test)]
mod tests;

use bus_wire::{MatchRule, Message};
use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashTable};
use smallvec::SmallVec;

use self::held::HeldRules;
use self::key::{Hasher, Key, Mask, Prefixes, fold};
use self::named::Named;
use self::rule::Body;
pub(super) use self::table::RuleId;
use self::table::Table;
use super::event::PeerId;

/// Whose rules match a message.
///
/// Rules are a counted multiset: a peer may have one rule several times, and removing one leaves the others.
#[derive(Debug)]
pub(crate) struct MatchIndex {
    hasher: Hasher,
    slots: Vec<Option<Slot>>,
    free: Vec<RuleId>,
    /// Slots by the rule in them.
    interned: HashTable<RuleId>,
    /// At most one per set of conditions.
    tables: Vec<Table>,
    /// How many rules in the slots name a sender, by the hash of its name.
    senders: HashMap<u64, u32, FixedState>,
    /// The rules that name a unique name.
    named: Named,
    /// Rules in the order in which they were added, repeated ones included.
    peers: HashMap<PeerId, HeldRules, FixedState>,
    len: usize,
}

/// What is to be matched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    /// The message, as it came in or as the driver made it.
    pub(crate) message: &'a Message,
    /// All names that its sender owns now, the unique name among them; only its well-known name for the driver.
    pub(crate) sender_names: &'a [&'a str],
    /// All names that its one recipient owns now, or the name in its header if nobody has it; empty for a broadcast.
    pub(crate) destination_names: &'a [&'a str],
}

/// One rule and who has it.
#[derive(Debug)]
struct Slot {
    rule: MatchRule,
    hash: u64,
    /// Sorted by peer.
    subscribers: SmallVec<[Subscriber; 1]>,
}

/// One rule of a peer.
#[derive(Debug, Clone, Copy)]
struct Held {
    id: RuleId,
    /// The number that came with it.
    number: u32,
}

#[derive(Debug, Clone, Copy)]
struct Subscriber {
    peer: PeerId,
    count: u32,
}

impl MatchIndex {
    /// An empty index. `seed` keeps the hashes from being guessed; it has no influence on any result.
    pub(crate) fn new(seed: u64) -> Self {
        let hasher = Hasher::new(seed);
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            interned: HashTable::new(),
            tables: Vec::new(),
            senders: HashMap::with_hasher(hasher.state()),
            named: Named::new(hasher.state()),
            peers: HashMap::with_hasher(hasher.state()),
            hasher,
            len: 0,
        }
    }

    /// How many rules there are, repeated ones included.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none: then nothing needs to be looked up.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many rules a peer has, repeated ones included.
    pub(crate) fn count(&self, peer: PeerId) -> usize {
        self.peers.get(&peer).map_or(0, HeldRules::len)
    }

    /// A peer's rules in the order in which they were added, repeated ones included.
    pub(crate) fn rules_of(&self, peer: PeerId) -> impl Iterator<Item = &MatchRule> {
        self.held_by(peer).filter_map(|(id, _)| self.rule(id))
    }

    /// The rule that is stored under an id.
    pub(super) fn rule(&self, id: RuleId) -> Option<&MatchRule> {
        self.slots.get(id as usize)?.as_ref().map(|slot| &slot.rule)
    }

    /// Where a peer's rules are stored, with the numbers that came with them, in the order in which they were added.
    pub(super) fn held_by(&self, peer: PeerId) -> impl Iterator<Item = (RuleId, u32)> {
        let held = self.peers.get(&peer).into_iter().flat_map(HeldRules::iter);
        held.map(|held| (held.id, held.number))
    }

    /// The numbers of a peer's rules, to be changed.
    pub(super) fn numbers_mut(&mut self, peer: PeerId) -> impl Iterator<Item = (RuleId, &mut u32)> {
        let held = self
            .peers
            .get_mut(&peer)
            .into_iter()
            .flat_map(HeldRules::iter_mut);
        held.map(|held| (held.id, &mut held.number))
    }

    /// Where the rule is stored, or will be when it is [added](Self::add).
    pub(super) fn intern(&mut self, rule: MatchRule) -> RuleId {
        let hash = self.hasher.rule(&rule);
        self.find_hashed(&rule, hash)
            .unwrap_or_else(|| self.store(rule, hash))
    }

    /// Adds a rule to a peer's. The number is given back when it is removed.
    pub(crate) fn add(&mut self, peer: PeerId, rule: MatchRule, number: u32) {
        let id = self.intern(rule);
        self.add_interned(peer, id, number);
    }

    /// The same for a rule that is interned.
    pub(super) fn add_interned(&mut self, peer: PeerId, id: RuleId, number: u32) {
        let hasher = self.peers.hasher().clone();
        let held = self.peers.entry(peer).or_default();
        held.push(Held { id, number }, &hasher);
        self.len += 1;
        let Some(slot) = &mut self.slots[id as usize] else {
            return;
        };
        match slot
            .subscribers
            .binary_search_by_key(&peer, |subscriber| subscriber.peer)
        {
            Ok(place) => slot.subscribers[place].count += 1,
            Err(place) => slot.subscribers.insert(place, Subscriber { peer, count: 1 }),
        }
    }

    /// Removes one rule that equals this one from the peer's own (CVE-2006-6107), and gives its number; `None` if it has
    /// none.
    pub(crate) fn remove(&mut self, peer: PeerId, rule: &MatchRule) -> Option<u32> {
        let id = self.find(rule)?;
        let all = self.peers.get_mut(&peer)?;
        let Held { number, .. } = all.remove(id)?;
        if all.len() == 0 {
            self.peers.remove(&peer);
        }
        self.release(peer, id);
        Some(number)
    }

    /// Removes the newest rule of a peer. Returns its number and whether it eavesdrops; `None` if the peer has none.
    pub(crate) fn remove_newest(&mut self, peer: PeerId) -> Option<(u32, bool)> {
        let all = self.peers.get_mut(&peer)?;
        let Held { id, number } = all.pop()?;
        if all.len() == 0 {
            self.peers.remove(&peer);
        }
        let eavesdrops = self.rule(id).is_some_and(|rule| rule.eavesdrop);
        self.release(peer, id);
        Some((number, eavesdrops))
    }

    /// A rule that names a unique name as sender or destination, and somebody who has it.
    pub(crate) fn naming(&self, unique: &str) -> Option<(PeerId, &MatchRule)> {
        let slot = self.slots[self.named.newest(unique)? as usize].as_ref()?;
        Some((slot.subscribers.last()?.peer, &slot.rule))
    }

    /// Adds the peers that have a rule that matches. `peers` is then in ascending order, each peer in it once, whatever
    /// it held before.
    pub(crate) fn matching(&self, facts: &Facts<'_>, peers: &mut Vec<PeerId>) {
        let body = Body::new(facts.message);
        let probe = Probe::new(self, facts, &body);
        let mut sorted = peers.is_empty();
        for table in &self.tables {
            probe.look_up(table, &self.hasher, |id, sender| {
                let Some(slot) = &self.slots[id as usize] else {
                    return;
                };
                if rule::matches(&slot.rule, facts, sender, &body) {
                    sorted &= peers.is_empty();
                    peers.extend(slot.subscribers.iter().map(|subscriber| subscriber.peer));
                }
            });
        }
        if !sorted {
            // Stable, because that takes runs that are sorted already as they are.
            peers.sort();
            peers.dedup();
        }
    }

    fn find(&self, rule: &MatchRule) -> Option<RuleId> {
        self.find_hashed(rule, self.hasher.rule(rule))
    }

    fn find_hashed(&self, rule: &MatchRule, hash: u64) -> Option<RuleId> {
        self.interned
            .find(hash, |id| {
                self.slots[*id as usize]
                    .as_ref()
                    .is_some_and(|slot| slot.rule == *rule)
            })
            .copied()
    }

    /// A slot for a rule that is not known yet.
    fn store(&mut self, rule: MatchRule, hash: u64) -> RuleId {
        let key = self.hasher.key(&rule);
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as RuleId
        });
        self.named.add(&rule, id);
        self.slots[id as usize] = Some(Slot {
            rule,
            hash,
            subscribers: SmallVec::new(),
        });
        let slots = &self.slots;
        self.interned.insert_unique(hash, id, |id| {
            slots[*id as usize].as_ref().map_or(0, |slot| slot.hash)
        });
        self.file(&key, id);
        id
    }

    fn file(&mut self, key: &Key, id: RuleId) {
        if let Some(sender) = key.sender {
            *self.senders.entry(sender).or_insert(0) += 1;
        }
        let place = self
            .tables
            .iter()
            .position(|table| table.mask == key.mask)
            .unwrap_or_else(|| {
                self.tables.push(Table::new(key.mask));
                self.tables.len() - 1
            });
        self.tables[place].insert(key, id);
    }

    fn unfile(&mut self, key: &Key, id: RuleId) {
        if let Some(sender) = key.sender
            && let Some(count) = self.senders.get_mut(&sender)
        {
            *count -= 1;
            if *count == 0 {
                self.senders.remove(&sender);
            }
        }
        if let Some(place) = self.tables.iter().position(|table| table.mask == key.mask) {
            self.tables[place].remove(key, id);
            if self.tables[place].is_empty() {
                self.tables.swap_remove(place);
            }
        }
    }

    /// Takes one of a peer's rules back; frees the slot with the last.
    fn release(&mut self, peer: PeerId, id: RuleId) {
        let Some(slot) = &mut self.slots[id as usize] else {
            return;
        };
        let Ok(place) = slot
            .subscribers
            .binary_search_by_key(&peer, |subscriber| subscriber.peer)
        else {
            return;
        };
        self.len -= 1;
        slot.subscribers[place].count -= 1;
        if slot.subscribers[place].count > 0 {
            return;
        }
        slot.subscribers.remove(place);
        if !slot.subscribers.is_empty() {
            return;
        }
        let Some(slot) = self.slots[id as usize].take() else {
            return;
        };
        if let Ok(place) = self.interned.find_entry(slot.hash, |other| *other == id) {
            place.remove();
        }
        self.named.remove(&slot.rule, id);
        let key = self.hasher.key(&slot.rule);
        self.unfile(&key, id);
        self.free.push(id);
    }
}

/// The hashes of a message's fields, as far as any table asks for them.
struct Probe<'a> {
    /// Those of the sender's names that any rule names.
    senders: SmallVec<[(&'a str, u64); 2]>,
    interface: Option<u64>,
    member: Option<u64>,
    path: Option<u64>,
    path_prefixes: Prefixes,
    arg0: Option<u64>,
    arg0_prefixes: Prefixes,
}

impl<'a> Probe<'a> {
    fn new(index: &MatchIndex, facts: &Facts<'a>, body: &Body<'a>) -> Self {
        let hasher = &index.hasher;
        let mut wanted = Mask::default();
        let (mut path_depth, mut arg0_depth) = (0, 0);
        for table in &index.tables {
            wanted = wanted.union(table.mask);
            path_depth = path_depth.max(table.path_depths.max());
            arg0_depth = arg0_depth.max(table.arg0_depths.max());
        }
        let hash = |condition, text: Option<&str>| {
            text.filter(|_| wanted.has(condition))
                .map(|text| hasher.text(text))
        };
        let message = facts.message;
        let needs_arg0 = wanted.has(Mask::ARG0) || wanted.has(Mask::ARG0_NAMESPACE);
        let arg0 = if needs_arg0 { body.arg0() } else { None };
        let mut probe = Self {
            senders: SmallVec::new(),
            interface: hash(Mask::INTERFACE, message.interface()),
            member: hash(Mask::MEMBER, message.member()),
            path: hash(Mask::PATH, message.path()),
            path_prefixes: Prefixes::new(),
            arg0: hash(Mask::ARG0, arg0),
            arg0_prefixes: Prefixes::new(),
        };
        if wanted.has(Mask::SENDER) {
            let hashes = facts.sender_names.iter().map(|name| (*name, hasher.text(name)));
            probe
                .senders
                .extend(hashes.filter(|(_, hash)| index.senders.contains_key(hash)));
        }
        if let Some(path) = message.path().filter(|_| wanted.has(Mask::PATH_NAMESPACE)) {
            probe.path_prefixes = hasher.path_prefixes(path, path_depth);
        }
        if let Some(arg0) = arg0.filter(|_| wanted.has(Mask::ARG0_NAMESPACE)) {
            probe.arg0_prefixes = hasher.arg0_prefixes(arg0, arg0_depth);
        }
        probe
    }

    /// Calls `candidate` with each rule of the table that may match, and the name that it calls the sender by.
    fn look_up(&self, table: &Table, hasher: &Hasher, mut candidate: impl FnMut(RuleId, Option<&'a str>)) {
        let mask = table.mask;
        let mut hash = hasher.start();
        for (condition, value) in [
            (Mask::INTERFACE, self.interface),
            (Mask::MEMBER, self.member),
            (Mask::PATH, self.path),
        ] {
            if mask.has(condition) {
                let Some(value) = value else { return };
                hash = fold(hash, value);
            }
        }
        let mut with_sender = |hash: u64| {
            if !mask.has(Mask::SENDER) {
                table.find(hash).iter().for_each(|id| candidate(*id, None));
                return;
            }
            for (name, sender) in &self.senders {
                table
                    .find(fold(hash, *sender))
                    .iter()
                    .for_each(|id| candidate(*id, Some(name)));
            }
        };
        let mut with_arg0 = |mut hash: u64| {
            if mask.has(Mask::ARG0) {
                let Some(arg0) = self.arg0 else { return };
                hash = fold(hash, arg0);
            }
            if !mask.has(Mask::ARG0_NAMESPACE) {
                return with_sender(hash);
            }
            for prefix in table
                .arg0_depths
                .iter()
                .map_while(|depth| self.arg0_prefixes.get(depth))
            {
                with_sender(fold(hash, *prefix));
            }
        };
        if !mask.has(Mask::PATH_NAMESPACE) {
            return with_arg0(hash);
        }
        for prefix in table
            .path_depths
            .iter()
            .map_while(|depth| self.path_prefixes.get(depth))
        {
            with_arg0(fold(hash, *prefix));
        }
    }
}
