//! What the next version of the format might be, for tests of the way there and back.

use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Serialize};

use super::PeerV2;
use crate::broker::Unexpressed;

/// One peer, with a field more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerNextV1 {
    pub(in crate::broker) peer: PeerV2,
    pub(in crate::broker) note: Option<NoteV1>,
}

/// What a peer has asked the bus to remember.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoteV1 {
    /// If that can be done.
    Hint(String),
    /// Whatever happens.
    Pledge(String),
}

impl PeerNextV1 {
    /// A hint that was kept elsewhere for a peer of which an older version had no place for it.
    pub(crate) fn set_hint(&mut self, hint: Option<String>) {
        self.note = self.note.take().or(hint.map(NoteV1::Hint));
    }

    /// What the peer has asked the bus to remember.
    pub fn note(&self) -> Option<&NoteV1> {
        self.note.as_ref()
    }
}

impl From<PeerV2> for PeerNextV1 {
    fn from(peer: PeerV2) -> Self {
        Self { peer, note: None }
    }
}

impl TryFrom<PeerNextV1> for PeerV2 {
    type Error = Unexpressed;

    fn try_from(new: PeerNextV1) -> Result<Self, Unexpressed> {
        match new.note {
            // It is carried along elsewhere.
            None | Some(NoteV1::Hint(_)) => Ok(new.peer),
            Some(NoteV1::Pledge(_)) => Err(Unexpressed("a pledge")),
        }
    }
}

impl Deref for PeerNextV1 {
    type Target = PeerV2;

    fn deref(&self) -> &PeerV2 {
        &self.peer
    }
}

impl DerefMut for PeerNextV1 {
    fn deref_mut(&mut self) -> &mut PeerV2 {
        &mut self.peer
    }
}
