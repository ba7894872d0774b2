//! A session as it is written down, in a form of its own that later versions still read.

use super::client::{Client, Wish};
use super::incoming::Incoming;
use super::outgoing::{Outgoing, StreamEnd};
use super::{Ending, Key, Phase, Role, Session};
use crate::limits::{MAX_DATA, Terms};
use crate::moment::Moment;
use serde::{Deserialize, Serialize};

/// Attempts that a client may have made since it was saved.
const ATTEMPTS_SINCE: u64 = 1 << 20;

/// A session without its carrier and without its bytes: what has to be known to go on with it, in this process or another.
/// The bytes from what is acknowledged to the end of this side's stream belong to it, and are saved by whoever has them;
/// bytes that came and are not committed will come again.
///
/// Save *after* what a commit stands for is safe, and before the acknowledgement leaves.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SavedSession {
    role: SavedRole,
    key: Option<Key>,
    attempt: u64,
    terms: Terms,
    incoming: SavedIncoming,
    outgoing: SavedOutgoing,
    ended: Option<Ending>,
    record: u32,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
enum SavedRole {
    Host,
    Client {
        wish: Terms,
        incarnation: u64,
        host_incarnation: u64,
    },
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct SavedIncoming {
    committed: u64,
    acked: u64,
    credit: u64,
    window: u32,
    end: Option<u64>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct SavedOutgoing {
    acked: u64,
    end: u64,
    credit: u64,
    ending: StreamEnd,
    confirms: bool,
}

impl Session {
    /// What to write down.
    #[must_use]
    pub fn save(&self) -> SavedSession {
        let Self {
            role,
            phase,
            key,
            attempt,
            terms,
            incoming,
            outgoing,
            // A carrier's, and gone with it.
            lease: _,
            decoder: _,
            due: _,
            parting: _,
            again: _,
            // Of what was not done nothing is committed.
            actions: _,
            spread: _,
            record,
        } = self;
        let Incoming {
            received: _,
            committed,
            acked,
            credit,
            window,
            end,
            end_told: _,
            ..
        } = incoming;
        let Outgoing {
            acked: taken,
            sent: _,
            high: _,
            end: produced,
            credit: given,
            ending,
            bye_due: _,
            confirms,
        } = outgoing;
        SavedSession {
            role: match role {
                Role::Host => SavedRole::Host,
                Role::Client(client) => SavedRole::Client {
                    wish: client.wish.terms,
                    incarnation: client.wish.incarnation,
                    host_incarnation: client.host_incarnation,
                },
            },
            key: *key,
            attempt: *attempt,
            terms: *terms,
            incoming: SavedIncoming {
                committed: *committed,
                acked: *acked,
                credit: *credit,
                window: *window,
                // A BYE before which something is missing comes again.
                end: end.filter(|end| end == committed),
            },
            outgoing: SavedOutgoing {
                acked: *taken,
                end: *produced,
                credit: *given,
                ending: *ending,
                confirms: *confirms,
            },
            ended: match phase {
                Phase::Ended(ending) => Some(*ending),
                Phase::Down { .. } | Phase::Opening { .. } | Phase::Live { .. } => None,
            },
            record: u32::try_from(*record).unwrap_or(u32::MAX),
        }
    }

    /// Goes on from what was written down: parked since now, whatever it was then.
    ///
    /// # Errors
    /// The offsets contradict each other.
    pub fn restore(saved: &SavedSession, now: Moment, seed: u64) -> Result<Self, BadState> {
        let SavedSession {
            role,
            key,
            attempt,
            terms,
            incoming,
            outgoing,
            ended,
            record,
        } = saved.clone();
        let in_order = incoming.acked <= incoming.committed
            && incoming.committed <= incoming.credit
            && outgoing.acked <= outgoing.end
            && incoming.end.is_none_or(|end| end == incoming.committed)
            && terms.usable();
        let (role, attempt) = match role {
            SavedRole::Host if key.is_some() => (Role::Host, attempt),
            SavedRole::Client {
                wish,
                incarnation,
                host_incarnation,
            } if wish.usable() => {
                let mut client = Client::new(
                    Wish {
                        terms: wish,
                        incarnation,
                    },
                    now,
                );
                client.host_incarnation = host_incarnation;
                // What was proven before was proven by another clock.
                client.fenced = true;
                (Role::Client(client), attempt.saturating_add(ATTEMPTS_SINCE))
            }
            SavedRole::Host | SavedRole::Client { .. } => return Err(BadState),
        };
        if !in_order {
            return Err(BadState);
        }
        let phase = ended.map_or(Phase::Down { since: now }, Phase::Ended);
        let mut session = Self::new(role, phase, key, terms, now, seed);
        session.attempt = attempt;
        session.record = (record as usize).clamp(1, MAX_DATA);
        session.incoming = Incoming {
            received: incoming.committed,
            committed: incoming.committed,
            acked: incoming.acked,
            // The acknowledgement of what is committed leaves after that is saved, and may have left.
            credit: incoming
                .credit
                .max(incoming.committed.saturating_add(incoming.window.into())),
            end: incoming.end,
            end_told: incoming.end.is_some(),
            ..Incoming::new(incoming.window)
        };
        session.outgoing = Outgoing {
            acked: outgoing.acked,
            sent: outgoing.acked,
            // All that there is may have been sent since.
            high: outgoing.end,
            end: outgoing.end,
            credit: outgoing.credit,
            ending: outgoing.ending,
            bye_due: false,
            confirms: outgoing.confirms,
        };
        if let Some(offset) = incoming.end {
            session.actions.push_back(super::Action::Finished { offset });
        }
        Ok(session)
    }
}

/// Saved state that no session can have had. Whoever kept it is at fault.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the saved session contradicts itself")]
pub struct BadState;
