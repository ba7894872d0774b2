//! Where a message goes (specification, "Message Bus Message Routing").

use bus_daemon::broker::PeerId;

use super::shares::DOUBT;
use super::{Check, Model, Phase, Trouble, wrong};
use crate::letter::{DRIVER, Kind, Letter, NO_AUTO_START};

/// Which rules are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// Those of peers, for what has no destination.
    Plain,
    /// Those with `eavesdrop='true'`.
    Eavesdropping,
    /// Those of monitors.
    Monitoring,
}

impl Model {
    /// One message of a peer, completely.
    pub(super) fn route(&mut self, id: PeerId, letter: &Letter) -> Check {
        let Some(peer) = self.peers.get(&id) else {
            return Ok(());
        };
        let is_hello = letter.kind == Kind::Call
            && letter.destination.as_deref() == Some(DRIVER)
            && letter.member.as_deref() == Some("Hello")
            && letter
                .interface
                .as_deref()
                .is_none_or(|interface| interface == DRIVER);
        let may_send = match peer.phase {
            Phase::Authenticating | Phase::Greeting => is_hello,
            Phase::Active => true,
            Phase::Monitor => false,
        };
        if !may_send || letter.files.len() as u64 > self.limits.max_message_unix_fds {
            return self.disconnect(id);
        }
        let mut letter = letter.clone();
        letter.sender = match peer.unique {
            Some(_) => peer.name(),
            // Monitors see a Hello as coming from the name that it is answered with.
            None if self.may_greet(peer.uid) => format!(":1.{}", self.next_unique),
            None => ":not.active.yet".to_owned(),
        };
        let letter = &letter;
        let senders = self.names_of(id);
        match letter.destination.clone() {
            None => {
                self.copy(Rules::Monitoring, letter, &senders, &[], None, None)?;
                self.route_to_all(id, letter, &senders)
            }
            Some(name) if name == DRIVER => {
                let driver = [DRIVER.to_owned()];
                // What makes its sender the first eavesdropper is not overheard itself.
                let is_copied = self.may_eavesdrop() || self.has_monitors();
                self.copy(Rules::Monitoring, letter, &senders, &driver, None, None)?;
                if letter.kind == Kind::Call {
                    self.driver_call(id, letter)?;
                }
                if is_copied {
                    self.eavesdrop(letter, &self.names_of(id), &driver, None)?;
                }
                self.end_becoming_monitor()
            }
            Some(name) => match self.resolve(&name) {
                Some(to) => {
                    let receivers = self.names_of(to);
                    self.copy(Rules::Monitoring, letter, &senders, &receivers, None, None)?;
                    self.unicast(id, to, letter)
                }
                None => {
                    self.copy(Rules::Monitoring, letter, &senders, &[name], None, None)?;
                    if letter.expects_reply() {
                        let error = if letter.flags & NO_AUTO_START != 0 {
                            "NameHasNoOwner"
                        } else {
                            "ServiceUnknown"
                        };
                        self.say(id, Letter::driver_error(letter.serial, error))?;
                    }
                    Ok(())
                }
            },
        }
    }

    fn route_to_all(&mut self, id: PeerId, letter: &Letter, senders: &[String]) -> Check {
        match letter.kind {
            Kind::Signal => {
                self.origin = Some(id);
                let copied = self.copy(Rules::Plain, letter, senders, &[], None, Some(id));
                self.origin = None;
                copied
            }
            Kind::Call if letter.interface.as_deref() == Some("org.freedesktop.DBus.Peer") => {
                self.driver_call(id, letter)
            }
            Kind::Call if letter.expects_reply() => {
                self.say(id, Letter::driver_error(letter.serial, "UnknownMethod"))
            }
            Kind::Call | Kind::Return | Kind::Error => Ok(()),
        }
    }

    fn unicast(&mut self, id: PeerId, to: PeerId, letter: &Letter) -> Check {
        if let Some(serial) = letter.reply_serial {
            let is_awaited = self
                .peers
                .get(&id)
                .is_some_and(|peer| peer.owed.contains_key(&(to, serial)));
            if !is_awaited {
                return Ok(());
            }
        }
        if let Some(error) = self.refusal(id, to, letter)? {
            if let Some(serial) = letter.reply_serial {
                self.close_call(id, to, serial);
                self.say_in_place(to, Letter::driver_error(serial, error))?;
            } else if letter.expects_reply() {
                self.say(id, Letter::driver_error(letter.serial, error))?;
            }
            return Ok(());
        }
        if let Some(serial) = letter.reply_serial {
            self.close_call(id, to, serial);
        } else if letter.expects_reply() {
            let deadline = self.limits.reply_timeout.map(|timeout| self.now + timeout);
            if let Some(callee) = self.peers.get_mut(&to) {
                callee.owed.insert((id, letter.serial), deadline);
            }
            if let Some(caller) = self.peers.get_mut(&id) {
                caller.awaited.insert((to, letter.serial));
            }
        }
        // Whoever awaits a reply makes it wait.
        self.origin = (!letter.is_reply()).then_some(id);
        let put = self.put(to, letter);
        self.origin = None;
        put?;
        self.eavesdrop(letter, &self.names_of(id), &self.names_of(to), Some(to))
    }

    /// Why a message may not go to a peer.
    fn refusal(&mut self, id: PeerId, to: PeerId, letter: &Letter) -> Check<Option<&'static str>> {
        let (Some(sender), Some(receiver)) = (self.peers.get(&id), self.peers.get(&to)) else {
            return wrong("the model routes from or to nobody");
        };
        if receiver.is_condemned {
            return Ok(Some("NoReply"));
        }
        if !letter.is_reply() && self.is_refused(id) {
            return Ok(Some("LimitsExceeded"));
        }
        if !letter.files.is_empty() && !receiver.takes_fds {
            return Ok(Some("NotSupported"));
        }
        if letter.expects_reply() {
            if receiver.owed.contains_key(&(id, letter.serial)) {
                return Ok(Some("AccessDenied"));
            }
            if sender.awaited.len() as u64 >= self.limits.max_replies_per_connection {
                return Ok(Some("LimitsExceeded"));
            }
        }
        let length = letter.encode(Some(&letter.sender))?.len() as u64;
        let is_refused = if letter.is_reply() {
            self.is_full_of_replies(to, length)?
        } else {
            self.is_full(to)? || self.is_beyond_share(id, to, length)?
        };
        let is_full = is_refused || (!letter.files.is_empty() && self.is_full_of_files(to));
        Ok(is_full.then_some("LimitsExceeded"))
    }

    /// Whether what a peer awaits leaves no room for a reply.
    fn is_full_of_replies(&self, id: PeerId, reply: u64) -> Check<bool> {
        let Some(peer) = self.peers.get(&id) else {
            return Ok(false);
        };
        let limit = self.limits.max_outgoing_bytes;
        let own = peer.own();
        if own > 0 && peer.is_uncertain {
            return Err(Trouble::Unknowable);
        }
        let is_beyond = own > 0 && own + reply > limit - limit / 8;
        Ok(is_beyond && !peer.is_short(limit)?)
    }

    fn is_full(&self, id: PeerId) -> Check<bool> {
        let Some(peer) = self.peers.get(&id) else {
            return Ok(false);
        };
        let limit = self.limits.max_outgoing_bytes;
        let own = peer.own();
        let parts = [own, peer.queued - own];
        if peer.is_uncertain && parts.iter().any(|part| part.abs_diff(limit) < DOUBT) {
            return Err(Trouble::Unknowable);
        }
        Ok(parts.iter().any(|part| *part > limit))
    }

    /// Whether a peer may not be sent more descriptors.
    fn is_full_of_files(&self, id: PeerId) -> bool {
        let peer = self.peers.get(&id);
        peer.is_some_and(|peer| peer.queued_fds > self.limits.max_outgoing_unix_fds)
    }

    fn may_eavesdrop(&self) -> bool {
        let mut rules = self
            .peers
            .values()
            .filter(|peer| peer.phase == Phase::Active)
            .flat_map(|peer| &peer.rules);
        self.eavesdrop_allowed && rules.any(|rule| rule.eavesdrop)
    }

    fn has_monitors(&self) -> bool {
        self.peers
            .values()
            .any(|peer| peer.phase == Phase::Monitor && !peer.rules.is_empty())
    }

    fn eavesdrop(&mut self, letter: &Letter, from: &[String], to: &[String], not: Option<PeerId>) -> Check {
        // Whoever overhears waits for no reply, and the policy lets no others pass.
        if !self.may_eavesdrop() || letter.is_reply() {
            return Ok(());
        }
        self.copy(Rules::Eavesdropping, letter, from, to, not, None)
    }

    /// A copy of a peer's message for everyone with a rule for it. `payer` is charged for descriptors, if it is not whoever
    /// gets the copy.
    fn copy(
        &mut self,
        rules: Rules,
        letter: &Letter,
        from: &[String],
        to: &[String],
        not: Option<PeerId>,
        payer: Option<PeerId>,
    ) -> Check {
        for id in self.receivers(rules, letter, from, to) {
            if Some(id) == not {
                continue;
            }
            let takes_fds = self.peers.get(&id).is_some_and(|peer| peer.takes_fds);
            if (!letter.files.is_empty() && !takes_fds) || !self.may_put(id)? {
                continue;
            }
            if !letter.files.is_empty() && self.is_full_of_files(id) {
                // It misses what others broadcast, and goes for what it asked for.
                if payer.is_none() {
                    self.condemn(id);
                }
                continue;
            }
            let mut has_all = true;
            for _ in &letter.files {
                match self.seen.duplicates.pop_front() {
                    Some(true) => {}
                    Some(false) => {
                        has_all = false;
                        break;
                    }
                    None => {
                        return wrong(format!(
                            "no copies of descriptors were made for {}",
                            letter.short()
                        ));
                    }
                }
            }
            let uid = |id: PeerId| self.peers.get(&id).map(|peer| peer.uid);
            if has_all {
                self.put(id, letter)?;
            } else if payer.is_none_or(|sender| uid(sender) == uid(id)) {
                // Whoever is charged for them: a monitor or eavesdropper itself. Of another user nobody is at fault.
                self.condemn(payer.unwrap_or(id));
            }
        }
        Ok(())
    }

    /// By their ids.
    fn receivers(&self, rules: Rules, letter: &Letter, from: &[String], to: &[String]) -> Vec<PeerId> {
        let asked = |phase: Phase, rule: &crate::rule::Rule| match rules {
            Rules::Plain => phase == Phase::Active,
            Rules::Eavesdropping => phase == Phase::Active && rule.eavesdrop,
            Rules::Monitoring => phase == Phase::Monitor,
        };
        let has_rule = |peer: &super::Peer| {
            peer.rules
                .iter()
                .any(|rule| asked(peer.phase, rule) && rule.matches(letter, from, to))
        };
        self.peers
            .iter()
            .filter(|(_, peer)| has_rule(peer))
            .map(|(id, _)| *id)
            .collect()
    }

    /// An error in the place of a reply for which there is no room.
    fn say_in_place(&mut self, to: PeerId, letter: Letter) -> Check {
        self.say_with(None, to, letter, true)
    }

    /// A message of the driver to one peer, with copies for monitors.
    pub(super) fn say(&mut self, to: PeerId, letter: Letter) -> Check {
        self.say_of(None, to, letter)
    }

    /// The same where it tells of what another peer did, which makes it wait.
    pub(super) fn say_of(&mut self, cause: Option<PeerId>, to: PeerId, letter: Letter) -> Check {
        self.say_with(cause, to, letter, false)
    }

    fn say_with(&mut self, cause: Option<PeerId>, to: PeerId, mut letter: Letter, has_room: bool) -> Check {
        let Some(peer) = self.peers.get(&to) else {
            return Ok(());
        };
        letter.destination = Some(peer.name());
        let receivers = self.names_of(to);
        self.copy(
            Rules::Monitoring,
            &letter,
            &[DRIVER.to_owned()],
            &receivers,
            None,
            None,
        )?;
        let may_put = if has_room {
            self.peers.get(&to).is_some_and(|peer| !peer.is_condemned)
        } else {
            self.may_put(to)?
        };
        if may_put {
            self.origin = cause.filter(|cause| *cause != to);
            let put = self.put(to, &letter);
            self.origin = None;
            put?;
        }
        Ok(())
    }

    /// A signal of the driver to all who have a rule for it, of what a peer did.
    pub(super) fn broadcast(&mut self, cause: PeerId, letter: &Letter) -> Check {
        let driver = [DRIVER.to_owned()];
        self.copy(Rules::Monitoring, letter, &driver, &[], None, None)?;
        self.origin = Some(cause);
        let copied = self.copy(Rules::Plain, letter, &driver, &[], None, None);
        self.origin = None;
        copied
    }

    /// Whether a peer may be sent a copy or an answer; one that does not read is given up.
    fn may_put(&mut self, id: PeerId) -> Check<bool> {
        if self.peers.get(&id).is_none_or(|peer| peer.is_condemned) {
            return Ok(false);
        }
        let is_full = self.is_full(id)?;
        if is_full {
            self.condemn(id);
        }
        Ok(!is_full)
    }

    /// Takes the next message that the broker queued for a peer; it must be this one.
    fn put(&mut self, to: PeerId, letter: &Letter) -> Check {
        let found = self
            .seen
            .messages
            .get_mut(&to)
            .and_then(std::collections::VecDeque::pop_front);
        let party = self.party(self.origin, to);
        let limit = self.limits.max_outgoing_bytes;
        let Some(peer) = self.peers.get_mut(&to) else {
            return Ok(());
        };
        peer.queued_fds += letter.files.len() as u64;
        match found {
            Some((message, files)) => {
                if let Err(difference) = letter.compare(&message, &files) {
                    let short = letter.short();
                    return wrong(format!(
                        "{to:?} must be sent {short}, and instead is sent {message:?}: {difference}"
                    ));
                }
                self.matched += 1;
                peer.count(party, message.bytes().len() as u64, limit);
                Ok(())
            }
            None if self.seen.gone.contains(&to) => {
                // What it was sent went with it; only how much it was still counts.
                peer.count(party, letter.encode(Some(&letter.sender))?.len() as u64, limit);
                peer.is_uncertain |= !letter.is_exact;
                Ok(())
            }
            None => wrong(format!("{to:?} is not sent {}", letter.short())),
        }
    }
}
