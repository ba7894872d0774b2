//! Match rules (specification, "Match Rules"): the text that AddMatch takes, as a value.

mod builder;

use alloc::borrow::{Cow, ToOwned};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;
use core::str::FromStr;

use nom::{
    IResult, Parser,
    branch::alt,
    bytes::complete::{is_not, tag},
    character::complete::char,
    combinator::value,
    error::{Error, ErrorKind},
    multi::fold_many0,
};
use thiserror::Error;

pub use builder::MatchRuleBuilder;

use crate::header::MessageType;
use crate::limits::MAX_NAME;
use crate::message::Message;
use crate::names::{BusName, InterfaceName, MemberName, NameError, ObjectPath};

/// The longest rule, in bytes. The specification sets no limit; the reference implementation has this one.
pub const MAX_RULE: usize = 1024;

/// The highest argument that a rule can look at: "Only argument indexes from 0 to 63 should be accepted."
pub const MAX_ARGUMENT: u8 = 63;

/// A match rule. Everything that is `None` or empty matches any message; the rule `""` matches all.
///
/// Two rules are equal if they mean the same, however they were written. `T` is what holds each text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct MatchRule<T = Box<str>> {
    /// `type`: one of the four that the specification knows.
    pub message_type: Option<MessageType>,
    /// `sender`: a valid bus name, unique or well-known.
    pub sender: Option<T>,
    /// `interface`: a valid interface name.
    pub interface: Option<T>,
    /// `member`: a valid member name.
    pub member: Option<T>,
    /// `path` or `path_namespace`.
    pub path: Option<PathCondition<T>>,
    /// `destination`: a valid bus name. The specification asks for a unique one; well-known ones are accepted as by
    /// the reference implementation.
    pub destination: Option<T>,
    /// `argN`, `argNpath` and `arg0namespace`, by index. No index is there twice.
    pub args: Vec<ArgCondition<T>>,
    /// `eavesdrop='true'`: match messages to others, too.
    pub eavesdrop: bool,
}

/// What the path of a message must be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum PathCondition<T = Box<str>> {
    /// `path`: this.
    Exact(T),
    /// `path_namespace`: this, or below it.
    Namespace(T),
}

impl<T: Deref<Target = str>> PathCondition<T> {
    /// Whether the path of a message satisfies it.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(expected) => path == &**expected,
            Self::Namespace(root) if &**root == "/" => path.starts_with('/'),
            Self::Namespace(root) => is_within(path, root, '/'),
        }
    }
}

/// A condition on one argument in the body of a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ArgCondition<T = Box<str>> {
    /// Which argument, 0 to [`MAX_ARGUMENT`].
    pub index: u8,
    /// How it is compared.
    pub kind: ArgKind,
    /// With what.
    pub value: T,
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum ArgKind {
    /// `argN`: a STRING that is equal.
    Equals,
    /// `argNpath`: a STRING or OBJECT_PATH that is equal, or either of the two ends with a slash and begins the other.
    Path,
    /// `arg0namespace`: a STRING that is equal or continues with a period.
    Namespace,
}

/// An argument that a rule can look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg<'a> {
    /// STRING
    Str(&'a str),
    /// OBJECT_PATH
    ObjectPath(&'a str),
}

impl<T: Deref<Target = str>> ArgCondition<T> {
    /// Whether an argument satisfies it. One that is missing or of another type (`None`) satisfies none.
    pub fn matches(&self, arg: Option<Arg<'_>>) -> bool {
        match (self.kind, arg) {
            (ArgKind::Equals, Some(Arg::Str(text))) => text == &*self.value,
            (ArgKind::Path, Some(Arg::Str(text) | Arg::ObjectPath(text))) => paths_overlap(text, &self.value),
            (ArgKind::Namespace, Some(Arg::Str(text))) => is_within(text, &self.value, '.'),
            (ArgKind::Equals | ArgKind::Namespace, Some(Arg::ObjectPath(_))) | (_, None) => false,
        }
    }
}

/// "either the string given in the match rule or the appropriate message argument ends with '/' and is a prefix of the
/// other"
fn paths_overlap(argument: &str, expected: &str) -> bool {
    argument == expected
        || (expected.ends_with('/') && argument.starts_with(expected))
        || (argument.ends_with('/') && expected.starts_with(argument))
}

/// Whether `name` is `root`, or `root` continued with a separator.
fn is_within(name: &str, root: &str, separator: char) -> bool {
    name.strip_prefix(root)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(separator))
}

impl<T> Default for MatchRule<T> {
    fn default() -> Self {
        Self {
            message_type: None,
            sender: None,
            interface: None,
            member: None,
            path: None,
            destination: None,
            args: Vec::new(),
            eavesdrop: false,
        }
    }
}

impl<T: Deref<Target = str>> MatchRule<T> {
    /// Whether a message satisfies the rule. A sender is compared as a text; where the rule names a well-known one, and the
    /// message the unique name of its owner, ask [`matches_from`](Self::matches_from). Whom a message is for (`eavesdrop`) is
    /// the bus's affair, and not looked at.
    pub fn matches(&self, message: &Message) -> bool {
        self.matches_from(message, |wanted| message.sender() == Some(wanted))
    }

    /// As [`matches`](Self::matches), where `is_sender` says whether this name is that of the message's sender.
    pub fn matches_from(&self, message: &Message, is_sender: impl FnOnce(&str) -> bool) -> bool {
        let is = |expected: &Option<T>, found: Option<&str>| {
            expected.as_deref().is_none_or(|expected| found == Some(expected))
        };
        self.message_type
            .is_none_or(|kind| kind == message.message_type())
            && is(&self.member, message.member())
            && is(&self.interface, message.interface())
            && is(&self.destination, message.destination())
            && self
                .path
                .as_ref()
                .is_none_or(|path| message.path().is_some_and(|found| path.matches(found)))
            && self.sender.as_deref().is_none_or(is_sender)
            && self.matches_body(message)
    }

    fn matches_body(&self, message: &Message) -> bool {
        let mut body = message.body();
        let mut at = 0;
        self.matches_args(|index| {
            while at < index {
                body.skip().ok()?;
                at += 1;
            }
            let mut argument = body.clone();
            match argument.peek()? {
                b's' => argument.read_str().ok().map(Arg::Str),
                b'o' => argument.read_object_path().ok().map(Arg::ObjectPath),
                _ => None,
            }
        })
    }

    /// Whether the arguments of a message satisfy the rule. `argument` is asked for one by its index, and says `None`
    /// if it is missing or neither a STRING nor an OBJECT_PATH. Indexes come in ascending order.
    pub fn matches_args<'a>(&self, mut argument: impl FnMut(u8) -> Option<Arg<'a>>) -> bool {
        self.args
            .iter()
            .all(|condition| condition.matches(argument(condition.index)))
    }
}

/// One condition in the canonical text.
fn write_pair(text: &mut String, key: &str, value: &str) {
    if !text.is_empty() {
        text.push(',');
    }
    text.push_str(key);
    text.push_str("='");
    if find_apostrophe(value).is_some() {
        text.push_str(&value.replace('\'', r"'\''"));
    } else {
        text.push_str(value);
    }
    text.push('\'');
}

/// The canonical form: one order of keys, each value quoted. Equal rules have the same. Order and quotes are those of the
/// reference implementation, whose text some programs compare with.
impl<T: Deref<Target = str>> fmt::Display for MatchRule<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MatchRuleError {
    /// A limit of the bus, and not of the grammar.
    #[error("the match rule is {0} bytes long, the maximum is {MAX_RULE}")]
    TooLong(usize),
    /// A key and nothing behind it.
    #[error("the key {0:?} of the match rule is not followed by '='")]
    NoValue(String),
    /// An apostrophe that is not closed.
    #[error("the value of {0:?} in the match rule has an apostrophe without its partner")]
    UnbalancedQuote(String),
    /// The specification has no such key.
    #[error("the match rule has an unknown key {0:?}")]
    UnknownKey(String),
    /// A key twice, `path` along with `path_namespace`, or two conditions on one argument.
    #[error("the match rule has {0:?} twice, or along with a key that excludes it")]
    Duplicate(String),
    /// The argument is not one of 0 to 63.
    #[error("the key {0:?} of the match rule does not name an argument from 0 to {MAX_ARGUMENT}")]
    ArgumentIndex(String),
    /// Not a valid name or path.
    #[error("{key}={value:?} in the match rule is invalid: {reason}")]
    Name {
        /// Which key.
        key: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: NameError,
    },
    /// Not one of the values that the key can have.
    #[error("{key}={value:?} in the match rule is invalid: {expected}")]
    Value {
        /// Which key.
        key: String,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl<T: Deref<Target = str> + for<'a> From<&'a str>> FromStr for MatchRule<T> {
    type Err = MatchRuleError;

    fn from_str(text: &str) -> Result<Self, MatchRuleError> {
        if text.len() > MAX_RULE {
            return Err(MatchRuleError::TooLong(text.len()));
        }
        Self::parse_any_length(text)
    }
}

impl<T: Deref<Target = str>> MatchRule<T> {
    /// The canonical text, as [`Display`](fmt::Display) has it.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.write_to(&mut text);
        text
    }

    /// Puts the canonical text in the place of what was there. Tens of thousands of rules are written when a bus is upgraded,
    /// so this does without the machinery of `fmt`.
    pub fn write_to(&self, text: &mut String) {
        text.clear();
        let names = [&self.sender, &self.interface, &self.member, &self.destination];
        let names = names.into_iter().flatten().map(|value| value.len());
        let path = self.path.iter().map(|path| match path {
            PathCondition::Exact(value) | PathCondition::Namespace(value) => value.len(),
        });
        let args = self.args.iter().map(|condition| condition.value.len());
        // The longest key, with what stands around it.
        const KEY: usize = ",path_namespace=''".len();
        let values = names.chain(path).chain(args).map(|len| len + KEY);
        let fixed = "type='method_return',eavesdrop='true'".len();
        text.reserve(fixed + values.sum::<usize>());
        let Self {
            message_type,
            sender,
            interface,
            member,
            path,
            destination,
            args,
            eavesdrop,
        } = self;
        if let Some(kind) = message_type.and_then(type_name) {
            write_pair(text, "type", kind);
        }
        for (key, value) in [("interface", interface), ("member", member)] {
            if let Some(value) = value {
                write_pair(text, key, value);
            }
        }
        match path {
            Some(PathCondition::Exact(value)) => write_pair(text, "path", value),
            Some(PathCondition::Namespace(value)) => write_pair(text, "path_namespace", value),
            None => {}
        }
        for (key, value) in [("sender", sender), ("destination", destination)] {
            if let Some(value) = value {
                write_pair(text, key, value);
            }
        }
        if *eavesdrop {
            write_pair(text, "eavesdrop", "true");
        }
        for ArgCondition { index, kind, value } in args {
            let suffix = match kind {
                ArgKind::Equals => "",
                ArgKind::Path => "path",
                ArgKind::Namespace => "namespace",
            };
            match (index, suffix) {
                (0, "") => write_pair(text, "arg0", value),
                _ => write_pair(text, &format!("arg{index}{suffix}"), value),
            }
        }
    }

    /// As [`FromStr`], of any length. `hold` makes what holds each text: of a part of `text`, or of a new one where the value
    /// is written in several sections.
    ///
    /// # Errors
    /// Where the text is no rule.
    pub fn parse_held(text: &str, hold: impl Fn(Cow<'_, str>) -> T) -> Result<Self, MatchRuleError> {
        let mut draft = Draft {
            rule: Self::default(),
            arguments: 0,
            hold,
        };
        let mut rest = skip_blanks(text);
        while !rest.is_empty() {
            let Some((after, key, value)) = pair(rest)? else {
                break;
            };
            draft.set(key, value)?;
            rest = skip_blanks(after);
        }
        draft.rule.args.sort_by_key(|condition| condition.index);
        draft.rule.args.shrink_to_fit();
        Ok(draft.rule)
    }

    /// The same rule, whose texts are held by something else.
    pub fn map<U>(&self, mut hold: impl FnMut(&T) -> U) -> MatchRule<U> {
        let args = self.args.iter().map(|condition| ArgCondition {
            index: condition.index,
            kind: condition.kind,
            value: hold(&condition.value),
        });
        MatchRule {
            message_type: self.message_type,
            eavesdrop: self.eavesdrop,
            args: args.collect(),
            sender: self.sender.as_ref().map(&mut hold),
            interface: self.interface.as_ref().map(&mut hold),
            member: self.member.as_ref().map(&mut hold),
            destination: self.destination.as_ref().map(&mut hold),
            path: self.path.as_ref().map(|path| match path {
                PathCondition::Exact(value) => PathCondition::Exact(hold(value)),
                PathCondition::Namespace(value) => PathCondition::Namespace(hold(value)),
            }),
        }
    }
}

impl<T: Deref<Target = str> + for<'a> From<&'a str>> MatchRule<T> {
    /// As [`FromStr`], for a text that comes from this program itself: the canonical text of a rule may be longer than
    /// a client's.
    ///
    /// # Errors
    /// Where the text is no rule.
    pub fn parse_any_length(text: &str) -> Result<Self, MatchRuleError> {
        Self::parse_held(text, |value| T::from(&value))
    }
}

/// A rule being read, with what tells whether a key comes twice.
struct Draft<T, F> {
    rule: MatchRule<T>,
    /// One bit per argument.
    arguments: u64,
    hold: F,
}

impl<T: Deref<Target = str>, F: Fn(Cow<'_, str>) -> T> Draft<T, F> {
    fn set(&mut self, key: &str, text: Cow<'_, str>) -> Result<(), MatchRuleError> {
        let duplicate = || MatchRuleError::Duplicate(key.to_owned());
        let invalid = |expected| MatchRuleError::Value {
            key: key.to_owned(),
            value: text.clone().into_owned(),
            expected,
        };
        let name = |checked: Result<(), NameError>| {
            checked.map_err(|reason| MatchRuleError::Name {
                key: key.to_owned(),
                value: text.clone().into_owned(),
                reason,
            })
        };
        let rule = &mut self.rule;
        let slot = match key {
            "type" => {
                let kind = message_type(&text);
                let kind =
                    kind.ok_or_else(|| invalid("it must be signal, method_call, method_return or error"))?;
                return rule
                    .message_type
                    .replace(kind)
                    .map_or(Ok(()), |_| Err(duplicate()));
            }
            "eavesdrop" => {
                rule.eavesdrop = match &*text {
                    "true" => true,
                    "false" => false,
                    _ => return Err(invalid("it must be 'true' or 'false'")),
                };
                return Ok(());
            }
            "path" | "path_namespace" => {
                name(ObjectPath::new(&text).map(drop))?;
                let is_exact = key == "path";
                let text = (self.hold)(text);
                let path = if is_exact {
                    PathCondition::Exact(text)
                } else {
                    PathCondition::Namespace(text)
                };
                return rule.path.replace(path).map_or(Ok(()), |_| Err(duplicate()));
            }
            "sender" => {
                name(BusName::new(&text).map(drop))?;
                &mut rule.sender
            }
            "interface" => {
                name(InterfaceName::new(&text).map(drop))?;
                &mut rule.interface
            }
            "member" => {
                name(MemberName::new(&text).map(drop))?;
                &mut rule.member
            }
            "destination" => {
                name(BusName::new(&text).map(drop))?;
                &mut rule.destination
            }
            _ => {
                let (index, kind) = argument_key(key)?;
                if kind == ArgKind::Namespace && !is_namespace(&text) {
                    return Err(invalid("it must be a bus name or the first elements of one"));
                }
                if self.arguments & (1 << index) != 0 {
                    return Err(duplicate());
                }
                self.arguments |= 1 << index;
                rule.args.push(ArgCondition {
                    index,
                    kind,
                    value: (self.hold)(text),
                });
                return Ok(());
            }
        };
        slot.replace((self.hold)(text))
            .map_or(Ok(()), |_| Err(duplicate()))
    }
}

fn message_type(text: &str) -> Option<MessageType> {
    let known = [
        MessageType::MethodCall,
        MessageType::MethodReturn,
        MessageType::Error,
        MessageType::Signal,
    ];
    known.into_iter().find(|kind| type_name(*kind) == Some(text))
}

fn type_name(kind: MessageType) -> Option<&'static str> {
    match kind {
        MessageType::MethodCall => Some("method_call"),
        MessageType::MethodReturn => Some("method_return"),
        MessageType::Error => Some("error"),
        MessageType::Signal => Some("signal"),
        MessageType::Unknown(_) => None,
    }
}

/// `argN`, `argNpath` or `arg0namespace`.
fn argument_key(key: &str) -> Result<(u8, ArgKind), MatchRuleError> {
    let unknown = || MatchRuleError::UnknownKey(key.to_owned());
    let rest = key.strip_prefix("arg").ok_or_else(unknown)?;
    let bad_index = || MatchRuleError::ArgumentIndex(key.to_owned());
    let (index, suffix) = c_number(rest).ok_or_else(bad_index)?;
    let index = u8::try_from(index).map_err(|_| bad_index())?;
    if index > MAX_ARGUMENT {
        return Err(bad_index());
    }
    match suffix {
        "" => Ok((index, ArgKind::Equals)),
        "path" => Ok((index, ArgKind::Path)),
        // The one key of its kind: no other way to write the number is known.
        "namespace" if rest == "0namespace" => Ok((index, ArgKind::Namespace)),
        _ => Err(unknown()),
    }
}

/// A number as C programs read it (strtoul with base 0), and what follows: 010 is octal, 0x10 hexadecimal, -0 is 0. The
/// specification does not say how an index is written; the reference implementation reads it so. `None` without digits;
/// what is too large for it is the largest there is.
fn c_number(text: &str) -> Option<(u64, &str)> {
    // Other blanks end the key.
    let text = text.trim_start_matches(['\x0b', '\x0c']);
    let (is_negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let (radix, text) = match hexadecimal {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_hexdigit()) => (16, rest),
        Some(_) | None if text.starts_with('0') => (8, text),
        Some(_) | None => (10, text),
    };
    let (digits, rest) = text.split_at(text.find(|c: char| !c.is_digit(radix)).unwrap_or(text.len()));
    if digits.is_empty() {
        return None;
    }
    let number = match u64::from_str_radix(digits, radix) {
        Ok(number) if is_negative => number.wrapping_neg(),
        Ok(number) => number,
        Err(_) => u64::MAX,
    };
    Some((number, rest))
}

/// "Like a bus name, except that the string is not required to contain a '.'"
fn is_namespace(text: &str) -> bool {
    let is_element_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let is_element = || {
        (1..=MAX_NAME).contains(&text.len())
            && text.bytes().all(is_element_byte)
            && !text.starts_with(|c: char| c.is_ascii_digit())
    };
    BusName::new(text).is_ok() || is_element()
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

fn skip_blanks(input: &str) -> &str {
    input.trim_start_matches(is_blank)
}

/// What follows, a key, and its value.
type Pair<'a> = (&'a str, &'a str, Cow<'a, str>);

/// `key = value`, up to and with the comma behind it. Blanks may stand around a key; behind `=` they are the value's.
///
/// `None` where the key is empty. The specification does not say what that means; for the reference implementation the
/// rule ends there, whatever follows.
fn pair(input: &str) -> Result<Option<Pair<'_>>, MatchRuleError> {
    let (key, rest) = input.split_at(input.find(|c| c == '=' || is_blank(c)).unwrap_or(input.len()));
    let rest = skip_blanks(rest)
        .strip_prefix('=')
        .ok_or_else(|| MatchRuleError::NoValue(key.to_owned()))?;
    if key.is_empty() {
        return Ok(None);
    }
    let (rest, text) = match one_section(rest) {
        Some((rest, section)) => (rest, Cow::Borrowed(section)),
        None => {
            let (rest, text) =
                quoted_value(rest).map_err(|_| MatchRuleError::UnbalancedQuote(key.to_owned()))?;
            (rest, Cow::Owned(text))
        }
    };
    Ok(Some((rest.strip_prefix(',').unwrap_or(rest), key, text)))
}

/// A value that is one quoted section, as nearly all are: what follows, and the section. Rules are read by the ten thousand
/// when a bus goes on.
fn one_section(input: &str) -> Option<(&str, &str)> {
    let inner = input.strip_prefix('\'')?;
    let (section, rest) = inner.split_at(find_apostrophe(inner)?);
    let rest = rest.strip_prefix('\'')?;
    (rest.is_empty() || rest.starts_with(',')).then_some((rest, section))
}

/// Where the first apostrophe is. Values are long, and whole vectors of bytes are compared at once.
fn find_apostrophe(text: &str) -> Option<usize> {
    const VECTORS: usize = 64;
    let is_in = |bytes: &[u8]| bytes.iter().fold(false, |found, byte| found | (*byte == b'\''));
    let mut parts = text.as_bytes().chunks(VECTORS).enumerate();
    let (number, part) = parts.find(|(_, part)| is_in(part))?;
    let at = part.iter().position(|byte| *byte == b'\'')?;
    Some(number * VECTORS + at)
}

/// "Within single quotes, a backslash represents itself, and an apostrophe ends the quoted section. Outside single
/// quotes, \' represents an apostrophe, and any backslash not followed by an apostrophe represents itself."
fn quoted_value(input: &str) -> IResult<&str, String> {
    let apostrophe = value("'", tag("\\'"));
    let plain = alt((is_not("\\',"), tag("\\")));
    fold_many0(
        alt((quoted, apostrophe, plain)),
        String::new,
        |mut text: String, piece: &str| {
            text.push_str(piece);
            text
        },
    )
    .parse(input)
}

/// The section between two apostrophes, which is searched for its end and not looked at character by character.
fn quoted(input: &str) -> IResult<&str, &str> {
    let (inner, _) = char('\'').parse(input)?;
    let (section, rest) = inner
        .split_once('\'')
        .ok_or_else(|| nom::Err::Failure(Error::new(inner, ErrorKind::Char)))?;
    Ok((rest, section))
}

#[cfg(test)]
mod tests;
