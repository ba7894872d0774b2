//! What the worker and the keeper have to do with each other: reloads, upgrades, and the hand-over at the end.

use std::io::Error;
use std::os::fd::RawFd;

use super::Worker;
use crate::broker::Event;
use crate::handoff::image::{self, LinkV1, WorkerV1};
use crate::handoff::memfd;
use crate::journal::RareEvent;
use crate::keeper::{ToKeeper, ToWorker, worker, worker_exit};
use crate::runtime::clock::{self, Nanos};

impl Worker {
    pub(super) fn listen_to_keeper(&mut self) {
        let control = self.record.control;
        // A request is taken only when its outcome is in the journal: it survives a death, at worst as two. A verdict is
        // for this worker alone.
        let taken = || drop(control.heard_by_worker());
        loop {
            match control.told_to_worker() {
                Ok(Some(ToWorker::Reload)) => {
                    self.reload();
                    taken();
                }
                Ok(Some(ToWorker::Upgrade)) => {
                    #[cfg(feature = "test-hooks")]
                    crate::fault::kill_in("request");
                    self.journal.note(None, &RareEvent::UpgradeRequested);
                    self.apply(Event::UpgradeRequested);
                    #[cfg(feature = "test-hooks")]
                    crate::fault::kill_in("request");
                    taken();
                }
                Ok(Some(ToWorker::Preflight(verdict))) => {
                    taken();
                    match verdict {
                        Ok(()) => self.hand_over(),
                        Err(reason) => self.refuse_upgrade(reason),
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::error!("cannot hear the keeper: {error}");
                    return;
                }
            }
        }
    }

    pub(super) fn reload(&mut self) {
        match crate::runtime::load_config(&self.record) {
            Ok(config) => {
                self.journal.note(
                    None,
                    &RareEvent::ConfigLoaded {
                        config: Box::new(config.clone()),
                    },
                );
                self.apply(Event::ConfigLoaded {
                    config: std::sync::Arc::new(config),
                });
            }
            Err(reason) => {
                let text = format_args!("the configuration in force stays: {reason}");
                self.complaints.error(None, text);
                self.journal.note(
                    None,
                    &RareEvent::ConfigRefused {
                        reason: reason.clone(),
                    },
                );
                self.apply(Event::ConfigRefused { reason });
            }
        }
    }

    pub(super) fn refuse_upgrade(&mut self, reason: String) {
        self.complaints
            .warn(None, format_args!("upgrade refused: {reason}"));
        self.journal.note(
            None,
            &RareEvent::UpgradeRefused {
                reason: reason.clone(),
            },
        );
        self.apply(Event::UpgradeRefused { reason });
    }

    pub(super) fn ask_for_preflight(&mut self, binary: String) {
        let asked = self.save(clock::monotonic()).and_then(|image| {
            let message = ToKeeper::Preflight { binary, image };
            self.tell_keeper(&message, image)
        });
        if let Err(error) = asked {
            self.refuse_upgrade(format!("the state cannot be given to the new binary: {error}"));
        }
    }

    /// The last act of this worker: its state to the keeper, which replaces the process image.
    pub(crate) fn hand_over(&mut self) {
        self.flush();
        #[cfg(feature = "test-hooks")]
        crate::fault::kill_in("hand-over");
        let handed = self
            .save(clock::monotonic())
            .and_then(|image| self.tell_keeper(&ToKeeper::Exec { image }, image));
        #[cfg(feature = "test-hooks")]
        crate::fault::kill_in("hand-over");
        match handed {
            Ok(()) => worker::exit(worker_exit::HANDED_OVER),
            Err(error) => self.refuse_upgrade(format!("the state cannot be handed over: {error}")),
        }
    }

    /// Hands a memfd to the keeper; it is closed where that fails.
    fn tell_keeper(&self, message: &ToKeeper, image: RawFd) -> std::io::Result<()> {
        let told = self.record.control.tell_keeper(message);
        if told.is_err() {
            let _ = nix::unistd::close(image);
        }
        told
    }

    /// All state, in a new memfd.
    fn save(&self, stopped_at: Nanos) -> std::io::Result<RawFd> {
        let links = self.links.iter().map(|link| LinkV1 {
            peer: link.peer.to_u64(),
            blocked: link.blocked,
            stopped: link.stopped,
            broken: link.broken,
        });
        let worker = WorkerV1 {
            stopped_at: stopped_at.0,
            generation: self.generation,
            links: links.collect(),
        };
        let bytes = image::save(&self.broker, &worker).map_err(Error::other)?;
        #[cfg(feature = "test-hooks")]
        crate::fault::kill_in("hand-over");
        memfd::write(c"bus-state", &bytes)
    }
}
