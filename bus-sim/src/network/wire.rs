//! A carrier: bytes in flight in both directions, and all that may become of them.

use crate::random::Random;
use bus_tcp::resume::{Binding, Nonce};
use bus_tcp::session::CarrierId;
use bytes::Bytes;
use std::collections::VecDeque;

/// Bytes in flight at most; then the sender waits.
const SOCKET: usize = 48 * 1024;

/// One carrier.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) id: CarrierId,
    /// One way, in microseconds.
    latency: u64,
    /// Whether it is encrypted; otherwise the host makes up a nonce.
    pub(super) tls: bool,
    /// What TLS exports at both ends, or the nonce.
    pub(super) secret: [u8; 32],
    /// When each end comes to know it; None: it does already.
    pub(super) accept_at: Option<u64>,
    pub(super) attach_at: Option<u64>,
    pub(super) to_host: Way,
    pub(super) to_client: Way,
    /// Who is at the other end.
    pub(super) who: &'static str,
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Way {
    flying: VecDeque<(u64, Bytes)>,
    length: usize,
    /// What is sent from now on arrives nowhere, and nobody is told.
    pub(super) silent: bool,
    /// When the receiver learns that there will be no more.
    end_at: Option<u64>,
    /// The receiver has closed it, or knows of the end.
    pub(super) done: bool,
}

impl Wire {
    pub(super) fn new(id: u64, now: u64, who: &'static str, random: &mut Random) -> Self {
        // Now and then a carrier is so slow that a later one overtakes it.
        let latency = if random.percent(10) {
            random.below(2_000_000)
        } else {
            500 + random.below(40_000)
        };
        let mut secret = [0; 32];
        for chunk in secret.chunks_mut(8) {
            chunk.copy_from_slice(&random.next().to_be_bytes());
        }
        Self {
            id: CarrierId(id),
            latency,
            tls: random.percent(60),
            secret,
            accept_at: Some(now + latency),
            attach_at: Some(now + 2 * latency),
            to_host: Way::default(),
            to_client: Way::default(),
            who,
        }
    }

    pub(super) fn hurry(&mut self, now: u64) {
        self.latency = self.latency.min(5_000);
        self.accept_at = Some(now + self.latency);
        self.attach_at = Some(now + 2 * self.latency);
    }

    pub(super) const fn binding(&self) -> Binding {
        Binding(self.secret)
    }

    pub(super) const fn nonce(&self) -> Nonce {
        Nonce(self.secret)
    }

    pub(super) const fn latency(&self) -> u64 {
        self.latency
    }

    pub(super) const fn over(&self) -> bool {
        self.to_host.done && self.to_client.done
    }
}

impl Way {
    pub(super) const fn has_room(&self) -> bool {
        self.length < SOCKET && self.end_at.is_none()
    }

    pub(super) fn send(&mut self, arrives: u64, bytes: Vec<u8>) {
        if self.silent || self.end_at.is_some() {
            return;
        }
        self.length += bytes.len();
        let arrives = self.flying.back().map_or(arrives, |(last, _)| arrives.max(*last));
        self.flying.push_back((arrives, bytes.into()));
    }

    /// The sender closes: what flies still arrives.
    pub(super) fn close(&mut self, arrives: u64) {
        if self.end_at.is_none() {
            let last = self.flying.back().map_or(arrives, |(last, _)| arrives.max(*last));
            self.end_at = Some(last);
        }
    }

    /// All but the first `keep` bytes that fly are lost, and the receiver learns at `told` that it is over.
    pub(super) fn cut(&mut self, keep: usize, told: u64) {
        let mut left = keep;
        self.length = 0;
        for (_, bytes) in &mut self.flying {
            bytes.truncate(left);
            left -= bytes.len();
            self.length += bytes.len();
        }
        self.flying.retain(|(_, bytes)| !bytes.is_empty());
        let last = self.flying.back().map_or(told, |(last, _)| told.max(*last));
        self.end_at = Some(last);
    }

    pub(super) const fn flying(&self) -> usize {
        self.length
    }

    /// Something that has arrived.
    pub(super) fn arrived(&mut self, now: u64, random: &mut Random) -> Option<Bytes> {
        let (at, bytes) = self.flying.front_mut()?;
        if *at > now {
            return None;
        }
        let part = match random.below(3) {
            0 => 1 + random.index(bytes.len()),
            _ => bytes.len(),
        };
        let bytes = bytes.split_to(part.min(bytes.len()));
        if self.flying.front().is_some_and(|(_, left)| left.is_empty()) {
            self.flying.pop_front();
        }
        self.length -= bytes.len();
        Some(bytes)
    }

    /// Whether the receiver has to be told now that it is over.
    pub(super) fn ended(&mut self, now: u64) -> bool {
        !self.done && self.flying.is_empty() && self.end_at.is_some_and(|at| at <= now)
    }
}
