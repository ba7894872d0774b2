//! A carrier on which nobody has asked for anything yet, and what is done when somebody does.

use super::{Host, HostAction, Hosted, Identity, Stage, Trouble, timers::Who};
use crate::frame::{Decoder, Frame, Hello, Piece, Preamble, Reason, Resume};
use crate::limits::OPENING;
use crate::moment::Moment;
use crate::resume::{Binding, Nonce};
use crate::session::{Attempted, CarrierId};
use bytes::Bytes;
use std::time::Duration;

/// How long whoever has too many sessions should wait.
const COME_AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) who: Identity,
    pub(super) binding: Binding,
    pub(super) challenge: Option<Frame>,
    pub(super) until: Moment,
    decoder: Decoder,
}

impl Greeting {
    pub(super) fn new(who: Identity, binding: Binding, nonce: Option<Nonce>, until: Moment) -> Self {
        let challenge = nonce.map(|nonce| Frame::Challenge {
            preamble: Preamble::OURS,
            nonce,
        });
        Self {
            who,
            binding,
            challenge,
            until,
            decoder: Decoder::default(),
        }
    }

    /// The first frame, when it is whole. What is behind it stays in `bytes`.
    pub(super) fn read(&mut self, bytes: &mut Bytes) -> Result<Option<Frame>, Trouble> {
        match self.decoder.next(bytes)? {
            Some(Piece::Frame(frame)) => Ok(Some(frame)),
            Some(Piece::Data { .. }) => Err(Trouble::Place),
            None => Ok(None),
        }
    }
}

impl Host {
    pub(super) fn asked(&mut self, now: Moment, carrier: CarrierId, frame: Frame) {
        let Some(Stage::Greeting(greeting)) = self.carriers.get(&carrier) else {
            return;
        };
        let (who, binding) = (greeting.who.clone(), greeting.binding);
        let Some(preamble) = question(&frame) else {
            return self.turn_away(now, carrier, None, Trouble::Place);
        };
        if !preamble.understood() {
            let trouble = Trouble::Version {
                oldest: preamble.oldest,
                newest: preamble.newest,
            };
            let reason = Reason::Violation(crate::frame::Rule::Version);
            return self.turn_away(now, carrier, Some(Frame::Gone { reason, offset: 0 }), trouble);
        }
        if let Frame::Hello(hello) = &frame {
            self.asked_new(now, carrier, who, hello);
        } else if let Frame::Resume(resume) = &frame {
            self.asked_resume(now, carrier, who, binding, resume);
        }
    }

    fn asked_new(&mut self, now: Moment, carrier: CarrierId, who: Identity, hello: &Hello) {
        let has = self.per_identity.get(&who).copied().unwrap_or(0);
        if has >= self.config.sessions_per_identity || self.sessions.len() >= self.config.sessions {
            let frame = Frame::Retry {
                after: COME_AGAIN,
                address: String::new(),
            };
            return self.turn_away(now, carrier, Some(frame), Trouble::TooManySessions);
        }
        let terms = self.config.bounds.grant(&hello.wish);
        if hello.wish.credit == 0 {
            return self.turn_away(now, carrier, None, Trouble::Terms);
        }
        self.greetings -= 1;
        let until = now + OPENING;
        let stage = Stage::AskedNew {
            owner: who.clone(),
            credit: hello.wish.credit,
            terms,
        };
        self.carriers.insert(carrier, stage);
        self.timers.set(Who::Carrier(carrier), Some(until));
        self.actions.push_back(HostAction::AskNew { carrier, who, terms });
    }

    fn asked_resume(
        &mut self,
        now: Moment,
        carrier: CarrierId,
        who: Identity,
        binding: Binding,
        resume: &Resume,
    ) {
        let id = resume.session;
        match self.sessions.get(&id) {
            Some(Hosted { session, owner }) if *owner == who => {
                if !session
                    .secret()
                    .is_some_and(|secret| secret.signed_resume(&binding, resume))
                {
                    return self.turn_away(now, carrier, None, Trouble::BadMac);
                }
            }
            Some(_) | None => return self.not_here(now, carrier, &who, &binding, resume),
        }
        // From here on the carrier is the session's, or was never.
        self.greetings -= 1;
        self.carriers.insert(carrier, Stage::Attached(id));
        self.timers.set(Who::Carrier(carrier), None);
        match self.with(id, |session| session.take_over(now, carrier, binding, resume)) {
            Some(Attempted::Attached) => {
                self.actions.push_back(HostAction::AskResume {
                    carrier,
                    who,
                    session: id,
                    attempt: resume.attempt,
                });
            }
            Some(Attempted::Older) => {
                let frame = Frame::Retry {
                    after: Duration::ZERO,
                    address: String::new(),
                };
                self.trouble(carrier, Some(who), Trouble::OlderAttempt);
                self.leave(now, carrier, Some(frame));
            }
            Some(Attempted::Ended) | None => {}
        }
    }

    /// The session is over, or was never, or is not this peer's: only its owner, with its secret, learns which.
    fn not_here(
        &mut self,
        now: Moment,
        carrier: CarrierId,
        who: &Identity,
        binding: &Binding,
        resume: &Resume,
    ) {
        let grave = self.graves.get(&resume.session);
        let frame = match grave {
            Some(grave) if grave.owner == *who && grave.secret.signed_resume(binding, resume) => {
                Frame::Gone {
                    reason: grave.reason,
                    offset: grave.offset,
                }
            }
            Some(_) | None => Frame::Gone {
                reason: Reason::Unknown,
                offset: 0,
            },
        };
        self.turn_away(now, carrier, Some(frame), Trouble::Unknown);
    }

    pub(super) fn turn_away(
        &mut self,
        now: Moment,
        carrier: CarrierId,
        frame: Option<Frame>,
        trouble: Trouble,
    ) {
        let who = match self.carriers.get(&carrier) {
            Some(Stage::Greeting(greeting)) => Some(greeting.who.clone()),
            Some(Stage::AskedNew { owner, .. }) => Some(owner.clone()),
            Some(Stage::Attached(_) | Stage::Leaving { .. }) | None => None,
        };
        self.trouble(carrier, who, trouble);
        if frame.is_some() {
            self.leave(now, carrier, frame);
        } else {
            self.forget(carrier);
            self.actions.push_back(HostAction::Close {
                carrier,
                flush: false,
            });
        }
    }
}

/// What HELLO and RESUME begin with; no other frame may come first.
fn question(frame: &Frame) -> Option<Preamble> {
    if let Frame::Hello(hello) = frame {
        Some(hello.preamble)
    } else if let Frame::Resume(resume) = frame {
        Some(resume.preamble)
    } else {
        None
    }
}
