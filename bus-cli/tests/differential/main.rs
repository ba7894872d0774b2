//! The same odd input to dbus-daemon and to this bus. Where the two do not do the same, the difference is a row of the
//! table in docs/conformance.md: what is not listed there is a defect, and so is a row that is not true any more.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod authentication;
mod calls;
mod messages;
mod rules;
#[path = "../support/mod.rs"]
mod support;
mod wire;

use bus_load::peers;
use std::collections::{BTreeMap, BTreeSet};
use support::Bus;
use wire::Transcript;

/// Rows of the table that the cases here show, and the beginnings of the names of those cases.
const SHOWN: &[(&str, &[&str])] = &[
    (
        "text behind the number of a `<limit>`, `min_fds` or `max_fds` (`5abc`, `5.9`)",
        &["ReloadConfig: text behind the number of a limit"],
    ),
    (
        "`StartServiceByName` of a name that is owned, and that no service file has",
        &["start an owned name"],
    ),
    ("a call with NO_REPLY_EXPECTED", &["no reply: "]),
    (
        "a unique name without a period, or with an empty element (`:1`, `:`, `:.a`)",
        &[
            "rule: sender=':'",
            "rule: sender=':1'",
            "rule: destination=':1'",
            "rule: arg0namespace=':'",
            "rule: arg0namespace=':1'",
            "header: destination :1",
            "header: sender :1",
            "header: destination : ",
            "header: sender : ",
        ],
    ),
    (
        "a method return, error or signal to a name that nobody owns",
        &["to nobody: "],
    ),
    ("a message of an unknown type", &["unknown type "]),
    ("header field 10", &["header: field 10 "]),
    ("another message than `Hello` first", &["before Hello: "]),
    (
        "`UpdateActivationEnvironment` with a name that is empty or has a `=` in it",
        &["environment: "],
    ),
    (
        "`AUTH EXTERNAL` with an identity that is not plain decimal digits",
        &["sasl: identity "],
    ),
];

/// Rows of the table that are shown elsewhere: in the tests of the broker, the driver, the daemon's surroundings, or by
/// reading.
const ELSEWHERE: &[&str] = &[
    "match rules of one user with more than 2,048 unusual sets of keys, or 4,096 `argNpath` beside another namespace or a well-known name",
    "`GetAllMatchRules` where the rules of all connections are longer than 2 MiB",
    "`BecomeMonitor` with filters that are longer than 1 MiB",
    "unicast messages to a receiver of which much waits already",
    "signals that a live receiver of another user does not read as fast",
    "`RequestName`, `ReleaseName` and `Hello` of a user whose names are announced faster than a live subscriber reads",
    "replies beyond the limit of a caller's queue (or beyond its share of descriptors)",
    "a signal that is to wait for more than a second, whose sender has hung up",
    "a subscriber that stops reading",
    "`RemoveMatch` with rules that differ only in `path_namespace`",
    "a message that passes 128 MiB once the sender is stamped",
    "the process id of the bus",
    "`org.busdaemon.Restart1`",
    "`org.busdaemon.Policy1`",
    "`<allow group>`, `<deny group>` (who may connect)",
    "a peer whose uid the user data base does not know",
    "a reply that the policy denies",
    "a call or signal that carries the `REPLY_SERIAL` of an open call",
    "a denied return, error, or call with NO_REPLY_EXPECTED",
    "the text of a denial",
    "file descriptors beyond those that a message claims",
    "the descriptors of one message, in several sends",
    "match rules that name a unique name which has gone",
    "the order of a peer's rules in `GetAllMatchRules`",
    "an unknown `<auth>` mechanism",
    "a configuration without `<listen>`, and an `--address`",
    "an address that has a key twice",
    "socket files when one of several listeners cannot be had",
    "a limit of the size of files (`ulimit -f`)",
    "`UpdateActivationEnvironment` beyond 256 KiB in all",
    "memory that runs short",
    "connections that have not said `Hello`, beyond `max_incomplete_connections`",
    "a header of more than 1 MiB with unknown fields, or with a sender",
    "a message with descriptors for which there is no room",
    "the copy of a `BecomeMonitor` for whoever overhears it",
    "a header that says that its fields are longer than 64 MiB",
    "an error for a call without a destination",
    "`tcp:port=99999`",
    "a nonce that comes in pieces",
    "a peer of a `nonce-tcp:` listener that says nothing",
    "the file with the nonce, at the end",
    "a keyring's lock that was left behind",
    "`AUTH DBUS_COOKIE_SHA1` of another user than the bus's own, where the bus is root's",
    "default values of attributes in a document type (`<!ATTLIST>`)",
    "entities of other files",
    "`max_incoming_bytes`",
    "descriptors of a message that arrives in parts, beyond `max_incoming_unix_fds`",
];

/// All cases on one bus.
fn transcripts(bus: &Bus) -> BTreeMap<String, Transcript> {
    let mut all = BTreeMap::new();
    let played = [
        calls::play(bus),
        messages::play(bus),
        rules::play(bus),
        authentication::play(bus),
    ];
    for (name, transcript) in played.into_iter().flatten() {
        assert!(
            all.insert(name.clone(), transcript).is_none(),
            "{name} is there twice"
        );
    }
    all
}

#[test]
fn only_what_is_listed_is_different() {
    let Some(reference) = peers::find("dbus-daemon").unwrap() else {
        return;
    };
    const AUTH: &str = "<auth>ANONYMOUS</auth>";
    let expected = transcripts(&Bus::start_other(&reference, AUTH));
    let found = transcripts(&Bus::start_with(AUTH));
    assert!(expected.keys().eq(found.keys()));
    let mut unseen: BTreeSet<&str> = SHOWN.iter().map(|(row, _)| *row).collect();
    let mut defects = Vec::new();
    for (name, theirs) in &expected {
        let ours = &found[name];
        if theirs == ours {
            continue;
        }
        let row = SHOWN
            .iter()
            .find(|(_, cases)| cases.iter().any(|case| name.starts_with(case)));
        match row {
            Some((row, _)) => drop(unseen.remove(row)),
            None => defects.push(format!("{name}\n  dbus-daemon: {theirs:?}\n  here: {ours:?}")),
        }
    }
    assert!(
        defects.is_empty(),
        "{} of {} cases differ and are not listed:\n{}",
        defects.len(),
        expected.len(),
        defects.join("\n")
    );
    assert!(unseen.is_empty(), "listed, but not different: {unseen:?}");
}

#[test]
fn the_list_is_the_table_of_the_documentation() {
    let text = include_str!("../../../docs/conformance.md");
    let (_, table) = text.split_once("## Differences from dbus-daemon").unwrap();
    let rows = table.lines().filter(|line| line.starts_with('|')).skip(2);
    let first = |line: &str| line.split('|').nth(1).unwrap().trim().to_owned();
    let written: Vec<String> = rows.map(first).collect();
    let listed = SHOWN.iter().map(|(row, _)| *row).chain(ELSEWHERE.iter().copied());
    let mut listed: Vec<&str> = listed.collect();
    listed.sort_unstable();
    let mut sorted: Vec<&str> = written.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    assert_eq!(sorted, listed);
}
