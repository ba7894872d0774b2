//! Whether one rule matches, condition by condition.

use std::cell::RefCell;

use bus_wire::match_rule::{Arg, MAX_ARGUMENT};
use bus_wire::{BodyReader, Message};
use smallvec::SmallVec;

use super::side::{Facts, Side};
use crate::broker::match_rule::{MatchRule, Text};

/// Whether the rule matches.
pub(super) fn matches(rule: &MatchRule, facts: &Facts<'_>, body: &Body<'_>) -> bool {
    let message = facts.message;
    let same = |expected: &Option<Text>, found: Option<&str>| match expected {
        Some(expected) => found == Some(expected),
        None => true,
    };
    let is_one_of = |expected: &Option<Text>, side: &Side<'_>| match expected {
        Some(expected) => side.has(expected),
        None => true,
    };
    rule.message_type
        .is_none_or(|expected| expected == message.message_type())
        && same(&rule.interface, message.interface())
        && same(&rule.member, message.member())
        && is_one_of(&rule.sender, &facts.sender)
        && rule
            .path
            .as_ref()
            .is_none_or(|path| message.path().is_some_and(|found| path.matches(found)))
        && is_one_of(&rule.destination, &facts.destination)
        && rule.matches_args(|index| body.argument(index).flatten())
}

/// The arguments of a message, read as far as a rule asks for them.
pub(super) struct Body<'a>(RefCell<Read<'a>>);

struct Read<'a> {
    rest: BodyReader<'a>,
    /// `None` for one that is neither a STRING nor an OBJECT_PATH.
    arguments: SmallVec<[Option<Arg<'a>>; 4]>,
}

impl<'a> Body<'a> {
    pub(super) fn new(message: &'a Message) -> Self {
        Self(RefCell::new(Read {
            rest: message.body(),
            arguments: SmallVec::new(),
        }))
    }

    /// An argument by its index: `None` behind the last, `Some(None)` for one that is neither a STRING nor an OBJECT_PATH.
    pub(super) fn argument(&self, index: u8) -> Option<Option<Arg<'a>>> {
        let mut read = self.0.borrow_mut();
        let index = usize::from(index.min(MAX_ARGUMENT));
        while read.arguments.len() <= index {
            let next = read.next()?;
            read.arguments.push(next);
        }
        Some(read.arguments[index])
    }
}

impl<'a> Read<'a> {
    /// One more argument; `None` where there is none.
    fn next(&mut self) -> Option<Option<Arg<'a>>> {
        match self.rest.peek()? {
            b's' => self.rest.read_str().ok().map(|text| Some(Arg::Str(text))),
            b'o' => self
                .rest
                .read_object_path()
                .ok()
                .map(|path| Some(Arg::ObjectPath(path))),
            _ => self.rest.skip().ok().map(|()| None),
        }
    }
}
