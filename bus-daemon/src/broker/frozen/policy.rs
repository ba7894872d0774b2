//! The saved form of a policy, version 1.

use std::collections::BTreeMap;

use bus_wire::MessageType;
use serde::{Deserialize, Serialize};

use super::PeerId;
use crate::policy::rules::{
    Context, Ids, MessageRule, NamePattern, Place, Policy, PolicyBlock, Rule, Subject,
};

/// The policy in force, and what of it is known of peers beside their credentials.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InForceV1 {
    /// With the numbers of the users and groups that it names.
    pub policy: PolicyV1,
    /// Peers whose users sat at the machine when they connected, or when it was loaded.
    pub at_console: Vec<PeerId>,
}

/// A [`Policy`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicyV1 {
    /// Paths, each once.
    files: Vec<String>,
    blocks: Vec<PolicyBlockV1>,
    /// The numbers of the users that it names.
    users: Vec<(String, u32)>,
    /// Those of the groups.
    groups: Vec<(String, u32)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PolicyBlockV1 {
    context: PolicyContextV1,
    rules: Vec<PolicyRuleV1>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum PolicyContextV1 {
    Default,
    Group(String),
    User(String),
    AtConsole(bool),
    Mandatory,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PolicyRuleV1 {
    allow: bool,
    log: bool,
    subject: SubjectV1,
    /// Its place in the list of files.
    file: u32,
    line: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum SubjectV1 {
    Send(MessageRuleV1),
    Receive(MessageRuleV1),
    Own(NamePatternV1),
    User(Option<String>),
    Group(Option<String>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MessageRuleV1 {
    interface: Option<String>,
    member: Option<String>,
    error: Option<String>,
    path: Option<String>,
    /// By its number on the wire.
    message_type: Option<u8>,
    other: Option<NamePatternV1>,
    broadcast: Option<bool>,
    requested_reply: bool,
    eavesdrop: bool,
    min_fds: u32,
    max_fds: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum NamePatternV1 {
    Any,
    Exact(String),
    Prefix(String),
}

impl From<&Policy> for PolicyV1 {
    fn from(policy: &Policy) -> Self {
        let Policy {
            blocks,
            ids: Ids { users, groups },
        } = policy;
        let mut files = Files::default();
        let saved = |ids: &BTreeMap<String, u32>| {
            let ids = ids.iter();
            ids.map(|(name, id)| (name.clone(), *id)).collect()
        };
        Self {
            blocks: blocks.iter().map(|block| save_block(block, &mut files)).collect(),
            files: files.paths,
            users: saved(users),
            groups: saved(groups),
        }
    }
}

/// The files of a policy, each once.
#[derive(Default)]
struct Files {
    paths: Vec<String>,
    numbers: BTreeMap<String, u32>,
}

impl Files {
    fn number(&mut self, path: &str) -> u32 {
        if let Some(number) = self.numbers.get(path) {
            return *number;
        }
        let number = self.paths.len() as u32;
        self.paths.push(path.to_owned());
        self.numbers.insert(path.to_owned(), number);
        number
    }
}

fn save_block(block: &PolicyBlock, files: &mut Files) -> PolicyBlockV1 {
    let PolicyBlock { context, rules } = block;
    let save_rule = |rule: &Rule| {
        let Rule {
            allow,
            log,
            subject,
            place: Place { file, line },
        } = rule;
        PolicyRuleV1 {
            allow: *allow,
            log: *log,
            subject: subject.into(),
            file: files.number(file),
            line: *line,
        }
    };
    PolicyBlockV1 {
        context: match context {
            Context::Default => PolicyContextV1::Default,
            Context::Group(group) => PolicyContextV1::Group(group.clone()),
            Context::User(user) => PolicyContextV1::User(user.clone()),
            Context::AtConsole(is_there) => PolicyContextV1::AtConsole(*is_there),
            Context::Mandatory => PolicyContextV1::Mandatory,
        },
        rules: rules.iter().map(save_rule).collect(),
    }
}

impl From<PolicyV1> for Policy {
    fn from(policy: PolicyV1) -> Self {
        let PolicyV1 {
            files,
            blocks,
            users,
            groups,
        } = policy;
        let restore_block = |PolicyBlockV1 { context, rules }| PolicyBlock {
            context: match context {
                PolicyContextV1::Default => Context::Default,
                PolicyContextV1::Group(group) => Context::Group(group),
                PolicyContextV1::User(user) => Context::User(user),
                PolicyContextV1::AtConsole(is_there) => Context::AtConsole(is_there),
                PolicyContextV1::Mandatory => Context::Mandatory,
            },
            rules: rules.into_iter().map(|rule| rule.restored(&files)).collect(),
        };
        Self {
            blocks: blocks.into_iter().map(restore_block).collect(),
            ids: Ids {
                users: users.into_iter().collect(),
                groups: groups.into_iter().collect(),
            },
        }
    }
}

impl PolicyRuleV1 {
    fn restored(self, files: &[String]) -> Rule {
        let Self {
            allow,
            log,
            subject,
            file,
            line,
        } = self;
        Rule {
            allow,
            log,
            subject: subject.into(),
            place: Place {
                file: files.get(file as usize).cloned().unwrap_or_default(),
                line,
            },
        }
    }
}

impl From<&Subject> for SubjectV1 {
    fn from(subject: &Subject) -> Self {
        match subject {
            Subject::Send(rule) => Self::Send(rule.into()),
            Subject::Receive(rule) => Self::Receive(rule.into()),
            Subject::Own(pattern) => Self::Own(pattern.into()),
            Subject::User(user) => Self::User(user.clone()),
            Subject::Group(group) => Self::Group(group.clone()),
        }
    }
}

impl From<SubjectV1> for Subject {
    fn from(subject: SubjectV1) -> Self {
        match subject {
            SubjectV1::Send(rule) => Self::Send(rule.into()),
            SubjectV1::Receive(rule) => Self::Receive(rule.into()),
            SubjectV1::Own(pattern) => Self::Own(pattern.into()),
            SubjectV1::User(user) => Self::User(user),
            SubjectV1::Group(group) => Self::Group(group),
        }
    }
}

impl From<&MessageRule> for MessageRuleV1 {
    fn from(rule: &MessageRule) -> Self {
        let MessageRule {
            interface,
            member,
            error,
            path,
            message_type,
            other,
            broadcast,
            requested_reply,
            eavesdrop,
            min_fds,
            max_fds,
        } = rule;
        Self {
            interface: interface.clone(),
            member: member.clone(),
            error: error.clone(),
            path: path.clone(),
            message_type: message_type.map(MessageType::code),
            other: other.as_ref().map(NamePatternV1::from),
            broadcast: *broadcast,
            requested_reply: *requested_reply,
            eavesdrop: *eavesdrop,
            min_fds: *min_fds,
            max_fds: *max_fds,
        }
    }
}

impl From<MessageRuleV1> for MessageRule {
    fn from(rule: MessageRuleV1) -> Self {
        let MessageRuleV1 {
            interface,
            member,
            error,
            path,
            message_type,
            other,
            broadcast,
            requested_reply,
            eavesdrop,
            min_fds,
            max_fds,
        } = rule;
        Self {
            interface,
            member,
            error,
            path,
            // A number that is none widens nothing.
            message_type: message_type
                .map(|code| MessageType::from_code(code).unwrap_or(MessageType::Unknown(u8::MAX))),
            other: other.map(NamePattern::from),
            broadcast,
            requested_reply,
            eavesdrop,
            min_fds,
            max_fds,
        }
    }
}

impl From<&NamePattern> for NamePatternV1 {
    fn from(pattern: &NamePattern) -> Self {
        match pattern {
            NamePattern::Any => Self::Any,
            NamePattern::Exact(name) => Self::Exact(name.clone()),
            NamePattern::Prefix(prefix) => Self::Prefix(prefix.clone()),
        }
    }
}

impl From<NamePatternV1> for NamePattern {
    fn from(pattern: NamePatternV1) -> Self {
        match pattern {
            NamePatternV1::Any => Self::Any,
            NamePatternV1::Exact(name) => Self::Exact(name),
            NamePatternV1::Prefix(prefix) => Self::Prefix(prefix),
        }
    }
}
