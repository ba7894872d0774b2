//! Match rules of peers, and what monitors want to see.

use std::sync::Arc;

use super::Broker;
use super::agenda::Then;
use super::entries::{Entries, Slot};
use super::event::PeerId;
use super::invariants::Violation;
use super::match_index::{Effort, Facts, MatchIndex, RuleId, Scope};
use super::match_rule::MatchRule;

/// Who listens to what.
///
/// A peer that is active has match rules, a monitor has filters, and nobody has both. A rule with `eavesdrop='true'` is
/// in two indexes: with its peer's other rules, for messages without a destination, and among the eavesdroppers', for
/// messages that have one.
#[derive(Debug)]
pub(super) struct Subscriptions {
    /// Every match rule of the active peers, for messages without a destination.
    matches: MatchIndex,
    /// The match rules with `eavesdrop='true'`, for messages that have a destination.
    eavesdroppers: MatchIndex,
    /// The filters of the monitors, for everything.
    monitors: MatchIndex,
    /// Of match rules and filters. An eavesdropper's rule has one entry, and its number among the eavesdroppers' says
    /// nothing.
    entries: Entries<RuleKey>,
    /// The order of the next rule.
    next: u64,
    /// The highest count of rules and filters so far.
    peak: u32,
}

/// What a match rule or a filter is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RuleKey {
    peer: PeerId,
    /// Grows with each rule that is added.
    order: u64,
    is_filter: bool,
    id: RuleId,
}

/// Which of the listeners are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// Peers with a match rule, for a message without a destination.
    Subscribers,
    /// Peers with a match rule that has `eavesdrop='true'`, for a message with a destination.
    Eavesdroppers,
    /// Monitors, for any message.
    Monitors,
}

impl Subscriptions {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            matches: MatchIndex::new(seed, Scope::Broadcasts),
            eavesdroppers: MatchIndex::new(seed, Scope::Everything),
            monitors: MatchIndex::new(seed, Scope::Everything),
            entries: Entries::new(),
            next: 0,
            peak: 0,
        }
    }

    /// Whether nobody in the audience listens to anything: then nothing needs to be looked up.
    pub(super) fn is_empty(&self, audience: Audience) -> bool {
        self.index(audience).is_empty()
    }

    /// Moves to `receivers`, in ascending order, who in the audience listens to a message.
    pub(super) fn listeners(
        &self,
        audience: Audience,
        facts: &Facts<'_>,
        receivers: &mut Vec<PeerId>,
    ) -> Effort {
        self.index(audience).matching(facts, receivers)
    }

    /// Whether the peers of a user may have one match rule more, as far as the others' messages are concerned.
    fn admits(&self, user: Option<u32>, rule: &MatchRule) -> bool {
        let rules = std::slice::from_ref(rule);
        self.matches.admits(user, rules) && (!rule.eavesdrop || self.eavesdroppers.admits(user, rules))
    }

    /// The same of a monitor's filters.
    fn admits_filters(&self, user: Option<u32>, filters: &[MatchRule]) -> bool {
        self.monitors.admits(user, filters)
    }

    /// Adds a match rule to those of an active peer, who belongs to a user.
    pub(super) fn add(&mut self, peer: PeerId, user: Option<u32>, rule: impl Into<Arc<MatchRule>>) {
        let rule = rule.into();
        if rule.eavesdrop {
            self.eavesdroppers.add(peer, user, rule.clone(), 0);
        }
        let id = self.matches.intern(rule);
        let slot = self.enter(peer, id, false);
        self.matches.add_interned(peer, user, id, slot);
        self.raise_peak(self.len() as u32);
    }

    /// A peer, or a monitor, will have so many rules, or filters.
    pub(super) fn reserve(&mut self, peer: PeerId, count: usize, is_monitor: bool) {
        let index = if is_monitor {
            &mut self.monitors
        } else {
            &mut self.matches
        };
        self.entries.reserve(count);
        index.reserve(peer, count);
    }

    /// The texts of all rules that there are may lie in a state that was read.
    pub(super) fn note_lent(&mut self) {
        for index in [&mut self.matches, &mut self.eavesdroppers, &mut self.monitors] {
            index.note_lent();
        }
    }

    /// Whether no text lies there any more.
    pub(super) fn is_settled(&self) -> bool {
        let indexes = [&self.matches, &self.eavesdroppers, &self.monitors];
        indexes.into_iter().all(MatchIndex::is_settled)
    }

    /// Gives so many of these rules memory of their own. True: all have.
    pub(super) fn settle(&mut self, most: usize) -> bool {
        let Self {
            matches,
            eavesdroppers,
            monitors,
            ..
        } = self;
        // Whatever eavesdrops is among the others, too.
        matches.settle(most, |_| None) == 0
            && eavesdroppers.settle(most, |rule| matches.stored(rule).cloned()) == 0
            && monitors.settle(most, |_| None) == 0
    }

    /// Removes one equal match rule from those of a peer. False if the peer has none.
    pub(super) fn remove(&mut self, peer: PeerId, rule: &MatchRule) -> bool {
        if rule.eavesdrop {
            self.eavesdroppers.remove(peer, rule);
        }
        let slot = self.matches.remove(peer, rule);
        slot.map(|slot| self.entries.remove(slot)).is_some()
    }

    /// Adds a filter to those of a monitor, which has no match rules.
    pub(super) fn add_filter(
        &mut self,
        monitor: PeerId,
        user: Option<u32>,
        filter: impl Into<Arc<MatchRule>>,
    ) {
        let id = self.monitors.intern(filter);
        let slot = self.enter(monitor, id, true);
        self.monitors.add_interned(monitor, user, id, slot);
        self.raise_peak(self.len() as u32);
    }

    /// Removes the newest match rule or filter of a peer. False if it has none.
    pub(super) fn drop_newest(&mut self, peer: PeerId) -> bool {
        let newest = self.matches.remove_newest(peer);
        if let Some((_, true)) = newest {
            self.eavesdroppers.remove_newest(peer);
        }
        let newest = newest.or_else(|| self.monitors.remove_newest(peer));
        newest.map(|(slot, _)| self.entries.remove(slot)).is_some()
    }

    /// Whether a match rule names a unique name.
    pub(super) fn is_named(&self, unique: &str) -> bool {
        self.matches.naming(unique).is_some()
    }

    /// Removes a match rule that names a unique name, which is never used again. Returns whose it was; `None` if there is
    /// no such rule. What monitors asked for stays, since they also see what is sent to nobody.
    pub(super) fn drop_named(&mut self, unique: &str) -> Option<PeerId> {
        let (peer, rule) = self.matches.naming(unique)?;
        let rule = rule.clone();
        self.remove(peer, &rule).then_some(peer)
    }

    /// An entry for one more rule.
    fn enter(&mut self, peer: PeerId, id: RuleId, is_filter: bool) -> Slot {
        let order = self.next;
        self.next += 1;
        self.entries.insert(RuleKey {
            peer,
            order,
            is_filter,
            id,
        })
    }

    /// Which rules have changed.
    pub(super) fn entries(&self) -> &Entries<RuleKey> {
        &self.entries
    }

    /// The same, to take them.
    pub(super) fn entries_mut(&mut self) -> &mut Entries<RuleKey> {
        &mut self.entries
    }

    /// The match rule or filter that has an entry: whose it is, its order, and itself.
    pub(super) fn saved_in(&self, slot: Slot) -> Option<(PeerId, u64, &Arc<MatchRule>)> {
        let RuleKey {
            peer,
            order,
            is_filter,
            id,
        } = *self.entries.get(slot)?;
        let index = if is_filter { &self.monitors } else { &self.matches };
        Some((peer, order, index.rule(id)?))
    }

    /// Goes on from a checkpoint that has room for `len` rules and each of those that there are in a slot; `saved` tells whose
    /// they are, and their order, by which it is sorted.
    pub(super) fn resume(&mut self, len: u32, saved: &[(PeerId, u64, Slot)]) -> Result<(), Violation> {
        let mut keys = Vec::with_capacity(saved.len());
        for of_one in saved.chunk_by(|a, b| a.0 == b.0) {
            let Some((peer, ..)) = of_one.first().copied() else {
                continue;
            };
            let is_filter = self.monitors.count(peer) > 0;
            let index = if is_filter {
                &mut self.monitors
            } else {
                &mut self.matches
            };
            if index.count(peer) != of_one.len() {
                return Err(Violation::new(format!(
                    "{peer:?} has other rules than its entries"
                )));
            }
            for ((id, number), (peer, order, slot)) in index.numbers_mut(peer).zip(of_one) {
                *number = *slot;
                let key = RuleKey {
                    peer: *peer,
                    order: *order,
                    is_filter,
                    id,
                };
                keys.push((*slot, key));
                self.next = self.next.max(order.saturating_add(1));
            }
        }
        self.entries.resume(len, keys)
    }

    /// How many match rules a peer has, repeated ones included.
    pub(super) fn count(&self, peer: PeerId) -> usize {
        self.matches.count(peer)
    }

    /// How many match rules an active peer has, or how many filters a monitor.
    pub(super) fn held_count(&self, peer: PeerId) -> usize {
        self.matches.count(peer) + self.monitors.count(peer)
    }

    /// The match rules of a peer, or the filters of a monitor, in the order in which they were added.
    pub(super) fn rules_of(&self, peer: PeerId) -> impl Iterator<Item = &Arc<MatchRule>> {
        self.matches.rules_of(peer).chain(self.monitors.rules_of(peer))
    }

    /// How many match rules and filters there are.
    pub(super) fn len(&self) -> usize {
        self.matches.len() + self.monitors.len()
    }

    /// The highest count of rules and filters so far.
    pub(super) fn peak(&self) -> u32 {
        self.peak
    }

    /// The count of rules and filters has been as high as this.
    pub(super) fn raise_peak(&mut self, count: u32) {
        self.peak = self.peak.max(count);
    }

    /// The indexes agree, the match rules belong to `active` peers and the filters to `monitors`.
    pub(super) fn check(&self, active: &[PeerId], monitors: &[PeerId]) -> Result<(), Violation> {
        let (mut rules, mut eavesdropping) = (0, 0);
        for peer in active {
            rules += self.matches.count(*peer);
            eavesdropping += self.eavesdroppers.count(*peer);
            let expected = self.matches.rules_of(*peer).filter(|rule| rule.eavesdrop);
            if !expected.eq(self.eavesdroppers.rules_of(*peer)) {
                let text = format!("{peer:?} eavesdrops by other rules than its own");
                return Err(Violation::new(text));
            }
        }
        self.check_entries(&self.matches, active, false)?;
        self.check_entries(&self.monitors, monitors, true)?;
        let filters: usize = monitors.iter().map(|peer| self.monitors.count(*peer)).sum();
        let counted = (rules, eavesdropping, filters);
        let indexed = (self.matches.len(), self.eavesdroppers.len(), self.monitors.len());
        if counted != indexed {
            return Err(Violation::new(format!(
                "rules of peers, eavesdropping, of monitors: {counted:?}, and not {indexed:?}"
            )));
        }
        Ok(())
    }

    /// Each rule has an entry of its own, and they are in the order of the rules.
    fn check_entries(&self, index: &MatchIndex, peers: &[PeerId], is_filter: bool) -> Result<(), Violation> {
        for peer in peers {
            let mut next = 0;
            for (id, slot) in index.held_by(*peer) {
                let expected = |key: &&RuleKey| {
                    (key.peer, key.is_filter, key.id) == (*peer, is_filter, id) && key.order >= next
                };
                let Some(key) = self.entries.get(slot).filter(expected) else {
                    return Err(Violation::new(format!("a rule of {peer:?} has another's entry")));
                };
                next = key.order + 1;
            }
        }
        Ok(())
    }

    fn index(&self, audience: Audience) -> &MatchIndex {
        match audience {
            Audience::Subscribers => &self.matches,
            Audience::Eavesdroppers => &self.eavesdroppers,
            Audience::Monitors => &self.monitors,
        }
    }
}

/// Why a peer cannot have a rule. Both are `LimitsExceeded`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RuleRefusal {
    /// The peer is at `max_match_rules_per_connection`, which is this.
    #[error("The connection has as many match rules as it may have (max_match_rules_per_connection={0})")]
    TooMany(u64),
    /// Each set of keys, and each number of elements in a namespace, costs the messages of all.
    #[error("The match rules of this user have too many different sets of keys")]
    TooVarious,
    /// All peers together have as many as there is room for.
    #[error("The bus has no room for another match rule")]
    NoRoom,
}

impl Broker {
    /// `AddMatch`. Equal rules are counted: each needs a `RemoveMatch` of its own.
    ///
    /// A rule with `eavesdrop='true'` is always taken, as by dbus-daemon; where the policy does not let peers eavesdrop
    /// it matches no more than it would without.
    pub(crate) fn add_match(&mut self, id: PeerId, rule: MatchRule) -> Result<(), RuleRefusal> {
        let limit = self.config.limits.max_match_rules_per_connection;
        let count = self.subscriptions.count(id);
        if count as u64 >= limit {
            return Err(RuleRefusal::TooMany(limit));
        }
        if !self.has_room_for_rules(1) {
            return Err(RuleRefusal::NoRoom);
        }
        let Some(peer) = self.roster.get_mut(id) else {
            return Ok(());
        };
        let user = peer.credentials.uid;
        if !self.subscriptions.admits(user, &rule) {
            return Err(RuleRefusal::TooVarious);
        }
        peer.peaks.rules = peer.peaks.rules.max(count as u32 + 1);
        self.subscriptions.add(id, user, rule);
        Ok(())
    }

    /// `RemoveMatch`: one equal rule of this peer. False if it has none.
    pub(crate) fn remove_match(&mut self, id: PeerId, rule: &MatchRule) -> bool {
        self.roster.mark_changed(id);
        self.subscriptions.remove(id, rule)
    }

    /// Whether a peer may become a monitor with these filters.
    pub(crate) fn may_monitor(&self, id: PeerId, filters: &[MatchRule]) -> Result<(), RuleRefusal> {
        let limit = self.config.limits.max_match_rules_per_connection;
        if filters.len() as u64 > limit {
            return Err(RuleRefusal::TooMany(limit));
        }
        if !self.has_room_for_rules(filters.len().max(1)) {
            return Err(RuleRefusal::NoRoom);
        }
        if !self.subscriptions.admits_filters(self.uid(id), filters) {
            return Err(RuleRefusal::TooVarious);
        }
        Ok(())
    }

    /// `BecomeMonitor`: the peer loses its names, match rules and open calls, and sees from now on all that matches one
    /// of `rules` (everything, if there is none), whatever its destination (specification,
    /// "org.freedesktop.DBus.Monitoring.BecomeMonitor").
    /// [`may_monitor`](Self::may_monitor) must have said that it may.
    pub(crate) fn begin_monitoring(&mut self, id: PeerId, rules: Vec<MatchRule>) {
        // An answer to a monitor would come twice: to the caller, and as what the monitor sees.
        self.forget_caller(id);
        // The peer still hears that its own names are lost, as a peer and not as a monitor: so does dbus-daemon.
        self.begin_shedding(id, Then::Monitor(rules));
    }

    /// The peer, which has nothing any more, is a monitor from now on.
    pub(super) fn become_monitor(&mut self, id: PeerId, rules: Vec<MatchRule>) {
        if !self.roster.begin_monitoring(id) {
            return;
        }
        let rules = if rules.is_empty() {
            vec![MatchRule::default()]
        } else {
            rules
        };
        let user = self.uid(id);
        for rule in rules {
            self.subscriptions.add_filter(id, user, rule);
        }
    }

    /// The match rules of a peer, or the filters of a monitor, in the order in which they were added.
    pub(crate) fn rules_of(&self, id: PeerId) -> impl Iterator<Item = &Arc<MatchRule>> {
        self.subscriptions.rules_of(id)
    }
}
