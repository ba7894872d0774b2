//! Peers whose links are gone, and that stay.

use bus_daemon::broker::Action;
use bus_daemon::config::Config;
use bus_wire::MessageBuilder;

use crate::bus::{Bus, check, check_with, config, one_way};

/// A bus on which 4000 bytes may wait for a peer.
fn small() -> Config {
    let mut config = config();
    config.limits.max_outgoing_bytes = 4_000;
    config
}

fn send_number(bus: &mut Bus, who: usize, number: u32, to: Option<&str>) {
    let text = "x".repeat(600);
    let signal = MessageBuilder::signal("/", "a.b", "S").body(|w| {
        w.u32(number).str(&text);
    });
    bus.send(
        who,
        match to {
            Some(to) => signal.destination(to),
            None => signal,
        },
    );
}

/// The numbers in what a client reads.
fn numbers(bus: &mut Bus, who: usize) -> Vec<u32> {
    let messages = bus.read_messages(who);
    let number = |message: &bus_wire::Message| message.body().read_u32().unwrap();
    messages.iter().map(|(message, _)| number(message)).collect()
}

#[test]
fn names_and_rules_of_a_parked_peer_stay_and_what_is_for_it_waits() {
    check(|bus| {
        let (parked, other) = (bus.connect(), bus.connect());
        bus.request_name(parked, "x.y", 0);
        bus.read(parked);
        bus.add_match(parked, "member='S'");
        bus.add_match(other, "member='NameOwnerChanged'");
        bus.read(parked);
        bus.read(other);
        bus.detach(parked);
        assert_eq!(bus.broker.socket(bus.peer(parked)), None);
        bus.wait(1_000_000);
        bus.signal(other, "S");
        bus.send(other, one_way("x.y", "M"));
        let serial = bus.call(other, ":1.0", "Question");
        bus.driver(other, "GetNameOwner", |w| {
            w.str("x.y");
        });
        bus.expect(
            other,
            &[&format!("return (:1.0) from bus to :1.1 re {}", serial + 1)],
        );
        bus.attach(parked);
        assert!(bus.is_open(parked) && bus.broker.socket(bus.peer(parked)).is_some());
        bus.expect(
            parked,
            &[
                "signal S() from :1.1",
                "call M() from :1.1 to x.y",
                "call Question() from :1.1 to :1.0",
            ],
        );
        bus.reply(parked, ":1.1", serial);
        bus.expect(other, &[&format!("return () from :1.0 to :1.1 re {serial}")]);
    });
}

#[test]
fn output_goes_on_at_the_byte_where_the_link_ended() {
    for cut in [0, 1, 333, 700, 1_399] {
        check(|bus| {
            let (parked, sender) = (bus.connect(), bus.connect());
            for number in 0..2 {
                send_number(bus, sender, number, Some(":1.0"));
            }
            // A part was sent before the link ended.
            let peer = bus.peer(parked);
            let mut iov = Vec::new();
            bus.broker.send_queue(peer).unwrap().next_write(&mut iov, 64);
            let mut got: Vec<u8> = iov.iter().flat_map(|slice| slice.iter().copied()).collect();
            got.truncate(cut);
            bus.take(parked, cut as u64);
            bus.detach(parked);
            send_number(bus, sender, 2, Some(":1.0"));
            bus.attach(parked);
            got.extend(bus.drain(parked).0);
            let mut framer = bus_wire::Framer::new(1 << 20);
            framer.push(got.into(), []);
            for number in 0..3 {
                let message = framer.next().unwrap().unwrap().message;
                assert_eq!(message.body().read_u32().unwrap(), number, "cut at {cut}");
            }
            assert_eq!(framer.partial_bytes(), 0);
        });
    }
}

#[test]
fn input_goes_on_at_the_byte_where_the_link_ended() {
    check(|bus| {
        let (parked, other) = (bus.connect(), bus.connect());
        let fd = bus.descriptors.make();
        let message = MessageBuilder::signal("/", "a.b", "Half")
            .destination(":1.1")
            .serial(9u32)
            .unix_fds(1)
            .build()
            .unwrap();
        for (n, piece) in message.chunks(11).enumerate() {
            let fds = [fd];
            bus.bytes(parked, piece, if n == 0 { &fds } else { &[] });
            bus.detach(parked);
            bus.attach(parked);
        }
        bus.expect(other, &["signal Half() from :1.0 to :1.1 fds 1"]);
    });
}

#[test]
fn what_waits_for_a_parked_peer_is_within_its_limits() {
    check_with(&small(), |bus| {
        let (parked, sender) = (bus.connect(), bus.connect());
        bus.detach(parked);
        let mut sent = 0;
        // A half is its share: (1 + 1) * (cell + message) may not be more than the limit, and the cell.
        let mut queued = 0;
        loop {
            send_number(bus, sender, sent, Some(":1.0"));
            if bus.queued()[&parked] == queued {
                break;
            }
            queued = bus.queued()[&parked];
            sent += 1;
        }
        assert!((1_000..=2_000).contains(&queued), "{queued}");
        let large = "x".repeat(1_000);
        let call = bus_wire::MessageBuilder::method_call("/", "M").destination(":1.0");
        let serial = bus.send(
            sender,
            call.body(|w| {
                w.str(&large);
            }),
        );
        let text = "Rejected: destination has a full message queue";
        bus.expect(
            sender,
            &[&format!(
                "error LimitsExceeded({text}) from bus to :1.1 re {serial}"
            )],
        );
        assert_eq!(bus.queued()[&parked], queued);
        assert!(bus.is_open(parked));
        bus.attach(parked);
        assert_eq!(numbers(bus, parked), (0..sent).collect::<Vec<_>>());
        bus.call(sender, ":1.0", "M");
        bus.expect(parked, &["call M() from :1.1 to :1.0"]);
    });
}

#[test]
fn a_parked_subscriber_is_disconnected_at_its_limit() {
    check_with(&small(), |bus| {
        let (parked, sender, watcher) = (bus.connect(), bus.connect(), bus.connect());
        bus.add_match(parked, "member='S'");
        bus.request_name(parked, "x.y", 0);
        bus.read(parked);
        bus.add_match(watcher, "member='NameOwnerChanged'");
        bus.detach(parked);
        for number in 0..20 {
            send_number(bus, sender, number, None);
        }
        let reason = bus.close_reason(parked).unwrap();
        assert!(reason.starts_with(":1.0: it does not read: "), "{reason}");
        bus.expect(
            watcher,
            &[
                "signal NameOwnerChanged(x.y, :1.0, ) from bus",
                "signal NameOwnerChanged(:1.0, :1.0, ) from bus",
            ],
        );
        // Its new link comes too late, and is closed.
        let sockets = bus.descriptors.sockets.len();
        bus.attach(parked);
        assert_eq!(bus.descriptors.sockets.len(), sockets);
    });
}

#[test]
fn a_parked_peer_that_is_closed_is_gone() {
    check(|bus| {
        let (parked, watcher) = (bus.connect(), bus.connect());
        bus.add_match(watcher, "member='NameOwnerChanged'");
        bus.detach(parked);
        assert!(
            bus.asked()
                .iter()
                .all(|action| !matches!(action, Action::Close { .. }))
        );
        bus.close(parked);
        bus.expect(watcher, &["signal NameOwnerChanged(:1.0, :1.0, ) from bus"]);
        assert!(!bus.is_open(parked));
    });
}

#[test]
fn credentials_of_a_parked_peer_are_told_without_a_descriptor() {
    check(|bus| {
        let (parked, asker) = (bus.connect(), bus.connect());
        for (is_parked, fds) in [(false, 1), (true, 0), (false, 1)] {
            if is_parked {
                bus.detach(parked);
            } else {
                bus.attach(parked);
            }
            bus.driver(asker, "GetConnectionCredentials", |w| {
                w.str(":1.0");
            });
            let got = bus.read_messages(asker);
            assert_eq!(got.iter().map(|(_, fds)| *fds).collect::<Vec<_>>(), [fds]);
        }
    });
}

#[test]
fn descriptors_wait_for_a_parked_peer() {
    check(|bus| {
        let (parked, sender) = (bus.connect(), bus.connect());
        bus.detach(parked);
        for _ in 0..2 {
            let fds = [bus.descriptors.make(), bus.descriptors.make()];
            bus.send_with_fds(sender, one_way(":1.0", "Take"), &fds);
        }
        assert_eq!(bus.descriptors.open.len(), 4);
        bus.attach(parked);
        let line = "call Take() from :1.1 to :1.0 fds 2";
        bus.expect(parked, &[line, line]);
        assert!(bus.descriptors.open.is_empty());
    });
}
