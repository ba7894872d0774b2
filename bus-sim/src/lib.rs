//! Deterministic simulation of the bus: one thread, one seed.
//!
//! A run is the whole broker with simulated clients on simulated connections. The clients do whatever comes to their
//! minds, at any moment, and the connections cut every stream at any byte. At every step the broker may be saved and
//! restored, or "die" and be recovered from its last checkpoint and the events since. What waits at a checkpoint may be moved
//! to a store, which goes on when the broker is replaced. Three things watch over it:
//!
//! * the model (`model/`): the rules of the bus once more, in the plainest way. It says which messages each
//!   client must be sent in each event, and takes nothing else;
//! * the clients themselves (`client.rs`): order, doubles, answers and names, from nothing but what they read;
//! * twins (`restart.rs`): a broker that was replaced goes along for some events, and must do the same byte by byte.
//!
//! The same seed and [`Options`] give the same run. `BUS_SIM_SEED=n cargo test -p bus-sim` runs one seed again.

mod authentication;
mod bus;
mod checkpoint;
mod client;
mod daemon;
mod errands;
mod files;
mod finish;
mod letter;
mod link;
mod model;
pub mod network;
mod operation;
mod random;
mod restart;
mod rule;
mod sabotage;
pub mod session;
mod shortage;
mod store;
mod world;

use thiserror::Error;

pub use sabotage::Sabotage;

/// What a run is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How many things happen.
    pub steps: u32,
    /// How many clients there are at most at one time.
    pub clients: usize,
    /// In so many of 1000 steps the bus is upgraded in place.
    pub upgrades: u32,
    /// In so many of 1000 steps it dies and is recovered.
    pub deaths: u32,
    /// In so many of 1000 steps it takes a checkpoint, from which recoveries begin.
    pub checkpoints: u32,
    /// In so many of 1000 steps memory is found to be short: peers are held back, or go.
    pub shortages: u32,
    /// After a restart, for how many events at most the broker before it goes along and is compared; 0 = never.
    pub twin_events: u64,
    /// A fault put in on purpose.
    pub sabotage: Option<Sabotage>,
}

impl Default for Options {
    /// A run of a few milliseconds with everything in it.
    fn default() -> Self {
        Self {
            steps: 800,
            clients: 7,
            upgrades: 60,
            deaths: 30,
            checkpoints: 30,
            shortages: 0,
            twin_events: 20,
            sabotage: None,
        }
    }
}

/// What happened in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Events that the broker took in.
    pub events: u64,
    /// Steps that it took beyond these.
    pub steps: u64,
    /// Messages that it queued, each as the model wanted it.
    pub queued: u64,
    /// Messages that clients read.
    pub read: u64,
    /// Clients that connected.
    pub clients: u64,
    /// Clients that were disconnected by the bus.
    pub disconnected: u64,
    /// Descriptors that the bus held at some time.
    pub descriptors: u64,
    /// Upgrades in place.
    pub upgrades: u64,
    /// Recoveries from a checkpoint and the events since.
    pub recoveries: u64,
    /// Messages that arrived in memory of their own.
    pub large: u64,
    /// Events that told what was told already.
    pub told_again: u64,
    /// Writes of the bus whose bytes came from the store.
    pub stored: u64,
    /// Bytes that a bus which died had put into the store for a checkpoint that was never complete.
    pub forgotten: u64,
    /// Links that were lost while their peers stayed.
    pub parked: u64,
    /// Upgrades that came as far as the state being handed over.
    pub hand_overs: u64,
    /// Peers that were held back for want of memory.
    pub held_back: u64,
    /// How often a peer waited with a broadcast for those who read.
    pub paced: u64,
    /// Peers that had to go for want of memory.
    pub dismissed: u64,
    /// The run ended early where the model cannot know what is right (see `model::Trouble`).
    pub unknowable: u64,
    /// The fault that was put in on purpose has struck.
    pub sabotaged: u64,
}

impl Stats {
    /// The sum of two.
    pub fn add(&mut self, other: &Self) {
        let Self {
            events,
            steps,
            queued,
            read,
            clients,
            disconnected,
            descriptors,
            upgrades,
            recoveries,
            large,
            told_again,
            stored,
            forgotten,
            parked,
            hand_overs,
            held_back,
            paced,
            dismissed,
            unknowable,
            sabotaged,
        } = other;
        self.events += events;
        self.steps += steps;
        self.queued += queued;
        self.read += read;
        self.clients += clients;
        self.disconnected += disconnected;
        self.descriptors += descriptors;
        self.upgrades += upgrades;
        self.recoveries += recoveries;
        self.large += large;
        self.told_again += told_again;
        self.stored += stored;
        self.forgotten += forgotten;
        self.parked += parked;
        self.hand_overs += hand_overs;
        self.held_back += held_back;
        self.paced += paced;
        self.dismissed += dismissed;
        self.unknowable += unknowable;
        self.sabotaged += sabotaged;
    }
}

/// The bus did something that it must not do, or did not do what it must.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "seed {seed}, step {step}: {what}\nbefore that:\n{trace}\nto see it again: BUS_SIM_SEED={seed} cargo test -p bus-sim"
)]
pub struct Failure {
    /// Of the run.
    pub seed: u64,
    /// At which step.
    pub step: u32,
    /// What is wrong.
    pub what: String,
    /// The last things that happened.
    pub trace: String,
}

/// One run.
///
/// # Errors
/// The first thing that is wrong.
pub fn run(seed: u64, options: Options) -> Result<Stats, Failure> {
    world::World::new(seed, options).run()
}
