//! Fair shares of the queues of receivers: who is refused, who waits, how long, and that nobody waits for ever.

use bus_daemon::broker::{Action, Credentials, PeerId};
use bus_daemon::config::{Config, Simple};
use bus_wire::MessageBuilder;

use crate::bus::{Bus, UID, Who, check_with, config, policy};

/// Users that are not the bus's own.
pub const READER: u32 = 2001;
pub const FLOODER: u32 = 2002;
pub const OTHER: u32 = 2003;

const LIMIT: u64 = 1_000_000;

/// A bus for all users, on which [`LIMIT`] bytes may wait for a peer.
pub fn shared() -> Config {
    let mut config = Config {
        policy: policy(Simple::OPEN),
        ..config()
    };
    config.limits.max_outgoing_bytes = LIMIT;
    config
}

fn bus() -> Bus {
    Bus::new(shared(), false)
}

pub fn connect_as(bus: &mut Bus, uid: u32) -> Who {
    connect_with(bus, uid, "")
}

pub fn connect_with(bus: &mut Bus, uid: u32, line: &str) -> Who {
    let who = say_hello(bus, uid, line);
    bus.read(who);
    who
}

/// One who has said `Hello`, whether it was answered or not.
pub fn say_hello(bus: &mut Bus, uid: u32, line: &str) -> Who {
    let who = bus.accept_as(Credentials {
        uid: Some(uid),
        gid: Some(uid),
        pid: Some(50),
    });
    let identity: String = uid
        .to_string()
        .bytes()
        .map(|digit| format!("{digit:02x}"))
        .collect();
    bus.bytes(
        who,
        format!("\0AUTH EXTERNAL {identity}\r\n{line}BEGIN\r\n").as_bytes(),
        &[],
    );
    bus.drain(who);
    bus.driver(who, "Hello", |_| {});
    who
}

/// A reader of all signals `S`.
pub fn subscriber(bus: &mut Bus, uid: u32) -> Who {
    let who = connect_as(bus, uid);
    bus.add_match(who, "member='S'");
    who
}

pub fn waits(bus: &Bus, who: Who) -> u64 {
    bus.queued()[&who]
}

/// Sends a signal that is exactly so long once its sender (of six letters, as `:1.123`) is in it.
pub fn send(bus: &mut Bus, who: Who, to: Option<&str>, bytes: u64) {
    let text = "x".repeat(bytes as usize);
    let signal = |length: usize| {
        let signal = MessageBuilder::signal("/", "a.b", "S").body(|w| {
            w.str(&text[..length]);
        });
        match to {
            Some(to) => signal.destination(to),
            None => signal,
        }
    };
    let name = bus.broker.identity_of(bus.peer(who)).unwrap().0.unwrap();
    let whole = signal(8).sender(&name).serial(1_u32).build().unwrap();
    bus.send(who, signal(8 + bytes as usize - whole.len()));
}

/// How many bytes a message may have that a party with a cell of this length may send to one of so many.
pub fn largest(cell: u64, parties: u64, queued: u64) -> u64 {
    (LIMIT - queued + cell) / (parties + 1) - cell
}

pub fn is_held(bus: &Bus, who: Who) -> bool {
    bus.broker.is_paced(bus.peer(who))
}

#[test]
fn unicast_is_refused_beyond_the_share_to_the_byte() {
    let mut bus = bus();
    let slow = connect_as(&mut bus, READER);
    let (one, two) = (connect_as(&mut bus, FLOODER), connect_as(&mut bus, FLOODER));
    let other = connect_as(&mut bus, OTHER);
    let mut queued = 0;
    let mut check = |bus: &mut Bus, who: Who, bytes: u64, passes: bool| {
        send(bus, who, Some(":1.0"), bytes);
        queued += if passes { bytes } else { 0 };
        assert_eq!(waits(bus, slow), queued, "{who} sends {bytes}");
    };
    // Nobody has anything there: the first message passes, whatever its length.
    check(&mut bus, one, 300_000, true);
    // Both connections of a user are one party. (1 + 1) * (300,000 + n) - 300,000 = 700,000
    assert_eq!(largest(300_000, 1, 300_000), 200_000);
    check(&mut bus, two, 200_001, false);
    check(&mut bus, two, 200_000, true);
    check(&mut bus, one, 200, false);
    // Another user passes with its first message, and then with a third of what is left of the first one's.
    check(&mut bus, other, 10_000, true);
    assert_eq!(largest(10_000, 2, 510_000), 156_666);
    check(&mut bus, other, 156_667, false);
    check(&mut bus, other, 156_666, true);
    check(&mut bus, other, 200, false);
    // What is read is of both alike: 100,000 each.
    bus.take(slow, 200_000);
    queued -= 200_000;
    let mut check = |bus: &mut Bus, who: Who, bytes: u64, passes: bool| {
        send(bus, who, Some(":1.0"), bytes);
        queued += if passes { bytes } else { 0 };
        assert_eq!(waits(bus, slow), queued, "{who} sends {bytes}");
    };
    assert_eq!(largest(66_666, 2, 466_666), 133_334);
    check(&mut bus, other, 133_335, false);
    check(&mut bus, other, 133_334, true);
    assert!(bus.is_open(slow));
}

#[test]
fn a_call_beyond_the_share_is_answered_and_a_reply_passes() {
    check_with(&shared(), |bus| {
        let slow = connect_as(bus, READER);
        let flooder = connect_as(bus, FLOODER);
        let mut serials = Vec::new();
        for _ in 0..3 {
            serials.push(bus.call(slow, ":1.1", "M"));
        }
        assert_eq!(bus.read(flooder).len(), 3);
        send(bus, flooder, Some(":1.0"), 500_000);
        let serial = bus.call(flooder, ":1.0", "M");
        let text = "Rejected: destination has a full message queue";
        bus.expect(
            flooder,
            &[&format!(
                "error LimitsExceeded({text}) from bus to :1.1 re {serial}"
            )],
        );
        let queued = waits(bus, slow);
        for serial in serials {
            bus.reply(flooder, ":1.0", serial);
        }
        assert!(waits(bus, slow) > queued + 100);
        assert_eq!(bus.read(slow).len(), 4);
        bus.call(flooder, ":1.0", "M");
        bus.expect(slow, &["call M() from :1.1 to :1.0"]);
    });
}

#[test]
fn peers_of_one_user_are_parties_of_their_own() {
    let mut bus = bus();
    let slow = bus.connect();
    let (one, two) = (bus.connect(), bus.connect());
    send(&mut bus, one, Some(":1.0"), 500_000);
    send(&mut bus, one, Some(":1.0"), 500);
    assert_eq!(waits(&bus, slow), 500_000);
    send(&mut bus, two, Some(":1.0"), 500);
    assert_eq!(waits(&bus, slow), 500_500);
}

/// Microseconds that so many bytes take a live reader, of which each of so many parties has a part.
pub fn reading_time(bytes: u64, parties: u64) -> u64 {
    bytes * parties * 1000 / (4 * 1024 * 1024 / 1000)
}

#[test]
fn a_broadcast_beyond_the_share_makes_its_sender_wait_as_long_as_it_is_read() {
    check_with(&shared(), |bus| {
        let slow = subscriber(bus, READER);
        let flooder = connect_as(bus, FLOODER);
        bus.wait(50);
        // Up to the share nobody waits: 2 * (450,000 + 50,000) - 450,000 = 550,000
        for _ in 0..10 {
            send(bus, flooder, None, 50_000);
        }
        assert_eq!(waits(bus, slow), 500_000);
        bus.asked();
        send(bus, flooder, None, 50_000);
        assert_eq!(bus.asked(), []);
        assert_eq!(reading_time(50_000, 1), 11_921);
        send(bus, flooder, None, 50_000);
        assert!(is_held(bus, flooder) && !bus.broker.may_read(bus.peer(flooder)));
        assert_eq!(bus.asked(), [Action::StopReading(bus.peer(flooder))]);
        assert_eq!(waits(bus, slow), 550_000);
        assert_eq!(bus.broker.next_deadline().unwrap().0, 50 + 12);
        bus.wait(11);
        assert!(is_held(bus, flooder) && waits(bus, slow) == 550_000);
        bus.wait(1);
        assert!(!is_held(bus, flooder) && waits(bus, slow) == 600_000);
        assert_eq!(bus.asked(), [Action::ResumeReading(bus.peer(flooder))]);
        // It had reserved the time for these bytes, so that it waits again: from the time that its wait was for.
        send(bus, flooder, None, 15_000);
        assert!(is_held(bus, flooder) && waits(bus, slow) == 600_000);
        assert_eq!(bus.broker.next_deadline().unwrap().0, 50 + 24);
        bus.wait(12);
        assert!(!is_held(bus, flooder) && waits(bus, slow) == 615_000);
        // 3.6 ms are no wait.
        send(bus, flooder, None, 500);
        assert!(!is_held(bus, flooder) && waits(bus, slow) == 615_500);
        assert_eq!(bus.broker.next_deadline(), None);
    });
}

#[test]
fn of_several_parties_each_waits_for_all() {
    let mut bus = bus();
    let slow = subscriber(&mut bus, READER);
    let (flooder, other) = (connect_as(&mut bus, FLOODER), connect_as(&mut bus, OTHER));
    let third = connect_as(&mut bus, OTHER + 1);
    for _ in 0..10 {
        send(&mut bus, flooder, None, 50_000);
    }
    send(&mut bus, other, Some(":1.0"), 20_000);
    send(&mut bus, third, Some(":1.0"), 20_000);
    send(&mut bus, flooder, None, 50_000);
    send(&mut bus, flooder, None, 500);
    assert!(is_held(&bus, flooder));
    assert_eq!(
        bus.broker.next_deadline().unwrap().0,
        reading_time(50_000, 3).div_ceil(1000)
    );
    // The others are within their shares.
    send(&mut bus, other, None, 50_000);
    send(&mut bus, other, None, 500);
    assert!(!is_held(&bus, other) && bus.is_open(slow));
}

/// How many connections the receiver's user has, or had, is nothing to another user: they are one side together.
#[test]
fn connections_of_the_receivers_user_make_no_other_user_wait_longer() {
    let mut bus = bus();
    let slow = subscriber(&mut bus, READER);
    let flooder = connect_as(&mut bus, FLOODER);
    for n in 0..20 {
        let own = connect_as(&mut bus, READER);
        send(&mut bus, own, Some(":1.0"), 5000);
        if n % 2 == 0 {
            bus.close(own);
        }
    }
    assert_eq!(waits(&bus, slow), 100_000);
    // Two sides: (2 + 1) * 300,000 = 900,000, and not a byte more.
    send(&mut bus, flooder, Some(":1.0"), 200_000);
    send(&mut bus, flooder, Some(":1.0"), 100_001);
    assert_eq!(waits(&bus, slow), 300_000);
    send(&mut bus, flooder, Some(":1.0"), 100_000);
    assert_eq!(waits(&bus, slow), 400_000);
    send(&mut bus, flooder, None, 50_000);
    send(&mut bus, flooder, None, 500);
    assert!(is_held(&bus, flooder));
    let due = bus.broker.next_deadline().unwrap().0;
    assert_eq!(due, reading_time(50_000, 2).div_ceil(1000));
    // 15,000 bytes were nobody's. Of the others that are read a half is the other user's: it has 282,500.
    bus.take(slow, 150_000);
    bus.wait(due);
    assert!(!is_held(&bus, flooder) && bus.is_open(slow));
    assert_eq!(waits(&bus, slow), 300_500);
    // Signals to one receiver wait too.
    bus.wait(20);
    assert_eq!(largest(283_000, 2, 300_500), 44_500);
    send(&mut bus, flooder, Some(":1.0"), 44_501);
    assert_eq!(waits(&bus, slow), 300_500);
    send(&mut bus, flooder, Some(":1.0"), 44_500);
    assert_eq!(waits(&bus, slow), 345_000);
}

/// However many connections of its user come and go, a receiver's cells stay few, with a restart between them too.
#[test]
fn connections_that_come_and_go_leave_only_so_many_cells() {
    let mut bus = bus();
    let slow = subscriber(&mut bus, READER);
    for n in 0..100 {
        let own = connect_as(&mut bus, READER);
        send(&mut bus, own, Some(":1.0"), 600);
        assert_eq!(waits(&bus, slow), 600 * (n + 1));
        bus.close(own);
        if n == 95 {
            let before = bus.broker.save_shares();
            bus.restart();
            assert_eq!(bus.broker.save_shares(), before);
        }
        bus.broker.check_invariants().unwrap();
    }
    // 27 messages were nobody's, 64 have cells, and 9 are in the one of all others: who comes now has no empty cell.
    let own = connect_as(&mut bus, READER);
    send(&mut bus, own, Some(":1.0"), 100_000);
    assert_eq!(waits(&bus, slow), 60_000);
    // (65 + 1) * (5400 + 8924) - 5400 = 939,984 of 940,000
    assert_eq!(largest(5400, 65, 60_000), 8924);
    send(&mut bus, own, Some(":1.0"), 8925);
    assert_eq!(waits(&bus, slow), 60_000);
    send(&mut bus, own, Some(":1.0"), 8924);
    assert_eq!(waits(&bus, slow), 68_924);
}

#[test]
fn who_must_not_be_slowed_down_is_not() {
    let mut bus = bus();
    let slow = subscriber(&mut bus, READER);
    for uid in [0, UID] {
        let who = connect_as(&mut bus, uid);
        for _ in 0..9 {
            send(&mut bus, who, None, 50_000);
            assert!(!is_held(&bus, who), "{uid}");
        }
    }
    // And of the bus's own user, towards one of that user: as on a session bus.
    let own = subscriber(&mut bus, UID);
    bus.read(slow);
    let who = connect_as(&mut bus, UID);
    for n in 0..12 {
        bus.read(slow);
        send(&mut bus, who, None, 50_000);
        assert_eq!(is_held(&bus, who), n == 11, "{n}");
    }
    bus.wait(12);
    assert!(!is_held(&bus, who) && waits(&bus, own) == 600_000);
}

#[test]
fn for_a_reader_that_is_not_live_nobody_waits_and_it_goes_at_its_limit() {
    let mut bus = bus();
    let slow = subscriber(&mut bus, READER);
    let flooder = connect_as(&mut bus, FLOODER);
    send(&mut bus, flooder, None, 500_000);
    for _ in 0..50 {
        bus.wait(100);
    }
    for _ in 0..11 {
        send(&mut bus, flooder, None, 50_000);
        assert!(!is_held(&bus, flooder) && bus.is_open(slow));
    }
    // One message may pass the limit.
    assert_eq!(waits(&bus, slow), 1_050_000);
    send(&mut bus, flooder, None, 500);
    assert!(!bus.is_open(slow));
    let reason = bus.close_reason(slow).unwrap();
    assert!(
        reason.starts_with(":1.0: it does not read: 1050000 bytes"),
        "{reason}"
    );
}

/// A monitor asked for what is others' business: it pays itself, and nobody waits for it.
#[test]
fn a_monitor_pays_itself() {
    let mut bus = bus();
    let monitor = connect_as(&mut bus, 0);
    bus.become_monitor(monitor, &[]);
    bus.drain(monitor);
    let flooder = connect_as(&mut bus, FLOODER);
    let reader = subscriber(&mut bus, READER);
    bus.drain(monitor);
    for _ in 0..21 {
        assert!(bus.is_open(monitor));
        send(&mut bus, flooder, None, 50_000);
        bus.read(reader);
        assert!(!is_held(&bus, flooder));
    }
    assert_eq!(waits(&bus, monitor), 1_050_000);
    send(&mut bus, flooder, None, 500);
    assert!(!bus.is_open(monitor) && bus.is_open(reader));
}

/// What a user whose broadcasts wait sends otherwise is not slowed down, but for what comes behind them.
#[test]
fn only_signals_wait() {
    let mut bus = bus();
    let slow = subscriber(&mut bus, READER);
    let (one, two) = (connect_as(&mut bus, FLOODER), connect_as(&mut bus, FLOODER));
    let other = connect_as(&mut bus, OTHER);
    let asked = bus.call(other, ":1.2", "Ask");
    for _ in 0..11 {
        send(&mut bus, one, None, 50_000);
    }
    bus.read(two);
    // The other connection answers at once, and its signals wait.
    bus.reply(two, ":1.3", asked);
    bus.expect(other, &[&format!("return () from :1.2 to :1.3 re {asked}")]);
    let serial = bus.call(two, ":1.3", "M");
    bus.expect(other, &["call M() from :1.2 to :1.3"]);
    send(&mut bus, two, None, 500);
    assert!(is_held(&bus, two) && !is_held(&bus, one));
    bus.call(two, ":1.3", "Behind");
    bus.expect(other, &[]);
    bus.reply(other, ":1.2", serial);
    bus.wait(12);
    bus.expect(other, &["call Behind() from :1.2 to :1.3"]);
    assert!(bus.is_open(slow));
}

/// A wait for one message has an end, and however far ahead a clock comes, a restart keeps it.
#[test]
fn clocks_and_waits_have_ends_that_a_restart_keeps() {
    let mut config = shared();
    config.limits.max_outgoing_bytes = 1 << 30;
    config.limits.max_message_size = 64 << 20;
    let mut bus = Bus::new(config, false);
    let slow = subscriber(&mut bus, READER);
    for uid in 0..40 {
        let other = connect_as(&mut bus, OTHER + uid);
        send(&mut bus, other, Some(":1.0"), 20_000);
    }
    let flooder = connect_as(&mut bus, FLOODER);
    let mut message = 0;
    while bus.broker.save_pacing() == Default::default() {
        message += 1;
        assert!(message < 20);
        send(&mut bus, flooder, None, 32 << 20);
    }
    // 8 s for each of 41 parties, but a minute at the most.
    send(&mut bus, flooder, None, 500);
    assert!(is_held(&bus, flooder));
    let until = bus.broker.paced_until(bus.peer(flooder)).unwrap().0;
    assert_eq!(until, 60_000);
    let before = bus.broker.save_shares();
    bus.restart();
    assert_eq!(bus.broker.save_shares(), before);
    bus.wait(59_999);
    assert!(is_held(&bus, flooder) && bus.is_open(slow));
    bus.wait(1);
    assert!(!is_held(&bus, flooder));
}

/// A message with descriptors that waits is complete: its sender does not go for them.
#[test]
fn descriptors_of_a_message_that_waits_are_not_overdue() {
    let mut config = shared();
    config.limits.pending_fd_timeout = 5;
    check_with(&config, |bus| {
        let slow = subscriber(bus, READER);
        let flooder = connect_with(bus, FLOODER, "NEGOTIATE_UNIX_FD\r\n");
        for _ in 0..11 {
            send(bus, flooder, None, 50_000);
        }
        // 11.9 ms are to be waited for, and the descriptors' time is 5 ms.
        let fd = bus.descriptors.make();
        let body = "x".repeat(100);
        let signal = MessageBuilder::signal("/", "a.b", "S").unix_fds(1).body(|w| {
            w.str(&body);
        });
        let whole = signal.serial(77_u32).build().unwrap();
        bus.bytes(flooder, &whole[..60], &[fd]);
        assert!(!is_held(bus, flooder));
        bus.bytes(flooder, &whole[60..], &[]);
        assert!(is_held(bus, flooder));
        bus.wait(11);
        assert!(is_held(bus, flooder) && bus.is_open(flooder));
        bus.wait(1);
        assert!(!is_held(bus, flooder) && bus.is_open(flooder) && bus.is_open(slow));
        assert_eq!(bus.broker.next_deadline(), None);
    });
}

/// However many peers of a user wait, each waits once: the times are reserved in order.
#[test]
fn peers_of_a_user_wait_one_after_the_other() {
    check_with(&shared(), |bus| {
        let slow = subscriber(bus, READER);
        let flooders: Vec<Who> = (0..5).map(|_| connect_as(bus, FLOODER)).collect();
        for _ in 0..11 {
            send(bus, flooders[0], None, 50_000);
        }
        for who in &flooders {
            send(bus, *who, None, 20_000);
            assert!(is_held(bus, *who));
        }
        let mut left = Vec::new();
        let mut now = 0;
        let each = reading_time(20_000, 1);
        for n in 0..5 {
            let due = (11_921 + n * each).div_ceil(1000);
            bus.wait(due - 1 - now);
            left.push(flooders.iter().filter(|who| is_held(bus, **who)).count());
            bus.wait(1);
            now = due;
            left.push(flooders.iter().filter(|who| is_held(bus, **who)).count());
        }
        assert_eq!(left, [5, 4, 4, 3, 3, 2, 2, 1, 1, 0]);
        assert_eq!(waits(bus, slow), 650_000);
        assert_eq!(bus.broker.next_deadline(), None);
    });
}

/// Small signals one by one are slowed down to what is promised, and no further: a wait takes as long as what is sent.
#[test]
fn small_signals_one_by_one_come_down_to_the_floor_and_not_below() {
    let mut bus = bus();
    let slow = subscriber(&mut bus, READER);
    let flooder = connect_as(&mut bus, FLOODER);
    send(&mut bus, flooder, None, 500_000);
    let mut sent = 0;
    for _ in 0..1000 {
        while !is_held(&bus, flooder) {
            send(&mut bus, flooder, None, 1000);
            sent += 1000;
        }
        bus.wait(1);
        // As fast as it is sent to, so that it has half of the queue all the time.
        bus.take(slow, waits(&bus, slow).saturating_sub(500_000));
    }
    assert!(sent > 4_194_000 * 9 / 10 && sent < 4_194_000 * 11 / 10, "{sent}");
}

#[test]
fn whoever_is_gone_waits_no_more() {
    check_with(&shared(), |bus| {
        subscriber(bus, READER);
        let flooder = connect_as(bus, FLOODER);
        for _ in 0..12 {
            send(bus, flooder, None, 50_000);
        }
        assert!(is_held(bus, flooder));
        bus.close(flooder);
        assert_eq!(bus.broker.next_deadline(), None);
    });
}

/// The floor of all: flooders of a user that never rest, and a reader that reads just fast enough. It stays, and each
/// flooder gets on.
#[test]
fn a_live_reader_stays_however_much_another_user_sends() {
    let mut bus = bus();
    let slow = subscriber(&mut bus, READER);
    let flooders: Vec<Who> = (0..7).map(|_| connect_as(&mut bus, FLOODER)).collect();
    let innocent = connect_as(&mut bus, OTHER);
    let mut sent = [0; 7];
    let (mut longest, mut refused) = (0, 0);
    for _ in 0..1000 {
        for (n, who) in flooders.iter().enumerate() {
            let mut burst = 0;
            while bus.broker.may_read(bus.peer(*who)) && burst < 40 {
                send(&mut bus, *who, None, 20_000);
                send(&mut bus, *who, Some(":1.0"), 20_000);
                burst += 1;
                sent[n] += 1;
            }
        }
        longest = longest.max(waits(&bus, slow));
        let before = waits(&bus, slow);
        send(&mut bus, innocent, Some(":1.0"), 500);
        refused += u64::from(waits(&bus, slow) == before);
        bus.wait(20);
        // 4 MiB in a second.
        bus.take(slow, before.min(83_887));
        assert!(bus.is_open(slow), "{sent:?}");
    }
    assert!(longest < LIMIT, "{longest}");
    assert_eq!(refused, 0, "of those who send little");
    assert!(sent.iter().all(|sent| *sent > 150), "{sent:?}");
}

/// The state in the middle of a wait, saved by a checkpoint: what was begun before goes on.
#[test]
fn shares_and_waits_survive_a_restart() {
    let mut bus = bus();
    let slow = subscriber(&mut bus, READER);
    let flooder = connect_as(&mut bus, FLOODER);
    bus.wait(10);
    for _ in 0..12 {
        send(&mut bus, flooder, None, 50_000);
    }
    let before = bus.broker.save_shares();
    bus.restart();
    assert_eq!(bus.broker.save_shares(), before);
    assert!(is_held(&bus, flooder));
    bus.broker.check_invariants().unwrap();
    bus.wait(12);
    assert_eq!(waits(&bus, slow), 600_000);
    // Records that cannot be are left out, and cost nobody anything.
    let mut state = bus.broker.save();
    let nobody = PeerId {
        index: 77,
        generation: 7,
    };
    for share in &mut state.shares.peers {
        share.moved_to(nobody);
    }
    let (restored, dropped) = bus_daemon::broker::Broker::restore(state).unwrap();
    assert_eq!(dropped, []);
    restored.check_invariants().unwrap();
    assert!(
        restored
            .save_shares()
            .peers
            .iter()
            .all(|share| !share.has_cells())
    );
}
