//! The driver: who reads the configuration again and who upgrades the bus, and what the callers are answered.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_daemon::broker::{Action, ConfigRefusal, Credentials, Errand, ErrandOutcome, Event, Start};
use bus_daemon::config::Config;
use bus_wire::MessageBuilder;
use support::driver::{PROPERTIES, RESTART, dictionary, drop_ref, in_short, pairs};
use support::{Bus, DRIVER, OWN_UID, PATH, session, shorts};

#[test]
fn reload_is_answered_when_it_is_done() {
    let mut bus = Bus::new();
    let peer = bus.join();
    bus.actions();
    let reload = || MessageBuilder::method_call(PATH, "ReloadConfig").destination(DRIVER);
    bus.send(peer, reload());
    assert_eq!(bus.actions(), []);
    let read = |bus: &mut Bus, errand, result: Result<Config, ConfigRefusal>| {
        let due = bus.broker.next_deadline().unwrap();
        bus.handle(Event::Tick { now: due });
        assert_eq!(
            bus.actions(),
            [Action::RunErrand {
                id: errand,
                errand: Errand::LoadConfiguration
            }]
        );
        bus.handle(Event::ErrandEnded {
            errand,
            outcome: ErrandOutcome::Configuration(result.map(Into::into)),
            payload: None,
        });
        bus.actions();
    };
    read(&mut bus, 1, Ok(session()));
    assert_eq!(shorts(&bus.read(peer)), ["reply 2"]);
    bus.send(peer, reload());
    let refusal = ConfigRefusal {
        error: "org.freedesktop.DBus.Error.Failed".to_owned(),
        text: "line 3".to_owned(),
    };
    read(&mut bus, 2, Err(refusal));
    assert_eq!(shorts(&bus.read(peer)), ["error 3 Failed"]);
}

fn upgrade(binary: &str) -> MessageBuilder<'static> {
    let binary = binary.to_owned();
    MessageBuilder::method_call(PATH, "Upgrade")
        .interface(RESTART)
        .destination(DRIVER)
        .body(move |w| {
            w.str(&binary);
        })
}

#[test]
fn an_upgrade_is_answered_by_whoever_serves_next() {
    let mut bus = Bus::new();
    let (peer, other) = (bus.join(), bus.join());
    bus.handle(Event::Serving {
        worker_pid: 50,
        start: Start::Clean,
    });
    bus.actions();
    bus.send(peer, upgrade("/new"));
    assert_eq!(
        bus.actions(),
        [Action::RunErrand {
            id: 1,
            errand: Errand::TryBinary {
                binary: "/new".to_owned()
            }
        }]
    );
    assert_eq!(shorts(&bus.read(peer)), [""; 0]);
    let refused = bus.call_with(other, upgrade(""));
    assert_eq!(
        refused.error_name(),
        Some("org.busdaemon.Error.UpgradeInProgress")
    );
    let tried = |errand, verdict| Event::ErrandEnded {
        errand,
        outcome: ErrandOutcome::Trial(verdict),
        payload: None,
    };
    bus.handle(tried(1, Err("not a bus".to_owned())));
    assert_eq!(
        bus.read(peer)[0].error_name(),
        Some("org.busdaemon.Error.UpgradeRefused")
    );
    bus.send(peer, upgrade(""));
    bus.actions();
    bus.handle(tried(2, Ok(())));
    assert_eq!(bus.actions(), [Action::HandOver]);
    bus.handle(Event::Serving {
        worker_pid: 51,
        start: Start::Upgraded { pause: 77 },
    });
    assert_eq!(shorts(&bus.read(peer)), ["reply 3 2"]);
    let all = bus.call(other, PROPERTIES, "GetAll", |w| drop_ref(w.str(RESTART)));
    assert_eq!(
        pairs(&dictionary(&all)),
        [
            ("Generation", "2"),
            ("Recoveries", "0"),
            ("KeeperPID", "42"),
            ("WorkerPID", "51"),
            ("StateVersion", "5"),
            ("LastRestart", "<(stuuu)>"),
        ]
    );
    let last = bus.call(other, PROPERTIES, "Get", |w| {
        drop_ref(w.str(RESTART).str("LastRestart"))
    });
    let last = last.body().read_variant(|value| {
        value.read_struct(|last| {
            let cause = last.read_str()?.to_owned();
            Ok((
                cause,
                last.read_u64()?,
                last.read_u32()?,
                last.read_u32()?,
                last.read_u32()?,
            ))
        })
    });
    assert_eq!(last.unwrap(), ("upgrade".to_owned(), 77, 2, 0, 0));
}

#[test]
fn upgrades_are_for_the_privileged_and_local() {
    let mut bus = Bus::new();
    let stranger = bus.connect_as(Credentials {
        uid: Some(OWN_UID + 1),
        gid: None,
        pid: Some(1),
    });
    bus.greet(stranger);
    assert_eq!(
        in_short(&bus.call_with(stranger, upgrade(""))),
        "error AccessDenied"
    );
    let reply = bus.call(stranger, PROPERTIES, "Get", |w| {
        drop_ref(w.str(RESTART).str("Generation"))
    });
    assert_eq!(in_short(&reply), "reply <v>");
    let remote = bus.connect_as(Credentials {
        uid: Some(0),
        gid: None,
        pid: None,
    });
    bus.greet(remote);
    assert_eq!(
        in_short(&bus.call_with(remote, upgrade(""))),
        "error AccessDenied"
    );
    let reply = bus.call(remote, PROPERTIES, "GetAll", |w| drop_ref(w.str(RESTART)));
    assert_eq!(in_short(&reply), "error AccessDenied");
    let root = bus.connect_as(Credentials {
        uid: Some(0),
        gid: None,
        pid: Some(1),
    });
    bus.greet(root);
    bus.send(root, upgrade(""));
    let trial = Errand::TryBinary {
        binary: String::new(),
    };
    assert!(
        bus.actions()
            .contains(&Action::RunErrand { id: 1, errand: trial })
    );
}
