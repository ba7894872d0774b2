//! The broker: a deterministic state machine that routes messages between peers.
//!
//! Everything that can change an output comes in as an [`Event`], what the broker wants from the system goes out as
//! an [`Action`], bytes for the peers go into their send queues. There is no clock, socket, random number or thread
//! in here, and no hash order shows: the same events give the same bytes, which is what replay relies on.

mod action;
mod changes;
mod connect;
mod deliver;
mod event;
mod frozen;
mod invariants;
mod match_index;
mod monitor;
mod name;
mod ownership;
mod peer;
mod quota;
mod reply;
mod restart;
mod restore;
mod route;
mod snapshot;
mod speak;
mod subscription;
mod timer;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bus_wire::{Fd, Guid, LargeMessage, SendQueue};
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

pub use action::{Action, JournalMemory, System};
pub use event::{Credentials, Event, Fds, Millis, PeerId, Start};
pub use frozen::{Blob, BrokerState, GlobalV1, ListsV1, PeerV1};
pub use restore::{Dropped, RestoreError};
pub use snapshot::SharedBodies;

pub(crate) use match_index::{Facts, MatchIndex};
pub(crate) use name::{NameFlags, NameTable};
pub(crate) use peer::{Peer, Peers};
pub(crate) use quota::Stats;
pub(crate) use restart::{LastRestart, Restart, STATE_VERSION};
pub(crate) use speak::expects_reply;
pub(crate) use subscription::TooManyRules;

use crate::config::Config;
use timer::Deadline;

/// The hasher of every table of the broker: seeded once per bus, the same in replay.
pub(crate) type Seeded = foldhash::fast::FixedState;

/// The name of the driver (specification, "Message Bus Messages").
pub(crate) const DRIVER: &str = "org.freedesktop.DBus";

/// What distinguishes this bus from others; the same for its whole life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// What `GetId` answers.
    pub guid: Guid,
    /// The guid of each listener, in the order of the config; SASL tells it to the peers that came through it.
    pub listener_guids: Vec<Guid>,
    /// What `org.freedesktop.DBus.Peer.GetMachineId` answers: 32 hex digits.
    pub machine_id: String,
    /// The process that is known as the bus.
    pub keeper_pid: u32,
    /// The user it runs as.
    pub own_uid: u32,
    /// Seeds the hash tables against chosen collisions.
    pub hash_seed: u64,
}

/// The bus, without its sockets.
#[derive(Debug)]
pub struct Broker {
    identity: Identity,
    config: Arc<Config>,
    now: Millis,
    peers: Peers,
    /// The peers that can be reached by a unique name, by its number.
    unique: HashMap<u64, PeerId, Seeded>,
    /// The number of the next unique name; never used again, not even over an upgrade.
    next_unique: u64,
    names: NameTable,
    /// Every match rule of the active peers, for messages without a destination.
    matches: MatchIndex,
    /// Those with `eavesdrop='true'`, for messages that have one.
    eavesdroppers: MatchIndex,
    /// The filters of the monitors, for everything.
    monitors: MatchIndex,
    deadlines: BTreeSet<(Millis, Deadline)>,
    actions: VecDeque<Action>,
    dirty: Vec<PeerId>,
    /// Peers to be disconnected as soon as the message at hand is dealt with, and why.
    condemned: VecDeque<(PeerId, String)>,
    /// The serial of the driver's last message.
    driver_serial: u32,
    restart: Restart,
    /// Who waits for the answer of ReloadConfig, with the serial of the call.
    reload_callers: Vec<(PeerId, u32)>,
    /// What UpdateActivationEnvironment has set, for services that are started.
    activation_environment: BTreeMap<String, String>,
    stats: Stats,
    /// How many of the active peers are of each user.
    users: HashMap<u32, u32, Seeded>,
    /// Whether the configuration may have changed since the last checkpoint.
    is_config_changed: bool,
    /// Whether the runtime was told to stop accepting.
    is_accepting_stopped: bool,
    /// Buffers that are kept for their memory only; empty between messages.
    scratch: Scratch,
}

#[derive(Debug, Default)]
struct Scratch {
    head: Vec<u8>,
    speech: Vec<u8>,
    receivers: Vec<PeerId>,
}

impl Broker {
    /// A bus without peers.
    pub fn new(identity: Identity, config: Arc<Config>, now: Millis) -> Self {
        let hasher = Seeded::with_seed(identity.hash_seed);
        let matches = || MatchIndex::new(identity.hash_seed);
        Self {
            config,
            now,
            peers: Peers::default(),
            unique: HashMap::with_hasher(hasher.clone()),
            next_unique: 0,
            names: NameTable::new(hasher.clone()),
            matches: matches(),
            eavesdroppers: matches(),
            monitors: matches(),
            deadlines: BTreeSet::new(),
            actions: VecDeque::new(),
            dirty: Vec::new(),
            condemned: VecDeque::new(),
            driver_serial: 0,
            restart: Restart::default(),
            reload_callers: Vec::new(),
            activation_environment: BTreeMap::new(),
            stats: Stats::default(),
            is_config_changed: true,
            is_accepting_stopped: false,
            users: HashMap::with_hasher(hasher.clone()),
            scratch: Scratch::default(),
            identity,
        }
    }

    /// Takes one event in, completely. Events of peers that are gone are ignored (their descriptors are closed).
    pub fn handle(&mut self, event: Event, system: &mut dyn System) {
        match event {
            Event::Accepted {
                peer,
                listener,
                credentials,
                can_pass_fds,
            } => {
                self.accept(peer, listener, credentials, can_pass_fds);
            }
            Event::Received { peer, data, fds } => self.receive(peer, data, fds, system),
            Event::ReceivedLarge { peer, prefix, fds } => self.receive_large(peer, prefix, fds, system),
            Event::Drained { peer, bytes } => self.drained(peer, bytes),
            Event::Quarantined { peer, begins_with } => self.quarantined(peer, &begins_with),
            Event::Closed { peer, reason } => self.disconnect(peer, reason.to_owned(), false),
            Event::Tick { now } => self.tick(now),
            Event::ConfigLoaded { config } => self.config_loaded(config),
            Event::ConfigRefused { reason } => self.config_refused(&reason),
            Event::UpgradeRequested => self.upgrade_requested(),
            Event::UpgradeRefused { reason } => self.upgrade_refused(&reason),
            Event::Serving { worker_pid, start } => self.serving(worker_pid, start),
        }
        self.bury_condemned();
    }

    /// What the broker wants from the system, in order. The runtime takes them out and carries them out.
    pub fn actions(&mut self) -> &mut VecDeque<Action> {
        &mut self.actions
    }

    /// Moves to `out` the peers whose send queue got bytes since this was last asked, each once.
    pub fn take_dirty(&mut self, out: &mut Vec<PeerId>) {
        for id in self.dirty.drain(..) {
            if let Some(peer) = self.peers.get_mut(id)
                && peer.is_dirty
            {
                peer.is_dirty = false;
                out.push(id);
            }
        }
    }

    /// What waits to be written to a peer. What was written is reported with [`Event::Drained`].
    pub fn send_queue(&self, peer: PeerId) -> Option<&SendQueue> {
        self.peers.get(peer).map(|peer| &peer.out)
    }

    /// The large message that a peer is in the middle of, if so, and what has arrived of it: the runtime reads the rest
    /// of it into one extent.
    pub fn large_message(&self, peer: PeerId) -> Option<(LargeMessage, &[u8])> {
        let framer = &self.peers.get(peer)?.framer;
        Some((framer.large()?, framer.partial()))
    }

    /// Whether a peer is to be read from: what the last of [`Action::StopReading`] and [`Action::ResumeReading`] said.
    /// A runtime that takes over asks this.
    pub fn may_read(&self, peer: PeerId) -> bool {
        self.peers.get(peer).is_some_and(|peer| !peer.is_stopped)
    }

    /// Whether connections are to be accepted: what the last of [`Action::StopAccepting`] and
    /// [`Action::ResumeAccepting`] said. A runtime that takes over asks this.
    pub fn may_accept(&self) -> bool {
        !self.is_accepting_stopped
    }

    /// When an [`Event::Tick`] is wanted at the latest.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Every peer, in the order of its index.
    pub fn peer_ids(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.peers.iter().map(|peer| peer.id)
    }

    /// Every received descriptor that the broker holds: in partial input, and in send queues. The manifest.
    pub fn owned_fds(&self) -> Vec<Fd> {
        let mut all = Vec::new();
        for peer in self.peers.iter() {
            all.extend(peer.framer.fds());
            all.extend(peer.out.fds());
        }
        all
    }

    // What the driver needs.

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id)
    }

    /// Whose peer it is, if the peer exists and that is known.
    pub(crate) fn uid_of(&self, id: PeerId) -> Option<u32> {
        self.peers.get(id)?.credentials.uid
    }

    /// All peers, in the order of their index.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter()
    }

    pub(crate) fn names(&self) -> &NameTable {
        &self.names
    }

    /// The peers with a unique name, in the order in which they said Hello.
    pub(crate) fn active_peers(&self) -> Vec<&Peer> {
        let mut all: Vec<&Peer> = self.peers.iter().filter(|peer| peer.is_active()).collect();
        all.sort_unstable_by_key(|peer| peer.unique.as_ref().map(|unique| unique.number));
        all
    }

    /// Who can be reached by a bus name: the owner of a unique name, or the primary owner of a well-known one.
    pub(crate) fn resolve(&self, name: &str) -> Option<PeerId> {
        if name.starts_with(':') {
            self.unique.get(&peer::Unique::parse(name)?).copied()
        } else {
            self.names.owner(name)
        }
    }

    pub(crate) fn restart(&self) -> &Restart {
        &self.restart
    }

    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// How many unique names can be reached.
    pub(crate) fn unique_count(&self) -> usize {
        self.unique.len()
    }

    /// The serial of the driver's last message.
    pub(crate) fn driver_serial(&self) -> u32 {
        self.driver_serial
    }

    /// `UpdateActivationEnvironment`
    pub(crate) fn update_activation_environment(&mut self, variables: Vec<(String, String)>) {
        self.activation_environment.extend(variables);
    }

    /// Asks for a warning in the log, about a peer of this user.
    pub(crate) fn warn(&mut self, uid: Option<u32>, text: String) {
        self.actions.push_back(Action::Warn { uid, text });
    }

    /// Asks for the descriptors to be closed, which now belong to nobody.
    pub(crate) fn close_fds(&mut self, fds: impl IntoIterator<Item = Fd>) {
        let fds: Fds = fds.into_iter().collect();
        if !fds.is_empty() {
            self.actions.push_back(Action::CloseFds(fds));
        }
    }
}
