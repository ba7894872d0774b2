//! The saved form of the broker, version 1. These structs never change: what is new gets a new version.
//!
//! They are apart from the live types on purpose, hold plain owned data, and are read as hostile input.

use bus_wire::{Fd, Guid, SaslServer};
use bytes::Bytes;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::event::{Millis, PeerId};

mod config;

pub(super) use config::ConfigV1;

/// Everything that [`Broker::save`](super::Broker::save) knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerState {
    /// What belongs to no single peer.
    pub global: GlobalV1,
    /// One record per peer.
    pub peers: Vec<PeerV1>,
    /// Bodies that wait in send queues, each once however many queues it is in.
    pub shared: Vec<Blob>,
}

/// What belongs to no single peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalV1 {
    pub(super) identity: IdentityV1,
    pub(super) config: ConfigV1,
    pub(super) now: Millis,
    pub(super) next_unique: u64,
    pub(super) driver_serial: u32,
    /// Every peer, with the number of its unique name: it shows which records are missing.
    pub(super) roster: Vec<(PeerId, Option<u64>)>,
    /// Sorted by name.
    pub(super) names: Vec<NameV1>,
    pub(super) restart: RestartV1,
    pub(super) reload_callers: Vec<(PeerId, u32)>,
    pub(super) activation_environment: Vec<(String, String)>,
    pub(super) peak_rules: u32,
    pub(super) peak_names: u32,
    pub(super) is_accepting_stopped: bool,
}

/// The part of [`GlobalV1`] that grows with the bus and seldom changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListsV1 {
    pub(super) config: ConfigV1,
    pub(super) names: Vec<NameV1>,
}

impl GlobalV1 {
    /// What [`Broker::save_bus`](super::Broker::save_bus) left out, put back. `roster` is every peer, with the number
    /// of its unique name.
    pub fn complete(self, lists: ListsV1, roster: Vec<(PeerId, Option<u64>)>) -> Self {
        let ListsV1 { config, names } = lists;
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
pub(super) struct IdentityV1 {
    pub(super) guid: Guid,
    pub(super) listener_guids: Vec<Guid>,
    pub(super) machine_id: String,
    pub(super) keeper_pid: u32,
    pub(super) own_uid: u32,
    pub(super) hash_seed: u64,
}

/// A well-known name, with the primary owner and those who wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NameV1 {
    pub(super) name: String,
    /// With the flags of RequestName.
    pub(super) owners: Vec<(PeerId, u32)>,
}

/// The daemon's own life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RestartV1 {
    pub(super) generation: u32,
    pub(super) recoveries: u32,
    pub(super) worker_pid: u32,
    pub(super) last_cause: String,
    pub(super) last_pause: u32,
    pub(super) last_carried: u32,
    pub(super) last_dropped: u32,
    pub(super) last_quarantined: u32,
    pub(super) is_upgrading: bool,
    pub(super) upgrade_caller: Option<(PeerId, u32)>,
    pub(super) dropped_in_restore: u32,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerV1 {
    pub(super) id: PeerId,
    pub(super) listener: u32,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) pid: Option<u32>,
    pub(super) can_pass_fds: bool,
    pub(super) takes_fds: bool,
    pub(super) phase: PhaseV1,
    /// The number of its unique name.
    pub(super) unique: Option<u64>,
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
    pub(super) names: Vec<String>,
    /// Match rules (of a monitor: filters) as canonical text, in the order in which they were added.
    pub(super) rules: Vec<String>,
    /// Calls that it has to answer: caller, serial, deadline.
    pub(super) owed: Vec<(PeerId, u32, Option<Millis>)>,
    /// Calls that it waits for: callee, serial.
    pub(super) awaited: Vec<(PeerId, u32)>,
    pub(super) peak_names: u32,
    pub(super) peak_rules: u32,
    pub(super) peak_outgoing_bytes: u64,
    pub(super) peak_outgoing_fds: u32,
}

impl PeerV1 {
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
    Authenticating(SaslServer),
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
