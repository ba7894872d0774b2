//! Version 1: descriptors by their numbers, of which a link's was also the index of its peer.

use bus_wire::{Fd, Guid};
use serde::{Deserialize, Serialize};

use super::{
    Blob, ConfigV1, GlobalV2, IdentityV2, ListenerV1, NameTextV1, NameV1, PeerV2, PhaseV1, PieceV1, ReloadV1,
    RestartV2, RuleV1, TransportV1, UpgradeV1,
};
use crate::broker::event::{Millis, PeerId};

/// What belongs to no single peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalV1 {
    pub(in super::super) identity: IdentityV1,
    pub(in super::super) config: ConfigV1,
    pub(in super::super) now: Millis,
    pub(in super::super) next_unique: u64,
    pub(in super::super) driver_serial: u32,
    /// Every peer, with the number of its unique name: it shows which records are missing.
    pub(in super::super) roster: Vec<(PeerId, Option<u64>)>,
    /// Sorted by name.
    pub(in super::super) names: Vec<NameV1>,
    pub(in super::super) restart: RestartV1,
    pub(in super::super) reload_callers: Vec<(PeerId, u32)>,
    pub(in super::super) activation_environment: Vec<(String, String)>,
    pub(in super::super) peak_rules: u32,
    pub(in super::super) peak_names: u32,
    pub(in super::super) is_accepting_stopped: bool,
}

/// What distinguishes the bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct IdentityV1 {
    pub(in super::super) guid: Guid,
    pub(in super::super) listener_guids: Vec<Guid>,
    pub(in super::super) machine_id: String,
    pub(in super::super) keeper_pid: u32,
    pub(in super::super) own_uid: u32,
    pub(in super::super) hash_seed: u64,
}

/// The daemon's own life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct RestartV1 {
    pub(in super::super) generation: u32,
    pub(in super::super) recoveries: u32,
    pub(in super::super) worker_pid: u32,
    pub(in super::super) last_cause: String,
    pub(in super::super) last_pause: u32,
    pub(in super::super) last_carried: u32,
    pub(in super::super) last_dropped: u32,
    pub(in super::super) last_quarantined: u32,
    pub(in super::super) is_upgrading: bool,
    pub(in super::super) upgrade_caller: Option<(PeerId, u32)>,
    pub(in super::super) dropped_in_restore: u32,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerV1 {
    pub(in super::super) id: PeerId,
    pub(in super::super) listener: u32,
    pub(in super::super) uid: Option<u32>,
    pub(in super::super) gid: Option<u32>,
    pub(in super::super) pid: Option<u32>,
    pub(in super::super) can_pass_fds: bool,
    pub(in super::super) takes_fds: bool,
    pub(in super::super) phase: PhaseV1,
    /// The number of its unique name.
    pub(in super::super) unique: Option<u64>,
    /// Input that is not a whole message yet.
    pub(in super::super) input: Blob,
    /// Descriptors that came with it.
    pub(in super::super) input_fds: Vec<Fd>,
    /// Absolute offset of the first byte that was not sent.
    pub(in super::super) sent: u64,
    /// What waits to be sent from there on.
    pub(in super::super) output: Vec<PieceV1>,
    /// Before which absolute offset descriptors go, and which.
    pub(in super::super) output_fds: Vec<(u64, Vec<Fd>)>,
    pub(in super::super) is_congested: bool,
    pub(in super::super) is_stopped: bool,
    pub(in super::super) hello_deadline: Option<Millis>,
    pub(in super::super) fds_deadline: Option<Millis>,
    /// Names that it owns or waits for, in the order of its requests.
    pub(in super::super) names: Vec<String>,
    /// Match rules (of a monitor: filters) as canonical text, in the order in which they were added.
    pub(in super::super) rules: Vec<String>,
    /// Calls that it has to answer: caller, serial, deadline.
    pub(in super::super) owed: Vec<(PeerId, u32, Option<Millis>)>,
    /// Calls that it waits for: callee, serial.
    pub(in super::super) awaited: Vec<(PeerId, u32)>,
    pub(in super::super) peak_names: u32,
    pub(in super::super) peak_rules: u32,
    pub(in super::super) peak_outgoing_bytes: u64,
    pub(in super::super) peak_outgoing_fds: u32,
}

impl From<IdentityV1> for IdentityV2 {
    fn from(old: IdentityV1) -> Self {
        let IdentityV1 {
            guid,
            listener_guids,
            machine_id,
            keeper_pid,
            own_uid,
            hash_seed,
        } = old;
        // Version 1 listened on nothing else.
        let listeners = listener_guids.into_iter().map(|guid| ListenerV1 {
            guid,
            transport: TransportV1::Unix,
        });
        Self {
            guid,
            listeners: listeners.collect(),
            machine_id,
            keeper_pid,
            own_uid,
            hash_seed,
        }
    }
}

impl From<RestartV1> for RestartV2 {
    fn from(old: RestartV1) -> Self {
        let RestartV1 {
            generation,
            recoveries,
            worker_pid,
            last_cause,
            last_pause,
            last_carried,
            last_dropped,
            last_quarantined,
            is_upgrading,
            upgrade_caller,
            dropped_in_restore,
        } = old;
        Self {
            generation,
            recoveries,
            worker_pid,
            last_cause,
            last_pause,
            last_carried,
            last_dropped,
            last_quarantined,
            // It is saved for an upgrade, and by nothing else.
            upgrade: if is_upgrading {
                UpgradeV1::HandingOver {
                    caller: upgrade_caller,
                }
            } else {
                UpgradeV1::None
            },
            dropped_in_restore,
        }
    }
}

impl From<GlobalV1> for GlobalV2 {
    fn from(old: GlobalV1) -> Self {
        let GlobalV1 {
            identity,
            config,
            now,
            next_unique,
            driver_serial,
            roster,
            names,
            restart,
            reload_callers,
            activation_environment,
            peak_rules,
            peak_names,
            is_accepting_stopped,
        } = old;
        Self {
            identity: identity.into(),
            config,
            now,
            next_unique,
            driver_serial,
            roster,
            names,
            restart: restart.into(),
            reload: ReloadV1 {
                wanted: (!reload_callers.is_empty()).then_some((now, now)),
                callers: reload_callers,
                reading: None,
            },
            next_errand: 1,
            activation_environment,
            peak_rules,
            peak_names,
            is_accepting_stopped,
        }
    }
}

impl From<PeerV1> for PeerV2 {
    fn from(old: PeerV1) -> Self {
        let PeerV1 {
            id,
            listener,
            uid,
            gid,
            pid,
            // The listener's transport says so.
            can_pass_fds: _,
            takes_fds,
            phase,
            unique,
            input,
            input_fds,
            sent,
            output,
            output_fds,
            is_congested,
            is_stopped,
            hello_deadline,
            fds_deadline,
            names,
            rules,
            owed,
            awaited,
            peak_names,
            peak_rules,
            peak_outgoing_bytes,
            peak_outgoing_fds,
        } = old;
        Self {
            id,
            listener,
            // Handles are what numbers were; the socket had the peer's index.
            socket: i32::try_from(id.index).ok().map(Fd),
            uid,
            gid,
            pid,
            // Asked of the kernel when they are needed; not again.
            groups: None,
            label: None,
            takes_fds,
            phase,
            unique,
            // Counted from here on.
            taken: input.0.len() as u64,
            input,
            input_fds,
            sent,
            output,
            output_fds,
            is_congested,
            is_stopped,
            hello_deadline,
            fds_deadline,
            names: names.into_iter().map(NameTextV1::from).collect(),
            rules: rules.into_iter().map(RuleV1::from).collect(),
            owed,
            awaited,
            peak_names,
            peak_rules,
            peak_outgoing_bytes,
            peak_outgoing_fds,
        }
    }
}
