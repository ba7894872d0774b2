//! A bus with everything in it that a connection can be in the middle of.

use bus_daemon::config::Config;
use bus_wire::MessageBuilder;

use crate::bus::{Bus, DRIVER, PATH, config, one_way};

/// Peers whose records depend on nobody else's.
pub const ALONE: [&str; 5] = ["mid-message", "mid-line", "greeting", "long rule", "nobody"];

pub struct Rich {
    pub bus: Bus,
    /// What each peer is in the middle of; by its index.
    pub roles: Vec<&'static str>,
}

pub fn rich() -> Rich {
    let config = Config {
        eavesdrop_allowed: true,
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
