//! A host as it is written down.

use super::{Grave, Host, HostConfig, Hosted, Identity};
use crate::moment::Moment;
use crate::resume::SessionId;
use crate::session::{BadState, SavedSession, Session};
use serde::{Deserialize, Serialize};

/// All sessions of a host, and all that is kept of those that are over. Carriers are not in it: each client resumes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SavedHost {
    incarnation: u64,
    sessions: Vec<(String, SavedSession)>,
    graves: Vec<(SessionId, Grave)>,
}

impl Host {
    /// What to write down.
    #[must_use]
    pub fn save(&self) -> SavedHost {
        SavedHost {
            incarnation: self.config.incarnation,
            sessions: self
                .sessions
                .values()
                .map(|Hosted { session, owner }| (owner.to_string(), session.save()))
                .collect(),
            graves: self
                .graves
                .iter()
                .map(|(id, grave)| (id, grave.clone()))
                .collect(),
        }
    }

    /// Goes on from what was written down: all sessions count as parked since `now`, when this host serves again. The
    /// incarnation is the saved one.
    ///
    /// # Errors
    /// A session contradicts itself.
    pub fn restore(saved: &SavedHost, config: HostConfig, now: Moment, seed: u64) -> Result<Self, BadState> {
        let mut host = Self::new(
            HostConfig {
                incarnation: saved.incarnation,
                ..config
            },
            seed,
        );
        for (owner, session) in &saved.sessions {
            let seed = host.spread.next();
            let session = Session::restore(session, now, seed)?;
            let id = session.id().ok_or(BadState)?;
            if !session.is_host() || session.ending().is_some() {
                return Err(BadState);
            }
            let owner: Identity = owner.as_str().into();
            *host.per_identity.entry(owner.clone()).or_default() += 1;
            if host.sessions.insert(id, Hosted { session, owner }).is_some() {
                return Err(BadState);
            }
            host.with(id, |_| {});
        }
        for (id, grave) in &saved.graves {
            host.graves.add(now, *id, grave.clone());
        }
        Ok(host)
    }
}

/// Shared text as plain text.
pub(super) mod text {
    use super::Identity;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::host) fn serialize<S: Serializer>(text: &Identity, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(text)
    }

    pub(in crate::host) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Identity, D::Error> {
        String::deserialize(from).map(Into::into)
    }
}
