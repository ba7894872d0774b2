//! Peers who come in with a cookie (specification, "DBUS_COOKIE_SHA1"), and what an image says of them and of nonces.
//!
//! ```text
//! idle ──a peer says who it wants to be──> reading ──the errand ends: all who wait are asked──> idle
//!   ^                                                                                            |
//!   └── somebody waits again, and 100 ms have passed since the reading before began <────────────┘
//! ```
//! The cookie is the bus's own user's, so that there is one keyring to read, and one reading answers everybody: whoever
//! connects again and again costs the machine no more than that.

use std::collections::VecDeque;

use bus_wire::sasl::cookie::{CookieChallenge, CookieContext};
use bus_wire::{CookieQuestion, SaslServer, SaslStage, SaslState};
use bytes::Bytes;

use super::connect::Fed;
use super::deadline::Deadline;
use super::errand::{Errand, Keys};
use super::event::{Fds, Millis, PeerId};
use super::frozen::{AdmissionsV1, SaslV2, is_expressed, nonce};
use super::peer::Phase;
use super::{Action, Broker, Identity, System};

/// Milliseconds from the beginning of one reading to that of the next, at least.
const PAUSE: u64 = 100;

/// Peers that one reading answers: the others wait for the next, so that no event is long.
const AT_ONCE: usize = 256;

/// The keyring's file for buses that are for nobody in particular, as the reference implementation calls it.
pub(crate) const CONTEXT: &str = "org_freedesktop_general";

/// Who waits for a cookie.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Keyring {
    /// Peers whose exchanges cannot go on, each once, in the order of their questions.
    waiting: VecDeque<PeerId>,
    /// The errand that reads it now.
    reading: Option<u64>,
    /// When the newest reading began.
    last: Option<Millis>,
}

impl Keyring {
    /// When the next reading is to begin, if none is under way.
    pub(super) fn due(&self) -> Option<Millis> {
        let is_wanted = self.reading.is_none() && !self.waiting.is_empty();
        let after = |last: Millis| Millis(last.0.saturating_add(PAUSE));
        is_wanted.then(|| self.last.map_or(Millis(0), after))
    }

    /// The errand under way.
    pub(super) fn reading(&self) -> Option<u64> {
        self.reading
    }
}

impl Broker {
    /// A peer's exchange may have come to where a cookie is to be looked up.
    pub(super) fn look_for_cookie(&mut self, id: PeerId, system: &mut dyn System) {
        let Some(Phase::Authenticating(sasl)) = self.roster.get(id).map(|peer| &peer.phase) else {
            return;
        };
        let Some(user) = sasl.wanted_cookie() else { return };
        let is_other = number(user).is_some_and(|uid| uid != self.identity.own_uid);
        if is_other {
            // The bus has no keyring of other users.
            return self.give_cookie(id, None, system);
        }
        self.change_keyring(|keyring| keyring.waiting.push_back(id));
        self.read_keyring();
    }

    /// The peer waits no more.
    pub(super) fn forget_cookie(&mut self, id: PeerId) {
        if self.keyring.waiting.contains(&id) {
            self.change_keyring(|keyring| keyring.waiting.retain(|waiting| *waiting != id));
        }
    }

    /// The deadline of the next reading may be another.
    fn change_keyring<T>(&mut self, change: impl FnOnce(&mut Keyring) -> T) -> T {
        let before = self.keyring.due();
        let result = change(&mut self.keyring);
        self.deadlines
            .change(Deadline::Keyring, before, self.keyring.due());
        result
    }

    /// Begins to read the keyring, if it is time.
    pub(super) fn read_keyring(&mut self) {
        let now = self.deadlines.now();
        if self.keyring.due().is_none_or(|due| due > now) {
            return;
        }
        let errand = self.next_errand;
        self.next_errand += 1;
        self.change_keyring(|keyring| {
            keyring.reading = Some(errand);
            keyring.last = Some(now);
        });
        self.outgoing.ask(Action::RunErrand {
            id: errand,
            errand: Errand::ReadKeyring,
        });
    }

    /// Whether this errand is the reading under way.
    pub(super) fn is_keyring(&self, errand: u64) -> bool {
        self.keyring.reading == Some(errand)
    }

    /// The keyring has been read: those who wait are asked, or rejected.
    pub(super) fn keyring_read(&mut self, keys: Result<Keys, String>, system: &mut dyn System) {
        let waiting: Vec<PeerId> = self.change_keyring(|keyring| {
            keyring.reading = None;
            let most = keyring.waiting.len().min(AT_ONCE);
            keyring.waiting.drain(..most).collect()
        });
        if let Err(reason) = &keys {
            self.warn(None, format!("DBUS_COOKIE_SHA1 lets nobody in: {reason}"));
        }
        for id in waiting {
            let question = keys.as_ref().ok().and_then(|keys| self.question(id, keys));
            self.give_cookie(id, question, system);
        }
        self.read_keyring();
    }

    /// What a peer is asked to prove; `None` where it wants to be somebody else than the keyring's user.
    fn question(&self, id: PeerId, keys: &Keys) -> Option<Box<CookieQuestion>> {
        let Phase::Authenticating(sasl) = &self.roster.get(id)?.phase else {
            return None;
        };
        let uid = self.identity.own_uid;
        let user = sasl.wanted_cookie()?;
        let is_own = number(user) == Some(uid) || (!user.is_empty() && user == keys.user.as_bytes());
        let context = CookieContext::new(CONTEXT)?;
        is_own.then(|| {
            Box::new(CookieQuestion {
                challenge: CookieChallenge::derived(context, &keys.cookie, &keys.seed, id.to_u64()),
                cookie: keys.cookie.clone(),
                uid,
            })
        })
    }

    fn give_cookie(&mut self, id: PeerId, question: Option<Box<CookieQuestion>>, system: &mut dyn System) {
        let Some(Phase::Authenticating(sasl)) = self.roster.get_mut(id).map(|peer| &mut peer.phase) else {
            return;
        };
        let mut answer = Vec::new();
        let given = sasl.give_cookie(question, &mut answer);
        let (step, held) = match given {
            Ok((step, held)) => (Ok(step), held),
            Err(error) => (Err(error), Vec::new()),
        };
        let fed = Fed {
            step,
            data: Bytes::from(held),
            fds: Fds::new(),
            has_asked: false,
        };
        self.answer_authentication(id, &answer);
        self.authenticated(id, fed, system);
    }

    /// What an image says besides the records of the bus and its peers.
    pub fn save_admissions(&self) -> AdmissionsV1 {
        let Self {
            identity: Identity { listeners, .. },
            keyring:
                Keyring {
                    waiting,
                    reading,
                    last,
                },
            ..
        } = self;
        let nonces = (0..).zip(listeners).filter_map(|(index, listener)| {
            let nonce = listener.nonce.as_ref()?;
            Some((index, super::Blob(Bytes::copy_from_slice(nonce))))
        });
        let mut exchanges = Vec::new();
        if self.roster.incomplete() > 0 {
            for peer in self.roster.iter() {
                if let Phase::Authenticating(sasl) = &peer.phase
                    && !is_expressed(sasl)
                {
                    exchanges.push((peer.id, SaslV2::from(&**sasl)));
                }
            }
        }
        AdmissionsV1 {
            nonces: nonces.collect(),
            exchanges,
            waiting: waiting.iter().copied().collect(),
            reading: *reading,
            last: *last,
        }
    }

    /// Goes on with what [`save_admissions`](Self::save_admissions) gave. An exchange that makes no sense is over.
    pub fn resume_admissions(&mut self, admissions: AdmissionsV1) {
        let AdmissionsV1 {
            nonces,
            exchanges,
            waiting,
            reading,
            last,
        } = admissions;
        for (index, blob) in nonces {
            if let Some(listener) = self.identity.listeners.get_mut(index as usize) {
                listener.nonce = nonce(&blob);
            }
        }
        for (id, exchange) in exchanges {
            let Some(peer) = self.roster.at_mut(id.index).filter(|peer| peer.id == id) else {
                continue;
            };
            let Phase::Authenticating(sasl) = &mut peer.phase else {
                continue;
            };
            **sasl = exchange.into_server().unwrap_or_else(|| over(sasl));
            self.ledger.settle(peer);
        }
        let now = self.deadlines.now();
        for id in waiting {
            let peer = self.roster.get(id).map(|peer| &peer.phase);
            let is_waiting =
                matches!(peer, Some(Phase::Authenticating(sasl)) if sasl.wanted_cookie().is_some());
            if is_waiting && !self.keyring.waiting.contains(&id) {
                self.keyring.waiting.push_back(id);
            }
        }
        // Errands have numbers that the bus has given out.
        self.keyring.reading = reading.filter(|errand| *errand < self.next_errand);
        self.keyring.last = last.map(|last| last.min(now));
        self.deadlines.change(Deadline::Keyring, None, self.keyring.due());
    }
}

/// The same exchange, of which nothing comes any more.
fn over(sasl: &SaslServer) -> SaslServer {
    SaslServer::restore(SaslState {
        stage: SaslStage::Over,
        ..sasl.save()
    })
}

/// A user by its number.
fn number(user: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(user).ok()?;
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}
