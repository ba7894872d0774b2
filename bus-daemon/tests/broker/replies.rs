//! Replies that find no room: their callers are told so, and stay.

use bus_wire::MessageBuilder;

use crate::bus::{Bus, Who, check_with};
use crate::shares::{FLOODER, OTHER, READER, connect_as, connect_with, send, shared, subscriber, waits};

const NO_ROOM: &str =
    "error LimitsExceeded(Rejected: destination has a full message queue) from bus to :1.0 re";

/// A reply with a body of so many bytes.
fn answer(bus: &mut Bus, who: Who, serial: u32, bytes: usize) {
    let text = vec![7_u8; bytes];
    let reply = MessageBuilder::method_return(serial)
        .destination(":1.0")
        .body(|w| {
            w.byte_slice(&text);
        });
    bus.send(who, reply);
}

/// What a caller awaits may fill seven eighths of its queue. What is beyond is answered by the bus, and the caller stays: it
/// reads, and what it reads is room again.
#[test]
fn replies_beyond_the_limit_are_answered_by_the_bus() {
    check_with(&shared(), |bus| {
        let caller = connect_as(bus, READER);
        let service = connect_as(bus, FLOODER);
        let serials: Vec<u32> = (0..8).map(|_| bus.call(caller, ":1.1", "Get")).collect();
        assert_eq!(bus.read(service).len(), 8);
        for serial in &serials[..6] {
            answer(bus, service, *serial, 250_000);
        }
        // Three of them find room; whoever answers is told nothing.
        let queued = waits(bus, caller);
        assert!(queued > 750_000 && queued < 751_000, "{queued}");
        assert!(bus.is_open(caller) && bus.is_open(service));
        bus.expect(service, &[]);
        let got = bus.read(caller);
        let refused: Vec<String> = (3..6).map(|n| format!("{NO_ROOM} {}", serials[n])).collect();
        assert_eq!(got[3..], refused);
        answer(bus, service, serials[6], 250_000);
        answer(bus, service, serials[7], 5);
        let got = bus.read(caller);
        assert!(
            got[0].starts_with("return") && got[1].starts_with("return"),
            "{got:?}"
        );
        // Each call is over, and another may follow.
        let serial = bus.call(caller, ":1.1", "Get");
        bus.read(service);
        answer(bus, service, serial, 900_000);
        assert!(waits(bus, caller) > 900_000);
    });
}

/// However long a single reply is, it passes where nothing else is awaited, and what comes behind it is answered.
#[test]
fn a_single_reply_may_be_longer_than_the_limit() {
    let mut config = shared();
    config.limits.max_outgoing_bytes = 100_000;
    check_with(&config, |bus| {
        let caller = connect_as(bus, READER);
        let service = connect_as(bus, FLOODER);
        let serials: Vec<u32> = (0..3).map(|_| bus.call(caller, ":1.1", "Get")).collect();
        bus.read(service);
        for serial in &serials {
            answer(bus, service, *serial, 120_000);
        }
        assert!(bus.is_open(caller));
        let got = bus.read(caller);
        assert_eq!(got.len(), 3);
        assert_eq!(got[2], format!("{NO_ROOM} {}", serials[2]));
    });
}

/// Replies to a caller and others' broadcasts do not take each other's room: together they may be more than the limit.
#[test]
fn a_caller_whose_replies_wait_does_not_go_for_others_broadcasts() {
    check_with(&shared(), |bus| {
        let caller = subscriber(bus, READER);
        let service = connect_as(bus, FLOODER);
        let other = connect_as(bus, OTHER);
        let serials: Vec<u32> = (0..4).map(|_| bus.call(caller, ":1.1", "Get")).collect();
        bus.read(service);
        for serial in &serials {
            answer(bus, service, *serial, 215_000);
        }
        send(bus, service, None, 300_000);
        assert!(waits(bus, caller) > 1_150_000);
        send(bus, other, None, 1000);
        bus.request_name(other, "a.b", 0);
        assert!(bus.is_open(caller));
        // It is not read from meanwhile.
        assert!(!bus.broker.may_read(bus.peer(caller)));
        let got = bus.read(caller);
        assert_eq!(got.len(), 6, "{got:?}");
        assert!(bus.broker.may_read(bus.peer(caller)));
    });
}

/// The same of descriptors: a caller with too many of them does not go for those of a reply.
#[test]
fn a_reply_with_descriptors_for_which_there_is_no_room_is_answered_by_the_bus() {
    let mut config = shared();
    config.limits.max_outgoing_unix_fds = 4;
    check_with(&config, |bus| {
        let caller = connect_with(bus, READER, "NEGOTIATE_UNIX_FD\r\n");
        let service = connect_with(bus, FLOODER, "NEGOTIATE_UNIX_FD\r\n");
        let serials: Vec<u32> = (0..3).map(|_| bus.call(caller, ":1.1", "Get")).collect();
        bus.read(service);
        for serial in &serials {
            let fds = [0; 3].map(|_| bus.descriptors.make());
            let reply = MessageBuilder::method_return(*serial).destination(":1.0");
            bus.send_with_fds(service, reply, &fds);
        }
        // For as long as a look at the caller's socket may take the reply waits.
        for _ in 0..20 {
            bus.wait(1);
        }
        assert!(bus.is_open(caller) && bus.is_open(service));
        let got = bus.read(caller);
        assert_eq!(got.len(), 3, "{got:?}");
        assert_eq!(got[2], format!("{NO_ROOM} {}", serials[2]));
    });
}

/// A flood of replies to whoever asks and reads: it stays, and has an answer to each call.
#[test]
fn whoever_reads_outlives_any_flood_of_replies() {
    let mut bus = Bus::new(shared(), false);
    let caller = subscriber(&mut bus, READER);
    let services: Vec<Who> = (0..3).map(|_| connect_as(&mut bus, FLOODER)).collect();
    let (mut asked, mut answered, mut refused) = (0, 0, 0);
    for round in 0..300_usize {
        let mut open = Vec::new();
        for _ in 0..5 {
            if bus.broker.may_read(bus.peer(caller)) {
                let n = asked % 3;
                open.push((n, bus.call(caller, &format!(":1.{}", n + 1), "Get")));
                asked += 1;
            }
        }
        for (n, serial) in open {
            answer(&mut bus, services[n], serial, 10_000 + 1000 * (round % 200));
        }
        send(&mut bus, services[round % 3], None, 20_000);
        bus.wait(20);
        assert!(bus.is_open(caller), "in round {round}");
        if round % 10 == 9 {
            for (message, _) in bus.read_messages(caller) {
                let is_reply = message.message_type().is_reply();
                answered += usize::from(is_reply);
                refused += usize::from(is_reply && message.sender() == Some(crate::bus::DRIVER));
            }
        }
    }
    assert!(refused > 10 && answered > 10 + refused, "{refused} of {answered}");
    assert_eq!(answered, asked);
}
