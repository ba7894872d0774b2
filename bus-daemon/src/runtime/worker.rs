//! The worker: the broker, its links and its journal, in turns.
//!
//! A turn takes what is ready, applies all of it, and then writes: effects first, sends after, and one write for many
//! messages.

mod bytes;
mod connections;
mod handover;
mod passing;
mod settling;
mod shortage;
mod turn;

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{OwnedFd, RawFd};

use bus_wire::{Fd, SendQueue};

use super::complaints::Complaints;
use super::in_flight::Unread;
use super::links::{Link, Links, STEP, Writing};
use super::poll::{EpollSet, Source};
use super::recover::Recovered;
use super::rotation::{Ready, Rotation, UserSlot};
use super::system::Kernel;
use crate::broker::{Action, Broker, Dropped, Event, Millis, PeerId, Start};
use crate::control::Inbox;
use crate::handoff::image::Restored;
use crate::handoff::keeper::KeeperV1;
use crate::journal::{Journal, RareEvent};
use connections::Acceptance;
use handover::FollowUp;
use passing::Passing;
use settling::Settling;
use shortage::Shortage;

/// All that the worker holds.
pub(crate) struct Worker {
    broker: Broker,
    journal: Journal,
    links: Links,
    rotation: Rotation<Ready>,
    epoll: EpollSet,
    record: KeeperV1,
    now: Millis,
    acceptance: Acceptance,
    passing: Passing,
    /// Peers whose streams cannot be proved: to be closed.
    lost: Vec<PeerId>,
    /// The memfd of the store that another process image had, which may still have to go on with it.
    carried_store: Option<RawFd>,
    /// A checkpoint that could not be taken is not tried again before this time, in milliseconds.
    no_checkpoint_before: u64,
    /// What is to be done when the turn's events are applied and sent.
    follow_ups: VecDeque<FollowUp>,
    /// Turns that the first of them was put off.
    put_off: u32,
    /// Turns since time was found to have stood still.
    late_turns: u32,
    /// Before that time, in milliseconds, the log is not told again that there is no checkpoint.
    next_complaint: u64,
    /// Descriptors that the event at hand lets go of, while it is looked at whether a replay would need them.
    held_back: Option<Vec<Fd>>,
    /// Descriptors that a replay from the last checkpoint would need: to be closed when the next one is taken.
    needed_until_checkpoint: Vec<Fd>,
    /// What is waited for is another than when the epoll set was last asked.
    must_look: Cell<bool>,
    inbox: Inbox,
    ready: Vec<(Source, u32)>,
    /// `ready` is what a wait ended with, and was not looked at yet; whether that was all.
    told: Option<bool>,
    dirty: Vec<PeerId>,
    /// Peers that got something and were not written to yet: those whose link says so, each once.
    unsent: Rotation<PeerId>,
    complaints: Complaints,
    shortage: Shortage,
    settling: Settling,
    /// The image of the trial that is under way or was passed: the final one is written over it.
    spare: Option<OwnedFd>,
}

impl Worker {
    /// A worker over a broker and the links of its peers, whose sockets the journal's manifest tells. `generation` is that
    /// of the newest peer there ever was.
    pub(crate) fn new(
        mut broker: Broker,
        mut journal: Journal,
        record: KeeperV1,
        inbox: Inbox,
        generation: u32,
    ) -> Self {
        journal.has_heard(inbox.heard());
        broker.set_room(journal.room());
        let mut worker = Self {
            links: Links::after(generation),
            rotation: Rotation::default(),
            epoll: EpollSet(record.epoll),
            record,
            now: super::now(),
            acceptance: Acceptance::new(broker.may_accept()),
            complaints: Complaints::default(),
            passing: Passing::new(),
            lost: Vec::new(),
            carried_store: None,
            no_checkpoint_before: 0,
            follow_ups: VecDeque::new(),
            put_off: 0,
            late_turns: 0,
            next_complaint: 0,
            held_back: None,
            needed_until_checkpoint: Vec::new(),
            must_look: Cell::new(false),
            inbox,
            ready: Vec::new(),
            told: None,
            dirty: Vec::new(),
            shortage: Shortage::new(journal.cap()),
            settling: Settling::default(),
            spare: None,
            unsent: Rotation::default(),
            broker,
            journal,
        };
        worker.link_all();
        worker
    }

    /// A worker over the state that another process image saved.
    /// Of the peers in `lost` a part of the input is not there.
    pub(super) fn carried(
        restored: Restored,
        lost: &[PeerId],
        mut journal: Journal,
        record: KeeperV1,
        inbox: Inbox,
    ) -> Self {
        let Restored {
            broker,
            worker: saved,
            manifest,
            version,
            ..
        } = restored;
        for (handle, number) in &manifest {
            journal.restore_handle(*handle, *number);
        }
        let mut worker = Self::new(broker, journal, record, inbox, saved.generation);
        worker.carried_store = saved.stored.map(|stored| stored.number);
        worker.journal.carry(saved.foreign);
        for (peers, writing) in [(saved.blocked, Writing::Blocked), (saved.broken, Writing::Broken)] {
            for peer in peers.into_iter().map(PeerId::from_u64) {
                if let Some(link) = worker.links.get_mut(peer) {
                    link.writing = writing;
                }
            }
        }
        worker.lost.extend(lost);
        worker.take_extents();
        worker.close_unowned(&manifest);
        if version == 1 {
            worker.complete_version_1();
        }
        worker
    }

    /// Descriptors of peers that could not be restored belong to nobody.
    fn close_unowned(&mut self, manifest: &[(Fd, RawFd)]) {
        let owned: BTreeSet<Fd> = self.broker.owned_fds().into_iter().collect();
        for (handle, number) in manifest.iter().filter(|(handle, _)| !owned.contains(handle)) {
            self.epoll.remove(*number);
            let _ = nix::sys::socket::shutdown(*number, nix::sys::socket::Shutdown::Both);
            self.journal.close(*handle);
        }
        self.journal.settle_handles(&owned);
    }

    /// What version 1 of the state did not save.
    fn complete_version_1(&mut self) {
        let sockets: Vec<_> = self
            .links
            .iter()
            .filter_map(|link| Some((link.peer, link.socket?)))
            .collect();
        for (peer, socket) in sockets {
            let attested = super::system::attested(socket.number);
            self.broker.set_attested(peer, attested.groups, attested.label);
            self.wait_again(peer);
        }
    }

    /// Makes a link for each peer of a broker that another worker had. The manifest knows their sockets.
    fn link_all(&mut self) {
        let peers: Vec<PeerId> = self.broker.peer_ids().collect();
        for peer in peers {
            let socket = self.broker.socket(peer).and_then(|handle| {
                let number = self.journal.verified_number(handle)?;
                Some(super::links::Socket { handle, number })
            });
            if socket.is_none() && self.broker.socket(peer).is_some() {
                tracing::error!("peer {}: its socket is not known", peer.index);
                self.lost.push(peer);
            }
            let mut link = Link::new(peer, socket, self.user(self.broker.uid(peer)));
            link.stopped = !self.broker.may_read(peer);
            link.taken = self.broker.taken(peer);
            link.unread = Unread::after(self.broker.send_queue(peer).map_or(0, SendQueue::sent));
            self.links.insert(link);
            if self.broker.wants_step(peer) {
                self.note_ready(peer, STEP);
            }
        }
        self.links.settle();
    }

    /// The slot of a user, which is the same for reading and for writing.
    fn user(&mut self, uid: Option<u32>) -> UserSlot {
        let user = self.rotation.user(uid);
        let same = self.unsent.user(uid);
        debug_assert_eq!(user, same);
        self.passing.in_flight.know(user, uid);
        user
    }

    /// A worker over what a dead one left, and the connections that it had accepted and not noted.
    pub(super) fn recovered(
        recovered: Recovered,
        journal: Journal,
        record: KeeperV1,
        inbox: Inbox,
        accepted: &[(RawFd, u32)],
    ) -> Self {
        let Recovered {
            broker,
            generation,
            in_doubt,
            ..
        } = recovered;
        let mut worker = Self::new(broker, journal, record, inbox, generation);
        let peers: Vec<PeerId> = worker.links.iter().map(|link| link.peer).collect();
        for peer in peers {
            worker.wait_again(peer);
        }
        worker.take_extents();
        #[cfg(feature = "test-hooks")]
        crate::fault::kill_in("recovery");
        for &(socket, listener) in accepted {
            worker.welcome(socket, listener);
        }
        let in_doubt_peers: Vec<PeerId> = in_doubt.iter().map(|one| one.peer).collect();
        worker.drop_links(&in_doubt);
        worker.lost.extend(in_doubt_peers);
        worker
    }

    /// Large messages that have begun go on in the extents that they lie in.
    fn take_extents(&mut self) {
        let peers: Vec<PeerId> = self.links.iter().map(|link| link.peer).collect();
        for peer in peers {
            if let Some((_, prefix)) = self.broker.large_message(peer) {
                let extent = self.journal.take_adopted(prefix);
                if let Some(link) = self.links.get_mut(peer) {
                    link.large = extent;
                }
            }
        }
    }

    /// What the dead worker was waiting for from a link is not known.
    fn wait_again(&mut self, peer: PeerId) {
        let Some(link) = self.links.get_mut(peer) else {
            return;
        };
        let Some(socket) = link.socket else { return };
        let (events, source) = (link.interest(), Source::Peer(peer.to_u64()));
        if self.epoll.modify(socket.number, source, events).is_err()
            && let Err(error) = self.epoll.add(socket.number, source, events)
        {
            tracing::error!("peer {}: {error}", peer.index);
            self.lost.push(peer);
        }
    }

    /// Closes the sockets and descriptors of peers that could not be restored.
    pub(crate) fn drop_links(&mut self, dropped: &[Dropped]) {
        for one in dropped {
            // The daemon's own loss, no peer's doing: each is told of.
            tracing::warn!("peer {} is disconnected: {}", one.peer.index, one.reason);
            self.close(one.peer);
            self.perform(Action::CloseFds(one.fds.iter().copied().collect()));
        }
    }

    /// Writes the state that this worker begins with where the next one would look for it.
    pub(crate) fn first_checkpoint(&mut self) -> Result<(), String> {
        self.journal.checkpoint(&mut self.broker, self.links.generation())
    }

    #[cfg(test)]
    pub(super) fn parts(&mut self) -> (&Broker, &mut Journal) {
        (&self.broker, &mut self.journal)
    }

    #[cfg(test)]
    pub(super) fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    #[cfg(test)]
    pub(super) fn broker(&self) -> &Broker {
        &self.broker
    }

    /// The first registrations; those that exist already stay.
    pub(crate) fn register(&self) -> std::io::Result<()> {
        self.epoll
            .add(self.record.control.worker, Source::Control, libc::EPOLLIN as u32)?;
        let events = self.acceptance.interest();
        for (index, listener) in (0..).zip(&self.record.listeners) {
            self.epoll.add(listener.fd, Source::Listener(index), events)?;
        }
        Ok(())
    }

    /// From here on the worker does I/O: the way back to the state it was given is closed.
    pub(crate) fn begin(&mut self, start: Start) {
        #[cfg(feature = "test-hooks")]
        let is_recovered = matches!(start, Start::Recovered { .. });
        let is_continued = start != Start::Clean;
        let worker_pid = std::process::id();
        // First of all: where there is no way back to what it was given, how it came to serve is in the log.
        self.journal.note(
            None,
            &RareEvent::Serving {
                worker_pid,
                start: start.clone(),
            },
        );
        self.journal.mark_serving();
        if let Some(number) = self.carried_store.take() {
            crate::os::descriptor::close(number);
        }
        self.record.control.wake_keeper();
        #[cfg(feature = "test-hooks")]
        if is_recovered {
            crate::fault::kill_in("recovery");
        }
        self.apply(Event::Serving { worker_pid, start });
        self.limit_descriptors();
        if !self.is_late() {
            self.tick();
        }
        self.dismiss_lost();
        if is_continued {
            self.catch_up();
        }
        // What was on its way when the last worker stopped.
        let peers: Vec<PeerId> = self.links.iter().map(|link| link.peer).collect();
        for peer in peers {
            self.continue_large(peer);
            self.write(peer);
        }
        self.flush();
    }

    /// Before the state of a recovered worker is given away: those who do not go on are in nobody else's list.
    pub(crate) fn dismiss_all(&mut self) {
        self.dismiss_lost();
        self.flush();
    }

    fn dismiss_lost(&mut self) {
        for peer in std::mem::take(&mut self.lost) {
            self.closed(peer, "its stream cannot be proved");
        }
    }

    /// Applies an event that is in the log.
    fn apply(&mut self, event: Event) {
        let is_input = self.is_input(&event);
        self.journal.mark_applying(self.journal.newest(), is_input);
        #[cfg(feature = "test-hooks")]
        crate::fault::poison(&event, &self.broker);
        #[cfg(test)]
        let told = super::tests::Told::of(&event, &self.broker);
        self.broker.handle(
            event,
            &mut Kernel {
                journal: &mut self.journal,
            },
        );
        self.journal.mark_applied();
        #[cfg(test)]
        told.tell(&self.broker);
        if self.journal.is_incomplete() && !self.has_no_checkpoint_now() {
            // A replay could not know of this event; so it must be part of a checkpoint before anybody hears of it.
            self.take_checkpoint();
        }
        while let Some(action) = self.broker.actions().pop_front() {
            self.perform(action);
        }
    }

    /// Whether an event is about what a peer sent, and may be left out if it kills the worker.
    fn is_input(&self, event: &Event) -> bool {
        if let Event::Step { peer } = event {
            return self.broker.is_input_waiting(*peer);
        }
        matches!(event, Event::Received { .. } | Event::ReceivedLarge { .. })
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Close {
                peer,
                reason,
                uid,
                is_fault,
                last_words,
            } => {
                self.say_last_words(peer, &last_words);
                if is_fault {
                    let text = format_args!("peer {} is disconnected: {reason}", peer.index);
                    self.complaints.warn(uid, text);
                } else {
                    tracing::debug!("peer {} is gone: {reason}", peer.index);
                }
                self.close(peer);
            }
            Action::CloseFds(fds) => {
                if let Some(held_back) = &mut self.held_back {
                    return held_back.extend(fds);
                }
                self.close_descriptors(&fds);
            }
            Action::HangUp { peer, socket } => self.hang_up(peer, socket),
            Action::ScheduleStep(peer) => self.note_ready(peer, STEP),
            Action::StopReading(peer) => self.set_stopped(peer, true),
            Action::ResumeReading(peer) => self.set_stopped(peer, false),
            Action::StopAccepting => self.set_accepting(false),
            Action::ResumeAccepting => self.set_accepting(true),
            Action::RunErrand { id, errand } => self.follow_ups.push_back(FollowUp::Ask { id, errand }),
            Action::HandOver => self.follow_ups.push_back(FollowUp::HandOver),
            Action::Warn { uid, text } => self.complaints.warn(uid, format_args!("{text}")),
        }
    }
}
