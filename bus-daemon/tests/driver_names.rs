//! Names: who has which, asking for one, giving it back (specification, "Message Bus Names").
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_daemon::config::Service;
use bus_wire::MessageBuilder;
use support::driver::{ask, drop_ref, in_short, request, strings};
use support::{Bus, DRIVER, PATH, session, shorts};

#[test]
fn names_are_announced_before_the_reply() {
    let mut bus = Bus::new();
    let (a, b) = (bus.join(), bus.join());
    for peer in [a, b] {
        assert_eq!(
            ask(&mut bus, peer, "AddMatch", &["member='NameOwnerChanged'"]),
            "reply"
        );
    }
    bus.send(a, request("x.y", 1));
    assert_eq!(
        shorts(&bus.read(a)),
        ["NameOwnerChanged x.y '' :1.0", "NameAcquired x.y", "reply 3 1"]
    );
    bus.send(b, request("x.y", 2));
    bus.read(b);
    assert_eq!(
        shorts(&bus.read(a)),
        ["NameLost x.y", "NameOwnerChanged x.y :1.0 :1.1"]
    );
    assert_eq!(
        strings(&bus.call(a, DRIVER, "ListQueuedOwners", |w| drop_ref(w.str("x.y")))),
        [":1.1", ":1.0"]
    );
    let release = MessageBuilder::method_call(PATH, "ReleaseName").destination(DRIVER);
    bus.send(b, release.body(|w| drop_ref(w.str("x.y"))));
    let released = shorts(&bus.read(b));
    assert_eq!(released[..2], ["NameLost x.y", "NameOwnerChanged x.y :1.1 :1.0"]);
    assert_eq!(released[2], "reply 4 1");
    assert_eq!(
        shorts(&bus.read(a)),
        ["NameOwnerChanged x.y :1.1 :1.0", "NameAcquired x.y"]
    );
}

#[test]
fn names_that_cannot_be_had() {
    let mut bus = Bus::new();
    let peer = bus.join();
    for name in ["a", "", ":1.0", ":1", DRIVER, "a..b", "1.a"] {
        assert_eq!(
            in_short(&bus.call_with(peer, request(name, 0))),
            "error InvalidArgs",
            "{name}"
        );
        assert_eq!(
            ask(&mut bus, peer, "ReleaseName", &[name]),
            "error InvalidArgs",
            "{name}"
        );
    }
    assert_eq!(ask(&mut bus, peer, "ReleaseName", &["a.b"]), "reply 2");
    assert_eq!(
        in_short(&bus.call_with(peer, request("a.b", 0xffff_fff8))),
        "reply 1"
    );
    assert_eq!(in_short(&bus.call_with(peer, request("a.b", 0))), "reply 4");
    let other = bus.join();
    assert_eq!(ask(&mut bus, other, "ReleaseName", &["a.b"]), "reply 3");
    assert_eq!(in_short(&bus.call_with(other, request("a.b", 4))), "reply 3");
    assert_eq!(in_short(&bus.call_with(other, request("a.b", 0))), "reply 2");
}

#[test]
fn names_are_limited() {
    let mut config = session();
    config.limits.max_names_per_connection = 3;
    let mut bus = Bus::with_config(config);
    let peer = bus.join();
    assert_eq!(in_short(&bus.call_with(peer, request("a.b", 0))), "reply 1");
    assert_eq!(in_short(&bus.call_with(peer, request("a.c", 0))), "reply 1");
    assert_eq!(
        in_short(&bus.call_with(peer, request("a.d", 0))),
        "error LimitsExceeded"
    );
    assert_eq!(in_short(&bus.call_with(peer, request("a.c", 0))), "reply 4");
}

#[test]
fn names_are_listed() {
    let mut bus = Bus::new();
    let (a, b) = (bus.join(), bus.join());
    bus.call_with(b, request("x.y", 0));
    bus.call_with(b, request("a.b", 0));
    assert_eq!(
        strings(&bus.call(a, DRIVER, "ListNames", |_| ())),
        [DRIVER, ":1.0", ":1.1", "a.b", "x.y"]
    );
    for (name, owner) in [("x.y", ":1.1"), (":1.1", ":1.1"), (DRIVER, DRIVER)] {
        assert_eq!(
            ask(&mut bus, a, "GetNameOwner", &[name]),
            format!("reply {owner}")
        );
        assert_eq!(ask(&mut bus, a, "NameHasOwner", &[name]), "reply true");
        let queue = bus.call(a, DRIVER, "ListQueuedOwners", |w| drop_ref(w.str(name)));
        assert_eq!(strings(&queue), [owner]);
        let start = MessageBuilder::method_call(PATH, "StartServiceByName").destination(DRIVER);
        assert_eq!(
            in_short(&bus.call_with(a, start.body(|w| drop_ref(w.str(name).u32(0))))),
            "reply 2"
        );
    }
    for name in ["no.such", ":1.2", ":1.01", ""] {
        assert_eq!(ask(&mut bus, a, "GetNameOwner", &[name]), "error NameHasNoOwner");
        assert_eq!(
            ask(&mut bus, a, "ListQueuedOwners", &[name]),
            "error NameHasNoOwner"
        );
        assert_eq!(ask(&mut bus, a, "NameHasOwner", &[name]), "reply false");
        let start = MessageBuilder::method_call(PATH, "StartServiceByName").destination(DRIVER);
        assert_eq!(
            in_short(&bus.call_with(a, start.body(|w| drop_ref(w.str(name).u32(0))))),
            "error ServiceUnknown"
        );
    }
}

#[test]
fn services_can_be_activated_later() {
    let mut config = session();
    config.services = vec![Service {
        name: "org.example.Lazy".to_owned(),
        exec: vec!["/bin/true".to_owned()],
        user: None,
        systemd_service: None,
        assumed_apparmor_label: None,
        file: "lazy.service".to_owned(),
    }];
    let mut bus = Bus::with_config(config);
    let peer = bus.join();
    let names = bus.call(peer, DRIVER, "ListActivatableNames", |_| ());
    assert_eq!(strings(&names), [DRIVER, "org.example.Lazy"]);
    let start = MessageBuilder::method_call(PATH, "StartServiceByName").destination(DRIVER);
    assert_eq!(
        in_short(&bus.call_with(peer, start.body(|w| drop_ref(w.str("org.example.Lazy").u32(0))))),
        "error Failed"
    );
}
