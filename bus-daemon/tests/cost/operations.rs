//! Every operation: each method of the driver, each kind of message, each way to leave.

use bus_daemon::broker::Event;
use bus_wire::MessageBuilder;

use crate::rig::{QUEUED, Rig};
use crate::support::DRIVER;
use crate::support::driver::{MONITORING, PROPERTIES, RESTART, STATS, drop_ref};

/// One operation.
pub struct Operation {
    pub name: &'static str,
    /// Gets the bus ready; the events are what is counted.
    pub prepare: fn(&mut Rig) -> Vec<Event>,
    /// It is none of the work that the core counts itself.
    pub is_quiet: bool,
    /// Each of many names is given up, and each subscriber is told of each: so many messages are what is asked for.
    pub tells_each: bool,
}

const fn operation(name: &'static str, prepare: fn(&mut Rig) -> Vec<Event>) -> Operation {
    Operation {
        name,
        prepare,
        is_quiet: false,
        tells_each: false,
    }
}

/// One by which a peer with many names leaves.
const fn departure(name: &'static str, prepare: fn(&mut Rig) -> Vec<Event>) -> Operation {
    Operation {
        tells_each: true,
        ..operation(name, prepare)
    }
}

/// A call by Alice, who has nothing, with these texts.
macro_rules! asks {
    ($interface:expr, $member:literal $(, $text:expr)*) => {
        operation($member, |rig| {
            rig.call_as(rig.alice, $interface, $member, |_w| {
                $(_w.str($text);)*
            })
        })
    };
}

const PEER: &str = "org.freedesktop.DBus.Peer";

/// In this order: who leaves has left for those after it.
pub const OPERATIONS: &[Operation] = &[
    operation("connect, authenticate, Hello", |rig| {
        let peer = rig.bus.connect();
        rig.call_as(peer, DRIVER, "Hello", |_| ())
    }),
    operation("RequestName, of nobody's", |rig| {
        let name = rig.new_name();
        rig.call_as(rig.alice, DRIVER, "RequestName", |w| {
            drop_ref(w.str(&name).u32(0))
        })
    }),
    operation("RequestName, behind others", |rig| {
        rig.call_as(rig.alice, DRIVER, "RequestName", |w| {
            drop_ref(w.str(QUEUED).u32(0))
        })
    }),
    operation("ReleaseName, behind others", |rig| {
        rig.call_as(rig.alice, DRIVER, "ReleaseName", |w| drop_ref(w.str(QUEUED)))
    }),
    operation("RequestName, refused", |rig| {
        rig.call_as(rig.alice, DRIVER, "RequestName", |w| {
            drop_ref(w.str(QUEUED).u32(4))
        })
    }),
    operation("ReleaseName, owned", |rig| {
        let name = rig.new_name();
        rig.ask(rig.alice, "RequestName", |w| drop_ref(w.str(&name).u32(0)));
        rig.call_as(rig.alice, DRIVER, "ReleaseName", |w| drop_ref(w.str(&name)))
    }),
    asks!(DRIVER, "NameHasOwner", QUEUED),
    asks!(DRIVER, "GetNameOwner", QUEUED),
    asks!(DRIVER, "ListNames"),
    asks!(DRIVER, "ListActivatableNames"),
    asks!(DRIVER, "ListQueuedOwners", QUEUED),
    operation("StartServiceByName", |rig| {
        rig.call_as(rig.alice, DRIVER, "StartServiceByName", |w| {
            drop_ref(w.str(QUEUED).u32(0))
        })
    }),
    operation("UpdateActivationEnvironment", |rig| {
        rig.call_as(rig.alice, DRIVER, "UpdateActivationEnvironment", |w| {
            w.array("{ss}", |w| {
                w.dict_entry(|w| drop_ref(w.str("KEY").str("value")));
            });
        })
    }),
    asks!(DRIVER, "AddMatch", "arg5='x',path_namespace='/own/a'"),
    asks!(DRIVER, "RemoveMatch", "arg5='x',path_namespace='/own/a'"),
    asks!(DRIVER, "GetConnectionUnixUser", QUEUED),
    asks!(DRIVER, "GetConnectionUnixProcessID", QUEUED),
    asks!(DRIVER, "GetAdtAuditSessionData", QUEUED),
    asks!(DRIVER, "GetConnectionSELinuxSecurityContext", QUEUED),
    asks!(DRIVER, "GetConnectionCredentials", QUEUED),
    asks!(DRIVER, "GetId"),
    asks!(DRIVER, "ReloadConfig"),
    asks!(PROPERTIES, "Get", DRIVER, "Features"),
    asks!(PROPERTIES, "GetAll", RESTART),
    operation("Set", |rig| {
        rig.call_as(rig.alice, PROPERTIES, "Set", |w| {
            w.str(DRIVER)
                .str("Features")
                .variant("s", |w| drop_ref(w.str("x")));
        })
    }),
    asks!("org.freedesktop.DBus.Introspectable", "Introspect"),
    asks!(STATS, "GetStats"),
    operation("GetConnectionStats, of who has much", |rig| {
        let unique = rig.loaded[0].unique.clone();
        rig.call_as(rig.alice, STATS, "GetConnectionStats", |w| {
            drop_ref(w.str(&unique))
        })
    }),
    asks!(STATS, "GetAllMatchRules"),
    asks!(PEER, "GetMachineId"),
    asks!(PEER, "Ping"),
    operation("a method that is not there", |rig| {
        rig.call_as(rig.alice, DRIVER, "NoSuchMethod", |_| ())
    }),
    operation("a signal that nobody hears", |rig| {
        vec![rig.message(rig.alice, signal("org.example.Unheard"))]
    }),
    operation("a signal that one hears", |rig| {
        vec![rig.message(rig.alice, signal("org.example.Heard"))]
    }),
    operation("a call", |rig| {
        let to = rig.bob_name.clone();
        vec![rig.message(rig.alice, MessageBuilder::method_call("/", "M").destination(&to))]
    }),
    operation("a call to somebody who has much", |rig| {
        let to = rig.loaded[0].unique.clone();
        vec![rig.message(rig.alice, MessageBuilder::method_call("/", "M").destination(&to))]
    }),
    operation("a call to nobody", |rig| {
        vec![rig.message(
            rig.alice,
            MessageBuilder::method_call("/", "M").destination("no.body"),
        )]
    }),
    operation("an answer", |rig| {
        let to = rig.bob_name.clone();
        let call = MessageBuilder::method_call("/", "M").destination(&to);
        let serial = rig.bus.send(rig.alice, call);
        rig.drain(rig.bob);
        vec![rig.message(rig.bob, MessageBuilder::method_return(serial).destination(":1.0"))]
    }),
    Operation {
        is_quiet: true,
        ..operation("a tick at which nothing is due", |_| {
            vec![Event::Tick {
                now: bus_daemon::broker::Millis(1001),
            }]
        })
    },
    departure("a message that is none: its sender leaves", |rig| {
        let loaded = rig.loaded.pop().unwrap();
        vec![rig.bytes(loaded.id, &[b'x'; 32])]
    }),
    departure("the end of a link: who has much leaves", |rig| {
        let peer = rig.loaded.pop().unwrap().id;
        vec![Event::Closed {
            peer,
            reason: "end of file",
        }]
    }),
    operation("the end of a link: who awaits much leaves", |rig| {
        let peer = rig.loaded[0].caller;
        vec![Event::Closed {
            peer,
            reason: "end of file",
        }]
    }),
    operation("quarantine: the sender is told", |rig| {
        let peer = rig.loaded.pop().unwrap().id;
        let begins_with =
            bytes::Bytes::from_static(b"l\x01\x00\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00");
        vec![Event::Quarantined { peer, begins_with }]
    }),
    departure("BecomeMonitor, of who has much", |rig| {
        let peer = rig.loaded.pop().unwrap().id;
        rig.call_as(peer, MONITORING, "BecomeMonitor", |w| {
            w.str_array(["interface='org.example.Nothing'"]).u32(0);
        })
    }),
    operation("the owner of a name that many wait for leaves", |rig| {
        let owner = rig
            .bus
            .call(rig.alice, DRIVER, "GetNameOwner", |w| drop_ref(w.str(QUEUED)));
        let unique = owner.body().read_str().unwrap().to_owned();
        let peer = rig.by_unique(&unique);
        vec![Event::Closed {
            peer,
            reason: "end of file",
        }]
    }),
    operation("the end of a link: who has nothing leaves", |rig| {
        let peer = rig.bus.join();
        vec![Event::Closed {
            peer,
            reason: "end of file",
        }]
    }),
    operation("Upgrade", |rig| {
        rig.call_as(rig.alice, RESTART, "Upgrade", |w| drop_ref(w.str("/bin/bus")))
    }),
];

fn signal(interface: &str) -> MessageBuilder<'_> {
    // Something for every key.
    MessageBuilder::signal("/own/p/q", interface, "Changed").body(|w| {
        w.str("own.a.b").str("own1").str("/own/x/y");
        for n in 3..64 {
            w.str(&format!("own{n}"));
        }
    })
}
