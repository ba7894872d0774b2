//! Connections as they come and go.

use std::io::Error;
use std::os::fd::RawFd;

use super::{Worker, update_interest};
use crate::broker::{Event, PeerId};
use crate::journal::RareEvent;
use crate::runtime::links::{Link, socket_of};
use crate::runtime::poll::Source;
use crate::runtime::system;

/// Connections accepted from one listener in one turn.
const ACCEPTS: usize = 32;

impl Worker {
    pub(super) fn accept(&mut self, index: u32) -> bool {
        let Some(listener) = self
            .record
            .listeners
            .get(index as usize)
            .map(|listener| listener.fd)
        else {
            return false;
        };
        for _ in 0..ACCEPTS {
            match accept(listener) {
                Ok(socket) => self.welcome(socket, index),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE) => {
                        self.shed(listener);
                        return false;
                    }
                    Some(libc::ECONNABORTED | libc::EINTR) => {}
                    Some(libc::EAGAIN) => return false,
                    _ => {
                        self.complaints.warn(None, format_args!("accept: {error}"));
                        return false;
                    }
                },
            }
        }
        true
    }

    pub(super) fn welcome(&mut self, socket: RawFd, listener: u32) {
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let peer = PeerId {
            index: socket.cast_unsigned(),
            generation: self.generation,
        };
        let credentials = system::credentials(socket);
        if let Err(error) = self
            .epoll
            .add(socket, Source::Peer(peer.to_u64()), libc::EPOLLIN as u32)
        {
            let text = format_args!("cannot wait for a new connection: {error}");
            self.complaints.warn(credentials.uid, text);
            let _ = nix::unistd::close(socket);
            return;
        }
        self.links.insert(Link::new(peer));
        self.journal.note(
            Some(peer),
            &RareEvent::Accepted {
                listener,
                credentials,
                can_pass_fds: true,
            },
        );
        self.journal.set_cookie(peer, system::cookie(socket));
        self.apply(Event::Accepted {
            peer,
            listener,
            credentials,
            can_pass_fds: true,
        });
    }

    /// The descriptor table is full: turns one connection away, so that its client knows and the listener is not
    /// ready for ever.
    fn shed(&mut self, listener: RawFd) {
        drop(self.reserve.take());
        if let Ok(socket) = accept(listener) {
            let uid = system::credentials(socket).uid;
            let _ = nix::unistd::close(socket);
            let text = format_args!("a connection was turned away: the table of open files is full");
            self.complaints.warn(uid, text);
        }
        self.reserve = std::fs::File::open("/dev/null").ok();
    }

    pub(super) fn close(&mut self, peer: PeerId) {
        let Some(link) = self.links.remove(peer) else {
            return;
        };
        if let Some(incoming) = link.large {
            self.journal.give_back(incoming.extent);
        }
        let socket = socket_of(peer);
        self.epoll.remove(socket);
        // A duplicate of the descriptor elsewhere must not hide the end from the peer.
        let _ = nix::sys::socket::shutdown(socket, nix::sys::socket::Shutdown::Both);
        let _ = nix::unistd::close(socket);
    }

    pub(super) fn set_stopped(&mut self, peer: PeerId, stopped: bool) {
        if let Some(link) = self.links.get_mut(peer)
            && link.stopped != stopped
        {
            link.stopped = stopped;
            update_interest(self.epoll, link);
        }
    }

    pub(super) fn set_accepting(&self, accepting: bool) {
        let events = if accepting { libc::EPOLLIN as u32 } else { 0 };
        for (index, listener) in (0..).zip(&self.record.listeners) {
            if let Err(error) = self.epoll.modify(listener.fd, Source::Listener(index), events) {
                tracing::warn!("epoll: {error}");
            }
        }
    }
}

#[expect(unsafe_code, reason = "accept4 on a descriptor by number")]
fn accept(listener: RawFd) -> std::io::Result<RawFd> {
    // SAFETY: makes a new descriptor, or fails. It is kept over exec.
    let socket = unsafe {
        libc::accept4(
            listener,
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
