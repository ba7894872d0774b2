//! What the application wants of the bus: match rules, counted. Intent is recorded before it is sent, so that a bus that is
//! gone and comes back is asked for the same.

use std::collections::{BTreeMap, BTreeSet};

use bus_wire::MatchRule;

use super::event::StreamId;
use super::requests::DRIVER;

/// A rule of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RuleId(u64);

/// All rules.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    rules: BTreeMap<RuleId, Entry>,
    by_text: BTreeMap<Box<str>, RuleId>,
    /// Rules whose sender is a well-known name.
    by_sender: BTreeMap<Box<str>, BTreeSet<RuleId>>,
    /// Which rules could match a signal with this member; those that name none are under the empty text.
    by_member: BTreeMap<Box<str>, BTreeSet<RuleId>>,
    streams: BTreeMap<StreamId, Stream>,
    next: u64,
}

/// One rule, however many want it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) rule: MatchRule,
    text: Box<str>,
    pub(super) streams: BTreeSet<StreamId>,
    /// How often the session itself wants it.
    internal: u32,
    pub(super) phase: Phase,
    /// The bus has it, and whose signals it is about is known: nothing is missed.
    is_certain: bool,
}

/// What the bus knows of a rule, on this link.
///
/// ```text
///            AddMatch            return
///  Absent ------------> Adding ---------> Active
///   ^ ^ \                 | error           | RemoveMatch
///   | |  Refused <--------+                 v
///   | +--- (lost link)                   Removing
///   +----------------------------------------+ reply
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Absent,
    Adding,
    Active,
    Removing,
    /// Until the next link.
    Refused,
}

#[derive(Debug)]
struct Stream {
    rule: RuleId,
    standing: Standing,
}

/// What a stream may say about its signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The bus has not taken the rule since there is the stream: nothing was promised.
    New,
    /// It gets them all.
    Ready,
    /// It was ready; the link was lost, and it was not told yet.
    Missed,
}

/// What is to be sent about a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Add(RuleId),
    Remove(RuleId),
}

impl Ledger {
    pub(super) fn get(&self, rule: RuleId) -> Option<&Entry> {
        self.rules.get(&rule)
    }

    /// A stream wants this rule. Whether it is ready at once, and what the bus is to be asked.
    pub(super) fn subscribe(&mut self, stream: StreamId, rule: MatchRule) -> (bool, Option<Change>) {
        let id = self.entry(rule);
        let mut standing = Standing::New;
        if let Some(entry) = self.rules.get_mut(&id) {
            entry.streams.insert(stream);
            // Another who wants it is a reason to ask once more.
            if entry.phase == Phase::Refused {
                entry.phase = Phase::Absent;
            }
            if entry.is_certain {
                standing = Standing::Ready;
            }
        }
        let rule = id;
        self.streams.insert(stream, Stream { rule, standing });
        (standing == Standing::Ready, self.wanted(id))
    }

    /// A stream is gone. Its rule, and what the bus is to be asked.
    pub(super) fn unsubscribe(&mut self, stream: StreamId) -> Option<(MatchRule, Option<Change>)> {
        let id = self.streams.remove(&stream)?.rule;
        let entry = self.rules.get_mut(&id)?;
        entry.streams.remove(&stream);
        let rule = entry.rule.clone();
        Some((rule, self.wanted(id)))
    }

    /// The session itself wants this rule.
    pub(super) fn want(&mut self, rule: MatchRule) -> (RuleId, Option<Change>) {
        let id = self.entry(rule);
        if let Some(entry) = self.rules.get_mut(&id) {
            entry.internal += 1;
        }
        (id, self.wanted(id))
    }

    /// The session itself no longer wants this rule.
    pub(super) fn unwant(&mut self, rule: RuleId) -> Option<Change> {
        let entry = self.rules.get_mut(&rule)?;
        entry.internal = entry.internal.saturating_sub(1);
        self.wanted(rule)
    }

    fn entry(&mut self, rule: MatchRule) -> RuleId {
        let text: Box<str> = rule.to_text().into();
        if let Some(id) = self.by_text.get(&text) {
            return *id;
        }
        let id = RuleId(self.next);
        self.next += 1;
        let member = rule.member.clone().unwrap_or_default();
        self.by_member.entry(member).or_default().insert(id);
        if let Some(sender) = followed(&rule) {
            self.by_sender.entry(sender.into()).or_default().insert(id);
        }
        self.by_text.insert(text.clone(), id);
        let entry = Entry {
            rule,
            text,
            streams: BTreeSet::new(),
            internal: 0,
            phase: Phase::Absent,
            is_certain: false,
        };
        self.rules.insert(id, entry);
        id
    }

    /// What the bus is to be asked, so that it knows what is wanted. Forgets a rule that neither wants.
    fn wanted(&mut self, rule: RuleId) -> Option<Change> {
        let entry = self.rules.get_mut(&rule)?;
        match (entry.is_wanted(), entry.phase) {
            (true, Phase::Absent) => Some(Change::Add(rule)),
            (false, Phase::Active) => Some(Change::Remove(rule)),
            (false, Phase::Absent | Phase::Refused) => {
                self.forget(rule);
                None
            }
            (true, Phase::Adding | Phase::Active | Phase::Removing | Phase::Refused)
            | (false, Phase::Adding | Phase::Removing) => None,
        }
    }

    fn forget(&mut self, rule: RuleId) {
        if let Some(entry) = self.rules.remove(&rule) {
            self.by_text.remove(&entry.text);
            if let Some(sender) = followed(&entry.rule) {
                remove(&mut self.by_sender, sender, rule);
            }
            let member = entry.rule.member.as_deref().unwrap_or_default();
            remove(&mut self.by_member, member, rule);
        }
    }

    /// Whether the bus is still to be asked for this; then the rule's text. From now on it is being asked.
    pub(super) fn begin(&mut self, change: Change) -> Option<String> {
        let (id, phase) = match change {
            Change::Add(id) => (id, Phase::Adding),
            Change::Remove(id) => (id, Phase::Removing),
        };
        let entry = self.rules.get_mut(&id)?;
        let due = match change {
            Change::Add(_) => entry.is_wanted() && matches!(entry.phase, Phase::Absent | Phase::Refused),
            Change::Remove(_) => !entry.is_wanted() && entry.phase == Phase::Active,
        };
        if due {
            entry.phase = phase;
            entry.is_certain = false;
            return Some(entry.rule.to_text());
        }
        self.wanted(id);
        None
    }

    /// The bus has answered. What is to be asked next.
    pub(super) fn done(&mut self, change: Change, refused: bool) -> Option<Change> {
        let (Change::Add(id) | Change::Remove(id)) = change;
        let entry = self.rules.get_mut(&id)?;
        entry.phase = match (change, refused) {
            (Change::Add(_), false) => Phase::Active,
            (Change::Add(_), true) => Phase::Refused,
            (Change::Remove(_), _) => Phase::Absent,
        };
        entry.is_certain = false;
        self.wanted(id)
    }

    /// Whose signals a rule is about is known, if it names somebody. Streams that are ready now, each with whether it has missed
    /// something.
    pub(super) fn certain(&mut self, rule: RuleId) -> Vec<(StreamId, bool)> {
        let mut ready = Vec::new();
        let Some(entry) = self.rules.get_mut(&rule) else {
            return ready;
        };
        if entry.phase != Phase::Active {
            return ready;
        }
        entry.is_certain = true;
        for id in &entry.streams {
            if let Some(stream) = self.streams.get_mut(id)
                && stream.standing != Standing::Ready
            {
                ready.push((*id, stream.standing == Standing::Missed));
                stream.standing = Standing::Ready;
            }
        }
        ready
    }

    /// The rules about signals of this well-known name.
    pub(super) fn from(&self, sender: &str) -> Vec<RuleId> {
        let rules = self.by_sender.get(sender).into_iter().flatten();
        rules.copied().collect()
    }

    /// The link is gone, and with it what the bus knew.
    pub(super) fn lost(&mut self) {
        for stream in self.streams.values_mut() {
            if stream.standing == Standing::Ready {
                stream.standing = Standing::Missed;
            }
        }
        let unwanted: Vec<RuleId> = self
            .rules
            .iter_mut()
            .filter_map(|(id, entry)| {
                entry.phase = Phase::Absent;
                entry.is_certain = false;
                (!entry.is_wanted()).then_some(*id)
            })
            .collect();
        for rule in unwanted {
            self.forget(rule);
        }
    }

    /// All are to be asked for anew.
    pub(super) fn replay(&self) -> Vec<Change> {
        self.rules.keys().map(|id| Change::Add(*id)).collect()
    }

    /// Without a bus there is nobody to ask: all streams are ready. Returns those that were not, and whether they missed
    /// something.
    pub(super) fn all_ready(&mut self) -> Vec<(StreamId, bool)> {
        for entry in self.rules.values_mut() {
            entry.phase = Phase::Active;
            entry.is_certain = true;
        }
        let not_ready = self
            .streams
            .iter_mut()
            .filter(|(_, stream)| stream.standing != Standing::Ready);
        not_ready
            .map(|(id, stream)| {
                let missed = stream.standing == Standing::Missed;
                stream.standing = Standing::Ready;
                (*id, missed)
            })
            .collect()
    }

    /// The streams that get a signal, each of them once. `matches` judges a rule.
    pub(super) fn search(&self, member: &str, mut matches: impl FnMut(&MatchRule) -> bool) -> Vec<StreamId> {
        let mut found = Vec::new();
        for rule in [member, ""]
            .iter()
            .filter_map(|key| self.by_member.get(*key))
            .flatten()
        {
            let Some(entry) = self.rules.get(rule) else {
                continue;
            };
            // Where the bus has not taken the rule, nothing is promised, and the note of what was missed comes first.
            if entry.is_certain && matches(&entry.rule) {
                // No stream is in two of them: each has one rule. The session's own rules have none.
                found.extend(entry.streams.iter().copied());
            }
        }
        found
    }

    /// Another unique name is ours: rules with the old one are about us still.
    pub(super) fn rename(&mut self, old: &str, new: &str) {
        let is_ours = |name: &Option<Box<str>>| name.as_deref() == Some(old);
        let ours: Vec<RuleId> = self
            .rules
            .iter()
            .filter(|(_, entry)| is_ours(&entry.rule.sender) || is_ours(&entry.rule.destination))
            .map(|(id, _)| *id)
            .collect();
        for id in ours {
            let Some(entry) = self.rules.get_mut(&id) else {
                continue;
            };
            for name in [&mut entry.rule.sender, &mut entry.rule.destination] {
                if is_ours(name) {
                    *name = Some(new.into());
                }
            }
            self.by_text.remove(&entry.text);
            entry.text = entry.rule.to_text().into();
            self.by_text.insert(entry.text.clone(), id);
        }
    }

    /// Rules whose sender is a unique name, all of which are of a bus that is gone: their streams, which end. The session itself
    /// never has such rules.
    pub(super) fn end_of_epoch(&mut self, own: Option<&str>) -> Vec<StreamId> {
        let is_stranger = |name: &str| name.starts_with(':') && Some(name) != own;
        let dead: Vec<RuleId> = self
            .rules
            .iter()
            .filter(|(_, entry)| entry.rule.sender.as_deref().is_some_and(is_stranger))
            .map(|(id, _)| *id)
            .collect();
        let mut streams = Vec::new();
        for rule in dead {
            if let Some(entry) = self.rules.get(&rule) {
                streams.extend(entry.streams.iter().copied());
            }
            self.forget(rule);
        }
        for stream in &streams {
            self.streams.remove(stream);
        }
        streams
    }

    /// How many rules and streams there are.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.rules.len(), self.streams.len())
    }
}

/// The sender of a rule, where signals come under another name, which its owner has.
pub(super) fn followed(rule: &MatchRule) -> Option<&str> {
    let sender = rule.sender.as_deref()?;
    (!sender.starts_with(':') && sender != DRIVER).then_some(sender)
}

fn remove(index: &mut BTreeMap<Box<str>, BTreeSet<RuleId>>, key: &str, rule: RuleId) {
    if let Some(rules) = index.get_mut(key) {
        rules.remove(&rule);
        if rules.is_empty() {
            index.remove(key);
        }
    }
}

impl Entry {
    fn is_wanted(&self) -> bool {
        self.internal > 0 || !self.streams.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> MatchRule {
        text.parse().unwrap()
    }

    /// The bus takes the rule.
    fn done(ledger: &mut Ledger, change: Change) -> Vec<(StreamId, bool)> {
        let (Change::Add(rule) | Change::Remove(rule)) = change;
        assert_eq!(ledger.done(change, false), None);
        ledger.certain(rule)
    }

    #[test]
    fn a_rule_that_many_want_is_asked_for_once_and_removed_with_the_last() {
        let mut ledger = Ledger::default();
        let (ready, change) = ledger.subscribe(StreamId(1), rule("member='M'"));
        let add = change.unwrap();
        assert!(!ready);
        assert_eq!(ledger.begin(add).as_deref(), Some("member='M'"));
        assert_eq!(ledger.subscribe(StreamId(2), rule("member=M")), (false, None));
        assert_eq!(
            done(&mut ledger, add),
            [(StreamId(1), false), (StreamId(2), false)]
        );
        assert_eq!(ledger.subscribe(StreamId(3), rule("member=M")), (true, None));
        for stream in [1, 2] {
            assert_eq!(ledger.unsubscribe(StreamId(stream)).unwrap().1, None);
        }
        let remove = ledger.unsubscribe(StreamId(3)).unwrap().1.unwrap();
        assert!(ledger.begin(remove).is_some());
        // Wanted again before the bus has answered: nothing is said before it has.
        assert_eq!(ledger.subscribe(StreamId(4), rule("member=M")), (false, None));
        assert_eq!(ledger.done(remove, false), Some(add));
    }

    #[test]
    fn only_streams_that_were_ready_have_missed_something() {
        let mut ledger = Ledger::default();
        let add = ledger.subscribe(StreamId(1), rule("member='M'")).1.unwrap();
        ledger.begin(add);
        done(&mut ledger, add);
        let late = ledger.subscribe(StreamId(2), rule("member='N'")).1.unwrap();
        ledger.begin(late);
        ledger.lost();
        for change in ledger.replay() {
            assert!(ledger.begin(change).is_some());
            let missed = change == add;
            let stream = StreamId(if missed { 1 } else { 2 });
            assert_eq!(done(&mut ledger, change), [(stream, missed)]);
        }
    }

    #[test]
    fn a_signal_that_the_session_itself_wants_is_for_the_streams_that_want_it_too() {
        let mut ledger = Ledger::default();
        let (own, add) = ledger.want(rule("member='M',arg0='a.b'"));
        ledger.begin(add.unwrap());
        assert_eq!(done(&mut ledger, Change::Add(own)), []);
        for (stream, text) in [(1, ""), (2, "member='M'"), (3, "member='N'")] {
            let add = ledger.subscribe(StreamId(stream), rule(text)).1.unwrap();
            ledger.begin(add);
            done(&mut ledger, add);
        }
        let all = |rule: &MatchRule| rule.member.as_deref() != Some("N");
        let mut found = ledger.search("M", all);
        found.sort();
        assert_eq!(found, [StreamId(1), StreamId(2)]);
        assert_eq!(ledger.search("O", all), [StreamId(1)]);
    }

    #[test]
    fn what_nobody_wants_is_forgotten() {
        let mut ledger = Ledger::default();
        let add = ledger.subscribe(StreamId(1), rule("member='M'")).1.unwrap();
        ledger.unsubscribe(StreamId(1));
        assert_eq!(ledger.begin(add), None);
        assert_eq!(ledger.count(), (0, 0));
        let add = ledger.subscribe(StreamId(2), rule("member='M'")).1.unwrap();
        ledger.begin(add);
        ledger.unsubscribe(StreamId(2));
        ledger.lost();
        assert_eq!(ledger.count(), (0, 0));
        assert!(ledger.by_member.is_empty() && ledger.by_text.is_empty());
    }
}
