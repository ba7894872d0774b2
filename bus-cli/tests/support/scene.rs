//! A bus to which something happens: kills and upgrades.

use super::process::strike;
use super::random::Random;
use super::{Bus, faulty, generation, last_pause, recoveries, upgrade, wait_until};
use bus_load::{CallError, Caller};
use nix::sys::signal::Signal;
use std::time::Duration;

/// What happens to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The worker is killed.
    Kill,
    /// An upgrade that is asked for by a call.
    Upgrade,
    /// One that is asked for by a signal.
    Signal,
    /// The worker is killed while an upgrade is under way.
    KillInUpgrade,
    /// To a binary that dies while it restores, so that the old one goes on.
    Rollback,
}

/// Each of them.
pub const FAULTS: [Fault; 5] = [
    Fault::Kill,
    Fault::Upgrade,
    Fault::Signal,
    Fault::KillInUpgrade,
    Fault::Rollback,
];

/// A bus, and a place for binaries that it is upgraded to.
pub struct Scene {
    pub bus: Bus,
    directory: tempfile::TempDir,
    pub control: Caller,
    /// Kills that the bus has survived.
    kills: u32,
}

impl Scene {
    pub fn start() -> Scene {
        Scene::over(Bus::start())
    }

    pub fn over(bus: Bus) -> Scene {
        Scene {
            control: bus.caller(),
            bus,
            directory: tempfile::tempdir().unwrap(),
            kills: 0,
        }
    }

    fn kill(&mut self) {
        if self
            .bus
            .worker()
            .is_some_and(|worker| strike(worker, Signal::SIGKILL))
        {
            self.kills += 1;
            let kills = self.kills;
            wait_until("the bus has recovered", || recoveries(&mut self.control) >= kills);
        }
    }

    /// Something happens to the daemon, and is over.
    pub fn strike(&mut self, fault: Fault, random: &mut Random) {
        let before = generation(&mut self.control);
        match fault {
            Fault::Kill => self.kill(),
            Fault::Upgrade => assert_eq!(upgrade(&mut self.control, "").unwrap(), before + 1),
            Fault::Signal => {
                assert!(strike(self.bus.pid(), Signal::SIGUSR2));
                wait_until("an upgrade", || generation(&mut self.control) == before + 1);
            }
            Fault::KillInUpgrade => {
                assert!(strike(self.bus.pid(), Signal::SIGUSR2));
                std::thread::sleep(random.duration(Duration::ZERO..Duration::from_millis(60)));
                if let Some(worker) = self.bus.worker() {
                    strike(worker, Signal::SIGKILL);
                }
                wait_until("an upgrade", || generation(&mut self.control) > before);
                self.kills = recoveries(&mut self.control);
            }
            Fault::Rollback => {
                let binary = faulty(self.directory.path(), "restore:PATH");
                match upgrade(&mut self.control, binary.to_str().unwrap()) {
                    Err(CallError::Reply { name, message }) => {
                        assert_eq!(name, "org.busdaemon.Error.UpgradeRolledBack", "{message}");
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    /// The same; for how many microseconds the bus stood still.
    pub fn pause(&mut self, fault: Fault) -> u64 {
        self.strike(fault, &mut Random::from_environment("BUS_WAITING_SEED"));
        last_pause(&mut self.control)
    }
}
