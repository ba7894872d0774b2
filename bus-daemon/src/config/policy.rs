//! `<policy>`: the rules as they are written, with every check that dbus-daemon makes. [`crate::policy`] is what they mean.

use bus_wire::MessageType;
use roxmltree::Node;
use thiserror::Error;

use super::number::c_number;
pub use crate::policy::rules::{
    Accounts, Context, Ids, MessageRule, NamePattern, Place, Policy, PolicyBlock, Rule, Subject,
};
pub use crate::policy::simple::{Connect, Simple, Traffic};

/// What is wrong with a `<policy>`, `<allow>` or `<deny>`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// Neither, or more than one, of the attributes that say to whom a block applies.
    #[error("<policy> must have exactly one of the attributes context, user, group and at_console")]
    Context,
    /// An attribute that the element does not have.
    #[error("<{element}> has no attribute {attribute:?}")]
    Attribute {
        /// `policy`, `allow` or `deny`.
        element: String,
        /// Its name.
        attribute: String,
    },
    /// A value that the attribute cannot have.
    #[error("{attribute}={value:?} must be {expected}")]
    Value {
        /// Which attribute.
        attribute: String,
        /// Its value.
        value: String,
        /// What it can be.
        expected: &'static str,
    },
    /// A rule about nothing.
    #[error("a rule must have an attribute that says what it is about")]
    Empty,
    /// `send_member` or `receive_member` alone. Not all messages have an interface.
    #[error("a rule with a member must have an interface or a path")]
    Member,
    /// `send_*` with `receive_*`.
    #[error("a rule cannot have both send and receive attributes")]
    SendAndReceive,
    /// `own`, `own_prefix`, `user`, `group` and messages exclude each other.
    #[error("own, own_prefix, user, group and the attributes of messages cannot be combined")]
    Mixed,
    /// Errors have neither an interface nor a member.
    #[error("{0}_error cannot be combined with {0}_interface or {0}_member")]
    ErrorWithInterface(&'static str),
    /// `send_destination` with `send_destination_prefix`.
    #[error("send_destination cannot be combined with send_destination_prefix")]
    TwoDestinations,
    /// A broadcast has no destination.
    #[error("send_broadcast=\"true\" cannot be combined with send_destination")]
    BroadcastToOne,
    /// Who may connect is asked of the bus, before anybody is anybody.
    #[error("a rule about who may connect cannot stand in the policy of a user or group")]
    ConnectOfOne,
}

/// The attributes of a rule.
const ATTRIBUTES: &str = "send_interface send_member send_error send_broadcast send_destination \
    send_destination_prefix send_type send_path receive_interface receive_member receive_error receive_sender \
    receive_type receive_path send_requested_reply receive_requested_reply eavesdrop own own_prefix user group log \
    min_fds max_fds";

/// The largest value of `min_fds` and `max_fds` that dbus-daemon accepts.
const MAX_FDS: u32 = 33_554_432;

/// The blocks of a file, for tests that need nothing else of it.
#[cfg(test)]
pub(crate) fn blocks_of(text: &str) -> Result<Vec<PolicyBlock>, PolicyError> {
    let text = format!("<busconfig>{text}</busconfig>");
    let document = roxmltree::Document::parse(&text).expect("a document");
    let elements = document.root_element().children().filter(Node::is_element);
    let block = |node: Node<'_, '_>| {
        let context = Context::parse(node)?;
        let rules = node.children().filter(Node::is_element).map(|rule| {
            let place = Place {
                file: "test.conf".into(),
                line: document.text_pos_at(rule.range().start).row,
            };
            Rule::parse(rule, &context, place)
        });
        let rules = rules.collect::<Result<_, _>>()?;
        Ok(PolicyBlock { context, rules })
    };
    elements.map(block).collect()
}

impl Context {
    /// From the attributes of `<policy>`.
    pub(super) fn parse(node: Node<'_, '_>) -> Result<Self, PolicyError> {
        let mut attributes = node.attributes();
        let (Some(attribute), None) = (attributes.next(), attributes.next()) else {
            let known = ["context", "user", "group", "at_console"];
            let other = node
                .attributes()
                .find(|attribute| !known.contains(&attribute.name()));
            return Err(
                other.map_or(PolicyError::Context, |attribute| PolicyError::Attribute {
                    element: "policy".into(),
                    attribute: attribute.name().into(),
                }),
            );
        };
        let (name, value) = (attribute.name(), attribute.value());
        let bad = |expected| PolicyError::Value {
            attribute: name.into(),
            value: value.into(),
            expected,
        };
        match (name, value) {
            ("context", "default") => Ok(Self::Default),
            ("context", "mandatory") => Ok(Self::Mandatory),
            ("context", _) => Err(bad("\"default\" or \"mandatory\"")),
            ("user", _) => Ok(Self::User(value.into())),
            ("group", _) => Ok(Self::Group(value.into())),
            ("at_console", "true") => Ok(Self::AtConsole(true)),
            ("at_console", "false") => Ok(Self::AtConsole(false)),
            ("at_console", _) => Err(bad("\"true\" or \"false\"")),
            _ => Err(PolicyError::Attribute {
                element: "policy".into(),
                attribute: name.into(),
            }),
        }
    }
}

impl Rule {
    /// From an `<allow>` or `<deny>` in a block for `context`.
    pub(super) fn parse(node: Node<'_, '_>, context: &Context, place: Place) -> Result<Self, PolicyError> {
        let element = node.tag_name().name();
        let known = |name: &str| ATTRIBUTES.split_whitespace().any(|known| known == name);
        if let Some(attribute) = node.attributes().find(|attribute| !known(attribute.name())) {
            let attribute = attribute.name().into();
            return Err(PolicyError::Attribute {
                element: element.into(),
                attribute,
            });
        }
        let attributes = Attributes(node);
        let allow = element == "allow";
        let subject = attributes.subject(allow)?;
        let is_connect = matches!(subject, Subject::User(_) | Subject::Group(_));
        if is_connect && matches!(context, Context::User(_) | Context::Group(_)) {
            return Err(PolicyError::ConnectOfOne);
        }
        // dbus-daemon takes any other value of this attribute for no.
        let log = attributes.get("log") == Some("true");
        Ok(Self {
            allow,
            log,
            subject,
            place,
        })
    }
}

/// The attributes of one rule.
struct Attributes<'a, 'input>(Node<'a, 'input>);

impl<'a> Attributes<'a, '_> {
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.attribute(name)
    }

    /// The value of an attribute in which `*` is the same as nothing.
    fn text(&self, name: &str) -> Option<String> {
        self.get(name).filter(|value| *value != "*").map(str::to_owned)
    }

    fn bad(&self, name: &str, expected: &'static str) -> PolicyError {
        let value = self.get(name).unwrap_or_default().into();
        PolicyError::Value {
            attribute: name.into(),
            value,
            expected,
        }
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, PolicyError> {
        match self.get(name) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(self.bad(name, "\"true\" or \"false\"")),
        }
    }

    fn number(&self, name: &str, default: u32) -> Result<u32, PolicyError> {
        let Some(text) = self.get(name) else {
            return Ok(default);
        };
        let number = c_number(text)
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| *number <= MAX_FDS);
        number.ok_or_else(|| self.bad(name, "a number from 0 to 33554432"))
    }

    fn message_type(&self, name: &str) -> Result<Option<MessageType>, PolicyError> {
        match self.get(name) {
            None | Some("*") => Ok(None),
            Some("method_call") => Ok(Some(MessageType::MethodCall)),
            Some("method_return") => Ok(Some(MessageType::MethodReturn)),
            Some("error") => Ok(Some(MessageType::Error)),
            Some("signal") => Ok(Some(MessageType::Signal)),
            Some(_) => Err(self.bad(
                name,
                "\"method_call\", \"method_return\", \"error\", \"signal\" or \"*\"",
            )),
        }
    }

    /// Which kind of rule it is, and all that belongs to it. The checks come in the order of dbus-daemon.
    fn subject(&self, allow: bool) -> Result<Subject, PolicyError> {
        let has = |name: &str| self.get(name).is_some();
        let any = |prefix: &str| {
            self.0
                .attributes()
                .any(|attribute| attribute.name().starts_with(prefix))
        };
        let (sends, receives) = (any("send_"), any("receive_"));
        let is_message = sends || receives || has("eavesdrop");
        let others = ["own", "own_prefix", "user", "group"]
            .into_iter()
            .filter(|name| has(name))
            .count();
        if !is_message && others == 0 {
            return Err(PolicyError::Empty);
        }
        for (member, interface, path) in [
            ("send_member", "send_interface", "send_path"),
            ("receive_member", "receive_interface", "receive_path"),
        ] {
            if has(member) && !has(interface) && !has(path) {
                return Err(PolicyError::Member);
            }
        }
        let has_fds = has("min_fds") || has("max_fds");
        if others > 1 || (others == 1 && (is_message || has_fds)) {
            return Err(PolicyError::Mixed);
        }
        if sends && receives {
            return Err(PolicyError::SendAndReceive);
        }
        for direction in ["send", "receive"] {
            let has = |field: &str| has(&format!("{direction}_{field}"));
            if has("error") && (has("interface") || has("member")) {
                return Err(PolicyError::ErrorWithInterface(direction));
            }
        }
        if has("send_destination") && has("send_destination_prefix") {
            return Err(PolicyError::TwoDestinations);
        }
        if is_message {
            return self.message_rule(if sends { "send" } else { "receive" }, allow);
        }
        let pattern = |name: &str| self.get(name).map(str::to_owned);
        Ok(match (pattern("own"), pattern("own_prefix")) {
            (Some(name), _) if name == "*" => Subject::Own(NamePattern::Any),
            (Some(name), _) => Subject::Own(NamePattern::Exact(name)),
            (None, Some(prefix)) => Subject::Own(NamePattern::Prefix(prefix)),
            (None, None) if has("user") => Subject::User(self.text("user")),
            (None, None) => Subject::Group(self.text("group")),
        })
    }

    fn message_rule(&self, direction: &'static str, allow: bool) -> Result<Subject, PolicyError> {
        let named = |field: &str| format!("{direction}_{field}");
        let is_send = direction == "send";
        let other = self.text(if is_send {
            "send_destination"
        } else {
            "receive_sender"
        });
        let prefix = self.get("send_destination_prefix");
        let broadcast = self.flag("send_broadcast")?;
        if broadcast == Some(true) && other.is_some() {
            return Err(PolicyError::BroadcastToOne);
        }
        let rule = MessageRule {
            interface: self.text(&named("interface")),
            member: self.text(&named("member")),
            error: self.text(&named("error")),
            path: self.text(&named("path")),
            message_type: self.message_type(&named("type"))?,
            other: match (other, prefix) {
                (Some(name), _) => Some(NamePattern::Exact(name)),
                (None, Some(prefix)) => Some(NamePattern::Prefix(prefix.into())),
                (None, None) => None,
            },
            broadcast,
            requested_reply: self.flag(&named("requested_reply"))?.unwrap_or(allow),
            eavesdrop: self.flag("eavesdrop")?.unwrap_or(false),
            min_fds: self.number("min_fds", 0)?,
            max_fds: self.number("max_fds", u32::MAX)?,
        };
        Ok(if is_send {
            Subject::Send(rule)
        } else {
            Subject::Receive(rule)
        })
    }
}
