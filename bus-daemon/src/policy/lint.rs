//! What is probably not meant as it is written, in a policy.

use bus_wire::{BusName, MessageType};

use super::rules::{Context, MessageRule, NamePattern, Place, Policy, Rule, Subject};

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The rule.
    pub place: Place,
    /// What is the matter.
    pub text: String,
}

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It does not do what it says, or does nothing.
    Warning,
    /// It does much more than it says.
    Error,
}

/// All that is to be said about a policy, in the order of its rules.
pub fn lint(policy: &Policy) -> Vec<Finding> {
    let mut findings: Vec<Finding> = policy
        .unresolved()
        .into_iter()
        .map(|(place, text)| Finding {
            severity: Severity::Warning,
            place,
            text,
        })
        .collect();
    let mut written = Vec::new();
    for block in &policy.blocks {
        written.extend(block.rules.iter().map(|rule| (&block.context, rule)));
    }
    for (at, (context, rule)) in written.iter().enumerate() {
        let mut say = |severity, text: String| {
            findings.push(Finding {
                severity,
                place: rule.place.clone(),
                text,
            });
        };
        if let Some(text) = discarding(rule) {
            say(Severity::Error, text.into());
        }
        for text in never(rule).into_iter().chain(by_absence(rule)) {
            say(Severity::Warning, text);
        }
        let later = written.get(at + 1..).unwrap_or_default().iter();
        let mut later = later.filter(|(other, _)| always_after(context, other));
        let Some((_, winner)) = later.find(|(_, winner)| covers(winner, rule)) else {
            continue;
        };
        let opens = !rule.allow && winner.allow && winner.place.file != rule.place.file;
        if opens && is_for_all(context) {
            let place = &rule.place;
            findings.push(Finding {
                severity: Severity::Error,
                place: winner.place.clone(),
                text: format!("it opens to everybody what {place} closes"),
            });
        } else {
            say(
                Severity::Warning,
                format!(
                    "it can never win: whatever it matches is decided at {}",
                    winner.place
                ),
            );
        }
    }
    let order = |finding: &Finding| (finding.place.file.clone(), finding.place.line);
    findings.sort_by_key(order);
    findings.dedup();
    findings
}

fn is_for_all(context: &Context) -> bool {
    matches!(context, Context::Default | Context::Mandatory)
}

/// Whether rules of a later block of this kind come after those of the other for whomever both apply to, and apply to all to
/// whom that one applies.
fn always_after(context: &Context, later: &Context) -> bool {
    later == context || matches!(later, Context::Mandatory)
}

/// Of a rule that throws away all before it, although it looks as if it were about some messages only.
fn discarding(rule: &Rule) -> Option<&'static str> {
    let (Subject::Send(message) | Subject::Receive(message)) = &rule.subject else {
        return None;
    };
    let plain = MessageRule::any(rule.allow);
    let has_condition = message.broadcast.is_some()
        || message.min_fds > 0
        || message.max_fds < u32::MAX
        || message.requested_reply != plain.requested_reply
        || (message.eavesdrop && !rule.allow);
    (rule.subject.discards() && has_condition).then_some(
        "it throws away all rules of its kind before it: numbers of descriptors, send_broadcast, eavesdrop and \
         requested_reply do not count as conditions for that, and \"*\" is none",
    )
}

/// Why a rule matches nothing.
fn never(rule: &Rule) -> Vec<String> {
    let mut reasons = Vec::new();
    match &rule.subject {
        Subject::Send(message) | Subject::Receive(message) => {
            if message.min_fds > message.max_fds {
                reasons.push("it never matches: min_fds is more than max_fds".into());
            }
            let is_signal = message
                .message_type
                .is_none_or(|kind| kind == MessageType::Signal);
            if message.broadcast == Some(true) && !is_signal {
                reasons.push("it never matches: only signals are broadcasts".into());
            }
            let names = [
                (&message.interface, "an interface"),
                (&message.error, "an error name"),
            ];
            for (name, what) in names {
                if let Some(name) = name.as_ref().filter(|name| !is_interface(name)) {
                    reasons.push(format!("{name:?} is not {what}: no message has it"));
                }
            }
            if let Some(path) = message.path.as_ref().filter(|path| !is_path(path)) {
                reasons.push(format!("{path:?} is not an object path: no message has it"));
            }
            reasons.extend(message.other.as_ref().and_then(unknown_name));
        }
        Subject::Own(pattern) => reasons.extend(unknown_name(pattern)),
        Subject::User(_) | Subject::Group(_) => {}
    }
    reasons
}

fn unknown_name(pattern: &NamePattern) -> Option<String> {
    match pattern {
        NamePattern::Any => None,
        NamePattern::Exact(name) => {
            let is_name = BusName::new(name.as_str()).is_ok();
            (!is_name).then(|| format!("{name:?} is not a bus name: nobody has it"))
        }
        // What continues it is to be a name.
        NamePattern::Prefix(prefix) => {
            let is_prefix = BusName::new(format!("{prefix}.x").as_str()).is_ok();
            (!is_prefix).then(|| format!("no bus name begins with {prefix:?}"))
        }
    }
}

fn is_interface(name: &str) -> bool {
    bus_wire::InterfaceName::new(name).is_ok()
}

fn is_path(path: &str) -> bool {
    bus_wire::ObjectPath::new(path).is_ok()
}

/// Which conditions hold for messages that lack what they are about.
fn by_absence(rule: &Rule) -> Vec<String> {
    let (Subject::Send(message) | Subject::Receive(message)) = &rule.subject else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let kind = message.message_type;
    if message.error.is_some() && kind != Some(MessageType::Error) {
        let what = if rule.allow { "allows" } else { "denies" };
        found.push(format!(
            "it {what} all calls, signals and returns as well, since they have no error name: add type=\"error\""
        ));
    }
    let are_replies = kind.is_some_and(MessageType::is_reply);
    if are_replies && (message.path.is_some() || message.member.is_some()) {
        found.push("replies have neither path nor member: these conditions hold for each".into());
    }
    if !rule.allow && message.interface.is_some() && matches!(kind, None | Some(MessageType::MethodCall)) {
        let is_narrow = message.other.is_some() || message.path.is_some();
        if !is_narrow {
            found.push(
                "it denies calls without an interface as well, to everybody: add a destination, or a path"
                    .into(),
            );
        }
    }
    found
}

/// Whether one rule matches whatever another one does.
fn covers(one: &Rule, other: &Rule) -> bool {
    let is_same_kind = std::mem::discriminant(&one.subject) == std::mem::discriminant(&other.subject);
    if is_same_kind && one.subject.discards() {
        return true;
    }
    match (&one.subject, &other.subject) {
        (Subject::Send(a), Subject::Send(b)) | (Subject::Receive(a), Subject::Receive(b)) => {
            covers_messages(a, one.allow, b, other.allow)
        }
        (Subject::Own(a), Subject::Own(b)) => covers_names(Some(a), Some(b)),
        (Subject::User(None) | Subject::Group(None), Subject::User(_) | Subject::Group(_)) => true,
        (Subject::User(a), Subject::User(b)) | (Subject::Group(a), Subject::Group(b)) => a == b,
        _ => false,
    }
}

fn covers_messages(one: &MessageRule, allow: bool, other: &MessageRule, other_allows: bool) -> bool {
    let within = |a: &Option<String>, b: &Option<String>| a.is_none() || a == b;
    let texts = within(&one.interface, &other.interface)
        && within(&one.member, &other.member)
        && within(&one.path, &other.path)
        && within(&one.error, &other.error);
    // A deny matches a message without interface, and an allow does not.
    let by_absence = one.interface.is_none() || !allow || other_allows;
    let kind = one.message_type.is_none() || one.message_type == other.message_type;
    let broadcast = one.broadcast.is_none() || one.broadcast == other.broadcast;
    let fds = one.min_fds <= other.min_fds && one.max_fds >= other.max_fds;
    texts
        && by_absence
        && kind
        && broadcast
        && fds
        && covers_names(one.other.as_ref(), other.other.as_ref())
        && covers_replies(one, allow, other, other_allows)
}

/// Which replies each matches, and whether what is overheard.
fn covers_replies(one: &MessageRule, allow: bool, other: &MessageRule, other_allows: bool) -> bool {
    let seen = |rule: &MessageRule, allow: bool| {
        let requested = allow || rule.requested_reply;
        let unrequested = !allow || !rule.requested_reply || rule.eavesdrop;
        let overheard = !allow || rule.eavesdrop;
        let direct = allow || !rule.eavesdrop;
        [requested, unrequested, overheard, direct]
    };
    let pairs = seen(one, allow).into_iter().zip(seen(other, other_allows));
    pairs.into_iter().all(|(one, other)| one || !other)
}

fn covers_names(one: Option<&NamePattern>, other: Option<&NamePattern>) -> bool {
    let begins = |name: &str, prefix: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    match (one, other) {
        (None | Some(NamePattern::Any), _) => true,
        (_, None | Some(NamePattern::Any)) => false,
        (Some(NamePattern::Exact(a)), Some(NamePattern::Exact(b))) => a == b,
        (Some(NamePattern::Prefix(a)), Some(NamePattern::Exact(b) | NamePattern::Prefix(b))) => begins(b, a),
        (Some(NamePattern::Exact(_)), Some(NamePattern::Prefix(_))) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::policy::blocks_of;
    use crate::policy::rules::Ids;

    /// What is found in these rules of the default policy, as severity, place and text.
    fn found(rules: &str) -> Vec<String> {
        let text = format!("<policy context='default'>\n{rules}</policy>");
        let policy = Policy {
            blocks: blocks_of(&text).unwrap(),
            ids: Ids::default(),
        };
        let line = |Finding {
                        severity,
                        place,
                        text,
                    }| format!("{severity:?} {} {text}", place.line);
        lint(&policy).into_iter().map(line).collect()
    }

    #[track_caller]
    fn expect(rules: &str, lines: &[&str]) {
        let found = found(rules);
        assert_eq!(found.len(), lines.len(), "{found:?}");
        for (found, line) in found.iter().zip(lines) {
            assert!(found.starts_with(line), "{found} is not: {line}");
        }
    }

    #[test]
    fn what_is_as_it_should_be_is_not_spoken_of() {
        expect(
            "<allow user='*'/><deny own='*'/><deny send_type='method_call'/><allow send_type='signal'/>\
             <allow send_requested_reply='true' send_type='method_return'/>\
             <allow send_requested_reply='true' send_type='error'/><allow receive_type='method_call'/>\
             <allow send_destination='a.b'/><deny send_destination='a.b' send_interface='a.c'/><allow own='a.b'/>",
            &[],
        );
    }

    #[test]
    fn rules_that_throw_away_what_was_before() {
        expect(
            "<deny receive_sender='*' min_fds='1'/>",
            &["Error 2 it throws away all"],
        );
        expect("<deny send_broadcast='true'/>", &["Error 2 it throws away all"]);
        expect(
            "<deny send_destination='*' eavesdrop='true'/>",
            &["Error 2 it throws away all"],
        );
        expect("<allow send_destination='*' eavesdrop='true'/>", &[]);
    }

    #[test]
    fn rules_that_never_match() {
        expect("<allow own='x y!'/>", &["Warning 2 \"x y!\" is not a bus name"]);
        expect("<allow own_prefix='a..b'/>", &["Warning 2 no bus name begins"]);
        expect("<allow own_prefix='a'/>", &[]);
        expect(
            "<allow send_path='nonsense'/>",
            &["Warning 2 \"nonsense\" is not an object path"],
        );
        expect(
            "<allow send_type='signal' min_fds='3' max_fds='2'/>",
            &["Warning 2 it never matches: min_fds"],
        );
        expect(
            "<allow send_type='method_call' send_broadcast='true'/>",
            &["Warning 2 it never matches: only signals"],
        );
    }

    #[test]
    fn conditions_that_hold_by_absence() {
        expect("<deny send_error='a.E'/>", &["Warning 2 it denies all calls"]);
        expect("<deny send_error='a.E' send_type='error'/>", &[]);
        expect(
            "<allow send_path='/p' send_type='error'/>",
            &["Warning 2 replies have neither"],
        );
        expect(
            "<deny send_interface='a.b'/>",
            &["Warning 2 it denies calls without"],
        );
        expect("<deny send_interface='a.b' send_destination='a.b'/>", &[]);
    }

    #[test]
    fn rules_that_never_win() {
        expect(
            "<deny send_destination='a.b'/>\n<allow send_destination='*'/>",
            &["Warning 2 it can never win: whatever it matches is decided at test.conf:3"],
        );
        expect(
            "<allow own='a.b.c'/>\n<deny own_prefix='a.b'/>",
            &["Warning 2 it can never win"],
        );
        expect("<deny own_prefix='a.b'/>\n<allow own='a.b.c'/>", &[]);
        // A deny matches calls without interface, and an allow for the interface does not.
        expect(
            "<deny send_interface='a.b' send_destination='a.b'/>\n<allow send_interface='a.b' send_destination='a.b'/>",
            &[],
        );
        // Requested replies pass a deny that says nothing of them, and others an allow does not match.
        expect("<deny send_type='error'/>\n<allow send_type='error'/>", &[]);
        expect(
            "<deny user='x'/>\n<allow user='*'/>",
            &["Warning 2 there is no user", "Warning 2 it can never win"],
        );
    }

    #[test]
    fn a_file_that_opens_what_another_closes() {
        let mut blocks =
            blocks_of("<policy context='default'><deny own='a.b'/><allow own='*'/></policy>").unwrap();
        blocks[0].rules[1].place.file = "other.conf".into();
        let policy = Policy {
            blocks,
            ids: Ids::default(),
        };
        let findings = lint(&policy);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].severity, Severity::Error);
        assert_eq!(findings[0].place.file, "other.conf");
        assert!(
            findings[0]
                .text
                .contains("opens to everybody what test.conf:1 closes")
        );
    }
}
