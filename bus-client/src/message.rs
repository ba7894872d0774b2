//! A message that was received, with its file descriptors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bus_wire::{Decode, DecodeError, FdIndex, Flags, MessageType};

/// A message that was received. It is valid in every respect; cloning copies nothing.
#[derive(Debug, Clone)]
pub struct Message {
    message: bus_wire::Message,
    fds: Arc<[OwnedFd]>,
    epoch: u64,
}

impl Message {
    pub(crate) fn new(message: bus_wire::Message, fds: Vec<OwnedFd>, epoch: u64) -> Self {
        let fds = fds.into();
        Self { message, fds, epoch }
    }

    /// What it is for.
    pub fn message_type(&self) -> MessageType {
        self.message.message_type()
    }

    /// Its flags.
    pub fn flags(&self) -> Flags {
        self.message.flags()
    }

    /// Its serial, which its sender chose; never 0.
    pub fn serial(&self) -> u32 {
        self.message.serial().get()
    }

    /// The object that it goes to, or comes from.
    pub fn path(&self) -> Option<&str> {
        self.message.path()
    }

    /// The interface of the method or signal.
    pub fn interface(&self) -> Option<&str> {
        self.message.interface()
    }

    /// The method or signal.
    pub fn member(&self) -> Option<&str> {
        self.message.member()
    }

    /// The name of the error.
    pub fn error_name(&self) -> Option<&str> {
        self.message.error_name()
    }

    /// Whom it comes from: a unique name, or the bus's. Of a peer without a bus there is none.
    pub fn sender(&self) -> Option<&str> {
        self.message.sender()
    }

    /// Whom it goes to.
    pub fn destination(&self) -> Option<&str> {
        self.message.destination()
    }

    /// The types of its body (specification, "Type System"); empty where there is none.
    pub fn signature(&self) -> &str {
        self.message.signature()
    }

    /// The body as a `T`, which may borrow from it: a tuple stands for the arguments, any other type for the only one.
    ///
    /// # Errors
    /// The body is of another type. The error says where in it, at which byte, what was expected, and what is there.
    pub fn decode<'m, T: Decode<'m>>(&'m self) -> Result<T, DecodeError> {
        self.message.decode()
    }

    /// The file descriptor that a value of type UNIX_FD in the body means; `None` where the message has not so many.
    pub fn fd(&self, index: FdIndex) -> Option<BorrowedFd<'_>> {
        self.fds.get(index.0 as usize).map(AsFd::as_fd)
    }

    /// All its file descriptors. They are closed with the last clone of the message.
    pub fn fds(&self) -> &[OwnedFd] {
        &self.fds
    }

    /// In which epoch it came, which is the life of one bus: unique names of another mean others.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn first_text(&self) -> Option<&str> {
        match self.signature().starts_with('s') {
            true => self.message.body().read_str().ok(),
            false => None,
        }
    }

    pub(crate) fn length(&self) -> usize {
        self.message.bytes().len()
    }
}
