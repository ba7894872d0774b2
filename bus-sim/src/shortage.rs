//! Memory is short: what the broker says is to be done about it, or something else that a runtime could have noted.

use bus_daemon::broker::{Event, Memory, PeerId, Relief};

use crate::model::Check;
use crate::world::World;

impl World {
    /// Something is done about memory.
    pub(crate) fn run_short(&mut self) -> Check {
        let relief = if self.random.percent(50) {
            let broker = &self.bus.broker;
            let queues = broker.peer_ids().filter_map(|id| broker.send_queue(id));
            let held: u64 = queues.map(bus_wire::SendQueue::len).sum();
            // From just enough to an emergency.
            let cap = held * 10 / (8 + self.random.below(6));
            broker.relief(Memory { held, cap })
        } else {
            Some(self.any_relief())
        };
        let Some(relief) = relief else { return Ok(()) };
        self.note(|| format!("memory is short: {relief:?}"));
        self.stats.held_back += relief.hold_back.len() as u64;
        self.stats.dismissed += relief.dismiss.len() as u64;
        self.apply(Event::Relieved(relief.clone()), |model| {
            model.relieved(&relief.hold_back, &relief.dismiss)
        })
    }

    fn any_relief(&mut self) -> Relief {
        let ids: Vec<PeerId> = self.bus.broker.peer_ids().collect();
        let mut relief = Relief::default();
        for id in ids {
            match self.random.below(10) {
                0..3 => relief.hold_back.push(id),
                3 if self.random.percent(20) => relief.dismiss.push(id),
                _ => {}
            }
        }
        relief
    }

    /// Time goes on until nobody is held back any more: an upgrade does not take that along. False if nobody is.
    pub(crate) fn outwait_shortage(&mut self) -> Check<bool> {
        let Some(until) = self.bus.model.held_back_until() else {
            return Ok(false);
        };
        self.now = self.now.max(until);
        self.tick()?;
        Ok(true)
    }
}
