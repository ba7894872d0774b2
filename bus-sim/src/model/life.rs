//! How peers come and go, and what time does to them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bus_daemon::broker::PeerId;

use super::{Check, Meaning, Model, Peer, Phase, Piece, wrong};
use crate::files::File;
use crate::letter::Letter;

impl Model {
    pub(crate) fn accepted(&mut self, id: PeerId, uid: u32, pid: u32) {
        let peer = Peer {
            uid,
            pid,
            phase: Phase::Authenticating,
            unique: None,
            is_reachable: false,
            is_parked: false,
            takes_fds: false,
            is_condemned: false,
            stream: VecDeque::new(),
            delivered: 0,
            held: VecDeque::new(),
            queued: 0,
            queued_fds: 0,
            cells: BTreeMap::new(),
            paced: None,
            is_uncertain: false,
            hello_deadline: Some(self.now + self.limits.auth_timeout),
            is_waiting: false,
            fds_deadline: None,
            names: Vec::new(),
            rules: Vec::new(),
            owed: BTreeMap::new(),
            awaited: BTreeSet::new(),
            refused_until: 0,
        };
        self.peers.insert(id, peer);
        self.give_slots();
    }

    /// Of each user's peers that have not said Hello so many are read from: those that came first. The time of the others
    /// begins when they are.
    pub(super) fn give_slots(&mut self) {
        let mut newcomers: Vec<_> = self
            .peers
            .iter_mut()
            .filter(|(_, peer)| matches!(peer.phase, Phase::Authenticating | Phase::Greeting))
            .collect();
        newcomers.sort_by_key(|(id, _)| (id.generation, id.index));
        let slots = self.limits.max_incomplete_connections.max(1);
        let mut all: BTreeMap<u32, u64> = BTreeMap::new();
        for (_, peer) in &newcomers {
            *all.entry(peer.uid).or_insert(0) += 1;
        }
        let mut used: BTreeMap<u32, u64> = BTreeMap::new();
        for (_, peer) in newcomers {
            let used = used.entry(peer.uid).or_insert(0);
            *used += 1;
            let was_waiting = std::mem::replace(&mut peer.is_waiting, *used > slots);
            let rounds = if peer.is_waiting {
                1 + all[&peer.uid] / slots
            } else {
                1
            };
            if was_waiting != peer.is_waiting && peer.hello_deadline.is_some() {
                peer.hello_deadline = Some(self.now + self.limits.auth_timeout * rounds);
            }
        }
    }

    /// A client wrote something; the bus has not read it yet.
    pub(crate) fn written(&mut self, id: PeerId, mut piece: Piece) {
        if piece.end - piece.start > self.limits.max_message_size {
            piece.meaning = Meaning::Malformed;
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.stream.push_back(piece);
        }
    }

    /// The bus read so many bytes of a peer's stream, and these files with them.
    pub(crate) fn received(&mut self, id: PeerId, count: u64, files: Vec<File>) -> Check {
        let Some(peer) = self.peers.get_mut(&id) else {
            return Ok(());
        };
        peer.delivered += count;
        if peer.phase == Phase::Authenticating && !self.authenticate(id, &files)? {
            return Ok(());
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            return Ok(());
        };
        if !files.is_empty() && !peer.takes_fds {
            return self.disconnect(id);
        }
        peer.held.extend(files);
        self.proceed(id)
    }

    /// Deals with what has arrived from a peer, up to a message that waits for its time.
    pub(super) fn proceed(&mut self, id: PeerId) -> Check {
        let held_at = self.seen.paced.get(&id).map_or(u64::MAX, |paced| paced.at);
        loop {
            let Some(peer) = self.peers.get_mut(&id) else {
                return Ok(());
            };
            let Some(piece) = peer.next_piece(held_at) else {
                break;
            };
            match piece.meaning {
                Meaning::Letter(letter) => {
                    if peer.held.len() < letter.files.len() {
                        return wrong(format!("the simulation lost files of {}", letter.short()));
                    }
                    let files: Vec<File> = peer.held.drain(..letter.files.len()).collect();
                    if files != letter.files {
                        return wrong("the simulation mixed up files");
                    }
                    self.route(id, &letter)?;
                }
                Meaning::Ignored(count) => {
                    peer.held.drain(..count);
                }
                Meaning::Malformed | Meaning::Kick => return self.disconnect(id),
                Meaning::Line(_) | Meaning::Begin { .. } => return wrong("the simulation lost its place"),
            }
            self.bury()?;
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            return Ok(());
        };
        if held_at < u64::MAX {
            (peer.fds_deadline, peer.hello_deadline) = (None, None);
            return Ok(());
        }
        if let Some(piece) = peer.stream.front()
            && matches!(piece.meaning, Meaning::Malformed)
            && piece.start < peer.delivered
            && self.seen.gone.contains(&id)
        {
            return self.disconnect(id);
        }
        let most = self
            .limits
            .max_incoming_unix_fds
            .max(self.limits.max_message_unix_fds);
        if peer.held.len() as u64 > most {
            return self.disconnect(id);
        }
        if peer.held.is_empty() {
            peer.fds_deadline = None;
        } else if peer.fds_deadline.is_none() {
            peer.fds_deadline = Some(self.now + self.limits.pending_fd_timeout);
        }
        Ok(())
    }

    /// The part of a stream before BEGIN. True if what follows are messages.
    fn authenticate(&mut self, id: PeerId, files: &[File]) -> Check<bool> {
        let Some(peer) = self.peers.get_mut(&id) else {
            return Ok(false);
        };
        while let Some(piece) = peer.next_piece(u64::MAX) {
            match piece.meaning {
                Meaning::Line("") => {}
                Meaning::Line(expected) => {
                    let lines = self.seen.lines.entry(id).or_default();
                    match lines.pop_front() {
                        Some(line) if line.starts_with(expected) => peer.queued += line.len() as u64,
                        None if self.seen.gone.contains(&id) => {}
                        other => return wrong(format!("{id:?} is told {other:?} and not {expected:?}")),
                    }
                }
                Meaning::Begin { uid, takes_fds } => {
                    peer.phase = Phase::Greeting;
                    (peer.uid, peer.takes_fds) = (uid, takes_fds);
                    if piece.end < peer.delivered {
                        return Ok(true);
                    }
                    if !files.is_empty() {
                        self.disconnect(id)?;
                    }
                    return Ok(false);
                }
                Meaning::Kick => {
                    self.disconnect(id)?;
                    return Ok(false);
                }
                Meaning::Letter(_) | Meaning::Ignored(_) | Meaning::Malformed => {
                    return wrong("the simulation sent a message before BEGIN");
                }
            }
        }
        if !files.is_empty() {
            self.disconnect(id)?;
        }
        Ok(false)
    }

    /// The peer's socket took this from its queue.
    pub(crate) fn drained(&mut self, id: PeerId, bytes: u64, fds: usize) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.uncount(bytes);
            peer.queued_fds = peer.queued_fds.saturating_sub(fds as u64);
        }
    }

    pub(crate) fn tick(&mut self, now: u64) -> Check {
        self.now = self.now.max(now);
        loop {
            // At one time: first who did not say Hello, then unclaimed descriptors, then calls; the peers by their id. Then
            // the configuration is read.
            let due = |at: &Option<u64>| at.filter(|at| *at <= self.now);
            let mut next = None;
            for (id, peer) in &self.peers {
                let hello = due(&peer.hello_deadline).map(|at| (at, 0, *id, None));
                let fds = due(&peer.fds_deadline).map(|at| (at, 1, *id, None));
                let calls = peer
                    .owed
                    .iter()
                    .filter_map(|(call, at)| Some((due(at)?, 2, *id, Some(*call))));
                next = next.into_iter().chain(hello).chain(fds).chain(calls).min();
            }
            let reload = due(&self.reload_due());
            if let Some(at) = reload
                && next.is_none_or(|(first, ..)| at < first)
            {
                self.begin_reading()?;
                continue;
            }
            match next {
                None => return self.end_waits(),
                Some((_, _, id, None)) => self.disconnect(id)?,
                Some((_, _, callee, Some((caller, serial)))) => {
                    self.close_call(callee, caller, serial);
                    self.say(caller, Letter::driver_error(serial, "NoReply"))?;
                }
            }
            self.bury()?;
        }
    }

    /// Something was done for want of memory.
    pub(crate) fn relieved(&mut self, hold_back: &[PeerId], dismiss: &[PeerId]) -> Check {
        for id in hold_back {
            if let Some(peer) = self.peers.get_mut(id) {
                peer.refused_until = self.now + 1000;
            }
        }
        for id in dismiss {
            self.disconnect(*id)?;
        }
        Ok(())
    }

    /// Whether a peer's messages are refused for want of memory.
    pub(super) fn is_refused(&self, id: PeerId) -> bool {
        self.peers
            .get(&id)
            .is_some_and(|peer| peer.refused_until > self.now)
    }

    /// Until when the last of those is held back that are.
    pub(crate) fn held_back_until(&self) -> Option<u64> {
        let until = self.peers.values().map(|peer| peer.refused_until).max();
        until.filter(|until| *until > self.now)
    }

    /// When the first of those who do not say Hello is disconnected, if others wait for a slot.
    pub(crate) fn slot_is_free_at(&self) -> Option<u64> {
        let is_awaited = self.peers.values().any(|peer| peer.is_waiting);
        let deadlines = self.peers.values().filter_map(|peer| peer.hello_deadline);
        deadlines.min().filter(|_| is_awaited)
    }

    /// Whether a peer has a link.
    pub(crate) fn parked(&mut self, id: PeerId, is_parked: bool) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.is_parked = is_parked;
        }
    }

    pub(super) fn condemn(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(&id)
            && !peer.is_condemned
        {
            peer.is_condemned = true;
            self.condemned.push_back(id);
        }
    }

    pub(super) fn bury(&mut self) -> Check {
        while let Some(id) = self.condemned.pop_front() {
            self.disconnect(id)?;
        }
        Ok(())
    }

    /// Takes a peer out: its rules, its names, its calls, itself.
    pub(crate) fn disconnect(&mut self, id: PeerId) -> Check {
        let Some(peer) = self.peers.get_mut(&id) else {
            return Ok(());
        };
        peer.is_condemned = true;
        peer.rules.clear();
        (peer.hello_deadline, peer.fds_deadline) = (None, None);
        self.release_all(id)?;
        self.drop_calls(id)?;
        self.peers.remove(&id);
        self.forget_caller(id);
        self.closed.push(id);
        self.give_slots();
        Ok(())
    }

    pub(super) fn drop_calls(&mut self, id: PeerId) -> Check {
        let Some(peer) = self.peers.get_mut(&id) else {
            return Ok(());
        };
        for (callee, serial) in std::mem::take(&mut peer.awaited) {
            self.close_call(callee, id, serial);
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            return Ok(());
        };
        for (caller, serial) in std::mem::take(&mut peer.owed).into_keys() {
            self.close_call(id, caller, serial);
            self.say(caller, Letter::driver_error(serial, "NoReply"))?;
        }
        Ok(())
    }

    pub(super) fn close_call(&mut self, callee: PeerId, caller: PeerId, serial: u32) {
        if let Some(peer) = self.peers.get_mut(&callee) {
            peer.owed.remove(&(caller, serial));
        }
        if let Some(peer) = self.peers.get_mut(&caller) {
            peer.awaited.remove(&(callee, serial));
        }
    }
}
