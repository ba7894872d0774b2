//! The records of a version after this build's, for tests: a peer that has more to say, a record that nobody may pass over, one
//! that older readers carry along and one that they skip.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{SaveError, Saver, Whose, kind};
use crate::broker::{NoteV1, PeerRecord, PeerV2};
use crate::handoff::codec::{self, CodecError};
use crate::handoff::container::IfUnknown;
use crate::handoff::form::VERSION;
use crate::handoff::stored::{BacklogV1, InputV1};

/// Nobody may go on without it.
const COUNTS: u16 = 0x4e00;
/// Carried along by readers that do not know it.
const HINTS: u16 = 0x4e01;
/// Skipped by them.
const REMARK: u16 = 0x4e02;

/// A peer, and what waits for it in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PeerNextImageV1 {
    peer: PeerRecord,
    backlog: Option<BacklogV1>,
    input: Option<InputV1>,
}

/// How many peers have notes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct CountsV1 {
    notes: u32,
}

/// Notes that an older version has no place for and can be lost, with the peers' ids as numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct HintsV1 {
    hints: Vec<(u64, String)>,
    /// Peers with notes of any kind.
    #[serde(skip)]
    notes: u32,
}

/// Means nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct RemarkV1 {
    text: String,
}

pub(super) fn is_known(kind: u16) -> bool {
    matches!(kind, COUNTS | HINTS | REMARK)
}

pub(super) fn peer(body: &[u8]) -> Result<(PeerRecord, Option<BacklogV1>, Option<InputV1>), CodecError> {
    let PeerNextImageV1 { peer, backlog, input } = codec::decode(body)?;
    Ok((peer, backlog, input))
}

/// What was read besides peers.
#[derive(Debug, Default)]
pub(super) struct Next {
    counts: Option<CountsV1>,
    hints: BTreeMap<u64, String>,
    notes: u32,
}

impl Next {
    pub(super) fn read(&mut self, kind: u16, body: &[u8]) -> Result<(), CodecError> {
        match kind {
            COUNTS => self.counts = Some(codec::decode(body)?),
            HINTS => self.hints.extend(codec::decode::<HintsV1>(body)?.hints),
            _ => drop(codec::decode::<RemarkV1>(body)?),
        }
        Ok(())
    }

    /// A peer with the note that an older version carried along for it.
    pub(super) fn complete(&mut self, mut peer: PeerRecord) -> PeerRecord {
        let hint = self.hints.remove(&peer.id().to_u64());
        peer.set_hint(hint);
        self.notes += u32::from(peer.note().is_some());
        peer
    }

    /// What is wrong with the record that nobody may go on without.
    pub(super) fn damage(&self, version: u16) -> Option<String> {
        let notes = self.counts.as_ref().map(|counts| counts.notes);
        (version == VERSION && notes != Some(self.notes))
            .then(|| format!("{} peers have notes, and there should be {notes:?}", self.notes))
    }
}

impl Saver<'_> {
    /// A peer as an older version has it. `None`: it is written already, in this build's own.
    pub(super) fn older_peer(
        &mut self,
        peer: PeerRecord,
        backlog: Option<BacklogV1>,
        input: Option<InputV1>,
    ) -> Result<Option<PeerV2>, SaveError> {
        self.hints.notes += u32::from(peer.note().is_some());
        if self.form.version() == VERSION {
            self.put(kind::PEER, VERSION, &PeerNextImageV1 { peer, backlog, input })?;
            return Ok(None);
        }
        let id = peer.id();
        if let Some(NoteV1::Hint(text)) = peer.note() {
            self.hints.hints.push((id.to_u64(), text.clone()));
        }
        let older = PeerV2::try_from(peer);
        older
            .map(Some)
            .map_err(self.inexpressible(Whose::of(self.broker, id)))
    }

    /// What comes last.
    pub(super) fn put_next(&mut self) -> Result<(), SaveError> {
        if self.form.version() == VERSION {
            let notes = self.hints.notes;
            self.put(COUNTS, 1, &CountsV1 { notes })?;
        } else if !self.hints.hints.is_empty() && self.form.carries() {
            self.writer.record(HINTS, 1, IfUnknown::Carry, &self.hints)?;
        }
        let text = "of no consequence".to_owned();
        self.writer
            .record(REMARK, 1, IfUnknown::Skip, &RemarkV1 { text })?;
        Ok(())
    }
}
