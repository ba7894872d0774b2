//! Going on where a worker died: its checkpoint, the events since, and the system call that was under way.

use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use bus_wire::Fd;

use super::system::{Kernel, cookie, is_accepted_socket};
use crate::broker::{Action, Broker, Dropped, Event, PeerId};
use crate::handoff::{image, memfd};
use crate::journal::Journal;
use crate::keeper::Listener;

/// The bus as the dead worker left it.
pub(super) struct Recovered {
    pub(super) broker: Broker,
    /// The generation of the newest link.
    pub(super) generation: u32,
    /// Peers whose streams cannot be proved. Their links are to be closed.
    pub(super) in_doubt: Vec<Dropped>,
    /// Peers whose newest input killed the worker. Their links are to be closed once they have been told.
    pub(super) quarantined: Vec<PeerId>,
    /// A part of the journal could not be read: whoever is not known any more is in doubt, too.
    pub(super) is_damaged: bool,
    /// Peers that were accepted since the checkpoint: the dead worker may not have come to note their sockets' cookies.
    pub(super) accepted: Vec<PeerId>,
    /// Peers that the broker had closed; their sockets may still be open.
    closed: Vec<PeerId>,
}

/// Rebuilds the broker. `image` is what the dead worker itself had begun with, needed while there is no checkpoint;
/// `skip` is the number of an event that is not to be applied again.
pub(super) fn replay(journal: &mut Journal, image: RawFd, skip: Option<u64>) -> Result<Recovered, String> {
    let (broker, generation, in_doubt) = match journal.load()? {
        Some(loaded) => {
            journal.rewind(Some(loaded.position));
            let (broker, dropped) = Broker::restore(loaded.state).map_err(|error| error.to_string())?;
            (broker, loaded.generation, dropped)
        }
        None => {
            journal.rewind(None);
            let bytes =
                memfd::read(image).map_err(|error| format!("there is no state to go on from: {error}"))?;
            let restored = image::load(&bytes).map_err(|error| error.to_string())?;
            (restored.broker, restored.worker.generation, restored.dropped)
        }
    };
    let mut recovered = Recovered {
        broker,
        generation,
        in_doubt,
        quarantined: Vec::new(),
        is_damaged: false,
        accepted: Vec::new(),
        closed: Vec::new(),
    };
    let mut damage = None;
    loop {
        match journal.next_event() {
            Ok(None) => break,
            Ok(Some((sequence, event))) if Some(sequence) == skip => {
                recovered.quarantine(&event, sequence, journal)
            }
            Ok(Some((_, event))) => recovered.apply(event, journal),
            Err(what) => {
                damage = Some(what);
                break;
            }
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
    if let Some(what) = damage {
        recovered.doubt_all(&what);
    }
    journal.mark_applied();
    journal
        .resume()
        .map_err(|error| format!("the journal's memory: {error}"))?;
    Ok(recovered)
}

impl Recovered {
    fn apply(&mut self, event: Event, journal: &mut Journal) {
        if let Event::Accepted { peer, .. } = &event {
            self.generation = self.generation.max(peer.generation);
            self.accepted.push(*peer);
        }
        #[cfg(feature = "test-hooks")]
        crate::fault::kill_in("recovery");
        #[cfg(feature = "test-hooks")]
        crate::fault::poison(&event);
        self.broker.handle(event, &mut Kernel { journal });
        // In a replay nothing touches the system.
        for action in self.broker.actions().drain(..) {
            if let Action::Close { peer, .. } = action {
                self.closed.push(peer);
            }
        }
    }

    /// An event that kills the worker is left out: a copy is kept, its sender told, and then disconnected.
    fn quarantine(&mut self, event: &Event, sequence: u64, journal: &mut Journal) {
        journal.pass_answers();
        let (Event::Received {
            peer, data: bytes, ..
        }
        | Event::ReceivedLarge {
            peer, prefix: bytes, ..
        }) = event
        else {
            tracing::error!("event {sequence} kills the worker and is left out: {event:?}");
            return;
        };
        let (peer, bytes) = (*peer, bytes.clone());
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
        journal: &Journal,
    ) -> Vec<(RawFd, u32)> {
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
        tracing::debug!("{} connections were closed in the replay", self.closed.len());
        strays.accepted
    }

    /// What is open and belongs to no one.
    pub(super) fn strays(&self, kept: &[RawFd], listeners: &[Listener], journal: &Journal) -> Strays {
        let mut strays = Strays::default();
        for fd in unclaimed(&self.broker, kept, listeners) {
            let listener = is_accepted_socket(fd, listeners);
            let is_known = journal.cookie(Fd(fd)) == cookie(fd);
            match listener {
                Some(listener) if !is_known => strays.accepted.push((fd, listener)),
                Some(_) => strays.ended.push(fd),
                None => strays.unowned.push(fd),
            }
        }
        strays
    }
}

/// Closes whatever is open and neither in `kept` nor the broker's nor a listener; nothing where `kept` is not given.
pub(super) fn sweep(broker: &Broker, kept: Option<&[RawFd]>, listeners: &[Listener]) {
    let Some(kept) = kept else { return };
    for fd in unclaimed(broker, kept, listeners) {
        close(fd);
    }
}

/// What is open and neither in `kept` nor the broker's nor a listener.
fn unclaimed(broker: &Broker, kept: &[RawFd], listeners: &[Listener]) -> Vec<RawFd> {
    let links = broker.peer_ids().map(|peer| peer.index.cast_signed());
    let owned = broker.owned_fds().into_iter().map(|fd| fd.0);
    let mut ours: Vec<RawFd> = kept
        .iter()
        .copied()
        .chain(listeners.iter().map(|one| one.fd))
        .chain(links)
        .chain(owned)
        .collect();
    ours.sort_unstable();
    ours.dedup();
    let others = (3..table_size()).filter(|fd| ours.binary_search(fd).is_err());
    others.filter(|fd| is_open(*fd)).collect()
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

fn close(fd: RawFd) {
    let _ = nix::unistd::close(fd);
}

/// How many descriptors there is room for in the table as it is: all that are open are below.
fn table_size() -> RawFd {
    let size = std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let (_, rest) = status.split_once("FDSize:")?;
            rest.lines().next()?.trim().parse().ok()
        });
    // Without /proc: as large as it may be. Numbers are given out from below, so no more than that many links are far
    // from any use; some containers have a limit of 2^30, and each number costs a system call.
    const MOST: RawFd = 1 << 20;
    size.unwrap_or_else(|| {
        let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
        limit.map_or(MOST, |(_, hard)| {
            hard.try_into().map_or(MOST, |hard: RawFd| hard.min(MOST))
        })
    })
}

#[expect(unsafe_code, reason = "asks about a descriptor by number")]
fn is_open(fd: RawFd) -> bool {
    // SAFETY: only asks.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Where the copy of an event that is left out goes.
pub(super) fn copy_path(sequence: u64) -> PathBuf {
    let directory = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    directory.join(format!("bus-quarantine-{}-{sequence}", nix::unistd::getppid()))
}

/// Keeps bytes that killed the worker, for whoever is to mend it.
fn keep_copy(sequence: u64, bytes: &[u8]) -> std::io::Result<PathBuf> {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut path = copy_path(sequence);
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
    file.write_all(bytes)?;
    Ok(path)
}
