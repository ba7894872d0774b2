//! From a peer's bytes to the send queues of others (specification, "Message Bus Message Routing").

use std::cell::OnceCell;

use bus_wire::limits::LONG_HEADER;
use bus_wire::{Message, MessageError, MessageType, stitch_header, stitch_long_header};
use bytes::Bytes;
use smallvec::SmallVec;

use super::deliver::{SHARED, Transit};
use super::disconnect::{Breach, Disconnect, Excess};
use super::event::{Fds, PeerId};
use super::monitor::Addressee;
use super::peer::{Peer, Phase};
use super::policy::{ACCESS_DENIED, reply_of};
use super::relief::MEMORY_SHORT;
use super::reply::{DISCONNECTED, NO_REPLY};
use super::shares::counted_from;
use super::speak::{LIMITS_EXCEEDED, NOT_ACTIVE_YET};
use super::subscriptions::Audience;
use super::{Broker, DRIVER, System, driver};

const NAME_HAS_NO_OWNER: &str = "org.freedesktop.DBus.Error.NameHasNoOwner";
const NOT_SUPPORTED: &str = "org.freedesktop.DBus.Error.NotSupported";
const SERVICE_UNKNOWN: &str = "org.freedesktop.DBus.Error.ServiceUnknown";
const UNKNOWN_METHOD: &str = "org.freedesktop.DBus.Error.UnknownMethod";

/// The error that a call gets whose serial its caller waits on already.
const SERIAL_IN_USE: (&str, &str) = (
    ACCESS_DENIED,
    "Message has the same reply serial as a currently-outstanding existing method call",
);
/// What the sender of a message with more descriptors than it may have is told.
const TOO_MANY_FDS: &str = "Rejected: too many file descriptors of the sender, or of its user, wait already";

const PEER_INTERFACE: &str = "org.freedesktop.DBus.Peer";

impl Broker {
    /// Input of a peer that ends at an absolute offset of its stream. What was taken already is left out.
    pub(super) fn received(
        &mut self,
        id: PeerId,
        upto: u64,
        mut data: Bytes,
        fds: Fds,
        system: &mut dyn System,
    ) {
        let Some(peer) = self.roster.get_mut(id).filter(|peer| !peer.agenda.is_leaving()) else {
            return self.close_fds(fds);
        };
        let from = upto.saturating_sub(data.len() as u64);
        match peer.taken.checked_sub(from) {
            None => {
                let missing = from - peer.taken;
                self.close_fds(fds);
                return self.disconnect(id, Disconnect::InputMissing(missing));
            }
            Some(known) if known >= data.len() as u64 => return self.close_fds(fds),
            Some(known) => drop(data.split_to(known as usize)),
        }
        peer.taken = upto;
        self.receive(id, data, fds, system);
    }

    pub(super) fn receive(&mut self, id: PeerId, data: Bytes, fds: Fds, system: &mut dyn System) {
        let Some(peer) = self.roster.get_mut(id) else {
            return self.close_fds(fds);
        };
        if matches!(peer.phase, Phase::Authenticating(_)) {
            return self.authenticate(id, data, fds, system);
        }
        if !fds.is_empty() && !peer.takes_fds {
            self.close_fds(fds);
            return self.disconnect(id, Breach::FdsNotNegotiated.into());
        }
        peer.framer.push(data, fds);
        self.route_input(id, system);
    }

    /// More of a large message, all of it so far. What does not go on from where the message was is input as any other: of
    /// what was told before nothing counts again.
    pub(super) fn received_large(
        &mut self,
        id: PeerId,
        upto: u64,
        prefix: Bytes,
        fds: Fds,
        system: &mut dyn System,
    ) {
        let Some(peer) = self.roster.get_mut(id).filter(|peer| !peer.agenda.is_leaving()) else {
            return self.close_fds(fds);
        };
        let begin = upto.checked_sub(prefix.len() as u64);
        let is_next = peer.framer.large().is_some_and(|large| {
            upto > peer.taken && begin.is_some() && begin == peer.taken.checked_sub(large.have as u64)
        });
        if !is_next {
            return self.received(id, upto, prefix, fds, system);
        }
        if !fds.is_empty() && !peer.takes_fds {
            self.close_fds(fds);
            return self.disconnect(id, Breach::FdsNotNegotiated.into());
        }
        peer.taken = upto;
        peer.framer.push_large(prefix, fds);
        self.route_input(id, system);
    }

    /// Routes every message that has arrived completely.
    pub(super) fn route_input(&mut self, id: PeerId, system: &mut dyn System) {
        self.route_messages(id, system);
        self.bound_pending_fds(id);
    }

    fn route_messages(&mut self, id: PeerId, system: &mut dyn System) {
        let mut is_complete = false;
        loop {
            if self.pacing.is_on() && self.is_held(id) {
                return self.note_input(id, is_complete);
            }
            if self.is_anybody_crowded() && self.waits_for_room(id) {
                return self.note_input(id, is_complete);
            }
            let Some(peer) = self.roster.get_mut(id) else {
                return;
            };
            if peer.agenda.puts_off_input() {
                // What else has arrived is dealt with when that is done, if the peer is still there then.
                return self.note_input(id, is_complete);
            }
            match peer.framer.next() {
                Ok(Some(framed)) => {
                    is_complete = true;
                    let has_fds = !framed.fds.is_empty();
                    if has_fds {
                        self.settle_pending_fds(id);
                    }
                    self.dispatch(id, &framed.message, framed.fds, system);
                    if has_fds {
                        self.note_room_found(id);
                    }
                    self.shed(id);
                }
                Ok(None) => break,
                Err(error) => return self.disconnect(id, Breach::from(error).into()),
            }
            self.bury_condemned();
            if self.outgoing.is_step_over() && self.has_more_input(id) {
                self.note_input(id, is_complete);
                return self.put_off_input(id);
            }
        }
        self.note_input(id, is_complete);
        self.watch_pending_fds(id);
    }

    /// Whether a whole message of the peer waits, and it is its turn.
    fn has_more_input(&self, id: PeerId) -> bool {
        let peer = self.roster.get(id);
        peer.is_some_and(|peer| !peer.agenda.is_shedding() && peer.framer.has_whole())
    }

    /// Descriptors whose message has not arrived completely are limited in number and time; those that belong to none are
    /// closed.
    fn watch_pending_fds(&mut self, id: PeerId) {
        let Some(peer) = self.roster.get_mut(id) else {
            return;
        };
        if peer.framer.pending_fds() == 0 && peer.fds_deadline.is_none() {
            return;
        }
        self.outgoing.close_fds(peer.framer.take_surplus());
        let deadline = self.deadlines.later(self.config.limits.pending_fd_timeout);
        let pending = peer.framer.pending_fds() as u64;
        // What one message may have is not too much while it arrives.
        let limits = &self.config.limits;
        if pending > limits.max_incoming_unix_fds.max(limits.max_message_unix_fds) {
            return self.disconnect(id, Excess::PendingFds(pending).into());
        }
        match (pending > 0, peer.fds_deadline) {
            (true, None) => {
                self.deadlines.expect_fds(peer, Some(deadline));
            }
            (false, Some(_)) => self.deadlines.expect_fds(peer, None),
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// Deals with one message, completely.
    fn dispatch(&mut self, id: PeerId, message: &Message, fds: Fds, system: &mut dyn System) {
        let destination = message.destination();
        if let Some(name) = destination {
            self.settle_name(name);
        }
        let Some(peer) = self.roster.get(id) else {
            return self.close_fds(fds);
        };
        if let MessageType::Unknown(_) = message.message_type() {
            // "Unknown types must be ignored."
            return self.close_fds(fds);
        }
        if let Err(reason) = self.may_send(&peer.phase, message) {
            self.close_fds(fds);
            return self.disconnect(id, reason);
        }
        self.outgoing.note_work(1 + message.bytes().len() as u64 / 4096);
        let addressee = match destination {
            None => Addressee::All,
            Some(DRIVER) => Addressee::Driver,
            Some(name) => self.resolve(name).map_or(Addressee::Nobody, Addressee::Peer),
        };
        let mut head = std::mem::take(&mut self.scratch.head);
        head.clear();
        let is_copied = !matches!(addressee, Addressee::Driver)
            || !self.subscriptions.is_empty(Audience::Monitors)
            || self.may_eavesdrop();
        let mut tail = Tail::new();
        let stitched = match &peer.unique {
            _ if !is_copied => Ok(()),
            Some(unique) => stitch(message, &unique.name, &mut head, &mut tail),
            None => {
                let expected = self.expected_name(peer.credentials.uid);
                stitch(message, &expected, &mut head, &mut tail)
            }
        };
        match stitched {
            Ok(()) => {
                let transit = Transit {
                    message,
                    head: &head,
                    tail: &tail,
                    whole: &OnceCell::new(),
                    origin: Some(id),
                };
                self.forward(id, addressee, transit, fds, system);
            }
            Err(error) => {
                let sender = peer.unique.as_ref().map_or(NOT_ACTIVE_YET, |unique| &unique.name);
                let text = format!("{sender}: a message cannot be forwarded: {error}");
                self.close_fds(fds);
                self.warn(self.uid(id), text);
                self.send_driver_error(id, message, LIMITS_EXCEEDED, &error.to_string());
            }
        }
        self.scratch.head = head;
    }

    /// Whether a peer may send a message at all, in its phase and with so many descriptors.
    fn may_send(&self, phase: &Phase, message: &Message) -> Result<(), Disconnect> {
        match phase {
            Phase::Authenticating(_) | Phase::Greeting if !is_hello(message) => {
                return Err(Breach::NotHello.into());
            }
            Phase::Monitor => return Err(Breach::MonitorSpoke.into()),
            Phase::Authenticating(_) | Phase::Greeting | Phase::Active => {}
        }
        let limit = self.config.limits.max_message_unix_fds;
        if u64::from(message.unix_fds()) > limit {
            return Err(Excess::MessageFds(limit).into());
        }
        Ok(())
    }

    fn forward(
        &mut self,
        id: PeerId,
        addressee: Addressee,
        transit: Transit<'_>,
        fds: Fds,
        system: &mut dyn System,
    ) {
        let message = transit.message;
        self.capture(Some(id), addressee, transit, &fds, system);
        match addressee {
            Addressee::Peer(to) => self.unicast(id, to, transit, fds, system),
            Addressee::Driver => {
                // The policy is not asked about Hello.
                if !is_hello(message)
                    && let Err(denial) = self.check_policy_to_driver(id, message)
                {
                    self.close_fds(fds);
                    return self.deny(id, addressee, message, &denial);
                }
                if message.message_type() == MessageType::MethodCall {
                    driver::handle_call(self, id, message, system);
                }
                self.eavesdrop(id, addressee, transit, &fds, system);
                self.close_fds(fds);
            }
            Addressee::Nobody => {
                self.close_fds(fds);
                self.refuse_unowned(id, message);
            }
            Addressee::All => match message.message_type() {
                MessageType::Signal => {
                    let mut receivers = std::mem::take(&mut self.scratch.receivers);
                    self.collect(
                        Audience::Subscribers,
                        Some(id),
                        addressee,
                        message,
                        &mut receivers,
                    );
                    self.retain_hearers(Some(id), message, &mut receivers);
                    if self.may_broadcast(id, &receivers, &fds) {
                        self.push_copies(&receivers, transit, &fds, system);
                    }
                    receivers.clear();
                    self.scratch.receivers = receivers;
                    self.close_fds(fds);
                }
                MessageType::MethodCall => {
                    self.close_fds(fds);
                    if message.interface() == Some(PEER_INTERFACE) {
                        driver::handle_call(self, id, message, system);
                    } else {
                        let text = format!(
                            "Method \"{}\" with signature \"{}\" on interface \"{}\" doesn't exist\n",
                            message.member().unwrap_or_default(),
                            message.signature(),
                            message.interface().unwrap_or("(null)"),
                        );
                        self.send_driver_error(id, message, UNKNOWN_METHOD, &text);
                    }
                }
                MessageType::MethodReturn | MessageType::Error | MessageType::Unknown(_) => {
                    self.close_fds(fds)
                }
            },
        }
    }

    /// Whether the sender of a signal may have so many copies of its descriptors wait for peers of its user. A sender that may
    /// not is condemned, since nothing answers a signal. For those of other users see
    /// [`duplicates_for`](Self::duplicates_for).
    fn may_broadcast(&mut self, id: PeerId, receivers: &[PeerId], fds: &Fds) -> bool {
        if fds.is_empty() {
            return true;
        }
        let uid = self.uid(id);
        let takes = |receiver: &&PeerId| {
            let receiver = self.roster.get(**receiver);
            receiver.is_some_and(|peer| peer.takes_fds && peer.credentials.uid == uid)
        };
        let copies = receivers.iter().filter(takes).count() * fds.len();
        let may = self.has_room_for_fds(id, copies);
        if !may {
            self.condemn(id, Excess::Descriptors(copies as u64).into());
        }
        may
    }

    /// A message to one peer. A call is noted as open, a reply passes only if it closes an open call.
    fn unicast(&mut self, id: PeerId, to: PeerId, transit: Transit<'_>, fds: Fds, system: &mut dyn System) {
        let message = transit.message;
        let replies_to = message
            .message_type()
            .is_reply()
            .then(|| message.reply_serial())
            .flatten();
        // Whatever becomes of the reply, the call is over with it.
        let is_awaited = replies_to.is_some_and(|serial| self.close_call(id, to, serial.get()));
        if let Err(denial) = self.check_policy(id, to, message, reply_of(message, is_awaited)) {
            self.close_fds(fds);
            return self.deny(id, Addressee::Peer(to), message, &denial);
        }
        let payer = if is_awaited { to } else { id };
        let mut verdict = self.may_receive(id, to, transit, is_awaited, &fds, payer);
        if verdict.is_ok()
            && super::speak::expects_reply(message)
            && !self.open_call(to, id, message.serial().get())
        {
            verdict = Err(SERIAL_IN_USE);
        }
        if let Err((name, text)) = verdict {
            if text == TOO_MANY_FDS && !is_awaited && !super::speak::expects_reply(message) {
                // Nothing would tell it.
                self.condemn(payer, Excess::Descriptors(fds.len() as u64).into());
            }
            self.close_fds(fds);
            if let Some(serial) = replies_to {
                // The caller would wait for ever; the call is answered with the reason.
                if is_awaited {
                    self.send_in_place_of_reply(to, serial.get(), name, text);
                }
            } else {
                self.send_driver_error(id, message, name, text);
            }
            return;
        }
        // The eavesdroppers' copies are made while the descriptors are still known.
        let kept = if self.may_eavesdrop() {
            fds.clone()
        } else {
            Fds::new()
        };
        // Whoever awaits an answer makes it wait.
        let origin = transit.origin.filter(|_| !is_awaited);
        self.push(to, Transit { origin, ..transit }, fds);
        self.eavesdrop(id, Addressee::Peer(to), transit, &kept, system);
    }

    /// Whether a message may go to a peer, which awaits it or not; if not, the name and the text of the error (both as
    /// dbus-daemon's). `payer` is charged for the descriptors. That a serial is used twice shows when its call is opened, and
    /// here where something else is wrong: it goes before.
    fn may_receive(
        &mut self,
        id: PeerId,
        to: PeerId,
        transit: Transit<'_>,
        is_awaited: bool,
        fds: &Fds,
        payer: PeerId,
    ) -> Result<(), (&'static str, &'static str)> {
        let message = transit.message;
        if self.roster.get(to).is_some_and(|receiver| receiver.is_condemned) {
            return Err((NO_REPLY, DISCONNECTED));
        }
        if !message.message_type().is_reply() && self.refuses(id) {
            return Err((LIMITS_EXCEEDED, MEMORY_SHORT));
        }
        let Some(receiver) = self.roster.get(to) else {
            return Ok(());
        };
        if !fds.is_empty() && !receiver.takes_fds {
            return Err((
                NOT_SUPPORTED,
                "Tried to send message with Unix file descriptors to a client that doesn't support that.",
            ));
        }
        let expects_reply = super::speak::expects_reply(message);
        let limit = self.config.limits.max_replies_per_connection;
        let has_too_many = expects_reply && self.calls.awaited_count(id) as u64 >= limit;
        let has_no_place = expects_reply && !self.has_room_for_call();
        let has_no_room = if is_awaited {
            self.is_full_of_replies(receiver, transit.len())
        } else {
            self.is_full(receiver) || self.is_beyond(receiver, id, transit.len())
        };
        let is_full = has_no_room || (!fds.is_empty() && self.is_full_of_fds(receiver));
        if (has_too_many || has_no_place || is_full)
            && expects_reply
            && self.calls.is_open(to, id, message.serial().get())
        {
            return Err(SERIAL_IN_USE);
        }
        if has_too_many {
            return Err((
                LIMITS_EXCEEDED,
                "The maximum number of pending replies per connection has been reached",
            ));
        }
        if has_no_place {
            return Err((LIMITS_EXCEEDED, "The bus has no room for another pending reply"));
        }
        if is_full {
            self.note_congested(to);
            return Err((LIMITS_EXCEEDED, "Rejected: destination has a full message queue"));
        }
        if !fds.is_empty() && !self.has_room_for_fds(payer, fds.len()) {
            return Err((LIMITS_EXCEEDED, TOO_MANY_FDS));
        }
        Ok(())
    }

    /// Whether a message is beyond its sender's share of a queue. Where little waits, nobody's is looked at.
    fn is_beyond(&self, receiver: &Peer, from: PeerId, message: u64) -> bool {
        let limit = self.config.limits.max_outgoing_bytes;
        receiver.out.len() > counted_from(limit) && self.is_beyond_share(receiver, from, message)
    }

    /// One line in the log each time that messages for a peer begin to be refused.
    pub(super) fn note_congested(&mut self, id: PeerId) {
        let Some(peer) = self.roster.get_mut(id) else {
            return;
        };
        if !peer.is_congested {
            peer.is_congested = true;
            let text = format!(
                "{}: it does not read all that it is sent; messages for it are refused",
                peer.unique_name()
            );
            self.warn(self.uid(id), text);
        }
    }

    /// Whether anybody may see unicast messages of others by a match rule.
    fn may_eavesdrop(&self) -> bool {
        self.in_force.may_overhear() && !self.subscriptions.is_empty(Audience::Eavesdroppers)
    }

    /// Copies of a unicast message for the peers with a match rule that says `eavesdrop='true'`.
    fn eavesdrop(
        &mut self,
        id: PeerId,
        addressee: Addressee,
        transit: Transit<'_>,
        fds: &Fds,
        system: &mut dyn System,
    ) {
        // A call that made its sender an eavesdropper was not prepared for forwarding.
        if transit.head.is_empty() || !self.may_eavesdrop() {
            return;
        }
        let mut receivers = std::mem::take(&mut self.scratch.receivers);
        self.collect(
            Audience::Eavesdroppers,
            Some(id),
            addressee,
            transit.message,
            &mut receivers,
        );
        if let Addressee::Peer(to) = addressee {
            receivers.retain(|receiver| *receiver != to);
        }
        let transit = Transit {
            origin: None,
            ..transit
        };
        // Whom the message makes a monitor has no match rules any more.
        receivers.retain(|receiver| !self.is_shedding(*receiver));
        self.retain_overhearers(id, addressee, transit.message, &mut receivers);
        self.push_copies(&receivers, transit, fds, system);
        receivers.clear();
        self.scratch.receivers = receivers;
    }

    /// Nobody owns the name that a message is for.
    fn refuse_unowned(&mut self, id: PeerId, message: &Message) {
        let name = message.destination().unwrap_or_default();
        if message.flags().contains(bus_wire::Flags::NO_AUTO_START) {
            let text = format!("Name \"{name}\" does not exist");
            self.send_driver_error(id, message, NAME_HAS_NO_OWNER, &text);
        } else if self.config.services.iter().any(|service| service.name == name) {
            if let Err(denial) = self.check_policy_to_name(id, message) {
                return self.deny(id, Addressee::Nobody, message, &denial);
            }
            let text = format!("The name {name} is not owned, and this bus does not start services yet");
            self.send_driver_error(id, message, SERVICE_UNKNOWN, &text);
        } else {
            let text = format!("The name {name} was not provided by any .service files");
            self.send_driver_error(id, message, SERVICE_UNKNOWN, &text);
        }
    }
}

/// What follows the first piece of a message: the rest of a long header, and a long body.
type Tail = SmallVec<[Bytes; 3]>;

/// Puts a message under the header with which it is forwarded: what begins it into `head`, and the pieces behind that into
/// `tail`.
#[inline]
fn stitch(message: &Message, sender: &str, head: &mut Vec<u8>, tail: &mut Tail) -> Result<(), MessageError> {
    let body = message.body_bytes();
    if message.bytes().len() - body.len() > LONG_HEADER {
        return stitch_long(message, sender, head, tail);
    }
    stitch_header(message, sender, head)?;
    if body.len() >= SHARED {
        tail.push(message.body_slice());
    } else {
        head.extend_from_slice(body);
    }
    Ok(())
}

/// The same where the header is long. The body is a slice of what was received, or a copy of its own where the slice would
/// keep much more in memory than the receiver is charged: header fields that are not passed on.
#[cold]
fn stitch_long(
    message: &Message,
    sender: &str,
    head: &mut Vec<u8>,
    tail: &mut Tail,
) -> Result<(), MessageError> {
    tail.extend(stitch_long_header(message, sender, head)?);
    let body = message.body_bytes();
    let beside = message.bytes().len() - body.len();
    let is_copied = message.has_foreign_fields() && beside > body.len() / 8;
    tail.push(if is_copied {
        Bytes::copy_from_slice(body)
    } else {
        message.body_slice()
    });
    Ok(())
}

fn is_hello(message: &Message) -> bool {
    message.message_type() == MessageType::MethodCall
        && message.destination() == Some(DRIVER)
        && message.member() == Some("Hello")
        && message.interface().is_none_or(|interface| interface == DRIVER)
}
