//! What comes on the carrier.

use super::incoming::Taken;
use super::{Action, CarrierId, Phase, Role, Session, Side};
use crate::frame::{Frame, Piece, Reason, Rule};
use crate::moment::Moment;
use bytes::Bytes;

impl Session {
    /// These bytes came on this carrier. What comes late on an older one is dropped.
    pub fn received(&mut self, now: Moment, carrier: CarrierId, mut bytes: Bytes) {
        while self.carrier() == Some(carrier) {
            match self.decoder.next(&mut bytes) {
                Ok(Some(piece)) => {
                    self.lease.heard(now);
                    if let Err(reason) = self.piece(now, carrier, piece) {
                        self.broken(now, carrier, reason);
                    }
                }
                Ok(None) => {
                    self.lease.heard(now);
                    return;
                }
                Err(_) => self.broken(now, carrier, Reason::Violation(Rule::Frame)),
            }
        }
    }

    /// The peer broke a rule. Inside the stream that ends the session; before a host has answered nobody knows who it is,
    /// so it ends the carrier only.
    fn broken(&mut self, now: Moment, carrier: CarrierId, reason: Reason) {
        let stranger = matches!(
            (&self.phase, &self.role),
            (Phase::Opening { .. }, Role::Client(_))
        );
        if stranger {
            self.drop_carrier(now, carrier);
        } else {
            self.end_here(reason);
        }
    }

    fn piece(&mut self, now: Moment, carrier: CarrierId, piece: Piece) -> Result<(), Reason> {
        let frame = match piece {
            Piece::Data { offset, bytes } => return self.data(now, carrier, offset, bytes),
            Piece::Frame(frame) => frame,
        };
        match (&self.phase, &self.role) {
            (Phase::Live { .. }, _) => self.live_frame(now, carrier, frame),
            (Phase::Opening { .. }, Role::Client(_)) => self.opening_frame(now, carrier, frame),
            _ => Err(Reason::Violation(Rule::Place)),
        }
    }

    fn data(&mut self, now: Moment, carrier: CarrierId, offset: u64, bytes: Bytes) -> Result<(), Reason> {
        if !self.is_live() {
            return Err(Reason::Violation(Rule::Place));
        }
        match self.incoming.take(offset, bytes.len()) {
            Taken::Next => {
                self.actions.push_back(Action::Deliver { offset, bytes });
                Ok(())
            }
            Taken::Gap => {
                self.drop_carrier(now, carrier);
                Ok(())
            }
            Taken::Violation(rule) => Err(Reason::Violation(rule)),
        }
    }

    fn live_frame(&mut self, now: Moment, carrier: CarrierId, frame: Frame) -> Result<(), Reason> {
        match frame {
            Frame::Ack { offset, credit } => {
                if self.outgoing.acknowledge(offset, credit)? {
                    self.lease.acked(offset);
                    self.actions.push_back(Action::Acked { upto: offset });
                }
            }
            Frame::Ping(number) => self.due.pong = Some(number),
            Frame::Pong(number) if self.lease.answered(number) => {}
            Frame::Gone { reason, offset } => self.gone(reason, offset),
            Frame::Retry { after, address } if matches!(self.role, Role::Client(_)) => {
                self.retry(now, after, address, carrier);
            }
            Frame::Detach { after } => self.detached(after),
            Frame::Bye { offset, confirmed } => self.bye(offset, confirmed)?,
            Frame::Pong(_)
            | Frame::Retry { .. }
            | Frame::Hello(_)
            | Frame::Welcome(_)
            | Frame::Resume(_)
            | Frame::Resumed(_)
            | Frame::Challenge { .. } => return Err(Reason::Violation(Rule::Place)),
        }
        Ok(())
    }

    /// What a host may answer to a client.
    fn opening_frame(&mut self, now: Moment, carrier: CarrierId, frame: Frame) -> Result<(), Reason> {
        match frame {
            Frame::Challenge { preamble, nonce } => {
                let Phase::Opening { binding: None, .. } = self.phase else {
                    return Err(Reason::Violation(Rule::Place));
                };
                if !preamble.understood() {
                    return Err(Reason::Violation(Rule::Version));
                }
                self.ask(now, crate::resume::Binding(nonce.0));
                Ok(())
            }
            Frame::Welcome(welcome) => self.welcomed(now, &welcome),
            Frame::Resumed(resumed) => self.resumed(now, &resumed),
            Frame::Gone { reason, offset } => {
                // Only an answer to a question counts.
                if matches!(self.phase, Phase::Opening { binding: Some(_), .. }) {
                    self.gone(reason, offset);
                    Ok(())
                } else {
                    Err(Reason::Violation(Rule::Place))
                }
            }
            Frame::Retry { after, address } => {
                self.retry(now, after, address, carrier);
                Ok(())
            }
            Frame::Hello(_)
            | Frame::Ack { .. }
            | Frame::Ping(_)
            | Frame::Pong(_)
            | Frame::Resume(_)
            | Frame::Detach { .. }
            | Frame::Bye { .. } => Err(Reason::Violation(Rule::Place)),
        }
    }

    fn gone(&mut self, reason: Reason, offset: u64) {
        let known = reason != Reason::Unknown && (self.outgoing.acked..=self.outgoing.high).contains(&offset);
        if let Some(carrier) = self.carrier() {
            self.actions.push_back(Action::Close {
                carrier,
                flush: false,
            });
        }
        // A host that both sides said BYE to has told all that it had to say.
        let cut_short = reason == Reason::Ended && !self.incoming.complete();
        let reason = if cut_short { Reason::Dropped } else { reason };
        self.finish_with(reason, Side::Peer, known.then_some(offset));
    }

    fn bye(&mut self, offset: u64, confirmed: bool) -> Result<(), Reason> {
        self.incoming.ends(offset)?;
        if !std::mem::replace(&mut self.incoming.end_told, true) {
            self.actions.push_back(Action::Finished { offset });
        }
        if confirmed {
            self.outgoing.confirm()?;
        }
        if self.incoming.complete() {
            self.outgoing.bye_due |=
                self.outgoing.ending != super::outgoing::StreamEnd::Open && !self.outgoing.confirms;
            self.settle();
        }
        Ok(())
    }
}
