//! Why an image is not read, or not written.

use std::fmt::{self, Display};

use crate::broker::{Broker, PeerId, RestoreError, Unexpressed};
use crate::handoff::codec::CodecError;
use crate::handoff::container::ContainerError;

/// An image that cannot be restored at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Not a container this build can read.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// A record that this build does not know and that says it must not be passed over.
    #[error("the state has a record of type {kind} version {version}, which this build does not know")]
    Unknown {
        /// Its type.
        kind: u16,
        /// Its version.
        version: u16,
    },
    /// What waits for slow readers is laid out in a way that this build cannot read.
    #[error("the store of the state has layout {0}, which this build does not know")]
    Layout(u32),
    /// The record of what belongs to no single peer is missing or damaged.
    #[error("the state has no readable record of the bus itself")]
    NoGlobal,
    /// The records contradict each other.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

impl ImageError {
    /// How [`Unknown`](Self::Unknown) and [`Layout`](Self::Layout) end in the text of every build, from the first on: the state
    /// is too new for that build, and nothing else is wrong.
    #[cfg(feature = "runtime")]
    pub(crate) const TOO_NEW: &str = "which this build does not know";
}

/// A state that is not written in the form that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SaveError {
    /// A value is too long for a record.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// There is something in the state that a reader of that version would not know of.
    #[error("{whose} has {what}, which version {version} of the state cannot express")]
    Inexpressible {
        /// Who would lose it.
        whose: Whose,
        /// What it is.
        what: Unexpressed,
        /// The version that was asked for.
        version: u16,
    },
    /// What waits for a peer is in a store, and cannot be read there.
    #[error("what waits for {whose} cannot be read: {reason}")]
    Unreadable {
        /// For whom.
        whose: Whose,
        /// Why.
        reason: String,
    },
}

/// Whose part of a state it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// Nobody's alone.
    Bus,
    /// A peer's.
    Peer {
        /// Its index.
        index: u32,
        /// Its unique name, once it has one.
        name: Option<String>,
        /// Whose process it is, where the system told.
        uid: Option<u32>,
        /// Which process.
        pid: Option<u32>,
    },
}

impl Whose {
    pub(super) fn of(broker: &Broker, peer: PeerId) -> Self {
        let (name, credentials) = broker.identity_of(peer).unwrap_or_default();
        Self::Peer {
            index: peer.index,
            name,
            uid: credentials.uid,
            pid: credentials.pid,
        }
    }
}

impl Display for Whose {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bus => formatter.write_str("the bus"),
            Self::Peer {
                index,
                name,
                uid,
                pid,
            } => {
                match name {
                    Some(name) => write!(formatter, "peer {name}")?,
                    None => write!(formatter, "the unnamed peer {index}")?,
                }
                let uid = uid.map(|uid| format!("user {uid}"));
                let pid = pid.map(|pid| format!("process {pid}"));
                let known: Vec<String> = uid.into_iter().chain(pid).collect();
                if known.is_empty() {
                    return Ok(());
                }
                write!(formatter, " ({})", known.join(", "))
            }
        }
    }
}
