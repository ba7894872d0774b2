//! The links: what connects a peer of the broker with a socket, or with none for now.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::RawFd;

use bus_wire::Fd;

use super::in_flight::Unread;
use super::rotation::{Turn, UserSlot};
use crate::broker::PeerId;
use crate::journal::Extent;

/// An open socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Socket {
    /// As the broker's state and the log name it.
    pub(crate) handle: Fd,
    /// In the table of descriptors.
    pub(crate) number: RawFd,
}

/// How far writing to a link has come.
///
/// ```text
/// Open ──the socket is full──> Blocked ──it is writable──> Open
/// Open ──no room for descriptors in flight──> Waiting ──some time, or something is read from it──> Open
/// any  ──an error for good──> Broken
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writing {
    /// The socket takes bytes, as far as is known.
    Open,
    /// The socket is full: wait until it is writable.
    Blocked,
    /// There is no room for more descriptors in flight, in its share or in the kernel: try again before long.
    Waiting,
    /// A write failed for good: what is queued has nowhere to go. The read side tells of the end.
    Broken,
}

/// Among the flags of [`Link::ready`]: a step of the peer's agenda is wanted. None of epoll's.
pub(crate) const STEP: u32 = 1 << 27;

/// One peer's link.
pub(crate) struct Link {
    pub(crate) peer: PeerId,
    /// `None`: the peer is parked, and what is for it waits.
    pub(crate) socket: Option<Socket>,
    /// Its part in the turns of its user, in which it is read.
    pub(crate) turn: Turn,
    /// And in those in which it is written to.
    pub(crate) sending: Turn,
    /// Bytes of its stream that were read.
    pub(crate) taken: u64,
    pub(crate) writing: Writing,
    /// The broker wants no more from it for now.
    pub(crate) stopped: bool,
    /// What the kernel said is ready and was not served yet: epoll's flags, and [`STEP`]. 0: it is not in the rotation.
    pub(crate) ready: u32,
    /// The kernel said that both directions of the socket are shut (EPOLLHUP): the peer has closed its end.
    pub(crate) is_shut: bool,
    /// It is to be written to.
    pub(crate) is_unsent: bool,
    /// Where a large message under way goes.
    pub(crate) large: Option<Extent>,
    pub(crate) behind_fds: BehindFds,
    /// Descriptors in its buffer that it was passed and has not taken.
    pub(crate) unread: Unread,
}

/// Whether a link is read again at once where a read has ended for its descriptors: that saves a turn where more is there,
/// and costs a system call where it is not. Which of the two it is, the last times tell.
#[derive(Debug, Default)]
pub(crate) struct BehindFds {
    /// How many of the last such reads in a row found nothing.
    fruitless: u8,
    /// Such reads that were left out.
    left_out: u8,
    /// The next read is one.
    is_next: bool,
}

impl BehindFds {
    /// A read has ended for its descriptors: whether to read again.
    pub(crate) fn goes_on(&mut self) -> bool {
        self.is_next = self.fruitless < 2 || {
            self.left_out = self.left_out.wrapping_add(1);
            self.left_out.is_multiple_of(16)
        };
        self.is_next
    }

    /// What a read found: something, or nothing.
    #[inline]
    pub(crate) fn note(&mut self, found: bool) {
        if std::mem::take(&mut self.is_next) {
            self.fruitless = if found {
                0
            } else {
                self.fruitless.saturating_add(1)
            };
        }
    }
}

impl Link {
    pub(crate) fn new(peer: PeerId, socket: Option<Socket>, user: UserSlot) -> Self {
        Self {
            peer,
            socket,
            turn: Turn::of(user),
            sending: Turn::of(user),
            taken: 0,
            writing: Writing::Open,
            stopped: false,
            ready: 0,
            is_shut: false,
            is_unsent: false,
            large: None,
            behind_fds: BehindFds::default(),
            unread: Unread::default(),
        }
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> u32 {
        let mut events = 0;
        if !self.stopped {
            // Without the second, an end that comes together with the last bytes would not be told of.
            events |= (libc::EPOLLIN | libc::EPOLLRDHUP) as u32;
        }
        if self.writing == Writing::Blocked {
            events |= libc::EPOLLOUT as u32;
        }
        events
    }
}

/// All links, by the index of their peers. The smallest free index is used next.
#[derive(Default)]
pub(crate) struct Links {
    slots: Vec<Option<Box<Link>>>,
    free: BinaryHeap<Reverse<u32>>,
    /// The generation of the newest peer.
    generation: u32,
}

impl Links {
    /// None yet. `generation` is that of the newest peer there ever was.
    pub(crate) fn after(generation: u32) -> Self {
        Self {
            generation,
            ..Self::default()
        }
    }

    /// The generation of the newest peer.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// An id that nobody has had.
    pub(crate) fn next_id(&mut self) -> PeerId {
        // Generations begin at 1, so that no id is that of a listener in the epoll set.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let index = self
            .free
            .pop()
            .map_or(self.slots.len() as u32, |Reverse(index)| index);
        PeerId {
            index,
            generation: self.generation,
        }
    }

    /// An id of [`next_id`](Self::next_id) that is not used after all.
    pub(crate) fn give_back(&mut self, id: PeerId) {
        if (id.index as usize) < self.slots.len() {
            self.free.push(Reverse(id.index));
        }
    }

    /// Adds a link at its peer's index: one of [`next_id`](Self::next_id), or one that another process chose.
    pub(crate) fn insert(&mut self, link: Link) {
        let index = link.peer.index as usize;
        if index >= self.slots.len() {
            let first = self.slots.len() as u32;
            self.slots.resize_with(index + 1, || None);
            self.free.extend((first..index as u32).map(Reverse));
        }
        self.slots[index] = Some(Box::new(link));
    }

    /// Which indexes are free, after links of another process were added in any order.
    pub(crate) fn settle(&mut self) {
        let free = (0..).zip(&self.slots).filter(|(_, slot)| slot.is_none());
        self.free = free.map(|(index, _)| Reverse(index)).collect();
    }

    pub(crate) fn get_mut(&mut self, peer: PeerId) -> Option<&mut Link> {
        self.slots
            .get_mut(peer.index as usize)?
            .as_deref_mut()
            .filter(|link| link.peer == peer)
    }

    pub(crate) fn remove(&mut self, peer: PeerId) -> Option<Box<Link>> {
        let slot = self.slots.get_mut(peer.index as usize)?;
        if slot.as_ref()?.peer != peer {
            return None;
        }
        self.free.push(Reverse(peer.index));
        slot.take()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.slots.iter().filter_map(Option::as_deref)
    }
}

#[cfg(test)]
mod tests {
    use super::super::rotation::Rotation;
    use super::*;

    #[test]
    fn reads_behind_descriptors_go_on_while_they_find_something() {
        let mut behind = BehindFds::default();
        for _ in 0..50 {
            assert!(behind.goes_on());
            behind.note(true);
        }
        let mut tried = 0;
        for _ in 0..2 + 10 * 16 {
            tried += u32::from(behind.goes_on());
            behind.note(false);
            // A read that has nothing to do with it.
            behind.note(true);
        }
        assert_eq!(tried, 2 + 10);
        while !behind.goes_on() {
            behind.note(true);
        }
        behind.note(true);
        assert!(behind.goes_on());
    }

    #[test]
    fn the_smallest_index_is_used_again_by_another_generation() {
        let mut links = Links::after(7);
        let user = Rotation::<()>::default().user(None);
        let ids: Vec<PeerId> = (0..4)
            .map(|_| {
                let id = links.next_id();
                links.insert(Link::new(id, None, user));
                id
            })
            .collect();
        assert_eq!(ids.iter().map(|id| id.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert!(links.remove(ids[2]).is_some() && links.remove(ids[1]).is_some());
        assert!(links.remove(ids[1]).is_none());
        let again = links.next_id();
        assert_eq!((again.index, again.generation), (1, 12));
        links.insert(Link::new(again, None, user));
        assert!(links.get_mut(ids[1]).is_none() && links.get_mut(again).is_some());
    }

    #[test]
    fn indexes_between_those_of_another_process_are_used() {
        let mut links = Links::after(9);
        let user = Rotation::<()>::default().user(None);
        for index in [5, 2] {
            let peer = PeerId { index, generation: 3 };
            links.insert(Link::new(peer, None, user));
        }
        links.settle();
        let mut next = || {
            let id = links.next_id();
            links.insert(Link::new(id, None, user));
            id.index
        };
        assert_eq!([next(), next(), next(), next(), next()], [0, 1, 3, 4, 6]);
    }
}
