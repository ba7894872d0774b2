//! The open calls: each ends exactly once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bus_wire::{Fd, Serial};
use bytes::Bytes;

use super::event::{CallId, CallOptions, Outgoing};
use super::fault::Fate;

/// All calls that have not ended, and the signals that are not written yet.
#[derive(Debug, Default)]
pub(super) struct Calls {
    open: BTreeMap<CallId, Call>,
    by_serial: BTreeMap<u32, CallId>,
    /// Those that wait for a link, or for room in it, in the order in which they were made.
    held: BTreeSet<CallId>,
    /// How many wait, for whatever: these and those that wait for the owner of a name.
    held_count: usize,
    held_bytes: usize,
    deadlines: BTreeSet<(Duration, CallId)>,
}

#[derive(Debug)]
pub(super) struct Call {
    pub(super) options: CallOptions,
    deadline: Option<Duration>,
    /// The message; empty once it cannot be sent again.
    pub(super) bytes: Bytes,
    pub(super) destination: Option<Box<str>>,
    /// In which epoch the destination was learnt, where that is known.
    pub(super) learnt: Option<u64>,
    pub(super) fds: Vec<Fd>,
    pub(super) stage: CallStage,
    /// All of it was written to a link that is gone.
    pub(super) was_sent: bool,
    /// Nobody waits for it any more.
    pub(super) is_abandoned: bool,
}

/// How far a call has come.
///
/// ```text
///  New -> Held <-> Queued -> Sent -> (ended)
///   \______^          \________^ lost, and it may be sent again
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallStage {
    /// It was not looked at yet.
    New,
    /// It waits for a link, for room in it, or for the owner of its destination.
    Held,
    /// Not all of it was written.
    Queued(Serial),
    /// All of it was written.
    Sent(Serial),
    /// It is no message: it waits for names.
    Names,
}

impl Call {
    /// What is known while it waits: it may have been sent before, on a link that is gone.
    pub(super) fn fate_so_far(&self) -> Fate {
        if self.was_sent {
            Fate::Unknown
        } else {
            Fate::NotSent
        }
    }
}

impl Calls {
    pub(super) fn open(
        &mut self,
        id: CallId,
        message: Outgoing,
        options: CallOptions,
        stage: CallStage,
        now: Duration,
    ) {
        let deadline = options.timeout.map(|timeout| now.saturating_add(timeout));
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, id));
        }
        let call = Call {
            options,
            deadline,
            bytes: message.bytes.into(),
            destination: message.destination,
            learnt: message.epoch,
            fds: message.fds,
            stage,
            was_sent: false,
            is_abandoned: false,
        };
        self.open.insert(id, call);
    }

    pub(super) fn get(&self, id: CallId) -> Option<&Call> {
        self.open.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: CallId) -> Option<&mut Call> {
        self.open.get_mut(&id)
    }

    /// Removes a call that has ended.
    pub(super) fn remove(&mut self, id: CallId) -> Option<Call> {
        self.unhold(id);
        let call = self.open.remove(&id)?;
        if let Some(deadline) = call.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        if let CallStage::Queued(serial) | CallStage::Sent(serial) = call.stage {
            self.by_serial.remove(&serial.get());
        }
        Some(call)
    }

    /// Nobody waits for it any more, but it cannot be undone: it ends by `latest`.
    pub(super) fn abandon(&mut self, id: CallId, latest: Duration) {
        if let Some(call) = self.open.get_mut(&id) {
            call.is_abandoned = true;
            if call.deadline.is_none() {
                call.deadline = Some(latest);
                self.deadlines.insert((latest, id));
            }
        }
    }

    pub(super) fn has_serial(&self, serial: u32) -> bool {
        self.by_serial.contains_key(&serial)
    }

    pub(super) fn by_serial(&self, serial: Serial) -> Option<CallId> {
        self.by_serial.get(&serial.get()).copied()
    }

    /// Whether one more of this length may wait.
    pub(super) fn has_room(&self, length: usize, most: usize, most_bytes: usize) -> bool {
        self.held_count < most && self.held_bytes + length <= most_bytes
    }

    /// It waits. With `in_line` among those that go as soon as there is a link with room; otherwise the caller knows for what.
    pub(super) fn hold(&mut self, id: CallId, in_line: bool) {
        let Some(call) = self.open.get_mut(&id) else {
            return;
        };
        if call.stage != CallStage::Held {
            if let CallStage::Queued(serial) | CallStage::Sent(serial) = call.stage {
                self.by_serial.remove(&serial.get());
            }
            call.was_sent |= matches!(call.stage, CallStage::Sent(_));
            call.stage = CallStage::Held;
            self.held_count += 1;
            self.held_bytes += call.bytes.len();
        }
        if in_line {
            self.held.insert(id);
        } else {
            self.held.remove(&id);
        }
    }

    fn unhold(&mut self, id: CallId) {
        self.held.remove(&id);
        if let Some(call) = self.open.get_mut(&id)
            && call.stage == CallStage::Held
        {
            call.stage = CallStage::New;
            self.held_count -= 1;
            self.held_bytes -= call.bytes.len();
        }
    }

    /// The first of those that wait in line.
    pub(super) fn first_held(&self) -> Option<CallId> {
        self.held.first().copied()
    }

    /// Those that wait in line.
    pub(super) fn held(&self) -> Vec<CallId> {
        self.held.iter().copied().collect()
    }

    /// It goes into the link with this serial: its bytes, with the serial in them, and its descriptors.
    pub(super) fn queue(&mut self, id: CallId, serial: Serial) -> Option<(Bytes, &[Fd])> {
        self.unhold(id);
        let call = self.open.get_mut(&id)?;
        call.bytes = with_serial(std::mem::take(&mut call.bytes), serial);
        call.stage = CallStage::Queued(serial);
        if call.options.expects_reply {
            self.by_serial.insert(serial.get(), id);
        }
        Some((call.bytes.clone(), &call.fds))
    }

    /// All that are in the link, in the order in which they were made.
    pub(super) fn in_link(&self) -> Vec<(CallId, CallStage)> {
        self.open
            .iter()
            .filter(|(_, call)| matches!(call.stage, CallStage::Queued(_) | CallStage::Sent(_)))
            .map(|(id, call)| (*id, call.stage))
            .collect()
    }

    pub(super) fn all(&self) -> Vec<CallId> {
        self.open.keys().copied().collect()
    }

    /// The first that is due.
    pub(super) fn due(&self, now: Duration) -> Option<CallId> {
        let (deadline, id) = *self.deadlines.first()?;
        (deadline <= now).then_some(id)
    }

    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// How many are open, how many wait, and the bytes of these.
    pub(super) fn count(&self) -> (usize, usize, usize) {
        (self.open.len(), self.held_count, self.held_bytes)
    }
}

/// The message with another serial; it is written in the byte order that its first byte says.
pub(super) fn with_serial(bytes: Bytes, serial: Serial) -> Bytes {
    /// Where a message has its serial (specification, "Message Format").
    const SERIAL: std::ops::Range<usize> = 8..12;
    let mut bytes = match bytes.try_into_mut() {
        Ok(bytes) => bytes,
        Err(shared) => shared[..].into(),
    };
    let big = bytes.first() == Some(&b'B');
    if let Some(place) = bytes.get_mut(SERIAL) {
        let serial = serial.get();
        place.copy_from_slice(&if big {
            serial.to_be_bytes()
        } else {
            serial.to_le_bytes()
        });
    }
    bytes.freeze()
}
