//! All sessions of one host: who may have which, and whose carrier is whose.
//!
//! A plain value like [`Session`]. Whoever owns it says who is on a carrier (from TLS, from SO_PEERCRED, from the listener's
//! configuration), makes up identifiers and secrets, and grants each session and each resumption when *its* journal has
//! noted it: WELCOME and RESUMED leave after that.

mod action;
mod graves;
mod greeting;
mod saved;
#[cfg(test)]
mod tests;
mod timers;

pub use action::{HostAction, Trouble};
pub use graves::Grave;
pub use saved::SavedHost;

use crate::frame::{Frame, Reason};
use crate::limits::{Bounds, OPENING, SESSIONS_PER_IDENTITY};
use crate::moment::Moment;
use crate::random::Spread;
use crate::resume::{Binding, Nonce, SessionId};
use crate::session::{Action, CarrierId, Grant, Session, Transmit};
use bytes::Bytes;
use graves::Graves;
use greeting::Greeting;
use std::collections::{BTreeMap, VecDeque};
use timers::{Timers, Who};

/// What a host grants, and to how many.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Times and credit.
    pub bounds: Bounds,
    /// Sessions of one identity.
    pub sessions_per_identity: usize,
    /// Sessions in all.
    pub sessions: usize,
    /// Carriers on which nobody has asked for anything yet.
    pub greetings: usize,
    /// Another number for each run that has forgotten its sessions.
    pub incarnation: u64,
}

impl HostConfig {
    /// The usual limits.
    #[must_use]
    pub fn new(incarnation: u64) -> Self {
        Self {
            bounds: Bounds::default(),
            sessions_per_identity: SESSIONS_PER_IDENTITY,
            sessions: 65_536,
            greetings: 1024,
            incarnation,
        }
    }
}

/// Who is on a carrier, as text: `spki-sha256:HEX`, `san:URI`, `uid:N`, whatever the owner can tell apart.
pub type Identity = std::sync::Arc<str>;

/// All sessions of a host.
#[derive(Debug)]
pub struct Host {
    config: HostConfig,
    carriers: BTreeMap<CarrierId, Stage>,
    sessions: BTreeMap<SessionId, Hosted>,
    per_identity: BTreeMap<Identity, usize>,
    graves: Graves,
    timers: Timers,
    actions: VecDeque<HostAction>,
    spread: Spread,
    greetings: usize,
    /// The latest time that was told.
    now: Moment,
}

#[derive(Debug)]
struct Hosted {
    session: Session,
    owner: Identity,
}

/// ```text
///             HELLO                 grant
///          ┌────────▶ AskedNew ─────────────┐
/// Greeting ┤                                ▼
///          └────────▶ Attached (the session knows whether the resumption is granted)
///             RESUME
///   each ── refused, too late, no frame ──▶ Leaving ──▶ gone
/// ```
#[derive(Debug)]
enum Stage {
    /// Nobody has asked for anything.
    Greeting(Box<Greeting>),
    /// The owner is asked whether there may be a new session.
    AskedNew {
        owner: Identity,
        credit: u32,
        terms: crate::limits::Terms,
    },
    /// A session's.
    Attached(SessionId),
    /// Gets one last frame.
    Leaving { frame: Option<Frame> },
}

impl Host {
    /// A host without sessions. `seed` spreads timers, and need not be secret.
    #[must_use]
    pub fn new(config: HostConfig, seed: u64) -> Self {
        Self {
            config,
            carriers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            per_identity: BTreeMap::new(),
            graves: Graves::default(),
            timers: Timers::default(),
            actions: VecDeque::new(),
            spread: Spread::new(seed),
            greetings: 0,
            now: Moment::default(),
        }
    }

    /// `who` is on a carrier whose TLS connection exports `binding`.
    pub fn accepted(&mut self, now: Moment, carrier: CarrierId, who: Identity, binding: Binding) {
        self.greet(now, carrier, Greeting::new(who, binding, None, now + OPENING));
    }

    /// `who` is on a carrier without TLS. `nonce` is from a secure source, and used once.
    pub fn accepted_plain(&mut self, now: Moment, carrier: CarrierId, who: Identity, nonce: Nonce) {
        self.greet(
            now,
            carrier,
            Greeting::new(who, Binding(nonce.0), Some(nonce), now + OPENING),
        );
    }

    fn greet(&mut self, now: Moment, carrier: CarrierId, greeting: Greeting) {
        if self.greetings >= self.config.greetings {
            self.trouble(carrier, Some(greeting.who), Trouble::TooManyGreetings);
            self.actions.push_back(HostAction::Close {
                carrier,
                flush: false,
            });
            return;
        }
        self.greetings += 1;
        self.timers.set(Who::Carrier(carrier), Some(greeting.until));
        self.carriers.insert(carrier, Stage::Greeting(Box::new(greeting)));
        self.now = self.now.max(now);
    }

    /// These bytes came on this carrier.
    pub fn received(&mut self, now: Moment, carrier: CarrierId, mut bytes: Bytes) {
        self.now = self.now.max(now);
        if let Some(Stage::Greeting(greeting)) = self.carriers.get_mut(&carrier) {
            match greeting.read(&mut bytes) {
                Ok(None) => return,
                Ok(Some(frame)) => self.asked(now, carrier, frame),
                Err(trouble) => self.turn_away(now, carrier, None, trouble),
            }
        }
        if let Some(&Stage::Attached(id)) = self.carriers.get(&carrier) {
            self.with(id, |session| session.received(now, carrier, bytes));
        }
    }

    /// The carrier is lost.
    pub fn carrier_lost(&mut self, now: Moment, carrier: CarrierId) {
        if let Some(&Stage::Attached(id)) = self.carriers.get(&carrier) {
            self.with(id, |session| session.carrier_lost(now, carrier));
        }
        self.forget(carrier);
    }

    /// Answers [`HostAction::AskNew`]: there is a session from here on, and WELCOME goes. Its owner has noted it before.
    pub fn grant(&mut self, now: Moment, carrier: CarrierId, grant: Grant) {
        let Some(Stage::AskedNew {
            owner, credit, terms, ..
        }) = self.carriers.get(&carrier)
        else {
            return;
        };
        let (owner, credit, terms) = (owner.clone(), *credit, *terms);
        let seed = self.spread.next();
        let session = Session::welcoming(now, carrier, grant, terms, credit, self.config.incarnation, seed);
        *self.per_identity.entry(owner.clone()).or_default() += 1;
        self.sessions.insert(grant.session, Hosted { session, owner });
        self.carriers.insert(carrier, Stage::Attached(grant.session));
        self.timers.set(Who::Carrier(carrier), None);
        self.with(grant.session, |_| {});
    }

    /// Answers [`HostAction::AskResume`]: the session serves again, and RESUMED goes. Its owner has noted the attempt before.
    pub fn grant_resume(&mut self, now: Moment, carrier: CarrierId) {
        if let Some(&Stage::Attached(id)) = self.carriers.get(&carrier) {
            let incarnation = self.config.incarnation;
            self.with(id, |session| {
                if session.carrier() == Some(carrier) {
                    session.resume_granted(now, incarnation);
                }
            });
        }
    }

    /// Answers either question: not for this identity. A session that was to be resumed is over.
    pub fn refuse(&mut self, now: Moment, carrier: CarrierId) {
        match self.carriers.get(&carrier) {
            Some(Stage::AskedNew { .. }) => {
                let frame = Frame::Gone {
                    reason: Reason::Refused,
                    offset: 0,
                };
                self.leave(now, carrier, Some(frame));
            }
            Some(&Stage::Attached(id)) => self.abort(id, Reason::Refused),
            Some(Stage::Greeting(_) | Stage::Leaving { .. }) | None => {}
        }
    }

    /// Ends a session: its identity is removed, its bytes are too many.
    pub fn abort(&mut self, id: SessionId, reason: Reason) {
        self.with(id, |session| session.abort(reason));
    }

    /// Ends all sessions whose identity is not welcome any more.
    pub fn expel(&mut self, mut welcome: impl FnMut(&Identity) -> bool) {
        let gone: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, hosted)| !welcome(&hosted.owner))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.abort(id, Reason::Refused);
        }
    }

    /// The sessions that there are.
    pub fn sessions(&self) -> impl Iterator<Item = (&Session, &Identity)> {
        self.sessions
            .values()
            .map(|hosted| (&hosted.session, &hosted.owner))
    }

    /// One of them.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id).map(|hosted| &hosted.session)
    }

    /// This side's stream of a session has bytes up to `end`.
    pub fn produced(&mut self, id: SessionId, end: u64) {
        self.with(id, |session| session.produced(end));
    }

    /// Bytes that came on a session are safe up to `upto`.
    pub fn committed(&mut self, now: Moment, id: SessionId, upto: u64) {
        self.with(id, |session| session.committed(now, upto));
    }

    /// This side's stream of a session ends.
    pub fn finish(&mut self, id: SessionId) {
        self.with(id, Session::finish);
    }

    /// This host goes away, and is back after so long: tells all clients. They are spread over `after`.
    pub fn detach_all(&mut self, after: std::time::Duration) {
        let ids: Vec<_> = self.sessions.keys().copied().collect();
        for id in ids {
            let after = self.spread.up_to(after);
            self.with(id, |session| session.detach(after));
        }
    }

    /// The carrier can take more: what to write on it.
    pub fn transmit(&mut self, now: Moment, carrier: CarrierId) -> Option<Transmit> {
        match self.carriers.get_mut(&carrier)? {
            Stage::Greeting(greeting) => greeting
                .challenge
                .take()
                .map(|frame| Transmit::Control(frame.to_vec())),
            Stage::AskedNew { .. } => None,
            &mut Stage::Attached(id) => self.with(id, |session| session.transmit(now, carrier))?,
            Stage::Leaving { frame, .. } => {
                let frame = frame.take();
                self.actions.push_back(HostAction::Close { carrier, flush: true });
                self.forget(carrier);
                frame.map(|frame| Transmit::Control(frame.to_vec()))
            }
        }
    }

    /// Time has passed. Whatever can be read should have been, so that no lease ends whose resumption is here.
    pub fn tick(&mut self, now: Moment) {
        self.now = self.now.max(now);
        while let Some(who) = self.timers.due(now) {
            match who {
                Who::Session(id) => {
                    self.with(id, |session| session.tick(now));
                    if self
                        .sessions
                        .get(&id)
                        .is_some_and(|hosted| hosted.session.is_live())
                    {
                        self.actions.push_back(HostAction::Writable { session: id });
                    }
                }
                Who::Carrier(carrier) => match self.carriers.get(&carrier) {
                    Some(Stage::Greeting(_) | Stage::AskedNew { .. }) => {
                        self.turn_away(now, carrier, None, Trouble::TooSlow);
                    }
                    Some(Stage::Leaving { .. }) => {
                        self.actions.push_back(HostAction::Close {
                            carrier,
                            flush: false,
                        });
                        self.forget(carrier);
                    }
                    Some(Stage::Attached(_)) | None => self.timers.set(who, None),
                },
            }
        }
        self.graves.expire(now);
    }

    /// When [`tick`](Self::tick) has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Moment> {
        [self.timers.next(), self.graves.next()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next thing to do.
    pub fn action(&mut self) -> Option<HostAction> {
        self.actions.pop_front()
    }

    /// Sessions that are over, and are remembered for clients that ask.
    #[must_use]
    pub fn graves(&self) -> usize {
        self.graves.len()
    }

    /// Carriers on which nobody has asked for anything.
    #[must_use]
    pub const fn greetings(&self) -> usize {
        self.greetings
    }

    /// Lets a session do something, and carries on what comes of it.
    fn with<T>(&mut self, id: SessionId, act: impl FnOnce(&mut Session) -> T) -> Option<T> {
        let hosted = self.sessions.get_mut(&id)?;
        let done = act(&mut hosted.session);
        let mut over = None;
        while let Some(action) = hosted.session.action() {
            match action {
                Action::Close { carrier, flush } => {
                    self.carriers.remove(&carrier);
                    self.actions.push_back(HostAction::Close { carrier, flush });
                }
                Action::Ended(ending) => {
                    over = Some(ending);
                    self.actions
                        .push_back(HostAction::Session { session: id, action });
                }
                Action::Connect { .. }
                | Action::Deliver { .. }
                | Action::Finished { .. }
                | Action::Acked { .. }
                | Action::Opened
                | Action::Parked { .. }
                | Action::Resumed { .. }
                | Action::Fenced => self
                    .actions
                    .push_back(HostAction::Session { session: id, action }),
            }
        }
        self.timers.set(Who::Session(id), hosted.session.deadline());
        if over.is_some() {
            self.bury(id);
        }
        Some(done)
    }

    /// Keeps of a session that is over what its client may ask for. Its parting word is left on the carrier.
    fn bury(&mut self, id: SessionId) {
        let Some(Hosted { mut session, owner }) = self.sessions.remove(&id) else {
            return;
        };
        self.timers.set(Who::Session(id), None);
        if let Some(count) = self.per_identity.get_mut(&owner) {
            *count -= 1;
            if *count == 0 {
                self.per_identity.remove(&owner);
            }
        }
        if let (Some(secret), Some(reason)) = (session.secret(), session.final_reason()) {
            let grave = Grave {
                owner,
                secret,
                reason,
                offset: session.final_offset(),
            };
            self.actions.push_back(HostAction::Buried { session: id });
            self.graves.add(self.now, id, grave);
        }
        if let Some((carrier, frame)) = session.parting_frame() {
            self.leave(self.now, carrier, Some(frame));
        }
    }

    /// One last frame, then the carrier closes.
    fn leave(&mut self, now: Moment, carrier: CarrierId, frame: Option<Frame>) {
        self.forget(carrier);
        self.timers.set(Who::Carrier(carrier), Some(now + OPENING));
        self.carriers.insert(carrier, Stage::Leaving { frame });
        self.actions.push_back(HostAction::WritableCarrier { carrier });
    }

    fn forget(&mut self, carrier: CarrierId) {
        if let Some(Stage::Greeting(_)) = self.carriers.remove(&carrier) {
            self.greetings -= 1;
        }
        self.timers.set(Who::Carrier(carrier), None);
    }

    fn trouble(&mut self, carrier: CarrierId, who: Option<Identity>, trouble: Trouble) {
        self.actions.push_back(HostAction::Trouble {
            carrier,
            who,
            trouble,
        });
    }
}
