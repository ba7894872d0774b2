//! Descriptors that are passed on: only as many are given to the kernel as [their readers](crate::runtime::in_flight) may leave
//! there, and what has to wait is tried again.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::RawFd;

use super::Worker;
use crate::broker::PeerId;
use crate::os::descriptor;
use crate::runtime::in_flight::{InFlight, Unread};
use crate::runtime::links::{Socket, Writing};
use crate::runtime::poll::Source;
use crate::runtime::rotation::UserSlot;

/// How long to wait before what had no room is tried again, in milliseconds: at first, and at most, if nothing gets on.
const RETRY: u64 = 20;
const LAST_RETRY: u64 = 320;
/// Links that are asked what they have taken where there is no room, and in passing; and all that are asked for want of room
/// until the broker's time goes on, however many want some.
const ASKED: usize = 64;
const ASKED_IN_PASSING: usize = 2;
const MOST_ASKED: usize = 1024;
/// Sockets that are kept though the peer is gone, because it has left descriptors in them.
const MOST_LEFT: usize = 64;

/// What is known of descriptors in flight.
pub(super) struct Passing {
    pub(super) in_flight: InFlight,
    /// Links that have not taken all, the one that was asked longest ago first.
    holders: VecDeque<PeerId>,
    /// How many were asked for want of room, and the time then, in milliseconds.
    asked: (u64, usize),
    /// Peers whose write is to be tried again: those whose [`Writing`] is `Waiting`.
    waiting: BTreeSet<PeerId>,
    /// When, in milliseconds, and how long was waited for that.
    retry: (u64, u64),
    left: Vec<Left>,
}

/// The socket of a peer that was disconnected with descriptors in it that nobody has taken. As long as the peer keeps its end
/// they are in flight, and count for its user.
struct Left {
    peer: PeerId,
    user: UserSlot,
    number: RawFd,
    unread: Unread,
}

impl Passing {
    pub(super) fn new() -> Self {
        let own_uid = nix::unistd::getuid().as_raw();
        Self {
            in_flight: InFlight::new(descriptor::most_open(), own_uid),
            holders: VecDeque::new(),
            asked: (0, 0),
            waiting: BTreeSet::new(),
            retry: (0, RETRY),
            left: Vec::new(),
        }
    }

    /// When writes are to be tried again, in milliseconds.
    pub(super) fn retry(&self) -> Option<u64> {
        (!self.waiting.is_empty()).then_some(self.retry.0)
    }

    /// Where the oldest socket of the user is that has left most: nobody's leaving costs others what is known of theirs.
    fn left_too_long(&self) -> usize {
        let users: Vec<UserSlot> = self.left.iter().map(|left| left.user).collect();
        oldest_of_most(&users)
    }
}

/// The first place of the one that occurs most often.
fn oldest_of_most<T: PartialEq>(all: &[T]) -> usize {
    let count = |one: &T| all.iter().filter(|other| *other == one).count();
    let most = all.iter().max_by_key(|one| count(one));
    most.and_then(|most| all.iter().position(|one| one == most))
        .unwrap_or(0)
}

impl Worker {
    /// Whether a peer may be passed so many descriptors now.
    pub(super) fn may_pass(&mut self, peer: PeerId, count: u64) -> bool {
        if self.has_room_for(peer, count) {
            return true;
        }
        self.ask_what_is_unread(peer);
        if self.has_room_for(peer, count) {
            return true;
        }
        let (at, asked) = self.passing.asked;
        let asked = if at == self.now.0 { asked } else { 0 };
        if asked >= MOST_ASKED {
            return false;
        }
        self.passing.asked = (self.now.0, asked + ASKED);
        self.ask_holders(ASKED);
        self.ask_those_left();
        self.has_room_for(peer, count)
    }

    fn has_room_for(&mut self, peer: PeerId, count: u64) -> bool {
        let link = self.links.get_mut(peer);
        link.is_none_or(|link| {
            self.passing
                .in_flight
                .has_room(link.turn.user(), &link.unread, count)
        })
    }

    /// A peer was passed so many descriptors, with the byte at this offset of its output.
    pub(super) fn note_passed(&mut self, peer: PeerId, at: u64, count: u64) {
        let Some(link) = self.links.get_mut(peer) else {
            return;
        };
        let user = link.turn.user();
        let is_worth_asking = self.passing.in_flight.passed(user, &mut link.unread, at, count);
        if !link.unread.is_listed {
            link.unread.is_listed = true;
            self.passing.holders.push_back(peer);
        }
        if link.unread.is_many() {
            self.ask_what_is_unread(peer);
        }
        if is_worth_asking {
            self.ask_holders(ASKED_IN_PASSING);
        }
    }

    /// Asks the kernel how far a peer has read.
    fn ask_what_is_unread(&mut self, peer: PeerId) {
        let Some(queue) = self.broker.send_queue(peer) else {
            return;
        };
        let sent = queue.sent();
        if let Some(link) = self.links.get_mut(peer)
            && let Some(socket) = link.socket
        {
            let upto = sent.saturating_sub(descriptor::unread_output(socket.number));
            self.passing
                .in_flight
                .read(link.turn.user(), &mut link.unread, upto);
        }
    }

    /// Asks some of those that have not taken everything.
    fn ask_holders(&mut self, most: usize) {
        for _ in 0..most.min(self.passing.holders.len()) {
            let Some(peer) = self.passing.holders.pop_front() else {
                return;
            };
            self.ask_what_is_unread(peer);
            if let Some(link) = self.links.get_mut(peer) {
                link.unread.is_listed = link.unread.descriptors() > 0;
                if link.unread.is_listed {
                    self.passing.holders.push_back(peer);
                }
            }
        }
    }

    /// There is no room for the descriptors of a peer's next message: tried again before long.
    pub(super) fn wait_for_room(&mut self, peer: PeerId) {
        if self.passing.waiting.insert(peer) {
            let soon = self.now.0 + RETRY;
            let at = self.passing.retry().map_or(soon, |at| at.min(soon));
            self.passing.retry = (at.max(self.now.0), RETRY);
        }
    }

    /// Tries the writes of those that wait for room again, if it is time.
    pub(super) fn retry_writes(&mut self) {
        let (at, wait) = self.passing.retry;
        if self.passing.waiting.is_empty() || self.now.0 < at {
            return;
        }
        let mut gets_on = false;
        for peer in std::mem::take(&mut self.passing.waiting) {
            gets_on |= self.retry_write(peer);
        }
        let wait = if gets_on {
            RETRY
        } else {
            (2 * wait).min(LAST_RETRY)
        };
        self.passing.retry = (self.now.0 + wait, wait);
    }

    /// Whether a peer that waited for room, if it does, has got something.
    pub(super) fn retry_write(&mut self, peer: PeerId) -> bool {
        match self.links.get_mut(peer) {
            Some(link) if link.writing == Writing::Waiting => {
                link.writing = Writing::Open;
                self.write(peer) > 0
            }
            Some(_) | None => false,
        }
    }

    /// A link is gone, and its socket is about to be closed. Where descriptors lie in it that its peer may keep there, a
    /// duplicate is kept.
    pub(super) fn leave_unread(&mut self, peer: PeerId, user: UserSlot, socket: Socket, mut unread: Unread) {
        if unread.descriptors() == 0 || descriptor::unread_output(socket.number) == 0 {
            return self.passing.in_flight.forget(user, &mut unread);
        }
        self.ask_those_left();
        if self.passing.left.len() >= MOST_LEFT {
            let one = self.passing.left.remove(self.passing.left_too_long());
            self.close_left(one);
        }
        let Some(number) = descriptor::duplicate(socket.number) else {
            return self.passing.in_flight.forget(user, &mut unread);
        };
        // The kernel tells of it whenever something is read there, and when the peer is gone.
        let events = (libc::EPOLLOUT | libc::EPOLLET) as u32;
        if let Err(error) = self.epoll.add(number, Source::Peer(peer.to_u64()), events) {
            tracing::warn!("epoll: {error}");
        }
        self.passing.left.push(Left {
            peer,
            user,
            number,
            unread,
        });
    }

    #[cfg(test)]
    pub(in crate::runtime) fn in_flight(&mut self) -> &mut InFlight {
        &mut self.passing.in_flight
    }

    #[cfg(test)]
    pub(in crate::runtime) fn retries_at(&self) -> Option<u64> {
        self.passing.retry()
    }

    #[cfg(test)]
    pub(in crate::runtime) fn ask_all_what_is_unread(&mut self) {
        self.ask_holders(usize::MAX);
    }

    /// Something has happened at a socket whose peer is gone.
    pub(super) fn note_left(&mut self, peer: PeerId) {
        if self.passing.left.iter().any(|left| left.peer == peer) {
            self.ask_those_left();
        }
    }

    /// Closes sockets of peers that are gone as soon as everything in them was read, or cannot be any more.
    fn ask_those_left(&mut self) {
        let is_read = |left: &mut Left| descriptor::unread_output(left.number) == 0;
        let read: Vec<Left> = self.passing.left.extract_if(.., is_read).collect();
        for left in read {
            self.close_left(left);
        }
    }

    fn close_left(&mut self, mut left: Left) {
        self.passing.in_flight.forget(left.user, &mut left.unread);
        self.epoll.remove(left.number);
        descriptor::close(left.number);
    }
}

#[cfg(test)]
mod tests {
    use super::oldest_of_most;

    #[test]
    fn what_one_user_leaves_is_forgotten_before_what_others_left() {
        assert_eq!(oldest_of_most(&[7, 8, 8, 9, 8]), 1);
        assert_eq!(oldest_of_most(&[7, 7]), 0);
        assert_eq!(oldest_of_most(&["a", "b", "b", "a", "a"]), 0);
        assert_eq!(oldest_of_most::<u32>(&[]), 0);
    }
}
