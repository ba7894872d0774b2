//! The index against a list that is searched rule by rule, with rules and messages that are made to meet.

use bus_wire::MessageType;
use bus_wire::match_rule::PathCondition;
use proptest::prelude::*;

use super::*;

/// The specification's words, one by one.
fn reference(rule: &MatchRule, sample: &Sample) -> bool {
    let kind = if sample.interface.is_some() {
        MessageType::Signal
    } else {
        MessageType::MethodCall
    };
    let below = |found: &str, root: &str, separator: &str| {
        found == root || found.starts_with(&format!("{}{separator}", root.trim_end_matches(separator)))
    };
    let path = match &rule.path {
        None => true,
        Some(PathCondition::Exact(path)) => sample.path == **path,
        Some(PathCondition::Namespace(root)) => below(&sample.path, root, "/"),
    };
    let args = rule.args.iter().all(|condition| {
        let value = &*condition.value;
        match (condition.kind, sample.args.get(usize::from(condition.index))) {
            (ArgKind::Equals, Some(Argument::Text(text))) => text == value,
            (ArgKind::Namespace, Some(Argument::Text(text))) => below(text, value, "."),
            (ArgKind::Path, Some(Argument::Text(text) | Argument::Path(text))) => {
                text == value
                    || (value.ends_with('/') && text.starts_with(value))
                    || (text.ends_with('/') && value.starts_with(text.as_str()))
            }
            _ => false,
        }
    });
    rule.message_type.is_none_or(|expected| expected == kind)
        && rule
            .sender
            .as_deref()
            .is_none_or(|name| sample.senders.contains(&name))
        && rule
            .destination
            .as_deref()
            .is_none_or(|name| sample.destinations.contains(&name))
        && rule
            .interface
            .as_deref()
            .is_none_or(|name| sample.interface == Some(name))
        && rule.member.as_deref().is_none_or(|name| sample.member == name)
        && path
        && args
}

const UNIQUE: [&str; 2] = [":1.1", ":1.2"];
const WELL_KNOWN: [&str; 6] = ["org.a.A", "org.a.B", "org.a.C", "org.a.D", "org.a.E", "org.a.F"];
const INTERFACES: [&str; 3] = ["org.a", "org.a.b", "org.b"];
const MEMBERS: [&str; 2] = ["M", "N"];

fn name() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        prop::sample::select(&UNIQUE[..]),
        prop::sample::select(&WELL_KNOWN[..])
    ]
}

/// All names of one peer.
fn names() -> impl Strategy<Value = Vec<&'static str>> {
    let unique = prop::sample::subsequence(&UNIQUE[..], 0..=1);
    let well_known = prop::sample::subsequence(&WELL_KNOWN[..], 0..=6);
    (unique, well_known).prop_map(|(unique, well_known)| [unique, well_known].concat())
}

fn paths() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["/", "/a", "/a/b", "/a/b/c", "/ab", "/b"]).prop_map(str::to_owned)
}

fn texts() -> impl Strategy<Value = String> {
    let all = vec![
        "", "a", "a.b", "a.b.c", "ab", "a.", ".a", "/", "//", "/a/", "/a", "/a/b", "/a/b/", "a/", "x'y,z",
    ];
    prop::sample::select(all).prop_map(str::to_owned)
}

/// The key and the value of a condition on an argument.
fn argument_condition() -> impl Strategy<Value = (u8, &'static str, String)> {
    let kinds = prop::sample::select(vec!["", "path", "path", "namespace"]);
    let index = prop_oneof![4 => 0..3_u8, 1 => Just(63_u8)];
    (index, kinds, texts()).prop_map(|(index, kind, text)| match kind {
        // Of the values only these are valid.
        "namespace" if index == 0 && text.starts_with('a') && !text.ends_with(['.', '/']) => (0, kind, text),
        "namespace" => (index, "", text),
        _ => (index, kind, text),
    })
}

prop_compose! {
    fn rules()(
        kind in prop::option::weighted(0.3, prop::sample::select(vec!["signal", "method_call", "error"])),
        sender in prop::option::weighted(0.3, name()),
        destination in prop::option::weighted(0.1, name()),
        interface in prop::option::weighted(0.3, prop::sample::select(&INTERFACES[..])),
        member in prop::option::weighted(0.3, prop::sample::select(&MEMBERS[..])),
        path in prop::option::weighted(0.4, (any::<bool>(), paths())),
        args in prop::collection::vec(argument_condition(), 0..3),
        eavesdrop in any::<bool>(),
    ) -> MatchRule {
        let mut keys = Vec::new();
        let mut key = |name: &str, value: &str| keys.push(format!("{name}='{}'", value.replace('\'', r"'\''")));
        let plain = [
            ("type", kind), ("sender", sender), ("destination", destination), ("interface", interface),
            ("member", member), ("eavesdrop", eavesdrop.then_some("true")),
        ];
        for (name, value) in plain {
            if let Some(value) = value {
                key(name, value);
            }
        }
        if let Some((is_exact, path)) = &path {
            key(if *is_exact { "path" } else { "path_namespace" }, path);
        }
        let mut seen = Vec::new();
        for (index, kind, text) in &args {
            if !seen.contains(index) {
                seen.push(*index);
                key(&format!("arg{index}{kind}"), text);
            }
        }
        rule(&keys.join(","))
    }
}

prop_compose! {
    fn samples()(
        senders in names(),
        destinations in prop_oneof![Just(vec![]), names()],
        path in paths(),
        interface in prop::option::weighted(0.8, prop::sample::select(&INTERFACES[..])),
        member in prop::sample::select(&MEMBERS[..]),
        args in prop::collection::vec(
            prop_oneof![
                4 => texts().prop_map(Argument::Text),
                2 => paths().prop_map(Argument::Path),
                1 => any::<u32>().prop_map(Argument::Number),
            ],
            0..4,
        ),
    ) -> Sample {
        Sample { senders, destinations, path, interface, member, args }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Add(u32, MatchRule),
    /// One of the rules that are there, by number; of this peer.
    Remove(u32, usize),
    RemovePeer(u32),
    RemoveNamed(&'static str),
    Match(Sample),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..6_u32, rules()).prop_map(|(peer, rule)| Step::Add(peer, rule)),
        2 => (0..6_u32, any::<usize>()).prop_map(|(peer, which)| Step::Remove(peer, which)),
        1 => (0..6_u32).prop_map(Step::RemovePeer),
        1 => prop::sample::select(&UNIQUE[..]).prop_map(Step::RemoveNamed),
        6 => samples().prop_map(Step::Match),
    ];
    prop::collection::vec(step, 1..200)
}

/// The rules as a list, with their numbers.
type List = Vec<(PeerId, MatchRule, u32)>;

fn apply(index: &mut MatchIndex, list: &mut List, number: u32, step: Step) -> Result<(), TestCaseError> {
    match step {
        Step::Add(who, rule) => {
            list.push((peer(who), rule.clone(), number));
            index.add(peer(who), Some(who / 2), rule, number);
        }
        Step::Remove(who, which) => {
            let Some((_, rule, _)) = list.get(which % list.len().max(1)).cloned() else {
                return Ok(());
            };
            let place = list
                .iter()
                .position(|(owner, other, _)| *owner == peer(who) && *other == rule);
            let removed = place.map(|place| list.remove(place).2);
            prop_assert_eq!(index.remove(peer(who), &rule), removed);
        }
        Step::RemovePeer(who) => {
            let of_peer = list.iter().filter(|(owner, ..)| *owner == peer(who));
            let expected: Vec<u32> = of_peer.map(|(_, _, number)| *number).collect();
            list.retain(|(owner, ..)| *owner != peer(who));
            let mut removed = Vec::new();
            index.remove_peer(peer(who), |number| removed.push(number));
            prop_assert_eq!(removed, expected);
        }
        Step::RemoveNamed(name) => {
            let is_dead = |rule: &MatchRule| {
                [&rule.sender, &rule.destination]
                    .into_iter()
                    .any(|side| side.as_deref() == Some(name))
            };
            let mut expected: Vec<u32> = list
                .iter()
                .filter(|(_, rule, _)| is_dead(rule))
                .map(|(.., number)| *number)
                .collect();
            list.retain(|(_, rule, _)| !is_dead(rule));
            let mut removed = Vec::new();
            index.remove_named(name, |number| removed.push(number));
            removed.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(removed, expected);
        }
        Step::Match(sample) => {
            if index.scope == Scope::Broadcasts
                && (sample.interface.is_none() || !sample.destinations.is_empty())
            {
                return Ok(());
            }
            let matching = list.iter().filter(|(_, rule, _)| reference(rule, &sample));
            let mut expected: Vec<PeerId> = matching.map(|(peer, ..)| *peer).collect();
            expected.sort();
            expected.dedup();
            prop_assert_eq!(sample.matching(index), expected, "{:?}", sample);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn it_finds_what_a_scan_finds(
        steps in steps(), seed in any::<u64>(), is_for_broadcasts in any::<bool>(),
    ) {
        let scope = if is_for_broadcasts { Scope::Broadcasts } else { Scope::Everything };
        let mut index = MatchIndex::new(seed, scope);
        let mut list = List::new();
        for (number, step) in (0..).zip(steps) {
            apply(&mut index, &mut list, number, step)?;
            prop_assert_eq!(index.len(), list.len());
            for who in 0..6 {
                let rules: Vec<&MatchRule> =
                    list.iter().filter(|(owner, ..)| *owner == peer(who)).map(|(_, rule, _)| rule).collect();
                prop_assert_eq!(index.rules_of(peer(who)).map(|rule| &**rule).collect::<Vec<_>>(), rules);
            }
        }
        for who in 0..6 {
            index.remove_peer(peer(who), |_| {});
        }
        check_is_empty(&index);
    }
}
