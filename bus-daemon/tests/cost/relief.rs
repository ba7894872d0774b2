//! What it costs to find out who is held back, and who goes, when memory is short.

use bus_daemon::broker::{Broker, Event, Memory, Millis, PeerId, Relief};
use bus_wire::MessageBuilder;

use crate::counted::count_in;
use crate::rig::{Grows, Size};
use crate::support::Bus;
use crate::support::driver::drop_ref;

const CAP: u64 = 1 << 30;
/// What waits for each.
const WAITS: usize = 100_000;

/// So many connections that do not read what waits for them, and have sent as much themselves; far more is held than may be.
fn short(peers: u32) -> (Bus, Vec<PeerId>, Memory) {
    let mut bus = Bus::new();
    let all: Vec<(PeerId, String)> = (0..peers)
        .map(|_| {
            let id = bus.connect();
            (id, bus.greet(id))
        })
        .collect();
    let text = "x".repeat(WAITS);
    for (at, (from, _)) in all.iter().enumerate() {
        let (_, to) = &all[(at + 1) % all.len()];
        let signal = MessageBuilder::signal("/a", "a.b", "S").destination(to);
        bus.send(*from, signal.body(|w| drop_ref(w.str(&text))));
    }
    for second in 0..20 {
        let now = Millis(2_000 + 1_000 * second);
        bus.handle(Event::Tick { now });
    }
    let memory = Memory {
        held: 2 * CAP + u64::from(peers) * WAITS as u64,
        cap: CAP,
    };
    (bus, all.into_iter().map(|(id, _)| id).collect(), memory)
}

/// What callgrind counts.
#[inline(never)]
fn measured_relief(broker: &Broker, memory: Memory) -> Option<Relief> {
    broker.relief(memory)
}

#[test]
fn whoever_makes_the_bus_hold_much_goes_each_once() {
    let (bus, mut all, memory) = short(100);
    let mut relief = measured_relief(&bus.broker, memory).unwrap();
    relief.dismiss.sort_unstable();
    all.sort_unstable();
    assert_eq!(relief.dismiss, all);
    assert_eq!(relief.hold_back, []);
}

/// Where all go, everybody is looked at for whether it goes already.
#[test]
fn relief_costs_as_much_for_each_peer_however_many_go() {
    let count = |most| {
        let size = Size {
            grows: Grows::Peers,
            most,
        };
        let counts = count_in("relief::measured", "cost::relief::measured_relief", size)?;
        assert_eq!(counts.len(), 1);
        counts.first().copied()
    };
    if let (Some(small), Some(large)) = (count(256), count(2_048)) {
        eprintln!("relief of 256 and 2,048 peers: {small} and {large} instructions");
        assert!(large <= 10 * small, "{small} and {large} instructions");
    }
}

/// Run by the test, under callgrind.
#[test]
#[ignore = "to be run under callgrind"]
fn measured() {
    let size = Size::from_environment();
    let (bus, _, memory) = short(size.most);
    let relief = measured_relief(&bus.broker, memory).unwrap();
    assert_eq!(relief.dismiss.len(), size.most as usize);
}
