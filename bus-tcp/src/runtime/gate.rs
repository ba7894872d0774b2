//! How many handshakes there may be: what strangers cost is bounded, and those who have a session go first.

use crate::moment::Moment;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Handshakes in a second.
pub(crate) const A_SECOND: u32 = 100;
/// Of these, those that strangers leave to addresses from which a session came before.
const RESERVE: u32 = 30;
/// Connections before their end of the handshake.
pub(crate) const AT_ONCE: usize = 256;
/// Of these, those of one address.
const OF_ONE: usize = 64;
/// Addresses that are remembered.
const KNOWN: usize = 4096;

/// Counts handshakes.
#[derive(Debug)]
pub(super) struct Gate {
    /// Thousandths of a handshake that may be begun now.
    tokens: u64,
    filled: Moment,
    running: BTreeMap<IpAddr, usize>,
    at_once: usize,
    known: BTreeMap<IpAddr, Moment>,
}

impl Gate {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            tokens: u64::from(A_SECOND) * 1000,
            filled: now,
            running: BTreeMap::new(),
            at_once: 0,
            known: BTreeMap::new(),
        }
    }

    /// Whether one more may be accepted. If so, [`leave`](Self::leave) comes after it.
    pub(super) fn enter(&mut self, from: IpAddr) -> bool {
        let known = self.known.contains_key(&from);
        let most = if known { AT_ONCE } else { AT_ONCE * 3 / 4 };
        let mine = self.running.get(&from).copied().unwrap_or(0);
        if self.at_once >= most || mine >= OF_ONE {
            return false;
        }
        self.at_once += 1;
        *self.running.entry(from).or_default() += 1;
        true
    }

    pub(super) fn leave(&mut self, from: IpAddr) {
        self.at_once -= 1;
        if let Some(mine) = self.running.get_mut(&from) {
            *mine -= 1;
            if *mine == 0 {
                self.running.remove(&from);
            }
        }
    }

    /// Whether a handshake may be computed now; otherwise when to ask again.
    pub(super) fn compute(&mut self, now: Moment, from: IpAddr) -> Result<(), Duration> {
        let full = u64::from(A_SECOND) * 1000;
        let passed = now.since(self.filled).as_micros();
        let more = u64::try_from(passed)
            .unwrap_or(u64::MAX)
            .saturating_mul(A_SECOND.into())
            / 1000;
        if more > 0 {
            self.tokens = full.min(self.tokens.saturating_add(more));
            self.filled = now;
        }
        let floor = if self.known.contains_key(&from) {
            0
        } else {
            u64::from(RESERVE) * 1000
        };
        if self.tokens >= floor + 1000 {
            self.tokens -= 1000;
            return Ok(());
        }
        Err(Duration::from_millis(
            1 + (floor + 1000 - self.tokens) / u64::from(A_SECOND),
        ))
    }

    /// A session came from there.
    pub(super) fn welcome(&mut self, now: Moment, from: IpAddr) {
        if self.known.len() >= KNOWN
            && let Some(oldest) = self
                .known
                .iter()
                .min_by_key(|(_, at)| **at)
                .map(|(from, _)| *from)
        {
            self.known.remove(&oldest);
        }
        self.known.insert(from, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const FRIEND: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn strangers_leave_room_for_those_who_resume() {
        let start = Moment::from_micros(1_000_000);
        let mut gate = Gate::new(start);
        gate.welcome(start, FRIEND);
        let (mut strangers, mut friends) = (0, 0);
        for ms in 0..2000 {
            let now = start + Duration::from_millis(ms);
            for _ in 0..10 {
                strangers += u32::from(gate.compute(now, STRANGER).is_ok());
            }
            if ms % 100 == 99 {
                friends += u32::from(gate.compute(now, FRIEND).is_ok());
            }
        }
        assert_eq!(friends, 20, "none waited");
        assert!(
            (200..=A_SECOND * 3).contains(&strangers),
            "{strangers} in two seconds"
        );
    }

    #[test]
    fn one_address_has_not_all_places() {
        let mut gate = Gate::new(Moment::default());
        gate.welcome(Moment::default(), FRIEND);
        let taken = (0..1000).filter(|_| gate.enter(STRANGER)).count();
        assert_eq!(taken, OF_ONE);
        assert!(gate.enter(FRIEND));
        for _ in 0..OF_ONE {
            gate.leave(STRANGER);
        }
        gate.leave(FRIEND);
        assert!(gate.running.is_empty() && gate.at_once == 0);
    }
}
