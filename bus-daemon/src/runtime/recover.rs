//! Going on where a worker died: its checkpoint, the events since, and the system call that was under way.

use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::system::{Kernel, is_accepted_socket};
use crate::broker::{Action, Broker, Dropped, Event, PeerId};
use crate::handoff::image;
use crate::handoff::keeper::Listener;
use crate::journal::{Journal, RareEvent};
use crate::os::descriptor::{close, is_open, table_size};
use crate::os::memfd::{self, SharedMapping};

/// The bus as the dead worker left it.
pub(super) struct Recovered {
    pub(super) broker: Broker,
    /// The generation of the newest link.
    pub(super) generation: u32,
    /// Peers whose streams cannot be proved. Their links are to be closed.
    pub(super) in_doubt: Vec<Dropped>,
    /// Peers whose newest input killed the worker.
    pub(super) quarantined: Vec<PeerId>,
    /// A part of the journal could not be read: whoever is not known any more is in doubt, too.
    pub(super) is_damaged: bool,
    /// An errand has ended since the checkpoint: what that refers to may be closed only when another is taken.
    pub(super) has_ended_errand: bool,
    /// Peers that the broker had closed; their sockets may still be open.
    closed: Vec<PeerId>,
}

/// Rebuilds the broker. `image` is what the dead worker itself had begun with, needed while there is no checkpoint;
/// `skip` is the number of an event that is not to be applied again.
#[cfg(any(test, feature = "test-hooks", feature = "bench-hooks"))]
pub(super) fn replay(journal: &mut Journal, image: RawFd, skip: Option<u64>) -> Result<Recovered, String> {
    replay_in_steps(journal, image, skip, 0)
}

/// The same after `cut_short` replays that came to no end: this one takes checkpoints on its way.
pub(super) fn replay_in_steps(
    journal: &mut Journal,
    image: RawFd,
    skip: Option<u64>,
    cut_short: u32,
) -> Result<Recovered, String> {
    let (mut broker, generation, in_doubt) = match journal.load()? {
        Some(loaded) => {
            journal.rewind(Some(loaded.position));
            let (mut broker, dropped) =
                Broker::restore_checkpoint(loaded.checkpoint).map_err(|error| error.to_string())?;
            broker.set_config_source(loaded.config_source);
            journal.forget_dropped(&loaded.indexes, &dropped);
            (broker, loaded.generation, dropped)
        }
        None => {
            journal.rewind(None);
            let bytes =
                memfd::read(image).map_err(|error| format!("there is no state to go on from: {error}"))?;
            let bytes = Bytes::from_owner(SharedMapping(Arc::new(bytes)));
            let mut restored = image::load_lent(&bytes, super::now()).map_err(|error| error.to_string())?;
            if let Some(stored) = &restored.worker.stored {
                journal.go_on_with(stored)?;
                let lost = journal.resume_inputs(&mut restored.broker, stored);
                restored.dropped.extend(lost.into_iter().map(|peer| Dropped {
                    peer,
                    reason: "the large message that it was in the middle of is not there".into(),
                    fds: Vec::new(),
                }));
            }
            journal.carry(restored.worker.foreign);
            if journal.is_empty() {
                // The dead worker may not have come to take over the manifest.
                for (handle, number) in &restored.manifest {
                    journal.restore_handle(*handle, *number);
                }
            }
            (restored.broker, restored.worker.generation, restored.dropped)
        }
    };
    broker.set_room(journal.room());
    let mut recovered = Recovered {
        broker,
        generation,
        in_doubt,
        quarantined: Vec::new(),
        is_damaged: false,
        has_ended_errand: false,
        closed: Vec::new(),
    };
    let mut damage = None;
    // What is left out, and who is in doubt, is settled by this recovery or by none.
    let step = step_after(cut_short).filter(|_| skip.is_none() && recovered.in_doubt.is_empty());
    let mut events: usize = 0;
    loop {
        if let Some(step) = step
            && events == step
        {
            events = 0;
            journal.checkpoint(&mut recovered.broker, recovered.generation)?;
        }
        events += 1;
        match journal.next_event() {
            Ok(None) => break,
            Ok(Some((sequence, event))) if Some(sequence) == skip => {
                recovered.quarantine(&event, sequence, journal)
            }
            Ok(Some((sequence, event))) => {
                if let Event::Step { peer } = &event {
                    // As when it was applied first: what the peer has sent may be to blame.
                    let is_input = recovered.broker.is_input_waiting(*peer);
                    journal.mark_applying(sequence, is_input);
                }
                recovered.apply(event, journal);
            }
            Err(what) => {
                damage = Some(what);
                break;
            }
        }
        if journal.is_answer_missing() {
            damage = Some("the journal lacks what the system answered".into());
            break;
        }
    }
    if damage.is_none() {
        match journal.finish_in_flight() {
            Ok(Some(event)) if skip == Some(journal.newest()) => {
                recovered.quarantine(&event, journal.newest(), journal);
            }
            Ok(Some(event)) => recovered.apply(event, journal),
            Ok(None) => {}
            Err(what) => damage = Some(what),
        }
    }
    if damage.is_none() {
        recovered.close_without_fds(journal);
    }
    if let Some(what) = damage {
        recovered.doubt_all(&what);
    }
    journal.mark_applied();
    journal.resume();
    Ok(recovered)
}

/// After how many events a replay takes a checkpoint, so that the next one begins there if this worker is killed, too.
/// `None`: it takes none, since none before it was cut short. The more were, the shorter are the steps.
fn step_after(cut_short: u32) -> Option<usize> {
    const LONGEST: usize = 512;
    const SHORTEST: usize = 16;
    let shift = cut_short.checked_sub(1)?.min(16);
    Some((LONGEST >> shift).max(SHORTEST))
}

impl Recovered {
    fn apply(&mut self, event: Event, journal: &mut Journal) {
        if let Event::Accepted { peer, .. } = &event {
            self.generation = self.generation.max(peer.generation);
        }
        self.has_ended_errand |= matches!(event, Event::ErrandEnded { .. });
        #[cfg(feature = "test-hooks")]
        crate::fault::kill_in("recovery");
        #[cfg(feature = "test-hooks")]
        crate::fault::poison(&event, &self.broker);
        #[cfg(test)]
        super::tests::meet(&event);
        self.broker.handle(event, &mut Kernel { journal });
        // In a replay nothing touches the system.
        for action in self.broker.actions().drain(..) {
            if let Action::Close { peer, .. } = action {
                self.closed.push(peer);
            }
        }
    }

    /// Whose newest input lost its descriptors is disconnected, if the dead worker did not come to do that.
    fn close_without_fds(&mut self, journal: &mut Journal) {
        let is_here = |peer: &PeerId| self.broker.peer_ids().any(|here| here == *peer);
        let Some(peer) = journal.take_lost_fds().filter(is_here) else {
            return;
        };
        let reason = super::LOST_FDS;
        journal.note(
            Some(peer),
            &RareEvent::Closed {
                reason: reason.into(),
            },
        );
        journal.mark_applying(journal.newest(), false);
        self.apply(Event::Closed { peer, reason }, journal);
    }

    /// An event that kills the worker is left out: a copy is kept, its sender told, and then disconnected.
    fn quarantine(&mut self, event: &Event, sequence: u64, journal: &mut Journal) {
        journal.pass_answers();
        let input = if let Event::Step { peer } = event {
            self.broker.waiting_input(*peer).map(|input| (*peer, input))
        } else if let Event::Received {
            peer, data: bytes, ..
        }
        | Event::ReceivedLarge {
            peer, prefix: bytes, ..
        } = event
        {
            Some((*peer, bytes.clone()))
        } else {
            None
        };
        let Some((peer, bytes)) = input else {
            tracing::error!("event {sequence} kills the worker and is left out: {event:?}");
            return;
        };
        match keep_copy(sequence, &bytes) {
            Ok(path) => tracing::error!(
                "{} bytes from peer {} kill the worker: they are kept in {}, and the peer is disconnected",
                bytes.len(),
                peer.index,
                path.display()
            ),
            Err(error) => tracing::error!("bytes from peer {} kill the worker; no copy: {error}", peer.index),
        }
        self.apply(
            Event::Quarantined {
                peer,
                begins_with: bytes.slice(..bytes.len().min(16)),
            },
            journal,
        );
        self.quarantined.push(peer);
    }

    /// Tells those whose input killed the worker, as far as their sockets take it, and lets them go. Before any
    /// checkpoint: one that has passed what was left out leaves nothing that tells the next worker of it, and the peer
    /// would go on behind a gap in its stream.
    pub(super) fn dismiss_quarantined(&mut self, journal: &mut Journal) {
        for peer in self.quarantined.clone() {
            let Some(handle) = self.broker.socket(peer) else {
                // The worker before this one has done so.
                continue;
            };
            if let Some(socket) = journal.verified_number(handle) {
                self.send_last(peer, socket, journal);
            }
            let reason = "what it sent killed the worker";
            journal.note(
                Some(peer),
                &RareEvent::Closed {
                    reason: reason.into(),
                },
            );
            self.apply_new(Event::Closed { peer, reason }, journal);
        }
    }

    fn send_last(&mut self, peer: PeerId, socket: RawFd, journal: &mut Journal) {
        while let Some(queue) = self.broker.send_queue(peer).filter(|queue| !queue.is_empty()) {
            let sent = queue.sent();
            let Ok(written) = journal.send(socket, peer, queue) else {
                return;
            };
            if written.upto > sent {
                let upto = written.upto;
                self.apply_new(Event::Sent { peer, upto }, journal);
            }
            if written.blocked {
                return;
            }
        }
    }

    /// Applies an event that has just been noted.
    fn apply_new(&mut self, event: Event, journal: &mut Journal) {
        journal.mark_applying(journal.newest(), false);
        #[cfg(test)]
        let told = super::tests::Told::of(&event, &self.broker);
        self.apply(event, journal);
        journal.mark_applied();
        #[cfg(test)]
        told.tell(&self.broker);
    }

    /// Nothing that came after the damage is known, so no peer's stream can be proved.
    fn doubt_all(&mut self, what: &str) {
        tracing::error!("{what}: the connections cannot be proved and are given up");
        self.is_damaged = true;
        let known: Vec<PeerId> = self.in_doubt.iter().map(|one| one.peer).collect();
        let peers: Vec<PeerId> = self
            .broker
            .peer_ids()
            .filter(|peer| !known.contains(peer))
            .collect();
        self.broker.note_in_doubt(peers.len() as u32);
        self.in_doubt.extend(peers.into_iter().map(|peer| Dropped {
            peer,
            reason: "its stream cannot be proved after damage to the journal".into(),
            fds: Vec::new(),
        }));
    }

    /// Compares what the broker owns with what is open: closes what belongs to nobody, and finds connections that were
    /// accepted and not noted. `kept` is what keeper and worker have open for themselves.
    pub(super) fn reconcile(
        &mut self,
        kept: &[RawFd],
        listeners: &[Listener],
        journal: &mut Journal,
    ) -> Vec<(RawFd, u32)> {
        self.doubt_what_is_not_there(journal);
        let strays = self.strays(kept, listeners, journal);
        #[cfg(feature = "test-hooks")]
        crate::fault::kill_in("recovery");
        for &fd in &strays.ended {
            self.broker.note_in_doubt(u32::from(self.is_damaged));
            let _ = nix::sys::socket::shutdown(fd, nix::sys::socket::Shutdown::Both);
            close(fd);
        }
        for &fd in &strays.unowned {
            close(fd);
        }
        // Among them were those of whom the checkpoint could not give back; their numbers may soon be others'.
        for one in &mut self.in_doubt {
            one.fds.clear();
        }
        #[cfg(feature = "test-hooks")]
        crate::fault::kill_in("recovery");
        journal.settle_handles(&self.broker.owned_fds().into_iter().collect());
        tracing::debug!("{} connections were closed in the replay", self.closed.len());
        strays.accepted
    }

    /// Peers whose socket the manifest does not tell, or tells of two, cannot go on.
    fn doubt_what_is_not_there(&mut self, journal: &Journal) {
        let mut seen = BTreeSet::new();
        let mut lost = Vec::new();
        for peer in self.broker.peer_ids() {
            let Some(handle) = self.broker.socket(peer) else {
                continue;
            };
            let number = journal.verified_number(handle).filter(|number| is_open(*number));
            if number.is_none_or(|number| !seen.insert(number)) {
                lost.push(peer);
            }
        }
        lost.retain(|peer| self.in_doubt.iter().all(|one| one.peer != *peer));
        self.broker.note_in_doubt(lost.len() as u32);
        self.in_doubt.extend(lost.into_iter().map(|peer| Dropped {
            peer,
            reason: "the manifest does not tell its socket".into(),
            fds: Vec::new(),
        }));
    }

    /// What is open and belongs to no one.
    pub(super) fn strays(&self, kept: &[RawFd], listeners: &[Listener], journal: &Journal) -> Strays {
        let mut strays = Strays::default();
        let known = journal.known_numbers();
        for fd in unclaimed(&self.broker, kept, listeners, journal) {
            match is_accepted_socket(fd, listeners) {
                Some(listener) if !known.contains(&fd) => strays.accepted.push((fd, listener)),
                Some(_) => strays.ended.push(fd),
                None => strays.unowned.push(fd),
            }
        }
        strays
    }
}

/// Closes whatever is open and neither in `kept` nor a listener.
pub(super) fn sweep(kept: &[RawFd], listeners: &[Listener]) {
    for fd in others(kept.iter().copied(), listeners) {
        close(fd);
    }
}

/// What is open and neither in `kept` nor the broker's nor a listener.
fn unclaimed(broker: &Broker, kept: &[RawFd], listeners: &[Listener], journal: &Journal) -> Vec<RawFd> {
    let owned = broker.owned_fds().into_iter();
    let owned = owned.filter_map(|handle| journal.verified_number(handle));
    others(kept.iter().copied().chain(owned), listeners)
}

/// What is open besides these, the listeners and the standard streams.
fn others(known: impl Iterator<Item = RawFd>, listeners: &[Listener]) -> Vec<RawFd> {
    let mut known: Vec<RawFd> = known.chain(listeners.iter().map(|one| one.fd)).collect();
    known.sort_unstable();
    known.dedup();
    let unknown = (3..table_size()).filter(|fd| known.binary_search(fd).is_err());
    unknown.filter(|fd| is_open(*fd)).collect()
}

/// Descriptors that are open and that the broker does not own.
#[derive(Debug, Default)]
pub(super) struct Strays {
    /// Connections that were accepted and not noted, with the index of the listener.
    pub(super) accepted: Vec<(RawFd, u32)>,
    /// Connections that the broker had and has no more.
    pub(super) ended: Vec<RawFd>,
    /// Anything else.
    unowned: Vec<RawFd>,
}

/// Where the copy of an event that is left out goes.
pub(super) fn copy_path(sequence: u64) -> PathBuf {
    let directory = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    directory.join(format!("bus-quarantine-{}-{sequence}", nix::unistd::getppid()))
}

/// Copies that are kept at most, and how long each may be: they may lie in memory.
const MOST_COPIES: usize = 16;
const LONGEST_COPY: usize = 1 << 20;

/// Keeps bytes that killed the worker, the beginning of many, for whoever is to mend it.
fn keep_copy(sequence: u64, bytes: &[u8]) -> std::io::Result<PathBuf> {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut path = copy_path(sequence);
    if copies_beside(&path) >= MOST_COPIES {
        return Err(std::io::Error::other(format!("there are {MOST_COPIES} already")));
    }
    let mut file = options.open(&path);
    // Numbers begin anew with each upgrade: nothing that is kept is written over.
    for other in 1..100 {
        if !matches!(&file, Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists) {
            break;
        }
        path.set_extension(other.to_string());
        file = options.open(&path);
    }
    let mut file = file?;
    file.write_all(&bytes[..bytes.len().min(LONGEST_COPY)])?;
    Ok(path)
}

/// How many copies of this bus there are.
fn copies_beside(path: &Path) -> usize {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let begin = name.trim_end_matches(|last: char| last.is_ascii_digit());
    let entries = path
        .parent()
        .and_then(|directory| std::fs::read_dir(directory).ok());
    let names = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name()));
    names
        .filter(|name| name.to_str().is_some_and(|name| name.starts_with(begin)))
        .count()
}
