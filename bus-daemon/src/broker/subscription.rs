//! Match rules of peers, and what monitors want to see.

use bus_wire::MatchRule;

use super::Broker;
use super::event::PeerId;
use super::peer::Phase;

/// The peer is at `max_match_rules_per_connection`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooManyRules;

impl Broker {
    /// `AddMatch`. Equal rules are counted: each needs a `RemoveMatch` of its own.
    ///
    /// A rule with `eavesdrop='true'` is always taken, as by dbus-daemon; where the policy does not let peers eavesdrop
    /// it matches no more than it would without.
    pub(crate) fn add_match(&mut self, id: PeerId, rule: MatchRule) -> Result<(), TooManyRules> {
        let limit = self.config.limits.max_match_rules_per_connection;
        let count = self.matches.count(id);
        if count as u64 >= limit {
            return Err(TooManyRules);
        }
        let Some(peer) = self.peers.get_mut(id) else {
            return Ok(());
        };
        peer.peaks.rules = peer.peaks.rules.max(count as u32 + 1);
        self.index_rule(id, rule);
        self.note_rules();
        Ok(())
    }

    /// `RemoveMatch`: one equal rule of this peer. False if it has none.
    pub(crate) fn remove_match(&mut self, id: PeerId, rule: &MatchRule) -> bool {
        self.peers.mark_changed(id);
        if rule.eavesdrop {
            self.eavesdroppers.remove(id, rule);
        }
        self.matches.remove(id, rule)
    }

    /// `BecomeMonitor`: the peer loses its names, match rules and open calls, and sees from now on all that matches one
    /// of `rules` (everything, if there is none), whatever its destination (specification,
    /// "org.freedesktop.DBus.Monitoring.BecomeMonitor").
    /// The number of rules must be within `max_match_rules_per_connection`.
    pub(crate) fn begin_monitoring(&mut self, id: PeerId, rules: Vec<MatchRule>) {
        self.drop_rules(id);
        // It still hears that its own names are lost, as a peer and not as a monitor: so does dbus-daemon.
        self.release_all_names(id);
        self.drop_calls(id);
        // An answer to a monitor would come twice: to it, and as what it sees.
        self.forget_caller(id);
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        peer.phase = Phase::Monitor;
        let rules = if rules.is_empty() {
            vec![MatchRule::default()]
        } else {
            rules
        };
        for rule in rules {
            self.monitors.add(id, rule);
        }
        self.note_rules();
    }

    /// The match rules of a peer, or the filters of a monitor, in the order in which they were added.
    pub(crate) fn rules_of(&self, id: PeerId) -> impl Iterator<Item = &MatchRule> {
        let is_monitor = self.peers.get(id).is_some_and(super::Peer::is_monitor);
        if is_monitor {
            self.monitors.rules_of(id)
        } else {
            self.matches.rules_of(id)
        }
    }

    /// All match rules of the bus, and filters of monitors.
    pub(crate) fn rule_count(&self) -> usize {
        self.matches.len() + self.monitors.len()
    }

    pub(super) fn index_rule(&mut self, id: PeerId, rule: MatchRule) {
        self.peers.mark_changed(id);
        if rule.eavesdrop {
            self.eavesdroppers.add(id, rule.clone());
        }
        self.matches.add(id, rule);
    }

    pub(super) fn drop_rules(&mut self, id: PeerId) {
        self.peers.mark_changed(id);
        self.matches.remove_peer(id);
        self.eavesdroppers.remove_peer(id);
        self.monitors.remove_peer(id);
    }

    /// A unique name has gone and is never used again: rules that name it as sender or destination are dead, and count
    /// against nobody's limit any more. So dbus-daemon. What monitors asked for stays, since they also see what is sent to
    /// nobody.
    pub(super) fn drop_dead_rules(&mut self, unique: &str) {
        self.eavesdroppers.remove_named(unique);
        for id in self.matches.remove_named(unique) {
            self.peers.mark_changed(id);
        }
    }

    pub(super) fn note_rules(&mut self) {
        self.stats.peak_rules = self.stats.peak_rules.max(self.rule_count() as u32);
    }
}
