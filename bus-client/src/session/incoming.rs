//! Messages that come in.

use bus_wire::{Fd, Framed, Message, MessageType};
use bytes::Bytes;

use super::event::{Action, Outcome};
use super::fault::LinkError;
use super::link::Stage;
use super::requests::DRIVER;
use super::{MAX_WAITING_FDS, Phase, Session};

impl Session {
    pub(super) fn received(&mut self, bytes: Bytes, fds: Vec<Fd>) {
        let Some(used) = self.authenticate(&bytes) else {
            // No descriptor belongs to a line.
            return self.close_fds(fds);
        };
        let Phase::Linked(link) = &mut self.phase else {
            return self.close_fds(fds);
        };
        link.framer.push(bytes.slice(used..), fds);
        loop {
            let Phase::Linked(link) = &mut self.phase else {
                return;
            };
            match link.framer.next() {
                Ok(Some(framed)) => self.message(framed),
                Ok(None) => break,
                Err(error) => return self.lose(LinkError::Message(error)),
            }
        }
        let Phase::Linked(link) = &mut self.phase else {
            return;
        };
        let surplus = link.framer.take_surplus();
        let waiting = link.framer.pending_fds();
        self.close_fds(surplus);
        if waiting > MAX_WAITING_FDS {
            self.lose(LinkError::Descriptors(MAX_WAITING_FDS));
        }
    }

    fn message(&mut self, framed: Framed) {
        let Framed { message, fds } = framed;
        let fds = fds.to_vec();
        let Phase::Linked(link) = &self.phase else {
            return self.close_fds(fds);
        };
        match link.stage {
            Stage::Authenticating(_) => self.close_fds(fds),
            Stage::Greeting(hello) => {
                self.close_fds(fds);
                if message.message_type().is_reply() && message.reply_serial() == Some(hello) {
                    self.greeted(&message);
                }
            }
            Stage::Replaying | Stage::Up(_) => {
                if let Some(sender) = message.sender() {
                    self.epochs.note(sender);
                }
                self.dispatch(message, fds);
            }
        }
    }

    fn dispatch(&mut self, message: Message, fds: Vec<Fd>) {
        match message.message_type() {
            MessageType::MethodReturn | MessageType::Error => self.replied(message, fds),
            MessageType::Signal => self.signal(message, fds),
            MessageType::MethodCall => self.actions.push(Action::Incoming {
                message,
                fds,
                link: self.link,
                epoch: self.epochs.number(),
            }),
            // "Unknown types must be ignored."
            MessageType::Unknown(_) => self.close_fds(fds),
        }
    }

    fn replied(&mut self, message: Message, fds: Vec<Fd>) {
        let Some(serial) = message.reply_serial() else {
            return self.close_fds(fds);
        };
        let is_from_driver = message.sender().is_none_or(|sender| sender == DRIVER);
        if self.requests.has_serial(serial.get()) {
            self.close_fds(fds);
            if is_from_driver && let Some(asked) = self.requests.answered(serial) {
                self.answered(asked, &message);
            }
            return;
        }
        let call = self.calls.by_serial(serial);
        let Some((id, call)) = call.and_then(|id| Some((id, self.calls.get(id)?))) else {
            return self.close_fds(fds);
        };
        // Only whom it was for can answer a call, and the bus in their place. Who owns a well-known name is not known here.
        let is_from_another = match (call.destination.as_deref(), message.sender()) {
            (Some(destination), Some(sender)) => {
                (destination.starts_with(':') || destination == DRIVER)
                    && sender != destination
                    && sender != DRIVER
            }
            (_, _) => false,
        };
        if is_from_another {
            return self.close_fds(fds);
        }
        if self.has_bus() && call.destination.as_deref() == Some(DRIVER) {
            self.note_names(&message);
        }
        self.end(id, Outcome::Reply { message, fds });
    }

    /// What the bus says to the application about unique names is about this epoch.
    fn note_names(&mut self, message: &Message) {
        let mut body = message.body();
        match message.signature() {
            "s" => {
                if let Ok(name) = body.read_str() {
                    self.epochs.note(name);
                }
            }
            "as" => {
                if let Ok(mut names) = body.enter_array() {
                    while let Ok(Some(name)) = names.next() {
                        let Ok(name) = name.read_str() else { return };
                        self.epochs.note(name);
                    }
                }
            }
            _ => {}
        }
    }

    fn signal(&mut self, message: Message, fds: Vec<Fd>) {
        if message.sender() == Some(DRIVER) && message.interface() == Some(DRIVER) {
            self.driver_says(&message);
        }
        let mut streams = Vec::new();
        if let Some(member) = message.member() {
            let owner = |name: &str| self.names.owner(name);
            let has_bus = self.has_bus();
            streams = self.ledger.search(member, |rule| {
                super::matching::matches(rule, &message, has_bus, owner)
            });
        }
        if streams.is_empty() {
            return self.close_fds(fds);
        }
        self.actions.push(Action::Signal {
            streams,
            message,
            fds,
            epoch: self.epochs.number(),
        });
    }

    fn driver_says(&mut self, message: &Message) {
        let mut body = message.body();
        match (message.member(), message.signature()) {
            (Some("NameOwnerChanged"), "sss") => {
                let Ok(name) = body.read_str() else { return };
                let Ok(old) = body.read_str() else { return };
                let Ok(new) = body.read_str() else { return };
                self.epochs.note(old);
                self.epochs.note(new);
                if self.names.is_watched(name) {
                    self.learn(name, Some(old).filter(|old| !old.is_empty()));
                    self.learn(name, Some(new).filter(|new| !new.is_empty()));
                }
            }
            (Some(member @ ("NameAcquired" | "NameLost")), "s") => {
                let Ok(name) = body.read_str() else { return };
                let told = self.own_names.told(name, member == "NameAcquired");
                if let Some((handles, state)) = told {
                    self.tell_names(handles, &state);
                }
            }
            _ => {}
        }
    }
}
