//! The saved form of the broker, version 2. These structs never change: what is new gets a new version, and the one before
//! it is still read.
//!
//! They are apart from the live types on purpose, hold plain owned data, and are read as hostile input.

use bus_wire::{Fd, Guid};
use bytes::Bytes;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::event::{Millis, PeerId};

mod admissions;
mod agenda;
mod config;
mod entry;
mod name;
#[cfg(feature = "next-version")]
mod next;
mod policy;
mod rule;
mod sasl;
mod shares;
mod v1;

pub use admissions::AdmissionsV1;
pub(super) use admissions::{SaslV2, nonce};
pub use agenda::AgendaV1;
pub(super) use agenda::{SheddingV1, ThenV1};
pub use config::{ConfigV1, ConfigV2};
pub(super) use entry::{CallEntryV1, NameEntryV1, RuleEntryV1};
pub use entry::{EntryV1, HeldV1};
pub(crate) use name::NameTextV1;
#[cfg(feature = "next-version")]
pub use next::{NoteV1, PeerNextV1};
pub use policy::{InForceV1, PolicyV1};
pub use rule::RuleV1;
pub(super) use sasl::{SaslV1, is_expressed};
pub(super) use shares::PartyV1;
pub use shares::{PacingV1, PeerShareV1, SharesV1};
pub use v1::{GlobalV1, PeerV1};

/// Everything that [`Broker::save`](super::Broker::save) knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerState {
    /// What belongs to no single peer.
    pub global: GlobalV2,
    /// The policy in force. `None`: it is the simple one that `global` tells of.
    pub in_force: Option<InForceV1>,
    /// One record per peer.
    pub peers: Vec<PeerRecord>,
    /// Bodies that wait in send queues, each once however many queues it is in.
    pub shared: Vec<Blob>,
    /// Peers of which output is kept elsewhere, up to this absolute offset; their records have what comes after it.
    pub stored: Vec<(PeerId, u64)>,
    /// What was still to be done for peers.
    pub agenda: AgendaV1,
    /// Whose bytes wait for whom, and who waits for that.
    pub shares: SharesV1,
    /// Who comes in behind a nonce, or with a cookie.
    pub admissions: AdmissionsV1,
}

/// What belongs to no single peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalV2 {
    pub(super) identity: IdentityV2,
    pub(super) config: ConfigV1,
    pub(super) now: Millis,
    pub(super) next_unique: u64,
    pub(super) driver_serial: u32,
    /// Every peer, with the number of its unique name: it shows which records are missing.
    pub(super) roster: Vec<(PeerId, Option<u64>)>,
    /// Sorted by name.
    pub(super) names: Vec<NameV1>,
    pub(super) restart: RestartV2,
    pub(super) reload: ReloadV1,
    /// The number of the next errand.
    pub(super) next_errand: u64,
    pub(super) activation_environment: Vec<(String, String)>,
    pub(super) peak_rules: u32,
    pub(super) peak_names: u32,
    pub(super) is_accepting_stopped: bool,
}

impl GlobalV2 {
    /// What [`Broker::save_bus`](super::Broker::save_bus) left out, put back. `roster` is every peer, with the number
    /// of its unique name.
    pub fn complete(self, config: ConfigV1, names: Vec<NameV1>, roster: Vec<(PeerId, Option<u64>)>) -> Self {
        Self {
            config,
            names,
            roster,
            ..self
        }
    }
}

/// What distinguishes the bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IdentityV2 {
    pub(super) guid: Guid,
    pub(super) listeners: Vec<ListenerV1>,
    pub(super) machine_id: String,
    pub(super) keeper_pid: u32,
    pub(super) own_uid: u32,
    pub(super) hash_seed: u64,
}

/// A listener as the peers that came through it know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ListenerV1 {
    pub(super) guid: Guid,
    pub(super) transport: TransportV1,
}

/// What carries the links of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum TransportV1 {
    Unix,
    Tcp,
}

/// A well-known name, with the primary owner and those who wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameV1 {
    pub(super) name: NameTextV1,
    /// With the flags of RequestName.
    pub(super) owners: Vec<(PeerId, u32)>,
}

/// The daemon's own life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RestartV2 {
    pub(super) generation: u32,
    pub(super) recoveries: u32,
    pub(super) worker_pid: u32,
    pub(super) last_cause: String,
    pub(super) last_pause: u32,
    pub(super) last_carried: u32,
    pub(super) last_dropped: u32,
    pub(super) last_quarantined: u32,
    pub(super) upgrade: UpgradeV1,
    pub(super) dropped_in_restore: u32,
}

/// How far an upgrade has come. A caller is a peer and the serial of its call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum UpgradeV1 {
    None,
    Trying {
        errand: u64,
        binary: String,
        caller: Option<(PeerId, u32)>,
    },
    HandingOver {
        caller: Option<(PeerId, u32)>,
    },
}

/// Who waits for the configuration to be read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReloadV1 {
    /// The first and the last request for the next reading, if there is one to come.
    pub(super) wanted: Option<(Millis, Millis)>,
    /// Who is answered after it.
    pub(super) callers: Vec<(PeerId, u32)>,
    /// The errand that reads it now, if one does, and who is answered when it has ended.
    pub(super) reading: Option<(u64, Vec<(PeerId, u32)>)>,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerV2 {
    pub(super) id: PeerId,
    pub(super) listener: u32,
    /// The handle of its link's socket; `None`: it is parked.
    pub(super) socket: Option<Fd>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) pid: Option<u32>,
    /// `SO_PEERGROUPS`.
    pub(super) groups: Option<Vec<u32>>,
    /// `SO_PEERSEC`.
    pub(super) label: Option<Vec<u8>>,
    pub(super) takes_fds: bool,
    pub(super) phase: PhaseV1,
    /// The number of its unique name.
    pub(super) unique: Option<u64>,
    /// Absolute offset of the first byte of its stream that was not taken.
    pub(super) taken: u64,
    /// Input that is not a whole message yet.
    pub(super) input: Blob,
    /// Descriptors that came with it.
    pub(super) input_fds: Vec<Fd>,
    /// Absolute offset of the first byte that was not sent.
    pub(super) sent: u64,
    /// What waits to be sent from there on.
    pub(super) output: Vec<PieceV1>,
    /// Before which absolute offset descriptors go, and which.
    pub(super) output_fds: Vec<(u64, Vec<Fd>)>,
    pub(super) is_congested: bool,
    pub(super) is_stopped: bool,
    pub(super) hello_deadline: Option<Millis>,
    pub(super) fds_deadline: Option<Millis>,
    /// Names that it owns or waits for, in the order of its requests.
    pub(super) names: Vec<NameTextV1>,
    /// Match rules (of a monitor: filters) as canonical text, in the order in which they were added.
    pub(super) rules: Vec<RuleV1>,
    /// Calls that it has to answer: caller, serial, deadline.
    pub(super) owed: Vec<(PeerId, u32, Option<Millis>)>,
    /// Calls that it waits for: callee, serial.
    pub(super) awaited: Vec<(PeerId, u32)>,
    pub(super) peak_names: u32,
    pub(super) peak_rules: u32,
    pub(super) peak_outgoing_bytes: u64,
    pub(super) peak_outgoing_fds: u32,
}

/// The newest form of a peer's record: what the broker saves and restores.
#[cfg(not(feature = "next-version"))]
pub type PeerRecord = PeerV2;
/// The newest form of a peer's record: what the broker saves and restores.
#[cfg(feature = "next-version")]
pub type PeerRecord = PeerNextV1;

/// Something that an older version of a record has no place for: why it is not written in that version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unexpressed(pub &'static str);

/// What of a peer's record a checkpoint keeps in entries of their own: see [`PeerV2`].
#[derive(Debug, Default)]
pub(super) struct Lists {
    pub(super) names: Vec<NameTextV1>,
    pub(super) rules: Vec<RuleV1>,
    pub(super) owed: Vec<(PeerId, u32, Option<Millis>)>,
    pub(super) awaited: Vec<(PeerId, u32)>,
}

impl GlobalV2 {
    /// The present is `now`. Returns what it was.
    pub fn move_to(&mut self, now: Millis) -> Millis {
        let before = std::mem::replace(&mut self.now, now);
        if let Some((first, last)) = &mut self.reload.wanted {
            (*first, *last) = (now, now);
        }
        before
    }
}

impl PeerV2 {
    /// What is due is as far from `to` as it was from `from`.
    #[must_use]
    pub fn moved(mut self, from: Millis, to: Millis) -> Self {
        let place = |at: &mut Millis| *at = Millis(to.0.saturating_add(at.0.saturating_sub(from.0)));
        self.hello_deadline.iter_mut().for_each(place);
        self.fds_deadline.iter_mut().for_each(place);
        let owed = self
            .owed
            .iter_mut()
            .filter_map(|(_, _, deadline)| deadline.as_mut());
        owed.for_each(place);
        self
    }

    /// The lists that a checkpoint keeps in entries of their own, put back.
    pub(super) fn set_lists(&mut self, lists: Lists) {
        let Lists {
            names,
            rules,
            owed,
            awaited,
        } = lists;
        (self.names, self.rules, self.owed, self.awaited) = (names, rules, owed, awaited);
    }

    /// Whose record it is.
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// The number of its unique name.
    pub fn unique(&self) -> Option<u64> {
        self.unique
    }

    /// Input that is not a whole message yet.
    pub fn input(&self) -> &Bytes {
        &self.input.0
    }

    /// Replaces that input, for one that is kept elsewhere.
    pub fn set_input(&mut self, input: Bytes) {
        self.input = Blob(input);
    }

    /// Takes the output away, and says how many bytes it had: for a comparison of streams, not of where they are kept.
    pub fn take_output(&mut self) -> u64 {
        let output = std::mem::take(&mut self.output);
        let lengths = output.iter().map(|piece| match piece {
            PieceV1::Inline(bytes) => bytes.0.len() as u64,
            PieceV1::Shared { length, .. } => *length,
        });
        lengths.sum()
    }

    /// Its output refers to shared bodies `by` places further on.
    pub fn shift_bodies(&mut self, by: u32) {
        for piece in &mut self.output {
            if let PieceV1::Shared { index, .. } = piece {
                *index = index.saturating_add(by);
            }
        }
    }
}

/// How far a peer has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum PhaseV1 {
    Authenticating(SaslV1),
    Greeting,
    Active,
    Monitor,
}

/// A run of bytes in a send queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum PieceV1 {
    Inline(Blob),
    /// The last `length` bytes of a body in the table.
    Shared {
        index: u32,
        length: u64,
    },
}

/// Bytes, saved as such and not one by one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blob(pub Bytes);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BlobVisitor;
        impl Visitor<'_> for BlobVisitor {
            type Value = Blob;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(Bytes::copy_from_slice(bytes)))
            }

            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(Bytes::from(bytes)))
            }
        }
        deserializer.deserialize_byte_buf(BlobVisitor)
    }
}
