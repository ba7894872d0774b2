//! What is held for whom, in bytes: charges that are kept up with every change, and never saved.

use super::event::PeerId;
use super::invariants::Violation;
use super::origins::Origins;
use super::peer::{Peer, Phase};
use super::roster::Roster;

/// What a socket holds in the system's memory once it takes no more: what Linux lets it, unless it is told otherwise.
const SOCKET: u64 = 208 * 1024;

/// What a match rule, a name and an open call take at most, in bytes, with all that finds them: measured with the longest
/// there can be, and rounded up. Their entries in a checkpoint are the journal's.
pub(super) const RULE: u64 = 1536;
pub(super) const NAME: u64 = 1024;
pub(super) const CALL: u64 = 512;

/// What a peer is charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Charge {
    /// Output that waits, wherever it is kept.
    pub(super) queued: u64,
    /// Input that is no whole message or line yet.
    pub(super) input: u64,
    /// Both but for output that the store has.
    loose: u64,
    /// The list of its groups, where that is long.
    pub(super) groups: u64,
}

/// Groups that nobody is charged for: more than most users are in.
const FEW_GROUPS: usize = 32;

impl Charge {
    fn of(peer: &Peer) -> Self {
        let input = match &peer.phase {
            Phase::Authenticating(sasl) => sasl.buffered(),
            Phase::Greeting | Phase::Active | Phase::Monitor => peer.framer.partial_bytes(),
        } as u64;
        let tail = peer.out.end() - peer.out.stored();
        let groups = peer.groups.as_ref().map_or(0, Vec::len);
        let groups = if groups > FEW_GROUPS { 4 * groups as u64 } else { 0 };
        Self {
            queued: peer.out.len(),
            input,
            loose: tail + input,
            groups,
        }
    }
}

/// The sum of all charges, and whose messages wait in long queues.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    queued: u64,
    input: u64,
    loose: u64,
    groups: u64,
    /// Peers with output that waits.
    waiting: u64,
    /// By the senders' indexes: the generation, and what of their messages waits.
    sent: Vec<(u32, u64)>,
}

impl Ledger {
    /// A peer's charge has changed, or may have.
    #[inline]
    pub(super) fn settle(&mut self, peer: &mut Peer) {
        let now = Charge::of(peer);
        let before = std::mem::replace(&mut peer.charge, now);
        self.queued = self.queued + now.queued - before.queued;
        self.input = self.input + now.input - before.input;
        self.loose = self.loose + now.loose - before.loose;
        self.groups = self.groups + now.groups - before.groups;
        self.waiting = self.waiting + u64::from(now.queued > 0) - u64::from(before.queued > 0);
    }

    /// The peer is gone.
    pub(super) fn forget(&mut self, peer: &mut Peer) {
        self.drained(&mut peer.origins, u64::MAX);
        let before = std::mem::take(&mut peer.charge);
        self.queued -= before.queued;
        self.input -= before.input;
        self.loose -= before.loose;
        self.groups -= before.groups;
        self.waiting -= u64::from(before.queued > 0);
    }

    /// Bytes of a message of `sender` wait in a long queue, from one absolute offset to the other.
    pub(super) fn note_waiting(&mut self, origins: &mut Origins, from: u64, upto: u64, sender: PeerId) {
        origins.push(from, upto, sender);
        let index = sender.index as usize;
        if index >= self.sent.len() {
            self.sent.resize(index + 1, (0, 0));
        }
        if let Some((generation, bytes)) = self.sent.get_mut(index) {
            if *generation != sender.generation {
                (*generation, *bytes) = (sender.generation, 0);
            }
            *bytes += upto - from;
        }
    }

    /// A queue was sent up to this offset.
    #[inline]
    pub(super) fn drained(&mut self, origins: &mut Origins, upto: u64) {
        if origins.is_empty() {
            return;
        }
        origins.drain(upto, |sender, bytes| {
            if let Some((generation, waiting)) = self.sent.get_mut(sender.index as usize)
                && *generation == sender.generation
            {
                *waiting -= bytes;
            }
        });
    }

    /// Bytes of a peer's messages that wait in long queues, as far as is known: after a restart, of those sent since.
    pub(super) fn sent_by(&self, peer: PeerId) -> u64 {
        let found = self.sent.get(peer.index as usize);
        found.map_or(
            0,
            |(generation, bytes)| {
                if *generation == peer.generation { *bytes } else { 0 }
            },
        )
    }

    /// Bytes that wait for all peers together; what waits for several is charged to each.
    pub(super) fn queued(&self) -> u64 {
        self.queued
    }

    /// Bytes of messages that have not arrived completely.
    pub(super) fn input(&self) -> u64 {
        self.input
    }

    /// Bytes of long lists of groups.
    pub(super) fn groups(&self) -> u64 {
        self.groups
    }

    /// Bytes of both beside those in the store, at most, and what the sockets of those who do not read hold.
    pub(super) fn loose(&self) -> u64 {
        self.loose + self.waiting * SOCKET
    }

    /// All charges are those of the peers.
    pub(super) fn check(&self, roster: &Roster) -> Result<(), Violation> {
        let mut sum = Self::default();
        let mut of_senders = vec![0_u64; self.sent.len()];
        for peer in roster.iter() {
            let charge = Charge::of(peer);
            if charge != peer.charge {
                let text = format!("{:?} is charged {:?} instead of {charge:?}", peer.id, peer.charge);
                return Err(Violation::new(text));
            }
            sum.queued += charge.queued;
            sum.input += charge.input;
            sum.loose += charge.loose;
            sum.groups += charge.groups;
            sum.waiting += u64::from(charge.queued > 0);
            peer.origins.check(peer.out.sent(), peer.out.end())?;
            for (sender, bytes) in peer.origins.runs() {
                let index = sender.index as usize;
                if self
                    .sent
                    .get(index)
                    .is_some_and(|(at, _)| *at == sender.generation)
                {
                    of_senders[index] += bytes;
                }
            }
        }
        let counted = (sum.queued, sum.input, sum.loose, sum.groups, sum.waiting);
        let kept = (self.queued, self.input, self.loose, self.groups, self.waiting);
        if counted != kept {
            return Err(Violation::new(format!(
                "the charges are {counted:?}, and not {kept:?}"
            )));
        }
        if !of_senders.iter().eq(self.sent.iter().map(|(_, bytes)| bytes)) {
            return Err(Violation::new("who sent what waits is counted wrongly"));
        }
        Ok(())
    }
}
