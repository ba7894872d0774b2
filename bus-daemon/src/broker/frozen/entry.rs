//! Names, match rules and open calls as entries of a checkpoint, version 1.

use serde::{Deserialize, Serialize};

use super::{Millis, NameTextV1, PeerId, RuleV1};
use crate::broker::EntryKind;

/// What has an entry of its own in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryV1 {
    /// A well-known name.
    Name(NameEntryV1),
    /// A match rule, or a filter of a monitor.
    Rule(RuleEntryV1),
    /// An open call.
    Call(CallEntryV1),
}

impl EntryV1 {
    /// Which of them it is.
    pub fn kind(&self) -> EntryKind {
        match self {
            Self::Name(_) => EntryKind::Name,
            Self::Rule(_) => EntryKind::Rule,
            Self::Call(_) => EntryKind::Call,
        }
    }
}

/// A well-known name, with the primary owner and those who wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameEntryV1 {
    pub(in crate::broker) name: NameTextV1,
    /// With the flags of RequestName, and the name's place in the owner's list: later requests have greater ones.
    pub(in crate::broker) owners: Vec<(PeerId, u32, u64)>,
}

/// A match rule of an active peer, or a filter of a monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleEntryV1 {
    pub(in crate::broker) peer: PeerId,
    /// Rules that were added later have greater ones.
    pub(in crate::broker) order: u64,
    pub(in crate::broker) rule: RuleV1,
}

/// A call that was forwarded and not answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallEntryV1 {
    pub(in crate::broker) callee: PeerId,
    pub(in crate::broker) caller: PeerId,
    pub(in crate::broker) serial: u32,
    pub(in crate::broker) deadline: Option<Millis>,
}

/// How many entries a peer has a part in: one that is lost is missed, whoever it was said to belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HeldV1 {
    /// Names that it owns or waits for.
    pub(in crate::broker) names: u32,
    /// Match rules, or filters.
    pub(in crate::broker) rules: u32,
    /// Calls that it has to answer.
    pub(in crate::broker) owed: u32,
    /// Calls that it waits for.
    pub(in crate::broker) awaited: u32,
}
