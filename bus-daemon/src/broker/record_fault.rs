//! What is wrong with the record of one peer.

use bus_wire::MatchRuleError;
use thiserror::Error;

/// Why a peer's record cannot be restored: the record is damaged, or the bytes are not a record of this bus.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum RecordFault {
    #[error("its record is missing")]
    Missing,
    #[error("names, match rules or open calls of its are missing")]
    Entries,
    #[error("its unique name does not fit how far it has come")]
    UniqueOutOfPhase,
    #[error("its unique name is not its own")]
    UniqueTaken,
    #[error("its index is too large")]
    Index,
    #[error("its index is another's")]
    IndexTaken,
    #[error("its partial message is too long")]
    Input,
    #[error("a match rule of its cannot be read: {0}")]
    Rule(#[from] MatchRuleError),
    #[error("its output refers to bytes that are not there")]
    OutputMissing,
    #[error("its output has no end")]
    OutputEndless,
    #[error("descriptors in its output belong to no byte")]
    FdsMisplaced,
    #[error("it has descriptors and takes none")]
    FdsNotTaken,
    #[error("a descriptor of its is another's")]
    FdTaken,
    #[error("it has a descriptor twice")]
    FdTwice,
}
