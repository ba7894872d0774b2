//! Why something failed: there (the remote side says so), here, or on the way.

use std::sync::{Arc, Weak};

use bus_wire::{DecodeError, MatchRuleError, MessageError, NameError};

use crate::session::{Cause, Fate, LinkError};
use crate::shared::Shared;
use crate::{Message, State};

/// Why something failed. [`Error::fate`] says what became of a call.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Whoever was called answered with an error, or the bus did in their place.
    #[error("{0}")]
    Remote(Remote),
    /// It failed on this side, or on the way.
    #[error("{cause}")]
    Local {
        /// Why.
        cause: Cause,
        /// What became of the call.
        fate: Fate,
        /// Whose connection it was.
        #[doc(hidden)]
        connection: Connected,
    },
    /// There is no bus to begin with.
    #[error("cannot connect: {0}")]
    Connect(#[from] LinkError),
    /// The caller's fault: what is to be sent cannot be.
    #[error("cannot be sent: {0}")]
    Encode(#[from] MessageError),
    /// The caller's fault: this is no name.
    #[error("not a valid name: {0}")]
    Name(#[from] NameError),
    /// The caller's fault: this is no match rule.
    #[error("not a valid match rule: {0}")]
    Rule(#[from] MatchRuleError),
    /// The caller's fault, or the callee's: the reply is of another type than was asked for.
    #[error("the reply is not what was asked for: {0}")]
    Decode(#[from] DecodeError),
    /// The caller's fault: the address cannot be read, or there is none.
    #[error("no usable address: {0}")]
    Address(Box<str>),
    /// The caller's fault: to wait on the driver's own thread would be for ever. `.await` it, or wait on another thread.
    #[error("waiting on the thread of the driver would never end")]
    WouldDeadlock,
    /// The caller's fault: the connection belongs to the process that this one was forked from.
    #[error("the connection was made before this process was forked")]
    Forked,
}

/// The connection an error came from, if it is still there.
#[derive(Debug, Clone)]
pub struct Connected(pub(crate) Weak<Shared>);

/// The error that a call was answered with.
#[derive(Debug, Clone)]
pub struct Remote {
    message: Box<Message>,
}

impl Remote {
    pub(crate) fn new(message: Message) -> Self {
        let message = Box::new(message);
        Self { message }
    }

    /// The name of the error.
    pub fn name(&self) -> &str {
        self.message.error_name().unwrap_or_default()
    }

    /// What is said about it: the first argument, where that is a text.
    pub fn text(&self) -> &str {
        self.message.first_text().unwrap_or_default()
    }

    /// All of it.
    pub fn message(&self) -> &Message {
        &self.message
    }
}

impl std::fmt::Display for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name(), self.text())
    }
}

impl Error {
    pub(crate) fn local(cause: Cause, fate: Fate, shared: &Arc<Shared>) -> Self {
        let connection = Connected(Arc::downgrade(shared));
        Self::Local {
            cause,
            fate,
            connection,
        }
    }

    /// What became of the call. `None` where it was answered: with an error, or with something else than was asked for.
    pub fn fate(&self) -> Option<Fate> {
        match self {
            Self::Local { fate, .. } => Some(*fate),
            Self::Remote(_) | Self::Decode(_) => None,
            Self::Connect(_)
            | Self::Encode(_)
            | Self::Name(_)
            | Self::Rule(_)
            | Self::Address(_)
            | Self::WouldDeadlock
            | Self::Forked => Some(Fate::NotSent),
        }
    }

    /// The error that the call was answered with.
    pub fn remote(&self) -> Option<&Remote> {
        if let Self::Remote(remote) = self {
            return Some(remote);
        }
        None
    }

    /// Why it failed on this side.
    pub fn cause(&self) -> Option<&Cause> {
        if let Self::Local { cause, .. } = self {
            return Some(cause);
        }
        None
    }

    /// Ends when the bus is there again: true. Or never will be, since the connection is closed or dropped: false. True at once for an
    /// error that has nothing to do with the bus.
    pub async fn recovered(&self) -> bool {
        let Self::Local { connection, .. } = self else {
            return true;
        };
        let Some(shared) = connection.0.upgrade() else {
            return false;
        };
        let states = shared.states();
        drop(shared);
        loop {
            match states.next().await {
                Some(State::Up) => return true,
                Some(State::Closed) | None => return false,
                Some(_) => {}
            }
        }
    }
}
