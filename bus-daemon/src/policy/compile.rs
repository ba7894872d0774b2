//! Which rules apply to whom, and an index over them for all to whom the same apply.

use std::sync::Arc;

use smallvec::SmallVec;

use super::Map;
use super::rules::{Context, MessageRule, Policy, Rule, RuleId, Subject};
use super::table::{Entrant, Table};
use super::verdict::Who;
use super::vocabulary::{Patterns, Texts};

/// A policy with all that does not depend on who asks.
#[derive(Debug, Default)]
pub struct Compiled {
    policy: Arc<Policy>,
    default: Vec<u32>,
    of_user: Map<u32, Vec<u32>>,
    of_group: Map<u32, Vec<u32>>,
    at_console: Vec<u32>,
    not_at_console: Vec<u32>,
    mandatory: Vec<u32>,
    pub(super) connect: Connecting,
    pub(super) texts: Texts,
    peers: Patterns,
    pub(super) ownable: Patterns,
}

/// The last rule about connecting for each user, each group, and anybody: the how manieth it is, and which.
#[derive(Debug, Default)]
pub(super) struct Connecting {
    pub(super) users: Map<u32, (u32, RuleId)>,
    pub(super) groups: Map<u32, (u32, RuleId)>,
    pub(super) anybody: Option<(u32, RuleId)>,
}

/// The blocks that apply to somebody beside those that apply to all, in the order in which they do. Whom no block names has
/// none, whatever the user and the groups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Applicable(SmallVec<[u32; 4]>);

impl Compiled {
    /// Sorts the blocks of a policy and gathers what its rules speak of.
    pub fn new(policy: impl Into<Arc<Policy>>) -> Self {
        let policy = policy.into();
        let mut compiled = Self::default();
        for (number, block) in policy.blocks.iter().enumerate() {
            for rule in &block.rules {
                compiled.learn(&rule.subject);
            }
            let number = number as u32;
            let blocks = match &block.context {
                Context::Default => &mut compiled.default,
                Context::Mandatory => &mut compiled.mandatory,
                Context::AtConsole(true) => &mut compiled.at_console,
                Context::AtConsole(false) => &mut compiled.not_at_console,
                Context::User(user) => match policy.ids.users.get(user) {
                    Some(uid) => compiled.of_user.entry(*uid).or_default(),
                    None => continue,
                },
                Context::Group(group) => match policy.ids.groups.get(group) {
                    Some(gid) => compiled.of_group.entry(*gid).or_default(),
                    None => continue,
                },
            };
            if !block.rules.is_empty() {
                blocks.push(number);
            }
        }
        let blocks = compiled.default.iter().chain(&compiled.mandatory);
        compiled.connect = Connecting::new(&policy, blocks);
        compiled.policy = policy;
        compiled
    }

    /// The policy itself.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The names of other peers that rules speak of: what a [`Standing`](super::vocabulary::Standing) is made with.
    pub fn patterns(&self) -> &Patterns {
        &self.peers
    }

    /// What of the policy applies to somebody: groups by number, so that the highest wins, then the user, then whether it sits at
    /// the machine.
    pub fn applicable(&self, who: Who<'_>) -> Applicable {
        let mut gids: SmallVec<[u32; 8]> = who
            .gids
            .iter()
            .copied()
            .filter(|gid| self.of_group.contains_key(gid))
            .collect();
        gids.sort_unstable();
        gids.dedup();
        let of_groups = gids.iter().filter_map(|gid| self.of_group.get(gid)).flatten();
        let of_user = self.of_user.get(&who.uid).into_iter().flatten();
        let console = if who.at_console {
            &self.at_console
        } else {
            &self.not_at_console
        };
        Applicable(of_groups.chain(of_user).chain(console).copied().collect())
    }

    /// All blocks that apply, in order.
    fn blocks<'a>(&'a self, applicable: &'a Applicable) -> impl Iterator<Item = u32> + 'a {
        let all = self.default.iter().chain(&applicable.0).chain(&self.mandatory);
        all.copied()
    }

    /// All rules that apply, in order: the last that matches wins.
    pub fn rules<'a>(&'a self, applicable: &'a Applicable) -> impl Iterator<Item = (RuleId, &'a Rule)> {
        self.blocks(applicable)
            .flat_map(|block| rules_of(&self.policy, block))
    }

    fn learn(&mut self, subject: &Subject) {
        match subject {
            Subject::Send(rule) | Subject::Receive(rule) => {
                for text in [&rule.interface, &rule.member, &rule.error, &rule.path]
                    .into_iter()
                    .flatten()
                {
                    self.texts.number(text);
                }
                if let Some(other) = &rule.other {
                    self.peers.mark(other);
                }
            }
            Subject::Own(pattern) => drop(self.ownable.mark(pattern)),
            Subject::User(_) | Subject::Group(_) => {}
        }
    }
}

impl Connecting {
    fn new<'a>(policy: &Policy, blocks: impl Iterator<Item = &'a u32>) -> Self {
        let mut connecting = Self::default();
        let rules = blocks.flat_map(|block| rules_of(policy, *block));
        for (place, (id, rule)) in rules.enumerate() {
            let this = (place as u32, id);
            match &rule.subject {
                Subject::User(None) | Subject::Group(None) => connecting.anybody = Some(this),
                Subject::User(Some(user)) => {
                    let uid = policy.ids.users.get(user);
                    connecting.users.extend(uid.map(|uid| (*uid, this)));
                }
                Subject::Group(Some(group)) => {
                    let gid = policy.ids.groups.get(group);
                    connecting.groups.extend(gid.map(|gid| (*gid, this)));
                }
                Subject::Send(_) | Subject::Receive(_) | Subject::Own(_) => {}
            }
        }
        connecting
    }
}

/// The rules of a block with their numbers.
fn rules_of(policy: &Policy, block: u32) -> impl Iterator<Item = (RuleId, &Rule)> {
    let rules = policy
        .blocks
        .get(block as usize)
        .map_or(&[][..], |block| &block.rules);
    let id = move |rule| RuleId { block, rule };
    (0..).map(id).zip(rules)
}

/// All rules that apply to somebody, ready to be asked.
#[derive(Debug, Default)]
pub struct Index {
    pub(super) send: Table,
    pub(super) receive: Table,
    pub(super) own: Table,
}

impl Index {
    /// The index of all to whom the same blocks apply, at once.
    pub fn new(policy: &Compiled, applicable: &Applicable) -> Self {
        let mut making = Making::new(policy, applicable);
        while !making.step(policy, u32::MAX) {}
        making.index
    }

    fn push(&mut self, id: RuleId, rule: &Rule, policy: &Compiled) {
        let table = match &rule.subject {
            Subject::Send(_) => &mut self.send,
            Subject::Receive(_) => &mut self.receive,
            Subject::Own(_) => &mut self.own,
            Subject::User(_) | Subject::Group(_) => return,
        };
        push(table, id, rule, policy);
    }
}

/// Puts a rule into the table of its kind.
pub(super) fn push(table: &mut Table, id: RuleId, rule: &Rule, policy: &Compiled) {
    let Rule {
        allow,
        log,
        ref subject,
        place: _,
    } = *rule;
    let owning = MessageRule::any(allow);
    let (message, other) = match subject {
        Subject::Send(message) | Subject::Receive(message) => (
            message,
            message.other.as_ref().and_then(|other| policy.peers.find(other)),
        ),
        Subject::Own(pattern) => (&owning, policy.ownable.find(pattern)),
        Subject::User(_) | Subject::Group(_) => return,
    };
    if subject.discards() {
        table.clear();
    }
    let entrant = Entrant {
        id,
        allow,
        log,
        rule: message,
        other,
    };
    table.push(&entrant, &policy.texts);
}

/// An index that is made in steps.
#[derive(Debug)]
pub struct Making {
    index: Index,
    /// The blocks that are not in it, the next last.
    blocks: Vec<u32>,
    /// How many rules of the next block are in it.
    done: u32,
}

impl Making {
    /// Begins.
    pub fn new(policy: &Compiled, applicable: &Applicable) -> Self {
        let mut blocks: Vec<u32> = policy.blocks(applicable).collect();
        blocks.reverse();
        Self {
            index: Index::default(),
            blocks,
            done: 0,
        }
    }

    /// Puts at most so many rules in. Whether all are.
    pub fn step(&mut self, policy: &Compiled, rules: u32) -> bool {
        let mut left = rules;
        while let Some(&block) = self.blocks.last() {
            let rest = rules_of(policy.policy(), block).skip(self.done as usize);
            for (id, rule) in rest {
                if left == 0 {
                    return false;
                }
                self.index.push(id, rule, policy);
                self.done += 1;
                left -= 1;
            }
            self.blocks.pop();
            self.done = 0;
        }
        true
    }

    /// The index, when a step has said that it is complete.
    pub fn finish(self) -> Index {
        self.index
    }
}

/// Which of the indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IndexId(u32);

/// The indexes of all peers, one for all to whom the same blocks apply. An index is made when it is first asked, and goes with
/// the last peer.
#[derive(Debug, Default)]
pub struct Indexes {
    by_blocks: Map<Applicable, IndexId>,
    shared: Vec<Option<Shared>>,
    free: Vec<IndexId>,
}

#[derive(Debug)]
struct Shared {
    applicable: Applicable,
    peers: u32,
    index: Option<Index>,
}

impl Indexes {
    /// Takes a peer in.
    pub fn join(&mut self, applicable: Applicable) -> IndexId {
        if let Some(&id) = self.by_blocks.get(&applicable) {
            if let Some(shared) = &mut self.shared[id.0 as usize] {
                shared.peers += 1;
            }
            return id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.shared.push(None);
            IndexId(self.shared.len() as u32 - 1)
        });
        self.by_blocks.insert(applicable.clone(), id);
        self.shared[id.0 as usize] = Some(Shared {
            applicable,
            peers: 1,
            index: None,
        });
        id
    }

    /// A peer that [joined](Self::join) goes.
    pub fn leave(&mut self, id: IndexId) {
        let Some(slot) = self.shared.get_mut(id.0 as usize) else {
            return;
        };
        if let Some(shared) = slot.as_mut().filter(|shared| shared.peers > 1) {
            shared.peers -= 1;
        } else if let Some(shared) = slot.take() {
            self.by_blocks.remove(&shared.applicable);
            self.free.push(id);
        }
    }

    /// The index; `None` where nobody has it any more.
    pub fn get(&mut self, id: IndexId, policy: &Compiled) -> Option<&Index> {
        let Shared {
            applicable, index, ..
        } = self.shared.get_mut(id.0 as usize)?.as_mut()?;
        Some(index.get_or_insert_with(|| Index::new(policy, applicable)))
    }

    /// How many indexes there are, whether made or not.
    pub fn len(&self) -> usize {
        self.by_blocks.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_blocks.is_empty()
    }

    /// How many have been made.
    pub fn made(&self) -> usize {
        let made = |shared: &&Shared| shared.index.is_some();
        self.shared.iter().flatten().filter(made).count()
    }
}
