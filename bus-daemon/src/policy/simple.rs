//! The policies that need no look at a rule: all passes, or nothing does.

use serde::{Deserialize, Serialize};

use super::rules::{Context, Ids, MessageRule, NamePattern, Place, Policy, PolicyBlock, Rule, Subject};

/// What the simplest policies come down to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Simple {
    /// Who may connect at all.
    pub connect: Connect,
    /// Which messages may be sent and received, and so which names may be owned.
    pub traffic: Traffic,
    /// Whether peers may receive unicast messages that are not for them, with `eavesdrop='true'`.
    pub eavesdrop_allowed: bool,
    /// Whether peers may send replies that nobody waits for.
    pub unrequested_replies_allowed: bool,
}

/// Who may connect, where the policy says no more about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Connect {
    /// Only the user that the bus runs as: no rule allows others.
    OwnerOnly,
    /// `<allow user="*"/>`.
    Anyone,
}

/// Which messages may be sent and received, and so which names may be owned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Traffic {
    /// All: the policy allows everything.
    Everything,
    /// None: there is no rule that lets anybody receive. As with dbus-daemon, peers can authenticate and Hello takes effect, but
    /// nothing is answered, since the answer may not be received.
    Nothing,
}

impl Default for Simple {
    /// What a policy without rules is.
    fn default() -> Self {
        Self {
            connect: Connect::OwnerOnly,
            traffic: Traffic::Nothing,
            eavesdrop_allowed: false,
            unrequested_replies_allowed: false,
        }
    }
}

impl Simple {
    /// Anybody may connect, and all passes but what is overheard and replies that nobody waits for.
    pub const OPEN: Self = Self {
        connect: Connect::Anyone,
        traffic: Traffic::Everything,
        eavesdrop_allowed: false,
        unrequested_replies_allowed: false,
    };

    /// What the rules of a policy come down to, if that is one of the simple cases: nobody may receive anything (then it makes
    /// no difference what may be sent), or there are only allowing rules, with one each for all that can be sent, received and
    /// owned.
    pub fn of(policy: &Policy) -> Option<Self> {
        let mut simple = Self::default();
        let (mut sends, mut receives, mut owns) = (false, false, false);
        let (mut sends_any_reply, mut receives_any_reply) = (false, false);
        let mut may_receive = false;
        let rules = policy.blocks.iter();
        let rules = rules.flat_map(|block| block.rules.iter().map(move |rule| (&block.context, rule)));
        for (context, rule) in rules {
            if !rule.allow || rule.log {
                return None;
            }
            let is_for_all = matches!(context, Context::Default | Context::Mandatory);
            // For `allow`, eavesdrop="true" also lets replies pass that nobody asked for.
            let any_reply = |message: &MessageRule| message.eavesdrop || !message.requested_reply;
            match &rule.subject {
                Subject::Send(message) if is_for_all && matches_all(message) => {
                    // It throws away those before it.
                    sends = true;
                    sends_any_reply = any_reply(message);
                }
                Subject::Receive(message) if is_for_all && matches_all(message) => {
                    receives = true;
                    simple.eavesdrop_allowed = message.eavesdrop;
                    receives_any_reply = any_reply(message);
                }
                // A rule without a condition that is looked up throws all others away, and lets less pass than they.
                Subject::Send(_) | Subject::Receive(_) if rule.subject.discards() => return None,
                // Some replies, or some that are overheard, are not all.
                Subject::Send(message) | Subject::Receive(message) if any_reply(message) => return None,
                Subject::Own(NamePattern::Any) if is_for_all => owns = true,
                Subject::User(None) | Subject::Group(None) if is_for_all => {
                    simple.connect = Connect::Anyone;
                }
                Subject::User(_) | Subject::Group(_) => return None,
                // Harmless next to rules that allow everything; without those, found below.
                Subject::Send(_) | Subject::Receive(_) | Subject::Own(_) => {}
            }
            may_receive |= matches!(rule.subject, Subject::Receive(_));
        }
        simple.traffic = match may_receive {
            false => Traffic::Nothing,
            true if sends && receives && owns => Traffic::Everything,
            true => return None,
        };
        simple.unrequested_replies_allowed = sends_any_reply && receives_any_reply;
        Some(simple)
    }
}

/// The rules that say so, which stand in no file.
impl From<Simple> for Policy {
    fn from(simple: Simple) -> Self {
        let Simple {
            connect,
            traffic,
            eavesdrop_allowed,
            unrequested_replies_allowed,
        } = simple;
        let all = |eavesdrop: bool| MessageRule {
            requested_reply: !unrequested_replies_allowed,
            eavesdrop,
            ..MessageRule::any(true)
        };
        let traffic = match traffic {
            Traffic::Nothing => vec![],
            Traffic::Everything => vec![
                Subject::Send(all(false)),
                Subject::Receive(all(eavesdrop_allowed)),
                Subject::Own(NamePattern::Any),
            ],
        };
        let connect = match connect {
            Connect::OwnerOnly => None,
            Connect::Anyone => Some(Subject::User(None)),
        };
        let subjects = connect.into_iter().chain(traffic);
        let rules: Vec<Rule> = subjects
            .map(|subject| Rule {
                allow: true,
                log: false,
                subject,
                place: Place {
                    file: String::new(),
                    line: 0,
                },
            })
            .collect();
        Self {
            blocks: vec![PolicyBlock {
                context: Context::Default,
                rules,
            }],
            ids: Ids::default(),
        }
    }
}

/// Whether it matches any message to or from anybody (leaving aside replies that nobody asked for).
fn matches_all(rule: &MessageRule) -> bool {
    let MessageRule {
        interface,
        member,
        error,
        path,
        message_type,
        other,
        broadcast,
        requested_reply: _,
        eavesdrop: _,
        min_fds,
        max_fds,
    } = rule;
    let names = [interface, member, error, path].into_iter().all(Option::is_none);
    names
        && message_type.is_none()
        && other.is_none()
        && broadcast.is_none()
        && *min_fds == 0
        && *max_fds == u32::MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::policy::blocks_of;

    fn simple(text: &str) -> Option<Simple> {
        Simple::of(&Policy {
            blocks: blocks_of(text).unwrap(),
            ids: Ids::default(),
        })
    }

    const ALL: &str = "<policy context='default'><allow send_destination='*' eavesdrop='true'/>\
                       <allow eavesdrop='true'/><allow own='*'/></policy>";

    #[test]
    fn what_is_simple_says_the_same_as_its_rules() {
        for connect in [Connect::OwnerOnly, Connect::Anyone] {
            for bits in 0..4 {
                let open = Simple {
                    connect,
                    traffic: Traffic::Everything,
                    eavesdrop_allowed: bits & 1 != 0,
                    unrequested_replies_allowed: bits & 2 != 0,
                };
                assert_eq!(Simple::of(&open.into()), Some(open));
            }
            let closed = Simple {
                connect,
                ..Simple::default()
            };
            assert_eq!(Simple::of(&closed.into()), Some(closed));
        }
    }

    #[test]
    fn open_policies() {
        let all = Simple {
            connect: Connect::OwnerOnly,
            eavesdrop_allowed: true,
            unrequested_replies_allowed: true,
            ..Simple::OPEN
        };
        assert_eq!(simple(ALL), Some(all));
        let some = "<policy context='default'><allow send_interface='*'/><allow receive_interface='*'/></policy>\
                    <policy context='mandatory'><allow own='*'/><allow user='*'/></policy>\
                    <policy user='x'><allow own='a.b'/></policy><policy at_console='true'/><policy group='g'/>";
        assert_eq!(simple(some), Some(Simple::OPEN));
        let connect = "<policy context='default'><allow user='*'/></policy>";
        let nothing = Simple {
            connect: Connect::Anyone,
            ..Simple::default()
        };
        assert_eq!(simple(connect), Some(nothing));
        let mute = "<policy context='default'><allow send_destination='*'/><allow own='*'/></policy>";
        assert_eq!(simple(mute), Some(Simple::default()));
    }

    #[test]
    fn policies_that_are_not_simple() {
        for rules in [
            "<deny send_interface='a.b'/>",
            "<allow user='root'/>",
            "<allow own='a.b' log='true'/>",
            "<allow send_broadcast='true'/>",
            "<allow send_type='error' eavesdrop='true'/>",
        ] {
            let text = format!("{ALL}<policy context='default'>{rules}</policy>");
            assert_eq!(simple(&text), None, "{rules}");
        }
        for rules in [
            "<allow receive_sender='*'/><allow own='*'/>",
            "<allow send_path='*' max_fds='1'/><allow eavesdrop='true'/>",
            "<allow send_path='*'/><allow receive_type='signal'/>",
            "<allow send_type='*'/><allow eavesdrop='true'/>",
        ] {
            let text = format!("<policy context='default'>{rules}</policy>");
            assert_eq!(simple(&text), None, "{rules}");
        }
        assert_eq!(simple(&ALL.replace("context='default'", "user='root'")), None);
    }
}
