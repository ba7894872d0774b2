//! The rules of a policy as they are written, each with its place, and the numbers of the users and groups that they name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bus_wire::MessageType;
use serde::{Deserialize, Serialize};

/// A policy: what the files say, and which users and groups they mean. Nothing else is asked for a verdict.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// In the order of the files; an included file counts where it is included.
    pub blocks: Vec<PolicyBlock>,
    /// The numbers behind the names.
    pub ids: Ids,
}

/// Which users and groups the names in a policy mean. A name that is not here is nobody's: a block for it is void, and a rule
/// with it matches nobody, so that it never widens anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// By what stands in `user`.
    pub users: BTreeMap<String, u32>,
    /// By what stands in `group`.
    pub groups: BTreeMap<String, u32>,
}

/// The data base of users and groups. It is asked when files are loaded, and never for a verdict.
pub trait Accounts {
    /// The number of a user by its name.
    fn uid_of(&self, user: &str) -> Option<u32>;
    /// Whether there is a user with this number.
    fn has_uid(&self, uid: u32) -> bool;
    /// The number of a group by its name.
    fn gid_of(&self, group: &str) -> Option<u32>;
    /// Whether there is a group with this number.
    fn has_gid(&self, gid: u32) -> bool;
}

impl Policy {
    /// The policy that `blocks` are, for the users and groups that there are now.
    pub fn resolve(blocks: Vec<PolicyBlock>, accounts: &dyn Accounts) -> Self {
        let (users, groups) = named(&blocks);
        let user = |name: &str| match number(name) {
            Some(uid) => Some(uid).filter(|uid| accounts.has_uid(*uid)),
            None => accounts.uid_of(name),
        };
        let group = |name: &str| match number(name) {
            Some(gid) => Some(gid).filter(|gid| accounts.has_gid(*gid)),
            None => accounts.gid_of(name),
        };
        let resolved = |names: BTreeSet<&str>, id: &dyn Fn(&str) -> Option<u32>| {
            names
                .into_iter()
                .filter_map(|name| Some((name.to_owned(), id(name)?)))
                .collect()
        };
        let ids = Ids {
            users: resolved(users, &user),
            groups: resolved(groups, &group),
        };
        Self { blocks, ids }
    }

    /// Which names of users and groups are nobody's, and where they stand.
    pub fn unresolved(&self) -> Vec<(Place, String)> {
        let mut warnings = Vec::new();
        for block in &self.blocks {
            let place = block.rules.first().map(|rule| &rule.place);
            let of_block = match &block.context {
                Context::User(user) if !self.ids.users.contains_key(user) => Some(("user", user)),
                Context::Group(group) if !self.ids.groups.contains_key(group) => Some(("group", group)),
                Context::User(_) | Context::Group(_) => None,
                Context::Default | Context::AtConsole(_) | Context::Mandatory => None,
            };
            if let (Some((what, name)), Some(place)) = (of_block, place) {
                let text = format!("there is no {what} {name:?}: its policy applies to nobody");
                warnings.push((place.clone(), text));
            }
            for rule in &block.rules {
                let (what, name) = match &rule.subject {
                    Subject::User(Some(user)) if !self.ids.users.contains_key(user) => ("user", user),
                    Subject::Group(Some(group)) if !self.ids.groups.contains_key(group) => ("group", group),
                    Subject::User(_) | Subject::Group(_) => continue,
                    Subject::Send(_) | Subject::Receive(_) | Subject::Own(_) => continue,
                };
                let text = format!("there is no {what} {name:?}: the rule matches nobody");
                warnings.push((rule.place.clone(), text));
            }
        }
        warnings
    }

    /// Whether a block applies only to those who sit at the machine, or only to those who do not.
    pub fn names_console(&self) -> bool {
        self.blocks
            .iter()
            .any(|block| matches!(block.context, Context::AtConsole(_)) && !block.rules.is_empty())
    }

    /// A rule with its block, as a file would have them, and where it stands.
    pub fn described(&self, id: RuleId) -> Option<(String, Place)> {
        let rule = self.rule(id)?;
        let block = self.blocks.get(id.block as usize)?;
        Some((format!("<policy {}> {rule}", block.context), rule.place.clone()))
    }

    /// A rule by its number.
    pub fn rule(&self, id: RuleId) -> Option<&Rule> {
        let RuleId { block, rule } = id;
        self.blocks.get(block as usize)?.rules.get(rule as usize)
    }
}

/// All users and all groups that the files name, each once.
fn named(blocks: &[PolicyBlock]) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let (mut users, mut groups) = (BTreeSet::new(), BTreeSet::new());
    for block in blocks {
        match &block.context {
            Context::User(user) => drop(users.insert(user.as_str())),
            Context::Group(group) => drop(groups.insert(group.as_str())),
            Context::Default | Context::AtConsole(_) | Context::Mandatory => {}
        }
        for rule in &block.rules {
            match &rule.subject {
                Subject::User(Some(user)) => drop(users.insert(user)),
                Subject::Group(Some(group)) => drop(groups.insert(group)),
                Subject::User(None) | Subject::Group(None) => {}
                Subject::Send(_) | Subject::Receive(_) | Subject::Own(_) => {}
            }
        }
    }
    (users, groups)
}

/// The number of a user or group, if this is one: digits without a zero before them. What looks like a number and is none
/// (`-1`, `060001`, the number that stands for nobody) is a name, and nobody has it.
fn number(name: &str) -> Option<u32> {
    let number = name.parse().ok().filter(|number| *number != u32::MAX)?;
    Some(number).filter(|number: &u32| number.to_string() == name)
}

/// Which rule of a [`Policy`]: its block, and its place in the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleId {
    /// From 0, in the order of the files.
    pub block: u32,
    /// From 0, in the block.
    pub rule: u32,
}

/// Where something is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Path of the file.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// One `<policy>` element.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyBlock {
    /// To whom it applies.
    pub context: Context,
    /// Its rules in order; the last one that matches wins.
    pub rules: Vec<Rule>,
}

/// To whom a block applies. Blocks are applied in the order of the variants; `mandatory` comes last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Context {
    /// `context="default"`
    Default,
    /// `group`: a name or a number.
    Group(String),
    /// `user`: a name or a number.
    User(String),
    /// `at_console`
    AtConsole(bool),
    /// `context="mandatory"`
    Mandatory,
}

/// One `<allow>` or `<deny>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `<allow>`, and not `<deny>`.
    pub allow: bool,
    /// `log="true"`: tell the log when it matches.
    pub log: bool,
    /// What it speaks of.
    pub subject: Subject,
    /// Where it is written.
    pub place: Place,
}

/// What a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// `send_*`: checked when a peer sends.
    Send(MessageRule),
    /// `receive_*`, or `eavesdrop` alone: checked for each peer that is to receive.
    Receive(MessageRule),
    /// `own`, `own_prefix`: checked when a peer asks for a name.
    Own(NamePattern),
    /// `user`: checked when a peer connects. `None` = `*`.
    User(Option<String>),
    /// `group`: checked when a peer connects. `None` = `*`.
    Group(Option<String>),
}

/// The conditions on a message; `None` matches any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageRule {
    /// `send_interface`, `receive_interface`. A *deny* matches a message without an interface as well.
    pub interface: Option<String>,
    /// `send_member`, `receive_member`
    pub member: Option<String>,
    /// `send_error`, `receive_error`
    pub error: Option<String>,
    /// `send_path`, `receive_path`
    pub path: Option<String>,
    /// `send_type`, `receive_type`
    pub message_type: Option<MessageType>,
    /// `send_destination`, `send_destination_prefix`, or `receive_sender`: a name that the other side owns.
    pub other: Option<NamePattern>,
    /// `send_broadcast`
    pub broadcast: Option<bool>,
    /// `send_requested_reply`, `receive_requested_reply`. For an *allow*, true (the default) means: only replies that
    /// were asked for. For a *deny*, false (the default) means: only replies that were not.
    pub requested_reply: bool,
    /// `eavesdrop`. For an *allow*, true means: also messages to others. For a *deny*: only those.
    pub eavesdrop: bool,
    /// `min_fds`
    pub min_fds: u32,
    /// `max_fds`; `u32::MAX` = any number.
    pub max_fds: u32,
}

/// Which names a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamePattern {
    /// `*`
    Any,
    /// This name.
    Exact(String),
    /// This name, and every one that continues it with a period.
    Prefix(String),
}

impl MessageRule {
    /// A rule that matches every message, for a test or a tool to put conditions into. `allow` decides what is meant where
    /// nothing is said of replies.
    pub fn any(allow: bool) -> Self {
        Self {
            interface: None,
            member: None,
            error: None,
            path: None,
            message_type: None,
            other: None,
            broadcast: None,
            requested_reply: allow,
            eavesdrop: false,
            min_fds: 0,
            max_fds: u32::MAX,
        }
    }
}

impl Subject {
    /// Whether a rule about this throws away all rules of its kind before it. dbus-daemon does so for a rule that has no
    /// condition on type, path, interface, member, error or the other side, whatever else it has (numbers of descriptors,
    /// `send_broadcast`, `eavesdrop`, `*_requested_reply`), and files are written for it.
    pub fn discards(&self) -> bool {
        match self {
            Self::Send(rule) | Self::Receive(rule) => {
                let MessageRule {
                    interface,
                    member,
                    error,
                    path,
                    message_type,
                    other,
                    broadcast: _,
                    requested_reply: _,
                    eavesdrop: _,
                    min_fds: _,
                    max_fds: _,
                } = rule;
                let texts = [interface, member, error, path].into_iter().all(Option::is_none);
                texts && message_type.is_none() && matches!(other, None | Some(NamePattern::Any))
            }
            Self::Own(pattern) => matches!(pattern, NamePattern::Any),
            Self::User(_) | Self::Group(_) => false,
        }
    }
}
