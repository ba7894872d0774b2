//! Large messages of which a part has arrived: the worker is killed and the bus upgraded meanwhile, and in the end each
//! receiver gets each message once, whole, with its descriptor.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use support::Bus;
use support::bystander::Bystander;
use support::process::quarantined;
use support::random::Random;
use support::scene::{FAULTS, Fault, Scene};
use support::stalled::{Memory, Role, Sender, Stalled, To};

/// One at a time: they measure memory, and some need much of it.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Messages of these lengths, each of another sender, come in pieces that are cut anywhere; between them come all kinds of
/// faults, also several in a row.
#[test]
fn a_message_that_has_arrived_in_part_goes_on_where_it_was() {
    let _alone = alone();
    let mut random = Random::from_environment("BUS_WAITING_SEED");
    let mut scene = Scene::start();
    let mut all = [
        Stalled::start(&scene.bus, Role::Subscriber),
        Stalled::start(&scene.bus, Role::Addressee),
    ];
    let lengths = [70_000, 300_000, 3_000_000, 20_000_000];
    let mut senders = lengths.map(|_| Sender::start(&scene.bus));
    for (sender, length) in senders.iter_mut().zip(lengths) {
        let first = 1 + random.below(length) as usize;
        // The order among senders is nobody's promise, so each has a receiver of its own in the end.
        sender.begin(&mut all[..1], To::Everybody, length as usize, true, first);
        let receiver = &mut all[0];
        assert_eq!(receiver.missing(), 1);
        for fault in FAULTS.into_iter().chain([Fault::Kill, Fault::Kill]) {
            scene.strike(fault, &mut random);
            let most = 1 + random.below(length / 10) as usize;
            if !sender.go_on(most) {
                break;
            }
        }
        while sender.go_on(1 + random.below(length) as usize) {}
        receiver.finish();
    }
    assert_eq!(quarantined(&mut scene.control), 0);
}

/// Many are half in at once, and their senders go on in turns.
#[test]
fn many_messages_that_have_arrived_in_part_go_on_side_by_side() {
    let _alone = alone();
    let mut random = Random::from_environment("BUS_WAITING_SEED");
    let mut scene = Scene::start();
    let mut pairs: Vec<(Sender, Vec<Stalled>)> = (0..12)
        .map(|_| {
            let receiver = Stalled::start(&scene.bus, Role::Addressee);
            (Sender::start(&scene.bus), vec![receiver])
        })
        .collect();
    let bystander = Bystander::start(&scene.bus, Duration::from_millis(2));
    for (index, (sender, receivers)) in pairs.iter_mut().enumerate() {
        // What waits behind a message that is read slowly is in extents, too.
        sender.send(receivers, To::One(0), 5_000_000, index % 2 == 0);
        sender.begin(receivers, To::One(0), 5_000_000, true, 3_000_000);
    }
    for fault in FAULTS {
        scene.strike(fault, &mut random);
        for (sender, receivers) in &mut pairs {
            sender.go_on(1 + random.below(400_000) as usize);
            assert!(receivers[0].missing() == 0 || receivers[0].read(1 + random.below(400_000) as usize));
        }
    }
    for (sender, receivers) in &mut pairs {
        while sender.go_on(1 << 20) {}
        receivers[0].finish();
    }
    eprintln!("bystander: {}", bystander.finish());
}

/// Messages of 1.5 GB in all, of which all but the last bytes have arrived, and the same half sent: what that adds to the
/// pause of an upgrade and a kill, and to memory.
///
/// `cargo test --release -p bus-cli --test half_messages -- --ignored --nocapture measures`
#[test]
#[ignore = "measures, and needs 4 GB"]
fn measures_messages_that_are_half_in_or_half_out() {
    const LENGTH: usize = 63 << 20;
    const COUNT: usize = 24;
    let _alone = alone();
    for half_in in [true, false] {
        let mut scene = Scene::over(Bus::start());
        let idle = [Fault::Upgrade, Fault::Kill].map(|fault| [0; 5].map(|_| scene.pause(fault)));
        let mut pairs: Vec<(Sender, Vec<Stalled>)> = (0..COUNT)
            .map(|_| {
                let receiver = Stalled::start(&scene.bus, Role::Addressee);
                (Sender::start(&scene.bus), vec![receiver])
            })
            .collect();
        let before = Memory::of(&scene.bus);
        let bystander = Bystander::start(&scene.bus, Duration::from_millis(1));
        for (sender, receivers) in &mut pairs {
            let first = if half_in { LENGTH - 1000 } else { usize::MAX };
            sender.begin(receivers, To::One(0), LENGTH, true, first);
        }
        let waits = bystander.finish();
        let full = Memory::of(&scene.bus);
        eprintln!(
            "{COUNT} of {LENGTH} bytes, half {}: memory +{} MB; bystander {waits}",
            if half_in { "in" } else { "out" },
            (full.total() - before.total()) >> 20
        );
        for (fault, idle) in [Fault::Upgrade, Fault::Kill].into_iter().zip(idle) {
            let waiting = [0; 5].map(|_| scene.pause(fault));
            let bystander = Bystander::start(&scene.bus, Duration::from_millis(1));
            scene.pause(fault);
            let waits = bystander.finish();
            let memory = Memory::of(&scene.bus);
            eprintln!(
                "    {fault:?}: pause {waiting:?} us, idle {idle:?} us; memory {memory:?}; bystander {waits}"
            );
        }
        for (sender, receivers) in &mut pairs {
            while sender.go_on(1 << 20) {}
            receivers[0].finish();
        }
    }
}
