//! The driver's voice: every message with the sender `org.freedesktop.DBus`.

use std::cell::OnceCell;

use bus_wire::{BodyWriter, Flags, Message, MessageBuilder, MessageError, MessageType};
use bytes::Bytes;

use super::deliver::Transit;
use super::event::{Fds, PeerId};
use super::monitor::Addressee;
use super::pacing::Wait;
use super::subscriptions::Audience;
use super::{Broker, DRIVER, System};
use crate::policy::verdict::{Access, Reply};

/// How a peer that has no name yet is addressed, so that monitors see whom an answer was for. As dbus-daemon does.
pub(super) const NOT_ACTIVE_YET: &str = ":not.active.yet";

/// The path of the driver's signals.
const DRIVER_PATH: &str = "/org/freedesktop/DBus";

/// A buffer that has grown beyond this is not kept.
const KEPT: usize = 64 * 1024;

/// `org.freedesktop.DBus.Error.LimitsExceeded`
pub(crate) const LIMITS_EXCEEDED: &str = "org.freedesktop.DBus.Error.LimitsExceeded";

/// `org.freedesktop.DBus.Error.Failed`
pub(crate) const FAILED: &str = "org.freedesktop.DBus.Error.Failed";

/// Whether a message of the driver asks if there is room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// A peer that has none is condemned: an answer or a signal that is missing would mislead the peer for good.
    Needed,
    /// It says that there is none.
    Granted,
}

/// Whether the sender of a message waits for an answer (specification, "Message Format", NO_REPLY_EXPECTED).
pub(crate) fn expects_reply(message: &Message) -> bool {
    message.message_type() == MessageType::MethodCall && !message.flags().contains(Flags::NO_REPLY_EXPECTED)
}

/// What rules see of a reply of the driver.
const REPLY: Access<'static> = Access {
    message_type: MessageType::MethodReturn,
    path: None,
    interface: None,
    member: None,
    error_name: None,
    is_broadcast: false,
    reply: Reply::Requested,
    eavesdrops: false,
    fds: 0,
};

/// The same of an error.
fn error_access(name: &str) -> Access<'_> {
    Access {
        message_type: MessageType::Error,
        error_name: Some(name),
        ..REPLY
    }
}

/// The same of a signal to one peer.
fn signal_access(member: &str) -> Access<'_> {
    Access {
        message_type: MessageType::Signal,
        path: Some(DRIVER_PATH),
        interface: Some(DRIVER),
        member: Some(member),
        reply: Reply::No,
        ..REPLY
    }
}

impl Broker {
    /// Answers a call, unless it wants no answer.
    pub(crate) fn send_driver_reply(
        &mut self,
        caller: PeerId,
        call: &Message,
        body: impl FnOnce(&mut BodyWriter),
    ) {
        if expects_reply(call) {
            self.send_late_reply(caller, call.serial().get(), body);
        }
    }

    /// The same with an answer that is read from the broker: one that nobody wants is not put together.
    pub(crate) fn answer_with(
        &mut self,
        caller: PeerId,
        call: &Message,
        body: impl FnOnce(&Self, &mut BodyWriter),
    ) {
        if !expects_reply(call) {
            return;
        }
        let mut written = BodyWriter::new(bus_wire::Endian::Little);
        body(self, &mut written);
        self.send_driver_reply(caller, call, |w| *w = written);
    }

    /// Answers a call with an error, unless it wants no answer. `text` is the error's only argument.
    pub(crate) fn send_driver_error(&mut self, caller: PeerId, call: &Message, name: &str, text: &str) {
        if expects_reply(call) {
            self.send_late_error(caller, call.serial().get(), name, text);
        }
    }

    /// Answers a call with a message that carries descriptors, which are the caller's from now on. A caller that takes
    /// none must not be answered so.
    pub(crate) fn send_driver_reply_with_fds(
        &mut self,
        caller: PeerId,
        call: &Message,
        fds: Fds,
        system: &mut dyn System,
        body: impl FnOnce(&mut BodyWriter),
    ) {
        let Some(peer) = self
            .roster
            .get(caller)
            .filter(|peer| peer.takes_fds && expects_reply(call))
        else {
            return self.close_fds(fds);
        };
        let destination = peer.unique_name().to_owned();
        let built = MessageBuilder::method_return(call.serial())
            .destination(&destination)
            .sender(DRIVER)
            .flags(Flags::NO_REPLY_EXPECTED)
            .serial(self.outgoing.next_serial())
            .unix_fds(fds.len() as u32)
            .body(body)
            .build()
            .and_then(|bytes| Message::parse(Bytes::from(bytes)));
        match built {
            Ok(message) => {
                let transit = Transit {
                    message: &message,
                    head: message.bytes(),
                    tail: &[],
                    whole: &OnceCell::new(),
                    origin: None,
                };
                self.capture(None, Addressee::Peer(caller), transit, &fds, system);
                if self.may_hear_reply(caller, &message) && self.may_push(caller) {
                    self.push(caller, transit, fds);
                } else {
                    self.close_fds(fds);
                }
            }
            Err(error) => {
                self.close_fds(fds);
                self.send_driver_error(caller, call, LIMITS_EXCEEDED, &error.to_string());
            }
        }
    }

    /// Answers a call of which only the serial was kept.
    pub(crate) fn send_late_reply(
        &mut self,
        caller: PeerId,
        reply_serial: u32,
        body: impl FnOnce(&mut BodyWriter),
    ) {
        let built = self.speak(
            caller,
            None,
            Room::Needed,
            REPLY,
            MessageBuilder::method_return(reply_serial).body(body),
        );
        if let Err(error) = built {
            self.send_late_error(caller, reply_serial, LIMITS_EXCEEDED, &error.to_string());
        }
    }

    /// Answers a call of which only the serial was kept, with an error.
    pub(crate) fn send_late_error(&mut self, caller: PeerId, reply_serial: u32, name: &str, text: &str) {
        // Part of it may come from anywhere, and whoever waits is to be answered: a string has no NUL.
        let text = text.replace('\0', "\u{fffd}");
        let error = MessageBuilder::error(name, reply_serial).body(|w| {
            w.str(&text);
        });
        let built = self.speak(caller, None, Room::Needed, error_access(name), error);
        self.warn_if_unbuilt(caller, built);
    }

    /// Answers a call with an error in the place of a reply for which there is no room. Each open call has one answer, and
    /// room is left for these: `max_replies_per_connection` bounds them.
    pub(super) fn send_in_place_of_reply(
        &mut self,
        caller: PeerId,
        reply_serial: u32,
        name: &str,
        text: &str,
    ) {
        let error = MessageBuilder::error(name, reply_serial).body(|w| {
            w.str(text);
        });
        let built = self.speak(caller, None, Room::Granted, error_access(name), error);
        self.warn_if_unbuilt(caller, built);
    }

    fn warn_if_unbuilt(&mut self, caller: PeerId, built: Result<Wait, MessageError>) {
        if let Err(error) = built {
            self.warn(
                self.uid(caller),
                format!("an error reply could not be built: {error}"),
            );
        }
    }

    /// Sends a signal of the interface `org.freedesktop.DBus` to one peer. `cause` is whose doing it tells of, if it is a
    /// peer's: that one makes it wait, unless it is told of its own. How long it is to wait for that.
    pub(super) fn send_signal_to(
        &mut self,
        peer: PeerId,
        member: &str,
        cause: Option<PeerId>,
        body: impl FnOnce(&mut BodyWriter),
    ) -> Wait {
        let signal = MessageBuilder::signal(DRIVER_PATH, DRIVER, member).body(body);
        let cause = cause.filter(|cause| *cause != peer);
        self.speak(peer, cause, Room::Needed, signal_access(member), signal)
            .unwrap_or_else(|error| {
                self.warn(
                    self.uid(peer),
                    format!("the signal {member} could not be built: {error}"),
                );
                Wait::default()
            })
    }

    /// Sends a signal of the interface `org.freedesktop.DBus` to every peer with a match rule for the signal. `cause` as
    /// above.
    pub(super) fn broadcast_driver_signal(
        &mut self,
        member: &str,
        cause: Option<PeerId>,
        body: impl FnOnce(&mut BodyWriter),
    ) -> Wait {
        self.broadcast_signal(DRIVER, member, cause, body)
    }

    /// Sends a signal of any interface of the driver to every peer with a match rule for the signal. `cause` as above.
    pub(super) fn broadcast_signal(
        &mut self,
        interface: &str,
        member: &str,
        cause: Option<PeerId>,
        body: impl FnOnce(&mut BodyWriter),
    ) -> Wait {
        let mut wait = Wait::default();
        let serial = self.outgoing.next_serial();
        if self.subscriptions.is_empty(Audience::Subscribers)
            && self.subscriptions.is_empty(Audience::Monitors)
        {
            return wait;
        }
        let built = MessageBuilder::signal(DRIVER_PATH, interface, member)
            .sender(DRIVER)
            .flags(Flags::NO_REPLY_EXPECTED)
            .serial(serial)
            .body(body)
            .build()
            .and_then(|bytes| Message::parse(Bytes::from(bytes)));
        match built {
            Ok(message) => {
                self.capture_own(Addressee::All, &message);
                let mut receivers = std::mem::take(&mut self.scratch.receivers);
                self.collect(
                    Audience::Subscribers,
                    None,
                    Addressee::All,
                    &message,
                    &mut receivers,
                );
                self.retain_hearers(None, &message, &mut receivers);
                for receiver in receivers.drain(..) {
                    wait = wait.and(self.push_own_copy(receiver, cause, &message));
                }
                self.scratch.receivers = receivers;
            }
            Err(error) => self.warn(None, format!("the signal {member} could not be built: {error}")),
        }
        wait
    }

    /// Completes a message for one peer and queues it, with copies for the monitors. Who else makes it wait, if anybody does,
    /// is `cause`: how long that peer is to wait for it.
    fn speak(
        &mut self,
        to: PeerId,
        cause: Option<PeerId>,
        room: Room,
        access: Access<'_>,
        message: MessageBuilder<'_>,
    ) -> Result<Wait, MessageError> {
        let Some(peer) = self.roster.get(to) else {
            return Ok(Wait::default());
        };
        let destination = match &peer.unique {
            Some(unique) => unique.name.clone(),
            None => NOT_ACTIVE_YET.into(),
        };
        let serial = self.outgoing.next_serial();
        if peer.is_condemned && self.subscriptions.is_empty(Audience::Monitors) {
            // Nobody would hear it: what a peer that leaves is told of its own names.
            return Ok(Wait::default());
        }
        let mut wait = Wait::default();
        let mut speech = std::mem::take(&mut self.scratch.speech);
        speech.clear();
        let built = message
            .destination(&destination)
            .sender(DRIVER)
            .flags(Flags::NO_REPLY_EXPECTED)
            .serial(serial)
            .build_into(&mut speech);
        if built.is_ok() {
            if !self.subscriptions.is_empty(Audience::Monitors)
                && let Ok(message) = Message::parse(Bytes::copy_from_slice(&speech))
            {
                self.capture_own(Addressee::Peer(to), &message);
            }
            let may_push = match room {
                Room::Needed => self.may_push(to),
                Room::Granted => self.roster.get(to).is_some_and(|peer| !peer.is_condemned),
            };
            if may_push && self.may_hear_driver(to, &access) {
                wait = self.push_own(to, cause, &speech);
            }
        }
        if speech.capacity() > KEPT {
            speech = Vec::new();
        }
        self.scratch.speech = speech;
        built.map(|()| wait)
    }
}
