//! Which rules name which unique name.

use std::collections::BTreeSet;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::form::RuleId;
use crate::broker::match_rule::MatchRule;

/// The rules by the unique names in their `sender` and `destination`: a unique name is never used again, so they are
/// dead when it goes.
#[derive(Debug)]
pub(super) struct Named {
    rules: HashMap<Box<str>, BTreeSet<RuleId>, FixedState>,
}

impl Named {
    pub(super) fn new(hasher: FixedState) -> Self {
        Self {
            rules: HashMap::with_hasher(hasher),
        }
    }

    pub(super) fn add(&mut self, rule: &MatchRule, id: RuleId) {
        for name in unique_names(rule) {
            self.rules.entry(name.into()).or_default().insert(id);
        }
    }

    pub(super) fn remove(&mut self, rule: &MatchRule, id: RuleId) {
        for name in unique_names(rule) {
            if let Some(ids) = self.rules.get_mut(name) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.rules.remove(name);
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// One of the rules that name it.
    pub(super) fn newest(&self, name: &str) -> Option<RuleId> {
        self.rules.get(name)?.last().copied()
    }
}

fn unique_names(rule: &MatchRule) -> impl Iterator<Item = &str> {
    let names = [&rule.sender, &rule.destination];
    names
        .into_iter()
        .filter_map(|name| name.as_deref())
        .filter(|name| name.starts_with(':'))
}
