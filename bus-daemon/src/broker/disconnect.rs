//! Why a peer is disconnected, and whose fault that is.

use bus_wire::{MessageError, SaslError};
use thiserror::Error;

/// Why a peer is taken out of the bus. The text is for the log.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Disconnect {
    /// The peer broke the protocol.
    #[error(transparent)]
    Breach(#[from] Breach),
    /// The configuration does not let the peer's user connect.
    #[error(transparent)]
    Refusal(#[from] Refusal),
    /// The peer used up its share of memory, descriptors or time.
    #[error(transparent)]
    Excess(#[from] Excess),
    /// The bus could not get the peer a descriptor: its own table is full.
    #[error("no file descriptors are left for a message to it")]
    NoDescriptorsLeft,
    /// The bus lost bytes of the peer's stream: a fault of its own.
    #[error("{0} bytes of its stream are missing in the bus")]
    InputMissing(u64),
    /// The transport ended: end of file, or an error of the socket. The peer did nothing wrong.
    #[error("{0}")]
    Transport(&'static str),
    /// As it was saved by another process.
    #[error("{text}")]
    Saved {
        /// The text of one of the others.
        text: String,
        /// What [`is_fault`](Self::is_fault) said.
        is_fault: bool,
    },
}

impl Disconnect {
    /// Whether the disconnection is worth a warning: the link did not simply end.
    pub(super) fn is_fault(&self) -> bool {
        match self {
            Self::Breach(_)
            | Self::Refusal(_)
            | Self::Excess(_)
            | Self::NoDescriptorsLeft
            | Self::InputMissing(_) => true,
            Self::Transport(_) => false,
            Self::Saved { is_fault, .. } => *is_fault,
        }
    }
}

/// What a peer did against the specification.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Breach {
    /// In its authentication.
    #[error(transparent)]
    Authentication(#[from] SaslError),
    /// In a message: its bytes are none.
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("it sent file descriptors before BEGIN")]
    FdsBeforeBegin,
    #[error("it sent file descriptors without a message")]
    FdsWithoutMessage,
    #[error("it sent file descriptors without having negotiated it (NEGOTIATE_UNIX_FD)")]
    FdsNotNegotiated,
    #[error("its first message was not Hello")]
    NotHello,
    #[error("it is a monitor, and sent a message")]
    MonitorSpoke,
}

/// Whom the configuration keeps out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Refusal {
    #[error("anonymous peers may not connect")]
    Anonymous,
    #[error("user {0} may not connect to this bus")]
    User(u32),
}

/// Which limit a peer passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Excess {
    /// `auth_timeout`
    #[error("it did not authenticate and say Hello in time")]
    Hello,
    /// So many bytes of the answers to its authentication.
    #[error("it does not read the answers to its authentication: {0} bytes")]
    UnreadAnswers(u64),
    /// `pending_fd_timeout`
    #[error("the message that its file descriptors belong to did not arrive in time")]
    PendingFdsTime,
    /// `max_incoming_unix_fds`
    #[error("{0} file descriptors without a message")]
    PendingFds(u64),
    /// `max_message_unix_fds`, which is given.
    #[error("a message with more than {0} file descriptors")]
    MessageFds(u64),
    /// `max_outgoing_bytes` or `max_outgoing_unix_fds`: so many bytes wait.
    #[error("it does not read: {0} bytes wait for it")]
    Unread(u64),
    /// The bus is short of memory, and it does not read, or does not come to the end of its message.
    #[error("memory is short, and {0} bytes are held for it")]
    Memory(u64),
    /// Its share of the table of descriptors: so many are too many.
    #[error("{0} file descriptors more are beyond the share of the table that it, or its user, may have")]
    Descriptors(u64),
    /// The same, of connections.
    #[error("its user has as many connections as its share of the table of file descriptors allows")]
    Links,
}
