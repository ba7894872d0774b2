//! Making match rules without writing their text.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;

use super::{ArgCondition, ArgKind, MAX_ARGUMENT, MatchRule, MatchRuleError, PathCondition, is_namespace};
use crate::header::MessageType;
use crate::names::{self, BusName, InterfaceName, MemberName, NameArg, NameError, ObjectPath};

/// Makes a [`MatchRule`]. What is wrong is said by [`build`](Self::build): the first fault. Names that were checked are not
/// checked again.
///
/// ```
/// use bus_wire::{InterfaceName, MatchRule};
///
/// const BUS: InterfaceName<'static> = InterfaceName::from_static("org.freedesktop.DBus");
/// let rule = MatchRule::signals()
///     .sender("org.freedesktop.DBus")
///     .interface(BUS)
///     .member("NameOwnerChanged")
///     .arg(0, "com.example.Name")
///     .build()?;
/// assert_eq!(
///     rule.to_string(),
///     "type='signal',interface='org.freedesktop.DBus',member='NameOwnerChanged',\
///      sender='org.freedesktop.DBus',arg0='com.example.Name'"
/// );
/// # Ok::<(), bus_wire::MatchRuleError>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct MatchRuleBuilder {
    rule: MatchRule,
    fault: Option<MatchRuleError>,
}

impl MatchRule {
    /// A rule that matches any message, to be narrowed.
    pub fn builder() -> MatchRuleBuilder {
        MatchRuleBuilder {
            rule: Self::default(),
            fault: None,
        }
    }

    /// A rule that matches any signal, to be narrowed.
    pub fn signals() -> MatchRuleBuilder {
        Self::builder().message_type(MessageType::Signal)
    }
}

impl MatchRuleBuilder {
    /// The rule.
    ///
    /// # Errors
    /// The first thing that is no part of a rule.
    pub fn build(self) -> Result<MatchRule, MatchRuleError> {
        match self.fault {
            Some(fault) => Err(fault),
            None => {
                let mut rule = self.rule;
                rule.args.sort_by_key(|condition| condition.index);
                Ok(rule)
            }
        }
    }

    /// `type`: one of the four that the specification knows.
    pub fn message_type(mut self, message_type: MessageType) -> Self {
        if let MessageType::Unknown(code) = message_type {
            self.fail(MatchRuleError::Value {
                key: "type".to_owned(),
                value: alloc::format!("{code}"),
                expected: "it must be signal, method_call, method_return or error",
            });
        }
        self.rule.message_type = Some(message_type);
        self
    }

    /// `sender`: a unique or well-known name.
    pub fn sender<'a>(mut self, name: impl Into<NameArg<'a, BusName<'a>>>) -> Self {
        self.rule.sender = self.name("sender", name.into(), names::check_bus_name);
        self
    }

    /// `interface`
    pub fn interface<'a>(mut self, name: impl Into<NameArg<'a, InterfaceName<'a>>>) -> Self {
        self.rule.interface = self.name("interface", name.into(), names::check_interface);
        self
    }

    /// `member`
    pub fn member<'a>(mut self, name: impl Into<NameArg<'a, MemberName<'a>>>) -> Self {
        self.rule.member = self.name("member", name.into(), names::check_member);
        self
    }

    /// `destination`: a unique name, by the specification.
    pub fn destination<'a>(mut self, name: impl Into<NameArg<'a, BusName<'a>>>) -> Self {
        self.rule.destination = self.name("destination", name.into(), names::check_bus_name);
        self
    }

    /// `path`: this object. It takes the place of a path or namespace that was given before.
    pub fn path<'a>(mut self, path: impl Into<NameArg<'a, ObjectPath<'a>>>) -> Self {
        let path = self.name("path", path.into(), names::check_object_path);
        self.rule.path = path.map(PathCondition::Exact);
        self
    }

    /// `path_namespace`: this object, or one below it. It takes the place of a path or namespace that was given before.
    pub fn path_namespace<'a>(mut self, path: impl Into<NameArg<'a, ObjectPath<'a>>>) -> Self {
        let path = self.name("path_namespace", path.into(), names::check_object_path);
        self.rule.path = path.map(PathCondition::Namespace);
        self
    }

    /// `argN`: the argument, counted from 0 to [`MAX_ARGUMENT`], is this STRING. There is one condition on each argument.
    pub fn arg(self, index: u8, text: &str) -> Self {
        self.condition(index, ArgKind::Equals, text)
    }

    /// `argNpath`: the argument is this STRING or OBJECT_PATH, or one of the two ends with a slash and begins the other.
    pub fn arg_path(self, index: u8, text: &str) -> Self {
        self.condition(index, ArgKind::Path, text)
    }

    /// `arg0namespace`: the first argument is this STRING, or continues it behind a period.
    pub fn arg0_namespace(mut self, namespace: &str) -> Self {
        if !is_namespace(namespace) {
            self.fail(MatchRuleError::Value {
                key: "arg0namespace".to_owned(),
                value: namespace.to_owned(),
                expected: "it must be a bus name or the first elements of one",
            });
        }
        self.condition(0, ArgKind::Namespace, namespace)
    }

    fn condition(mut self, index: u8, kind: ArgKind, text: &str) -> Self {
        let key = || alloc::format!("arg{index}");
        if index > MAX_ARGUMENT {
            self.fail(MatchRuleError::ArgumentIndex(key()));
        } else if self.rule.args.iter().any(|condition| condition.index == index) {
            self.fail(MatchRuleError::Duplicate(key()));
        } else if text.contains('\0') {
            self.fail(MatchRuleError::Value {
                key: key(),
                value: text.to_owned(),
                expected: "a text has no nul byte",
            });
        }
        self.rule.args.push(ArgCondition {
            index,
            kind,
            value: text.into(),
        });
        self
    }

    fn name<N>(
        &mut self,
        key: &str,
        name: NameArg<'_, N>,
        check: fn(&[u8]) -> Result<(), NameError>,
    ) -> Option<Box<str>> {
        if !name.is_checked
            && let Err(reason) = check(name.text.as_bytes())
        {
            self.fail(MatchRuleError::Name {
                key: key.to_owned(),
                value: name.text.to_owned(),
                reason,
            });
        }
        Some(name.text.into())
    }

    fn fail(&mut self, fault: MatchRuleError) {
        self.fault.get_or_insert(fault);
    }
}
