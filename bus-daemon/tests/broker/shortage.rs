//! The cap of all memory: who is held back, who goes, and that all waiting ends.

use bus_daemon::broker::{Action, Credentials, Event, Memory, Relief};
use bus_wire::MessageBuilder;

use crate::bus::{Bus, UID, Who, config, policy};

const MIB: u64 = 1 << 20;
const CAP: u64 = 100 * MIB;

fn memory(held: u64) -> Memory {
    Memory { held, cap: CAP }
}

fn bus() -> Bus {
    Bus::new(config(), false)
}

/// A signal with a body of about so many bytes, to one or to all.
fn flood(bus: &mut Bus, who: Who, to: Option<&str>, bytes: usize) {
    let text = "x".repeat(bytes);
    let signal = MessageBuilder::signal("/", "a.b", "S").body(|w| {
        w.str(&text);
    });
    bus.send(
        who,
        match to {
            Some(to) => signal.destination(to),
            None => signal,
        },
    );
}

/// What the broker says, noted and done as the runtime does it.
fn relieve(bus: &mut Bus, held: u64) -> Relief {
    let Some(relief) = bus.broker.relief(memory(held)) else {
        return Relief::default();
    };
    bus.event(Event::Relieved(relief.clone()));
    relief
}

fn waits(bus: &Bus, who: Who) -> u64 {
    bus.queued().get(&who).copied().unwrap_or(0)
}

#[test]
fn nothing_is_done_while_there_is_memory() {
    let mut bus = bus();
    let (sender, slow) = (bus.connect(), bus.connect());
    for _ in 0..10 {
        flood(&mut bus, sender, Some(":1.1"), 100_000);
    }
    bus.wait(60_000);
    assert!(waits(&bus, slow) > 1_000_000);
    for held in [0, CAP / 2, CAP / 8 * 7] {
        assert_eq!(bus.broker.relief(memory(held)), None, "{held}");
    }
}

#[test]
fn who_sent_most_is_refused_and_not_read_for_a_while() {
    let mut bus = bus();
    let (flooder, other, slow, live) = (bus.connect(), bus.connect(), bus.connect(), bus.connect());
    for _ in 0..30 {
        flood(&mut bus, flooder, Some(":1.2"), 100_000);
        flood(&mut bus, other, Some(":1.2"), 1000);
        // What a live reader was sent does not count, however much it is.
        flood(&mut bus, other, Some(":1.3"), 500_000);
        assert_eq!(bus.read(live).len(), 1);
    }
    let relief = relieve(&mut bus, CAP - MIB);
    assert_eq!(relief.hold_back, [bus.peer(flooder)]);
    assert_eq!(relief.dismiss, []);
    assert!(!bus.broker.may_read(bus.peer(flooder)) && bus.broker.may_read(bus.peer(other)));
    let asked = bus.asked();
    assert!(
        asked.contains(&Action::StopReading(bus.peer(flooder))),
        "{asked:?}"
    );
    let is_warned = asked.iter().any(|action| matches!(action, Action::Warn { .. }));
    assert!(is_warned, "{asked:?}");

    // Who was read before is refused, and so is what it adds to the state; nobody else is.
    let before = waits(&bus, slow);
    let serial = bus.call(flooder, ":1.2", "M");
    let text = "The bus is short of memory, and this connection sent most of what it holds";
    let refusal = |serial: u32| format!("error LimitsExceeded({text}) from bus to :1.0 re {serial}");
    bus.expect(flooder, &[&refusal(serial)]);
    let serial = bus.driver(flooder, "AddMatch", |w| {
        w.str("member='S'");
    });
    bus.expect(flooder, &[&refusal(serial)]);
    assert_eq!(waits(&bus, slow), before);
    bus.call(other, ":1.2", "M");
    assert!(waits(&bus, slow) > before);
    bus.add_match(other, "member='S'");
    // Calls to the driver that add nothing are answered, and so are calls of others to the one that is held back.
    bus.driver(flooder, "GetId", |_| {});
    assert!(bus.read(flooder)[0].starts_with("return"));
    let serial = bus.call(other, ":1.0", "Ask");
    bus.read(flooder);
    bus.reply(flooder, ":1.1", serial);
    bus.expect(other, &[&format!("return () from :1.0 to :1.1 re {serial}")]);

    // All of it ends by time.
    bus.asked();
    bus.wait(100);
    assert_eq!(bus.asked(), [Action::ResumeReading(bus.peer(flooder))]);
    assert!(bus.broker.may_read(bus.peer(flooder)));
    let serial = bus.call(flooder, ":1.2", "M");
    bus.expect(flooder, &[&refusal(serial)]);
    bus.wait(900);
    bus.call(flooder, ":1.2", "M");
    bus.expect(flooder, &[]);
    assert_eq!(bus.broker.next_deadline(), None);
}

#[test]
fn an_awaited_answer_counts_for_who_awaits_it() {
    let mut bus = bus();
    let (caller, callee) = (bus.connect(), bus.connect());
    let text = "x".repeat(200_000);
    for _ in 0..20 {
        let serial = bus.call(caller, ":1.1", "M");
        bus.read(callee);
        let answer = MessageBuilder::method_return(serial).destination(":1.0");
        bus.send(
            callee,
            answer.body(|w| {
                w.str(&text);
            }),
        );
    }
    assert_eq!(relieve(&mut bus, CAP - MIB).hold_back, [bus.peer(caller)]);
}

#[test]
fn of_the_user_who_sent_most_those_who_sent_most_of_it() {
    let mut bus = Bus::new(
        bus_daemon::config::Config {
            policy: policy(bus_daemon::config::Simple::OPEN),
            ..config()
        },
        false,
    );
    let slow = bus.connect();
    let mut of_other = Vec::new();
    for _ in 0..10 {
        let who = bus.accept_as(Credentials {
            uid: Some(UID + 1),
            gid: Some(UID + 1),
            pid: Some(43),
        });
        bus.bytes(who, b"\0AUTH EXTERNAL 31303031\r\nBEGIN\r\n", &[]);
        bus.drain(who);
        bus.driver(who, "Hello", |_| {});
        bus.read(who);
        of_other.push(who);
    }
    let loudest = bus.connect();
    flood(&mut bus, loudest, Some(":1.0"), 3_000_000);
    for who in &of_other {
        flood(&mut bus, *who, Some(":1.0"), 1_000_000);
    }
    let relief = relieve(&mut bus, CAP - MIB);
    // One peer sent more than any other, but the ten of the other user together more than that.
    assert_eq!(relief.hold_back.len(), 5);
    assert!(!relief.hold_back.contains(&bus.peer(loudest)));
    // While these are not read from, and memory is still short, the rest of them.
    bus.asked();
    for who in &of_other[5..] {
        flood(&mut bus, *who, Some(":1.0"), 1_000_000);
    }
    let relief = relieve(&mut bus, CAP - MIB);
    assert!(!relief.hold_back.contains(&bus.peer(loudest)) && !relief.hold_back.is_empty());
    // Beyond the cap, everybody who sent much.
    let relief = relieve(&mut bus, CAP + MIB);
    assert!(relief.hold_back.contains(&bus.peer(loudest)));
    assert_eq!(relief.dismiss, [], "the receiver has had no time to read");
    assert!(bus.is_open(slow));
}

#[test]
fn beyond_the_cap_receivers_that_are_not_live_go_the_largest_first() {
    let mut bus = bus();
    let sender = bus.connect();
    let [large, small, drained, quick]: [Who; 4] = std::array::from_fn(|_| bus.connect());
    for who in [large, small, drained, quick] {
        bus.add_match(who, "member='S'");
    }
    // `small` hears half of it.
    for n in 0..40 {
        if n == 20 {
            bus.read(small);
        }
        flood(&mut bus, sender, None, 500_000);
    }
    // Each second: one of them reads it all within the time, one reads 5 MiB, and two nothing.
    for second in 0..8 {
        if second % 3 == 0 {
            bus.read(drained);
            flood(&mut bus, sender, None, 500_000);
        }
        if waits(&bus, quick) > 0 {
            let most = waits(&bus, quick).min(5 * MIB);
            bus.take(quick, most);
        }
        for _ in 0..10 {
            flood(&mut bus, sender, None, 500_000);
        }
        for _ in 0..10 {
            bus.wait(100);
        }
    }
    let excess = waits(&bus, large);
    let relief = relieve(&mut bus, CAP / 8 * 7 + excess);
    assert_eq!(relief.dismiss, [bus.peer(large)]);
    let reason = bus.close_reason(large).unwrap();
    assert!(reason.starts_with(":1.1: memory is short, and "), "{reason}");
    let relief = relieve(&mut bus, CAP + MIB);
    assert_eq!(relief.dismiss, [bus.peer(small)]);
    assert_eq!(relieve(&mut bus, CAP + MIB).dismiss, []);
    assert!(bus.is_open(sender) && bus.is_open(drained) && bus.is_open(quick));
}

#[test]
fn a_slow_reader_that_gets_on_goes_after_all_that_stall() {
    let mut bus = bus();
    let sender = bus.connect();
    let [slow, stalled, trickle, other]: [Who; 4] = std::array::from_fn(|_| bus.connect());
    for who in [slow, trickle] {
        bus.add_match(who, "member='S'");
    }
    for (to, bytes) in [(":1.2", 3_000_000), (":1.4", 2_000_000)] {
        flood(&mut bus, sender, Some(to), bytes);
    }
    for _ in 0..20 {
        flood(&mut bus, sender, None, 500_000);
    }
    // Half a megabyte in each second, of ten, and next to nothing.
    for _ in 0..80 {
        bus.wait(100);
        bus.take(slow, 50_000);
        bus.take(trickle, 10);
    }
    assert!(waits(&bus, slow) > waits(&bus, stalled) && waits(&bus, trickle) > waits(&bus, slow));
    // All of these are needed, and the slow one with them only when nobody else is left.
    let held = |excess: u64| CAP / 8 * 7 + excess.max(CAP / 8 + 1);
    let excess = waits(&bus, trickle) + waits(&bus, stalled) + waits(&bus, other);
    let relief = relieve(&mut bus, held(excess));
    assert_eq!(
        relief.dismiss[..],
        [trickle, stalled, other].map(|who| bus.peer(who))
    );
    assert!(bus.is_open(slow));
    assert_eq!(relieve(&mut bus, CAP + MIB).dismiss, [bus.peer(slow)]);
}

#[test]
fn time_in_which_the_bus_stood_still_makes_nobody_less_live() {
    let mut bus = bus();
    let (sender, slow) = (bus.connect(), bus.connect());
    flood(&mut bus, sender, Some(":1.1"), 4_000_000);
    bus.wait(3_600_000);
    assert_eq!(relieve(&mut bus, CAP + MIB).dismiss, []);
    for _ in 0..40 {
        bus.wait(100);
    }
    assert_eq!(relieve(&mut bus, CAP + MIB).dismiss, [bus.peer(slow)]);
}

#[test]
fn in_an_emergency_nobody_is_waited_for_that_reads_nothing() {
    let mut bus = bus();
    let (sender, slow, quick) = (bus.connect(), bus.connect(), bus.connect());
    for who in [":1.1", ":1.2"] {
        for _ in 0..8 {
            flood(&mut bus, sender, Some(who), 1_000_000);
        }
    }
    for _ in 0..3 {
        bus.wait(100);
        bus.take(quick, 2_000_000);
    }
    assert_eq!(relieve(&mut bus, CAP + MIB).dismiss, []);
    assert_eq!(relieve(&mut bus, CAP / 4 * 5 + MIB).dismiss, [bus.peer(slow)]);
    assert!(bus.is_open(quick));
}

#[test]
fn far_beyond_the_cap_messages_that_get_on_go_and_then_whoever_makes_it_hold_most() {
    let mut bus = bus();
    let (sender, quick) = (bus.connect(), bus.connect());
    let halves: [Who; 3] = std::array::from_fn(|_| bus.connect());
    for _ in 0..8 {
        flood(&mut bus, sender, Some(":1.1"), 1_000_000);
    }
    let text = "x".repeat(6_000_000);
    let message = MessageBuilder::signal("/", "a.b", "S").serial(9_u32).body(|w| {
        w.str(&text);
    });
    let message = message.build().unwrap();
    // All of them get on, and the reader reads.
    for _ in 0..3 {
        bus.wait(100);
        bus.take(quick, 2_000_000);
    }
    for (number, who) in halves.into_iter().enumerate() {
        bus.bytes(who, &message[..(number + 1) * 1_000_000], &[]);
    }
    assert_eq!(relieve(&mut bus, CAP + MIB).dismiss, []);
    let emergency = CAP / 4 * 5 + 1;
    let relief = relieve(&mut bus, emergency);
    assert_eq!(relief.dismiss, [2, 1, 0].map(|at| bus.peer(halves[at])));
    assert_eq!(relieve(&mut bus, emergency).dismiss, []);
    assert_eq!(relieve(&mut bus, CAP / 2 * 3 + 1).dismiss, [bus.peer(quick)]);
    assert!(bus.is_open(sender));
}

#[test]
fn who_holds_next_to_nothing_goes_last() {
    let mut bus = bus();
    let (sender, large, small) = (bus.connect(), bus.connect(), bus.connect());
    flood(&mut bus, sender, Some(":1.1"), 2_000_000);
    flood(&mut bus, sender, Some(":1.2"), 100_000);
    for _ in 0..60 {
        bus.wait(100);
    }
    // Neither is enough.
    assert_eq!(relieve(&mut bus, 2 * CAP).dismiss, [bus.peer(large)]);
    assert_eq!(relieve(&mut bus, 2 * CAP).dismiss, [bus.peer(small)]);
}

#[test]
fn messages_that_do_not_get_on_are_held_by_who_sends_them() {
    let mut bus = bus();
    let (half, other) = (bus.connect(), bus.connect());
    let text = "x".repeat(1_000_000);
    let message = MessageBuilder::signal("/", "a.b", "S").serial(9_u32).body(|w| {
        w.str(&text);
    });
    let message = message.build().unwrap();
    bus.bytes(half, &message[..900_000], &[]);
    assert_eq!(relieve(&mut bus, CAP - MIB).hold_back, [bus.peer(half)]);
    assert_eq!(relieve(&mut bus, CAP + MIB).dismiss, []);
    for _ in 0..60 {
        bus.wait(100);
    }
    assert_eq!(relieve(&mut bus, CAP + MIB).dismiss, [bus.peer(half)]);
    assert!(bus.is_open(other));
}

#[test]
fn a_message_too_large_for_the_bus_is_not_waited_for() {
    let mut bus = bus();
    let who = bus.connect();
    let text = "x".repeat(400_000);
    let message = MessageBuilder::signal("/", "a.b", "S").serial(9_u32).body(|w| {
        w.str(&text);
    });
    let message = message.build().unwrap();
    bus.bytes(who, &message[..100_000], &[]);
    for cap in [u64::MAX, 256 * MIB, 1_000_000] {
        assert_eq!(bus.broker.relief(Memory { held: 0, cap }), None);
    }
    let relief = bus
        .broker
        .relief(Memory {
            held: 0,
            cap: 700_000,
        })
        .unwrap();
    assert_eq!(relief.dismiss, [bus.peer(who)]);
}

/// A checkpoint has who is held back; a replay from it does what was done.
#[test]
fn who_is_held_back_stays_so_over_a_death_and_not_over_an_upgrade() {
    let mut bus = bus();
    let (flooder, slow) = (bus.connect(), bus.connect());
    flood(&mut bus, flooder, Some(":1.1"), 1_000_000);
    relieve(&mut bus, CAP - MIB);
    let saved = bus.broker.save_shortage();
    assert_ne!(saved, Default::default());
    bus.restart();
    assert!(bus.broker.may_read(bus.peer(flooder)));
    assert_eq!(bus.broker.next_deadline(), None);
    let before = waits(&bus, slow);
    bus.call(flooder, ":1.1", "M");
    assert!(waits(&bus, slow) > before);
}
