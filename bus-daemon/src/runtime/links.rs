//! The links: one socket each, by its descriptor number, which is also the index of its peer.

use std::os::fd::RawFd;

use crate::broker::PeerId;
use crate::journal::Extent;

/// A link's large message under way.
pub(crate) struct Incoming {
    pub(crate) extent: Extent,
    pub(crate) filled: usize,
    pub(crate) total: usize,
}

/// One connected socket.
pub(crate) struct Link {
    pub(crate) peer: PeerId,
    /// The socket is full: wait until it is writable.
    pub(crate) blocked: bool,
    /// The broker wants no more from it for now.
    pub(crate) stopped: bool,
    /// A write failed for good: what is queued has nowhere to go. The read side tells of the end.
    pub(crate) broken: bool,
    pub(crate) large: Option<Incoming>,
}

impl Link {
    pub(crate) fn new(peer: PeerId) -> Self {
        Self {
            peer,
            blocked: false,
            stopped: false,
            broken: false,
            large: None,
        }
    }

    /// The socket.
    pub(crate) fn socket(&self) -> RawFd {
        socket_of(self.peer)
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> u32 {
        let mut events = 0;
        if !self.stopped {
            events |= libc::EPOLLIN as u32;
        }
        if self.blocked {
            events |= libc::EPOLLOUT as u32;
        }
        events
    }
}

/// The socket of a peer's link.
pub(crate) fn socket_of(peer: PeerId) -> RawFd {
    peer.index.cast_signed()
}

/// All links.
#[derive(Default)]
pub(crate) struct Links {
    slots: Vec<Option<Box<Link>>>,
}

impl Links {
    pub(crate) fn insert(&mut self, link: Link) {
        let index = link.peer.index as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(Box::new(link));
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
        slot.take()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.slots.iter().filter_map(Option::as_deref)
    }
}
