use bus_wire::{Endian, Flags, MessageBuilder};

use bus_daemon::config::Simple;

use crate::bus::{OWNER, check, check_with, config, one_way, policy};

#[test]
fn a_call_and_its_reply() {
    check(|bus| {
        let (caller, callee) = (bus.connect(), bus.connect());
        let serial = bus.call(caller, ":1.1", "M");
        bus.expect(callee, &["call M() from :1.0 to :1.1"]);
        bus.reply(callee, ":1.0", serial);
        bus.expect(caller, &["return () from :1.1 to :1.0 re 2"]);
        // The second reply to one call is none.
        bus.reply(callee, ":1.0", serial);
        bus.expect(caller, &[]);
    });
}

#[test]
fn a_peer_may_call_itself() {
    check(|bus| {
        let who = bus.connect();
        let serial = bus.call(who, ":1.0", "M");
        bus.reply(who, ":1.0", serial);
        bus.expect(
            who,
            &["call M() from :1.0 to :1.0", "return () from :1.0 to :1.0 re 2"],
        );
    });
}

#[test]
fn a_sender_that_is_made_up_is_overwritten() {
    check(|bus| {
        let (liar, other) = (bus.connect(), bus.connect());
        for endian in [Endian::Little, Endian::Big] {
            let call = MessageBuilder::signal("/", "a.b", "S")
                .destination(":1.1")
                .sender("x.y")
                .endian(endian);
            bus.send(liar, call);
        }
        bus.expect(other, &["signal S() from :1.0 to :1.1"; 2]);
    });
}

#[test]
fn replies_that_nobody_waits_for_are_dropped() {
    check(|bus| {
        let (caller, callee, other) = (bus.connect(), bus.connect(), bus.connect());
        bus.reply(callee, ":1.0", 2);
        let serial = bus.call(caller, ":1.1", "M");
        bus.reply(other, ":1.0", serial);
        let no_reply = bus.send(caller, one_way(":1.1", "N"));
        bus.reply(callee, ":1.0", no_reply);
        // A call that carries a reply serial is not a reply.
        bus.send(
            callee,
            MessageBuilder::error("a.Error", serial).destination(":1.0"),
        );
        bus.expect(caller, &["error a.Error() from :1.1 to :1.0 re 2"]);
    });
}

#[test]
fn a_policy_may_let_replies_pass_that_nobody_waits_for() {
    let mut config = config();
    config.policy = policy(Simple {
        unrequested_replies_allowed: true,
        ..OWNER
    });
    check_with(&config, |bus| {
        let (one, two) = (bus.connect(), bus.connect());
        bus.reply(two, ":1.0", 99);
        bus.expect(one, &["return () from :1.1 to :1.0 re 99"]);
    });
}

/// What a call to a name that nobody owns is answered with.
#[track_caller]
fn check_unowned(name: &str, flags: Flags, answer: &[&str]) {
    check(|bus| {
        let who = bus.connect();
        bus.send(
            who,
            MessageBuilder::method_call("/", "M")
                .destination(name)
                .flags(flags),
        );
        bus.expect(who, answer);
    });
}

#[test]
fn nobody_owns_the_name() {
    let unknown = |name| {
        format!(
            "error ServiceUnknown(The name {name} was not provided by any .service files) from bus to :1.0 re 2"
        )
    };
    check_unowned("x.y", Flags::NONE, &[&unknown("x.y")]);
    for name in [":1.7", ":1.00", ":1.0x", ":2.0", ":1.99999999999999999999999"] {
        check_unowned(name, Flags::NONE, &[&unknown(name)]);
    }
    let no_owner = "error NameHasNoOwner(Name \"x.y\" does not exist) from bus to :1.0 re 2";
    check_unowned("x.y", Flags::NO_AUTO_START, &[no_owner]);
    check_unowned("x.y", Flags::NO_REPLY_EXPECTED, &[]);
}

#[test]
fn calls_without_a_destination() {
    check(|bus| {
        let who = bus.connect();
        bus.send(
            who,
            MessageBuilder::method_call("/", "Ping").interface("org.freedesktop.DBus.Peer"),
        );
        bus.send(who, MessageBuilder::method_call("/", "X").interface("a.b"));
        let got = bus.read(who);
        assert_eq!(got[0], "return () from bus to :1.0 re 2");
        assert!(got[1].starts_with("error UnknownMethod(Method \"X\""), "{got:?}");
    });
}

#[test]
fn a_callee_that_leaves_answers_with_no_reply() {
    const TEXT: &str = "Message recipient disconnected from message bus without replying";
    check(|bus| {
        let (caller, callee) = (bus.connect(), bus.connect());
        bus.call(caller, ":1.1", "M");
        bus.call(caller, ":1.1", "N");
        bus.send(caller, one_way(":1.1", "O"));
        bus.close(callee);
        bus.expect(
            caller,
            &[
                &format!("error NoReply({TEXT}) from bus to :1.0 re 2"),
                &format!("error NoReply({TEXT}) from bus to :1.0 re 3"),
            ],
        );
    });
}

#[test]
fn a_caller_that_leaves_is_forgotten() {
    check(|bus| {
        let (caller, callee) = (bus.connect(), bus.connect());
        let serial = bus.call(caller, ":1.1", "M");
        bus.close(caller);
        bus.read(callee);
        bus.reply(callee, ":1.0", serial);
        bus.expect(callee, &[]);
    });
}

#[test]
fn a_call_may_time_out() {
    let mut config = config();
    config.limits.reply_timeout = Some(500);
    check_with(&config, |bus| {
        let (caller, callee) = (bus.connect(), bus.connect());
        let answered = bus.call(caller, ":1.1", "M");
        bus.wait(100);
        let forgotten = bus.call(caller, ":1.1", "N");
        bus.wait(399);
        bus.reply(callee, ":1.0", answered);
        bus.wait(101);
        bus.reply(callee, ":1.0", forgotten);
        let text = "Message did not receive a reply (timeout by message bus)";
        bus.expect(
            caller,
            &[
                "return () from :1.1 to :1.0 re 2",
                &format!("error NoReply({text}) from bus to :1.0 re 3"),
            ],
        );
    });
}

#[test]
fn open_calls_are_limited_and_their_serials_distinct() {
    let mut config = config();
    config.limits.max_replies_per_connection = 2;
    check_with(&config, |bus| {
        let (caller, callee) = (bus.connect(), bus.connect());
        bus.call(caller, ":1.1", "A");
        let again = MessageBuilder::method_call("/", "A")
            .interface("a.b")
            .destination(":1.1")
            .serial(2u32);
        bus.bytes(caller, &again.build().unwrap(), &[]);
        bus.call(caller, ":1.1", "B");
        bus.call(caller, ":1.1", "C");
        bus.expect(
            caller,
            &[
                "error AccessDenied(Message has the same reply serial as a currently-outstanding existing method \
                 call) from bus to :1.0 re 2",
                "error LimitsExceeded(The maximum number of pending replies per connection has been reached) from \
                 bus to :1.0 re 4",
            ],
        );
        bus.expect(
            callee,
            &["call A() from :1.0 to :1.1", "call B() from :1.0 to :1.1"],
        );
    });
}
