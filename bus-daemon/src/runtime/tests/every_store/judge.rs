//! What a recovery must give: the state before the event under way, or the one after it, as the kernel's counts say.

use std::collections::BTreeMap;

/// What a recovery gave.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// How many records it knew of, or made of what was in flight.
    pub(super) records: u64,
    /// The broker's whole state.
    pub(super) state: Vec<u8>,
    /// The worker had not yet noted a descriptor that the system made for it, and recovery had another one made: the
    /// state differs by its number.
    pub(super) has_other_fd: bool,
    /// How many bytes of a client the worker's socket had given, for each client that the broker knows.
    pub(super) taken: BTreeMap<usize, u64>,
    /// How many of the keeper's entries it knew of.
    pub(super) heard: u64,
}

/// Compares recoveries with the events that the living worker handles.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// Records in the log after the last event that the living worker handled.
    records: u64,
    /// Its state then.
    state: Vec<u8>,
    /// A killed worker's recovery had a descriptor made; its successor has another made and notes it.
    has_other_fd: bool,
    /// What of each client's bytes the events so far brought.
    taken: BTreeMap<usize, u64>,
    /// What recoveries give since they know of the event that comes next.
    next: Option<Found>,
}

impl Judge {
    /// A recovery was tried. `is_applying`: the worker is handling an event, so that the log must have it.
    pub(super) fn found(&mut self, found: Found, is_applying: bool) -> Result<(), String> {
        let Some(next) = &self.next else {
            if found.records > self.records {
                self.next = Some(found);
                return Ok(());
            }
            if is_applying {
                return Err("an event is being handled that the log does not have".into());
            }
            if self.has_other_fd {
                (self.state, self.has_other_fd) = (found.state, found.has_other_fd);
            } else if found.has_other_fd || found.state != self.state {
                return Err("the state is not the one after the last event".into());
            }
            return agree(&found.taken, &self.taken);
        };
        if found.records <= self.records {
            return Err("an event was in the log and is no more".into());
        }
        let is_other = !found.has_other_fd && !next.has_other_fd && found.state != next.state;
        if is_other || found.taken != next.taken {
            return Err("the state after one event is another than a store before".into());
        }
        if next.has_other_fd {
            self.next = Some(found);
        }
        Ok(())
    }

    /// The worker handled an event that brought bytes of a client. `is_watched`: every store was looked at.
    pub(super) fn handled(
        &mut self,
        received: Option<(usize, u64)>,
        state: Vec<u8>,
        records: u64,
        is_watched: bool,
    ) -> Result<(), String> {
        if let Some((client, bytes)) = received {
            *self.taken.entry(client).or_default() += bytes;
        }
        (self.state, self.records) = (state, records);
        let next = self.next.take();
        if !is_watched {
            return Ok(());
        }
        let next = next.ok_or("the worker handled an event that no recovery knew of")?;
        if next.has_other_fd || next.state != self.state {
            return Err("recovery gave another state than the event did".into());
        }
        agree(&next.taken, &self.taken)
    }

    /// Records in the log after the last event that the living worker handled.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// The worker has handed over this state: it must be the one after the last event.
    pub(super) fn handed_over(&self, state: &[u8]) -> Result<(), String> {
        self.at_rest()?;
        if state != self.state {
            return Err("the state that was handed over is not the one after the last event".into());
        }
        Ok(())
    }

    /// The next worker begins with a journal of its own, and the same state.
    pub(super) fn begin_journal(&mut self) {
        self.records = 0;
        self.next = None;
    }

    /// Between turns no event is under way.
    pub(super) fn at_rest(&self) -> Result<(), String> {
        if self.next.is_some() {
            return Err("recovery knows of an event that the worker never handled".into());
        }
        Ok(())
    }

    /// The worker was killed; its successor has to begin with this.
    pub(super) fn killed(&mut self, found: Found) {
        self.records = found.records;
        self.state = found.state;
        self.has_other_fd = found.has_other_fd;
        self.taken.extend(found.taken);
        self.next = None;
    }
}

/// What the kernel gave away of the clients' bytes is what the events brought.
fn agree(kernel: &BTreeMap<usize, u64>, events: &BTreeMap<usize, u64>) -> Result<(), String> {
    for (client, taken) in kernel {
        let known = events.get(client).copied().unwrap_or(0);
        if known != *taken {
            return Err(format!(
                "{taken} bytes of client {client} were taken, and the events have {known}"
            ));
        }
    }
    Ok(())
}
