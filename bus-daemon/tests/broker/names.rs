use crate::bus::{check, check_with, config};

const ALLOW: u32 = 1;
const REPLACE: u32 = 2;

#[test]
fn the_new_owner_hears_before_the_answer() {
    check(|bus| {
        let (watcher, owner) = (bus.connect(), bus.connect());
        bus.add_match(watcher, "member='NameOwnerChanged',arg0='x.y'");
        bus.add_match(owner, "member='NameOwnerChanged',arg0='x.y'");
        bus.request_name(owner, "x.y", 0);
        bus.expect(
            owner,
            &[
                "signal NameOwnerChanged(x.y, , :1.1) from bus",
                "signal NameAcquired(x.y) from bus to :1.1",
                "return (1) from bus to :1.1 re 3",
            ],
        );
        bus.expect(watcher, &["signal NameOwnerChanged(x.y, , :1.1) from bus"]);
        bus.driver(owner, "ReleaseName", |w| {
            w.str("x.y");
        });
        bus.expect(
            owner,
            &[
                "signal NameLost(x.y) from bus to :1.1",
                "signal NameOwnerChanged(x.y, :1.1, ) from bus",
                "return (1) from bus to :1.1 re 4",
            ],
        );
        bus.expect(watcher, &["signal NameOwnerChanged(x.y, :1.1, ) from bus"]);
    });
}

#[test]
fn a_name_is_taken_over() {
    check(|bus| {
        let (old, new) = (bus.connect(), bus.connect());
        bus.request_name(old, "x.y", ALLOW);
        bus.read(old);
        bus.request_name(new, "x.y", REPLACE);
        bus.expect(old, &["signal NameLost(x.y) from bus to :1.0"]);
        bus.expect(
            new,
            &[
                "signal NameAcquired(x.y) from bus to :1.1",
                "return (1) from bus to :1.1 re 2",
            ],
        );
        bus.close(new);
        bus.expect(old, &["signal NameAcquired(x.y) from bus to :1.0"]);
    });
}

#[test]
fn who_waits_gets_the_name_in_turn() {
    check(|bus| {
        let peers = [bus.connect(), bus.connect(), bus.connect()];
        for who in peers {
            bus.request_name(who, "x.y", 0);
            bus.read(who);
        }
        bus.close(peers[0]);
        bus.expect(peers[1], &["signal NameAcquired(x.y) from bus to :1.1"]);
        bus.expect(peers[2], &[]);
        bus.call(peers[2], "x.y", "M");
        bus.expect(peers[1], &["call M() from :1.2 to x.y"]);
    });
}

#[test]
fn all_names_of_a_peer_that_leaves_are_released_the_newest_first() {
    check(|bus| {
        let (watcher, owner) = (bus.connect(), bus.connect());
        for name in ["b.b", "a.a", "c.c"] {
            bus.request_name(owner, name, 0);
        }
        bus.add_match(watcher, "member='NameOwnerChanged'");
        bus.close(owner);
        bus.expect(
            watcher,
            &[
                "signal NameOwnerChanged(c.c, :1.1, ) from bus",
                "signal NameOwnerChanged(a.a, :1.1, ) from bus",
                "signal NameOwnerChanged(b.b, :1.1, ) from bus",
                "signal NameOwnerChanged(:1.1, :1.1, ) from bus",
            ],
        );
    });
}

#[test]
fn names_are_limited() {
    let mut config = config();
    config.limits.max_names_per_connection = 3;
    check_with(&config, |bus| {
        let who = bus.connect();
        for (name, is_answer) in [("a.a", true), ("b.b", true), ("c.c", false), ("a.a", true)] {
            bus.request_name(who, name, 0);
            let got = bus.read(who);
            assert_eq!(
                got.last().unwrap().starts_with("return"),
                is_answer,
                "{name}: {got:?}"
            );
        }
    });
}
