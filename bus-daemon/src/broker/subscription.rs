//! Match rules of peers, and what monitors want to see.

use std::sync::Arc;

use bus_wire::MatchRule;

use super::Broker;
use super::event::PeerId;
use super::peer::Phase;

/// Why a match rule was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RuleError {
    /// The peer is at `max_match_rules_per_connection`.
    TooMany,
    /// The rule says `eavesdrop='true'` and the policy does not let peers eavesdrop.
    EavesdropDenied,
}

impl Broker {
    /// `AddMatch`. Equal rules are counted: each needs a `RemoveMatch` of its own.
    pub(crate) fn add_match(&mut self, id: PeerId, rule: MatchRule) -> Result<(), RuleError> {
        let limit = self.config.limits.max_match_rules_per_connection;
        if rule.eavesdrop == Some(true) && !self.config.eavesdrop_allowed {
            return Err(RuleError::EavesdropDenied);
        }
        let Some(peer) = self.peers.get_mut(id) else { return Ok(()) };
        if peer.rules.len() as u64 >= limit {
            return Err(RuleError::TooMany);
        }
        let rule = Arc::new(rule);
        peer.rules.push(rule.clone());
        peer.peaks.rules = peer.peaks.rules.max(peer.rules.len() as u32);
        self.index_rule(id, &rule);
        self.stats.add_rules(1);
        Ok(())
    }

    /// `RemoveMatch`: the newest equal rule of this peer. False if it has none.
    pub(crate) fn remove_match(&mut self, id: PeerId, rule: &MatchRule) -> bool {
        let Some(peer) = self.peers.get_mut(id) else { return false };
        let Some(place) = peer.rules.iter().rposition(|held| **held == *rule) else { return false };
        let rule = peer.rules.remove(place);
        self.unindex_rule(id, &rule);
        self.stats.remove_rules(1);
        true
    }

    /// `BecomeMonitor`, after the answer was sent: the peer loses its names and match rules, and sees from now on all
    /// that matches one of `rules` (or everything, without a rule), whatever its destination.
    /// The number of rules must be within `max_match_rules_per_connection`.
    pub(crate) fn begin_monitoring(&mut self, id: PeerId, rules: Vec<MatchRule>) {
        self.drop_rules(id);
        self.drop_calls(id);
        let rules: Vec<Arc<MatchRule>> =
            if rules.is_empty() { vec![Arc::default()] } else { rules.into_iter().map(Arc::new).collect() };
        for rule in &rules {
            self.monitors.add(id, rule);
        }
        self.stats.add_rules(rules.len());
        if let Some(peer) = self.peers.get_mut(id) {
            peer.phase = Phase::Monitor;
            peer.rules = rules;
        }
        self.release_all_names(id);
    }

    pub(super) fn index_rule(&mut self, id: PeerId, rule: &Arc<MatchRule>) {
        self.matches.add(id, rule);
        if rule.eavesdrop == Some(true) {
            self.eavesdroppers.add(id, rule);
        }
    }

    fn unindex_rule(&mut self, id: PeerId, rule: &MatchRule) {
        self.matches.remove(id, rule);
        if rule.eavesdrop == Some(true) {
            self.eavesdroppers.remove(id, rule);
        }
    }

    /// Takes away all rules of a peer, or all filters of a monitor.
    pub(super) fn drop_rules(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let is_monitor = peer.is_monitor();
        let rules = std::mem::take(&mut peer.rules);
        for rule in &rules {
            if is_monitor {
                self.monitors.remove(id, rule);
            } else {
                self.unindex_rule(id, rule);
            }
        }
        self.stats.remove_rules(rules.len());
    }
}
