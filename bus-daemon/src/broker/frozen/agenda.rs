//! What was still to be done for peers.

use serde::{Deserialize, Serialize};

use crate::broker::event::PeerId;

/// The peers that are giving up what they have. What has arrived from peers and was not dealt with is in their records.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AgendaV1 {
    pub(in crate::broker) shedding: Vec<SheddingV1>,
}

impl AgendaV1 {
    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.shedding.is_empty()
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::broker) struct SheddingV1 {
    pub(in crate::broker) peer: PeerId,
    /// Whether it cannot be reached by its unique name any more.
    pub(in crate::broker) is_retired: bool,
    pub(in crate::broker) then: ThenV1,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::broker) enum ThenV1 {
    Gone {
        reason: String,
        is_fault: bool,
    },
    /// With these filters, as canonical text.
    Monitor {
        filters: Vec<String>,
    },
}
