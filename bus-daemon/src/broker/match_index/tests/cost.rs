//! What rules cost a message, in questions to tables and in rules that are compared: counted, with so many rules and with
//! eight times as many.

use super::account::{MAX_FORMS, MAX_OVERLAPS};
use super::*;

const USER: Option<u32> = Some(1000);

/// A message that has something for every key.
fn sample() -> Sample {
    let mut args: Vec<String> = (0..64).map(|index| format!("own{index}")).collect();
    args[0] = "own.a.b".into();
    args[2] = "/own/x/y".into();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut sample = Sample::signal("/own/p/q", &args);
    sample.senders = vec![":1.1", "org.example.Own"];
    sample.destinations = vec![":1.9", "org.example.Here"];
    sample
}

/// A key: with the message's value, and with the values of others.
type Kind = (&'static str, fn(u32) -> String);

const KINDS: [Kind; 18] = [
    ("sender=':1.1'", |n| format!("sender=':1.{}'", n + 2)),
    ("sender='org.example.Own'", |n| {
        format!("sender='org.example.N{n}'")
    }),
    ("interface='org.example.A'", |n| {
        format!("interface='org.example.I{n}'")
    }),
    ("member='Changed'", |n| format!("member='M{n}'")),
    ("path='/own/p/q'", |n| format!("path='/own/{n}'")),
    ("path_namespace='/own'", |n| format!("path_namespace='/own/n{n}'")),
    ("destination=':1.9'", |n| format!("destination=':1.{}'", n + 10)),
    ("destination='org.example.Here'", |n| {
        format!("destination='org.example.N{n}'")
    }),
    ("arg0='own.a.b'", |n| format!("arg0='a{n}'")),
    ("arg0namespace='own'", |n| format!("arg0namespace='own.n{n}'")),
    ("arg1='own1'", |n| format!("arg1='a{n}'")),
    ("arg7='own7'", |n| format!("arg7='a{n}'")),
    ("arg63='own63'", |n| format!("arg63='a{n}'")),
    ("arg0path='own.a.b'", |n| format!("arg0path='/own/n{n}/'")),
    ("arg2path='/own/'", |n| format!("arg2path='/own/n{n}/'")),
    ("arg2path='/own/x/y'", |n| format!("arg2path='/own/x/y{n}'")),
    ("arg62path='own62'", |n| format!("arg62path='n{n}/n/n/'")),
    ("arg63path='own63'", |n| format!("arg63path='own63/{n}'")),
];

/// What a key looks at: no rule has two keys with the same.
fn slot(text: &str) -> &str {
    let key = text.split('=').next().unwrap_or_default();
    match key.strip_prefix("arg") {
        Some(rest) => rest.trim_end_matches(char::is_alphabetic),
        None => key.trim_end_matches("_namespace"),
    }
}

/// So many well-known names.
fn leaked(count: u32) -> Vec<&'static str> {
    let name = |n| -> &'static str { Box::leak(format!("n.a{n}").into_boxed_str()) };
    (0..count).map(name).collect()
}

fn add(index: &mut MatchIndex, who: u32, text: &str) {
    index.add(peer(who), USER, rule(text), 0);
}

/// Rules that agree with the message in `own` and differ in the key.
fn fill(index: &mut MatchIndex, own: &str, kind: Kind, count: u32) {
    for n in 0..count {
        add(index, n % 10, &format!("{own},{}", kind.1(n)));
    }
}

#[test]
fn rules_that_differ_in_one_key_are_not_met() {
    let sample = sample();
    for kind in KINDS {
        let own: Vec<&str> = [
            "type='signal'",
            "interface='org.example.A'",
            "member='Changed'",
            "arg1='own1'",
        ]
        .into_iter()
        .filter(|own| slot(own) != slot(kind.0))
        .collect();
        let own = own.join(",");
        let efforts = [100, 800].map(|count| {
            let mut index = index();
            fill(&mut index, &own, kind, count);
            assert_eq!(sample.matching(&index), [], "{}", kind.0);
            sample.effort(&index)
        });
        assert_eq!(efforts[0], efforts[1], "{}", kind.0);
        assert!(
            efforts[0].candidates == 0 && efforts[0].look_ups <= 4,
            "{}: {efforts:?}",
            kind.0
        );
    }
}

/// Each pair of keys: the message has the one value of each rule and not the other. All in one index.
#[test]
fn rules_that_agree_in_another_key_are_not_met_either() {
    let sample = sample();
    let effort = |count| {
        let mut index = index();
        let mut alone = 0;
        for kind in KINDS {
            for other in KINDS {
                if slot(kind.0) == slot(other.0) {
                    continue;
                }
                let mut one = self::index();
                fill(&mut one, other.0, kind, count);
                fill(&mut index, other.0, kind, count);
                let effort = sample.effort(&one);
                assert!(
                    effort.candidates == 0 && effort.look_ups <= 4,
                    "{} {} {effort:?}",
                    kind.0,
                    other.0
                );
                alone += effort.look_ups;
            }
        }
        assert_eq!(sample.matching(&index), []);
        let effort = sample.effort(&index);
        assert!(effort.look_ups <= alone, "{effort:?}, each alone: {alone}");
        effort
    };
    assert_eq!(effort(5), effort(40));
}

/// Some of the keys have the message's values, in each of the ways in which there can be some; one has not.
#[test]
fn every_subset_of_keys_costs_a_question() {
    let keys = [
        "interface='org.example.A'",
        "member='Changed'",
        "path='/own/p/q'",
        "arg1='own1'",
        "arg7='own7'",
    ];
    let effort = |count: u32| {
        let mut index = index();
        for subset in 0..1 << keys.len() {
            let own = (0..keys.len()).filter(|bit| subset & (1 << bit) != 0);
            let own: String = own.map(|bit| format!("{},", keys[bit])).collect();
            for n in 0..count {
                add(&mut index, 0, &format!("{own}arg0='a{n}'"));
            }
        }
        let effort = sample().effort(&index);
        assert_eq!((effort.look_ups, effort.candidates), (32, 0));
        effort
    };
    assert_eq!(effort(10), effort(80));
}

/// Namespaces of all depths, on the path and on two arguments, with many senders.
fn product(paths: usize, arguments: usize, names: usize) -> MatchIndex {
    let mut index = index();
    let common = "interface='org.example.A',sender='n.a0'";
    for depth in 1..=paths {
        add(
            &mut index,
            0,
            &format!(
                "{common},path_namespace='{}',arg0namespace='b'",
                "/a".repeat(depth)
            ),
        );
    }
    for depth in 1..=arguments {
        let deep = format!("b{}", ".b".repeat(depth - 1));
        add(
            &mut index,
            1,
            &format!("{common},path_namespace='/a',arg0namespace='{deep}'"),
        );
        let deep = "/c".repeat(depth);
        add(
            &mut index,
            1,
            &format!("{common},path_namespace='/a',arg1path='{deep}/'"),
        );
    }
    for name in 0..names {
        let rule =
            format!("interface='org.example.A',sender='n.a{name}',path_namespace='/a',arg0namespace='b'");
        add(&mut index, 2, &rule);
    }
    index
}

#[test]
fn depths_and_names_are_not_multiplied() {
    let names = leaked(400);
    let mut deep = Sample::signal(
        &"/a".repeat(401),
        &[&format!("b{}", ".b".repeat(200)), &"/c".repeat(200)],
    );
    deep.senders = names.clone();
    let mut shallow = Sample::signal("/a/b/c", &["b.c", "/c/d"]);
    shallow.senders = vec![":1.1", "n.a0"];
    let small = product(50, 15, 50);
    let large = product(400, 120, 400);
    for (sample, is_deep) in [(&deep, true), (&shallow, false)] {
        let [small, large] = [&small, &large].map(|index| {
            let Effort { look_ups, candidates } = sample.effort(index);
            look_ups + candidates
        });
        if is_deep {
            assert!(large <= 10 * small && large < 4_000, "{small} {large}");
        } else {
            assert!(large == small && large < 30, "{small} {large}");
        }
    }
    // Wherever the message differs at once, it is cheap however long it is.
    let mut other = Sample::signal(&"/z".repeat(401), &["z.b.b"]);
    other.senders = names;
    assert!(other.effort(&large).look_ups < 1_000);
}

#[test]
fn a_shorter_path_in_a_message_costs_a_question_for_each_peer() {
    let mut sample = Sample::signal("/", &[]);
    sample.args = vec![Argument::Path("/".into())];
    for (peers, count) in [(1, 100), (1, 800), (10, 100), (10, 800)] {
        let mut index = index();
        for n in 0..count {
            add(
                &mut index,
                n % peers,
                &format!("interface='org.example.A',arg0path='/n{n}/'"),
            );
            add(
                &mut index,
                n % peers,
                &format!("interface='org.example.B',arg0path='/n{n}/'"),
            );
        }
        assert_eq!(sample.matching(&index).len(), peers as usize);
        let Effort { look_ups, candidates } = sample.effort(&index);
        assert_eq!(
            (look_ups - 2 * (peers + 1) <= 2, candidates),
            (true, peers),
            "{look_ups}"
        );
    }
}

/// What others' rules name is met as far as the sender has names, and what the sender has as far as rules name any.
#[test]
fn names_cost_the_fewer_of_both_sides() {
    let names = leaked(500);
    for (named, owned, most) in [(5, 500, 7), (5_000, 3, 6), (5_000, 500, 502)] {
        let mut index = index();
        for n in 0..named {
            add(&mut index, 0, &format!("member='Changed',sender='other.a{n}'"));
        }
        let mut sample = sample();
        sample.senders = names[..owned].to_vec();
        assert_eq!(sample.matching(&index), []);
        let effort = sample.effort(&index);
        assert!(
            effort.look_ups + effort.candidates <= 2 * most,
            "{named} {owned} {effort:?}"
        );
    }
}

#[test]
fn what_can_never_match_a_broadcast_is_not_met() {
    let mut index = MatchIndex::new(1, Scope::Broadcasts);
    for n in 0..100 {
        add(&mut index, 0, &format!("type='error',arg1='own1',arg2='{n}'"));
        add(&mut index, 0, &format!("destination=':1.{n}',arg1='own1'"));
    }
    let mut sample = sample();
    sample.destinations = vec![];
    assert_eq!(sample.effort(&index), Effort::default());
    index.remove_peer(peer(0), |_| {});
    check_is_empty(&index);
}

/// A text of any length costs no more than the longest value that a rule can have.
#[test]
fn long_values_are_cheap() {
    let mut index = index();
    add(&mut index, 1, "path_namespace='/a/a',arg0namespace='b.b'");
    add(&mut index, 2, &format!("arg1path='{}'", "c/".repeat(500)));
    add(&mut index, 3, "arg1='c'");
    let sample = Sample::signal(
        &"/a".repeat(200_000),
        &[&"b.".repeat(200_000), &"c/".repeat(200_000)],
    );
    assert_eq!(sample.matching(&index), [peer(1), peer(2)]);
    let hasher = Hasher::new(1);
    for (namespace, text) in [
        (Namespace::PATH, "/a"),
        (Namespace::ARG0, "b."),
        (Namespace::argument_path(1), "c/"),
    ] {
        let long = text.repeat(200_000);
        assert_eq!(hasher.prefixes(namespace, &long, 2).len(), 3);
        assert!(hasher.prefixes(namespace, &long, u16::MAX).len() <= 1_025);
        assert!(hasher.prefixes(namespace, &"x".repeat(200_000), u16::MAX).len() <= 2);
    }
    assert!(sample.effort(&index).look_ups < 10);
}

/// Adds a rule if it is admitted.
fn offer(index: &mut MatchIndex, user: u32, who: u32, text: &str) -> bool {
    let rule = rule(text);
    let is_admitted = index.admits(Some(user), std::slice::from_ref(&rule));
    if is_admitted {
        index.add(peer(who), Some(user), rule, 0);
    }
    is_admitted
}

/// The n-th of many sets of keys, all with the message's values but the last.
fn various(n: u32) -> String {
    let own = (0..14).filter(|bit| n & (1 << bit) != 0);
    let mut text: String = own
        .map(|bit| format!("arg{}='own{}',", bit + 10, bit + 10))
        .collect();
    text.push_str("member='No'");
    text
}

#[test]
fn the_sets_of_keys_of_a_user_are_limited() {
    let mut index = index();
    let mut admitted = 0;
    for n in 1..3 * MAX_FORMS {
        admitted += u32::from(offer(&mut index, 1, n % 10, &various(n)));
    }
    assert_eq!(admitted, MAX_FORMS);
    let effort = sample().effort(&index);
    assert!(
        effort.look_ups <= MAX_FORMS && effort.candidates == 0,
        "{effort:?}"
    );
    // Who sends fewer arguments does not even meet these forms.
    assert_eq!(
        Sample::signal("/", &["a", "b", "c"]).effort(&index),
        Effort::default()
    );
    // The user's usual rules, more rules with these keys, and other users are not hindered.
    for text in [
        "",
        "sender='a.b',member='M',path_namespace='/a/b'",
        "type='signal',arg0='x',path='/'",
        &various(1),
    ] {
        assert!(offer(&mut index, 1, 3, text), "{text}");
    }
    assert!(offer(&mut index, 1, 3, &various(1).replace("No", "Other")));
    assert!(offer(&mut index, 2, 20, &various(MAX_FORMS + 7)));
    assert!(!offer(&mut index, 1, 3, &various(MAX_FORMS + 7)));
    // What one removes, another of the same user may have.
    assert_eq!(index.remove(peer(2), &rule(&various(2))), Some(0));
    assert!(offer(&mut index, 1, 3, &various(MAX_FORMS + 7)));
    assert!(!offer(&mut index, 1, 3, &various(MAX_FORMS + 8)));
    for who in (0..10).chain([20]) {
        index.remove_peer(peer(who), |_| {});
    }
    check_is_empty(&index);
    // Many at once are counted together.
    let rules: Vec<MatchRule> = (1..=MAX_FORMS + 1).map(|n| rule(&various(n))).collect();
    assert!(index.admits(USER, &rules[1..]) && !index.admits(USER, &rules));
}

/// A peer's rules that overlap with a shorter path in a message, and differ from it in something else.
#[test]
fn rules_that_only_overlap_are_limited() {
    for other in ["arg1path='/no/'", "sender='no.no'"] {
        let mut index = index();
        let mut admitted = 0;
        for n in 0..3 * MAX_OVERLAPS {
            admitted += u32::from(offer(
                &mut index,
                1,
                n % 10,
                &format!("arg0path='/n{n}/',{other}"),
            ));
        }
        let paths = if other.starts_with("arg") { 2 } else { 1 };
        assert_eq!(admitted, MAX_OVERLAPS / paths);
        let sample = Sample::signal("/", &["/", "/yes/"]);
        assert_eq!(sample.matching(&index), []);
        let effort = sample.effort(&index);
        assert!(
            effort.candidates <= MAX_OVERLAPS && effort.look_ups < 100,
            "{effort:?}"
        );
        // Without anything else they are as many as the peer likes.
        for n in 0..3 * MAX_OVERLAPS {
            assert!(offer(&mut index, 1, 0, &format!("arg0path='/n{n}/'")));
        }
        for who in 0..10 {
            index.remove_peer(peer(who), |_| {});
        }
        check_is_empty(&index);
    }
}

/// Instructions of one operation with so many rules; `docs/performance.md` says how to run it.
#[test]
#[ignore = "to be run under callgrind"]
fn instructions() {
    let number = |name: &str| -> u32 {
        let text = std::env::var(name).unwrap_or_default();
        text.parse()
            .unwrap_or_else(|error| panic!("{name}={text}: {error}"))
    };
    let (rules, kind) = (number("RULES"), number("KIND") as usize);
    let mut index = index();
    let chosen: Vec<Kind> = match KINDS.get(kind) {
        Some(kind) => vec![*kind],
        None => KINDS.to_vec(),
    };
    for kind in &chosen {
        fill(&mut index, "eavesdrop='true'", *kind, rules / chosen.len() as u32);
    }
    let sample = sample();
    assert_eq!(sample.matching(&index), []);
    let first = chosen[0].1;
    sample.with_facts(|facts| measured_match(&index, facts));
    let texts: Vec<MatchRule> = (0..100).map(|n| rule(&first(10_000_000 + n))).collect();
    measured_change(&mut index, &texts);
    measured_leave(&mut index);
}

#[inline(never)]
fn measured_match(index: &MatchIndex, facts: &Facts<'_>) {
    let mut peers = Vec::new();
    for _ in 0..100 {
        index.matching(facts, &mut peers);
    }
    assert!(peers.is_empty());
}

#[inline(never)]
fn measured_change(index: &mut MatchIndex, rules: &[MatchRule]) {
    for rule in rules {
        index.add(peer(500), USER, rule.clone(), 0);
    }
    for rule in rules {
        assert_eq!(index.remove(peer(500), rule), Some(0));
    }
}

#[inline(never)]
fn measured_leave(index: &mut MatchIndex) {
    index.remove_peer(peer(0), |_| {});
}
