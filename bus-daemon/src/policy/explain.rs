//! Which rules speak for or against something, for whoever asks why. It looks at each rule: it is not for the way of a message.

use super::compile::{Applicable, Compiled, push};
use super::rules::{RuleId, Subject};
use super::table::{Side, Table};
use super::verdict::{Access, Who};
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

/// One end of a message, for whoever asks about it.
#[derive(Debug, Clone, Default)]
pub struct Party {
    /// What of the policy applies to it. `None`: nothing does, as for the bus itself, or for a name that nobody owns.
    pub applicable: Option<Applicable>,
    /// What rules see of its names.
    pub standing: Standing,
}

/// What the policy says, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Whether it may be.
    pub allowed: bool,
    /// The rules that match, the last first: of a message those about sending, and then those about receiving.
    pub reasons: Vec<Reason>,
}

/// What a policy says of a message from one party to another: both sides have to allow it.
pub fn explain_message(policy: &Compiled, access: Access<'_>, from: &Party, to: &Party) -> Explanation {
    let mut allowed = true;
    let mut reasons = Vec::new();
    let mut side = |applicable: &Option<Applicable>, deed: Deed<'_>| {
        let Some(applicable) = applicable else { return };
        let of_side = explain(policy, applicable, deed);
        let decision = of_side
            .first()
            .and_then(|reason| policy.policy().rule(reason.rule));
        allowed &= decision.is_some_and(|rule| rule.allow);
        reasons.extend(of_side);
    };
    side(&from.applicable, Deed::Send(access, &to.standing));
    side(&to.applicable, Deed::Receive(access, &from.standing));
    Explanation { allowed, reasons }
}

/// What a policy says of owning a name.
pub fn explain_ownership(policy: &Compiled, applicable: &Applicable, name: &str) -> Explanation {
    let reasons = explain(policy, applicable, Deed::Own(name));
    let decision = reasons
        .first()
        .and_then(|reason| policy.policy().rule(reason.rule));
    Explanation {
        allowed: decision.is_some_and(|rule| rule.allow),
        reasons,
    }
}

/// What a policy says of connecting. Where no rule matches, only the user may that the bus runs as.
pub fn explain_connect(policy: &Compiled, who: Who<'_>, own_uid: u32) -> Explanation {
    let ids = &policy.policy().ids;
    let matches = |subject: &Subject| match subject {
        Subject::User(None) | Subject::Group(None) => true,
        Subject::User(Some(user)) => ids.users.get(user) == Some(&who.uid),
        Subject::Group(Some(group)) => ids.groups.get(group).is_some_and(|gid| who.gids.contains(gid)),
        Subject::Send(_) | Subject::Receive(_) | Subject::Own(_) => false,
    };
    let nobodys = Applicable::default();
    let rules = policy.rules(&nobodys);
    let mut found: Vec<RuleId> = rules
        .filter(|(_, rule)| matches(&rule.subject))
        .map(|(id, _)| id)
        .collect();
    found.reverse();
    let reasons = (0..).zip(found).map(|(place, rule)| Reason {
        rule,
        decides: place == 0,
        discards: false,
    });
    Explanation {
        allowed: policy.may_connect(who, own_uid).allowed,
        reasons: reasons.collect(),
    }
}
