//! The look at a worker's memory as it is: a recovery is tried, and compared with what the kernel knows.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use super::super::state;
use super::client;
use super::judge::Found;
use super::stage::{FEW_FDS, Stage, open_fds};
use crate::broker::Broker;
use crate::journal::Journal;
use crate::os::descriptor::is_open;
use crate::runtime::recover::{self, Recovered};

impl Stage {
    /// Recovers from a copy of the memory, and compares with what the kernel knows.
    pub(super) fn examine(&mut self) -> Result<Found, String> {
        if let Some(how) = self.sabotage {
            self.mirror.sabotage(how);
        }
        let mut journal = Journal::reopen(self.mirror.copy()).unwrap();
        let open: Vec<RawFd> = open_fds(FEW_FDS).collect();
        let skip = self.left_out();
        let recovered = recover::replay(&mut journal, self.image(), skip)?;
        if let Some(unit) = skip {
            let _ = std::fs::remove_file(recover::copy_path(unit));
        }
        self.note_owned(&recovered.broker, &journal)?;
        let mut has_other_fd = false;
        for fd in open_fds(FEW_FDS).filter(|fd| !open.contains(fd)) {
            has_other_fd = true;
            nix::unistd::close(fd).unwrap();
        }
        self.counts.other_fds += u64::from(has_other_fd);
        if !recovered.in_doubt.is_empty() || recovered.is_damaged {
            return Err(format!("in doubt: {:?}", recovered.in_doubt));
        }
        self.compare_quarantine(&recovered, skip.is_some(), &journal)?;
        recovered
            .broker
            .check_invariants()
            .map_err(|violation| violation.to_string())?;
        let taken = self.compare_peers(&recovered, &mut journal)?;
        let (records, segment) = (journal.end().sequence, journal.end().segment);
        let heard = self
            .keeper
            .agree(journal.heard(), records > self.judge.records())?;
        let state = state(&recovered.broker);
        drop(recovered);
        self.counts.segments += u64::from(segment != self.segment);
        self.segment = segment;
        self.mirror.undo_replay(journal).unwrap();
        Ok(Found {
            records,
            state,
            has_other_fd,
            taken,
            heard,
        })
    }

    /// Every handle of the state stands for an open descriptor, and no two for the same; the configuration is kept in
    /// the memfd that brought it.
    fn note_owned(&mut self, broker: &Broker, journal: &Journal) -> Result<(), String> {
        let mut owners = BTreeMap::new();
        for handle in broker.owned_fds() {
            let number = journal.verified_number(handle).ok_or_else(|| {
                match broker.peer_ids().any(|peer| broker.socket(peer) == Some(handle)) {
                    true => "a peer without a socket".to_owned(),
                    false => format!("handle {} has no number", handle.0),
                }
            })?;
            if !is_open(number) {
                return Err(format!("descriptor {number} of handle {} is closed", handle.0));
            }
            if owners.insert(number, handle).is_some_and(|other| other != handle) {
                return Err(format!("descriptor {number} belongs to two handles"));
            }
        }
        if let Some(source) = broker
            .config_source()
            .and_then(|handle| journal.verified_number(handle))
            && !self
                .keeper
                .is_source(broker.config().limits.max_completed_connections, source)
        {
            return Err(format!("descriptor {source} is not the configuration in force"));
        }
        self.owned = owners.into_keys().collect();
        Ok(())
    }

    /// Nobody is left out but the one who sent poison, as soon as it is proved.
    fn compare_quarantine(
        &mut self,
        recovered: &Recovered,
        is_proved: bool,
        journal: &Journal,
    ) -> Result<(), String> {
        if recovered.quarantined.len() != usize::from(is_proved) {
            return Err(format!("left out: {:?}", recovered.quarantined));
        }
        for &peer in &recovered.quarantined {
            let number = recovered
                .broker
                .socket(peer)
                .and_then(|handle| journal.verified_number(handle));
            // Once it is disconnected, only its id is known.
            let owner = number.and_then(|number| self.sockets.get(&number).copied());
            match (owner, self.doomed) {
                (Some(owner), Some((doomed, _))) if owner == doomed => {
                    self.doomed = Some((doomed, Some(peer)))
                }
                (None, Some((_, Some(id)))) if id == peer => {}
                _ => return Err(format!("peer {} is left out, and is innocent", peer.index)),
            }
        }
        Ok(())
    }

    /// What the state says of each peer's streams is what the kernel says, and nobody is lost. How many bytes of each
    /// client were taken.
    fn compare_peers(
        &mut self,
        recovered: &Recovered,
        journal: &mut Journal,
    ) -> Result<BTreeMap<usize, u64>, String> {
        let mut taken = BTreeMap::new();
        let mut known = Vec::new();
        for peer in recovered.broker.peer_ids() {
            if recovered.broker.is_leaving(peer) {
                continue;
            }
            let fd = recovered
                .broker
                .socket(peer)
                .and_then(|handle| journal.verified_number(handle))
                .ok_or("a peer without a socket")?;
            let Some(&index) = self.sockets.get(&fd) else {
                return Err(format!("peer {} has no socket", peer.index));
            };
            known.push(fd);
            let queue = recovered.broker.send_queue(peer).ok_or("a peer without output")?;
            if let Some(client) = &self.clients[index] {
                taken.insert(index, client.written - client::unread(fd));
                if queue.sent() != client.reached() {
                    return Err(format!(
                        "client {index} was reached by {} bytes, not {}",
                        client.reached(),
                        queue.sent()
                    ));
                }
            }
            let is_doomed = self.doomed.is_some_and(|(doomed, _)| doomed == index);
            // What the poison would have brought about is not said: it was never applied.
            if !is_doomed {
                let waiting = journal.output_of(peer, queue);
                self.agree(index, queue.sent(), &waiting)?;
            }
        }
        self.compare_strays(recovered, journal, &known)?;
        Ok(taken)
    }

    fn compare_strays(
        &mut self,
        recovered: &Recovered,
        journal: &Journal,
        known: &[RawFd],
    ) -> Result<(), String> {
        let is_known = |fd: &RawFd| known.contains(fd);
        if self.sockets.keys().all(is_known) {
            return Ok(());
        }
        let kept = self.kept();
        let strays = recovered.strays(&kept, &self.record.listeners, journal);
        for (fd, index) in self.sockets.iter().filter(|(fd, _)| !is_known(fd)) {
            let is_adopted = strays.accepted.iter().any(|(accepted, _)| accepted == fd);
            self.counts.adopted += u64::from(is_adopted);
            self.counts.ended += u64::from(strays.ended.contains(fd));
            let is_condemned =
                self.keeper.done.left_out > 0 && self.doomed.is_some_and(|(doomed, _)| doomed == *index);
            // A client that went may be known to be gone, or still have to be found out.
            if self.clients[*index].is_some() && !is_adopted && !is_condemned {
                return Err(format!("client {index} would be disconnected"));
            }
            let is_new = self.clients[*index].is_some() && !is_condemned;
            if !is_new && is_adopted && !self.streams[*index].is_empty() {
                return Err(format!("client {index} would be taken for a new one"));
            }
        }
        Ok(())
    }

    /// Compares bytes of a client's output with what is known, from an absolute offset on.
    pub(super) fn agree(&mut self, index: usize, at: u64, bytes: &[u8]) -> Result<(), String> {
        let stream = &mut self.streams[index];
        let at = at as usize;
        let common = bytes.len().min(
            stream
                .len()
                .checked_sub(at)
                .ok_or_else(|| format!("bytes are missing in client {index}'s output before {at}"))?,
        );
        if let Some(first) = (0..common).find(|place| stream[at + place] != bytes[*place]) {
            // The message in which it differs begins before.
            let around = first.saturating_sub(200)..(first + 100).min(common);
            let (known, found) = (&stream[at..][around.clone()], &bytes[around]);
            return Err(format!(
                "client {index}'s output is another after {} bytes of it: {} instead of {}",
                at + first,
                found.escape_ascii(),
                known.escape_ascii()
            ));
        }
        stream.extend_from_slice(&bytes[common..]);
        Ok(())
    }
}
