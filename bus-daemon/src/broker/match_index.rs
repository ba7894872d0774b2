//! The match rules of all peers, hashed so that a message meets only the rules that match it (specification, "Match
//! Rules").
//!
//! A rule has one place: its [`Form`](form::Form), which is the set of its conditions and the depth of its namespaces, and
//! there the hash of *all* their values. A message is looked up once in each form whose conditions it may satisfy, so what
//! others' rules cost it is the number of forms, whatever their number and values, and that number is bounded for each user
//! ([`account`]). Two kinds of conditions are left for the end of a look-up: well-known names, of which a sender may have
//! many, and an `argNpath` that is longer than the message's argument.
//! Equal rules are stored once, with all peers that have them: a fan-out to a thousand subscribers is one check.

mod account;
mod form;
mod forms;
mod held;
mod key;
mod named;
mod rule;
mod search;
mod side;
mod subscribers;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bus_wire::match_rule::ArgKind;
use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashTable};

use self::account::{Accounts, Load, User};
pub(super) use self::form::RuleId;
use self::form::{Below, Form};
use self::forms::Forms;
use self::held::HeldRules;
pub(crate) use self::key::Scope;
use self::key::{Hasher, Key, Namespace};
use self::named::Named;
use self::search::Search;
pub(crate) use self::side::{Facts, Side};
use self::subscribers::Subscribers;
use super::event::PeerId;
use super::match_rule::{self, MatchRule};

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
    scope: Scope,
    forms: Forms,
    accounts: Accounts,
    /// The rules that name a unique name.
    named: Named,
    /// Rules in the order in which they were added, repeated ones included.
    peers: HashMap<PeerId, HeldRules, FixedState>,
    len: usize,
    /// The texts of rules in so many slots may lie in a state that was read.
    lent: usize,
}

/// What it took to find out who listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Effort {
    /// Questions to a table.
    pub(crate) look_ups: u32,
    /// Rules that were compared with the message.
    pub(crate) candidates: u32,
}

impl Effort {
    /// In units of work, as [`Broker::work`](super::Broker::work) counts them.
    pub(crate) fn work(self) -> u64 {
        u64::from(self.look_ups + self.candidates) / 64
    }
}

/// One rule and who has it.
#[derive(Debug)]
struct Slot {
    /// A state that is saved has it, too.
    rule: Arc<MatchRule>,
    hash: u64,
    load: Load,
    subscribers: Subscribers,
}

/// One rule of a peer.
#[derive(Debug, Clone, Copy)]
struct Held {
    id: RuleId,
    /// The number that came with it.
    number: u32,
}

impl MatchIndex {
    /// An empty index. `seed` keeps the hashes from being guessed; it has no influence on any result.
    pub(crate) fn new(seed: u64, scope: Scope) -> Self {
        let hasher = Hasher::new(seed);
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            interned: HashTable::new(),
            scope,
            forms: Forms::new(&hasher),
            accounts: Accounts::new(hasher.state()),
            named: Named::new(hasher.state()),
            peers: HashMap::with_hasher(hasher.state()),
            hasher,
            len: 0,
            lent: 0,
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
    pub(crate) fn rules_of(&self, peer: PeerId) -> impl Iterator<Item = &Arc<MatchRule>> {
        self.held_by(peer).filter_map(|(id, _)| self.rule(id))
    }

    /// The rule that is stored under an id.
    pub(super) fn rule(&self, id: RuleId) -> Option<&Arc<MatchRule>> {
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
    pub(super) fn intern(&mut self, rule: impl Into<Arc<MatchRule>>) -> RuleId {
        let rule = rule.into();
        let key = self.hasher.key(&rule, self.scope);
        let hash = self.hasher.rule(&rule, key.as_ref());
        self.find_hashed(&rule, hash)
            .unwrap_or_else(|| self.store(rule, hash, key))
    }

    /// The rule that is stored and equals this one.
    pub(super) fn stored(&self, rule: &MatchRule) -> Option<&Arc<MatchRule>> {
        self.rule(self.find(rule)?)
    }

    /// The texts of all rules that there are may lie in a state that was read.
    pub(super) fn note_lent(&mut self) {
        self.lent = self.slots.len();
    }

    /// Whether all rules have memory of their own.
    pub(super) fn is_settled(&self) -> bool {
        self.lent == 0
    }

    /// Gives so many rules memory of their own, unless `shared` has some of them already; how many more may need it.
    pub(super) fn settle(
        &mut self,
        most: usize,
        shared: impl Fn(&MatchRule) -> Option<Arc<MatchRule>>,
    ) -> usize {
        let rest = self.lent.saturating_sub(most);
        for slot in self.slots[rest..self.lent].iter_mut().flatten() {
            let shared = shared(&slot.rule);
            slot.rule = shared.unwrap_or_else(|| Arc::new(match_rule::settled(&slot.rule)));
        }
        self.lent = rest;
        rest
    }

    /// Whether a user's peers may have these rules besides those that they have: what the rules of a user may cost the
    /// messages of others is bounded.
    pub(super) fn admits(&self, user: User, rules: &[MatchRule]) -> bool {
        let keys = rules.iter().filter_map(|rule| self.hasher.key(rule, self.scope));
        self.accounts.admits(user, keys.map(|key| self.load(&key)))
    }

    /// There will be so many rules more, all of one peer.
    pub(super) fn reserve(&mut self, peer: PeerId, count: usize) {
        if count > 0 {
            let hasher = self.peers.hasher().clone();
            self.peers.entry(peer).or_default().reserve(count, &hasher);
        }
        self.slots.reserve(count);
        let slots = &self.slots;
        self.interned.reserve(count, |id| {
            slots[*id as usize].as_ref().map_or(0, |slot| slot.hash)
        });
    }

    /// Adds a rule to a peer's, who belongs to this user. The number is given back when it is removed.
    pub(crate) fn add(&mut self, peer: PeerId, user: User, rule: impl Into<Arc<MatchRule>>, number: u32) {
        let id = self.intern(rule);
        self.add_interned(peer, user, id, number);
    }

    /// The same for a rule that is interned.
    pub(super) fn add_interned(&mut self, peer: PeerId, user: User, id: RuleId, number: u32) {
        let hasher = self.peers.hasher().clone();
        let held = self.peers.entry(peer).or_default();
        held.push(Held { id, number }, &hasher);
        self.len += 1;
        let Some(slot) = &mut self.slots[id as usize] else {
            return;
        };
        self.accounts.add(peer, user, slot.load);
        if slot.subscribers.add(peer) {
            self.change_below(peer, id, |form, below| form.below.insert(below));
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
        Some((slot.subscribers.last()?, &slot.rule))
    }

    /// Adds the peers that have a rule that matches. `peers` is then in ascending order, each peer in it once, whatever
    /// it held before.
    pub(crate) fn matching(&self, facts: &Facts<'_>, peers: &mut Vec<PeerId>) -> Effort {
        Search::new(self, facts, peers).run()
    }

    fn find(&self, rule: &MatchRule) -> Option<RuleId> {
        let key = self.hasher.key(rule, self.scope);
        self.find_hashed(rule, self.hasher.rule(rule, key.as_ref()))
    }

    fn find_hashed(&self, rule: &MatchRule, hash: u64) -> Option<RuleId> {
        self.interned
            .find(hash, |id| {
                self.slots[*id as usize]
                    .as_ref()
                    .is_some_and(|slot| *slot.rule == *rule)
            })
            .copied()
    }

    /// A slot for a rule that is not known yet.
    fn store(&mut self, rule: Arc<MatchRule>, hash: u64, key: Option<Key>) -> RuleId {
        let load = key.as_ref().map_or_else(Load::default, |key| self.load(key));
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as RuleId
        });
        self.named.add(&rule, id);
        self.slots[id as usize] = Some(Slot {
            rule,
            hash,
            load,
            subscribers: Subscribers::default(),
        });
        let slots = &self.slots;
        self.interned.insert_unique(hash, id, |id| {
            slots[*id as usize].as_ref().map_or(0, |slot| slot.hash)
        });
        if let Some(key) = &key {
            self.forms.insert(key, id);
        }
        id
    }

    /// What the rule adds to an account.
    fn load(&self, key: &Key) -> Load {
        Load::of(key, || self.hasher.form(key))
    }

    /// Changes what a peer has of a rule with an `argNpath`.
    fn change_below(&mut self, peer: PeerId, id: RuleId, change: impl Fn(&mut Form, Below) -> bool) {
        let Some(slot) = &self.slots[id as usize] else {
            return;
        };
        let paths = slot
            .rule
            .args
            .iter()
            .filter(|argument| argument.kind == ArgKind::Path);
        let mut paths = paths.peekable();
        if paths.peek().is_none() {
            return;
        }
        let Some(key) = self.hasher.key(&slot.rule, self.scope) else {
            return;
        };
        let form = self.forms.form_mut(key.mask);
        for argument in paths {
            let below = Below {
                exact: key.exact,
                namespace: Namespace::argument_path(argument.index),
                peer,
                value: Arc::from(&*argument.value),
                rule: id,
            };
            let is_changed = change(form, below);
            debug_assert!(is_changed, "a rule is below others twice, or not at all");
        }
    }

    /// Takes one of a peer's rules back; frees the slot with the last.
    fn release(&mut self, peer: PeerId, id: RuleId) {
        let Some(slot) = &mut self.slots[id as usize] else {
            return;
        };
        let Some(is_last_of_peer) = slot.subscribers.remove(peer) else {
            return;
        };
        let is_last = slot.subscribers.is_empty();
        self.len -= 1;
        self.accounts.remove(peer, slot.load);
        if is_last_of_peer {
            self.change_below(peer, id, |form, below| form.below.remove(&below));
        }
        if is_last {
            self.drop_slot(id);
        }
    }

    fn drop_slot(&mut self, id: RuleId) {
        let Some(slot) = self.slots[id as usize].take() else {
            return;
        };
        if let Ok(place) = self.interned.find_entry(slot.hash, |other| *other == id) {
            place.remove();
        }
        self.named.remove(&slot.rule, id);
        if let Some(key) = self.hasher.key(&slot.rule, self.scope) {
            self.forms.remove(&key, id);
        }
        self.free.push(id);
    }
}
