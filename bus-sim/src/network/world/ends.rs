//! The two ends: what arrives at them, and what they do about it.

use super::*;

impl World {
    pub(super) fn arrive_at_host(&mut self, id: CarrierId) -> Checked {
        let now = self.far.machine.clock(self.now);
        let Some(wire) = self.wires.get_mut(&id) else {
            return Ok(());
        };
        if wire.accept_at.is_some_and(|at| at <= self.now) {
            wire.accept_at = None;
            let who = if wire.who == MALLORY { MALLORY } else { CLIENT };
            if wire.tls {
                self.far.host.accepted(now, id, who.into(), wire.binding());
            } else {
                self.far.host.accepted_plain(now, id, who.into(), wire.nonce());
            }
        }
        let Some(wire) = self.wires.get_mut(&id) else {
            return Ok(());
        };
        if wire.accept_at.is_some() || wire.to_host.done {
            return Ok(());
        }
        if let Some(bytes) = wire.to_host.arrived(self.now, &mut self.random) {
            let current = self
                .near
                .session
                .id()
                .and_then(|id| self.far.host.session(id)?.carrier());
            if wire.who == CLIENT && current.is_some_and(|current| current > id) {
                self.stats.late += bytes.len() as u64;
            }
            self.far.host.received(now, id, bytes);
            self.drain_far()?;
        } else if wire.to_host.ended(self.now) {
            wire.to_host.done = true;
            wire.to_client.close(self.now + wire.latency());
            self.far.host.carrier_lost(now, id);
            self.drain_far()?;
        }
        Ok(())
    }

    pub(super) fn arrive_at_client(&mut self, id: CarrierId) -> Checked {
        let now = self.near.machine.clock(self.now);
        let Some(wire) = self.wires.get_mut(&id) else {
            return Ok(());
        };
        if wire.who != CLIENT {
            return Ok(());
        }
        if wire.attach_at.is_some_and(|at| at <= self.now) {
            wire.attach_at = None;
            let binding = wire.tls.then(|| wire.binding());
            self.near.session.attach(now, id, binding);
            self.drain_near()?;
        }
        let Some(wire) = self.wires.get_mut(&id) else {
            return Ok(());
        };
        if wire.attach_at.is_some() || wire.to_client.done {
            return Ok(());
        }
        if let Some(bytes) = wire.to_client.arrived(self.now, &mut self.random) {
            if self.options.sabotage == Some(Sabotage::DeliversTwice) && self.random.percent(1) {
                self.near.session.received(now, id, bytes.clone());
            }
            self.near.session.received(now, id, bytes);
            self.drain_near()?;
        } else if wire.to_client.ended(self.now) {
            wire.to_client.done = true;
            self.near.session.carrier_lost(now, id);
            self.drain_near()?;
            self.client_closes(id);
        }
        Ok(())
    }

    pub(super) fn drain_near(&mut self) -> Checked {
        while let Some(action) = self.near.session.action() {
            match action {
                Action::Connect { .. } => self.connect(),
                Action::Deliver { offset, bytes } => {
                    self.stats.bytes += bytes.len() as u64;
                    self.near
                        .stream
                        .take(offset, &bytes)
                        .map_err(|what| format!("at the client: {what}"))?;
                }
                Action::Acked { upto } => self.near.stream.replay.forget(upto),
                Action::Close { carrier, .. } => self.client_closes(carrier),
                Action::Opened => {
                    self.stats.sessions += 1;
                    self.note(|| "the client has a session".into());
                    self.journal_near();
                }
                Action::Parked { .. } => self.note(|| "the client is parked".into()),
                Action::Resumed { again, fenced } => {
                    self.stats.resumptions += 1;
                    self.stats.again += again;
                    self.stats.fenced += u64::from(fenced);
                    self.note(|| format!("the client is resumed, {again} bytes again"));
                }
                Action::Fenced => self.note(|| "the client is fenced".into()),
                Action::Finished { offset } => {
                    if offset != self.near.stream.taken {
                        return Err("the client hears of an end before the last byte".into());
                    }
                }
                Action::Ended(ending) => self.near_ended(&ending)?,
            }
        }
        Ok(())
    }

    /// A session may end for its window, and well.
    pub(super) fn near_ended(&mut self, ending: &bus_tcp::session::Ending) -> Checked {
        self.note(|| format!("the client's session is over: {ending:?}"));
        let id = self.near.session.id();
        match ending.reason {
            Reason::Ended if ending.clean() && self.near.finishing => return Ok(()),
            Reason::Expired => {}
            Reason::Unknown
            | Reason::Ended
            | Reason::RolledBack
            | Reason::Overflow
            | Reason::Refused
            | Reason::Dropped
            | Reason::Violation(_) => return Err(format!("a session ended like this: {ending:?}")),
        }
        self.stats.expired += 1;
        let taken = id.and_then(|id| self.far.finals.get(&id));
        if taken != ending.taken.as_ref() {
            return Err(format!(
                "the host took {taken:?} bytes, and the client was told {:?}",
                ending.taken
            ));
        }
        self.near.salt += 2;
        self.near.stream = Stream::new(self.near.salt, self.near.salt + 1);
        self.near.finishing = false;
        let now = self.near.machine.clock(self.now);
        let wish = Wish {
            terms: TERMS,
            incarnation: self.near.salt,
        };
        self.near.session = Session::client(now, wish, self.random.next());
        self.journal_near();
        Ok(())
    }

    pub(super) fn connect(&mut self) {
        if !self.link_up && self.options.lives.is_none() {
            self.near.fails_at = Some(self.now + self.random.below(500_000));
            return;
        }
        self.stats.carriers += 1;
        self.next_wire += 1;
        let mut wire = Wire::new(self.next_wire, self.now, CLIENT, &mut self.random);
        if self.good || self.options.lives.is_some() {
            // A connection that is asked for while the link is down comes about as soon as it is up: SYN is sent again.
            let period = self.options.lives.map_or(1, |lives| (lives + DOWN) * 1000);
            let up = if self.link_up {
                self.now
            } else {
                self.now.next_multiple_of(period)
            };
            wire.hurry(up);
        }
        let id = wire.id.0;
        self.note(|| format!("carrier {id}"));
        self.wires.insert(wire.id, wire);
    }

    pub(super) fn drain_far(&mut self) -> Checked {
        while let Some(action) = self.far.host.action() {
            let now = self.far.machine.clock(self.now);
            match action {
                HostAction::AskNew { carrier, who, .. } => {
                    self.far.next_session += 1;
                    let mut id = [0; 16];
                    id[..8].copy_from_slice(&self.far.next_session.to_be_bytes());
                    let grant = Grant {
                        session: SessionId(id),
                        secret: Secret([self.random.next() as u8; 32]),
                    };
                    self.far.host.grant(now, carrier, grant);
                    let salt = if &*who == CLIENT { self.near.salt } else { u64::MAX };
                    self.far.streams.insert(
                        grant.session,
                        Stream::new(salt + u64::from(salt < u64::MAX), salt),
                    );
                    self.journal_grant();
                }
                HostAction::AskResume { carrier, .. } => {
                    self.far.host.grant_resume(now, carrier);
                    self.journal_grant();
                }
                HostAction::Session { session, action } => self.far_action(session, action)?,
                HostAction::Close { carrier, .. } => self.host_closes(carrier),
                HostAction::Trouble { trouble, .. } => {
                    self.stats.turned_away += 1;
                    self.note(|| format!("turned away: {trouble}"));
                }
                HostAction::Writable { .. }
                | HostAction::WritableCarrier { .. }
                | HostAction::Buried { .. } => {}
            }
        }
        Ok(())
    }

    pub(super) fn far_action(&mut self, id: SessionId, action: Action) -> Checked {
        let ours = Some(id) == self.near.session.id();
        match action {
            Action::Deliver { offset, bytes } => {
                self.stats.bytes += bytes.len() as u64;
                if let Some(stream) = self.far.streams.get_mut(&id) {
                    stream
                        .take(offset, &bytes)
                        .map_err(|what| format!("at the host: {what}"))?;
                }
            }
            Action::Acked { upto } => {
                if let Some(stream) = self.far.streams.get_mut(&id) {
                    stream.replay.forget(upto);
                }
            }
            Action::Finished { .. } => self.far.host.finish(id),
            Action::Ended(ending) => {
                self.note(|| format!("the host's session {id} is over: {ending:?}"));
                // What came and is not in the journal is not taken: it goes with the session.
                self.far.streams.remove(&id);
                let journalled = self.far.journal.1.get(&id).map(|stream| stream.taken);
                self.far.finals.insert(id, journalled.unwrap_or(0));
                if ours && ending.reason == Reason::Expired {
                    self.given_up()?;
                }
                self.journal_far();
            }
            Action::Opened
            | Action::Parked { .. }
            | Action::Resumed { .. }
            | Action::Fenced
            | Action::Connect { .. }
            | Action::Close { .. } => {}
        }
        Ok(())
    }

    /// The host has let go: from now on others may have what this session had.
    pub(super) fn given_up(&mut self) -> Checked {
        let now = self.near.machine.clock(self.now);
        if !self.near.machine.awake(self.now) {
            self.near.must_be_fenced = true;
        } else if !self.near.session.is_fenced(now) {
            return Err(format!(
                "two holders: the host has given up a session on which the client relies until {:?}, and it is {now:?}",
                self.near.session.valid_until()
            ));
        }
        Ok(())
    }

    pub(super) fn client_closes(&mut self, id: CarrierId) {
        if let Some(wire) = self.wires.get_mut(&id) {
            wire.attach_at = None;
            wire.to_client.done = true;
            // The host may learn of it late.
            let late = if self.random.percent(20) && !self.good {
                15_000_000
            } else {
                50_000
            };
            wire.to_host.close(self.now + self.random.below(late));
        }
    }

    pub(super) fn host_closes(&mut self, id: CarrierId) {
        if let Some(wire) = self.wires.get_mut(&id) {
            wire.accept_at = None;
            wire.to_host.done = true;
            wire.to_client.close(self.now + wire.latency());
        }
    }
}
