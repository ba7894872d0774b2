//! The index gives the verdicts of the plain evaluator, for random rules, peers and messages.

use bus_wire::MessageType;
use proptest::prelude::*;
use proptest::test_runner::Config;

use super::reference::{Question, judge};
use crate::policy::compile::{Compiled, Making};
use crate::policy::explain::{Deed, explain};
use crate::policy::rules::{
    Context, Ids, MessageRule, NamePattern, Place, Policy, PolicyBlock, Rule, Subject,
};
use crate::policy::verdict::{Access, Reply, Who};
use crate::policy::vocabulary::Standing;

/// How many random policies a run makes; each is asked [`QUESTIONS`] times.
const POLICIES: u32 = 2_000;
const QUESTIONS: usize = 50;

static NAMES: [&str; 8] = ["a", "a.b", "a.b.c", "a.bc", ":1.1", ":1", "", "x.y"];
static TEXTS: [&str; 3] = ["t.one", "t.two", "t.three"];

fn one_of(all: &'static [&'static str]) -> impl Strategy<Value = Option<String>> {
    prop_oneof![2 => Just(None), 3 => prop::sample::select(all).prop_map(|text| Some(text.to_owned()))]
}

fn message_type() -> impl Strategy<Value = MessageType> {
    prop::sample::select(vec![
        MessageType::MethodCall,
        MessageType::MethodReturn,
        MessageType::Error,
        MessageType::Signal,
    ])
}

fn pattern() -> impl Strategy<Value = NamePattern> {
    prop_oneof![
        1 => Just(NamePattern::Any),
        3 => prop::sample::select(&NAMES[..]).prop_map(|name| NamePattern::Exact(name.into())),
        3 => prop::sample::select(&NAMES[..]).prop_map(|name| NamePattern::Prefix(name.into())),
    ]
}

fn message_rule() -> impl Strategy<Value = MessageRule> {
    let texts = (one_of(&TEXTS), one_of(&TEXTS), one_of(&TEXTS), one_of(&TEXTS));
    let other = prop::option::of(pattern().prop_filter("`*` is none", |other| *other != NamePattern::Any));
    let rest = (prop::option::of(any::<bool>()), any::<bool>(), any::<bool>());
    let fds = prop_oneof![4 => Just((0, u32::MAX)), 1 => (0..3_u32, 0..4_u32)];
    (texts, prop::option::of(message_type()), other, rest, fds).prop_map(
        |((interface, member, error, path), message_type, other, rest, (min_fds, max_fds))| MessageRule {
            interface,
            member,
            error,
            path,
            message_type,
            other,
            broadcast: rest.0,
            requested_reply: rest.1,
            eavesdrop: rest.2,
            min_fds,
            max_fds,
        },
    )
}

fn rule() -> impl Strategy<Value = Rule> {
    let subject = prop_oneof![
        5 => message_rule().prop_map(Subject::Send),
        5 => message_rule().prop_map(Subject::Receive),
        2 => pattern().prop_map(Subject::Own),
    ];
    (any::<bool>(), any::<bool>(), subject).prop_map(|(allow, log, subject)| Rule {
        allow,
        log,
        subject,
        place: Place {
            file: String::new(),
            line: 0,
        },
    })
}

fn block() -> impl Strategy<Value = PolicyBlock> {
    let context = prop_oneof![
        3 => Just(Context::Default),
        2 => prop::sample::select(vec!["g1", "g2", "nobodys"]).prop_map(|group| Context::Group(group.into())),
        2 => prop::sample::select(vec!["u1", "u2", "nobody"]).prop_map(|user| Context::User(user.into())),
        1 => any::<bool>().prop_map(Context::AtConsole),
        1 => Just(Context::Mandatory),
    ];
    (context, prop::collection::vec(rule(), 0..6)).prop_map(|(context, rules)| PolicyBlock { context, rules })
}

fn policy() -> impl Strategy<Value = Policy> {
    prop::collection::vec(block(), 0..7).prop_map(|blocks| {
        let ids = |names: [&str; 2]| (1..).zip(names).map(|(id, name)| (name.to_owned(), id)).collect();
        let ids = Ids {
            users: ids(["u1", "u2"]),
            groups: ids(["g1", "g2"]),
        };
        Policy { blocks, ids }
    })
}

#[derive(Debug, Clone)]
struct Asked {
    kind: u8,
    uid: u32,
    gids: Vec<u32>,
    at_console: bool,
    message_type: MessageType,
    texts: [Option<String>; 4],
    is_broadcast: bool,
    reply: u8,
    eavesdrops: bool,
    fds: u32,
    names: Vec<String>,
}

fn asked() -> impl Strategy<Value = Asked> {
    const SEEN: [&str; 4] = ["t.one", "t.two", "t.three", "t.other"];
    let who = (
        0..3_u8,
        0..4_u32,
        prop::collection::vec(0..4_u32, 0..3),
        any::<bool>(),
    );
    let texts = [one_of(&SEEN), one_of(&SEEN), one_of(&SEEN), one_of(&SEEN)];
    let names = prop::collection::vec(prop::sample::select(&NAMES[..]).prop_map(str::to_owned), 1..4);
    let rest = (any::<bool>(), 0..3_u8, any::<bool>(), 0..4_u32);
    (who, message_type(), texts, names, rest).prop_map(
        |((kind, uid, gids, at_console), message_type, texts, names, rest)| Asked {
            kind,
            uid,
            gids,
            at_console,
            message_type,
            texts,
            is_broadcast: rest.0,
            reply: rest.1,
            eavesdrops: rest.2,
            fds: rest.3,
            names,
        },
    )
}

fn check(policy: &Compiled, asked: &Asked) {
    let [path, interface, member, error_name] = asked.texts.each_ref().map(Option::as_deref);
    let access = Access {
        message_type: asked.message_type,
        path,
        interface,
        member,
        error_name,
        is_broadcast: asked.is_broadcast,
        reply: [Reply::No, Reply::Requested, Reply::Unrequested][asked.reply as usize],
        eavesdrops: asked.eavesdrops,
        fds: asked.fds,
    };
    let who = Who {
        uid: asked.uid,
        gids: &asked.gids,
        at_console: asked.at_console,
    };
    let applicable = policy.applicable(who);
    let mut making = Making::new(policy, &applicable);
    while !making.step(policy, asked.fds + 1) {}
    let index = making.finish();
    let mut standing = Standing::of("x.y", policy.patterns());
    for name in &asked.names {
        standing.add(name, policy.patterns());
    }
    standing.remove("x.y", policy.patterns());
    let deed = match asked.kind {
        0 => Deed::Send(access, &standing),
        1 => Deed::Receive(access, &standing),
        _ => Deed::Own(&asked.names[0]),
    };
    let (question, verdict) = match asked.kind {
        0 => (
            Question::Send(access, &asked.names),
            index.may_send(&access, &standing, policy),
        ),
        1 => (
            Question::Receive(access, &asked.names),
            index.may_receive(&access, &standing, policy),
        ),
        _ => (
            Question::Own(&asked.names[0]),
            index.may_own(&asked.names[0], policy),
        ),
    };
    let expected = judge(policy.policy(), who, question);
    assert_eq!(verdict, expected, "{asked:?}");
    let reasons = explain(policy, &applicable, deed);
    assert_eq!(reasons.len() as u32, expected.matched, "{asked:?}");
    let deciding = reasons
        .iter()
        .filter(|reason| reason.decides)
        .map(|reason| reason.rule);
    assert!(deciding.eq(expected.rule), "{asked:?}");
}

proptest! {
    #![proptest_config(Config { cases: POLICIES, ..Config::default() })]

    /// 100,000 verdicts of 2,000 policies, each with the rule that decided, whether it logs, and how many matched.
    #[test]
    fn the_index_judges_as_the_plain_evaluator(
        policy in policy(),
        asked in prop::collection::vec(asked(), QUESTIONS),
    ) {
        let policy = Compiled::new(policy);
        for asked in &asked {
            check(&policy, asked);
        }
    }
}
