//! Which signals a stream gets.

use bus_wire::{ArgCondition, ArgKind, MatchRule, MessageType, PathCondition};

use crate::Error;

/// A match rule for signals (specification, "Match Rules"). What is not said matches all.
///
/// ```
/// # use bus_client::Rule;
/// let rule = Rule::signal("com.example.Door", "Opened").path("/doors/1");
/// assert_eq!(
///     rule.to_string(),
///     "type='signal',interface='com.example.Door',member='Opened',path='/doors/1'"
/// );
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule(MatchRule);

impl Rule {
    /// All signals.
    pub fn all() -> Self {
        let mut rule = MatchRule::default();
        rule.message_type = Some(MessageType::Signal);
        Self(rule)
    }

    /// One signal of an interface.
    pub fn signal(interface: &str, member: &str) -> Self {
        Self::all().interface(interface).member(member)
    }

    /// Of this interface.
    #[must_use]
    pub fn interface(mut self, interface: &str) -> Self {
        self.0.interface = Some(interface.into());
        self
    }

    /// With this name.
    #[must_use]
    pub fn member(mut self, member: &str) -> Self {
        self.0.member = Some(member.into());
        self
    }

    /// From this peer. Of a well-known name it is whoever owns it when the signal is sent. A unique name means its owner on this bus
    /// only: with the next bus the stream ends.
    #[must_use]
    pub fn sender(mut self, sender: &str) -> Self {
        self.0.sender = Some(sender.into());
        self
    }

    /// From this object.
    #[must_use]
    pub fn path(mut self, path: &str) -> Self {
        self.0.path = Some(PathCondition::Exact(path.into()));
        self
    }

    /// From this object and all below it.
    #[must_use]
    pub fn path_namespace(mut self, path: &str) -> Self {
        self.0.path = Some(PathCondition::Namespace(path.into()));
        self
    }

    /// With this text as an argument, counted from 0 to 63 (`argN`). One condition for each argument: the last one holds.
    #[must_use]
    pub fn arg(self, index: u8, value: &str) -> Self {
        self.condition(index, ArgKind::Equals, value)
    }

    /// With this path as an argument, or one above or below it, as its slashes say (`argNpath`).
    #[must_use]
    pub fn arg_path(self, index: u8, value: &str) -> Self {
        self.condition(index, ArgKind::Path, value)
    }

    /// With a name as its first argument that is this one, or begins with it and a dot (`arg0namespace`).
    #[must_use]
    pub fn arg0_namespace(self, value: &str) -> Self {
        self.condition(0, ArgKind::Namespace, value)
    }

    fn condition(mut self, index: u8, kind: ArgKind, value: &str) -> Self {
        let value = value.into();
        self.0.args.retain(|condition| condition.index != index);
        self.0.args.push(ArgCondition { index, kind, value });
        self.0.args.sort_by_key(|condition| condition.index);
        self
    }

    /// The checked rule.
    pub(crate) fn checked(self) -> Result<MatchRule, Error> {
        let mut rule: MatchRule = self.0.to_text().parse()?;
        rule.message_type = Some(MessageType::Signal);
        Ok(rule)
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for Rule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Ok(Self(text.parse()?))
    }
}
