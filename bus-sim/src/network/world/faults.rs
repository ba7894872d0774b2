//! What befalls machines and network: cuts, sleep, deaths, attacks.

use super::*;

impl World {
    pub(super) fn cut(&mut self) {
        let ids: Vec<_> = self.wires.keys().copied().collect();
        let Some(id) = self.random.pick(&ids).copied() else {
            return;
        };
        let Some(wire) = self.wires.get_mut(&id) else {
            return;
        };
        let how = self.random.below(4);
        match how {
            // Both are told, at different times, perhaps long after: the bytes that fly are lost from any one on.
            0 | 1 => {
                for way in [&mut wire.to_host, &mut wire.to_client] {
                    let keep = self.random.index(way.flying() + 1);
                    let told = if self.random.percent(20) {
                        20_000_000
                    } else {
                        30_000
                    };
                    way.cut(keep, self.now + self.random.below(told));
                }
            }
            2 => wire.to_host.silent = true,
            _ => wire.to_client.silent = true,
        }
        self.note(|| format!("carrier {} is cut ({how})", id.0));
    }

    pub(super) fn cut_all(&mut self) {
        for wire in self.wires.values_mut().filter(|wire| wire.accept_at.is_none()) {
            for way in [&mut wire.to_host, &mut wire.to_client] {
                if way.has_room() {
                    let keep = self.random.index(way.flying() + 1);
                    way.cut(keep, self.now);
                }
            }
        }
    }

    pub(super) fn sleep(&mut self) {
        let long = self.random.below(12_000_000);
        let near = self.random.percent(50);
        let machine = if near {
            &mut self.near.machine
        } else {
            &mut self.far.machine
        };
        if !machine.awake(self.now) {
            return;
        }
        machine.sleep(self.now + long);
        if near && self.options.sabotage == Some(Sabotage::ClockStops) {
            machine.miss(long.min(self.now));
        }
        self.stats.sleeps += 1;
        self.note(|| {
            format!(
                "{} sleeps for {} ms",
                if near { "client" } else { "host" },
                long / 1000
            )
        });
    }

    /// Only what was journalled is left.
    pub(super) fn near_dies(&mut self) -> Checked {
        if self.near.finishing {
            return Ok(());
        }
        self.stats.deaths += 1;
        self.note(|| "the client dies".into());
        let broken: Vec<_> = self
            .wires
            .values()
            .filter(|wire| wire.who == CLIENT)
            .map(|wire| wire.id)
            .collect();
        for id in broken {
            self.client_closes(id);
        }
        self.near.machine.restart(&mut self.random);
        let (session, stream) = &self.near.journal;
        let saved = decode(Kind::Session, session).map_err(|error| error.to_string())?;
        let now = self.near.machine.clock(self.now);
        self.near.session =
            Session::restore(&saved, now, self.random.next()).map_err(|error| error.to_string())?;
        self.near.stream = Stream::restore(stream);
        self.near.fails_at = None;
        Ok(())
    }

    pub(super) fn far_dies(&mut self) -> Checked {
        self.stats.deaths += 1;
        self.note(|| "the host dies".into());
        let ids: Vec<_> = self.wires.keys().copied().collect();
        for id in ids {
            self.host_closes(id);
        }
        self.far.machine.restart(&mut self.random);
        let (host, streams) = &self.far.journal;
        let saved = decode(Kind::Host, host).map_err(|error| error.to_string())?;
        let now = self.far.machine.clock(self.now);
        self.far.host = Host::restore(&saved, host_config(), now, self.random.next())
            .map_err(|error| error.to_string())?;
        self.far.streams = streams
            .iter()
            .map(|(id, saved)| (*id, Stream::restore(saved)))
            .collect();
        Ok(())
    }

    pub(super) fn attack(&mut self) {
        self.stats.attacks += 1;
        let speech = self.attacker.speech(self.near.session.id(), &mut self.random);
        self.next_wire += 1;
        // On a carrier without TLS it is whoever it wants to be; with TLS it has a key of its own.
        let mut wire = Wire::new(self.next_wire, self.now, MALLORY, &mut self.random);
        if !wire.tls && self.random.percent(50) {
            wire.who = MASK;
        }
        wire.attach_at = None;
        wire.to_client.done = true;
        wire.to_host.send(self.now + 2 * wire.latency(), speech);
        let close = self.now + self.random.below(20_000_000);
        wire.to_host.close(close);
        self.wires.insert(wire.id, wire);
    }
}
