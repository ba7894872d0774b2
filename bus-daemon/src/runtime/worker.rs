//! The worker: the broker, its links and its journal, in turns.
//!
//! A turn takes what is ready, applies all of it, and then writes: effects first, sends after, and one write for many
//! messages.

mod connections;
mod handover;

use std::os::fd::RawFd;

use bus_wire::Fd;
use nix::sys::socket::MsgFlags;

use super::clock;
use super::complaints::Complaints;
use super::links::{Incoming, Link, Links, socket_of};
use super::poll::{EpollSet, Source};
use super::recover::Recovered;
use super::system::{self, Kernel};
use crate::broker::{Action, Broker, Dropped, Event, Millis, PeerId, Start};
use crate::handoff::image::WorkerV1;
use crate::journal::{Journal, RareEvent, Read};
use crate::keeper::KeeperV1;

/// The broker's time goes on in steps of at least this many milliseconds.
const TICK: u64 = 20;
/// Sockets asked for their cookies in one turn.
const COOKIES: usize = 64;
/// How long to wait before a write that the kernel refused for want of room for descriptors is tried again.
const RETRY: u64 = 20;

/// All that the worker holds.
pub(crate) struct Worker {
    broker: Broker,
    journal: Journal,
    links: Links,
    epoll: EpollSet,
    record: KeeperV1,
    /// The generation of the newest link.
    generation: u32,
    now: Millis,
    /// A descriptor kept open to be given up when the table is full.
    reserve: Option<std::fs::File>,
    /// Peers whose write is to be tried again at a tick.
    retry: Vec<PeerId>,
    /// Peers whose streams cannot be proved, or whose input killed the last worker: to be closed.
    lost: Vec<PeerId>,
    quarantined: Vec<PeerId>,
    /// Peers that were carried over an upgrade, and whose sockets the new journal does not know yet.
    without_cookie: Vec<PeerId>,
    ready: Vec<(Source, u32)>,
    dirty: Vec<PeerId>,
    complaints: Complaints,
}

impl Worker {
    /// A worker over a broker that has no links yet, or those of `carried`.
    pub(crate) fn new(broker: Broker, journal: Journal, record: KeeperV1, carried: Option<WorkerV1>) -> Self {
        let mut links = Links::default();
        let generation = carried.as_ref().map_or(0, |carried| carried.generation);
        for saved in carried.into_iter().flat_map(|carried| carried.links) {
            let mut link = Link::new(PeerId::from_u64(saved.peer));
            link.blocked = saved.blocked;
            link.stopped = saved.stopped;
            link.broken = saved.broken;
            links.insert(link);
        }
        let without_cookie = links.iter().map(|link| link.peer).collect();
        Self {
            broker,
            journal,
            links,
            without_cookie,
            epoll: EpollSet(record.epoll),
            record,
            generation,
            now: clock::boottime(),
            reserve: std::fs::File::open("/dev/null").ok(),
            retry: Vec::new(),
            lost: Vec::new(),
            quarantined: Vec::new(),
            ready: Vec::new(),
            dirty: Vec::new(),
            complaints: Complaints::default(),
        }
    }

    /// A worker over what a dead one left, and the connections that it had accepted and not noted.
    pub(super) fn recovered(
        recovered: Recovered,
        journal: Journal,
        record: KeeperV1,
        accepted: &[(RawFd, u32)],
    ) -> Self {
        let Recovered {
            broker,
            generation,
            in_doubt,
            quarantined,
            accepted: noted,
            ..
        } = recovered;
        let mut worker = Self::new(broker, journal, record, None);
        worker.generation = generation;
        let peers: Vec<PeerId> = worker.broker.peer_ids().collect();
        for peer in peers {
            let mut link = Link::new(peer);
            link.stopped = !worker.broker.may_read(peer);
            // What the dead worker was waiting for is not known.
            let (events, source) = (link.interest(), Source::Peer(peer.to_u64()));
            if worker.epoll.modify(link.socket(), source, events).is_err()
                && let Err(error) = worker.epoll.add(link.socket(), source, events)
            {
                tracing::error!("peer {}: {error}", link.socket());
                worker.lost.push(peer);
            }
            if let Some((large, prefix)) = worker.broker.large_message(peer) {
                let extent = worker.journal.take_adopted(prefix);
                link.large = extent.map(|extent| Incoming {
                    extent,
                    filled: large.have,
                    total: large.total,
                });
            }
            if worker.journal.cookie(Fd(link.socket())) == 0 {
                // Carried over an upgrade, and the dead worker had not come to it.
                worker.without_cookie.push(peer);
            }
            worker.links.insert(link);
        }
        #[cfg(feature = "test-hooks")]
        crate::fault::kill_in("recovery");
        for peer in noted {
            if worker.links.get_mut(peer).is_some() {
                worker.journal.set_cookie(peer, system::cookie(socket_of(peer)));
            }
        }
        for &(socket, listener) in accepted {
            worker.welcome(socket, listener);
        }
        let in_doubt_peers: Vec<PeerId> = in_doubt.iter().map(|one| one.peer).collect();
        worker.drop_links(&in_doubt);
        worker.lost.extend(in_doubt_peers);
        worker.quarantined = quarantined;
        worker
    }

    /// Closes the sockets and descriptors of peers that could not be restored.
    pub(crate) fn drop_links(&mut self, dropped: &[Dropped]) {
        for one in dropped {
            // The daemon's own loss, no peer's doing: each is told of.
            tracing::warn!("peer {} is disconnected: {}", socket_of(one.peer), one.reason);
            self.close(one.peer);
            self.perform(Action::CloseFds(one.fds.iter().copied().collect()));
        }
    }

    /// Writes the state that this worker begins with where the next one would look for it.
    pub(crate) fn first_checkpoint(&mut self) -> Result<(), String> {
        self.journal.checkpoint(&mut self.broker, self.generation)
    }

    #[cfg(test)]
    pub(super) fn broker(&self) -> &Broker {
        &self.broker
    }

    /// The first registrations; those that exist already stay.
    pub(crate) fn register(&self) -> std::io::Result<()> {
        self.epoll
            .add(self.record.control.worker, Source::Control, libc::EPOLLIN as u32)?;
        let events = if self.broker.may_accept() {
            libc::EPOLLIN as u32
        } else {
            0
        };
        for (index, listener) in (0..).zip(&self.record.listeners) {
            self.epoll.add(listener.fd, Source::Listener(index), events)?;
        }
        Ok(())
    }

    /// From here on the worker does I/O: the way back to the state it was given is closed.
    pub(crate) fn begin(&mut self, start: Start) {
        let is_recovered = matches!(start, Start::Recovered { .. });
        self.journal.mark_serving();
        self.tick();
        let worker_pid = std::process::id();
        #[cfg(feature = "test-hooks")]
        if is_recovered {
            crate::fault::kill_in("recovery");
        }
        self.journal.note(
            None,
            &RareEvent::Serving {
                worker_pid,
                start: start.clone(),
            },
        );
        self.apply(Event::Serving { worker_pid, start });
        if is_recovered {
            self.catch_up();
        }
        // What was on its way when the last worker stopped.
        let peers: Vec<PeerId> = self.links.iter().map(|link| link.peer).collect();
        for peer in peers {
            self.continue_large(peer);
            self.write(peer);
        }
        self.dismiss_quarantined();
    }

    /// Before the state of a recovered worker is given away: those who do not go on are in nobody else's list.
    pub(crate) fn dismiss_all(&mut self) {
        self.dismiss_lost();
        self.dismiss_quarantined();
    }

    /// Disconnects those whose input killed the worker, once they have been told.
    fn dismiss_quarantined(&mut self) {
        self.flush();
        for peer in std::mem::take(&mut self.quarantined) {
            self.closed(peer, "what it sent killed the worker");
        }
        self.flush();
    }

    /// What the dead worker had been asked to do and cannot have done.
    fn catch_up(&mut self) {
        self.dismiss_lost();
        if self.broker.is_upgrading() {
            self.refuse_upgrade("the worker died meanwhile; try again".into());
        }
        if self.broker.is_reloading() {
            self.reload();
        }
    }

    fn dismiss_lost(&mut self) {
        for peer in std::mem::take(&mut self.lost) {
            self.closed(peer, "its stream cannot be proved");
        }
    }

    /// When the next tick is due; `None` = not by itself.
    pub(crate) fn next_tick(&self) -> Option<Millis> {
        let retry = (!self.retry.is_empty()).then_some(Millis(self.now.0 + RETRY));
        self.broker.next_deadline().into_iter().chain(retry).min()
    }

    /// Deals with everything that is ready.
    pub(crate) fn turn(&mut self) {
        loop {
            self.tick();
            let mut ready = std::mem::take(&mut self.ready);
            ready.clear();
            let mut more = match self.epoll.take_ready(&mut ready) {
                Ok(all) => !all,
                Err(error) => {
                    tracing::error!("epoll: {error}");
                    false
                }
            };
            for &(source, events) in &ready {
                more |= self.dispatch(source, events);
            }
            self.ready = ready;
            self.flush();
            self.note_cookies();
            self.keep_replay_short();
            if !more {
                return;
            }
        }
    }

    /// Notes which sockets the carried peers have, some in each turn: asking for thousands would prolong the pause.
    fn note_cookies(&mut self) {
        let rest = self.without_cookie.len().saturating_sub(COOKIES);
        for peer in self.without_cookie.drain(rest..) {
            if let Some(link) = self.links.get_mut(peer) {
                self.journal.set_cookie(peer, system::cookie(link.socket()));
            }
        }
    }

    /// Takes a checkpoint when a replay would take long; one that is large is written ahead in parts.
    fn keep_replay_short(&mut self) {
        if self.journal.write_ahead(&mut self.broker) || !self.journal.wants_checkpoint() {
            return;
        }
        match self.journal.checkpoint(&mut self.broker, self.generation) {
            Ok(()) => {
                if self.record.image >= 0 {
                    // The state that this worker began with is not needed any more.
                    let _ = nix::unistd::close(self.record.image);
                    self.record.image = -1;
                }
            }
            Err(error) => tracing::error!("no checkpoint: {error}"),
        }
    }

    fn dispatch(&mut self, source: Source, events: u32) -> bool {
        match source {
            Source::Control => {
                self.listen_to_keeper();
                false
            }
            Source::Listener(index) => self.accept(index),
            Source::Peer(number) => {
                let peer = PeerId::from_u64(number);
                let mut more = false;
                if events & !(libc::EPOLLOUT as u32) != 0 {
                    let hung_up = events & (libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0;
                    more = self.read(peer, hung_up);
                }
                if events & libc::EPOLLOUT as u32 != 0 {
                    self.write(peer);
                }
                more
            }
        }
    }

    /// Tells the broker what time it is, and tries again what had to wait.
    pub(crate) fn tick(&mut self) {
        let now = clock::boottime();
        if now.0 < self.now.0 + TICK && self.broker.next_deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        self.now = now;
        self.journal.note_tick(now.0);
        self.apply(Event::Tick { now });
        for peer in std::mem::take(&mut self.retry) {
            self.write(peer);
        }
    }

    /// Applies an event that is in the log.
    fn apply(&mut self, event: Event) {
        self.journal.mark_applying(self.journal.newest());
        #[cfg(feature = "test-hooks")]
        crate::fault::poison(&event);
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
        while let Some(action) = self.broker.actions().pop_front() {
            self.perform(action);
        }
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
                if !last_words.is_empty() {
                    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                    let _ = nix::sys::socket::send(socket_of(peer), &last_words, flags);
                }
                if is_fault {
                    let text = format_args!("peer {} is disconnected: {reason}", socket_of(peer));
                    self.complaints.warn(uid, text);
                } else {
                    tracing::debug!("peer {} is gone: {reason}", socket_of(peer));
                }
                self.close(peer);
            }
            Action::CloseFds(fds) => {
                for fd in fds {
                    let _ = nix::unistd::close(fd.0);
                }
            }
            Action::StopReading(peer) => self.set_stopped(peer, true),
            Action::ResumeReading(peer) => self.set_stopped(peer, false),
            Action::StopAccepting => self.set_accepting(false),
            Action::ResumeAccepting => self.set_accepting(true),
            Action::ReloadConfig => self.reload(),
            Action::Upgrade { binary } => self.ask_for_preflight(binary),
            Action::Warn { uid, text } => self.complaints.warn(uid, format_args!("{text}")),
        }
    }

    // Bytes

    /// Reads once; true if there may be more.
    fn read(&mut self, peer: PeerId, hung_up: bool) -> bool {
        let Some(link) = self.links.get_mut(peer) else {
            return false;
        };
        if link.stopped && !hung_up {
            return false;
        }
        let socket = link.socket();
        let result = match &link.large {
            None => self.journal.receive(socket, peer),
            Some(Incoming {
                extent,
                filled,
                total,
            }) => self.journal.receive_large(socket, peer, extent, *filled, *total),
        };
        match result {
            Ok(Read::Data {
                bytes,
                fds,
                len,
                full,
                lost_fds,
            }) => {
                let event = match &mut link.large {
                    None => Event::Received {
                        peer,
                        data: bytes,
                        fds,
                    },
                    Some(incoming) => {
                        incoming.filled += len;
                        if incoming.filled == incoming.total
                            && let Some(done) = link.large.take()
                        {
                            self.journal.give_back(done.extent);
                        }
                        Event::ReceivedLarge {
                            peer,
                            prefix: bytes,
                            fds,
                        }
                    }
                };
                self.apply(event);
                if lost_fds {
                    self.closed(
                        peer,
                        "its file descriptors did not fit into the table of open files",
                    );
                    return false;
                }
                self.continue_large(peer);
                full
            }
            Ok(Read::End) => {
                self.closed(peer, "end of file");
                false
            }
            Ok(Read::Empty) => {
                if hung_up && self.links.get_mut(peer).is_some_and(|link| link.broken) {
                    self.closed(peer, "connection broken");
                }
                false
            }
            Err(error) => {
                tracing::debug!("read from peer {socket}: {error}");
                self.closed(peer, "error of the socket");
                false
            }
        }
    }

    fn closed(&mut self, peer: PeerId, reason: &'static str) {
        self.journal.note(
            Some(peer),
            &RareEvent::Closed {
                reason: reason.into(),
            },
        );
        self.apply(Event::Closed { peer, reason });
    }

    /// Gives a large message that has begun an extent of its own.
    fn continue_large(&mut self, peer: PeerId) {
        let Some((large, prefix)) = self.broker.large_message(peer) else {
            return;
        };
        let Some(link) = self.links.get_mut(peer) else {
            return;
        };
        if link.large.is_some() {
            return;
        }
        match self.journal.lend_extent(large.total, prefix) {
            Ok(extent) => {
                link.large = Some(Incoming {
                    extent,
                    filled: large.have,
                    total: large.total,
                })
            }
            // Without one the framer puts the message together from the log, with a copy.
            Err(error) => {
                let text = format_args!("no extent for a message of {} bytes: {error}", large.total);
                self.complaints.warn(self.broker.uid_of(peer), text);
            }
        }
    }

    /// Writes to all peers that got something, as far as their sockets take it.
    fn flush(&mut self) {
        loop {
            let mut dirty = std::mem::take(&mut self.dirty);
            dirty.clear();
            self.broker.take_dirty(&mut dirty);
            let idle = dirty.is_empty();
            for &peer in &dirty {
                self.write(peer);
            }
            self.dirty = dirty;
            if idle {
                return;
            }
        }
    }

    fn write(&mut self, peer: PeerId) {
        let mut blocked = false;
        while let Some(queue) = self.broker.send_queue(peer).filter(|queue| !queue.is_empty()) {
            let Some(link) = self.links.get_mut(peer) else {
                return;
            };
            if link.broken {
                break;
            }
            match self.journal.send(link.socket(), peer, queue) {
                Ok(written) => {
                    if written.len > 0 {
                        self.apply(Event::Drained {
                            peer,
                            bytes: written.len,
                        });
                    }
                    if written.blocked {
                        blocked = true;
                        break;
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                    // Too many descriptors of this user are in flight: theirs to take, and only this peer waits.
                    self.retry.push(peer);
                    break;
                }
                Err(error) => {
                    // Unread input may still be there: the read side tells of the end.
                    tracing::debug!("write to peer {}: {error}", link.socket());
                    link.broken = true;
                    break;
                }
            }
        }
        if let Some(link) = self.links.get_mut(peer)
            && link.blocked != blocked
        {
            link.blocked = blocked;
            update_interest(self.epoll, link);
        }
    }
}

fn update_interest(epoll: EpollSet, link: &Link) {
    let source = Source::Peer(link.peer.to_u64());
    if let Err(error) = epoll.modify(link.socket(), source, link.interest()) {
        tracing::error!("epoll: {error}");
    }
}
