//! Copies for monitors: every message that the bus receives or sends, before the message has any effect.

use bus_wire::{Fd, Message};

use super::deliver::Transit;
use super::event::PeerId;
use super::match_index::{Facts, Side};
use super::subscriptions::Audience;
use super::{Broker, DRIVER, System};

/// The recipient of a message, as far as match rules are concerned.
#[derive(Debug, Clone, Copy)]
pub(super) enum Addressee {
    /// The peers that asked for the message with a match rule.
    All,
    Driver,
    Peer(PeerId),
    /// Nobody has the name in its header.
    Nobody,
}

impl Broker {
    /// Copies of a message from a peer, or from the driver (`None`).
    pub(super) fn capture(
        &mut self,
        sender: Option<PeerId>,
        addressee: Addressee,
        transit: Transit<'_>,
        fds: &[Fd],
        system: &mut dyn System,
    ) {
        if self.subscriptions.is_empty(Audience::Monitors) {
            return;
        }
        let mut receivers = std::mem::take(&mut self.scratch.receivers);
        self.collect(
            Audience::Monitors,
            sender,
            addressee,
            transit.message,
            &mut receivers,
        );
        let transit = Transit {
            origin: None,
            ..transit
        };
        self.push_copies(&receivers, transit, fds, system);
        receivers.clear();
        self.scratch.receivers = receivers;
    }

    /// Copies of a message of the driver, without descriptors.
    pub(super) fn capture_own(&mut self, addressee: Addressee, message: &Message) {
        if self.subscriptions.is_empty(Audience::Monitors) {
            return;
        }
        let mut receivers = std::mem::take(&mut self.scratch.receivers);
        self.collect(Audience::Monitors, None, addressee, message, &mut receivers);
        for receiver in receivers.drain(..) {
            self.push_own_copy(receiver, None, message);
        }
        self.scratch.receivers = receivers;
    }

    /// The peers of the audience that have a rule for a message from `sender` (`None`: the driver).
    pub(super) fn collect(
        &mut self,
        audience: Audience,
        sender: Option<PeerId>,
        addressee: Addressee,
        message: &Message,
        receivers: &mut Vec<PeerId>,
    ) {
        let facts = Facts {
            message,
            sender: sender.map_or(Side::Name(DRIVER), |id| self.side(id)),
            destination: match addressee {
                Addressee::All => Side::Nobody,
                Addressee::Driver => Side::Name(DRIVER),
                Addressee::Peer(id) => self.side(id),
                Addressee::Nobody => message.destination().map_or(Side::Nobody, Side::Name),
            },
        };
        let effort = self.subscriptions.listeners(audience, &facts, receivers);
        self.outgoing.note_work(effort.work());
    }

    fn side(&self, id: PeerId) -> Side<'_> {
        let unique = self.roster.get(id).and_then(|peer| peer.unique.as_ref());
        Side::Peer {
            id,
            unique: unique.map(|unique| &*unique.name),
            names: &self.names,
        }
    }
}
