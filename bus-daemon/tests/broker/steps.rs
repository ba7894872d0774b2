//! What others see between the steps of long work.

use bus_daemon::broker::Event;

use crate::bus::{Bus, Who, config};

/// A bus whose steps are as short as can be, and that does none unless it is told to.
fn bus() -> Bus {
    let mut bus = Bus::new(config(), false);
    bus.broker.set_step(1);
    bus
}

/// The client goes, and the bus does what the shortest step allows.
fn leave(bus: &mut Bus, who: Who) {
    let peer = bus.peer(who);
    bus.hold_steps = true;
    bus.single(Event::Closed {
        peer,
        reason: "end of file",
    });
}

fn step(bus: &mut Bus, who: Who) {
    let peer = bus.peer(who);
    assert!(bus.broker.wants_step(peer));
    bus.single(Event::Step { peer });
}

/// A client with the names a.a, b.b and c.c, and one that hears of names.
fn owner_and_watcher(bus: &mut Bus) -> (Who, Who) {
    let (owner, watcher) = (bus.connect(), bus.connect());
    for name in ["a.a", "b.b", "c.c"] {
        bus.request_name(owner, name, 0);
    }
    bus.add_match(watcher, "member='NameOwnerChanged'");
    bus.read(owner);
    bus.read(watcher);
    (owner, watcher)
}

#[test]
fn names_go_one_by_one_and_the_unique_name_last() {
    let mut bus = bus();
    let (owner, watcher) = owner_and_watcher(&mut bus);
    leave(&mut bus, owner);
    for name in ["c.c", "b.b", "a.a", ":1.0"] {
        bus.restart();
        bus.broker.set_step(1);
        let line = match name {
            ":1.0" => "signal NameOwnerChanged(:1.0, :1.0, ) from bus".to_owned(),
            name => format!("signal NameOwnerChanged({name}, :1.0, ) from bus"),
        };
        bus.expect(watcher, &[&line]);
        if name != ":1.0" {
            step(&mut bus, owner);
        }
    }
    bus.finish();
    assert!(!bus.is_open(owner));
    bus.expect(watcher, &[]);
}

#[test]
fn a_leaver_has_no_link_and_gets_nothing_any_more() {
    let mut bus = bus();
    let (owner, other) = owner_and_watcher(&mut bus);
    let peer = bus.peer(owner);
    bus.add_match(owner, "member='Beat'");
    bus.call(other, ":1.0", "Before");
    bus.read(owner);
    leave(&mut bus, owner);
    assert_eq!(bus.broker.socket(peer), None);
    assert!(bus.is_open(owner), "the index is not free yet");
    bus.signal(other, "Beat");
    assert_eq!(bus.broker.send_queue(peer).map(|queue| queue.len()), Some(0));
    bus.read(other);
    bus.call(other, ":1.0", "After");
    assert_eq!(
        bus.read(other).last().unwrap(),
        "error NoReply(Message recipient disconnected from message bus without replying) from bus to :1.1 re 5",
    );
}

#[test]
fn whoever_asks_for_a_name_of_a_leaver_gets_it() {
    let mut bus = bus();
    let (owner, watcher) = owner_and_watcher(&mut bus);
    leave(&mut bus, owner);
    bus.expect(watcher, &["signal NameOwnerChanged(c.c, :1.0, ) from bus"]);
    // Do not queue: a false EXISTS would be final.
    bus.request_name(watcher, "a.a", 4);
    bus.expect(
        watcher,
        &[
            "signal NameOwnerChanged(a.a, :1.0, ) from bus",
            "signal NameOwnerChanged(a.a, , :1.1) from bus",
            "signal NameAcquired(a.a) from bus to :1.1",
            "return (1) from bus to :1.1 re 3",
        ],
    );
    step(&mut bus, owner);
    bus.expect(watcher, &["signal NameOwnerChanged(b.b, :1.0, ) from bus"]);
    step(&mut bus, owner);
    bus.expect(watcher, &["signal NameOwnerChanged(:1.0, :1.0, ) from bus"]);
    bus.finish();
    assert!(!bus.is_open(owner));
}

#[test]
fn a_message_to_a_name_of_a_leaver_finds_who_comes_next() {
    let mut bus = bus();
    let (owner, watcher) = owner_and_watcher(&mut bus);
    let next = bus.connect();
    bus.request_name(next, "a.a", 0);
    bus.request_name(next, "b.b", 0);
    bus.read(next);
    leave(&mut bus, owner);
    bus.read(watcher);
    bus.call(watcher, "a.a", "Hear");
    bus.expect(
        next,
        &[
            "signal NameAcquired(a.a) from bus to :1.2",
            "call Hear() from :1.1 to a.a",
        ],
    );
    bus.driver(watcher, "GetNameOwner", |w| {
        w.str("b.b");
    });
    let lines = bus.read(watcher);
    assert_eq!(lines.last().unwrap(), "return (:1.2) from bus to :1.1 re 4");
}

#[test]
fn what_has_arrived_is_dealt_with_message_by_message() {
    let mut bus = bus();
    let (talker, listener) = (bus.connect(), bus.connect());
    bus.add_match(listener, "member='Beat'");
    bus.read(listener);
    bus.hold_steps = true;
    let before = bus.written(talker);
    for _ in 0..5 {
        bus.signal(talker, "Beat");
    }
    assert!(bus.written(talker) > before);
    let mut heard = bus.read(listener).len();
    while bus.broker.wants_step(bus.peer(talker)) {
        assert!(bus.broker.is_input_waiting(bus.peer(talker)));
        bus.restart();
        bus.broker.set_step(1);
        step(&mut bus, talker);
        let more = bus.read(listener).len();
        assert_eq!(more, 1);
        heard += more;
    }
    assert_eq!(heard, 5);
}
