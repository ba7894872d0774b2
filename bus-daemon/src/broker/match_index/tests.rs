//! What is matched, who is found, and what is kept about rules. [`random`] compares the index with a list that is searched
//! rule by rule, [`cost`] counts what a message meets.

mod cost;
mod random;

use bus_wire::{Message, MessageBuilder};
use bytes::Bytes;

use super::*;
use crate::broker::{NameFlags, NameTable, Seeded};

const fn peer(index: u32) -> PeerId {
    PeerId { index, generation: 1 }
}

fn rule(text: &str) -> MatchRule {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A signal, or a method call if it has no interface.
#[derive(Debug, Clone)]
struct Sample {
    /// The names of one peer; at most one of them is unique.
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

    /// What it takes to find the peers that have rules for it.
    fn effort(&self, index: &MatchIndex) -> Effort {
        self.with_facts(|facts| index.matching(facts, &mut Vec::new()))
    }

    fn with_facts<T>(&self, run: impl FnOnce(&Facts<'_>) -> T) -> T {
        let (sender, destination) = (names(&self.senders), names(&self.destinations));
        let destination = match &self.destinations[..] {
            [] => Side::Nobody,
            all => side(all, &destination),
        };
        run(&Facts {
            message: &self.message(),
            sender: side(&self.senders, &sender),
            destination,
        })
    }
}

const SOMEBODY: PeerId = peer(77);

fn names(all: &[&str]) -> NameTable {
    let mut names = NameTable::new(Seeded::with_seed(1));
    for name in all.iter().filter(|name| !name.starts_with(':')) {
        names.request(name, SOMEBODY, NameFlags::default());
    }
    names
}

fn side<'a>(all: &[&'a str], names: &'a NameTable) -> Side<'a> {
    Side::Peer {
        id: SOMEBODY,
        unique: all.iter().copied().find(|name| name.starts_with(':')),
        names,
    }
}

fn index() -> MatchIndex {
    MatchIndex::new(1, Scope::Everything)
}

/// Nothing is left of rules that were removed.
#[track_caller]
fn check_is_empty(index: &MatchIndex) {
    assert!(
        index.is_empty() && index.forms.is_empty() && index.named.is_empty() && index.accounts.is_empty()
    );
}

/// Rule texts that match the message, and others that do not.
#[track_caller]
fn check(sample: &Sample, matching: &[&str], others: &[&str]) {
    for (texts, expected) in [(matching, true), (others, false)] {
        for text in texts {
            let mut index = index();
            index.add(peer(3), None, rule(text), 0);
            assert_eq!(
                sample.matching(&index),
                if expected { vec![peer(3)] } else { vec![] },
                "{text}"
            );
        }
    }
}

impl MatchIndex {
    /// Removes all rules of a peer, and calls `removed` with the number of each, in the order in which they were added.
    fn remove_peer(&mut self, peer: PeerId, removed: impl FnMut(u32)) {
        let newest = || self.remove_newest(peer).map(|(number, _)| number);
        let numbers: Vec<u32> = std::iter::from_fn(newest).collect();
        numbers.into_iter().rev().for_each(removed);
    }

    /// Removes all rules that name a unique name; tells who had any, in ascending order, and calls `removed` with the number
    /// of each.
    fn remove_named(&mut self, unique: &str, mut removed: impl FnMut(u32)) -> Vec<PeerId> {
        let mut peers = std::collections::BTreeSet::new();
        while let Some((peer, rule)) = self.naming(unique) {
            let rule = rule.clone();
            removed(self.remove(peer, &rule).unwrap());
            peers.insert(peer);
        }
        peers.into_iter().collect()
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
    let mut index = index();
    let sample = Sample::signal("/a", &[]);
    index.add(peer(1), None, rule("path='/a',type='signal'"), 0);
    index.add(peer(1), None, rule("type='signal',path='/a'"), 0);
    index.add(peer(2), None, rule("path='/a',type='signal'"), 0);
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
    index.remove_peer(peer(2), |_| {});
    check_is_empty(&index);
    assert_eq!(sample.matching(&index), []);
}

#[test]
fn rules_that_name_a_unique_name_go_with_it() {
    let mut index = index();
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
        index.add(peer(who), None, rule(text), 0);
    }
    assert_eq!(index.remove_named(":1.7", |_| {}), [peer(1), peer(2), peer(4)]);
    assert_eq!(texts(&index, 1), living[..2]);
    assert_eq!(texts(&index, 2), [""; 0]);
    assert_eq!(texts(&index, 3), living[2..3]);
    assert_eq!(texts(&index, 4), living[3..]);
    assert_eq!(
        (index.len(), index.count(peer(1)), index.count(peer(2))),
        (4, 2, 0)
    );
    assert_eq!(index.remove(peer(1), &rule("sender=':1.7'")), None);
    assert_eq!(index.remove_named(":1.7", |_| {}), []);
    assert_eq!(index.remove_named(":1.8", |_| {}), []);
    assert_eq!(index.remove_named(":1.70", |_| {}), [peer(1)]);
    for who in 1..5 {
        index.remove_peer(peer(who), |_| {});
    }
    check_is_empty(&index);
}

#[test]
fn rules_that_differ_in_a_namespace_only_are_two() {
    let mut index = index();
    index.add(peer(1), None, rule("path_namespace='/a'"), 0);
    index.add(peer(1), None, rule("path_namespace='/b'"), 0);
    assert_eq!(index.remove(peer(1), &rule("path_namespace='/a'")), Some(0));
    assert_eq!(Sample::signal("/b/c", &[]).matching(&index), [peer(1)]);
    assert_eq!(Sample::signal("/a/c", &[]).matching(&index), []);
}

#[test]
fn rules_are_listed_as_they_were_added() {
    let mut index = index();
    for text in ["member='C'", "member='A'", "member='B'", "member='A'"] {
        index.add(peer(1), None, rule(text), 0);
    }
    index.add(peer(2), None, rule("member='Z'"), 0);
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
    let mut index = index();
    index.add(peer(1), None, rule("member='A',path='/a'"), 0);
    index.add(peer(2), None, rule("path='/a',member='A'"), 0);
    assert_eq!(index.slots.len(), 1);
}

#[test]
fn peers_come_once_and_in_order() {
    let mut index = index();
    for (who, text) in [
        (5, "member='Changed'"),
        (1, "path='/a'"),
        (5, "path='/a'"),
        (3, ""),
        (2, "path='/b'"),
    ] {
        index.add(peer(who), None, rule(text), 0);
    }
    let sample = Sample::signal("/a", &[]);
    assert_eq!(sample.matching(&index), [peer(1), peer(3), peer(5)]);
    let mut peers = vec![peer(4), peer(3)];
    sample.with_facts(|facts| index.matching(facts, &mut peers));
    assert_eq!(peers, [peer(1), peer(3), peer(4), peer(5)]);
}
