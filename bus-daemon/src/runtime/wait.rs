//! How the worker waits: in its epoll set itself, or as one task of the runtime among others.

#![allow(unsafe_code, reason = "the epoll set is known by its number")]

use std::io::Result;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, RuntimeMetrics};

use super::alarm::Alarm;
use super::poll::EpollSet;
use super::worker::Worker;

/// Waits for whatever the worker has to do next.
///
/// While the worker is alone on the runtime, nobody else needs the thread, and it waits in the set itself. That takes two
/// system calls less a turn, and a quarter less of everything else that a turn with one small message takes; and to nest
/// the set in the runtime's, the kernel walks through all registrations, which are thousands just after an upgrade.
pub(super) struct Waiting {
    set: EpollSet,
    /// What else the runtime has to do.
    tasks: RuntimeMetrics,
    /// The set within the runtime's own, once it is needed there.
    nested: Option<AsyncFd<EpollSet>>,
    alarm: Alarm,
}

impl Waiting {
    /// For this set; to be called on the runtime.
    pub(super) fn new(set: EpollSet) -> Self {
        Self {
            set,
            tasks: Handle::current().metrics(),
            nested: None,
            alarm: Alarm::default(),
        }
    }

    /// Takes turns until nothing is left to do, and waits.
    pub(super) async fn wait_after_turns(&mut self, worker: &mut Worker) -> Result<()> {
        if self.tasks.num_alive_tasks() == 0 {
            while worker.turn() {}
            return worker.wait();
        }
        let nested = match &mut self.nested {
            Some(nested) => nested,
            // SAFETY: the epoll set stays open for the life of the process.
            none => none.insert(unsafe { AsyncFd::register_with_interest(self.set, Interest::READABLE) }?),
        };
        worker.turns();
        self.alarm.want(worker.next_tick());
        tokio::select! {
            biased;
            // Cleared before the set is looked at: whatever comes later makes it ready again.
            ready = nested.readable() => ready?.clear_ready(),
            // The next turn sees that it is time.
            () = self.alarm.ring() => {}
        }
        Ok(())
    }
}
