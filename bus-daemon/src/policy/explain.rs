//! Which rules speak for or against something, for whoever asks why. It looks at each rule: it is not for the way of a message.

use super::compile::{Applicable, Compiled, push};
use super::rules::{RuleId, Subject};
use super::table::{Side, Table};
use super::verdict::Access;
use super::vocabulary::Standing;

/// What somebody would do.
#[derive(Debug, Clone, Copy)]
pub enum Deed<'a> {
    /// Send a message to somebody of this standing.
    Send(Access<'a>, &'a Standing),
    /// Receive a message from somebody of this standing.
    Receive(Access<'a>, &'a Standing),
    /// Own a name.
    Own(&'a str),
}

/// A rule that matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    /// Which.
    pub rule: RuleId,
    /// Whether it decides: it is the last one that matches.
    pub decides: bool,
    /// Whether it has no condition, and so no rule of its kind before it counts.
    pub discards: bool,
}

/// All rules that match and count, the last first. The first of them decides; where there is none the deed is denied.
pub fn explain(policy: &Compiled, applicable: &Applicable, deed: Deed<'_>) -> Vec<Reason> {
    let mut rules: Vec<_> = policy.rules(applicable).collect();
    rules.reverse();
    let mut reasons = Vec::new();
    for (id, rule) in rules {
        let is_of_kind = match (&rule.subject, deed) {
            (Subject::Send(_), Deed::Send(..)) => true,
            (Subject::Receive(_), Deed::Receive(..)) => true,
            (Subject::Own(_), Deed::Own(_)) => true,
            (
                Subject::Send(_)
                | Subject::Receive(_)
                | Subject::Own(_)
                | Subject::User(_)
                | Subject::Group(_),
                _,
            ) => false,
        };
        if !is_of_kind {
            continue;
        }
        // A table of this rule alone is asked, so that there is one place that knows when a rule matches.
        let mut table = Table::default();
        push(&mut table, id, rule, policy);
        let verdict = match deed {
            Deed::Send(access, to) => table.judge(&access, Side::Send, to.marks(), &policy.texts),
            Deed::Receive(access, from) => table.judge(&access, Side::Receive, from.marks(), &policy.texts),
            Deed::Own(name) => {
                let marks = policy.ownable.of(name).into_iter();
                table.judge(&Access::NONE, Side::Send, marks, &policy.texts)
            }
        };
        let discards = rule.subject.discards();
        if verdict.rule.is_some() {
            reasons.push(Reason {
                rule: id,
                decides: reasons.is_empty(),
                discards,
            });
        }
        if discards {
            break;
        }
    }
    reasons
}
