//! Whose bytes wait for a peer, and whose next message waits for that: the rules of `docs/fair-shares.md` once more.
//!
//! How long a sender waits the model does not foretell: it takes that from the broker, and sees to it that each wait ends
//! at its time, and is none that nobody could sit out.

use std::collections::BTreeMap;

use bus_daemon::broker::PeerId;

use super::{Check, Model, Peer, Phase, Trouble, wrong};

/// Milliseconds that no wait takes: clients send little.
const LONGEST: u64 = 60_000;
/// About as long as the text of an error can be.
pub(super) const DOUBT: u64 = 600;
/// So many peers of a receiver's user have cells of their own.
const PEERS: usize = 64;

/// Who makes bytes wait, in the order in which what cannot be divided is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Party {
    Own,
    Peer(PeerId),
    /// Peers that have no cell of their own.
    Peers,
    User(u32),
}

/// A peer whose next message waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Paced {
    /// Where that message begins in the peer's stream.
    pub(crate) at: u64,
    /// Until when.
    pub(crate) until: u64,
}

impl Peer {
    /// So many bytes of a party wait, behind those that were queued before.
    pub(super) fn count(&mut self, party: Party, bytes: u64, limit: u64) {
        self.queued += bytes;
        if self.queued > counted_from(limit) || !self.cells.is_empty() {
            *self.cells.entry(self.holder(party)).or_insert(0) += bytes;
        }
    }

    /// What it awaits, and asked for.
    pub(super) fn own(&self) -> u64 {
        self.cells.get(&Party::Own).copied().unwrap_or(0)
    }

    /// Whether so little waits that nobody's share is looked at.
    pub(super) fn is_short(&self, limit: u64) -> Check<bool> {
        if self.is_uncertain && self.queued.abs_diff(counted_from(limit)) < DOUBT {
            return Err(Trouble::Unknowable);
        }
        Ok(self.queued <= counted_from(limit))
    }

    /// In whose cell a party's bytes are, or come.
    fn holder(&self, party: Party) -> Party {
        let is_peer = |party: &Party| matches!(party, Party::Peer(_));
        let peers = self.cells.keys().filter(|party| is_peer(party)).count();
        if is_peer(&party) && !self.cells.contains_key(&party) && peers >= PEERS {
            Party::Peers
        } else {
            party
        }
    }

    /// So many bytes were taken: what is nobody's first, then as much of each side as there is, byte by byte in turns; and
    /// what is of the receiver's own side in the same way of the parties there.
    pub(super) fn uncount(&mut self, bytes: u64) {
        let counted: u64 = self.cells.values().sum();
        let rest = bytes.saturating_sub(self.queued - counted);
        self.queued = self.queued.saturating_sub(bytes);
        let mut sides: BTreeMap<Option<Party>, u64> = BTreeMap::new();
        for (party, cell) in &self.cells {
            *sides.entry(party.side()).or_insert(0) += cell;
        }
        let own = sides.get(&None).copied().unwrap_or(0);
        take_in_turns(&mut sides, rest);
        let own_rest = own - sides.get(&None).copied().unwrap_or(0);
        let (mut own_side, _) = self.divided();
        take_in_turns(&mut own_side, own_rest);
        let others = sides.into_iter().filter_map(|(side, cell)| Some((side?, cell)));
        self.cells = own_side.into_iter().chain(others).collect();
        if self.queued == 0 {
            self.cells.clear();
        }
    }

    /// The cells of the receiver's own side, and those of other users.
    fn divided(&self) -> (BTreeMap<Party, u64>, BTreeMap<Party, u64>) {
        let cells = self.cells.iter().map(|(party, cell)| (*party, *cell));
        cells.partition(|(party, _)| party.side().is_none())
    }
}

impl Party {
    /// Another user is a side of its own; `None`: the receiver, and all peers of its user.
    fn side(self) -> Option<Self> {
        match self {
            Self::Own | Self::Peer(_) | Self::Peers => None,
            Self::User(_) => Some(self),
        }
    }
}

/// From which length on a queue with this limit is long.
fn counted_from(limit: u64) -> u64 {
    (limit / 8).min(16 * 1024)
}

/// Takes so many bytes, of each in turn while it has any, in the order of the keys.
fn take_in_turns<K: Ord>(cells: &mut BTreeMap<K, u64>, mut rest: u64) {
    while rest > 0 && !cells.is_empty() {
        let smallest = cells.values().min().copied().unwrap_or(1);
        let rounds = smallest.min(rest / cells.len() as u64);
        for cell in cells.values_mut() {
            let part = if rounds == 0 { rest.min(1) } else { rounds };
            *cell -= part;
            rest -= part;
        }
        cells.retain(|_, cell| *cell > 0);
    }
}

impl Model {
    pub(super) fn party(&self, from: Option<PeerId>, to: PeerId) -> Party {
        let uid = |id: PeerId| self.peers.get(&id).map(|peer| peer.uid);
        match from.and_then(|id| Some((id, uid(id)?))) {
            None => Party::Own,
            Some((id, own)) if uid(to) == Some(own) => Party::Peer(id),
            Some((_, other)) => Party::User(other),
        }
    }

    /// Whether so long a message is more than its sender may have wait for a peer.
    pub(super) fn is_beyond_share(&self, from: PeerId, to: PeerId, message: u64) -> Check<bool> {
        let Some(peer) = self.peers.get(&to) else {
            return Ok(false);
        };
        if peer.is_short(self.limits.max_outgoing_bytes)? {
            return Ok(false);
        }
        let party = peer.holder(self.party(Some(from), to));
        let cell = peer.cells.get(&party).copied().unwrap_or(0);
        if cell == 0 {
            return Ok(false);
        }
        if peer.is_uncertain {
            return Err(Trouble::Unknowable);
        }
        let (own_side, others) = peer.divided();
        let sides = others.len() as u64 + u64::from(!own_side.is_empty());
        let limit = self.limits.max_outgoing_bytes;
        if party.side().is_some() {
            let not_its = peer.queued - cell;
            return Ok((sides + 1) * (cell + message) > limit.saturating_sub(not_its));
        }
        // Of the part of its side, what is not others' of that side.
        let of_side: u64 = own_side.values().sum();
        let parties = own_side.len() as u64;
        let needed = (parties + 1) * (cell + message) + (of_side - cell);
        Ok(sides * needed > limit.saturating_sub(peer.queued) + of_side)
    }

    /// The pieces of peers whose time has come are dealt with, in the order of their times.
    pub(super) fn end_waits(&mut self) -> Check {
        let due = |peer: &Peer| peer.paced.filter(|paced| paced.until <= self.now);
        let peers = self.peers.iter();
        let mut ready: Vec<(u64, PeerId)> = peers
            .filter_map(|(id, peer)| Some((due(peer)?.until, *id)))
            .collect();
        ready.sort_unstable();
        for (_, id) in ready {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.paced = None;
                if matches!(peer.phase, Phase::Authenticating | Phase::Greeting) {
                    peer.hello_deadline = Some(self.now + self.limits.auth_timeout);
                }
                self.proceed(id)?;
            }
        }
        Ok(())
    }

    /// Who waits after an event: those who waited before do so still if their time has not come, and nobody for long.
    pub(super) fn note_waits(&mut self) -> Check {
        let waits: BTreeMap<PeerId, Paced> = std::mem::take(&mut self.seen.paced);
        for (id, peer) in &mut self.peers {
            let new = waits.get(id).copied();
            if let Some(before) = peer.paced
                && new != Some(before)
            {
                return wrong(format!("{id:?} waits as {new:?}, and must as {before:?}"));
            }
            if let Some(new) = new
                && (new.until <= self.now || new.until > self.now + LONGEST)
            {
                return wrong(format!("at {} {id:?} waits until {}", self.now, new.until));
            }
            peer.paced = new;
        }
        Ok(())
    }

    /// Until when the first of those waits whose messages do.
    pub(crate) fn paced_until(&self) -> Option<u64> {
        let waits = self.peers.values().filter_map(|peer| peer.paced);
        waits.map(|paced| paced.until).min()
    }
}
