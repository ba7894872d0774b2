//! The broker: a deterministic state machine that routes messages between peers.
//!
//! Everything that can change an output comes in as an [`Event`], what the broker wants from the system goes out as
//! an [`Action`], bytes for the peers go into their send queues. There is no clock, socket, random number or thread
//! in here, and no hash order shows: the same events give the same bytes, which is what replay relies on.

mod action;
mod activation_environment;
mod admissions;
mod agenda;
mod call_table;
mod changes;
mod connect;
mod crowd;
mod deadline;
mod deliver;
mod descriptors;
mod disconnect;
mod driver;
mod entries;
mod errand;
mod event;
mod explain;
mod frozen;
mod gather;
mod holdings;
mod invariants;
mod ledger;
mod lent;
mod liveness;
mod match_index;
mod match_rule;
mod monitor;
mod name;
mod newcomers;
mod origins;
mod outgoing;
mod ownership;
mod pacing;
mod peer;
mod per_peer;
mod policy;
mod quota;
mod record_fault;
mod relief;
mod reload;
mod reply;
mod restart;
mod restore;
mod room;
mod roster;
mod route;
mod scratch;
mod shares;
mod snapshot;
mod speak;
mod subscriptions;
mod timer;

use std::collections::VecDeque;
use std::sync::Arc;

use bus_wire::{Fd, Framer, FramerState, Guid, LargeMessage, SASL_NONCE, SendQueue};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use action::{Action, JournalMemory, MachineId, System};
#[cfg(feature = "runtime")]
pub(crate) use admissions::CONTEXT as COOKIE_CONTEXT;
pub use changes::EntryKind;
pub use descriptors::Payer;
pub use errand::{ConfigRefusal, Errand, ErrandOutcome, Keys};
pub use event::{Attested, Credentials, Event, Fds, Millis, PeerId, Start, Transport};
pub use frozen::{
    AdmissionsV1, AgendaV1, Blob, BrokerState, ConfigV1, ConfigV2, EntryV1, GlobalV1, GlobalV2, HeldV1,
    InForceV1, NameV1, PacingV1, PeerRecord, PeerShareV1, PeerV1, PeerV2, PolicyV1, RuleV1, SharesV1,
    Unexpressed,
};
#[cfg(feature = "next-version")]
pub use frozen::{NoteV1, PeerNextV1};
pub use gather::Checkpoint;
pub use invariants::Violation;
pub use lent::lending;
pub use match_rule::Text as RuleText;
pub use relief::{Memory, Relief, SavedShortage};
pub use restore::{Dropped, RestoreError};
pub use room::Room;
pub use snapshot::SharedBodies;

pub(crate) use activation_environment::MOST as MOST_ENVIRONMENT;
#[cfg(feature = "runtime")]
pub(crate) use driver::introspection;
pub(crate) use explain::{Inquiry, Matter, Subject};
pub(crate) use name::{NameFlags, NameTable};
pub(crate) use peer::Peer;
pub(crate) use relief::MEMORY_SHORT;
pub(crate) use restart::{LastRestart, Restart, STATE_VERSION};
pub(crate) use speak::{LIMITS_EXCEEDED, expects_reply};
pub(crate) use subscriptions::RuleRefusal;

use crate::config::Config;
use activation_environment::ActivationEnvironment;
use admissions::Keyring;
use call_table::CallTable;
use connect::max_message_size;
use crowd::Crowd;
use deadline::Deadlines;
use descriptors::Descriptors;
use disconnect::Disconnect;
use ledger::Ledger;
use liveness::AwakeTime;
use outgoing::Outgoing;
use pacing::Pacing;
use policy::InForce;
use relief::Shortage;
use reload::Reload;
use roster::Roster;
use scratch::Scratch;
use subscriptions::Subscriptions;

/// Bytes of a large message that are validated at once where they are not new.
const CAUGHT_UP: usize = 128 * 1024;

/// The hasher of every table of the broker: seeded once per bus, the same in replay.
pub(crate) type Seeded = foldhash::fast::FixedState;

/// The name of the driver (specification, "Message Bus Messages").
pub(crate) const DRIVER: &str = "org.freedesktop.DBus";

/// What distinguishes this bus from others; the same for its whole life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// What `GetId` answers.
    pub guid: Guid,
    /// The listeners, in the order of the config.
    pub listeners: Vec<ListenerIdentity>,
    /// What `org.freedesktop.DBus.Peer.GetMachineId` answers: 32 hex digits. Empty if the machine had no id when the bus
    /// was started: then the system is asked each time.
    pub machine_id: String,
    /// The process that is known as the bus.
    pub keeper_pid: u32,
    /// The user that the bus runs as.
    pub own_uid: u32,
    /// Seeds the hash tables against chosen collisions.
    pub hash_seed: u64,
}

/// A listener, as the peers that come through it know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerIdentity {
    /// SASL tells it to them.
    pub guid: Guid,
    /// What carries their links.
    pub transport: Transport,
    /// What they have to say first, where the address names a file with it (`nonce-tcp:`).
    pub nonce: Option<[u8; SASL_NONCE]>,
}

impl Identity {
    /// The guid that peers of a listener are told.
    fn listener_guid(&self, listener: u32) -> Guid {
        let listener = self.listeners.get(listener as usize);
        listener.map_or(self.guid, |listener| listener.guid)
    }

    /// What a peer of a listener has to say first.
    fn nonce(&self, listener: u32) -> Option<[u8; SASL_NONCE]> {
        self.listeners.get(listener as usize)?.nonce
    }

    /// What carries the links of a listener.
    fn transport(&self, listener: u32) -> Transport {
        let listener = self.listeners.get(listener as usize);
        listener.map_or(Transport::Tcp, |listener| listener.transport)
    }
}

/// The bus, without its sockets.
///
/// Each part keeps its own indexes and counts in agreement. A part that is changed returns what that brought about;
/// the methods of the broker announce it.
#[derive(Debug)]
pub struct Broker {
    identity: Identity,
    config: Arc<Config>,
    /// Who may do what.
    in_force: InForce,
    /// Whether the configuration may have changed since the last checkpoint.
    is_config_changed: bool,
    /// Who is here.
    roster: Roster,
    /// Who has which well-known name.
    names: NameTable,
    /// Who listens to what.
    subscriptions: Subscriptions,
    /// Which calls are open.
    calls: CallTable,
    deadlines: Deadlines,
    /// What waits to go out.
    outgoing: Outgoing,
    restart: Restart,
    /// Who waits for the configuration to be read again.
    reload: Reload,
    /// Who waits for a cookie.
    keyring: Keyring,
    /// The memfd that the configuration in force came in, if it came in one.
    config_source: Option<Fd>,
    /// The number of the next errand.
    next_errand: u64,
    /// What UpdateActivationEnvironment has set, for services that are started.
    activation_environment: ActivationEnvironment,
    /// What is held for whom.
    ledger: Ledger,
    /// Who holds how much of the table of descriptors.
    descriptors: Descriptors,
    /// For whom too many descriptors wait.
    crowd: Crowd,
    /// Who is held back because memory is short.
    shortage: Shortage,
    /// How long the bus was awake: who reads is judged by that.
    awake: AwakeTime,
    /// Who sends more than receivers read.
    pacing: Pacing,
    /// How many peers are giving up what they have.
    shedding: u32,
    /// How much state there is room for.
    room: Room,
    scratch: Scratch,
}

impl Broker {
    /// A bus without peers.
    pub fn new(identity: Identity, config: Arc<Config>, now: Millis) -> Self {
        let hasher = Seeded::with_seed(identity.hash_seed);
        Self {
            in_force: InForce::new(config.policy.clone()),
            config,
            is_config_changed: true,
            roster: Roster::new(hasher.clone()),
            names: NameTable::new(hasher.clone()),
            subscriptions: Subscriptions::new(identity.hash_seed),
            calls: CallTable::new(),
            deadlines: Deadlines::new(now),
            outgoing: Outgoing::new(0),
            restart: Restart::default(),
            reload: Reload::default(),
            keyring: Keyring::default(),
            config_source: None,
            next_errand: 1,
            activation_environment: ActivationEnvironment::default(),
            ledger: Ledger::default(),
            descriptors: Descriptors::new(identity.own_uid),
            crowd: Crowd::default(),
            shortage: Shortage::default(),
            awake: AwakeTime::default(),
            pacing: Pacing::default(),
            shedding: 0,
            room: Room::ENDLESS,
            scratch: Scratch::default(),
            identity,
        }
    }

    /// Takes one event in, completely. Events of peers that are gone are ignored (their descriptors are closed).
    pub fn handle(&mut self, event: Event, system: &mut dyn System) {
        self.outgoing.begin_step();
        match event {
            Event::Accepted {
                peer,
                listener,
                socket,
                attested,
            } => {
                self.accept(peer, listener, socket, attested);
            }
            Event::Detached { peer } => self.detach(peer),
            Event::Attached { peer, socket } => self.attach(peer, socket),
            Event::Received {
                peer,
                upto,
                data,
                fds,
            } => self.received(peer, upto, data, fds, system),
            Event::ReceivedLarge {
                peer,
                upto,
                prefix,
                fds,
            } => self.received_large(peer, upto, prefix, fds, system),
            Event::Sent { peer, upto } => self.sent(peer, upto),
            Event::Step { peer } => self.step(peer, system),
            Event::Quarantined { peer, begins_with } => self.quarantined(peer, &begins_with),
            Event::Closed { peer, reason } => self.disconnect(peer, Disconnect::Transport(reason)),
            Event::Tick { now } => self.tick(now),
            Event::ReloadRequested => self.request_reload(None),
            Event::UpgradeRequested => self.upgrade_requested(),
            Event::ErrandEnded {
                errand,
                outcome,
                payload,
            } => self.errand_ended(errand, outcome, payload, system),
            Event::UpgradeFailed { reason } => self.upgrade_failed(&reason),
            Event::Serving { worker_pid, start } => self.serving(worker_pid, start),
            Event::Relieved(relief) => self.relieved(relief),
            Event::DescriptorLimit { limit } => self.limit_descriptors(limit),
        }
        self.bury_condemned();
    }

    /// What the broker wants from the system, in order. The runtime takes them out and carries them out.
    pub fn actions(&mut self) -> &mut VecDeque<Action> {
        self.outgoing.actions()
    }

    /// Moves to `out` the peers whose send queue got bytes since this was last asked, each once.
    pub fn take_dirty(&mut self, out: &mut Vec<PeerId>) {
        self.outgoing.take_dirty(&mut self.roster, out);
    }

    /// What waits to be written to a peer. What was written is reported with [`Event::Sent`].
    pub fn send_queue(&self, peer: PeerId) -> Option<&SendQueue> {
        self.roster.get(peer).map(|peer| &peer.out)
    }

    /// The large message that a peer is in the middle of, if any and if no step is wanted for it, and the bytes of it that have arrived: the runtime
    /// reads the rest into one extent.
    pub fn large_message(&self, peer: PeerId) -> Option<(LargeMessage, &[u8])> {
        let peer = self.roster.get(peer)?;
        let framer = &peer.framer;
        if !matches!(peer.agenda, agenda::Agenda::Idle) {
            return None;
        }
        Some((framer.large()?, framer.partial()))
    }

    /// Gives a restored peer the beginning of the large message that it is in the middle of, which its record lacked. False:
    /// it cannot be that.
    pub fn resume_input(&mut self, peer: PeerId, input: Bytes) -> bool {
        let limit = max_message_size(&self.config);
        let Some(peer) = self.roster.get_mut(peer) else {
            return false;
        };
        if peer.framer.partial_bytes() > 0 || input.len() > limit {
            return false;
        }
        let state = FramerState {
            partial: input,
            fds: peer.framer.take_fds(),
        };
        peer.framer = Framer::restore(state, limit);
        self.ledger.settle(peer);
        peer.framer.large().is_some()
    }

    /// Validates a bounded part of the large message that a peer is in the middle of, where the worker that saw its bytes
    /// arrive has taken what it knew of them with it. True: there is more. That changes nothing that the broker does, so
    /// it is no event; a peer is to be read from when there is no more, so that the rest of its message takes no longer
    /// than what is read of it.
    pub fn catch_up(&mut self, peer: PeerId) -> bool {
        // How far a message was validated is not saved, so that the peer is not changed.
        let Some(peer) = self.roster.at_mut(peer.index).filter(|one| one.id == peer) else {
            return false;
        };
        let is_behind = peer.framer.catch_up(CAUGHT_UP);
        if is_behind {
            self.outgoing.note_work(CAUGHT_UP as u64 / 2048);
        }
        is_behind
    }

    /// Whether a peer is to be read from: what the last of [`Action::StopReading`] and [`Action::ResumeReading`] said.
    /// A runtime that takes over asks this.
    pub fn may_read(&self, peer: PeerId) -> bool {
        let is_unread = self.roster.get(peer).is_none_or(Peer::is_unread);
        !is_unread && !self.shortage.is_unread(peer)
    }

    /// Whether connections are to be accepted: what the last of [`Action::StopAccepting`] and
    /// [`Action::ResumeAccepting`] said. A runtime that takes over asks this.
    pub fn may_accept(&self) -> bool {
        !self.roster.is_accepting_stopped()
    }

    /// When an [`Event::Tick`] is wanted at the latest.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.deadlines.first()
    }

    /// Every peer, in the order of its index.
    pub fn peer_ids(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.roster.iter().map(|peer| peer.id)
    }

    /// The handle of a peer's socket, if the peer has a link.
    pub fn socket(&self, peer: PeerId) -> Option<Fd> {
        self.roster.get(peer)?.socket
    }

    /// How many bytes of a peer's stream were taken.
    pub fn taken(&self, peer: PeerId) -> u64 {
        self.roster.get(peer).map_or(0, |peer| peer.taken)
    }

    /// The user that a peer belongs to, as far as is known.
    pub fn uid(&self, peer: PeerId) -> Option<u32> {
        self.roster.get(peer)?.credentials.uid
    }

    /// Units of work done by this process: a message, 4 KiB of one, a delivery. The runtime shares its turns by them.
    pub fn work(&self) -> u64 {
        self.outgoing.work()
    }

    /// Messages that this process has queued for receivers that do not read, and as many more as its own, for anybody, are long:
    /// what a checkpoint may have to store.
    pub fn queued_to_wait(&self) -> u64 {
        self.outgoing.waiting()
    }

    /// Every descriptor that the broker owns: sockets of links, received ones in partial input and in send queues, and
    /// where the configuration came from. The manifest tells their numbers.
    pub fn owned_fds(&self) -> Vec<Fd> {
        let mut all: Vec<Fd> = self.config_source.into_iter().collect();
        for peer in self.roster.iter() {
            all.extend(peer.socket);
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
        self.roster.get(id)
    }

    /// All peers, in the order of their index.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.roster.iter()
    }

    pub(crate) fn names(&self) -> &NameTable {
        &self.names
    }

    /// The peers that can be reached by a unique name, in the order in which they said Hello.
    pub(crate) fn active_peers(&self) -> impl Iterator<Item = &Peer> {
        self.roster.in_order()
    }

    /// Who can be reached by a bus name: the owner of a unique name, or the primary owner of a well-known one.
    pub(crate) fn resolve(&self, name: &str) -> Option<PeerId> {
        if name.starts_with(':') {
            self.roster.by_unique(peer::Unique::parse(name)?)
        } else {
            self.names.owner(name)
        }
    }

    pub(crate) fn restart(&self) -> &Restart {
        &self.restart
    }

    /// The serial of the driver's last message.
    pub(crate) fn driver_serial(&self) -> u32 {
        self.outgoing.serial()
    }

    /// Asks for a warning in the log, about a peer of this user.
    pub(crate) fn warn(&mut self, uid: Option<u32>, text: String) {
        self.outgoing.ask(Action::Warn { uid, text });
    }

    /// Asks for the descriptors to be closed, which now belong to nobody.
    pub(crate) fn close_fds(&mut self, fds: impl IntoIterator<Item = Fd>) {
        self.outgoing.close_fds(fds);
    }
}
