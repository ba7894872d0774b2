//! The driver against the specification ("Message Bus Messages") and the answers of the reference implementation.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_daemon::broker::{Attested, Credentials, MachineId};
use bus_daemon::config::Config;
use bus_wire::{Fd, Flags, Mechanism, MessageBuilder};
use support::driver::{
    MONITORING, POLICY, PROPERTIES, RESTART, STATS, array, ask, dictionary, drop_ref, in_short, pairs,
    request,
};
use support::{Bus, DRIVER, OWN_UID, PATH, session, short, shorts};

#[test]
fn hello_is_answered_before_its_signal() {
    let mut bus = Bus::new();
    let peer = bus.connect();
    bus.send(
        peer,
        MessageBuilder::method_call("/any", "Hello").destination(DRIVER),
    );
    let messages = bus.read(peer);
    assert_eq!(shorts(&messages), ["reply 1 :1.0", "NameAcquired :1.0"]);
    for message in &messages {
        assert_eq!(
            (message.sender(), message.destination()),
            (Some(DRIVER), Some(":1.0"))
        );
        assert_eq!(message.flags(), Flags::NO_REPLY_EXPECTED);
    }
    assert_eq!(messages[1].path(), Some(PATH));
    assert_eq!(ask(&mut bus, peer, "Hello", &[]), "error Failed");
}

#[test]
fn what_can_be_called_where() {
    let mut bus = Bus::new();
    let peer = bus.join();
    let mut call = |path: &str, interface: &str, member: &str| {
        let mut call = MessageBuilder::method_call(path, member).destination(DRIVER);
        if !interface.is_empty() {
            call = call.interface(interface);
        }
        in_short(&bus.call_with(peer, call))
    };
    assert_eq!(call(PATH, DRIVER, "Nope"), "error UnknownMethod");
    assert_eq!(call(PATH, "a.b", "ListNames"), "error UnknownInterface");
    assert_eq!(call("/x", "", "ListNames"), "reply <as>");
    assert_eq!(call("/x", "", "BecomeMonitor"), "error UnknownMethod");
    assert_eq!(call("/x", MONITORING, "BecomeMonitor"), "error UnknownInterface");
    assert_eq!(call("/x", STATS, "GetStats"), "error UnknownInterface");
    assert_eq!(call(PATH, "", "GetStats"), "reply <a{sv}>");
    assert_eq!(call("/x", PROPERTIES, "GetAll"), "error UnknownInterface");
    assert_eq!(call("/x", "", "Ping"), "reply");
    assert_eq!(
        call("/x", "org.freedesktop.DBus.Peer", "Nope"),
        "error UnknownMethod"
    );
    assert_eq!(
        call("/x", "", "GetMachineId"),
        "reply 0123456789abcdef0123456789abcdef"
    );
    assert_eq!(
        call("/x", DRIVER, "UpdateActivationEnvironment"),
        "error AccessDenied"
    );
    assert_eq!(
        call(PATH, DRIVER, "UpdateActivationEnvironment"),
        "error InvalidArgs"
    );
    assert_eq!(call("/x", RESTART, "Upgrade"), "error UnknownInterface");
    assert_eq!(call("/x", DRIVER, "RequestName"), "error InvalidArgs");
    assert_eq!(call("/x", DRIVER, "GetId"), format!("reply {}", "ab".repeat(16)));
}

#[test]
fn peer_needs_no_destination() {
    let mut bus = Bus::new();
    let peer = bus.join();
    let ping = MessageBuilder::method_call("/", "Ping").interface("org.freedesktop.DBus.Peer");
    assert_eq!(in_short(&bus.call_with(peer, ping)), "reply");
}

#[test]
fn no_reply_is_sent_where_none_is_expected() {
    let mut bus = Bus::new();
    let peer = bus.join();
    for member in ["ListNames", "Nope"] {
        let call = MessageBuilder::method_call(PATH, member)
            .destination(DRIVER)
            .flags(Flags::NO_REPLY_EXPECTED);
        bus.send(peer, call);
    }
    assert_eq!(shorts(&bus.read(peer)), [""; 0]);
}

#[test]
fn other_messages_are_ignored() {
    let mut bus = Bus::new();
    let peer = bus.join();
    bus.send(
        peer,
        MessageBuilder::signal(PATH, DRIVER, "Hello").destination(DRIVER),
    );
    bus.send(peer, MessageBuilder::method_return(1_u32).destination(DRIVER));
    bus.send(peer, MessageBuilder::error("a.b", 1_u32).destination(DRIVER));
    assert_eq!(shorts(&bus.read(peer)), [""; 0]);
    assert!(!bus.is_gone(peer));
}

#[test]
fn match_rules() {
    let mut config = session();
    config.limits.max_match_rules_per_connection = 2;
    let mut bus = Bus::with_config(config);
    let peer = bus.join();
    let long = format!("arg0='{}'", "x".repeat(2000));
    for (rule, expected) in [
        ("foo", "error MatchRuleInvalid"),
        ("type='foo'", "error MatchRuleInvalid"),
        ("arg64='x'", "error MatchRuleInvalid"),
        ("path='/a',path_namespace='/b'", "error MatchRuleInvalid"),
        (&long, "error LimitsExceeded"),
    ] {
        assert_eq!(ask(&mut bus, peer, "AddMatch", &[rule]), expected, "{rule}");
        assert_eq!(ask(&mut bus, peer, "RemoveMatch", &[rule]), expected, "{rule}");
    }
    assert_eq!(
        ask(&mut bus, peer, "RemoveMatch", &["member='A'"]),
        "error MatchRuleNotFound"
    );
    assert_eq!(
        ask(&mut bus, peer, "AddMatch", &["member='A',path='/a'"]),
        "reply"
    );
    assert_eq!(ask(&mut bus, peer, "AddMatch", &["path=/a,member=A"]), "reply");
    assert_eq!(
        ask(&mut bus, peer, "AddMatch", &["member='B'"]),
        "error LimitsExceeded"
    );
    // CVE-2006-6107
    let other = bus.join();
    assert_eq!(
        ask(&mut bus, other, "RemoveMatch", &["path='/a',member='A'"]),
        "error MatchRuleNotFound"
    );
    for expected in ["reply", "reply", "error MatchRuleNotFound"] {
        assert_eq!(
            ask(&mut bus, peer, "RemoveMatch", &["path='/a',member='A'"]),
            expected
        );
    }
}

fn become_monitor(rules: &[&str], flags: u32) -> MessageBuilder<'static> {
    let rules: Vec<String> = rules.iter().map(|rule| (*rule).to_owned()).collect();
    MessageBuilder::method_call(PATH, "BecomeMonitor")
        .interface(MONITORING)
        .destination(DRIVER)
        .body(|w| {
            w.str_array(rules.iter().map(String::as_str)).u32(flags);
        })
}

#[test]
fn a_monitor_has_no_names_and_sees_all() {
    let mut bus = Bus::new();
    let (watcher, monitor, peer) = (bus.join(), bus.join(), bus.join());
    bus.call_with(monitor, request("m.m", 0));
    ask(&mut bus, watcher, "AddMatch", &["member='NameOwnerChanged'"]);
    assert_eq!(
        in_short(&bus.call_with(monitor, become_monitor(&["foo"], 0))),
        "error MatchRuleInvalid"
    );
    assert_eq!(
        in_short(&bus.call_with(monitor, become_monitor(&[], 1))),
        "error InvalidArgs"
    );
    bus.send(monitor, become_monitor(&[], 0));
    assert_eq!(short(&bus.read(monitor)[0]), "reply 5");
    assert_eq!(
        shorts(&bus.read(watcher)),
        ["NameOwnerChanged m.m :1.1 ''", "NameOwnerChanged :1.1 :1.1 ''"]
    );
    assert_eq!(ask(&mut bus, peer, "NameHasOwner", &[":1.1"]), "reply false");
    assert_eq!(shorts(&bus.read(monitor)), ["NameHasOwner :1.1", "reply 2 false"]);
    assert_eq!(ask(&mut bus, peer, "Nope", &[]), "error UnknownMethod");
    assert_eq!(shorts(&bus.read(monitor)), ["Nope", "error 3 UnknownMethod"]);
    bus.send(
        monitor,
        MessageBuilder::method_call(PATH, "ListNames").destination(DRIVER),
    );
    assert!(bus.is_gone(monitor));
}

#[test]
fn monitoring_is_for_the_privileged() {
    let mut bus = Bus::new();
    for (uid, expected) in [
        (Some(0), "reply"),
        (Some(OWN_UID), "reply"),
        (Some(OWN_UID + 1), "error AccessDenied"),
    ] {
        let peer = bus.connect_as(Credentials {
            uid,
            gid: None,
            pid: Some(1),
        });
        bus.greet(peer);
        let serial = bus.send(peer, become_monitor(&["type='error'"], 0));
        let first = bus
            .read(peer)
            .into_iter()
            .find(|message| message.reply_serial().is_some())
            .unwrap();
        assert_eq!(
            (first.reply_serial().unwrap().get(), in_short(&first).as_str()),
            (serial, expected)
        );
    }
}

#[test]
fn credentials() {
    let mut bus = Bus::new();
    let peer = bus.join();
    let other = bus.connect_attested(Attested {
        credentials: Credentials {
            uid: Some(OWN_UID),
            gid: Some(100),
            pid: Some(4711),
        },
        groups: Some(vec![100, 7, 100, 20]),
        label: Some(b"unconfined".to_vec()),
    });
    bus.greet(other);
    bus.system.pidfd = Some(Fd(33));
    let reply = bus.call(peer, DRIVER, "GetConnectionCredentials", |w| {
        drop_ref(w.str(":1.1"))
    });
    assert_eq!(
        pairs(&dictionary(&reply)),
        [
            ("ProcessID", "4711"),
            ("UnixUserID", "1000"),
            ("UnixGroupIDs", "[7, 20, 100]"),
            ("LinuxSecurityLabel", &format!("{:?}", b"unconfined\0")),
            ("ProcessFD", "fd 0"),
        ]
    );
    assert_eq!(reply.unix_fds(), 1);
    let asked = bus.system.asked;
    let reply = bus.call(peer, DRIVER, "GetConnectionCredentials", |w| {
        drop_ref(w.str(DRIVER))
    });
    assert_eq!(
        pairs(&dictionary(&reply)),
        [("ProcessID", "42"), ("UnixUserID", "1000")]
    );
    for (member, of_peer, of_driver, of_nobody) in [
        (
            "GetConnectionUnixUser",
            "reply 1000",
            "reply 1000",
            "error NameHasNoOwner",
        ),
        (
            "GetConnectionUnixProcessID",
            "reply 4711",
            "reply 42",
            "error NameHasNoOwner",
        ),
        (
            "GetAdtAuditSessionData",
            "error AdtAuditDataUnknown",
            "error AdtAuditDataUnknown",
            "error NameHasNoOwner",
        ),
        (
            "GetConnectionSELinuxSecurityContext",
            "error SELinuxSecurityContextUnknown",
            "error SELinuxSecurityContextUnknown",
            "error NameHasNoOwner",
        ),
    ] {
        assert_eq!(ask(&mut bus, peer, member, &[":1.1"]), of_peer, "{member}");
        assert_eq!(ask(&mut bus, peer, member, &[DRIVER]), of_driver, "{member}");
        assert_eq!(ask(&mut bus, peer, member, &["no.such"]), of_nobody, "{member}");
    }
    assert_eq!(
        ask(&mut bus, peer, "GetConnectionCredentials", &["no.such"]),
        "error NameHasNoOwner"
    );
    assert_eq!(
        bus.system.asked, asked,
        "the system is asked only for what is needed"
    );
    assert!(!bus.is_gone(other));
}

#[test]
fn an_anonymous_peer_has_a_process_and_nothing_else() {
    let mut bus = Bus::with_config(Config {
        auth: vec![Mechanism::Anonymous, Mechanism::External],
        allow_anonymous: true,
        ..session()
    });
    let credentials = Credentials {
        uid: Some(1000),
        gid: Some(100),
        pid: Some(4711),
    };
    let attested = Attested {
        credentials,
        groups: Some(vec![100]),
        label: Some(b"unconfined".to_vec()),
    };
    let anonymous = bus.connect_with(attested, "ANONYMOUS");
    bus.greet(anonymous);
    let peer = bus.join();
    bus.system.pidfd = Some(Fd(33));
    let reply = bus.call(peer, DRIVER, "GetConnectionCredentials", |w| {
        drop_ref(w.str(":1.0"))
    });
    assert_eq!(pairs(&dictionary(&reply)), [("ProcessID", "4711")]);
    for (member, answer) in [
        ("GetConnectionUnixUser", "error Failed"),
        ("GetConnectionUnixProcessID", "reply 4711"),
    ] {
        assert_eq!(ask(&mut bus, peer, member, &[":1.0"]), answer, "{member}");
    }
}

#[test]
fn a_machine_without_an_id_is_asked_for_it_each_time() {
    let machine_id = |bus: &mut Bus, peer| {
        let reply = bus.call(peer, "org.freedesktop.DBus.Peer", "GetMachineId", |_| ());
        in_short(&reply)
    };
    let mut bus = Bus::on_machine("", session());
    let peer = bus.join();
    for (found, answer) in [
        (MachineId::Missing, "error FileNotFound"),
        (MachineId::Invalid, "error InvalidFileContent"),
        (
            MachineId::Found("00ff".repeat(8)),
            "reply 00ff00ff00ff00ff00ff00ff00ff00ff",
        ),
    ] {
        bus.system.machine_id = found;
        assert_eq!(machine_id(&mut bus, peer), answer);
    }
    assert_eq!(bus.system.asked, 3);
    let mut bus = Bus::new();
    let peer = bus.join();
    assert_eq!(
        machine_id(&mut bus, peer),
        "reply 0123456789abcdef0123456789abcdef"
    );
    assert_eq!(bus.system.asked, 0);
}

#[test]
fn properties() {
    let mut bus = Bus::new();
    let peer = bus.join();
    let mut get = |interface: &str, name: &str| {
        bus.call(peer, PROPERTIES, "Get", |w| drop_ref(w.str(interface).str(name)))
    };
    let features = get(DRIVER, "Features")
        .body()
        .enter_variant()
        .map(|mut value| array(&mut value));
    assert_eq!(
        features.unwrap(),
        ["ActivatableServicesChanged", "HeaderFiltering"]
    );
    let interfaces = get(DRIVER, "Interfaces")
        .body()
        .enter_variant()
        .map(|mut value| array(&mut value));
    assert_eq!(interfaces.unwrap(), [MONITORING, STATS, RESTART, POLICY]);
    assert_eq!(in_short(&get(DRIVER, "Nope")), "error UnknownProperty");
    assert_eq!(in_short(&get("a.b", "Nope")), "error UnknownInterface");
    assert_eq!(in_short(&get("", "Features")), "error UnknownInterface");
    assert_eq!(
        in_short(&get("org.freedesktop.DBus.Peer", "Features")),
        "error UnknownProperty"
    );
    let mut set = |interface: &str, name: &str| {
        let reply = bus.call(peer, PROPERTIES, "Set", |w| {
            w.str(interface).str(name).variant("u", |w| drop_ref(w.u32(1)));
        });
        in_short(&reply)
    };
    assert_eq!(set(DRIVER, "Features"), "error PropertyReadOnly");
    assert_eq!(set(DRIVER, "Nope"), "error UnknownProperty");
    assert_eq!(set("a.b", "Nope"), "error UnknownInterface");
    let mut all = |interface: &str| bus.call(peer, PROPERTIES, "GetAll", |w| drop_ref(w.str(interface)));
    assert_eq!(
        pairs(&dictionary(&all(DRIVER))),
        [("Features", "<as>"), ("Interfaces", "<as>")]
    );
    assert_eq!(pairs(&dictionary(&all(STATS))), []);
    assert_eq!(in_short(&all("a.b")), "error UnknownInterface");
}

#[test]
fn stats_have_every_key() {
    let mut bus = Bus::new();
    let (peer, other) = (bus.join(), bus.join());
    bus.connect();
    ask(&mut bus, other, "AddMatch", &["type=signal,member=A"]);
    ask(&mut bus, other, "AddMatch", &["path='/a'"]);
    ask(&mut bus, other, "RemoveMatch", &["path='/a'"]);
    bus.call_with(other, request("x.y", 0));
    let reply = dictionary(&bus.call(peer, STATS, "GetStats", |_| ()));
    let expected = [
        ("ListMemPoolUsedBytes", "0"),
        ("ListMemPoolCachedBytes", "0"),
        ("ListMemPoolAllocatedBytes", "0"),
        ("ActiveConnections", "2"),
        ("IncompleteConnections", "1"),
        ("MatchRules", "1"),
        ("PeakMatchRules", "2"),
        ("PeakMatchRulesPerConnection", "2"),
        ("BusNames", "3"),
        ("PeakBusNames", "3"),
        ("PeakBusNamesPerConnection", "2"),
        // Of a journal, which this bus has none of.
        ("org.busdaemon.JournalLogBytes", "0"),
        ("org.busdaemon.JournalExtentBytes", "0"),
        ("org.busdaemon.JournalCheckpointBytes", "0"),
        ("org.busdaemon.StoreBytes", "0"),
        ("org.busdaemon.MemoryCap", "0"),
        ("org.busdaemon.MemoryHeld", "4608"),
        ("org.busdaemon.QueuedBytes", "0"),
        ("org.busdaemon.InputBytes", "0"),
        ("org.busdaemon.StateBytes", "4608"),
        ("org.busdaemon.EnvironmentBytes", "0"),
        ("org.busdaemon.RefusedForMemory", "0"),
        ("org.busdaemon.HeldBackForMemory", "0"),
        ("org.busdaemon.DismissedForMemory", "0"),
    ];
    assert_eq!(pairs(&reply)[0].0, "Serial");
    assert_eq!(pairs(&reply)[1..], expected);
    let reply = dictionary(&bus.call(peer, STATS, "GetConnectionStats", |w| drop_ref(w.str("x.y"))));
    let keys: Vec<&str> = reply.iter().map(|(key, _)| &**key).collect();
    assert_eq!(
        keys,
        [
            "Serial",
            "MatchRules",
            "PeakMatchRules",
            "BusNames",
            "PeakBusNames",
            "UniqueName",
            "IncomingMessages",
            "IncomingBytes",
            "IncomingFDs",
            "PeakIncomingBytes",
            "PeakIncomingFDs",
            "OutgoingMessages",
            "OutgoingBytes",
            "OutgoingFDs",
            "PeakOutgoingBytes",
            "PeakOutgoingFDs",
        ]
    );
    let value = |key: &str| &reply.iter().find(|(found, _)| found == key).unwrap().1;
    assert_eq!(
        [value("UniqueName"), value("MatchRules"), value("BusNames")],
        [":1.1", "1", "2"]
    );
    for (name, expected) in [(DRIVER, "error InvalidArgs"), ("no.such", "error NameHasNoOwner")] {
        let reply = bus.call(peer, STATS, "GetConnectionStats", |w| drop_ref(w.str(name)));
        assert_eq!(in_short(&reply), expected);
    }
    let mut rules = Vec::new();
    let reply = bus.call(peer, STATS, "GetAllMatchRules", |_| ());
    let mut body = reply.body();
    body.read_array(|element| {
        element.read_dict_entry(|entry| {
            let name = entry.read_str()?.to_owned();
            let texts = array(entry);
            rules.push((name, texts));
            Ok(())
        })
    })
    .unwrap();
    assert_eq!(
        rules,
        [
            (":1.0".to_owned(), vec![]),
            (":1.1".to_owned(), vec!["type='signal',member='A'".to_owned()])
        ]
    );
}

#[test]
fn introspection_is_everywhere() {
    let mut bus = Bus::new();
    let peer = bus.join();
    for (path, has_stats) in [(PATH, true), ("/", false), ("/x", false)] {
        let call = MessageBuilder::method_call(path, "Introspect").destination(DRIVER);
        let reply = bus.call_with(peer, call.interface("org.freedesktop.DBus.Introspectable"));
        let xml = reply.body().read_str().unwrap().to_owned();
        assert_eq!(xml.contains(STATS), has_stats);
        assert!(xml.contains("GetConnectionCredentials"));
    }
}

#[test]
fn the_environment_is_for_the_privileged() {
    let mut bus = Bus::new();
    let update = || {
        MessageBuilder::method_call(PATH, "UpdateActivationEnvironment")
            .destination(DRIVER)
            .body(|w| {
                w.array("{ss}", |w| {
                    drop_ref(w.dict_entry(|w| drop_ref(w.str("NAME").str("value"))))
                });
            })
    };
    let peer = bus.join();
    assert_eq!(in_short(&bus.call_with(peer, update())), "reply");
    let stranger = bus.connect_as(Credentials {
        uid: Some(OWN_UID + 1),
        gid: None,
        pid: Some(1),
    });
    bus.greet(stranger);
    assert_eq!(in_short(&bus.call_with(stranger, update())), "error AccessDenied");
}

#[test]
fn the_activation_environment_has_a_limit() {
    let mut bus = Bus::new();
    let peer = bus.join();
    let mut update = |values: &[(&str, usize)]| {
        let reply = bus.call(peer, DRIVER, "UpdateActivationEnvironment", |w| {
            w.array("{ss}", |w| {
                for (name, bytes) in values {
                    w.dict_entry(|w| {
                        w.str(name).str(&"x".repeat(*bytes));
                    });
                }
            });
        });
        in_short(&reply).trim().to_owned()
    };
    assert_eq!(update(&[("A", 200_000)]), "reply");
    assert_eq!(update(&[("B", 10), ("C", 70_000)]), "error LimitsExceeded");
    assert_eq!(update(&[("B", 10), ("A", 100_000)]), "reply");
    assert_eq!(update(&[("C", 70_000)]), "reply");
}
