//! What the worker asks of the keeper, as messages over a pair of SEQPACKET sockets that outlives the worker.
//!
//! The keeper's way back is the [outbox](super::outbox); over the socket it only wakes the worker.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{IntoRawFd, RawFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use serde::{Deserialize, Serialize};

use crate::broker::Keys;
use crate::handoff::codec;
use crate::handoff::keeper::Control;

/// From the worker to the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Carry an errand out. One whose number the keeper knows already is under way or has ended: it is not begun again.
    Errand {
        /// Its number: grows with each errand of a bus's life.
        id: u64,
        /// What to do.
        errand: Errand,
    },
    /// The worker is about to exit: replace this process with the binary that passed its trial.
    Exec {
        /// A memfd with the final state, the keeper's from now on.
        image: RawFd,
    },
}

/// What takes time in the system, and so is done by a child of the keeper, with a deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Errand {
    /// Read the configuration again.
    LoadConfiguration,
    /// Find a cookie in the keyring, or make one.
    ReadKeyring,
    /// Try whether a binary can take over.
    TryBinary {
        /// Its path; empty = the path this one was started from.
        binary: String,
        /// A memfd with a snapshot of the present state, the keeper's from now on.
        image: RawFd,
    },
}

/// How an errand ended: what stands in its payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// The configuration, encoded, or why there is none.
    Configuration(std::result::Result<Vec<u8>, Refusal>),
    /// A cookie, or why there is none.
    Keyring(std::result::Result<Keys, String>),
    /// The binary can take over, or why not.
    Trial(std::result::Result<(), String>),
}

/// Why a configuration is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// The D-Bus error that the caller of ReloadConfig gets.
    pub(crate) error: String,
    /// What, where (file and line).
    pub(crate) text: String,
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

    /// Wakes the worker to look at its inbox. If the socket is full, it is awake.
    pub(crate) fn wake_worker(&self) {
        let _ = send(self.keeper, &[0], MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
    }

    /// Wakes the keeper. Callable from a signal handler.
    pub(crate) fn wake_keeper(&self) {
        let _ = send(self.worker, &[0], MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
    }

    /// Takes the wake-ups out of the worker's end. Whatever is posted later wakes it again.
    pub(crate) fn take_wakes(&self) {
        let mut byte = [0; 8];
        while matches!(recv(self.worker, &mut byte, MsgFlags::MSG_DONTWAIT), Ok(len) if len > 0) {}
    }

    /// Asks the keeper.
    pub(crate) fn ask_keeper(&self, request: &Request) -> Result<()> {
        let bytes = codec::encode(request).map_err(Error::other)?;
        send(self.worker, &bytes, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// What the worker asks, if anything. `Err`: it cannot be understood; the next may be.
    pub(crate) fn asked(&self) -> Result<Option<Request>> {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            return match recv(self.keeper, &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => Ok(None),
                // Only woken.
                Ok(1) => continue,
                Ok(len) => codec::decode(&buffer[..len]).map(Some).map_err(Error::other),
                Err(errno) => match Error::from(errno) {
                    error if error.kind() == ErrorKind::WouldBlock => Ok(None),
                    error => Err(error),
                },
            };
        }
    }
}
