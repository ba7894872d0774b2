//! The cases: what each one makes the bus do, and how often.

use crate::message::{Argument, Parts};

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// What one operation is.
    pub(crate) unit: &'static str,
    /// Operations in one measurement.
    pub(crate) operations: usize,
    pub(crate) load: Load,
}

/// The shapes of load.
#[derive(Clone, Debug)]
pub(crate) enum Load {
    Calls(Calls),
    Signals(Signals),
    /// Calls of the bus itself, each after the answer to the one before; one operation is all of them.
    Driver(&'static [Parts<'static>]),
    /// Connect, authenticate, Hello, close.
    Connect {
        at_once: bool,
    },
}

/// Method calls between pairs of connections. One operation is a call and its reply.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    pub(crate) pairs: usize,
    /// Calls in flight in each pair.
    pub(crate) window: usize,
    /// What there is to send is sent in one write; otherwise each message has its own.
    pub(crate) batched: bool,
    /// Bytes in the body of the call.
    pub(crate) body: usize,
    /// Descriptors that come with the call.
    pub(crate) fds: usize,
    /// Connections that do nothing meanwhile.
    pub(crate) idle: usize,
}

/// Signals from one connection to its subscribers. One operation is a delivery.
#[derive(Clone, Debug)]
pub(crate) struct Signals {
    pub(crate) subscribers: usize,
    /// Signals in flight.
    pub(crate) window: usize,
    pub(crate) others: Others,
}

/// The match rules that other connections hold, 10,000 of them: none matches, each for the same reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Others {
    None,
    Path,
    FirstArgument,
    Sender,
}

const BUS: &str = "org.freedesktop.DBus";
const NAME: &str = "org.example.Measured";

const PING: &[Parts<'static>] = &[Parts::driver("org.freedesktop.DBus.Peer", "Ping", &[])];
const NAMES: &[Parts<'static>] = &[
    Parts::driver(BUS, "RequestName", &[Argument::Text(NAME), Argument::Number(0)]),
    Parts::driver(BUS, "ReleaseName", &[Argument::Text(NAME)]),
];

/// All cases, in the order of the table.
pub(crate) fn all(idle: usize) -> Vec<Case> {
    const ONE: Calls = Calls {
        pairs: 1,
        window: 1,
        batched: false,
        body: 0,
        fds: 0,
        idle: 0,
    };
    const STREAM: Signals = Signals {
        subscribers: 1,
        window: 64,
        others: Others::None,
    };
    let calls = |name: &str, operations, calls| case(name, "call", operations, Load::Calls(calls));
    let signals =
        |name: &str, operations, signals| case(name, "delivery", operations, Load::Signals(signals));
    vec![
        calls("ping-pong", 3_000, ONE),
        calls(
            "64 calls in flight, one pair",
            20_000,
            Calls { window: 64, ..ONE },
        ),
        calls(
            "same, written in batches",
            40_000,
            Calls {
                window: 64,
                batched: true,
                ..ONE
            },
        ),
        calls(
            "16 pairs, 16 in flight each",
            20_000,
            Calls {
                pairs: 16,
                window: 16,
                ..ONE
            },
        ),
        calls("a descriptor in each call", 3_000, Calls { fds: 1, ..ONE }),
        calls(
            "4 descriptors in each, 16 in flight",
            6_000,
            Calls {
                window: 16,
                fds: 4,
                ..ONE
            },
        ),
        signals(
            "fan-out to 100, one at a time",
            20_000,
            Signals {
                subscribers: 100,
                window: 1,
                ..STREAM
            },
        ),
        signals(
            "fan-out to 100, streaming",
            200_000,
            Signals {
                subscribers: 100,
                window: 10,
                ..STREAM
            },
        ),
        signals(
            "fan-out to 1,000, one at a time",
            40_000,
            Signals {
                subscribers: 1_000,
                window: 1,
                ..STREAM
            },
        ),
        signals("signal stream to one", 20_000, STREAM),
        signals(
            "same, 10,000 rules: path",
            4_000,
            Signals {
                others: Others::Path,
                ..STREAM
            },
        ),
        signals(
            "same, 10,000 rules: arg0",
            4_000,
            Signals {
                others: Others::FirstArgument,
                ..STREAM
            },
        ),
        signals(
            "same, 10,000 rules: sender",
            4_000,
            Signals {
                others: Others::Sender,
                ..STREAM
            },
        ),
        calls(
            "body of 64 KiB",
            1_000,
            Calls {
                body: 64 << 10,
                ..ONE
            },
        ),
        calls("body of 1 MiB", 100, Calls { body: 1 << 20, ..ONE }),
        calls(
            "body of 16 MiB",
            10,
            Calls {
                body: 16 << 20,
                ..ONE
            },
        ),
        case(
            "connect, three round trips",
            "connection",
            500,
            Load::Connect { at_once: false },
        ),
        case(
            "connect, all in one write",
            "connection",
            500,
            Load::Connect { at_once: true },
        ),
        calls(
            &format!("ping-pong, {idle} idle peers"),
            3_000,
            Calls { idle, ..ONE },
        ),
        case("RequestName + ReleaseName", "pair", 2_000, Load::Driver(NAMES)),
        case("Peer.Ping to the bus", "call", 3_000, Load::Driver(PING)),
    ]
}

fn case(name: &str, unit: &'static str, operations: usize, load: Load) -> Case {
    Case {
        name: name.to_owned(),
        unit,
        operations,
        load,
    }
}
