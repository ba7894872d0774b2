//! The format of the state changes, and nobody notices: upgrades to a build whose next version has a field, records, a
//! layout of the store and a state more; back again after faults on probation, or because somebody asks for it; and
//! upgrades from builds of the past. What an older version cannot express is refused before anything stops.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::{CallError, Caller, Load, LoadPlan};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::builds::{next, of_commit, state_version};
use support::bystander::Bystander;
use support::process::{quarantined, strike};
use support::stalled::{Role, Sender, Stalled, To};
use support::{Bus, DRIVER, DRIVER_PATH, generation, recoveries, upgrade, wait_until};

/// A bus under load, and receivers for whom messages wait.
struct Scene {
    /// The binary that it begins with.
    old: PathBuf,
    bus: Bus,
    control: Caller,
    load: Load,
    bystander: Bystander,
    receivers: Vec<Stalled>,
    sender: Sender,
    _directory: tempfile::TempDir,
}

impl Scene {
    fn start(old: &Path) -> Scene {
        let directory = tempfile::tempdir().unwrap();
        // By a path of its own, so that it is seen which binary serves.
        let path = directory.path().join("old");
        std::fs::copy(old, &path).unwrap();
        let bus = Bus::start_binary(&path);
        let mut load = Load::start(&bus.address, LoadPlan::small()).unwrap();
        load.go().unwrap();
        let roles = [
            Role::Subscriber,
            Role::Addressee,
            Role::Monitor,
            Role::Subscriber,
            Role::Addressee,
        ];
        let mut scene = Scene {
            old: path,
            control: bus.caller(),
            load,
            bystander: Bystander::start(&bus, Duration::from_millis(2)),
            receivers: roles.into_iter().map(|role| Stalled::start(&bus, role)).collect(),
            sender: Sender::start(&bus),
            bus,
            _directory: directory,
        };
        scene.stall();
        scene
    }

    /// More messages wait, some with descriptors, short ones and such that are larger than any socket's buffer.
    fn stall(&mut self) {
        for (length, count) in [(200, 200), (2_000, 100), (60_000, 12), (300_000, 3)] {
            for index in 0..count {
                let to = match index % 4 {
                    3 => To::One(1 + 3 * (index / 4 % 2)),
                    _ => To::Everybody,
                };
                self.sender.send(&mut self.receivers, to, length, index % 13 == 0);
            }
        }
        self.sender.settle();
        // One of them stands in the middle of a message.
        assert!(self.receivers[0].read(100_001));
    }

    fn upgrade(&mut self, binary: &Path) {
        let before = generation(&mut self.control);
        let answer = upgrade(&mut self.control, binary.to_str().unwrap());
        assert_eq!(answer.unwrap(), before + 1, "{}", binary.display());
        assert_eq!(self.bus.executable(), binary);
    }

    /// Why that upgrade is refused; the bus is untouched.
    fn refused(&mut self, binary: &Path) -> String {
        let before = (generation(&mut self.control), self.bus.worker());
        match upgrade(&mut self.control, binary.to_str().unwrap()) {
            Err(CallError::Reply { name, message }) => {
                assert_eq!(name, "org.busdaemon.Error.UpgradeRefused", "{message}");
                assert_eq!((generation(&mut self.control), self.bus.worker()), before);
                message
            }
            other => panic!("{other:?}"),
        }
    }

    /// The worker dies three times by its own fault: too often for a binary on probation.
    fn fail(&mut self) {
        let serving = self.bus.executable();
        for _ in 0..3 {
            let (before, worker) = (recoveries(&mut self.control), self.bus.worker());
            assert!(strike(worker.unwrap(), Signal::SIGABRT));
            wait_until("somebody goes on", || {
                let goes_on = recoveries(&mut self.control) > before || self.bus.executable() != serving;
                goes_on && self.bus.worker().is_some_and(|next| Some(next) != worker)
            });
        }
    }

    /// Everybody reads all that waited, nothing else, and in order.
    fn finish(mut self) {
        self.sender.settle();
        for receiver in &mut self.receivers {
            receiver.finish();
        }
        assert_eq!(quarantined(&mut self.control), 0);
        let report = self.load.finish().unwrap();
        assert!(report.is_clean(), "{report}");
        assert!(report.fds_passed > 0, "{report}");
        eprintln!("bystander: {}", self.bystander.finish());
    }
}

/// The daemon's own files in memory, by their names; others are on their way from one client to another.
fn memory_files(bus: &Bus) -> Vec<String> {
    let mut files = bus.descriptors();
    files.retain(|file| file.starts_with("/memfd:bus-") && !file.contains("bus-load"));
    files
}

/// Somebody of whom the next version remembers something.
struct Noted(Caller);

impl Noted {
    fn call(&mut self, member: &str, text: &str) -> bus_wire::Message {
        let call = self
            .0
            .call(DRIVER, DRIVER_PATH, "org.busdaemon.Next1", member, |body| {
                body.str(text);
            });
        call.unwrap()
    }

    fn set(&mut self, member: &str, text: &str) {
        self.call(member, text);
    }

    fn note(&mut self) -> String {
        self.call("Get", "").body().read_str().unwrap().to_owned()
    }

    fn name(&mut self) -> String {
        self.0.unique_name().to_owned()
    }
}

#[test]
fn a_new_version_that_fails_on_probation_gives_the_state_back_and_nobody_notices() {
    // It may have to be built.
    next();
    let mut scene = Scene::start(support::binary());
    let version = state_version(&mut scene.control);
    let (mut hinting, mut silent) = (Noted(scene.bus.caller()), Noted(scene.bus.caller()));
    let old = scene.old.clone();
    scene.upgrade(&old);
    let memory = memory_files(&scene.bus);

    scene.upgrade(next());
    assert_eq!(state_version(&mut scene.control), version + 1);
    for part in ["are to be rewritten", "were rewritten from a store of layout"] {
        assert!(scene.bus.log().contains(part), "{part}: {}", scene.bus.log());
    }
    hinting.set("SetHint", "blue");
    assert_eq!((hinting.note(), silent.note()), ("hint blue".into(), "".into()));
    scene.stall();

    scene.fail();
    wait_until("the old binary is back", || scene.bus.executable() == scene.old);
    assert_eq!(state_version(&mut scene.control), version);
    scene.stall();
    // What the old version does not know it carries along, also over deaths and upgrades of its own.
    let before = recoveries(&mut scene.control);
    assert!(strike(scene.bus.worker().unwrap(), Signal::SIGKILL));
    wait_until("the bus has recovered", || {
        recoveries(&mut scene.control) > before
    });
    scene.upgrade(&old);
    // No store, image or journal of the others is left.
    wait_until("the daemon has no more files than it had", || {
        memory_files(&scene.bus).len() <= memory.len()
    });

    scene.upgrade(next());
    assert_eq!((hinting.note(), silent.note()), ("hint blue".into(), "".into()));
    scene.finish();
}

#[test]
fn what_the_old_version_cannot_express_is_refused_before_anything_stops() {
    // It may have to be built.
    next();
    let mut scene = Scene::start(support::binary());
    let version = state_version(&mut scene.control);
    scene.upgrade(next());
    let mut pledging = Noted(scene.bus.caller());
    pledging.set("SetPledge", "for ever");
    let old = scene.old.clone();
    let reason = scene.refused(&old);
    for part in [
        &pledging.name(),
        "a pledge",
        &format!("version {version}"),
        old.to_str().unwrap(),
    ] {
        assert!(reason.contains(part), "{part} is not in {reason:?}");
    }
    scene.stall();
    // There is no way back for a binary that fails either: it goes on, with everybody.
    scene.fail();
    assert_eq!(scene.bus.executable(), next());
    assert_eq!(pledging.note(), "pledge for ever");
    assert!(scene.bus.log().contains("a pledge"), "{}", scene.bus.log());
    // What is not there any more is in nobody's way.
    pledging.set("SetPledge", "");
    scene.upgrade(&old);
    assert_eq!(state_version(&mut scene.control), version);
    scene.finish();
}

#[test]
fn upgrades_go_there_and_back_as_somebody_asks_for_it() {
    // It may have to be built.
    next();
    let mut scene = Scene::start(support::binary());
    let old = scene.old.clone();
    for _ in 0..3 {
        scene.upgrade(next());
        scene.stall();
        scene.upgrade(&old);
        let before = recoveries(&mut scene.control);
        assert!(strike(scene.bus.worker().unwrap(), Signal::SIGKILL));
        wait_until("the bus has recovered", || {
            recoveries(&mut scene.control) > before
        });
    }
    scene.finish();
}

/// It cannot even restore: the old binary has its state as it was, and its store.
#[test]
fn a_new_version_that_dies_while_it_restores_leaves_all_as_it_was() {
    // It may have to be built.
    next();
    let mut scene = Scene::start(support::binary());
    let directory = tempfile::tempdir().unwrap();
    let path = support::faulty_copy(next(), directory.path(), "restore:PATH");
    match upgrade(&mut scene.control, path.to_str().unwrap()) {
        Err(CallError::Reply { name, message }) => {
            assert_eq!(name, "org.busdaemon.Error.UpgradeRolledBack", "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(scene.bus.executable(), scene.old);
    scene.upgrade(next());
    scene.finish();
}

/// The commits before the state had version 2, and before it had version 3.
const VERSION_1: &str = "c4af28d";
const VERSION_2: &str = "04d1538";

/// `cargo test -p bus-cli --test format -- --ignored --nocapture`
#[test]
#[ignore = "builds daemons of the past: minutes"]
fn upgrades_from_builds_of_the_past_and_back_where_there_is_a_way() {
    let directory = tempfile::tempdir().unwrap();
    let mut binaries = [VERSION_1, VERSION_2].into_iter();
    let mut of_past = || of_commit(binaries.next().unwrap(), directory.path());
    if let Some(old) = of_past() {
        let mut scene = Scene::start(&old);
        scene.upgrade(support::binary());
        scene.stall();
        // Nobody writes its version any more.
        let old = scene.old.clone();
        let reason = scene.refused(&old);
        assert!(reason.contains("does not know"), "{reason}");
        scene.fail();
        scene.upgrade(support::binary());
        scene.finish();
    }
    if let Some(old) = of_past() {
        let mut scene = Scene::start(&old);
        scene.upgrade(support::binary());
        scene.stall();
        scene.fail();
        wait_until("the old binary is back", || scene.bus.executable() == scene.old);
        scene.upgrade(support::binary());
        scene.stall();
        // That build compares what it writes again byte by byte.
        let old = scene.old.clone();
        scene.upgrade(&old);
        scene.upgrade(next());
        scene.stall();
        scene.finish();
    }
}
