//! Bytes in and out of a link.

use std::io::ErrorKind;

use super::Worker;
use crate::broker::{Event, PeerId};
use crate::journal::{RareEvent, Read};
use crate::runtime::LOST_FDS;
use crate::runtime::links::Writing;

/// Events that tell of an end, so that a read must go on until it meets it.
const END: u32 = (libc::EPOLLHUP | libc::EPOLLERR | libc::EPOLLRDHUP) as u32;
/// Events that are told of even where nothing is to be read.
const HUNG_UP: u32 = (libc::EPOLLHUP | libc::EPOLLERR) as u32;

/// For so many milliseconds the message of a peer that has hung up may still wait for its time, and its end with it; where it
/// would be longer, the peer is gone, and its message with it. So a program that says something and leaves is heard, and
/// those of a process that is gone keep no names and no room for long.
const END_WAITS: u64 = 1000;

/// Bytes sent in one turn, a write counted as 16 KiB: at most 256 peers.
const SENDS: u64 = 4 << 20;
/// The same where users alternate.
const SHORT_SENDS: u64 = 512 << 10;
/// Bytes sent to one peer before others come: a reader on another processor may take all that is written to it.
const SEND: u64 = 1 << 20;
/// What a write costs besides its bytes.
const WRITE: u64 = 16 << 10;

impl Worker {
    /// Reads once; true if there may be more. `events` is why.
    pub(super) fn read(&mut self, peer: PeerId, events: u32) -> bool {
        let Some(link) = self.links.get_mut(peer) else {
            return false;
        };
        let hung_up = events & HUNG_UP != 0;
        // The end of one whose message waits for its time is for later, too: it would overtake the message.
        if link.stopped
            && hung_up
            && let Some(until) = self.broker.paced_until(peer)
        {
            if until.0 <= self.now.0 + END_WAITS {
                self.leave_end(peer);
            } else {
                self.closed(peer, "end of file, while its message was to wait for long");
            }
            return false;
        }
        let Some(socket) = link.socket.filter(|_| !link.stopped || hung_up) else {
            return false;
        };
        let under_way = self.broker.large_message(peer).map(|(large, _)| large);
        if under_way.is_some() && self.broker.catch_up(peer) {
            return true;
        }
        let result = match (&mut link.large, under_way) {
            (Some(extent), Some(large)) => {
                self.journal
                    .receive_large(socket.number, peer, link.taken, extent, large)
            }
            _ => self.journal.receive(socket.number, peer, link.taken),
        };
        link.behind_fds
            .note(matches!(result, Ok(Read::Data { .. } | Read::End)));
        match result {
            Ok(Read::Data {
                bytes,
                fds,
                len,
                full,
                lost_fds,
            }) => {
                link.taken += len as u64;
                // The kernel ends a read behind descriptors, whatever follows.
                let goes_on = !fds.is_empty() && link.behind_fds.goes_on();
                if !fds.is_empty() && !goes_on {
                    self.must_look.set(true);
                }
                let event = match under_way.filter(|_| link.large.is_some()) {
                    None => Event::Received {
                        peer,
                        upto: link.taken,
                        data: bytes,
                        fds,
                    },
                    Some(large) => {
                        if large.have + len == large.total
                            && let Some(done) = link.large.take()
                        {
                            self.journal.give_back(done);
                        }
                        Event::ReceivedLarge {
                            peer,
                            upto: link.taken,
                            prefix: bytes,
                            fds,
                        }
                    }
                };
                self.apply(event);
                if lost_fds {
                    self.closed(peer, LOST_FDS);
                    return false;
                }
                self.continue_large(peer);
                full || goes_on || events & END != 0
            }
            Ok(Read::End) => {
                self.closed(peer, "end of file");
                false
            }
            Ok(Read::Empty) => {
                if hung_up
                    && self
                        .links
                        .get_mut(peer)
                        .is_some_and(|link| link.writing == Writing::Broken)
                {
                    self.closed(peer, "connection broken");
                }
                false
            }
            Err(error) => {
                tracing::debug!("read from peer {}: {error}", peer.index);
                self.closed(peer, "error of the socket");
                false
            }
        }
    }

    /// A link is gone.
    pub(super) fn closed(&mut self, peer: PeerId, reason: &'static str) {
        self.journal.note(
            Some(peer),
            &RareEvent::Closed {
                reason: reason.into(),
            },
        );
        self.apply(Event::Closed { peer, reason });
    }

    /// Gives a large message that has begun an extent of its own.
    pub(super) fn continue_large(&mut self, peer: PeerId) {
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
                link.large = Some(extent);
                self.note_large(large.total);
            }
            Err(error) => {
                let (uid, total) = (self.broker.uid(peer), large.total);
                let text = format_args!("no extent for a message of {total} bytes: {error}");
                self.complaints.warn(uid, text);
                // Without one the framer puts the message together from the log, and each checkpoint has it whole. One
                // such message is all that there is room for where address space is short.
                if self.journal.has_lent_extents() {
                    self.closed(peer, "there is no address space for its message");
                }
            }
        }
    }

    /// Writes to all peers that got something, as far as their sockets take it.
    pub(super) fn flush(&mut self) {
        while self.send_some() {}
    }

    /// Writes to some of them: a message for thousands does not hold up the turn. True: there are more.
    pub(super) fn send_some(&mut self) -> bool {
        self.collect_unsent();
        if self.journal.is_incomplete() {
            // What is sent now may come of what a replay does not know. The turn after the next checkpoint sends it.
            return false;
        }
        let most = if self.unsent.begin_turn() {
            SHORT_SENDS
        } else {
            SENDS
        };
        let mut sent = 0;
        while sent < most {
            let Some(peer) = self.unsent.next() else {
                return false;
            };
            sent += self.send(peer);
        }
        // What was sent may have brought about more.
        self.collect_unsent();
        !self.unsent.is_empty()
    }

    /// Writes to a peer whose turn it is. Bytes, a write counted as so many.
    fn send(&mut self, peer: PeerId) -> u64 {
        let Some(link) = self.links.get_mut(peer) else {
            self.unsent.done(None, 0);
            return 0;
        };
        link.is_unsent = false;
        // A socket that is full tells when it has room again; to try would cost a read of what is stored.
        let sent = if link.writing == Writing::Blocked {
            0
        } else {
            WRITE + self.write(peer)
        };
        let turn = self.links.get_mut(peer).map(|link| &mut link.sending);
        self.unsent.done(turn, sent);
        sent
    }

    /// Puts the peers that got something behind those that still wait to be written to, each once.
    fn collect_unsent(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.clear();
        self.broker.take_dirty(&mut dirty);
        for &peer in &dirty {
            self.send_later(peer);
        }
        self.dirty = dirty;
    }

    /// The peer is written to when it is its turn again.
    fn send_later(&mut self, peer: PeerId) {
        if let Some(link) = self.links.get_mut(peer)
            && !link.is_unsent
        {
            link.is_unsent = true;
            self.unsent.add(&mut link.sending, peer);
        }
    }

    /// Writes what waits for a peer, as far as the socket takes it. How many bytes that were.
    pub(super) fn write(&mut self, peer: PeerId) -> u64 {
        let Some(link) = self.links.get_mut(peer) else {
            return 0;
        };
        let Some(socket) = link.socket else { return 0 };
        if matches!(link.writing, Writing::Broken | Writing::Waiting) {
            return 0;
        }
        if self.journal.is_incomplete() {
            self.send_later(peer);
            return 0;
        }
        let mut bytes = 0;
        let mut writing = Writing::Open;
        while let Some(queue) = self.broker.send_queue(peer).filter(|queue| !queue.is_empty()) {
            if bytes >= SEND {
                self.send_later(peer);
                break;
            }
            let (sent, passed) = (queue.sent(), queue.next_fd_count() as u64);
            if passed > 0 && !self.may_pass(peer, passed) {
                writing = Writing::Waiting;
                break;
            }
            let Some(queue) = self.broker.send_queue(peer) else {
                break;
            };
            match self.journal.send(socket.number, peer, queue) {
                Ok(written) => {
                    if written.upto > sent {
                        if passed > 0 {
                            self.note_passed(peer, sent, passed);
                        }
                        let upto = written.upto;
                        bytes += upto - sent;
                        self.apply(Event::Sent { peer, upto });
                    }
                    if written.blocked {
                        writing = Writing::Blocked;
                        break;
                    }
                }
                Err(error)
                    if error.raw_os_error() == Some(libc::ETOOMANYREFS)
                        || error.kind() == ErrorKind::ResourceBusy =>
                {
                    // Too many descriptors of this user are in flight: theirs to take, and only this peer waits. Or what
                    // waits for the peer cannot be read now.
                    writing = Writing::Waiting;
                    break;
                }
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    tracing::error!("peer {}: {error}", peer.index);
                    self.closed(peer, "what waited for it is damaged");
                    return bytes;
                }
                Err(error) => {
                    // Unread input may still be there: the read side tells of the end.
                    tracing::debug!("write to peer {}: {error}", peer.index);
                    writing = Writing::Broken;
                    break;
                }
            }
        }
        self.set_writing(peer, writing);
        if writing == Writing::Waiting {
            self.wait_for_room(peer);
        }
        self.note_sent(bytes);
        bytes
    }

    fn set_writing(&mut self, peer: PeerId, writing: Writing) {
        if let Some(link) = self.links.get_mut(peer)
            && link.writing != writing
        {
            let before = link.interest();
            link.writing = writing;
            if link.interest() != before {
                super::connections::update_interest(self.epoll, link);
                self.must_look.set(true);
            }
        }
    }
}
