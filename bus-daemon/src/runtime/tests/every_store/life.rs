//! In the worker: its life, from any beginning, at the test's orders.

#![allow(unsafe_code, reason = "shared memory")]

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::super::told::{Kind, MEETING, OBSERVER, Told};
use super::super::{session, state};
use super::watch::{self, Report, what};
use crate::broker::{Broker, Event, PeerId, Start};
use crate::control::Inbox;
use crate::handoff::keeper::KeeperV1;
use crate::journal::{Journal, Remains};
use crate::runtime::worker::Worker;
use crate::runtime::{Death, identity};

/// Input with this in it kills the worker.
pub(super) const POISON: &[u8] = b"POISON-EVERY-STORE";
/// Room for the state that the worker tells.
const STATE_ROOM: usize = 16 << 20;

static STATE: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

/// Orders to the worker.
pub(super) mod order {
    pub(in super::super) const GO_ON: u8 = b'.';
    pub(in super::super) const TURN: u8 = b't';
    pub(in super::super) const CHECKPOINT: u8 = b'c';
    /// A turn at whose end a checkpoint is wanted, whatever the log says.
    pub(in super::super) const WANT: u8 = b'n';
    pub(in super::super) const WATCH: u8 = b'w';
    pub(in super::super) const LEAVE: u8 = b'l';
    /// A mistake: what the keeper told is acknowledged before it is in the journal. Then a turn.
    pub(in super::super) const RASH: u8 = b'r';
}

/// What a worker begins with.
pub(super) enum Beginning {
    /// No peer at all.
    Clean(Journal),
    /// What a killed worker left; without the unit of this number.
    Recovered(Option<u64>),
    /// The state in the image, under a new journal.
    Upgraded(Journal),
    /// The same, because nobody else could go on with it.
    RolledBack(Journal),
}

pub(super) const KINDS: [Kind; 13] = [
    Kind::Accepted,
    Kind::Received,
    Kind::ReceivedLarge,
    Kind::Sent,
    Kind::Closed,
    Kind::Step,
    Kind::Tick,
    Kind::ReloadWanted,
    Kind::UpgradeWanted,
    Kind::ErrandEnded,
    Kind::UpgradeFailed,
    Kind::Serving,
    Kind::Other,
];

/// In the test: room for the state that workers tell, and whom they tell.
pub(super) fn arrange() {
    OBSERVER.get_or_init(|| observe);
    // SAFETY: a new mapping.
    let room = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            STATE_ROOM,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert_ne!(room, libc::MAP_FAILED);
    STATE.store(room.cast(), Ordering::Relaxed);
}

/// In the test: the state that the worker has told, of `len` bytes, while it waits.
pub(super) fn told_state(len: u64) -> Vec<u8> {
    assert!(len <= STATE_ROOM as u64);
    let room = STATE.load(Ordering::Relaxed);
    // SAFETY: in the mapping; the worker waits.
    unsafe { std::slice::from_raw_parts(room, len as usize) }.to_vec()
}

/// Tells an event.
fn observe(told: &Told, broker: &Broker) {
    let state = state(broker);
    assert!(state.len() <= STATE_ROOM);
    let room = STATE.load(Ordering::Relaxed);
    // SAFETY: room for that, and the test waits.
    unsafe { std::ptr::copy_nonoverlapping(state.as_ptr(), room, state.len()) };
    watch::report(Report {
        what: what::HANDLED,
        first: KINDS.iter().position(|kind| *kind == told.kind).unwrap() as u64
            | told.socket.map_or(0, |handle| (handle.0 as u64 + 1) << 8),
        second: told.peer.map_or(told.errand, PeerId::to_u64),
        third: told.received as i64,
        fourth: told.fds,
        fifth: state.len() as u64,
    });
}

/// Dies of poison, by its own fault.
fn meet(event: &Event) {
    let (Event::Received { data, .. } | Event::ReceivedLarge { prefix: data, .. }) = event else {
        return;
    };
    if data.windows(POISON.len()).any(|window| window == POISON) {
        watch::report(Report::plain(what::DYING));
        std::process::abort();
    }
}

/// The life of a worker.
pub(super) fn live(
    record: KeeperV1,
    remains: Remains,
    inbox: Inbox,
    beginning: Beginning,
    kept: &[RawFd],
) -> i32 {
    MEETING.get_or_init(|| meet);
    watch::set_on(!matches!(beginning, Beginning::Clean(_)));
    let (mut worker, start) = match beginning {
        Beginning::Clean(journal) => {
            let broker = Broker::new(
                identity(&record).unwrap(),
                Arc::new(session()),
                crate::runtime::now(),
            );
            let mut worker = Worker::new(broker, journal, record, inbox, 0);
            worker.first_checkpoint().unwrap();
            (worker, Start::Clean)
        }
        Beginning::Recovered(skip) => {
            let journal = Journal::reopen(remains).unwrap();
            crate::runtime::recover(&record, journal, inbox, &Death { skip, ..Death::now() }, kept).unwrap()
        }
        Beginning::Upgraded(journal) => {
            let (worker, pause) = crate::runtime::restore(&record, journal, inbox, &left(kept)).unwrap();
            (worker, Start::Upgraded { pause })
        }
        Beginning::RolledBack(journal) => {
            let (worker, pause) = crate::runtime::restore(&record, journal, inbox, &left(kept)).unwrap();
            let reason = "the test wants it".to_owned();
            (worker, Start::RolledBack { reason, pause })
        }
    };
    worker.register().unwrap();
    worker.begin(start);
    loop {
        match watch::report(Report::plain(what::DONE)) {
            order::TURN => worker.turns(),
            order::RASH => {
                let mut heard = inbox.heard();
                while let Some(entry) = inbox.next(heard) {
                    heard = entry.number;
                }
                inbox.acknowledge(heard);
                worker.turns();
            }
            order::CHECKPOINT => worker.first_checkpoint().unwrap(),
            order::WANT => {
                worker.want_checkpoint();
                worker.turn();
            }
            order::WATCH => watch::set_on(true),
            order::LEAVE => watch::set_on(false),
            other => panic!("no such order: {other}"),
        }
    }
}

/// What a worker finds that comes after another.
fn left(kept: &[RawFd]) -> crate::runtime::Open {
    crate::runtime::Open {
        kept: kept.to_vec(),
        has_more: true,
    }
}
