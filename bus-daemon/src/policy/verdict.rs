//! What is asked of a policy, and what it answers.

use bus_wire::MessageType;

use super::compile::{Compiled, Index};
use super::rules::RuleId;
use super::table::Side;
use super::vocabulary::Standing;

/// A message as rules see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access<'a> {
    /// Its type.
    pub message_type: MessageType,
    /// Its path. A message without one satisfies every condition on it, as it does for member and error name.
    pub path: Option<&'a str>,
    /// Its interface. A message without one satisfies the condition of a *deny*, and never that of an *allow*.
    pub interface: Option<&'a str>,
    /// Its member.
    pub member: Option<&'a str>,
    /// Its error name.
    pub error_name: Option<&'a str>,
    /// Whether it is a signal without a destination.
    pub is_broadcast: bool,
    /// Whether it is a reply, and one that was asked for.
    pub reply: Reply,
    /// Whether whoever is to receive it is not its destination, and it has one. Of no concern for sending.
    pub eavesdrops: bool,
    /// How many descriptors come with it.
    pub fds: u32,
}

impl Access<'_> {
    /// That of a deed which is no message.
    pub(super) const NONE: Self = Access {
        message_type: MessageType::MethodCall,
        path: None,
        interface: None,
        member: None,
        error_name: None,
        is_broadcast: false,
        reply: Reply::No,
        eavesdrops: false,
        fds: 0,
    };
}

impl<'a> Access<'a> {
    /// A message to somebody, as one who asks what the policy says of it describes it: a reply is one that was asked for, and no
    /// descriptors come with it. `headers` are path, interface and member.
    pub fn asked_about(message_type: MessageType, headers: [Option<&'a str>; 3]) -> Self {
        let [path, interface, member] = headers;
        Self {
            message_type,
            path,
            interface,
            member,
            reply: if message_type.is_reply() {
                Reply::Requested
            } else {
                Reply::No
            },
            ..Access::NONE
        }
    }
}

/// Whether a message is a reply. Only a return or an error is one; dbus-daemon takes every message for one that carries a
/// reply serial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// It is a call or a signal.
    No,
    /// Its receiver waits for it, from this sender.
    Requested,
    /// Nobody waits for it: it comes late, twice, from somebody else, to a call that wanted none, or to the bus.
    Unrequested,
}

/// What a policy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it may be.
    pub allowed: bool,
    /// The rule that decided: the last that matches. `None` where none does.
    pub rule: Option<RuleId>,
    /// Whether that rule has `log="true"`.
    pub log: bool,
    /// How many rules match, for the text of the error; those thrown away by a rule without conditions do not count.
    pub matched: u32,
}

impl Verdict {
    /// No rule matches. What no rule allows is denied.
    pub const NO_RULE: Self = Self {
        allowed: false,
        rule: None,
        log: false,
        matched: 0,
    };
}

/// Who a peer is, for a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who<'a> {
    /// The user.
    pub uid: u32,
    /// The groups of its process, the primary one among them; in any order, also twice.
    pub gids: &'a [u32],
    /// Whether the user sits at the machine.
    pub at_console: bool,
}

impl Compiled {
    /// Whether a user may connect: the rules about it of the default policy, then those of the mandatory one; the last that
    /// matches wins. Where none does, only the user may that the bus runs as.
    pub fn may_connect(&self, who: Who<'_>, own_uid: u32) -> Verdict {
        let rules = &self.connect;
        let of_groups = who.gids.iter().filter_map(|gid| rules.groups.get(gid));
        let of_user = rules.users.get(&who.uid).into_iter();
        let newest = of_groups.chain(of_user).chain(&rules.anybody).max();
        newest.map_or(
            Verdict {
                allowed: who.uid == own_uid,
                ..Verdict::NO_RULE
            },
            |&(_, id)| {
                let rule = self.policy().rule(id);
                Verdict {
                    allowed: rule.is_some_and(|rule| rule.allow),
                    rule: Some(id),
                    log: rule.is_some_and(|rule| rule.log),
                    matched: 1,
                }
            },
        )
    }
}

impl Index {
    /// Whether the peer may send a message to somebody of this standing. The bus itself is `org.freedesktop.DBus`, and a name
    /// that nobody owns is its text. A broadcast is asked about for each who would receive it.
    pub fn may_send(&self, access: &Access<'_>, to: &Standing, policy: &Compiled) -> Verdict {
        if let MessageType::Unknown(_) = access.message_type {
            return Verdict::NO_RULE;
        }
        self.send.judge(access, Side::Send, to.marks(), &policy.texts)
    }

    /// Whether the peer may receive a message from somebody of this standing.
    pub fn may_receive(&self, access: &Access<'_>, from: &Standing, policy: &Compiled) -> Verdict {
        if let MessageType::Unknown(_) = access.message_type {
            return Verdict::NO_RULE;
        }
        self.receive
            .judge(access, Side::Receive, from.marks(), &policy.texts)
    }

    /// Whether the peer may own a name, or wait for it.
    pub fn may_own(&self, name: &str, policy: &Compiled) -> Verdict {
        let marks = policy.ownable.of(name);
        self.own
            .judge(&Access::NONE, Side::Send, marks.into_iter(), &policy.texts)
    }
}
