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
        } = server.save();
        let SaslConfig {
            guid,
            mechanisms,
            can_pass_fds,
        } = config;
        Self {
            config: SaslConfigV1 {
                guid,
                mechanisms: mechanisms.into_iter().map(MechanismV1::from).collect(),
                can_pass_fds,
            },
            peer_uid,
            stage: match stage {
                SaslStage::Nul => SaslStageV1::Nul,
                SaslStage::WaitingForAuth => SaslStageV1::WaitingForAuth,
                SaslStage::WaitingForIdentity => SaslStageV1::WaitingForData(ChallengeV1::ExternalIdentity),
                SaslStage::WaitingForBegin(SaslDone { uid, fds, mechanism }) => {
                    let mechanism = mechanism.into();
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
        })
    }
}

impl From<Mechanism> for MechanismV1 {
    fn from(mechanism: Mechanism) -> Self {
        match mechanism {
            Mechanism::External => Self::External,
            Mechanism::Anonymous => Self::Anonymous,
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
