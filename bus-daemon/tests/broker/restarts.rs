use std::sync::Arc;

use bus_daemon::broker::{Broker, BrokerState, Event, Start};
use bus_wire::MessageBuilder;

use crate::bus::{Bus, DRIVER, PATH, check, config, describe};

fn upgrade(bus: &mut Bus, who: usize) -> u32 {
    let call = MessageBuilder::method_call(PATH, "Upgrade")
        .interface("org.busdaemon.Restart1")
        .destination(DRIVER)
        .body(|w| {
            w.str("");
        });
    bus.send(who, call)
}

#[test]
fn whoever_serves_next_answers_the_upgrade() {
    let starts = [
        (Start::Upgraded { pause: 5 }, "return (2) from bus to :1.0 re 2"),
        (
            Start::RolledBack {
                reason: "it died".to_owned(),
                pause: 5,
            },
            "error org.busdaemon.Error.UpgradeRolledBack(it died) from bus to :1.0 re 2",
        ),
    ];
    for (start, answer) in starts {
        check(|bus| {
            let (who, other) = (bus.connect(), bus.connect());
            upgrade(bus, who);
            bus.expect(who, &[]);
            upgrade(bus, other);
            assert!(bus.read(other)[0].starts_with("error org.busdaemon.Error.UpgradeInProgress("));
            bus.restart();
            bus.event(Event::Serving {
                worker_pid: 3,
                start: start.clone(),
            });
            bus.expect(who, &[answer]);
        });
    }
}

#[test]
fn a_refused_upgrade_is_answered() {
    check(|bus| {
        let who = bus.connect();
        upgrade(bus, who);
        bus.event(Event::UpgradeRefused {
            reason: "no such file".to_owned(),
        });
        bus.expect(
            who,
            &["error org.busdaemon.Error.UpgradeRefused(no such file) from bus to :1.0 re 2"],
        );
        bus.asked();
        upgrade(bus, who);
        assert_eq!(bus.asked().len(), 1);
    });
}

#[test]
fn a_death_of_the_worker_does_not_end_an_upgrade() {
    check(|bus| {
        let who = bus.connect();
        upgrade(bus, who);
        bus.event(Event::Serving {
            worker_pid: 3,
            start: Start::Recovered {
                pause: 1,
                quarantined: 0,
            },
        });
        bus.event(Event::Serving {
            worker_pid: 4,
            start: Start::Upgraded { pause: 1 },
        });
        bus.expect(who, &["return (2) from bus to :1.0 re 2"]);
    });
}

#[test]
fn a_reload_is_answered() {
    check(|bus| {
        let who = bus.connect();
        bus.driver(who, "ReloadConfig", |_| {});
        bus.expect(who, &[]);
        bus.event(Event::ConfigLoaded {
            config: Arc::new(config()),
        });
        bus.expect(who, &["return () from bus to :1.0 re 2"]);
        bus.driver(who, "ReloadConfig", |_| {});
        bus.event(Event::ConfigRefused {
            name: "org.freedesktop.DBus.Error.Failed".to_owned(),
            reason: "line 3".to_owned(),
        });
        bus.expect(who, &["error Failed(line 3) from bus to :1.0 re 3"]);
    });
}

/// A bus of four: 0 watches, 1 owns x.y and was called by 2, which waits for x.y, 3 is in mid-message.
fn crowded() -> (Bus, BrokerState) {
    let mut bus = Bus::new(config(), false);
    for _ in 0..4 {
        bus.connect();
    }
    bus.add_match(0, "member='NameOwnerChanged'");
    for who in [1, 2] {
        bus.request_name(who, "x.y", 0);
        bus.read(who);
    }
    bus.call(2, "x.y", "M");
    bus.bytes(3, b"l\x01\0\x01", &[]);
    for who in 0..4 {
        bus.read(who);
    }
    let state = bus.broker.save();
    (bus, state)
}

#[test]
fn a_peer_whose_record_is_missing_is_gone_and_nobody_else() {
    let (mut bus, mut state) = crowded();
    let lost = bus.peer(1);
    state.peers.retain(|record| record.id() != lost);
    let (restored, dropped) = Broker::restore(state).unwrap();
    assert_eq!(dropped.iter().map(|one| one.peer).collect::<Vec<_>>(), [lost]);
    bus.broker = restored;
    bus.expect(
        0,
        &[
            "signal NameOwnerChanged(x.y, :1.1, :1.2) from bus",
            "signal NameOwnerChanged(:1.1, :1.1, ) from bus",
        ],
    );
    bus.expect(
        2,
        &[
            "error NoReply(Message recipient disconnected from message bus without replying) from bus to :1.2 re 3",
            "signal NameAcquired(x.y) from bus to :1.2",
        ],
    );
    bus.expect(3, &[]);
    bus.call(0, "x.y", "M");
    bus.expect(2, &["call M() from :1.0 to x.y"]);
}

#[test]
fn a_record_that_is_there_twice_counts_once() {
    let (_, mut state) = crowded();
    let again = state.peers[0].clone();
    state.peers.push(again);
    let (restored, dropped) = Broker::restore(state).unwrap();
    assert_eq!(dropped.len(), 1);
    assert_eq!(restored.peer_ids().count(), 4);
}

#[test]
fn any_subset_of_the_records_can_be_restored() {
    for subset in 0..16 {
        let (_, mut state) = crowded();
        let mut place = 0;
        state.peers.retain(|_| {
            place += 1;
            subset >> (place - 1) & 1 == 1
        });
        let kept = state.peers.len();
        let (restored, dropped) = Broker::restore(state).unwrap();
        assert_eq!((restored.peer_ids().count(), dropped.len()), (kept, 4 - kept));
    }
}

/// Whatever bytes of a saved state are changed, it is refused or restored into a broker that is whole.
#[test]
fn damaged_states_do_no_harm() {
    let (_, state) = crowded();
    let whole = bincode::serde::encode_to_vec(&state, bincode::config::standard()).unwrap();
    for place in 0..whole.len() {
        for change in [1, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[place] ^= change;
            let limited = bincode::config::standard().with_limit::<1_000_000>();
            if let Ok((read, _)) = bincode::serde::decode_from_slice::<BrokerState, _>(&bytes, limited)
                && let Ok((restored, _)) = Broker::restore(read)
            {
                restored.check_invariants().unwrap();
            }
        }
    }
}

#[test]
fn output_that_waits_is_sent_from_where_it_stopped() {
    let mut bus = Bus::new(config(), false);
    let (sender, receiver) = (bus.connect(), bus.connect());
    let text = "x".repeat(3000);
    for _ in 0..3 {
        let message = MessageBuilder::signal("/", "a.b", "S")
            .destination(":1.1")
            .body(|w| {
                w.str(&text);
            });
        bus.send(sender, message);
    }
    let total = bus.queued()[&receiver];
    let mut got = Vec::new();
    for step in [1, 17, 500, 3000, 2500] {
        let peer = bus.peer(receiver);
        let mut iov = Vec::new();
        bus.broker.send_queue(peer).unwrap().next_write(&mut iov, 64);
        let all: Vec<u8> = iov.iter().flat_map(|slice| slice.iter().copied()).collect();
        got.extend_from_slice(&all[..step]);
        bus.event(Event::Drained {
            peer,
            bytes: step as u64,
        });
        bus.restart();
    }
    got.extend(bus.drain(receiver).0);
    assert_eq!(got.len() as u64, total);
    let mut framer = bus_wire::Framer::new(1 << 20);
    framer.push(got.into(), []);
    while let Some(framed) = framer.next().unwrap() {
        assert!(describe(&framed.message, 0).contains(&text));
    }
    assert_eq!(framer.partial_bytes(), 0);
}
