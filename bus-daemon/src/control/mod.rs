//! What keeper and worker say to each other, over a pair of SEQPACKET sockets that outlives the worker.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use serde::{Deserialize, Serialize};

use crate::handoff::codec;
pub(crate) use crate::handoff::keeper::Control;

/// From the keeper to the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// Load the configuration again (SIGHUP).
    Reload,
    /// Upgrade to the binary now at the path this one was started from (SIGUSR2).
    Upgrade,
    /// The preflight has ended: `Err` says why the new binary was refused.
    Preflight(std::result::Result<(), String>),
}

/// From the worker to the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToKeeper {
    /// Try whether this binary can take over; the memfd holds a snapshot of the present state.
    Preflight {
        /// Empty = the path this one was started from.
        binary: String,
        /// A memfd, the keeper's from now on.
        image: RawFd,
    },
    /// The worker is about to exit: replace this process with the binary that passed the preflight.
    Exec {
        /// A memfd with the final state.
        image: RawFd,
    },
}

impl Control {
    /// A new pair. Its descriptors are kept over exec.
    pub(crate) fn create() -> Result<Self> {
        let (keeper, worker) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_NONBLOCK,
        )?;
        Ok(Self {
            keeper: keeper.into_raw_fd(),
            worker: worker.into_raw_fd(),
        })
    }

    /// Tells the worker.
    pub(crate) fn tell_worker(&self, message: &ToWorker) -> Result<()> {
        put(self.keeper, message)
    }

    /// Tells the keeper.
    pub(crate) fn tell_keeper(&self, message: &ToKeeper) -> Result<()> {
        put(self.worker, message)
    }

    /// What the keeper said, if anything.
    pub(crate) fn heard_by_worker(&self) -> Result<Option<ToWorker>> {
        receive(self.worker, MsgFlags::empty())
    }

    /// What the keeper said, if anything, which stays there to be heard again: by the next worker, if this one dies before
    /// it has acted on it.
    pub(crate) fn told_to_worker(&self) -> Result<Option<ToWorker>> {
        receive(self.worker, MsgFlags::MSG_PEEK)
    }

    /// What the worker said, if anything.
    pub(crate) fn heard_by_keeper(&self) -> Result<Option<ToKeeper>> {
        receive(self.keeper, MsgFlags::empty())
    }
}

fn put(socket: RawFd, message: &impl Serialize) -> Result<()> {
    let bytes = codec::encode(message).map_err(Error::other)?;
    send(socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL)?;
    Ok(())
}

fn receive<T: serde::de::DeserializeOwned>(socket: RawFd, flags: MsgFlags) -> Result<Option<T>> {
    let mut buffer = vec![0; 64 * 1024];
    match recv(socket, &mut buffer, MsgFlags::MSG_DONTWAIT | flags) {
        Ok(0) => Ok(None),
        Ok(len) => codec::decode(&buffer[..len]).map(Some).map_err(Error::other),
        Err(errno) => match Error::from(errno) {
            error if error.kind() == ErrorKind::WouldBlock => Ok(None),
            error => Err(error),
        },
    }
}

/// What the worker's exit code means, for whoever looks at its process: the keeper goes by what the worker has said.
pub(crate) mod worker_exit {
    /// It has handed its state over.
    pub(crate) const HANDED_OVER: i32 = 0;
    /// It could not begin to serve.
    pub(crate) const UNABLE: i32 = 11;
}
