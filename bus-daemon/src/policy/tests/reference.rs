//! A plain evaluator: all rules that apply, in order, the last that matches wins. It shares with the index the types, and which
//! rules discard those before them (`points.rs` says which).

use bus_wire::MessageType;

use crate::policy::rules::{Context, MessageRule, NamePattern, Policy, RuleId, Subject};
use crate::policy::verdict::{Access, Reply, Verdict, Who};

/// What is asked; the other side with its names.
#[derive(Debug, Clone, Copy)]
pub(super) enum Question<'a> {
    Send(Access<'a>, &'a [String]),
    Receive(Access<'a>, &'a [String]),
    Own(&'a str),
}

pub(super) fn judge(policy: &Policy, who: Who<'_>, question: Question<'_>) -> Verdict {
    let mut verdict = Verdict::NO_RULE;
    for id in order(policy, who) {
        let rule = policy.rule(id).unwrap();
        let allow = rule.allow;
        let matches = match (&rule.subject, question) {
            (Subject::Send(rule), Question::Send(access, to)) => hits(rule, allow, &access, to, false),
            (Subject::Receive(rule), Question::Receive(access, from)) => {
                hits(rule, allow, &access, from, true)
            }
            (Subject::Own(pattern), Question::Own(name)) => is_named(pattern, name),
            _ => continue,
        };
        if rule.subject.discards() {
            verdict = Verdict::NO_RULE;
        }
        if matches {
            let (allowed, log, matched) = (allow, rule.log, verdict.matched + 1);
            let rule = Some(id);
            verdict = Verdict {
                allowed,
                rule,
                log,
                matched,
            };
        }
    }
    verdict
}

fn order(policy: &Policy, who: Who<'_>) -> Vec<RuleId> {
    let mut blocks = Vec::new();
    for (number, block) in (0..).zip(&policy.blocks) {
        let rank = match &block.context {
            Context::Default => Some((0, 0)),
            Context::Group(group) => {
                let gid = policy.ids.groups.get(group).filter(|gid| who.gids.contains(gid));
                gid.map(|gid| (1, *gid))
            }
            Context::User(user) => (policy.ids.users.get(user) == Some(&who.uid)).then_some((2, 0)),
            Context::AtConsole(at_console) => (*at_console == who.at_console).then_some((3, 0)),
            Context::Mandatory => Some((4, 0)),
        };
        blocks.extend(rank.map(|rank| (rank, number)));
    }
    blocks.sort_unstable();
    let rules = |block: u32| {
        (0..policy.blocks[block as usize].rules.len() as u32).map(move |rule| RuleId { block, rule })
    };
    blocks.into_iter().flat_map(|(_, block)| rules(block)).collect()
}

fn is_named(pattern: &NamePattern, name: &str) -> bool {
    match pattern {
        NamePattern::Any => true,
        NamePattern::Exact(exact) => exact == name,
        NamePattern::Prefix(prefix) => {
            let rest = name.strip_prefix(prefix.as_str()).filter(|_| !prefix.is_empty());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        }
    }
}

fn hits(rule: &MessageRule, allow: bool, access: &Access<'_>, others: &[String], receives: bool) -> bool {
    let absent_hits = |rule: &Option<String>, value: Option<&str>, absent: bool| {
        rule.as_deref()
            .is_none_or(|rule| value.map_or(absent, |value| value == rule))
    };
    let fields = absent_hits(&rule.path, access.path, true)
        && absent_hits(&rule.interface, access.interface, !allow)
        && absent_hits(&rule.member, access.member, true)
        && absent_hits(&rule.error, access.error_name, true);
    let other = rule
        .other
        .as_ref()
        .is_none_or(|other| others.iter().any(|name| is_named(other, name)));
    let reply = match access.reply {
        Reply::No => true,
        Reply::Requested => allow || rule.requested_reply,
        Reply::Unrequested => !allow || !rule.requested_reply || rule.eavesdrop,
    };
    let is_for = if allow {
        rule.eavesdrop || !access.eavesdrops
    } else {
        !rule.eavesdrop || access.eavesdrops
    };
    let of_type = rule
        .message_type
        .is_none_or(|of_type: MessageType| of_type == access.message_type);
    let fds = rule.min_fds <= access.fds && access.fds <= rule.max_fds;
    let broadcast = rule
        .broadcast
        .is_none_or(|broadcast| broadcast == access.is_broadcast);
    fields && other && reply && (is_for || !receives) && of_type && fds && broadcast
}
