//! Sender and recipient of a message, as match rules know them.

use bus_wire::Message;

use crate::broker::DRIVER;
use crate::broker::event::PeerId;
use crate::broker::name::NameTable;

/// What is to be matched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    /// The message, as it came in or as the driver made it.
    pub(crate) message: &'a Message,
    /// Who sent it.
    pub(crate) sender: Side<'a>,
    /// Who it is for; nobody for a broadcast.
    pub(crate) destination: Side<'a>,
}

/// One who sends or receives, with all names that a rule may call it by.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Side<'a> {
    /// No name.
    Nobody,
    /// The driver, or the name in the header of a message if nobody has it.
    Name(&'a str),
    /// A peer. Its well-known names are those that it is the primary owner of.
    Peer {
        id: PeerId,
        /// `None` before Hello.
        unique: Option<&'a str>,
        names: &'a NameTable,
    },
}

impl<'a> Side<'a> {
    /// Whether it has a name.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Nobody => false,
            Self::Name(own) => *own == name,
            Self::Peer { id, unique, names } => {
                if is_well_known(name) {
                    names.owner(name) == Some(*id)
                } else {
                    *unique == Some(name)
                }
            }
        }
    }

    /// Its name that is not well-known: that of the driver is taken for one.
    #[inline]
    pub(super) fn unique(&self) -> Option<&'a str> {
        match self {
            Self::Nobody => None,
            Self::Name(name) => Some(*name).filter(|name| !is_well_known(name)),
            Self::Peer { unique, .. } => *unique,
        }
    }

    /// How many well-known names it has.
    pub(super) fn well_known_count(&self) -> usize {
        match self {
            Self::Nobody => 0,
            Self::Name(name) => usize::from(is_well_known(name)),
            Self::Peer { id, names, .. } => names.owned_count(*id),
        }
    }

    /// Its well-known names.
    pub(super) fn well_known(self) -> impl Iterator<Item = &'a str> {
        let (own, held) = match self {
            Self::Nobody => (None, None),
            Self::Name(name) => (Some(name).filter(|name| is_well_known(name)), None),
            Self::Peer { id, names, .. } => (None, Some(names.owned_by(id).map(|name| &**name))),
        };
        own.into_iter().chain(held.into_iter().flatten())
    }
}

/// Whether a bus name may be anybody's: it is neither unique nor the driver's.
#[inline]
pub(super) fn is_well_known(name: &str) -> bool {
    !name.starts_with(':') && name != DRIVER
}
