//! Connections as they come and go.

use std::io::Error;
use std::os::fd::{AsRawFd, RawFd};

use nix::sys::socket::MsgFlags;

use super::Worker;
use crate::broker::{Event, PeerId};
use crate::journal::RareEvent;
use crate::os::descriptor;
use crate::runtime::in_flight::Unread;
use crate::runtime::links::{Link, Socket};
use crate::runtime::poll::{EpollSet, Source};
use crate::runtime::rotation::{Ready, Rotation, Turn, UserSlot};
use crate::runtime::system;

/// Work at one turn of a listener: 32 connections, or as many more as are turned away.
const ACCEPTS: u64 = 32 * ACCEPT;
/// What it is to take a connection in: questions to the kernel.
const ACCEPT: u64 = 4;
/// What it is to turn one away.
const TURN_AWAY: u64 = 1;

/// Descriptors of keeper and worker themselves: memfds, epoll sets, sockets of their own.
const OWN: u64 = 64;

/// How long to wait before accepting is tried again, in milliseconds: the first time, and at most.
const FIRST_WAIT: u64 = 20;
const LAST_WAIT: u64 = 1000;

/// Whether connections are accepted.
///
/// ```text
/// Open ──peers hold all they may of the table of descriptors──> Paused ──one of these is closed──> Open
/// Open, Paused ──the system has no descriptor to give──> (the same, full)
///      ──a descriptor of the state is closed, or some time has passed──> (the same)
/// ```
///
/// As many connections are accepted as there is room for. The others stay in the listener's queue until there is more: a
/// change of what is [waited for](Self::interest) makes the epoll set look at the listeners again, so that what has been there
/// all the time is told of without another connection.
pub(super) struct Acceptance {
    gate: Gate,
    /// The system has no descriptor to give.
    is_full: bool,
    /// When accepting is tried again if nothing else happens, in milliseconds: at longer and longer intervals, and only where
    /// the system, or something that peers are not charged for, has filled the table. Where peers have, the broker has
    /// closed the gate, and opens it when one of theirs is closed.
    again: u64,
    wait: u64,
    /// Listeners in the rotation, and their part in it.
    ready: Vec<u32>,
    turn: Turn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    Paused,
}

impl Acceptance {
    pub(super) fn new(may_accept: bool) -> Self {
        Self {
            gate: if may_accept { Gate::Open } else { Gate::Paused },
            is_full: false,
            again: 0,
            wait: FIRST_WAIT,
            ready: Vec::new(),
            turn: Turn::accepting(),
        }
    }

    /// When accepting is to be tried again, in milliseconds, if the system accepts nothing now.
    pub(super) fn again(&self) -> Option<u64> {
        self.is_full.then_some(self.again)
    }

    /// A listener has connections.
    pub(super) fn note_ready(&mut self, listener: u32, rotation: &mut Rotation<Ready>) {
        if !self.ready.contains(&listener) {
            self.ready.push(listener);
            rotation.add(&mut self.turn, Ready::Listener(listener));
        }
    }

    /// Connections were accepted at the listeners' turn, which was so much work.
    pub(super) fn served(&mut self, rotation: &mut Rotation<Ready>, work: u64) {
        rotation.done(Some(&mut self.turn), work);
    }

    /// What to wait for from listeners.
    pub(super) fn interest(&self) -> u32 {
        if self.gate == Gate::Open && !self.is_full {
            libc::EPOLLIN as u32
        } else {
            0
        }
    }
}

impl Worker {
    /// Accepts what waits at a listener, up to a bound; the rest is for its next turn. How much work that was.
    pub(super) fn accept(&mut self, index: u32) -> u64 {
        self.acceptance.ready.retain(|ready| *ready != index);
        let listener = self
            .record
            .listeners
            .get(index as usize)
            .map(|listener| listener.fd);
        let Some(listener) = listener.filter(|_| self.acceptance.interest() != 0) else {
            return 0;
        };
        let mut work = 0;
        while work < ACCEPTS {
            match accept(listener) {
                Ok(socket) => {
                    self.acceptance.wait = FIRST_WAIT;
                    work += self.take_in(socket, index);
                    if self.acceptance.interest() == 0 {
                        // It was the last that there was room for.
                        return work;
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE) => {
                        let text = format_args!("connections wait: the table of open files is full");
                        self.complaints.warn(None, text);
                        self.accept_later();
                        return work;
                    }
                    Some(libc::ECONNABORTED | libc::EINTR) => work += TURN_AWAY,
                    Some(libc::EAGAIN) => return work,
                    _ => {
                        self.complaints.warn(None, format_args!("accept: {error}"));
                        self.accept_later();
                        return work;
                    }
                },
            }
        }
        self.acceptance.note_ready(index, &mut self.rotation);
        work
    }

    /// Takes a connection in, or turns it away. How much work that was: it counts for the user, too, so that of one who
    /// connects all the time nothing is read until others are no longer behind its connections.
    fn take_in(&mut self, number: RawFd, listener: u32) -> u64 {
        let uid = system::credentials(number).uid;
        let work = if self.broker.has_too_many_newcomers(uid) {
            let text = format_args!("a connection was turned away: too many of its user wait to be heard");
            self.complaints.warn(uid, text);
            descriptor::close(number);
            TURN_AWAY
        } else {
            self.welcome(number, listener);
            ACCEPT
        };
        let user = self.user(uid);
        self.rotation.charge(user, work);
        work
    }

    pub(super) fn welcome(&mut self, number: RawFd, listener: u32) {
        if system::has_too_many_groups(number) {
            let uid = system::credentials(number).uid;
            let text = format_args!("a connection was turned away: its process has too many groups");
            self.complaints.warn(uid, text);
            return descriptor::close(number);
        }
        let attested = system::attested(number);
        let Some(handle) = self.journal.assign(number) else {
            let text =
                format_args!("a connection was turned away: there are no more handles for descriptors");
            self.complaints.warn(attested.credentials.uid, text);
            return descriptor::close(number);
        };
        let peer = self.links.next_id();
        let source = Source::Peer(peer.to_u64());
        let user = self.user(attested.credentials.uid);
        let link = Link::new(peer, Some(Socket { handle, number }), user);
        if let Err(error) = self.epoll.add(number, source, link.interest()) {
            let text = format_args!("cannot wait for a new connection: {error}");
            self.complaints.warn(attested.credentials.uid, text);
            self.links.give_back(peer);
            return self.journal.close(handle);
        }
        self.links.insert(link);
        self.journal.note(
            Some(peer),
            &RareEvent::Accepted {
                listener,
                socket: handle,
                attested: attested.clone(),
            },
        );
        self.apply(Event::Accepted {
            peer,
            listener,
            socket: handle,
            attested,
        });
    }

    /// The system accepts nothing now, though connections wait: tried again later, since nothing tells when it would.
    fn accept_later(&mut self) {
        self.acceptance.is_full = true;
        self.acceptance.again = self.now.0 + self.acceptance.wait;
        self.acceptance.wait = (2 * self.acceptance.wait).min(LAST_WAIT);
        self.wait_for_connections();
    }

    /// There may be room in the descriptor table again.
    pub(super) fn accept_again(&mut self) {
        if self.acceptance.is_full {
            self.acceptance.is_full = false;
            self.wait_for_connections();
        }
    }

    /// Tells the broker how large the table of descriptors is.
    pub(super) fn limit_descriptors(&mut self) {
        let most = descriptor::most_open();
        self.set_descriptor_limit(most - (OWN + self.record.listeners.len() as u64).min(most / 4));
    }

    pub(in crate::runtime) fn set_descriptor_limit(&mut self, limit: u64) {
        self.journal.note(None, &RareEvent::DescriptorLimit { limit });
        self.apply(Event::DescriptorLimit { limit });
    }

    pub(super) fn close(&mut self, peer: PeerId) {
        let Some(link) = self.links.remove(peer) else {
            return;
        };
        self.journal.note_gone(peer);
        self.note_gone();
        let Link {
            large,
            socket,
            is_shut,
            turn,
            unread,
            ..
        } = *link;
        if let Some(extent) = large {
            self.journal.give_back(extent);
        }
        if let Some(socket) = socket {
            self.close_socket(peer, turn.user(), socket, is_shut, unread);
        }
    }

    /// Closes the socket of a peer that is being taken out of the broker. The link stays until that is done.
    pub(super) fn hang_up(&mut self, peer: PeerId, handle: bus_wire::Fd) {
        let Some(link) = self.links.get_mut(peer) else {
            return self.close_descriptor(handle);
        };
        let (large, is_shut) = (link.large.take(), link.is_shut);
        let (socket, user) = (link.socket.take(), link.turn.user());
        let unread = std::mem::take(&mut link.unread);
        if let Some(extent) = large {
            self.journal.give_back(extent);
        }
        match socket {
            Some(socket) => self.close_socket(peer, user, socket, is_shut, unread),
            None => self.close_descriptor(handle),
        }
    }

    /// `is_shut`: the kernel said that both directions are. `unread`: what lies in its buffer.
    fn close_socket(
        &mut self,
        peer: PeerId,
        user: UserSlot,
        socket: Socket,
        is_shut: bool,
        mut unread: Unread,
    ) {
        let Socket { handle, number } = socket;
        self.epoll.remove(number);
        if is_shut {
            self.passing.in_flight.forget(user, &mut unread);
        } else {
            self.leave_unread(peer, user, socket, unread);
        }
        if !is_shut {
            // A duplicate of the descriptor elsewhere must not hide the end from the peer.
            let _ = nix::sys::socket::shutdown(number, nix::sys::socket::Shutdown::Both);
        }
        self.close_descriptor(handle);
    }

    /// Answers of the authentication, which say what went wrong, as far as the socket takes them at once.
    pub(super) fn say_last_words(&mut self, peer: PeerId, words: &[u8]) {
        if let Some(socket) = self.links.get_mut(peer).and_then(|link| link.socket)
            && !words.is_empty()
        {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let _ = nix::sys::socket::send(socket.number, words, flags);
        }
    }

    /// Closes a descriptor of the state.
    pub(super) fn close_descriptor(&mut self, handle: bus_wire::Fd) {
        self.close_descriptors(&[handle]);
    }

    /// Closes descriptors of the state.
    pub(super) fn close_descriptors(&mut self, handles: &[bus_wire::Fd]) {
        self.journal.close_all(handles);
        if self.acceptance.is_full {
            self.acceptance.wait = FIRST_WAIT;
            self.accept_again();
        }
    }

    /// The end of a link is for later. The kernel tells of an end whatever is waited for, again and again; so the link is not
    /// waited for at all until that [changes](update_interest).
    pub(super) fn leave_end(&mut self, peer: PeerId) {
        if let Some(socket) = self.links.get_mut(peer).and_then(|link| link.socket) {
            self.epoll.remove(socket.number);
        }
    }

    pub(super) fn set_stopped(&mut self, peer: PeerId, stopped: bool) {
        if let Some(link) = self.links.get_mut(peer)
            && link.stopped != stopped
        {
            link.stopped = stopped;
            update_interest(self.epoll, link);
            self.must_look.set(true);
        }
    }

    pub(super) fn set_accepting(&mut self, accepting: bool) {
        self.acceptance.gate = if accepting { Gate::Open } else { Gate::Paused };
        self.wait_for_connections();
    }

    fn wait_for_connections(&self) {
        self.must_look.set(true);
        let events = self.acceptance.interest();
        for (index, listener) in (0..).zip(&self.record.listeners) {
            if let Err(error) = self.epoll.modify(listener.fd, Source::Listener(index), events) {
                tracing::warn!("epoll: {error}");
            }
        }
    }
}

/// Waits for what a link is to be waited for now. One whose end is [left for later](Worker::leave_end) is in no set.
pub(super) fn update_interest(epoll: EpollSet, link: &Link) {
    let Some(socket) = link.socket else { return };
    let (source, events) = (Source::Peer(link.peer.to_u64()), link.interest());
    let updated = match epoll.modify(socket.number, source, events) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => epoll.add(socket.number, source, events),
        result => result,
    };
    if let Err(error) = updated {
        tracing::error!("epoll: {error}");
    }
}

#[expect(unsafe_code, reason = "accept4 on a descriptor by number")]
fn accept(listener: RawFd) -> std::io::Result<RawFd> {
    // SAFETY: makes a new descriptor, or fails. It is kept over exec.
    let socket = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_NONBLOCK,
        )
    };
    if socket >= 0 {
        Ok(socket)
    } else {
        Err(Error::last_os_error())
    }
}
