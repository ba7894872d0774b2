//! Who owns the names that somebody wants to know about; over a gap by comparison.

use std::collections::{BTreeMap, BTreeSet};

use super::event::{CallId, Known, OwnerChange, WatchId};
use super::ledger::RuleId;

/// The names that are watched.
#[derive(Debug, Default)]
pub(super) struct Names {
    table: BTreeMap<Box<str>, Watched>,
    watches: BTreeMap<WatchId, Box<str>>,
    waits: BTreeMap<CallId, BTreeSet<Box<str>>>,
}

#[derive(Debug)]
struct Watched {
    /// The rule for its NameOwnerChanged.
    rule: Option<RuleId>,
    /// How many rules, and waiting calls, want to know.
    uses: u32,
    /// The watches, and whether each was told of an owner already.
    watches: BTreeMap<WatchId, bool>,
    waits: BTreeSet<CallId>,
    owner: Owner,
}

/// What is known of an owner.
///
/// ```text
/// Unknown -> Now <-> Before
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    Unknown,
    /// While there was a link; `gone`: the bus it was on is gone.
    Before {
        owner: Option<Box<str>>,
        gone: bool,
    },
    Now(Option<Box<str>>),
}

/// What came of news about a name.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) changes: Vec<(WatchId, OwnerChange)>,
    /// Calls that waited for names, all of which have owners now.
    pub(super) ended: Vec<CallId>,
}

impl Names {
    /// Somebody wants to know: true if the bus is to be asked, because nobody did before.
    fn touch(&mut self, name: &str) -> (bool, &mut Watched) {
        let is_new = !self.table.contains_key(name);
        let watched = self.table.entry(name.into()).or_insert_with(|| Watched {
            rule: None,
            uses: 0,
            watches: BTreeMap::new(),
            waits: BTreeSet::new(),
            owner: Owner::Unknown,
        });
        (is_new, watched)
    }

    /// A rule or a call wants to know. True: the bus is to be asked.
    pub(super) fn add_use(&mut self, name: &str) -> bool {
        let (is_new, watched) = self.touch(name);
        watched.uses += 1;
        is_new
    }

    /// The rule of a name that nobody wants to know of any more.
    pub(super) fn remove_use(&mut self, name: &str) -> Option<RuleId> {
        let watched = self.table.get_mut(name)?;
        watched.uses = watched.uses.saturating_sub(1);
        self.forget_unused(name)
    }

    /// A watch. True: the bus is to be asked. With the owner, where that is known.
    pub(super) fn watch(&mut self, watch: WatchId, name: &str, epoch: u64) -> (bool, Option<OwnerChange>) {
        self.watches.insert(watch, name.into());
        let (is_new, watched) = self.touch(name);
        let Owner::Now(owner) = &watched.owner else {
            watched.watches.insert(watch, false);
            return (is_new, None);
        };
        let change = OwnerChange {
            old: None,
            new: owner.clone(),
            how: Known::First,
            epoch,
        };
        watched.watches.insert(watch, true);
        (is_new, Some(change))
    }

    /// The rule of a name that nobody wants to know of any more.
    pub(super) fn unwatch(&mut self, watch: WatchId) -> Option<RuleId> {
        let name = self.watches.remove(&watch)?;
        self.table.get_mut(&name)?.watches.remove(&watch);
        self.forget_unused(&name)
    }

    /// A call waits for names; those of which the bus is to be asked.
    pub(super) fn wait(&mut self, call: CallId, names: Vec<Box<str>>) -> Vec<Box<str>> {
        let names: BTreeSet<Box<str>> = names.into_iter().collect();
        let mut ask = Vec::new();
        for name in &names {
            let (is_new, watched) = self.touch(name);
            watched.waits.insert(call);
            if is_new {
                ask.push(name.clone());
            }
        }
        self.waits.insert(call, names);
        ask
    }

    /// Whether all names that a call waits for have owners.
    pub(super) fn is_over(&self, call: CallId) -> bool {
        self.waits
            .get(&call)
            .is_some_and(|names| names.iter().all(|name| self.owner(name).is_some()))
    }

    /// The call waits no longer. The rules of names that nobody wants to know of any more.
    pub(super) fn unwait(&mut self, call: CallId) -> Vec<RuleId> {
        let mut rules = Vec::new();
        for name in self.waits.remove(&call).unwrap_or_default() {
            if let Some(watched) = self.table.get_mut(&name) {
                watched.waits.remove(&call);
            }
            rules.extend(self.forget_unused(&name));
        }
        rules
    }

    pub(super) fn set_rule(&mut self, name: &str, rule: RuleId) {
        if let Some(watched) = self.table.get_mut(name) {
            watched.rule = Some(rule);
        }
    }

    fn forget_unused(&mut self, name: &str) -> Option<RuleId> {
        let watched = self.table.get(name)?;
        if watched.uses > 0 || !watched.watches.is_empty() || !watched.waits.is_empty() {
            return None;
        }
        self.table.remove(name)?.rule
    }

    /// Whether anybody wants to know.
    pub(super) fn is_watched(&self, name: &str) -> bool {
        self.table.contains_key(name)
    }

    /// The owner, where there is one and it is known for certain.
    pub(super) fn owner(&self, name: &str) -> Option<&str> {
        match &self.table.get(name)?.owner {
            Owner::Now(owner) => owner.as_deref(),
            Owner::Unknown | Owner::Before { .. } => None,
        }
    }

    /// Whether it is known for certain who owns it, or that nobody does.
    pub(super) fn is_known(&self, name: &str) -> bool {
        self.table
            .get(name)
            .is_some_and(|watched| matches!(watched.owner, Owner::Now(_)))
    }

    /// All names.
    pub(super) fn all(&self) -> Vec<Box<str>> {
        self.table.keys().cloned().collect()
    }

    /// The link is gone: what was known was so before.
    pub(super) fn lost(&mut self) {
        for watched in self.table.values_mut() {
            if let Owner::Now(owner) = &mut watched.owner {
                let (owner, gone) = (owner.take(), false);
                watched.owner = Owner::Before { owner, gone };
            }
        }
    }

    /// The bus is another: all owners from before are gone. The names that had one.
    pub(super) fn end_of_epoch(&mut self) -> Vec<Box<str>> {
        let mut owned = Vec::new();
        for (name, watched) in &mut self.table {
            if let Owner::Before { owner, gone } = &mut watched.owner {
                *gone = true;
                if owner.is_some() {
                    owned.push(name.clone());
                }
            }
        }
        owned
    }

    /// The bus says who owns a name.
    pub(super) fn learn(&mut self, name: &str, owner: Option<&str>, epoch: u64) -> News {
        let mut news = News::default();
        let Some(watched) = self.table.get_mut(name) else {
            return news;
        };
        let now = Owner::Now(owner.map(Into::into));
        let before = std::mem::replace(&mut watched.owner, now);
        let steps = steps(&before, owner);
        for (watch, told) in &mut watched.watches {
            let change = |old: Option<&str>, new: Option<&str>, how| OwnerChange {
                old: old.map(Into::into),
                new: new.map(Into::into),
                how,
                epoch,
            };
            if !std::mem::replace(told, true) {
                news.changes.push((*watch, change(None, owner, Known::First)));
                continue;
            }
            let changes = steps.iter().map(|(old, new, how)| change(*old, *new, *how));
            news.changes.extend(changes.map(|change| (*watch, change)));
        }
        if owner.is_some() {
            let waits: Vec<CallId> = watched.waits.iter().copied().collect();
            news.ended = waits.into_iter().filter(|call| self.is_over(*call)).collect();
        }
        news
    }

    /// How many names, watches and waits there are.
    pub(super) fn count(&self) -> (usize, usize, usize) {
        (self.table.len(), self.watches.len(), self.waits.len())
    }
}

/// The changes from what was known to what is. An owner on a bus that is gone went, even if whoever came has the same name.
fn steps<'a>(before: &'a Owner, now: Option<&'a str>) -> Vec<(Option<&'a str>, Option<&'a str>, Known)> {
    match before {
        Owner::Unknown => Vec::new(),
        Owner::Now(old) if old.as_deref() == now => Vec::new(),
        Owner::Now(old) => vec![(old.as_deref(), now, Known::Told)],
        Owner::Before { owner, gone: false } if owner.as_deref() == now => Vec::new(),
        Owner::Before { owner, gone: false } => vec![(owner.as_deref(), now, Known::Inferred)],
        Owner::Before { owner, gone: true } => {
            let went = owner.as_deref().map(|old| (Some(old), None, Known::Inferred));
            let came = now.map(|new| (None, Some(new), Known::Inferred));
            went.into_iter().chain(came).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "a.b";

    fn changes(news: &News) -> Vec<String> {
        let changes = news.changes.iter().map(|(watch, change)| {
            let name = |name: &Option<Box<str>>| name.clone().unwrap_or_else(|| "-".into());
            format!(
                "{} {}>{} {:?}",
                watch.0,
                name(&change.old),
                name(&change.new),
                change.how
            )
        });
        changes.collect()
    }

    #[test]
    fn a_gap_is_bridged_by_comparison() {
        let mut names = Names::default();
        assert!(names.watch(WatchId(1), NAME, 1).0);
        assert_eq!(changes(&names.learn(NAME, Some(":1.5"), 1)), ["1 ->:1.5 First"]);
        assert!(changes(&names.learn(NAME, Some(":1.5"), 1)).is_empty());
        names.lost();
        assert_eq!(names.owner(NAME), None);
        assert!(changes(&names.learn(NAME, Some(":1.5"), 1)).is_empty());
        names.lost();
        assert_eq!(changes(&names.learn(NAME, None, 1)), ["1 :1.5>- Inferred"]);
    }

    #[test]
    fn an_owner_with_the_same_unique_name_on_another_bus_went_and_came() {
        let mut names = Names::default();
        names.watch(WatchId(1), NAME, 1);
        names.learn(NAME, Some(":1.5"), 1);
        names.lost();
        assert_eq!(names.end_of_epoch(), [NAME.into()]);
        names.watch(WatchId(2), NAME, 2);
        assert_eq!(
            changes(&names.learn(NAME, Some(":1.5"), 2)),
            ["1 :1.5>- Inferred", "1 ->:1.5 Inferred", "2 ->:1.5 First"]
        );
    }

    #[test]
    fn a_wait_ends_when_all_names_have_owners_at_the_same_time() {
        let mut names = Names::default();
        let call = CallId(1);
        assert_eq!(names.wait(call, vec!["a.b".into(), "c.d".into()]).len(), 2);
        assert!(names.learn("a.b", Some(":1.1"), 1).ended.is_empty());
        names.learn("a.b", None, 1);
        assert!(names.learn("c.d", Some(":1.2"), 1).ended.is_empty());
        assert_eq!(names.learn("a.b", Some(":1.3"), 1).ended, [call]);
        names.unwait(call);
        assert_eq!(names.count(), (0, 0, 0));
    }
}
