//! What the keeper tells the worker: numbered entries in shared memory, each heard exactly once.
//!
//! ```text
//! keeper: post ──> written ──> (worker) journaled ──> acknowledged ──> settled: the slot is free again
//! ```
//!
//! An entry stays in the sheet until the worker has it in its journal. A worker that dies before that leaves it to the
//! next one; one that dies after it finds the entry's number in its journal. So a death loses none and repeats none.

#![allow(unsafe_code, reason = "atomics in mapped memory")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use crate::handoff::form::Form;
use crate::os::region::Region;

/// Entries that may be unheard at once in the sheet; more wait in the keeper.
const SLOTS: u64 = 32;

/// What an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// Somebody wants the configuration to be read again (SIGHUP).
    ReloadWanted,
    /// Somebody wants an upgrade to the binary at the path that this one was started from (SIGUSR2).
    UpgradeWanted,
    /// An errand has ended. `payload` is a memfd with the encoded [`Outcome`](super::Outcome). It belongs to the outbox
    /// until the entry is acknowledged, and to the broker's state from then on. -1: there was no descriptor or memory for one,
    /// and the errand was not begun.
    ErrandEnded {
        /// The errand's number.
        errand: u64,
        /// The memfd.
        payload: RawFd,
    },
}

/// An entry as the worker reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Counts from 1 for each outbox.
    pub(crate) number: u64,
    /// What it says.
    pub(crate) told: Told,
}

#[repr(C)]
struct Slot {
    number: AtomicU64,
    errand: AtomicU64,
    kind: AtomicU32,
    payload: AtomicI32,
}

/// The shared page.
#[repr(C)]
struct Sheet {
    /// The number of the newest entry.
    written: AtomicU64,
    /// The number of the newest entry that a worker has in its journal.
    heard: AtomicU64,
    /// The form in which the newest worker may hand its state over, as a number; 0 = the keeper has no binary that passed its
    /// trial.
    approved: AtomicU32,
    /// The signal that a worker is dying of, if one said so.
    fault: AtomicI32,
    /// The process that said so.
    faulty: AtomicI32,
    slots: [Slot; SLOTS as usize],
}

const LEN: usize = 4096;
const _: () = assert!(size_of::<Sheet>() <= LEN);

fn sheet(region: Region) -> &'static Sheet {
    // SAFETY: page aligned, in range, any bits are a value of its atomics; the mapping lives as long as the process.
    unsafe { &*region.at(0, LEN).cast::<Sheet>() }
}

/// The keeper's end.
pub(crate) struct Outbox {
    region: Region,
    /// What is unheard, oldest first. The first [`SLOTS`] of them stand in the sheet.
    unheard: VecDeque<Entry>,
    newest: u64,
}

impl Outbox {
    /// An empty one. Its memfd is not kept over exec.
    pub(crate) fn create() -> io::Result<Self> {
        Ok(Self {
            region: Region::create(c"bus-outbox", LEN)?,
            unheard: VecDeque::new(),
            newest: 0,
        })
    }

    /// The worker's end, valid in every process that is cloned from this one.
    pub(crate) fn inbox(&self) -> Inbox {
        Inbox(self.region)
    }

    /// Where the sheet is mapped, and its length.
    #[cfg(all(test, target_arch = "x86_64"))]
    pub(crate) fn mapping(&self) -> (usize, usize) {
        (self.region.at(0, 0) as usize, self.region.len())
    }

    /// The memfd of the sheet, and those of unheard entries: a worker's sweep keeps them.
    pub(crate) fn fds(&self) -> Vec<RawFd> {
        let payloads = self.unheard.iter().filter_map(|entry| match entry.told {
            Told::ErrandEnded { payload, .. } => Some(payload).filter(|payload| *payload >= 0),
            Told::ReloadWanted | Told::UpgradeWanted => None,
        });
        payloads.chain([self.region.fd()]).collect()
    }

    /// Adds an entry. A request that is unheard already is not repeated: whatever it brings about is still to come.
    pub(crate) fn post(&mut self, told: Told) {
        self.settle();
        let is_request = !matches!(told, Told::ErrandEnded { .. });
        if is_request && self.unheard.iter().any(|entry| entry.told == told) {
            return;
        }
        self.newest += 1;
        self.unheard.push_back(Entry {
            number: self.newest,
            told,
        });
        self.publish();
    }

    /// Forgets what was heard, and moves what waited into the sheet. Returns whether anything is unheard.
    pub(crate) fn settle(&mut self) -> bool {
        let heard = sheet(self.region).heard.load(Ordering::Acquire);
        while self.unheard.front().is_some_and(|entry| entry.number <= heard) {
            self.unheard.pop_front();
        }
        self.publish();
        !self.unheard.is_empty()
    }

    fn publish(&self) {
        let sheet = sheet(self.region);
        let written = sheet.written.load(Ordering::Relaxed);
        let in_sheet = self.unheard.iter().take(SLOTS as usize);
        for entry in in_sheet.filter(|entry| entry.number > written) {
            let slot = &sheet.slots[(entry.number % SLOTS) as usize];
            let (kind, errand, payload) = match entry.told {
                Told::ReloadWanted => (1, 0, -1),
                Told::UpgradeWanted => (2, 0, -1),
                Told::ErrandEnded { errand, payload } => (3, errand, payload),
            };
            slot.kind.store(kind, Ordering::Relaxed);
            slot.errand.store(errand, Ordering::Relaxed);
            slot.payload.store(payload, Ordering::Relaxed);
            slot.number.store(entry.number, Ordering::Release);
            sheet.written.store(entry.number, Ordering::Release);
        }
    }

    /// For the worker: whether there is a binary to hand its state over to, and in which form.
    pub(crate) fn set_approved(&self, approved: Option<Form>) {
        sheet(self.region)
            .approved
            .store(approved.map_or(0, Form::to_bits), Ordering::Release);
    }

    /// Whether a request to read the configuration, and one for an upgrade, are unheard.
    pub(crate) fn unheard_requests(&mut self) -> (bool, bool) {
        self.settle();
        let has = |told| self.unheard.iter().any(|entry| entry.told == told);
        (has(Told::ReloadWanted), has(Told::UpgradeWanted))
    }

    /// Whether the end of this errand has not been heard yet.
    pub(crate) fn is_unheard(&mut self, errand: u64) -> bool {
        self.settle();
        self.unheard
            .iter()
            .any(|entry| matches!(entry.told, Told::ErrandEnded { errand: ended, .. } if ended == errand))
    }

    /// The signal that this worker says it is dying of.
    pub(crate) fn fault_of(&self, worker: i32) -> Option<i32> {
        let sheet = sheet(self.region);
        let signal = sheet.fault.load(Ordering::Acquire);
        (signal != 0 && sheet.faulty.load(Ordering::Acquire) == worker).then_some(signal)
    }
}

/// The worker's end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inbox(Region);

impl Inbox {
    /// The entry after number `heard`, if there is one.
    pub(crate) fn next(&self, heard: u64) -> Option<Entry> {
        let sheet = sheet(self.0);
        let number = heard + 1;
        let slot = &sheet.slots[(number % SLOTS) as usize];
        if number > sheet.written.load(Ordering::Acquire) || slot.number.load(Ordering::Acquire) != number {
            return None;
        }
        let told = match slot.kind.load(Ordering::Relaxed) {
            1 => Told::ReloadWanted,
            2 => Told::UpgradeWanted,
            3 => Told::ErrandEnded {
                errand: slot.errand.load(Ordering::Relaxed),
                payload: slot.payload.load(Ordering::Relaxed),
            },
            _ => return None,
        };
        Some(Entry { number, told })
    }

    /// The number of the newest acknowledged entry: where a worker that has no journal to go on from begins.
    pub(crate) fn heard(&self) -> u64 {
        sheet(self.0).heard.load(Ordering::Acquire)
    }

    /// The form that the keeper's binary reads which passed its trial, if there is such a binary.
    pub(crate) fn approved(&self) -> Option<Form> {
        Form::from_bits(sheet(self.0).approved.load(Ordering::Acquire))
    }

    /// The entry of this number, and all before it, are in the journal.
    pub(crate) fn acknowledge(&self, number: u64) {
        sheet(self.0).heard.store(number, Ordering::Release);
    }

    /// The same after a death, where the dead worker may not have come to it. The memfds of those entries belong to the
    /// state from now on.
    pub(crate) fn catch_up(&self, number: u64) -> Vec<RawFd> {
        let heard = self.heard();
        let entries = (heard..number).map_while(|before| self.next(before));
        let payloads = entries.filter_map(|entry| match entry.told {
            Told::ErrandEnded { payload, .. } => Some(payload),
            Told::ReloadWanted | Told::UpgradeWanted => None,
        });
        let payloads = payloads.collect();
        if number > heard {
            self.acknowledge(number);
        }
        payloads
    }

    /// This process is dying of a signal. Callable from a signal handler.
    pub(crate) fn note_fault(&self, signal: i32, process: i32) {
        let sheet = sheet(self.0);
        // In this order: a signal never stands beside another process.
        sheet.fault.store(0, Ordering::Release);
        sheet.faulty.store(process, Ordering::Release);
        sheet.fault.store(signal, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(errand: u64) -> Told {
        Told::ErrandEnded { errand, payload: -1 }
    }

    #[test]
    fn each_entry_is_heard_once_in_order_whatever_the_backlog() {
        let mut outbox = Outbox::create().unwrap();
        let inbox = outbox.inbox();
        let mut heard = inbox.heard();
        for errand in 1..=3 * SLOTS {
            outbox.post(ended(errand));
        }
        let mut got = Vec::new();
        loop {
            while let Some(entry) = inbox.next(heard) {
                heard = entry.number;
                inbox.acknowledge(heard);
                got.push(entry.told);
            }
            if !outbox.settle() {
                break;
            }
        }
        assert_eq!(got, (1..=3 * SLOTS).map(ended).collect::<Vec<_>>());
        assert_eq!(inbox.next(heard), None);
    }

    #[test]
    fn an_entry_that_is_not_acknowledged_is_there_for_the_next_worker() {
        let mut outbox = Outbox::create().unwrap();
        outbox.post(Told::ReloadWanted);
        outbox.post(ended(7));
        let inbox = outbox.inbox();
        assert_eq!(inbox.next(0).map(|entry| entry.told), Some(Told::ReloadWanted));
        assert_eq!(inbox.next(0).map(|entry| entry.told), Some(Told::ReloadWanted));
        inbox.acknowledge(1);
        assert!(outbox.settle());
        assert_eq!(inbox.next(1).map(|entry| entry.told), Some(ended(7)));
    }

    #[test]
    fn payloads_of_what_is_in_the_journal_and_not_acknowledged_are_known() {
        let mut outbox = Outbox::create().unwrap();
        for payload in [70, 71, 72] {
            outbox.post(Told::ErrandEnded { errand: 1, payload });
            outbox.post(Told::ReloadWanted);
        }
        let inbox = outbox.inbox();
        inbox.acknowledge(1);
        // A request that is unheard is posted once: the entries are 70, the request, 71, 72.
        assert_eq!(inbox.catch_up(1), []);
        assert_eq!(inbox.catch_up(2), []);
        assert_eq!(inbox.catch_up(3), [71]);
        assert_eq!(inbox.heard(), 3);
        assert_eq!(inbox.catch_up(3), []);
        assert_eq!(inbox.catch_up(4), [72]);
    }

    #[test]
    fn a_request_that_is_unheard_is_not_repeated() {
        let mut outbox = Outbox::create().unwrap();
        let inbox = outbox.inbox();
        for _ in 0..10_000 {
            outbox.post(Told::ReloadWanted);
            outbox.post(Told::UpgradeWanted);
        }
        assert!(inbox.next(2).is_none());
        inbox.acknowledge(2);
        outbox.post(Told::ReloadWanted);
        assert_eq!(inbox.next(2).map(|entry| entry.told), Some(Told::ReloadWanted));
    }

    #[test]
    fn a_fault_is_of_the_process_that_said_so() {
        let outbox = Outbox::create().unwrap();
        let inbox = outbox.inbox();
        assert_eq!(outbox.fault_of(7), None);
        inbox.note_fault(11, 7);
        assert_eq!((outbox.fault_of(7), outbox.fault_of(8)), (Some(11), None));
        inbox.note_fault(6, 8);
        assert_eq!((outbox.fault_of(7), outbox.fault_of(8)), (None, Some(6)));
    }

    #[test]
    fn requests_that_nobody_has_heard_are_known() {
        let mut outbox = Outbox::create().unwrap();
        outbox.post(ended(1));
        assert_eq!(outbox.unheard_requests(), (false, false));
        outbox.post(Told::UpgradeWanted);
        assert_eq!(outbox.unheard_requests(), (false, true));
        assert!(outbox.is_unheard(1) && !outbox.is_unheard(2));
        outbox.inbox().acknowledge(1);
        assert!(!outbox.is_unheard(1));
        assert_eq!(outbox.unheard_requests(), (false, true));
    }
}
