//! What a test is told of each event that its worker has handled.

#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "only a test for that processor reads it")
)]

use std::sync::OnceLock;

use bus_wire::Fd;

use crate::broker::{Broker, Event, PeerId};

/// Called after each event, with the state that it gave.
pub(super) static OBSERVER: OnceLock<fn(&Told, &Broker)> = OnceLock::new();

/// Called before each event is applied, live or in a replay.
pub(super) static MEETING: OnceLock<fn(&Event)> = OnceLock::new();

/// An event is about to be applied.
pub(in crate::runtime) fn meet(event: &Event) {
    if let Some(meeting) = MEETING.get() {
        meeting(event);
    }
}

/// The kinds of events that tests tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Accepted,
    Received,
    ReceivedLarge,
    Sent,
    Closed,
    Step,
    Tick,
    /// What the keeper told: SIGHUP, SIGUSR2, the end of an errand.
    ReloadWanted,
    UpgradeWanted,
    ErrandEnded,
    UpgradeFailed,
    Serving,
    Other,
}

/// One event.
#[derive(Debug, Clone, Copy)]
pub(in crate::runtime) struct Told {
    pub(super) kind: Kind,
    pub(super) peer: Option<PeerId>,
    /// The handle of the peer's socket before it.
    pub(super) socket: Option<Fd>,
    /// Bytes that came with it.
    pub(super) received: u64,
    /// Descriptors that came with it.
    pub(super) fds: u64,
    /// The number of the errand that has ended with it.
    pub(super) errand: u64,
}

impl Told {
    /// Of an event that `broker` is about to handle.
    pub(in crate::runtime) fn of(event: &Event, broker: &Broker) -> Self {
        let told = |kind, peer, received: usize, fds: usize| Self {
            kind,
            peer,
            socket: peer.and_then(|peer: PeerId| broker.socket(peer)),
            received: received as u64,
            fds: fds as u64,
            errand: 0,
        };
        meet(event);
        match event {
            Event::Accepted { peer, .. } => told(Kind::Accepted, Some(*peer), 0, 0),
            Event::Received { peer, data, fds, .. } => {
                told(Kind::Received, Some(*peer), data.len(), fds.len())
            }
            Event::ReceivedLarge {
                peer, prefix, fds, ..
            } => {
                let had = broker.large_message(*peer).map_or(0, |(_, had)| had.len());
                told(Kind::ReceivedLarge, Some(*peer), prefix.len() - had, fds.len())
            }
            Event::Sent { peer, .. } => told(Kind::Sent, Some(*peer), 0, 0),
            Event::Closed { peer, .. } => told(Kind::Closed, Some(*peer), 0, 0),
            Event::Step { peer } => told(Kind::Step, Some(*peer), 0, 0),
            Event::Tick { .. } => told(Kind::Tick, None, 0, 0),
            Event::ReloadRequested => told(Kind::ReloadWanted, None, 0, 0),
            Event::UpgradeRequested => told(Kind::UpgradeWanted, None, 0, 0),
            Event::ErrandEnded { errand, .. } => Self {
                errand: *errand,
                ..told(Kind::ErrandEnded, None, 0, 0)
            },
            Event::UpgradeFailed { .. } => told(Kind::UpgradeFailed, None, 0, 0),
            Event::Serving { .. } => told(Kind::Serving, None, 0, 0),
            Event::Quarantined { .. }
            | Event::Detached { .. }
            | Event::Attached { .. }
            | Event::DescriptorLimit { .. }
            | Event::Relieved(_) => told(Kind::Other, None, 0, 0),
        }
    }

    /// It has been handled.
    pub(in crate::runtime) fn tell(&self, broker: &Broker) {
        if let Some(observer) = OBSERVER.get() {
            observer(self, broker);
        }
    }
}
