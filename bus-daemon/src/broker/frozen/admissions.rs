//! Who comes in by ways that versions of the state up to 4 do not know, version 1: behind a nonce, or with a cookie.

use bus_wire::sasl::cookie::{Cookie, CookieChallenge, CookieContext};
use bus_wire::{
    CookieQuestion, Guid, Mechanism, SASL_NONCE, SaslConfig, SaslDone, SaslServer, SaslStage, SaslState,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Blob;
use crate::broker::event::{Millis, PeerId};

/// What is known besides the records of the bus and its peers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AdmissionsV1 {
    /// Nonces of listeners, by their index.
    pub(in crate::broker) nonces: Vec<(u32, Blob)>,
    /// Exchanges that a peer's own record cannot express: it has the mechanisms that it can, and no cookie.
    pub(in crate::broker) exchanges: Vec<(PeerId, SaslV2)>,
    /// Who waits for a cookie, in the order of their questions.
    pub(in crate::broker) waiting: Vec<PeerId>,
    /// The errand that reads the keyring now.
    pub(in crate::broker) reading: Option<u64>,
    /// When the newest reading began.
    pub(in crate::broker) last: Option<Millis>,
}

impl AdmissionsV1 {
    /// Whether an image can do without.
    pub fn is_empty(&self) -> bool {
        let Self {
            nonces,
            exchanges,
            waiting,
            reading,
            // Whoever goes on in another process may read at once.
            last: _,
        } = self;
        nonces.is_empty() && exchanges.is_empty() && waiting.is_empty() && reading.is_none()
    }
}

/// A [`SaslServer`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::broker) struct SaslV2 {
    guid: Guid,
    /// By their names on the wire.
    mechanisms: Vec<String>,
    can_pass_fds: bool,
    peer_uid: Option<u32>,
    stage: StageV2,
    rejections: u32,
    errors: u32,
    /// A line that has not arrived completely.
    partial: Blob,
    /// What came while a cookie is looked up.
    held: Blob,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum StageV2 {
    Nonce {
        expected: Blob,
        received: Blob,
    },
    Nul,
    WaitingForAuth,
    WaitingForIdentity,
    WaitingForCookieUser,
    LookingUpCookie {
        user: Blob,
    },
    WaitingForCookie(QuestionV1),
    WaitingForBegin {
        uid: Option<u32>,
        fds: bool,
        mechanism: String,
    },
    Over,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct QuestionV1 {
    context: String,
    challenge: String,
    cookie_id: String,
    cookie_created: u64,
    cookie_secret: String,
    uid: u32,
}

fn blob(bytes: &[u8]) -> Blob {
    Blob(Bytes::copy_from_slice(bytes))
}

impl From<&SaslServer> for SaslV2 {
    fn from(server: &SaslServer) -> Self {
        let SaslState {
            config:
                SaslConfig {
                    guid,
                    mechanisms,
                    can_pass_fds,
                },
            peer_uid,
            stage,
            rejections,
            errors,
            partial,
            held,
        } = server.save();
        Self {
            guid,
            mechanisms: mechanisms.iter().map(|one| one.as_str().to_owned()).collect(),
            can_pass_fds,
            peer_uid,
            stage: match stage {
                SaslStage::Nonce { expected, received } => StageV2::Nonce {
                    expected: blob(&expected),
                    received: blob(&received),
                },
                SaslStage::Nul => StageV2::Nul,
                SaslStage::WaitingForAuth => StageV2::WaitingForAuth,
                SaslStage::WaitingForIdentity => StageV2::WaitingForIdentity,
                SaslStage::WaitingForCookieUser => StageV2::WaitingForCookieUser,
                SaslStage::LookingUpCookie(user) => StageV2::LookingUpCookie { user: blob(&user) },
                SaslStage::WaitingForCookie(question) => {
                    StageV2::WaitingForCookie(QuestionV1::from(*question))
                }
                SaslStage::WaitingForBegin(SaslDone { uid, fds, mechanism }) => StageV2::WaitingForBegin {
                    uid,
                    fds,
                    mechanism: mechanism.as_str().to_owned(),
                },
                SaslStage::Over => StageV2::Over,
            },
            rejections,
            errors,
            partial: blob(&partial),
            held: blob(&held),
        }
    }
}

impl SaslV2 {
    /// The exchange; `None` where the record makes no sense.
    pub(in crate::broker) fn into_server(self) -> Option<SaslServer> {
        let Self {
            guid,
            mechanisms,
            can_pass_fds,
            peer_uid,
            stage,
            rejections,
            errors,
            partial,
            held,
        } = self;
        let mechanisms = mechanisms.iter().map(|name| Mechanism::from_name(name));
        Some(SaslServer::restore(SaslState {
            config: SaslConfig {
                guid,
                mechanisms: mechanisms.collect::<Option<_>>()?,
                can_pass_fds,
            },
            peer_uid,
            stage: match stage {
                StageV2::Nonce { expected, received } if received.0.len() < SASL_NONCE => SaslStage::Nonce {
                    expected: nonce(&expected)?,
                    received: received.0.to_vec(),
                },
                StageV2::Nonce { .. } => return None,
                StageV2::Nul => SaslStage::Nul,
                StageV2::WaitingForAuth => SaslStage::WaitingForAuth,
                StageV2::WaitingForIdentity => SaslStage::WaitingForIdentity,
                StageV2::WaitingForCookieUser => SaslStage::WaitingForCookieUser,
                StageV2::LookingUpCookie { user } => SaslStage::LookingUpCookie(user.0.to_vec()),
                StageV2::WaitingForCookie(question) => {
                    SaslStage::WaitingForCookie(Box::new(question.into_question()?))
                }
                StageV2::WaitingForBegin { uid, fds, mechanism } => SaslStage::WaitingForBegin(SaslDone {
                    uid,
                    fds,
                    mechanism: Mechanism::from_name(&mechanism)?,
                }),
                StageV2::Over => SaslStage::Over,
            },
            rejections,
            errors,
            partial: partial.0.to_vec(),
            held: held.0.to_vec(),
        }))
    }
}

/// `None` where it has another length.
pub(in crate::broker) fn nonce(blob: &Blob) -> Option<[u8; SASL_NONCE]> {
    (&*blob.0).try_into().ok()
}

impl From<CookieQuestion> for QuestionV1 {
    fn from(question: CookieQuestion) -> Self {
        let CookieQuestion {
            challenge:
                CookieChallenge {
                    context,
                    id: _,
                    challenge,
                },
            cookie: Cookie { id, created, secret },
            uid,
        } = question;
        Self {
            context: context.as_str().to_owned(),
            challenge,
            cookie_id: id,
            cookie_created: created,
            cookie_secret: secret,
            uid,
        }
    }
}

impl QuestionV1 {
    fn into_question(self) -> Option<CookieQuestion> {
        let Self {
            context,
            challenge,
            cookie_id,
            cookie_created,
            cookie_secret,
            uid,
        } = self;
        Some(CookieQuestion {
            challenge: CookieChallenge {
                context: CookieContext::new(&context)?,
                id: cookie_id.clone(),
                challenge,
            },
            cookie: Cookie {
                id: cookie_id,
                created: cookie_created,
                secret: cookie_secret,
            },
            uid,
        })
    }
}
