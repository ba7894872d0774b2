//! The epoll set of the daemon. It is level-triggered and outlives worker and exec, so that what a killed worker had
//! taken from it is told again to the next.

#![allow(unsafe_code, reason = "epoll by descriptor number")]

use std::io::{Error, Result};
use std::mem::MaybeUninit;
use std::os::fd::RawFd;

/// Events taken at once.
const BATCH: usize = 256;

/// What a registration is about, as one number in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The control socket.
    Control,
    /// A listening socket, by its index.
    Listener(u32),
    /// A link, as [`PeerId::to_u64`](crate::broker::PeerId::to_u64); generations begin at 1.
    Peer(u64),
}

impl Source {
    fn to_u64(self) -> u64 {
        match self {
            Self::Control => 0,
            Self::Listener(index) => 1 + u64::from(index),
            Self::Peer(id) => id,
        }
    }

    fn from_u64(number: u64) -> Self {
        match u32::try_from(number) {
            Ok(0) => Self::Control,
            Ok(low) => Self::Listener(low - 1),
            Err(_) => Self::Peer(number),
        }
    }
}

/// The set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EpollSet(pub(crate) RawFd);

impl std::os::fd::AsRawFd for EpollSet {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl EpollSet {
    /// Registers a descriptor; one that is registered already gets the new interest.
    pub(crate) fn add(&self, fd: RawFd, source: Source, events: u32) -> Result<()> {
        match self.control(libc::EPOLL_CTL_ADD, fd, source, events) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => self.modify(fd, source, events),
            result => result,
        }
    }

    /// Changes the interest in a registered descriptor.
    pub(crate) fn modify(&self, fd: RawFd, source: Source, events: u32) -> Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, source, events)
    }

    /// Ends a registration. Needed before close: a duplicate elsewhere would keep it alive.
    pub(crate) fn remove(&self, fd: RawFd) {
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, Source::Control, 0);
    }

    fn control(&self, operation: i32, fd: RawFd, source: Source, events: u32) -> Result<()> {
        let mut event = libc::epoll_event {
            events,
            u64: source.to_u64(),
        };
        // SAFETY: the event lives through the call.
        let result = unsafe { libc::epoll_ctl(self.0, operation, fd, &raw mut event) };
        if result == 0 {
            Ok(())
        } else {
            Err(Error::last_os_error())
        }
    }

    /// Waits until something is ready, for at most so many milliseconds (-1: without end), and takes it; false when there
    /// may be more.
    pub(crate) fn take_ready(&self, ready: &mut Vec<(Source, u32)>, timeout: i32) -> Result<bool> {
        let mut events = [MaybeUninit::<libc::epoll_event>::uninit(); BATCH];
        // SAFETY: room for BATCH events.
        let count = unsafe { libc::epoll_wait(self.0, events.as_mut_ptr().cast(), BATCH as i32, timeout) };
        if count < 0 {
            let error = Error::last_os_error();
            return if error.raw_os_error() == Some(libc::EINTR) {
                Ok(false)
            } else {
                Err(error)
            };
        }
        let count = count.unsigned_abs() as usize;
        ready.extend(events[..count].iter().map(|event| {
            // SAFETY: the kernel has written so many.
            let event = unsafe { event.assume_init() };
            (Source::from_u64(event.u64), event.events)
        }));
        Ok(count < BATCH)
    }
}
