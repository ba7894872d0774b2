//! A bus with everything in it that a connection can be in the middle of.

use bus_daemon::broker::{Errand, Event};
use bus_daemon::config::policy::{
    Context, Ids, MessageRule, NamePattern, Place, Policy, PolicyBlock, Rule, Subject,
};
use bus_daemon::config::{Config, Simple};
use bus_wire::MessageBuilder;

use crate::bus::{Bus, DRIVER, OWNER, PATH, config, one_way, policy};

/// Peers whose records depend on nobody else's.
pub const ALONE: [&str; 5] = ["mid-message", "mid-line", "greeting", "long rule", "nobody"];

pub struct Rich {
    pub bus: Bus,
    /// What each peer is in the middle of; by its index.
    pub roles: Vec<&'static str>,
}

pub fn rich() -> Rich {
    let config = Config {
        policy: policy(Simple {
            eavesdrop_allowed: true,
            ..OWNER
        }),
        // As ever: the golden images have it.
        auth: vec![bus_wire::Mechanism::External, bus_wire::Mechanism::Anonymous],
        ..config()
    };
    let mut bus = Bus::new(config, false);
    let mut roles = Vec::new();
    let mut join = |bus: &mut Bus, role| {
        roles.push(role);
        bus.connect()
    };
    let watcher = join(&mut bus, "watcher");
    bus.add_match(watcher, "member='NameOwnerChanged'");
    let owner = join(&mut bus, "owner");
    bus.request_name(owner, "x.y", 1);
    bus.request_name(owner, "z.z", 0);
    let waiter = join(&mut bus, "waiter and caller");
    bus.request_name(waiter, "x.y", 0);
    let half = join(&mut bus, "mid-message");
    let fd = bus.descriptors.make();
    let message = one_way(":1.1", "Half").serial(9u32).unix_fds(1).body(|w| {
        w.unix_fd_index(0);
    });
    let message = message.build().unwrap();
    bus.bytes(half, &message[..message.len() - 3], &[fd]);
    let receiver = join(&mut bus, "queue with descriptors");
    let sender = join(&mut bus, "sender");
    for (who, rule) in [
        (sender, "member='Big'"),
        (receiver, "member='Big',path_namespace='/'"),
    ] {
        bus.add_match(who, rule);
    }
    for who in [watcher, owner, waiter, receiver, sender] {
        bus.read(who);
    }
    for count in [1, 3] {
        let fds: Vec<_> = (0..count).map(|_| bus.descriptors.make()).collect();
        bus.send_with_fds(sender, one_way(":1.4", "Take"), &fds);
    }
    let text = "shared ".repeat(150);
    for _ in 0..2 {
        let big = MessageBuilder::signal("/", "a.b", "Big").body(|w| {
            w.str(&text);
        });
        bus.send(owner, big);
    }
    // One of the two has taken a part of the first already.
    bus.take(sender, 700);
    bus.call(waiter, "x.y", "Question");
    bus.call(waiter, "x.y", "Again");
    let caller = join(&mut bus, "waits for an upgrade");
    let upgrade = MessageBuilder::method_call(PATH, "Upgrade")
        .interface("org.busdaemon.Restart1")
        .destination(DRIVER)
        .body(|w| {
            w.str("");
        });
    bus.send(caller, upgrade);
    let reloads = join(&mut bus, "waits for a reload");
    bus.driver(reloads, "ReloadConfig", |_| {});
    let long = join(&mut bus, "long rule");
    bus.add_match(long, &format!("member='Long',arg0={}", "\\'".repeat(490)));
    bus.add_match(long, "eavesdrop='true',member='Whispered'");
    bus.add_match(long, "eavesdrop='true',member='Whispered'");
    bus.read(long);
    let parked = join(&mut bus, "parked");
    bus.add_match(parked, "member='Big'");
    let monitor = join(&mut bus, "monitor");
    bus.become_monitor(monitor, &["member='Big'", "type='error'"]);
    join(&mut bus, "nobody");
    bus.detach(parked);
    roles.extend(["nul", "mid-line", "waiting for begin", "greeting"]);
    bus.accept();
    let line = bus.accept();
    bus.bytes(line, b"\0AUTH EXTERNAL 313", &[]);
    let begin = bus.accept();
    bus.bytes(begin, b"\0AUTH EXTERNAL 31303030\r\nNEGOTIATE_UNIX_FD\r\n", &[]);
    let greeting = bus.authenticate();
    bus.bytes(greeting, b"l\x01\0\x01\0\0", &[]);
    bus.wait(1234);
    bus.asked();
    Rich { bus, roles }
}

/// The same with a policy that has something of everything, after a reload.
pub fn ruled() -> Bus {
    let mut bus = rich().bus;
    let mut config = bus_daemon::config::Config {
        limits: bus_daemon::config::Limits::session(),
        ..config()
    };
    config.policy = std::sync::Arc::new(of_everything());
    bus.descriptors.at_console.insert(crate::bus::UID);
    bus.event(Event::ReloadRequested);
    for _ in 0..10 {
        let open = bus.broker.open_errands().into_iter();
        let mut readings = open.filter(|(_, what)| *what == Errand::LoadConfiguration);
        if let Some((errand, _)) = readings.next() {
            bus.end_reading(errand, Ok(config));
            return bus;
        }
        bus.wait(500);
    }
    panic!("the configuration is not read");
}

fn of_everything() -> Policy {
    let place = |line| Place {
        file: format!("/etc/{}.conf", line % 2),
        line,
    };
    let rule = |line, allow, subject| Rule {
        allow,
        log: line % 3 == 0,
        subject,
        place: place(line),
    };
    let mut all = MessageRule::any(false);
    all.interface = Some("a.b".into());
    all.member = Some("M".into());
    all.path = Some("/p".into());
    all.message_type = Some(bus_wire::MessageType::Signal);
    all.other = Some(NamePattern::Prefix("a".into()));
    all.broadcast = Some(false);
    (all.requested_reply, all.eavesdrop, all.min_fds, all.max_fds) = (true, true, 1, 7);
    let some = MessageRule {
        error: Some("a.E".into()),
        other: Some(NamePattern::Exact("a.b".into())),
        ..MessageRule::any(true)
    };
    let block = |context, rules| PolicyBlock { context, rules };
    let blocks = vec![
        block(
            Context::Default,
            vec![
                rule(1, true, Subject::User(None)),
                rule(2, true, Subject::Send(MessageRule::any(true))),
                rule(3, true, Subject::Receive(MessageRule::any(true))),
                rule(4, true, Subject::Own(NamePattern::Any)),
            ],
        ),
        block(
            Context::Group("g".into()),
            vec![rule(5, false, Subject::Send(all.clone()))],
        ),
        block(
            Context::User("7".into()),
            vec![rule(6, false, Subject::Receive(all))],
        ),
        block(
            Context::AtConsole(true),
            vec![rule(7, true, Subject::Receive(some))],
        ),
        block(
            Context::AtConsole(false),
            vec![rule(8, false, Subject::Own(NamePattern::Prefix("p.q".into())))],
        ),
        block(
            Context::Mandatory,
            vec![
                rule(9, false, Subject::Own(NamePattern::Exact("n.o".into()))),
                rule(10, false, Subject::User(Some("7".into()))),
                rule(11, false, Subject::Group(Some("g".into()))),
                rule(12, true, Subject::Group(None)),
            ],
        ),
    ];
    Policy {
        blocks,
        ids: Ids {
            users: [("7".to_owned(), 7)].into(),
            groups: [("g".to_owned(), 12)].into(),
        },
    }
}
