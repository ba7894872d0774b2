//! A session: two byte streams with absolute offsets, over one carrier after the other.
//!
//! A plain value. Whoever owns it tells it what happened, with the time; it answers with [`Action`]s, and with what to
//! write ([`Session::transmit`]). It has no bytes of its own stream: their owner keeps them from what is acknowledged on
//! ([`Action::Acked`]) to the end ([`Session::produced`]), in whatever it likes; [`Replay`](crate::replay::Replay) is one
//! such thing.

mod action;
mod client;
mod host_side;
mod incoming;
mod input;
mod outgoing;
mod saved;
#[cfg(test)]
mod tests;

pub use action::{Action, CarrierId, Ending, Side, Transmit};
pub use client::Wish;
pub(crate) use host_side::Attempted;
pub use host_side::Grant;
pub use saved::{BadState, SavedSession};

use crate::frame::{Decoder, Frame, Reason, data_header};
use crate::lease::{Lease, host_term};
use crate::limits::{MAX_DATA, Terms};
use crate::moment::Moment;
use crate::random::Spread;
use crate::resume::{Binding, Secret, SessionId};
use client::Client;
use incoming::Incoming;
use outgoing::Outgoing;
use std::collections::VecDeque;

/// One end of a session.
#[derive(Debug)]
pub struct Session {
    role: Role,
    phase: Phase,
    /// None: a client that has not been welcomed.
    key: Option<Key>,
    /// Of the newest RESUME.
    attempt: u64,
    terms: Terms,
    incoming: Incoming,
    outgoing: Outgoing,
    lease: Lease,
    /// Where in a frame this carrier's input stands.
    decoder: Decoder,
    due: Due,
    parting: Option<(CarrierId, Vec<u8>)>,
    /// Bytes that the newest carrier has to send again.
    again: u64,
    actions: VecDeque<Action>,
    spread: Spread,
    /// Most bytes in one DATA frame.
    record: usize,
}

#[derive(Debug)]
enum Role {
    Client(Client),
    Host,
}

/// What names a session, and what proves that a carrier belongs to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub(crate) struct Key {
    pub(crate) session: SessionId,
    pub(crate) secret: Secret,
}

/// ```text
///            a carrier, and who is on it               WELCOME, RESUMED
///  Down ────────────────────────────────▶ Opening ────────────────────▶ Live
///   ▲                                       │  ▲                          │ │
///   └───────────────────────────────────────┘  └── RESUME on another ─────┘ │
///   └────────────────── the carrier is lost ────────────────────────────────┘
///  each ── GONE, a rule broken, the window over, both BYEs ──▶ Ended
/// ```
#[derive(Debug)]
enum Phase {
    /// There is no carrier.
    Down { since: Moment },
    /// There is one, but not yet an answer on it.
    Opening {
        carrier: CarrierId,
        since: Moment,
        until: Moment,
        asked: Moment,
        binding: Option<Binding>,
    },
    /// Bytes flow.
    Live { carrier: CarrierId },
    /// No more bytes, ever.
    Ended(Ending),
}

/// What has to be written before anything of the stream.
#[derive(Debug, Default)]
struct Due {
    opening: Option<Frame>,
    pong: Option<u64>,
    detach: Option<Frame>,
}

impl Session {
    fn new(role: Role, phase: Phase, key: Option<Key>, terms: Terms, now: Moment, seed: u64) -> Self {
        Self {
            role,
            phase,
            key,
            attempt: 0,
            terms,
            incoming: Incoming::new(terms.credit),
            outgoing: Outgoing::new(0),
            lease: Lease::new(now),
            decoder: Decoder::default(),
            due: Due::default(),
            parting: None,
            again: 0,
            actions: VecDeque::new(),
            spread: Spread::new(seed),
            record: MAX_DATA,
        }
    }

    /// Its name. None: a client that has not been welcomed.
    #[must_use]
    pub fn id(&self) -> Option<SessionId> {
        self.key.map(|key| key.session)
    }

    /// What holds: times as granted, credit as this side gives it.
    #[must_use]
    pub const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The carrier that it uses, or tries to.
    #[must_use]
    pub const fn carrier(&self) -> Option<CarrierId> {
        match self.phase {
            Phase::Opening { carrier, .. } | Phase::Live { carrier } => Some(carrier),
            Phase::Down { .. } | Phase::Ended(_) => None,
        }
    }

    /// Whether bytes flow.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live { .. })
    }

    /// How it ended, if it did.
    #[must_use]
    pub const fn ending(&self) -> Option<&Ending> {
        match &self.phase {
            Phase::Ended(ending) => Some(ending),
            Phase::Down { .. } | Phase::Opening { .. } | Phase::Live { .. } => None,
        }
    }

    /// Since when there is no carrier that serves; None while there is one, and after the end.
    #[must_use]
    pub const fn parked(&self) -> Option<Moment> {
        match self.phase {
            Phase::Down { since } | Phase::Opening { since, .. } => Some(since),
            Phase::Live { .. } | Phase::Ended(_) => None,
        }
    }

    /// Bytes of the other side's stream that came, and that are committed.
    #[must_use]
    pub const fn received_and_committed(&self) -> (u64, u64) {
        (self.incoming.received, self.incoming.committed)
    }

    /// Bytes of this side's stream that the other side has committed, that were sent on this carrier or arrived before it,
    /// and that there are.
    #[must_use]
    pub const fn acked_sent_and_produced(&self) -> (u64, u64, u64) {
        (self.outgoing.acked, self.outgoing.sent, self.outgoing.end)
    }

    /// Offset up to which the other side takes bytes.
    #[must_use]
    pub const fn credit(&self) -> u64 {
        self.outgoing.credit
    }

    /// At most so many bytes go in one DATA frame: on slow links, where the other side has only whole TLS records.
    pub fn set_record(&mut self, most: usize) {
        self.record = most.clamp(1, MAX_DATA);
    }

    /// This side's stream has bytes up to `end`. Less than before is ignored, and so is more after
    /// [`finish`](Self::finish).
    pub fn produced(&mut self, end: u64) {
        if self.outgoing.ending == outgoing::StreamEnd::Open {
            self.outgoing.end = self.outgoing.end.max(end);
        }
    }

    /// Bytes of the other side's stream up to `upto` are safe here: the other side may forget them.
    pub fn committed(&mut self, now: Moment, upto: u64) {
        self.incoming.commit(now, upto);
        if self.incoming.complete() {
            self.outgoing.bye_due |=
                self.outgoing.ending != outgoing::StreamEnd::Open && !self.outgoing.confirms;
            self.settle();
        }
    }

    /// This side's stream ends with what was produced.
    pub fn finish(&mut self) {
        self.outgoing.finish();
    }

    /// Ends the session now, whatever is on the way.
    pub fn abort(&mut self, reason: Reason) {
        self.end_here(reason);
    }

    /// The carrier ends soon, as planned, and this side comes back after so long.
    pub fn detach(&mut self, after: std::time::Duration) {
        if self.is_live() {
            self.due.detach = Some(Frame::Detach { after });
        }
    }

    /// The next thing to do.
    pub fn action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The carrier can take more: what to write on it, or None if there is nothing now.
    pub fn transmit(&mut self, now: Moment, carrier: CarrierId) -> Option<Transmit> {
        if let Some((_, frame)) = self.parting.take_if(|(last, _)| *last == carrier) {
            self.actions.push_back(Action::Close { carrier, flush: true });
            return Some(Transmit::Control(frame));
        }
        if self.carrier() != Some(carrier) {
            return None;
        }
        if let Some(frame) = self.due.opening.take() {
            return Some(Transmit::Control(frame.to_vec()));
        }
        if !self.is_live() {
            return None;
        }
        if let Some(frame) = self.control(now) {
            return Some(Transmit::Control(frame.to_vec()));
        }
        let (offset, length) = self.outgoing.next(self.record)?;
        self.outgoing.send(length);
        self.lease.sent(now, self.outgoing.sent);
        Some(Transmit::Data {
            header: data_header(offset, length),
            offset,
            length,
        })
    }

    fn control(&mut self, now: Moment) -> Option<Frame> {
        if let Some(number) = self.due.pong.take() {
            return Some(Frame::Pong(number));
        }
        if let Some(number) = self.lease.ping(now, &self.terms, &mut self.spread) {
            return Some(Frame::Ping(number));
        }
        if let Some((offset, credit)) = self.incoming.ack(now) {
            return Some(Frame::Ack { offset, credit });
        }
        if let Some(frame) = self.due.detach.take() {
            return Some(frame);
        }
        if self.outgoing.bye() {
            self.outgoing.bye_due = false;
            let confirmed = self.incoming.complete();
            self.outgoing.confirms |= confirmed;
            let frame = Frame::Bye {
                offset: self.outgoing.end,
                confirmed,
            };
            self.settle();
            return Some(frame);
        }
        None
    }

    /// The carrier is lost, whatever the reason. A late word about an older one changes nothing.
    pub fn carrier_lost(&mut self, now: Moment, carrier: CarrierId) {
        if self.parting.take_if(|(last, _)| *last == carrier).is_some() {
            self.actions.push_back(Action::Close {
                carrier,
                flush: false,
            });
        }
        if self.carrier() == Some(carrier) {
            self.unplug(now);
        }
    }

    /// Time has passed. Whatever can be read should have been, so that nobody is taken for dead whose bytes are here.
    pub fn tick(&mut self, now: Moment) {
        match self.phase {
            Phase::Live { .. } => self.tick_live(now),
            Phase::Opening { carrier, until, .. } if now >= until => self.drop_carrier(now, carrier),
            Phase::Down { since } => match self.role {
                Role::Client(_) => self.tick_client(now),
                Role::Host if now >= since + host_term(&self.terms) => self.expire(),
                Role::Host => {}
            },
            Phase::Opening { .. } | Phase::Ended(_) => {}
        }
        self.tick_fence(now);
    }

    fn tick_live(&mut self, now: Moment) {
        let Phase::Live { carrier } = self.phase else {
            return;
        };
        let dead_at = self.lease.dead_at(&self.terms);
        let due = self.lease.ping_at().map_or(dead_at, |ping| ping.min(dead_at));
        if now.since(due) > self.terms.heartbeat / 2 {
            self.lease.woke(now, &self.terms);
        }
        if now >= self.lease.dead_at(&self.terms) {
            return self.drop_carrier(now, carrier);
        }
        self.lease.tick(now, &self.terms, &mut self.spread);
        self.incoming.tick(now);
    }

    /// When [`tick`](Self::tick) and [`transmit`](Self::transmit) have something to do for time alone.
    #[must_use]
    pub fn deadline(&self) -> Option<Moment> {
        let next = match self.phase {
            Phase::Live { .. } => {
                let dead = Some(self.lease.dead_at(&self.terms));
                [dead, self.lease.ping_at(), self.incoming.ack_at()]
                    .into_iter()
                    .flatten()
                    .min()
            }
            Phase::Opening { until, .. } => Some(until),
            Phase::Down { since } => match &self.role {
                Role::Client(client) => client.connect_at(),
                Role::Host => Some(since + host_term(&self.terms)),
            },
            Phase::Ended(_) => None,
        };
        [next, self.fence_at()].into_iter().flatten().min()
    }

    /// Since this carrier is not to be trusted any more: closes it.
    fn drop_carrier(&mut self, now: Moment, carrier: CarrierId) {
        self.actions.push_back(Action::Close {
            carrier,
            flush: false,
        });
        self.unplug(now);
    }

    /// There is no carrier any more.
    fn unplug(&mut self, now: Moment) {
        let since = match self.phase {
            Phase::Live { .. } => {
                self.actions.push_back(Action::Parked { at: now });
                now
            }
            Phase::Opening { since, .. } | Phase::Down { since } => since,
            Phase::Ended(_) => return,
        };
        self.phase = Phase::Down { since };
        self.decoder = Decoder::default();
        self.due = Due::default();
        self.lease.end();
        self.plan_connect(now);
    }

    /// A carrier serves from here on; the other side has `received` bytes.
    fn go_live(&mut self, now: Moment, carrier: CarrierId, asked: Option<Moment>) {
        self.phase = Phase::Live { carrier };
        self.lease.begin(now, asked, &self.terms, &mut self.spread);
        self.incoming.repeat(now);
    }

    /// Ends the session if both streams have ended and both sides know.
    fn settle(&mut self) {
        let done = self.incoming.complete()
            && self.outgoing.ending == outgoing::StreamEnd::Confirmed
            && self.outgoing.confirms;
        if !done {
            return;
        }
        if let Phase::Live { carrier } | Phase::Opening { carrier, .. } = self.phase {
            self.actions.push_back(Action::Close { carrier, flush: true });
        }
        self.finish_with(Reason::Ended, Side::Us, Some(self.outgoing.end));
    }

    /// The host waited long enough. If there was nothing left to say the session ended well.
    fn expire(&mut self) {
        let all =
            self.incoming.complete() && self.outgoing.acked == self.outgoing.end && self.outgoing.confirms;
        let reason = if all { Reason::Ended } else { Reason::Expired };
        self.end_here(reason);
    }

    /// Ends the session, and tells the other side if it can be told.
    fn end_here(&mut self, reason: Reason) {
        if self.ending().is_some() {
            return;
        }
        let offset = self.incoming.committed;
        if let Some(carrier) = self.carrier() {
            self.parting = Some((carrier, Frame::Gone { reason, offset }.to_vec()));
        }
        self.finish_with(reason, Side::Us, Some(self.outgoing.acked));
    }

    fn finish_with(&mut self, reason: Reason, by: Side, taken: Option<u64>) {
        let ending = Ending {
            reason,
            by,
            taken,
            produced: self.outgoing.end,
        };
        self.phase = Phase::Ended(ending);
        self.due = Due::default();
        self.actions.push_back(Action::Ended(ending));
    }
}
