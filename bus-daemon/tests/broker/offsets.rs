//! Input and output are told by their places in the stream: what is told twice counts once.

use bus_daemon::broker::Event;
use bus_wire::MessageBuilder;

use crate::bus::{Bus, check};

/// A signal with a number in it.
fn signal(number: u32) -> Vec<u8> {
    let signal = MessageBuilder::signal("/", "a.b", "S");
    signal
        .serial(100 + number)
        .body(|w| {
            w.u32(number);
        })
        .build()
        .unwrap()
}

fn line(number: u32) -> String {
    format!("signal S({number}) from :1.0")
}

/// A sender that has written nothing more than was received, and a receiver of its signals.
fn pair(bus: &mut Bus) -> (usize, usize) {
    let (sender, receiver) = (bus.connect(), bus.connect());
    bus.add_match(receiver, "member='S'");
    (sender, receiver)
}

#[test]
fn input_that_comes_twice_counts_once() {
    check(|bus| {
        let (sender, receiver) = pair(bus);
        let begin = bus.written(sender);
        let message = signal(1);
        let upto = begin + message.len() as u64;
        for _ in 0..3 {
            bus.receive(sender, upto, &message);
            assert_eq!(bus.broker.taken(bus.peer(sender)), upto);
        }
        bus.expect(receiver, &[&line(1)]);
        // So does what came long before, and the beginning alone.
        bus.receive(sender, 20, &[b'x'; 20]);
        bus.receive(sender, begin + 10, &message[..10]);
        bus.receive(sender, 5, &[]);
        let message = signal(2);
        bus.receive(sender, upto + message.len() as u64, &message);
        bus.expect(receiver, &[&line(2)]);
    });
}

#[test]
fn of_input_that_overlaps_only_the_rest_counts() {
    check(|bus| {
        let (sender, receiver) = pair(bus);
        let begin = bus.written(sender);
        let stream: Vec<u8> = (0..20).flat_map(signal).collect();
        // Every read begins somewhere before the end of the one before it, and most end within a message.
        let mut taken = 0;
        for (step, back) in (0..).map(|n| (1 + n * 37 % 190, n * 53 % 150)) {
            let (from, upto) = (usize::saturating_sub(taken, back), stream.len().min(taken + step));
            bus.receive(sender, begin + upto as u64, &stream[from..upto]);
            taken = upto;
            assert_eq!(bus.broker.taken(bus.peer(sender)), begin + taken as u64);
            if taken == stream.len() {
                break;
            }
        }
        let lines: Vec<String> = (0..20).map(line).collect();
        assert_eq!(bus.read(receiver), lines);
    });
}

#[test]
fn descriptors_of_input_that_was_taken_already_are_closed() {
    check(|bus| {
        let (sender, receiver) = pair(bus);
        let message = signal(1);
        bus.bytes(sender, &message, &[]);
        let fd = bus.descriptors.make();
        bus.event(Event::Received {
            peer: bus.peer(sender),
            upto: bus.written(sender),
            data: message.into(),
            fds: [fd].into_iter().collect(),
        });
        assert!(bus.descriptors.open.is_empty() && bus.is_open(sender));
        bus.expect(receiver, &[&line(1)]);
    });
}

#[test]
fn input_that_is_missing_ends_the_connection_and_the_bus_is_to_blame() {
    for missing in [1, 1_000, u64::MAX / 2] {
        check(|bus| {
            let (sender, receiver) = pair(bus);
            let message = signal(1);
            let upto = bus.written(sender) + missing + message.len() as u64;
            let fd = bus.descriptors.make();
            bus.event(Event::Received {
                peer: bus.peer(sender),
                upto,
                data: message.into(),
                fds: [fd].into_iter().collect(),
            });
            let reason = bus.close_reason(sender).unwrap();
            assert_eq!(
                reason,
                format!(":1.0: {missing} bytes of its stream are missing in the bus")
            );
            assert!(bus.descriptors.open.is_empty() && bus.is_open(receiver));
            bus.expect(receiver, &[]);
        });
    }
}

#[test]
fn output_that_is_told_twice_was_sent_once() {
    check(|bus| {
        let (sender, receiver) = pair(bus);
        for number in 0..3 {
            bus.bytes(sender, &signal(number), &[]);
        }
        let peer = bus.peer(receiver);
        let total = bus.queued()[&receiver];
        let begin = bus.taken(receiver);
        for upto in [begin + 40, begin + 40, begin + 10, 0, begin + 41, begin] {
            bus.event(Event::Sent { peer, upto });
        }
        assert_eq!(bus.queued()[&receiver], total - 41);
        let queue = bus.broker.send_queue(peer).unwrap();
        assert_eq!((queue.sent(), queue.end()), (begin + 41, begin + total));
    });
}

#[test]
fn a_large_message_of_which_a_part_is_told_twice_comes_once() {
    check(|bus| {
        let (sender, receiver) = pair(bus);
        let begin = bus.written(sender);
        let large = MessageBuilder::signal("/", "a.b", "S").serial(100u32);
        let large = large.body(|w| {
            w.str(&"x".repeat(100_000));
        });
        let large = large.build().unwrap();
        let tell = |bus: &mut Bus, end: usize| {
            let fd = bus.descriptors.make();
            bus.event(Event::ReceivedLarge {
                peer: bus.peer(sender),
                upto: begin + end as u64,
                prefix: large[..end].to_vec().into(),
                fds: [fd].into_iter().collect(),
            });
        };
        bus.receive(sender, begin + 50_000, &large[..50_000]);
        for (end, taken) in [
            (50_000, 50_000),
            (70_000, 70_000),
            (70_000, 70_000),
            (60_000, 70_000),
        ] {
            // What brings nothing new brings no descriptors: those of the one part that does are the only ones kept.
            tell(bus, end);
            assert_eq!(bus.broker.taken(bus.peer(sender)), begin + taken);
            assert_eq!(bus.descriptors.open.len(), usize::from(taken > 50_000));
        }
        for _ in 0..3 {
            tell(bus, large.len());
        }
        // Surplus descriptors end with the message they came with.
        assert!(bus.descriptors.open.is_empty() && bus.is_open(sender));
        assert_eq!(bus.read(receiver).len(), 1);
        let next = signal(1);
        bus.receive(sender, begin + (large.len() + next.len()) as u64, &next);
        bus.expect(receiver, &[&line(1)]);
    });
}

#[test]
fn a_large_message_that_does_not_go_on_where_it_was_is_missing_input() {
    check(|bus| {
        let (sender, _) = pair(bus);
        let begin = bus.written(sender);
        bus.event(Event::ReceivedLarge {
            peer: bus.peer(sender),
            upto: begin + 1_100,
            prefix: vec![b'l'; 1_000].into(),
            fds: bus_daemon::broker::Fds::new(),
        });
        let reason = bus.close_reason(sender).unwrap();
        assert_eq!(reason, ":1.0: 100 bytes of its stream are missing in the bus");
    });
}
