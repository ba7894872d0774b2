//! What the driver says of names is of whoever's doing it is: that user's calls wait for live readers, and nobody else's do.

use bus_daemon::broker::Action;
use bus_daemon::config::Config;

use crate::bus::{Bus, Who, check_with};
use crate::shares::{FLOODER, OTHER, READER, connect_as, is_held, say_hello, shared, waits};

/// Bytes that may wait for a peer.
const LIMIT: u64 = 150_000;

fn config() -> Config {
    let mut config = shared();
    config.limits.max_outgoing_bytes = LIMIT;
    config
}

/// A reader of all changes of names, for which nothing waits.
fn watcher(bus: &mut Bus, uid: u32) -> Who {
    let who = connect_as(bus, uid);
    bus.add_match(who, "member='NameOwnerChanged'");
    who
}

fn name(n: u64) -> String {
    format!("a{n:03}.{}", "b".repeat(200))
}

/// Asks for a name that nobody has.
fn ask(bus: &mut Bus, who: Who, n: u64) {
    bus.request_name(who, &name(n), 0);
}

/// Asks for new names until the next call waits, and reads the answers. The number of the one that waits.
fn ask_until_held(bus: &mut Bus, who: Who) -> u64 {
    let mut n = 0;
    while !is_held(bus, who) {
        bus.read(who);
        n += 1;
        assert!(n < 999);
        ask(bus, who, n);
    }
    bus.read(who);
    n
}

#[test]
fn whoever_asks_for_names_waits_for_those_who_hear_of_it() {
    check_with(&config(), |bus| {
        let slow = watcher(bus, READER);
        let (flooder, other) = (connect_as(bus, FLOODER), connect_as(bus, OTHER));
        let also = connect_as(bus, FLOODER);
        let root = connect_as(bus, 0);
        bus.read(slow);
        bus.asked();
        let n = ask_until_held(bus, flooder);
        assert_eq!(bus.asked(), [Action::StopReading(bus.peer(flooder))]);
        // Half of the queue at once (what is nobody's beside it), and 10 ms ahead: 42,000 bytes.
        let queued = waits(bus, slow);
        assert!(queued > 124_500 && queued < 126_000, "{queued}");
        let due = bus.broker.next_deadline().unwrap().0;
        assert_eq!(due, 11);
        // What tells nobody anything does not wait, nor do others.
        bus.driver(also, "GetNameOwner", |w| {
            w.str(&name(n - 1));
        });
        bus.expect(also, &["return (:1.1) from bus to :1.3 re 2"]);
        bus.request_name(other, "other.name", 0);
        assert_eq!(bus.read(other).len(), 2);
        bus.request_name(root, "root.name", 0);
        assert_eq!(bus.read(root).len(), 2);
        // What does waits, of each peer of the user, for what is before it.
        bus.driver(also, "ReleaseName", |w| {
            w.str("not.there");
        });
        assert!(is_held(bus, also) && is_held(bus, flooder));
        bus.wait(due);
        assert!(!is_held(bus, flooder));
        assert_eq!(bus.read(flooder).len(), 2);
        bus.wait(1);
        assert!(!is_held(bus, also) && bus.is_open(slow));
        bus.expect(also, &["return (2) from bus to :1.3 re 3"]);
        assert_eq!(bus.broker.next_deadline(), None);
    });
}

/// Whoever has only just connected has no names yet, and says Hello later; it does not go for that.
#[test]
fn newcomers_of_the_user_wait_and_no_others() {
    let mut config = config();
    config.limits.auth_timeout = 5;
    check_with(&config, |bus| {
        let slow = watcher(bus, READER);
        let flooder = connect_as(bus, FLOODER);
        bus.read(slow);
        ask_until_held(bus, flooder);
        let late = say_hello(bus, FLOODER, "");
        assert!(is_held(bus, late));
        let other = say_hello(bus, OTHER, "");
        assert!(bus.read(other)[0].starts_with("return (:1.2) "));
        assert!(is_held(bus, flooder));
        bus.wait(10);
        assert!(is_held(bus, late) && is_held(bus, flooder));
        // The flooder has had its turn, and then the newcomer.
        bus.wait(2);
        assert!(!is_held(bus, late) && bus.is_open(late));
        assert!(bus.read(late)[0].starts_with("return (:1.3) "));
        assert_eq!(bus.broker.next_deadline(), None);
    });
}

/// Many names go with their owner: who of its user comes next waits.
#[test]
fn who_leaves_with_many_names_makes_its_user_wait() {
    let bus = &mut Bus::new(config(), false);
    let slow = watcher(bus, READER);
    let (owner, also) = (connect_as(bus, FLOODER), connect_as(bus, FLOODER));
    for n in 0..250 {
        ask(bus, owner, n);
        bus.read(slow);
        bus.read(owner);
    }
    bus.close(owner);
    let queued = waits(bus, slow);
    assert!(queued > LIMIT / 2 && queued < LIMIT, "{queued}");
    ask(bus, also, 1);
    // It was a little: 10 ms more of it are for nothing.
    assert!(!is_held(bus, also));
    let n = 1 + ask_until_held(bus, also);
    assert!(n < 150, "{n}");
    assert!(bus.is_open(slow));
}

/// Who takes a name from another, and gives it back, makes that one's messages wait, and not the other way round.
#[test]
fn a_name_that_goes_to_and_fro_is_of_whoever_makes_it_go() {
    check_with(&config(), |bus| {
        let slow = connect_as(bus, READER);
        let flooder = connect_as(bus, FLOODER);
        bus.request_name(slow, &name(0), 1);
        bus.read(slow);
        let mut times = 0;
        while !is_held(bus, flooder) {
            bus.request_name(flooder, &name(0), 2);
            if !is_held(bus, flooder) {
                bus.driver(flooder, "ReleaseName", |w| {
                    w.str(&name(0));
                });
            }
            bus.read(flooder);
            times += 1;
            assert!(times < 900 && bus.is_open(slow));
        }
        let queued = waits(bus, slow);
        assert!(queued > LIMIT / 2 && queued < LIMIT, "{queued}");
        // The one that is told is not slowed down.
        bus.request_name(slow, "another.name", 0);
        assert!(!is_held(bus, slow));
    });
}

/// Flooders that never rest, by names and by coming and going, and a reader that reads just fast enough: it stays, and each
/// flooder gets on. No call waits for more than five seconds.
#[test]
fn a_live_reader_outlives_any_flood_of_names() {
    let mut bus = Bus::new(config(), false);
    let slow = watcher(&mut bus, READER);
    let flooders: Vec<Who> = (0..5).map(|_| connect_as(&mut bus, FLOODER)).collect();
    let mut asked = [0; 5];
    let mut visitors: Vec<Who> = Vec::new();
    let mut visits = 0;
    let mut longest = 0;
    for round in 0..200 {
        for (n, who) in flooders.iter().enumerate() {
            let mut burst = 0;
            while bus.broker.may_read(bus.peer(*who)) && burst < 100 {
                let text = name(n as u64);
                if asked[n] % 2 == 0 {
                    bus.request_name(*who, &text, 0);
                } else {
                    bus.driver(*who, "ReleaseName", |w| {
                        w.str(&text);
                    });
                }
                bus.drain(*who);
                burst += 1;
                asked[n] += 1;
            }
        }
        let is_here = |bus: &Bus, who: Who| bus.broker.identity_of(bus.peer(who)).is_some();
        if visitors.len() < 20 {
            visitors.push(bus.accept_as(bus_daemon::broker::Credentials {
                uid: Some(FLOODER),
                gid: Some(FLOODER),
                pid: Some(50),
            }));
            let who = *visitors.last().unwrap();
            bus.bytes(who, b"\0AUTH EXTERNAL 32303032\r\nBEGIN\r\n", &[]);
            bus.driver(who, "Hello", |_| {});
        }
        for who in std::mem::take(&mut visitors) {
            if is_here(&bus, who) && !is_held(&bus, who) {
                visits += 1;
                bus.close(who);
            } else {
                visitors.push(who);
            }
        }
        let queued = waits(&bus, slow);
        longest = longest.max(queued);
        assert!(bus.is_open(slow), "in round {round}: {asked:?}, {visits}");
        bus.wait(20);
        bus.take(slow, queued.min(83_887));
        let until = bus.broker.next_deadline().map_or(0, |due| due.0);
        assert!(until <= 20 * (round + 1) + 5000);
    }
    assert!(longest < LIMIT, "{longest}");
    assert!(
        asked.iter().all(|asked| *asked > 100) && visits > 100,
        "{asked:?}, {visits}"
    );
}
