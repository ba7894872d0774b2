//! The saved form of an authentication exchange, version 1.

use bus_wire::{Guid, Mechanism, SaslConfig, SaslDone, SaslServer, SaslStage, SaslState};
use serde::{Deserialize, Serialize};

/// A [`SaslServer`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaslV1 {
    config: SaslConfigV1,
    peer_uid: Option<u32>,
    stage: SaslStageV1,
    rejections: u32,
    errors: u32,
    /// A line that has not arrived completely.
    partial: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SaslConfigV1 {
    guid: Guid,
    mechanisms: Vec<MechanismV1>,
    can_pass_fds: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum MechanismV1 {
    External,
    Anonymous,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum SaslStageV1 {
    Nul,
    WaitingForAuth,
    WaitingForData(ChallengeV1),
    WaitingForBegin(SaslDoneV1),
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum ChallengeV1 {
    ExternalIdentity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct SaslDoneV1 {
    uid: Option<u32>,
    fds: bool,
    mechanism: MechanismV1,
}

impl From<&SaslServer> for SaslV1 {
    fn from(server: &SaslServer) -> Self {
        let SaslState {
            config,
            peer_uid,
            stage,
            rejections,
            errors,
            partial,
            // In the list of those that this version cannot express: see [`is_expressed`].
            held: _,
        } = server.save();
        let SaslConfig {
            guid,
            mechanisms,
            can_pass_fds,
        } = config;
        Self {
            config: SaslConfigV1 {
                guid,
                mechanisms: mechanisms.into_iter().filter_map(MechanismV1::of).collect(),
                can_pass_fds,
            },
            peer_uid,
            stage: match stage {
                SaslStage::Nul => SaslStageV1::Nul,
                // Without the nonce nobody goes on.
                SaslStage::Nonce { .. } => SaslStageV1::Over,
                SaslStage::WaitingForAuth
                | SaslStage::WaitingForCookieUser
                | SaslStage::LookingUpCookie(_)
                | SaslStage::WaitingForCookie(_) => SaslStageV1::WaitingForAuth,
                SaslStage::WaitingForIdentity => SaslStageV1::WaitingForData(ChallengeV1::ExternalIdentity),
                SaslStage::WaitingForBegin(SaslDone { uid, fds, mechanism }) => {
                    let mechanism = MechanismV1::of(mechanism).unwrap_or(MechanismV1::External);
                    SaslStageV1::WaitingForBegin(SaslDoneV1 { uid, fds, mechanism })
                }
                SaslStage::Over => SaslStageV1::Over,
            },
            rejections,
            errors,
            partial,
        }
    }
}

impl From<SaslV1> for SaslServer {
    fn from(saved: SaslV1) -> Self {
        let SaslV1 {
            config,
            peer_uid,
            stage,
            rejections,
            errors,
            partial,
        } = saved;
        let SaslConfigV1 {
            guid,
            mechanisms,
            can_pass_fds,
        } = config;
        Self::restore(SaslState {
            config: SaslConfig {
                guid,
                mechanisms: mechanisms.into_iter().map(Mechanism::from).collect(),
                can_pass_fds,
            },
            peer_uid,
            stage: match stage {
                SaslStageV1::Nul => SaslStage::Nul,
                SaslStageV1::WaitingForAuth => SaslStage::WaitingForAuth,
                SaslStageV1::WaitingForData(ChallengeV1::ExternalIdentity) => SaslStage::WaitingForIdentity,
                SaslStageV1::WaitingForBegin(SaslDoneV1 { uid, fds, mechanism }) => {
                    let mechanism = mechanism.into();
                    SaslStage::WaitingForBegin(SaslDone { uid, fds, mechanism })
                }
                SaslStageV1::Over => SaslStage::Over,
            },
            rejections,
            errors,
            partial,
            held: Vec::new(),
        })
    }
}

/// Whether this version has a place for all that an exchange knows.
pub(in crate::broker) fn is_expressed(server: &SaslServer) -> bool {
    let state = server.save();
    let is_stage_known = match state.stage {
        SaslStage::Nonce { .. }
        | SaslStage::WaitingForCookieUser
        | SaslStage::LookingUpCookie(_)
        | SaslStage::WaitingForCookie(_) => false,
        SaslStage::Nul | SaslStage::WaitingForAuth | SaslStage::WaitingForIdentity | SaslStage::Over => true,
        SaslStage::WaitingForBegin(done) => MechanismV1::of(done.mechanism).is_some(),
    };
    let mut mechanisms = state.config.mechanisms.into_iter();
    is_stage_known && mechanisms.all(|one| MechanismV1::of(one).is_some())
}

impl MechanismV1 {
    /// `None` where this version does not know it.
    fn of(mechanism: Mechanism) -> Option<Self> {
        match mechanism {
            Mechanism::External => Some(Self::External),
            Mechanism::CookieSha1 => None,
            Mechanism::Anonymous => Some(Self::Anonymous),
        }
    }
}

impl From<MechanismV1> for Mechanism {
    fn from(mechanism: MechanismV1) -> Self {
        match mechanism {
            MechanismV1::External => Self::External,
            MechanismV1::Anonymous => Self::Anonymous,
        }
    }
}
