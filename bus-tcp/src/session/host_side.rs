//! What only a host's end of a session does. Who is on a carrier, and whose session it is, [`Host`](crate::host::Host) has
//! checked.

use super::{Action, CarrierId, Key, Phase, Reason, Role, Session};
use crate::frame::{Decoder, Frame, Preamble, Resume, Resumed, Welcome};
use crate::limits::{OPENING, Terms};
use crate::moment::Moment;
use crate::resume::{Binding, Mac, Secret, SessionId};

/// What the owner of a host makes up for a new session. Both from a secure source.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    /// Never used before.
    pub session: SessionId,
    /// Known to nobody.
    pub secret: Secret,
}

/// What became of a RESUME.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Attempted {
    /// The carrier is this session's now; it serves when the owner grants it.
    Attached,
    /// A newer one was here before.
    Older,
    /// The session is over: the peer has lost bytes that it had acknowledged, or never had.
    Ended,
}

impl Session {
    /// The host's end of a new session, which begins with WELCOME on this carrier. `terms` as granted, `credit` the
    /// client's.
    pub(crate) fn welcoming(
        now: Moment,
        carrier: CarrierId,
        grant: Grant,
        terms: Terms,
        credit: u32,
        incarnation: u64,
        seed: u64,
    ) -> Self {
        let key = Key {
            session: grant.session,
            secret: grant.secret,
        };
        let mut session = Self::new(Role::Host, Phase::Live { carrier }, Some(key), terms, now, seed);
        session.outgoing.credit = credit.into();
        session.due.opening = Some(Frame::Welcome(Box::new(Welcome {
            preamble: Preamble::OURS,
            session: grant.session,
            secret: grant.secret,
            terms,
            incarnation,
        })));
        session.actions.push_back(Action::Opened);
        session
    }

    /// Takes the carrier whose RESUME has been verified. From here on nothing that the one before had to say is heard: its
    /// unparsed bytes are dropped, and the offset stands still until it is in RESUMED.
    pub(crate) fn take_over(
        &mut self,
        now: Moment,
        carrier: CarrierId,
        binding: Binding,
        resume: &Resume,
    ) -> Attempted {
        if resume.attempt <= self.attempt {
            return Attempted::Older;
        }
        self.attempt = resume.attempt;
        if let Some(old) = self.carrier() {
            self.drop_carrier(now, old);
        }
        let Phase::Down { since } = self.phase else {
            return Attempted::Ended;
        };
        self.phase = Phase::Opening {
            carrier,
            since,
            until: now + OPENING,
            asked: now,
            binding: Some(binding),
        };
        let before = self.outgoing.sent;
        if let Err(reason) = self.outgoing.rewind(resume.received) {
            self.end_here(reason);
            return Attempted::Ended;
        }
        // Told when it serves.
        self.again = before.saturating_sub(resume.received);
        self.decoder = Decoder::default();
        Attempted::Attached
    }

    /// The owner has noted the attempt, and the identity is still welcome.
    pub(crate) fn resume_granted(&mut self, now: Moment, incarnation: u64) {
        let (
            Phase::Opening {
                carrier,
                binding: Some(binding),
                ..
            },
            Some(key),
        ) = (&self.phase, self.key)
        else {
            return;
        };
        let mut resumed = Resumed {
            preamble: Preamble::OURS,
            received: self.incoming.received,
            incarnation,
            mac: Mac([0; 32]),
        };
        key.secret.sign_resumed(binding, &mut resumed);
        let carrier = *carrier;
        self.due.opening = Some(Frame::Resumed(Box::new(resumed)));
        self.go_live(now, carrier, None);
        self.actions.push_back(Action::Resumed {
            again: std::mem::take(&mut self.again),
            fenced: false,
        });
    }

    /// The frame that ends the session for the other side, and where it goes.
    pub(crate) fn parting_frame(&mut self) -> Option<(CarrierId, Frame)> {
        let (carrier, reason) = (self.parting.take()?.0, self.final_reason()?);
        Some((
            carrier,
            Frame::Gone {
                reason,
                offset: self.final_offset(),
            },
        ))
    }

    pub(crate) const fn is_host(&self) -> bool {
        matches!(self.role, Role::Host)
    }

    pub(crate) fn secret(&self) -> Option<Secret> {
        self.key.map(|key| key.secret)
    }

    /// Where the other side's stream stands for good.
    pub(crate) const fn final_offset(&self) -> u64 {
        self.incoming.committed
    }

    pub(crate) fn final_reason(&self) -> Option<Reason> {
        self.ending().map(|ending| ending.reason)
    }
}
