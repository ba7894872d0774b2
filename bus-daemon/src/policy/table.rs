//! The rules of one kind that apply to somebody, found by what they have conditions on.
//!
//! A rule lies under the values of all its conditions that can be compared by equality. Since a message that lacks a path, a
//! member or an error name satisfies any condition on it, and one that lacks an interface that of a *deny*, a rule lies under
//! those as well, once for each subset of what can lack. So a message is looked up once for each combination of conditions
//! that some rule has (at most 32), however many rules there are. What remains (descriptors, replies, broadcasts,
//! eavesdropping) is compared for the rules found; rules that are equal in all of it are one entry.

use bus_wire::MessageType;
use smallvec::SmallVec;

use super::Map;
use super::rules::{MessageRule, RuleId};
use super::verdict::{Access, Reply, Verdict};
use super::vocabulary::{ANY, LACKING, Mark, Texts, UNKNOWN};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// By the mark of the other side (0: none is asked for) which [`Shape`]s there are, as bits.
    shapes: Map<u32, u32>,
    entries: Map<Key, SmallVec<[Entry; 1]>>,
    /// How many rules were put in, those thrown away included.
    len: u32,
}

/// Which conditions rules have, as bits: path, interface, member, error name, type.
type Shape = u32;
const PATH: Shape = 1;
const INTERFACE: Shape = 2;
const MEMBER: Shape = 4;
const ERROR: Shape = 8;
const TYPE: Shape = 16;
const SHAPES: Shape = 32;

/// The values of all conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    other: u32,
    path: u32,
    interface: u32,
    member: u32,
    error: u32,
    /// 0: any.
    message_type: u8,
}

impl Key {
    /// Which conditions it has a value for.
    fn shape(&self) -> Shape {
        let bit = |has: bool, bit: Shape| if has { bit } else { 0 };
        bit(self.path != ANY, PATH)
            | bit(self.interface != ANY, INTERFACE)
            | bit(self.member != ANY, MEMBER)
            | bit(self.error != ANY, ERROR)
            | bit(self.message_type != 0, TYPE)
    }

    /// Of the fields of a message, those that rules of this shape look at; `None` where no rule has such a value.
    fn seen_by(&self, shape: Shape) -> Option<Self> {
        let field = |bit: Shape, value: u32| match (shape & bit != 0, value) {
            (false, _) => Some(ANY),
            (true, UNKNOWN) => None,
            (true, value) => Some(value),
        };
        Some(Self {
            other: self.other,
            path: field(PATH, self.path)?,
            interface: field(INTERFACE, self.interface)?,
            member: field(MEMBER, self.member)?,
            error: field(ERROR, self.error)?,
            message_type: if shape & TYPE != 0 { self.message_type } else { 0 },
        })
    }
}

/// Rules with the same conditions.
#[derive(Debug, Clone, Copy)]
struct Entry {
    rest: Rest,
    /// The last of them: the how manieth rule it is, and which.
    last: (u32, RuleId),
    logs: bool,
    count: u32,
}

/// What is not looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rest {
    allow: bool,
    broadcast: Option<bool>,
    requested_reply: bool,
    eavesdrop: bool,
    min_fds: u32,
    max_fds: u32,
}

/// Which side the rules of a table are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Send,
    Receive,
}

/// A rule on its way into a table.
pub(super) struct Entrant<'a> {
    pub(super) id: RuleId,
    pub(super) allow: bool,
    pub(super) log: bool,
    pub(super) rule: &'a MessageRule,
    /// The mark of the rule's name of the other side.
    pub(super) other: Option<Mark>,
}

impl Table {
    /// Puts a rule behind all others.
    pub(super) fn push(&mut self, entrant: &Entrant<'_>, texts: &Texts) {
        let &Entrant {
            id,
            allow,
            log,
            rule,
            other,
        } = entrant;
        let text = |value: &Option<String>| texts.of_rule(value.as_deref());
        let key = Key {
            other: other.map_or(0, Mark::number),
            path: text(&rule.path),
            interface: text(&rule.interface),
            member: text(&rule.member),
            error: text(&rule.error),
            message_type: rule.message_type.map_or(0, MessageType::code),
        };
        let rest = Rest {
            allow,
            broadcast: rule.broadcast,
            requested_reply: rule.requested_reply,
            eavesdrop: rule.eavesdrop,
            min_fds: rule.min_fds,
            max_fds: rule.max_fds,
        };
        let shape = key.shape();
        *self.shapes.entry(key.other).or_default() |= 1 << shape;
        let can_lack = shape & (PATH | MEMBER | ERROR | if allow { 0 } else { INTERFACE });
        let lacks = |value: u32, lacking: bool| if lacking { LACKING } else { value };
        // All subsets of the bits that can lack, the empty one last.
        let mut subset = can_lack;
        loop {
            let key = Key {
                path: lacks(key.path, subset & PATH != 0),
                interface: lacks(key.interface, subset & INTERFACE != 0),
                member: lacks(key.member, subset & MEMBER != 0),
                error: lacks(key.error, subset & ERROR != 0),
                ..key
            };
            let entries = self.entries.entry(key).or_default();
            let last = (self.len, id);
            match entries.iter_mut().find(|entry| entry.rest == rest) {
                Some(entry) => {
                    entry.last = last;
                    entry.logs = log;
                    entry.count += 1;
                }
                None => entries.push(Entry {
                    rest,
                    last,
                    logs: log,
                    count: 1,
                }),
            }
            if subset == 0 {
                break;
            }
            subset = (subset - 1) & can_lack;
        }
        self.len += 1;
    }

    /// Throws all rules away.
    pub(super) fn clear(&mut self) {
        self.shapes.clear();
        self.entries.clear();
    }

    /// What the last rule says that matches a message; `others` are the marks of the other side, each once.
    pub(super) fn judge(
        &self,
        access: &Access<'_>,
        side: Side,
        others: impl Iterator<Item = Mark>,
        texts: &Texts,
    ) -> Verdict {
        let message = Key {
            other: 0,
            path: texts.of_message(access.path),
            interface: texts.of_message(access.interface),
            member: texts.of_message(access.member),
            error: texts.of_message(access.error_name),
            message_type: access.message_type.code(),
        };
        let mut verdict = Verdict::NO_RULE;
        let mut newest = None;
        for other in others.map(Mark::number).chain([0]) {
            let shapes = self.shapes.get(&other).copied().unwrap_or(0);
            let message = Key { other, ..message };
            let keys = (0..SHAPES)
                .filter(|shape| shapes & (1 << shape) != 0)
                .filter_map(|shape| message.seen_by(shape));
            for entry in keys.filter_map(|key| self.entries.get(&key)).flatten() {
                if !entry.rest.matches(access, side) {
                    continue;
                }
                verdict.matched += entry.count;
                let (place, id) = entry.last;
                if newest.is_none_or(|newest| newest < place) {
                    newest = Some(place);
                    verdict.allowed = entry.rest.allow;
                    verdict.log = entry.logs;
                    verdict.rule = Some(id);
                }
            }
        }
        verdict
    }
}

impl Rest {
    fn matches(&self, access: &Access<'_>, side: Side) -> bool {
        let &Self {
            allow,
            broadcast,
            requested_reply,
            eavesdrop,
            min_fds,
            max_fds,
        } = self;
        let reply = match access.reply {
            Reply::No => true,
            // A deny stops replies that were asked for only if it says so.
            Reply::Requested => allow || requested_reply,
            // An allow lets others pass only if it says so, in either of two ways.
            Reply::Unrequested => !allow || !requested_reply || eavesdrop,
        };
        let eavesdropping = match (side, allow) {
            (Side::Send, _) => true,
            (Side::Receive, true) => eavesdrop || !access.eavesdrops,
            (Side::Receive, false) => !eavesdrop || access.eavesdrops,
        };
        reply
            && eavesdropping
            && broadcast.is_none_or(|broadcast| broadcast == access.is_broadcast)
            && (min_fds..=max_fds).contains(&access.fds)
    }
}
