//! The index against a list that is searched rule by rule.

use bus_wire::match_rule::{ArgKind, PathCondition};
use bus_wire::{MessageBuilder, MessageType};
use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const fn peer(index: u32) -> PeerId {
    PeerId { index, generation: 1 }
}

fn rule(text: &str) -> MatchRule {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A signal, or a method call if it has no interface.
#[derive(Debug, Clone)]
struct Sample {
    senders: Vec<&'static str>,
    destinations: Vec<&'static str>,
    path: String,
    interface: Option<&'static str>,
    member: &'static str,
    args: Vec<Argument>,
}

#[derive(Debug, Clone)]
enum Argument {
    Text(String),
    Path(String),
    Number(u32),
}

impl Sample {
    fn signal(path: &str, args: &[&str]) -> Self {
        Self {
            senders: vec![":1.1"],
            destinations: vec![],
            path: path.to_owned(),
            interface: Some("org.example.A"),
            member: "Changed",
            args: args
                .iter()
                .map(|text| Argument::Text((*text).to_owned()))
                .collect(),
        }
    }

    fn message(&self) -> Message {
        let builder = match self.interface {
            Some(interface) => MessageBuilder::signal(&self.path, interface, self.member),
            None => MessageBuilder::method_call(&self.path, self.member),
        };
        let bytes = builder
            .serial(7_u32)
            .body(|body| {
                for argument in &self.args {
                    match argument {
                        Argument::Text(text) => body.str(text),
                        Argument::Path(path) => body.object_path(path),
                        Argument::Number(number) => body.u32(*number),
                    };
                }
            })
            .build()
            .unwrap();
        Message::parse(Bytes::from(bytes)).unwrap()
    }

    fn matching(&self, index: &MatchIndex) -> Vec<PeerId> {
        let mut peers = Vec::new();
        self.with_facts(|facts| index.matching(facts, &mut peers));
        peers
    }

    fn with_facts<T>(&self, run: impl FnOnce(&Facts<'_>) -> T) -> T {
        let (sender_names, destination_names) = (&self.senders, &self.destinations);
        run(&Facts {
            message: &self.message(),
            sender_names,
            destination_names,
        })
    }
}

/// Rule texts that match the message, and others that do not.
#[track_caller]
fn check(sample: &Sample, matching: &[&str], others: &[&str]) {
    for (texts, expected) in [(matching, true), (others, false)] {
        for text in texts {
            let mut index = MatchIndex::new(1);
            index.add(peer(3), rule(text), 0);
            assert_eq!(
                sample.matching(&index),
                if expected { vec![peer(3)] } else { vec![] },
                "{text}"
            );
        }
    }
}

#[test]
fn every_condition_counts() {
    let mut sample = Sample::signal("/a/b", &["org.x.y", "two"]);
    sample.senders = vec![":1.1", "org.example.Sender"];
    check(
        &sample,
        &[
            "",
            "type='signal'",
            "sender=':1.1'",
            "sender='org.example.Sender'",
            "interface='org.example.A',member='Changed',path='/a/b'",
            "path_namespace='/'",
            "path_namespace='/a'",
            "path_namespace='/a/b'",
            "arg0='org.x.y'",
            "arg0namespace='org'",
            "arg0namespace='org.x.y',sender=':1.1'",
            "arg1='two',path_namespace='/a'",
        ],
        &[
            "type='method_call'",
            "sender=':1.2'",
            "sender='org.example'",
            "interface='org.example.B'",
            "member='Change'",
            "path='/a'",
            "path_namespace='/a/b/c'",
            "path_namespace='/b'",
            "arg0='org.x'",
            "arg0namespace='org.x.y.z'",
            "arg0namespace='or'",
            "arg1='three'",
            "arg2='two'",
            "destination=':1.1'",
        ],
    );
}

#[test]
fn arguments_have_types() {
    let mut sample = Sample::signal("/", &[]);
    sample.args = vec![
        Argument::Path("/aa/bb".into()),
        Argument::Number(1),
        Argument::Text("/aa/bb/".into()),
    ];
    check(
        &sample,
        &[
            "arg0path='/aa/'",
            "arg0path='/aa/bb'",
            "arg2path='/aa/bb/cc'",
            "arg2='/aa/bb/'",
            "path='/'",
        ],
        &[
            "arg0='/aa/bb'",
            "arg0path='/aa/bb/'",
            "arg1='1'",
            "arg2='/aa/bb'",
            "arg3='x'",
            "arg63=''",
        ],
    );
}

#[test]
fn destination_is_any_name_of_the_recipient() {
    let mut sample = Sample::signal("/", &[]);
    sample.destinations = vec![":1.9", "org.example.Here"];
    check(
        &sample,
        &["destination=':1.9'", "destination='org.example.Here'", ""],
        &["destination=':1.8'", "destination='org.example'"],
    );
}

#[test]
fn rules_are_counted() {
    let mut index = MatchIndex::new(1);
    let sample = Sample::signal("/a", &[]);
    index.add(peer(1), rule("path='/a',type='signal'"), 0);
    index.add(peer(1), rule("type='signal',path='/a'"), 0);
    index.add(peer(2), rule("path='/a',type='signal'"), 0);
    assert_eq!(
        (index.len(), [1, 2, 3].map(|who| index.count(peer(who)))),
        (3, [2, 1, 0])
    );
    assert_eq!(index.remove(peer(1), &rule("path='/a',type='signal'")), Some(0));
    assert_eq!(sample.matching(&index), [peer(1), peer(2)]);
    assert_eq!(index.remove(peer(1), &rule("path='/a',type='signal'")), Some(0));
    assert_eq!(sample.matching(&index), [peer(2)]);
    // CVE-2006-6107: the one that is left is another peer's.
    assert_eq!(index.remove(peer(1), &rule("path='/a',type='signal'")), None);
    assert_eq!(sample.matching(&index), [peer(2)]);
    remove_all(&mut index, peer(2));
    assert!(index.is_empty() && index.tables.is_empty() && index.senders.is_empty());
    assert!(index.named.is_empty());
    assert_eq!(sample.matching(&index), []);
}

/// All rules of a peer, the newest first: their numbers.
fn remove_all(index: &mut MatchIndex, peer: PeerId) -> Vec<u32> {
    let newest = || index.remove_newest(peer).map(|(number, _)| number);
    std::iter::from_fn(newest).collect()
}

/// All rules that name a unique name: whose they were.
fn remove_named(index: &mut MatchIndex, unique: &str) -> Vec<PeerId> {
    let mut peers = std::collections::BTreeSet::new();
    while let Some((peer, rule)) = index.naming(unique) {
        let rule = rule.clone();
        index.remove(peer, &rule).unwrap();
        peers.insert(peer);
    }
    peers.into_iter().collect()
}

#[test]
fn rules_that_name_a_unique_name_go_with_it() {
    let mut index = MatchIndex::new(1);
    let texts = |index: &MatchIndex, who| {
        let rules = index.rules_of(peer(who)).map(ToString::to_string);
        rules.collect::<Vec<_>>()
    };
    let living = [
        "sender=':1.70'",
        "sender='org.example.Sender'",
        "arg0=':1.7'",
        "member='A'",
    ];
    for (who, text) in [
        (1, "sender=':1.7'"),
        (1, living[0]),
        (1, "sender=':1.7'"),
        (1, "destination=':1.7'"),
        (1, "sender=':1.8',destination=':1.7'"),
        (1, living[1]),
        (2, "sender=':1.7',member='A'"),
        (3, living[2]),
        (4, "sender=':1.7'"),
        (4, living[3]),
    ] {
        index.add(peer(who), rule(text), 0);
    }
    assert_eq!(remove_named(&mut index, ":1.7"), [peer(1), peer(2), peer(4)]);
    assert_eq!(texts(&index, 1), living[..2]);
    assert_eq!(texts(&index, 2), [""; 0]);
    assert_eq!(texts(&index, 3), living[2..3]);
    assert_eq!(texts(&index, 4), living[3..]);
    assert_eq!(
        (index.len(), index.count(peer(1)), index.count(peer(2))),
        (4, 2, 0)
    );
    assert_eq!(index.remove(peer(1), &rule("sender=':1.7'")), None);
    assert_eq!(remove_named(&mut index, ":1.7"), []);
    assert_eq!(remove_named(&mut index, ":1.8"), []);
    assert_eq!(remove_named(&mut index, ":1.70"), [peer(1)]);
    for who in 1..5 {
        remove_all(&mut index, peer(who));
    }
    assert!(index.is_empty() && index.tables.is_empty() && index.named.is_empty());
}

#[test]
fn rules_that_differ_in_a_namespace_only_are_two() {
    let mut index = MatchIndex::new(1);
    index.add(peer(1), rule("path_namespace='/a'"), 0);
    index.add(peer(1), rule("path_namespace='/b'"), 0);
    assert_eq!(index.remove(peer(1), &rule("path_namespace='/a'")), Some(0));
    assert_eq!(Sample::signal("/b/c", &[]).matching(&index), [peer(1)]);
    assert_eq!(Sample::signal("/a/c", &[]).matching(&index), []);
}

#[test]
fn rules_are_listed_as_they_were_added() {
    let mut index = MatchIndex::new(1);
    for text in ["member='C'", "member='A'", "member='B'", "member='A'"] {
        index.add(peer(1), rule(text), 0);
    }
    index.add(peer(2), rule("member='Z'"), 0);
    let texts = |index: &MatchIndex| {
        index
            .rules_of(peer(1))
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        texts(&index),
        ["member='C'", "member='A'", "member='B'", "member='A'"]
    );
    index.remove(peer(1), &rule("member='A'"));
    assert_eq!(texts(&index), ["member='C'", "member='B'", "member='A'"]);
}

#[test]
fn equal_rules_are_stored_once() {
    let mut index = MatchIndex::new(1);
    index.add(peer(1), rule("member='A',path='/a'"), 0);
    index.add(peer(2), rule("path='/a',member='A'"), 0);
    assert_eq!(index.slots.len(), 1);
}

#[test]
fn peers_come_once_and_in_order() {
    let mut index = MatchIndex::new(1);
    for (who, text) in [
        (5, "member='Changed'"),
        (1, "path='/a'"),
        (5, "path='/a'"),
        (3, ""),
        (2, "path='/b'"),
    ] {
        index.add(peer(who), rule(text), 0);
    }
    let sample = Sample::signal("/a", &[]);
    assert_eq!(sample.matching(&index), [peer(1), peer(3), peer(5)]);
    let mut peers = vec![peer(4), peer(3)];
    sample.with_facts(|facts| index.matching(facts, &mut peers));
    assert_eq!(peers, [peer(1), peer(3), peer(4), peer(5)]);
}

/// A message meets no more rules for 10,000 of others that differ in one hashed condition.
#[test]
fn rules_of_others_are_not_met() {
    let candidates = |index: &MatchIndex, sample: &Sample| {
        sample.with_facts(|facts| {
            let probe = Probe::new(index, facts, &Body::new(facts.message));
            let mut count = 0;
            index
                .tables
                .iter()
                .for_each(|table| probe.look_up(table, &index.hasher, |_, _| count += 1));
            count
        })
    };
    let different: [fn(u32) -> String; 8] = [
        |n| format!("sender=':1.{}'", n + 2),
        |n| format!("sender='org.example.N{n}'"),
        |n| format!("interface='org.example.I{n}'"),
        |n| format!("member='M{n}'"),
        |n| format!("path='/p/{n}'"),
        |n| format!("path_namespace='/p/{n}'"),
        |n| format!("arg0='a{n}'"),
        |n| format!("arg0namespace='a{n}'"),
    ];
    let mut sample = Sample::signal("/p/own", &["own"]);
    sample.senders = vec![":1.1", "org.example.Own"];
    let common = "type='signal',interface='org.example.A'";
    for text in different {
        let mut index = MatchIndex::new(1);
        index.add(peer(0), rule(&format!("{common},arg0='own'")), 0);
        for n in 0..10_000 {
            let own = text(n);
            let common = if own.starts_with("interface") {
                "type='signal'"
            } else {
                common
            };
            index.add(peer(n), rule(&format!("{common},{own}")), 0);
        }
        assert_eq!(candidates(&index, &sample), 1, "{}", text(0));
        assert_eq!(sample.matching(&index), [peer(0)]);
    }
}

/// A path of many elements costs no more than the longest namespace that any rule has.
#[test]
fn long_paths_are_cheap() {
    let mut index = MatchIndex::new(1);
    index.add(peer(1), rule("path_namespace='/a/a',arg0namespace='b.b'"), 0);
    let sample = Sample::signal(&"/a".repeat(200_000), &[&"b.".repeat(200_000)]);
    sample.with_facts(|facts| {
        let probe = Probe::new(&index, facts, &Body::new(facts.message));
        assert_eq!((probe.path_prefixes.len(), probe.arg0_prefixes.len()), (3, 3));
    });
    assert_eq!(sample.matching(&index), [peer(1)]);
}

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

const NAMES: [&str; 4] = [":1.1", ":1.2", "org.a.X", "org.a.Y"];
const INTERFACES: [&str; 3] = ["org.a", "org.a.b", "org.b"];
const MEMBERS: [&str; 2] = ["M", "N"];

fn paths() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["/", "/a", "/a/b", "/a/b/c", "/ab", "/b"]).prop_map(str::to_owned)
}

fn texts() -> impl Strategy<Value = String> {
    let all = vec![
        "", "a", "a.b", "a.b.c", "ab", "a.", ".a", "/", "/a/", "/a", "/a/b", "x'y,z",
    ];
    prop::sample::select(all).prop_map(str::to_owned)
}

prop_compose! {
    fn rules()(
        kind in prop::option::of(prop::sample::select(vec!["signal", "method_call", "error"])),
        sender in prop::option::of(prop::sample::select(&NAMES[..])),
        destination in prop::option::weighted(0.1, prop::sample::select(&NAMES[..])),
        interface in prop::option::of(prop::sample::select(&INTERFACES[..])),
        member in prop::option::of(prop::sample::select(&MEMBERS[..])),
        path in prop::option::of((any::<bool>(), paths())),
        arg0 in prop::option::of((0_u8..3, texts())),
        arg2 in prop::option::weighted(0.2, (any::<bool>(), texts())),
    ) -> MatchRule {
        let mut keys = Vec::new();
        let mut key = |name: &str, value: &str| keys.push(format!("{name}='{}'", value.replace('\'', r"'\''")));
        let plain = [
            ("type", kind), ("sender", sender), ("destination", destination), ("interface", interface),
            ("member", member),
        ];
        for (name, value) in plain {
            if let Some(value) = value {
                key(name, value);
            }
        }
        if let Some((is_exact, path)) = &path {
            key(if *is_exact { "path" } else { "path_namespace" }, path);
        }
        match &arg0 {
            Some((0, text)) => key("arg0", text),
            Some((1, text)) => key("arg0path", text),
            Some((_, text)) if text.starts_with('a') && !text.ends_with('.') => key("arg0namespace", text),
            _ => {}
        }
        if let Some((is_exact, text)) = &arg2 {
            key(if *is_exact { "arg2" } else { "arg2path" }, text);
        }
        rule(&keys.join(","))
    }
}

prop_compose! {
    fn samples()(
        senders in prop::sample::subsequence(&NAMES[..], 0..=2),
        destinations in prop::sample::subsequence(&NAMES[..], 0..=2),
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
    Match(Sample),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..6_u32, rules()).prop_map(|(peer, rule)| Step::Add(peer, rule)),
        2 => (0..6_u32, any::<usize>()).prop_map(|(peer, which)| Step::Remove(peer, which)),
        1 => (0..6_u32).prop_map(Step::RemovePeer),
        4 => samples().prop_map(Step::Match),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn it_finds_what_a_scan_finds(steps in steps(), seed in any::<u64>()) {
        let mut index = MatchIndex::new(seed);
        let mut list: Vec<(PeerId, MatchRule, u32)> = Vec::new();
        for (number, step) in (0..).zip(steps) {
            match step {
                Step::Add(who, rule) => {
                    list.push((peer(who), rule.clone(), number));
                    index.add(peer(who), rule, number);
                }
                Step::Remove(who, which) => {
                    let Some((_, rule, _)) = list.get(which % list.len().max(1)).cloned() else { continue };
                    let place = list.iter().position(|(owner, other, _)| *owner == peer(who) && *other == rule);
                    let removed = place.map(|place| list.remove(place).2);
                    prop_assert_eq!(index.remove(peer(who), &rule), removed);
                }
                Step::RemovePeer(who) => {
                    let of_peer = list.iter().filter(|(owner, ..)| *owner == peer(who));
                    let expected: Vec<u32> = of_peer.map(|(_, _, number)| *number).collect();
                    list.retain(|(owner, ..)| *owner != peer(who));
                    let mut removed = remove_all(&mut index, peer(who));
                    removed.reverse();
                    prop_assert_eq!(removed, expected);
                }
                Step::Match(sample) => {
                    let mut expected: Vec<PeerId> =
                        list.iter().filter(|(_, rule, _)| reference(rule, &sample)).map(|(peer, ..)| *peer).collect();
                    expected.sort();
                    expected.dedup();
                    prop_assert_eq!(sample.matching(&index), expected, "{:?}", sample);
                }
            }
            prop_assert_eq!(index.len(), list.len());
            for who in 0..6 {
                let rules: Vec<&MatchRule> =
                    list.iter().filter(|(owner, ..)| *owner == peer(who)).map(|(_, rule, _)| rule).collect();
                prop_assert_eq!(index.rules_of(peer(who)).collect::<Vec<_>>(), rules);
            }
        }
    }
}
