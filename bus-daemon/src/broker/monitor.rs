//! Copies for monitors: every message that the bus receives or sends, before the message has any effect.

use bus_wire::{Fd, Message};

use super::deliver::Transit;
use super::event::PeerId;
use super::subscriptions::Audience;
use super::{Broker, DRIVER, Facts, System};

/// Names of one side of a message.
pub(super) type NamesOf<'a> = smallvec::SmallVec<[&'a str; 4]>;

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
            self.push_own_copy(receiver, message);
        }
        self.scratch.receivers = receivers;
    }

    /// The peers of the audience that have a rule for a message from `sender` (`None`: the driver).
    pub(super) fn collect(
        &self,
        audience: Audience,
        sender: Option<PeerId>,
        addressee: Addressee,
        message: &Message,
        receivers: &mut Vec<PeerId>,
    ) {
        let sender_names = match sender {
            Some(id) => self.names_of(id),
            None => NamesOf::from_slice(&[DRIVER]),
        };
        let destination_names = match addressee {
            Addressee::All => NamesOf::new(),
            Addressee::Driver => NamesOf::from_slice(&[DRIVER]),
            Addressee::Peer(id) => self.names_of(id),
            Addressee::Nobody => message.destination().into_iter().collect(),
        };
        let facts = Facts {
            message,
            sender_names: &sender_names,
            destination_names: &destination_names,
        };
        self.subscriptions.listeners(audience, &facts, receivers);
    }

    /// Every name that a peer is the primary owner of, its unique name first.
    fn names_of(&self, id: PeerId) -> NamesOf<'_> {
        let Some(peer) = self.roster.get(id) else {
            return NamesOf::new();
        };
        let unique = peer.unique.iter().map(|unique| &*unique.name);
        unique
            .chain(self.names.owned_by(id).map(|name| &**name))
            .collect()
    }
}
