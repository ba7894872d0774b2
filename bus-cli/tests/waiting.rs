//! Messages that wait for receivers which do not read: the worker is killed and the bus upgraded meanwhile, and whoever
//! reads in the end gets every message once, in order, with its descriptors. Who goes away instead leaves no memory behind.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::CallError;
use bus_load::clock::Deadline;
use nix::sys::signal::Signal;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use support::bystander::Bystander;
use support::process::{quarantined, strike, worker_pid};
use support::random::Random;
use support::scene::{FAULTS, Fault, Scene};
use support::stalled::{Memory, Role, Sender, Stalled, To, stat};
use support::{Bus, SOON, binary, recoveries, upgrade, wait_until};

/// One at a time: they measure memory, and some need much of it.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two subscribers, two monitors and two addressees.
fn receivers(bus: &Bus) -> Vec<Stalled> {
    use Role::{Addressee, Monitor, Subscriber};
    let roles = [Subscriber, Monitor, Addressee, Subscriber, Addressee, Monitor];
    roles.into_iter().map(|role| Stalled::start(bus, role)).collect()
}

/// Everybody reads at once, while something may happen to the daemon.
fn drain(receivers: &mut [Stalled], meanwhile: impl FnOnce()) {
    std::thread::scope(|scope| {
        for receiver in receivers.iter_mut() {
            scope.spawn(|| receiver.finish());
        }
        meanwhile();
    });
}

/// Messages of one kind.
#[derive(Debug, Clone, Copy)]
struct Kind {
    length: usize,
    /// In each batch.
    count: usize,
}

const KINDS: [Kind; 5] = [
    Kind {
        length: 200,
        count: 600,
    },
    Kind {
        length: 2_000,
        count: 300,
    },
    Kind {
        length: 60_000,
        count: 24,
    },
    Kind {
        length: 300_000,
        count: 5,
    },
    Kind {
        length: 5_000_000,
        count: 1,
    },
];

/// A batch of messages of that kind, every third to one of the addressees, one in eleven with a descriptor.
fn batch(sender: &mut Sender, receivers: &mut [Stalled], kind: Kind, random: &mut Random) {
    for index in 0..kind.count {
        let to = match index % 3 {
            2 => To::One(2 + 2 * random.below(2) as usize),
            _ => To::Everybody,
        };
        sender.send(receivers, to, kind.length, random.below(11) == 0);
    }
}

/// Batches of these kinds wait; between them come these faults; some read a part now and then; and faults come again while
/// all read.
fn stall(kinds: &[Kind], faults: &[Fault], random: &mut Random) {
    let mut scene = Scene::start();
    let mut all = receivers(&scene.bus);
    let mut sender = Sender::start(&scene.bus);
    let bystander = Bystander::start(&scene.bus, Duration::from_millis(2));
    for (round, fault) in faults.iter().enumerate() {
        for kind in kinds {
            batch(&mut sender, &mut all, *kind, random);
        }
        if random.below(2) == 0 {
            sender.settle();
        }
        scene.strike(*fault, random);
        if round % 2 == 1 {
            // Parts of messages, mostly.
            let reader = random.below(all.len() as u64) as usize;
            for _ in 0..random.below(20) {
                let most = 1 + random.below(300_000) as usize;
                assert!(all[reader].missing() == 0 || all[reader].read(most));
            }
        }
    }
    sender.settle();
    let faults: Vec<Fault> = faults.iter().rev().copied().collect();
    drain(&mut all, || {
        for fault in faults {
            scene.strike(fault, random);
        }
    });
    assert_eq!(quarantined(&mut scene.control), 0);
    eprintln!("bystander: {}", bystander.finish());
}

#[test]
fn long_messages_that_wait_outlast_kills_and_upgrades() {
    let _alone = alone();
    let mut random = Random::from_environment("BUS_WAITING_SEED");
    stall(&KINDS[2..], &FAULTS, &mut random);
}

#[test]
fn short_messages_that_wait_outlast_kills_and_upgrades() {
    let _alone = alone();
    let mut random = Random::from_environment("BUS_WAITING_SEED");
    stall(&KINDS[..2], &FAULTS, &mut random);
}

#[test]
fn messages_that_wait_outlast_several_faults_of_a_kind_in_a_row() {
    let _alone = alone();
    let mut random = Random::from_environment("BUS_WAITING_SEED");
    let mut scene = Scene::start();
    let mut all = receivers(&scene.bus);
    let mut sender = Sender::start(&scene.bus);
    for kind in KINDS {
        batch(&mut sender, &mut all, kind, &mut random);
    }
    for fault in FAULTS.into_iter().flat_map(|fault| [fault; 3]) {
        scene.strike(fault, &mut random);
        // Nothing else happens between them, in every other case.
        if random.below(2) == 0 {
            sender.send(&mut all, To::Everybody, 2_000, true);
        }
    }
    drain(&mut all, || ());
}

/// `cargo test --release -p bus-cli --test waiting -- --ignored random`
#[test]
#[ignore = "takes minutes"]
fn messages_that_wait_outlast_random_faults() {
    let _alone = alone();
    let mut random = Random::from_environment("BUS_WAITING_SEED");
    for _ in 0..20 {
        let faults: Vec<Fault> = (0..8).map(|_| *random.pick(&FAULTS)).collect();
        let kinds: Vec<Kind> = (0..3).map(|_| *random.pick(&KINDS)).collect();
        eprintln!("{kinds:?} {faults:?}");
        stall(&kinds, &faults, &mut random);
    }
}

/// The socket is full in the middle of a message, and stays so over each fault.
#[test]
fn a_message_half_sent_goes_on_where_it_was() {
    let _alone = alone();
    let mut random = Random::from_environment("BUS_WAITING_SEED");
    let mut scene = Scene::start();
    let mut all = vec![
        Stalled::start(&scene.bus, Role::Subscriber),
        Stalled::start(&scene.bus, Role::Addressee),
    ];
    let mut sender = Sender::start(&scene.bus);
    for _ in 0..2 {
        sender.send(&mut all, To::Everybody, 5_000_000, true);
        sender.send(&mut all, To::One(1), 5_000_000, true);
        sender.send(&mut all, To::One(1), 200, true);
    }
    sender.settle();
    for fault in FAULTS.into_iter().chain(FAULTS) {
        scene.strike(fault, &mut random);
        for receiver in &mut all {
            let upto = receiver.taken + 100_000 + random.below(500_000);
            while receiver.taken < upto && receiver.missing() > 0 {
                assert!(receiver.read((upto - receiver.taken) as usize));
            }
        }
    }
    drain(&mut all, || ());
}

/// Bytes of memory that may be left of a backlog: of the log, and of extents, some are kept. In the store it is less.
const LEFT: u64 = 16 << 20;
const LEFT_IN_STORE: u64 = 8 << 20;

#[test]
fn receivers_that_go_away_leave_no_memory_behind() {
    let _alone = alone();
    let mut random = Random::from_environment("BUS_WAITING_SEED");
    let mut scene = Scene::start();
    let mut sender = Sender::start(&scene.bus);
    // So that everything is there that a bus has for itself.
    let round = |scene: &mut Scene, sender: &mut Sender, random: &mut Random, fault: Option<Fault>| {
        let mut all = receivers(&scene.bus);
        for _ in 0..6 {
            for kind in KINDS {
                batch(sender, &mut all, kind, random);
            }
        }
        sender.settle();
        if let Some(fault) = fault {
            scene.strike(fault, random);
        }
        let full = Memory::of(&scene.bus);
        let store = stat(&mut scene.control, "org.busdaemon.StoreBytes");
        (full, store)
    };
    scene.strike(Fault::Upgrade, &mut random);
    let before = Memory::of(&scene.bus);
    for fault in [
        None,
        Some(Fault::Kill),
        Some(Fault::Upgrade),
        Some(Fault::Rollback),
    ] {
        let (full, store) = round(&mut scene, &mut sender, &mut random, fault);
        eprintln!("{fault:?}: {before:?}, then {full:?}, of which {store} in the store");
        assert!(
            full.total() > before.total() + (20 << 20),
            "{full:?} is hardly more than {before:?}"
        );
        // Nothing else happens, and nothing else is needed.
        let deadline = Deadline::after(SOON / 4);
        let (mut now, mut store) = (full, store);
        while (now.total() > before.total() + LEFT || store > LEFT_IN_STORE) && !deadline.passed() {
            std::thread::sleep(Duration::from_millis(20));
            now = Memory::of(&scene.bus);
            store = stat(&mut scene.control, "org.busdaemon.StoreBytes");
        }
        eprintln!("afterwards: {now:?}, {store} in the store");
        assert!(
            now.total() < before.total() + LEFT,
            "{fault:?}: {before:?}, {full:?}, then {now:?}"
        );
        assert!(store <= LEFT_IN_STORE, "{fault:?}: the store keeps {store} bytes");
    }
}

#[test]
fn who_is_beyond_the_limit_is_disconnected_and_nobody_else() {
    let _alone = alone();
    let mut random = Random::from_environment("BUS_WAITING_SEED");
    for faults in [&[][..], &[Fault::Kill, Fault::Upgrade]] {
        let limit = 8_000_000;
        let bus = Bus::start_with(&format!("<limit name='max_outgoing_bytes'>{limit}</limit>"));
        let mut scene = Scene::over(bus);
        let bystander = Bystander::start(&scene.bus, Duration::from_millis(2));
        let mut all = vec![
            Stalled::start(&scene.bus, Role::Subscriber),
            Stalled::start(&scene.bus, Role::Subscriber),
            Stalled::start(&scene.bus, Role::Addressee),
        ];
        let mut sender = Sender::start(&scene.bus);
        for n in 0..100 {
            sender.send(&mut all, To::Everybody, 60_000, false);
            // One sender's share of a queue is half of it.
            if n < 60 {
                sender.send(&mut all, To::One(2), 60_000, false);
            }
        }
        // Below the limit nobody goes, whatever happens.
        for fault in faults {
            sender.settle();
            scene.strike(*fault, &mut random);
        }
        all[1].finish();
        for _ in 0..60 {
            sender.send(&mut all, To::Everybody, 60_000, false);
        }
        sender.settle();
        all[1].finish();
        // What was queued when it went is gone, and perhaps what it had not read of its socket.
        assert!(all.remove(0).expect_end() > 0);
        drain(&mut all, || ());
        bystander.finish();
    }
}

/// The binary of a version before the store, at `BUS_OLD_BINARY`, is upgraded with a backlog; the way back is refused.
#[test]
#[ignore = "needs an old binary"]
fn a_backlog_goes_on_from_a_version_without_a_store() {
    let _alone = alone();
    let mut random = Random::from_environment("BUS_WAITING_SEED");
    let old = std::env::var("BUS_OLD_BINARY").unwrap();
    let mut scene = Scene::over(Bus::start_binary(Path::new(&old)));
    let mut all = receivers(&scene.bus);
    let mut sender = Sender::start(&scene.bus);
    for kind in KINDS {
        batch(&mut sender, &mut all, kind, &mut random);
    }
    assert_eq!(
        upgrade(&mut scene.control, binary().to_str().unwrap()).unwrap(),
        2
    );
    for kind in KINDS {
        batch(&mut sender, &mut all, kind, &mut random);
    }
    sender.settle();
    match upgrade(&mut scene.control, &old) {
        Err(CallError::Reply { name, message }) => {
            eprintln!("{name}: {message}");
            assert_eq!(name, "org.busdaemon.Error.UpgradeRefused", "{message}");
        }
        other => panic!("{other:?}"),
    }
    // The old binary could not go on with what this one has by now.
    for death in 1..=3 {
        assert!(strike(worker_pid(&mut scene.control), Signal::SIGSEGV));
        wait_until("the bus has recovered", || {
            recoveries(&mut scene.control) == death
        });
    }
    assert_eq!(scene.bus.executable(), binary());
    for fault in FAULTS {
        scene.strike(fault, &mut random);
    }
    drain(&mut all, || ());
}
