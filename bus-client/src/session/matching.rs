//! Whether a signal is what a rule asks for.

use bus_wire::{Arg, BodyReader, MatchRule, Message};

use super::requests::DRIVER;

/// Whether a rule matches (specification, "Match Rules"). Messages carry the unique name of their sender: `owner` says whose a
/// well-known name is. Peers without a bus have no names, so there only what a message says itself is compared.
pub(super) fn matches<'a>(
    rule: &MatchRule,
    message: &Message,
    has_bus: bool,
    owner: impl Fn(&str) -> Option<&'a str>,
) -> bool {
    if let Some(kind) = rule.message_type
        && kind != message.message_type()
    {
        return false;
    }
    let equals =
        |wanted: &Option<Box<str>>, found: Option<&str>| wanted.is_none() || wanted.as_deref() == found;
    let sender = match rule.sender.as_deref() {
        None => true,
        Some(_) if !has_bus => true,
        Some(name) if name.starts_with(':') || name == DRIVER => message.sender() == Some(name),
        Some(name) => message.sender().is_some() && owner(name) == message.sender(),
    };
    let path = match (&rule.path, message.path()) {
        (None, _) => true,
        (Some(condition), Some(path)) => condition.matches(path),
        (Some(_), None) => false,
    };
    sender
        && path
        && equals(&rule.member, message.member())
        && equals(&rule.interface, message.interface())
        && (rule.destination.is_none() || rule.destination.as_deref() == message.destination())
        && (rule.args.is_empty() || matches_arguments(rule, message))
}

fn matches_arguments(rule: &MatchRule, message: &Message) -> bool {
    let mut body = message.body();
    let mut next = 0;
    let mut conditions: Vec<_> = rule.args.iter().collect();
    conditions.sort_unstable_by_key(|condition| condition.index);
    conditions.into_iter().all(|condition| {
        while next < condition.index {
            if body.skip().is_err() {
                return false;
            }
            next += 1;
        }
        // Looked at and not taken, as there may be another condition on the same one.
        condition.matches(argument(&mut body.clone()))
    })
}

fn argument<'m>(body: &mut BodyReader<'m>) -> Option<Arg<'m>> {
    match body.peek()? {
        b's' => body.read_str().ok().map(Arg::Str),
        b'o' => body.read_object_path().ok().map(Arg::ObjectPath),
        _ => None,
    }
}
