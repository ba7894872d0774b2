//! What only a client does: it connects, asks, and knows how long it may rely on the session.

use super::{CarrierId, Key, Phase, Reason, Role, Session};
use crate::frame::{Frame, Hello, Preamble, Resume, Resumed, Rule, Welcome};
use crate::limits::{BACKOFF_FIRST, BACKOFF_LAST, LONGEST_RETRY, OPENING, Terms};
use crate::moment::Moment;
use crate::resume::{Binding, Mac};
use std::time::Duration;

/// What a client asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Wish {
    /// Times, and the credit that it gives.
    pub terms: Terms,
    /// Another number for each run of the program that has forgotten its sessions.
    pub incarnation: u64,
}

/// ```text
/// Waiting ──connect_at──▶ Dialing ──attach──▶ (Phase::Opening)
///    ▲                       │
///    └────connect_failed─────┘
/// ```
#[derive(Debug)]
enum Dial {
    /// Until then.
    Waiting {
        connect_at: Moment,
        address: Option<String>,
    },
    /// Somebody is at it, or there is a carrier.
    Dialing,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) wish: Wish,
    pub(super) host_incarnation: u64,
    dial: Dial,
    failures: u32,
    pub(super) fenced: bool,
    /// What the host asked for before the carrier went.
    retry: Option<(Duration, String)>,
}

impl Client {
    pub(super) fn new(wish: Wish, now: Moment) -> Self {
        Self {
            wish,
            host_incarnation: 0,
            dial: Dial::Waiting {
                connect_at: now,
                address: None,
            },
            failures: 0,
            fenced: false,
            retry: None,
        }
    }

    pub(super) fn connect_at(&self) -> Option<Moment> {
        match self.dial {
            Dial::Waiting { connect_at, .. } => Some(connect_at),
            Dial::Dialing => None,
        }
    }
}

impl Session {
    /// A client without a session. It asks for a carrier at once. `seed` spreads its timers, and need not be secret.
    ///
    /// # Panics
    /// If nobody could live under the terms that it wishes for.
    #[must_use]
    pub fn client(now: Moment, wish: Wish, seed: u64) -> Self {
        assert!(wish.terms.usable(), "{:?}", wish.terms);
        let role = Role::Client(Client::new(wish, now));
        Self::new(role, Phase::Down { since: now }, None, wish.terms, now, seed)
    }

    /// There is a carrier: connected, and encrypted if it ever will be. Without TLS the host's nonce is waited for.
    pub fn attach(&mut self, now: Moment, carrier: CarrierId, binding: Option<Binding>) {
        let (Phase::Down { since }, Role::Client(client)) = (&self.phase, &mut self.role) else {
            self.actions.push_back(super::Action::Close {
                carrier,
                flush: false,
            });
            return;
        };
        client.dial = Dial::Dialing;
        self.phase = Phase::Opening {
            carrier,
            since: *since,
            until: now + OPENING,
            asked: now,
            binding: None,
        };
        if let Some(binding) = binding {
            self.ask(now, binding);
        }
    }

    /// No carrier came of it.
    pub fn connect_failed(&mut self, now: Moment) {
        if matches!(self.phase, Phase::Down { .. }) {
            self.plan_connect(now);
        }
    }

    /// The network has changed: does not wait for the next attempt.
    pub fn connect_now(&mut self, now: Moment) {
        if let Role::Client(Client {
            dial: Dial::Waiting { connect_at, .. },
            ..
        }) = &mut self.role
        {
            *connect_at = now;
        }
    }

    /// Until when a client may act on what the session stands for: as long as the host cannot have given it up. None: it
    /// has no session.
    #[must_use]
    pub fn valid_until(&self) -> Option<Moment> {
        self.key.and_then(|_| self.lease.valid_until(&self.terms))
    }

    /// Whether others may already act in this client's place. Ask before each act.
    #[must_use]
    pub fn is_fenced(&self, now: Moment) -> bool {
        match &self.role {
            Role::Client(client) => client.fenced || self.valid_until().is_none_or(|until| now >= until),
            Role::Host => false,
        }
    }

    pub(super) fn fence_at(&self) -> Option<Moment> {
        match &self.role {
            Role::Client(client) if !client.fenced && self.ending().is_none() => self.valid_until(),
            Role::Client(_) | Role::Host => None,
        }
    }

    pub(super) fn tick_fence(&mut self, now: Moment) {
        if self.fence_at().is_some_and(|until| now >= until)
            && let Role::Client(client) = &mut self.role
        {
            client.fenced = true;
            self.actions.push_back(super::Action::Fenced);
        }
    }

    pub(super) fn tick_client(&mut self, now: Moment) {
        let Role::Client(client) = &mut self.role else {
            return;
        };
        if let Dial::Waiting { connect_at, address } = &mut client.dial
            && now >= *connect_at
        {
            let address = address.take();
            client.dial = Dial::Dialing;
            self.actions.push_back(super::Action::Connect { address });
        }
    }

    /// When to try again: full jitter, so that clients of a host that comes back do not all come at once.
    pub(super) fn plan_connect(&mut self, now: Moment) {
        let Role::Client(client) = &mut self.role else {
            return;
        };
        let bound = (BACKOFF_FIRST * (1 << client.failures.min(6))).min(BACKOFF_LAST);
        let mut wait = self.spread.up_to(bound);
        client.failures += 1;
        let mut address = None;
        if let Some((after, to)) = client.retry.take() {
            wait += after.min(LONGEST_RETRY);
            address = Some(to).filter(|to| !to.is_empty());
        }
        client.dial = Dial::Waiting {
            connect_at: now + wait,
            address,
        };
    }

    /// The host asks for another time, or another place.
    pub(super) fn retry(&mut self, now: Moment, after: Duration, address: String, carrier: CarrierId) {
        if let Role::Client(client) = &mut self.role {
            client.retry = Some((after, address));
        }
        self.drop_carrier(now, carrier);
    }

    /// The host will close this carrier, and wants to be left alone for a while.
    pub(super) fn detached(&mut self, after: Duration) {
        if let Role::Client(client) = &mut self.role {
            client.retry = Some((after, String::new()));
            client.failures = 0;
        }
    }

    /// Asks for a session, or for this one.
    pub(super) fn ask(&mut self, now: Moment, bound: Binding) {
        let (Phase::Opening { binding, asked, .. }, Role::Client(client)) = (&mut self.phase, &self.role)
        else {
            return;
        };
        (*binding, *asked) = (Some(bound), now);
        self.due.opening = Some(match self.key {
            None => Frame::Hello(Hello {
                preamble: Preamble::OURS,
                wish: client.wish.terms,
                incarnation: client.wish.incarnation,
            }),
            Some(key) => {
                self.attempt += 1;
                let mut resume = Resume {
                    preamble: Preamble::OURS,
                    session: key.session,
                    attempt: self.attempt,
                    received: self.incoming.received,
                    mac: Mac([0; 32]),
                };
                key.secret.sign_resume(&bound, &mut resume);
                Frame::Resume(Box::new(resume))
            }
        });
    }

    pub(super) fn welcomed(&mut self, now: Moment, welcome: &Welcome) -> Result<(), Reason> {
        let (
            Phase::Opening {
                carrier,
                asked,
                binding: Some(_),
                ..
            },
            None,
            Role::Client(client),
        ) = (&self.phase, self.key, &mut self.role)
        else {
            return Err(Reason::Violation(Rule::Place));
        };
        answered(welcome.preamble)?;
        if !welcome.terms.usable() {
            return Err(Reason::Violation(Rule::Terms));
        }
        let (carrier, asked) = (*carrier, *asked);
        client.host_incarnation = welcome.incarnation;
        client.failures = 0;
        self.key = Some(Key {
            session: welcome.session,
            secret: welcome.secret,
        });
        self.outgoing.credit = welcome.terms.credit.into();
        self.terms = Terms {
            credit: self.terms.credit,
            ..welcome.terms
        };
        self.go_live(now, carrier, Some(asked));
        self.actions.push_back(super::Action::Opened);
        Ok(())
    }

    pub(super) fn resumed(&mut self, now: Moment, resumed: &Resumed) -> Result<(), Reason> {
        let (
            Phase::Opening {
                carrier,
                asked,
                binding: Some(binding),
                ..
            },
            Some(key),
        ) = (&self.phase, self.key)
        else {
            return Err(Reason::Violation(Rule::Place));
        };
        let (carrier, asked) = (*carrier, *asked);
        if !key.secret.signed_resumed(binding, resumed) {
            // Whoever this is has not the secret; the host may still be somewhere.
            self.drop_carrier(now, carrier);
            return Ok(());
        }
        let before = self.outgoing.sent;
        if let Err(reason) = answered(resumed.preamble).and_then(|()| self.outgoing.rewind(resumed.received))
        {
            // Whoever this is has the secret.
            self.end_here(reason);
            return Ok(());
        }
        self.tick_fence(now);
        let Role::Client(client) = &mut self.role else {
            return Err(Reason::Violation(Rule::Place));
        };
        client.failures = 0;
        client.host_incarnation = resumed.incarnation;
        let fenced = std::mem::take(&mut client.fenced);
        let again = before.saturating_sub(resumed.received);
        self.go_live(now, carrier, Some(asked));
        self.actions.push_back(super::Action::Resumed { again, fenced });
        Ok(())
    }
}

/// An answer names one version, and no feature that was not offered.
fn answered(preamble: Preamble) -> Result<(), Reason> {
    let one = preamble.oldest == preamble.newest && preamble.understood();
    if one && preamble.features & !Preamble::OURS.features == 0 {
        Ok(())
    } else {
        Err(Reason::Violation(Rule::Version))
    }
}
