//! Checkpoints as the journal takes them: only what changed since the one before is saved again, some of it ahead.

use std::collections::BTreeMap;

use bus_daemon::broker::{Blob, Broker, BrokerState, ConfigV1, GlobalV2, NameV1, PeerV2};
use bus_wire::Fd;

use crate::model::{Check, wrong};
use crate::random::Random;

/// The newest checkpoint, and what is written ahead of the next one.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    bus: Option<GlobalV2>,
    config: Option<ConfigV1>,
    /// The memfd that the configuration came in.
    config_source: Option<Fd>,
    names: Option<Vec<NameV1>>,
    peers: BTreeMap<u32, (PeerV2, Vec<Blob>)>,
    ahead: BTreeMap<u32, Option<(PeerV2, Vec<Blob>)>>,
}

impl Checkpoint {
    /// Writes some of the peers that changed.
    pub(crate) fn write_ahead(&mut self, broker: &mut Broker, random: &mut Random) {
        let mut changed = Vec::new();
        broker.take_changed_peers(random.below(4) as usize, &mut changed);
        for index in changed {
            self.ahead.insert(index, broker.save_at(index));
        }
    }

    /// All that has happened is part of it from now on.
    pub(crate) fn take(&mut self, broker: &mut Broker, random: &mut Random) {
        if random.percent(30) {
            // The log, or an extent, is to be used again.
            broker.move_output_out(&|_| true);
        }
        let mut changed = Vec::new();
        broker.take_changed_peers(usize::MAX, &mut changed);
        for index in changed {
            self.ahead.insert(index, broker.save_at(index));
        }
        for (index, saved) in std::mem::take(&mut self.ahead) {
            match saved {
                Some(saved) => self.peers.insert(index, saved),
                None => self.peers.remove(&index),
            };
        }
        if broker.are_names_changed() || self.names.is_none() {
            self.names = Some(broker.save_names());
            broker.note_names_saved();
        }
        if broker.is_config_changed() || self.config.is_none() {
            self.config = Some(broker.save_config());
            self.config_source = broker.config_source();
            broker.note_config_saved();
        }
        self.bus = Some(broker.save_bus());
    }

    /// Who wrote ahead has died.
    pub(crate) fn forget_ahead(&mut self) {
        self.ahead.clear();
    }

    /// The broker as it was.
    pub(crate) fn restore(&self) -> Check<Broker> {
        let (Some(bus), Some(config), Some(names)) =
            (self.bus.clone(), self.config.clone(), self.names.clone())
        else {
            return wrong("there is no checkpoint");
        };
        let (mut peers, mut shared, mut roster) = (Vec::new(), Vec::new(), Vec::new());
        for (record, bodies) in self.peers.values() {
            let mut record = record.clone();
            record.shift_bodies(shared.len() as u32);
            shared.extend(bodies.iter().cloned());
            roster.push((record.id(), record.unique()));
            peers.push(record);
        }
        let state = BrokerState {
            global: bus.complete(config, names, roster),
            peers,
            shared,
        };
        match Broker::restore(state) {
            Ok((mut broker, dropped)) if dropped.is_empty() => {
                broker.set_config_source(self.config_source);
                Ok(broker)
            }
            Ok((_, dropped)) => wrong(format!("a checkpoint lost something: {dropped:?}")),
            Err(error) => wrong(format!("a checkpoint cannot be restored: {error}")),
        }
    }
}
