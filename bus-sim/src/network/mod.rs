//! Two machines and a bad network, from one seed: a client and a host of `bus-tcp` on clocks that differ, and carriers that
//! are cut at any byte, go silent in one direction or both, deliver late, or are an attacker's. Either machine may sleep, or
//! die and go on from what it had journalled.
//!
//! Watched all the time: every byte comes once and in order; nothing that the other side has not for good is forgotten;
//! the host never gives up a session that its client still relies on; a session ends for its window alone; an attacker
//! changes nothing; what is kept is bounded. And when the network is good again, all that was said arrives, and both ends
//! know it.

mod attacker;
mod machine;
mod stream;
mod wire;
mod world;

use thiserror::Error;

/// What a run is like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many things happen before the network is good again.
    pub steps: u32,
    /// In so many of 1000 steps a carrier is cut.
    pub cuts: u32,
    /// In so many of 1000 steps the whole link goes down, or up.
    pub outages: u32,
    /// In so many of 1000 steps a machine sleeps.
    pub sleeps: u32,
    /// In so many of 1000 steps a machine dies.
    pub deaths: u32,
    /// In so many of 1000 steps an attacker comes.
    pub attacks: u32,
    /// The link is good for so many milliseconds at a time only, just enough for a resumption and a record.
    pub lives: Option<u64>,
    /// A fault put in on purpose, to see that it is found.
    pub sabotage: Option<Sabotage>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            steps: 1500,
            cuts: 15,
            outages: 6,
            sleeps: 3,
            deaths: 4,
            attacks: 15,
            lives: None,
            sabotage: None,
        }
    }
}

/// Faults of whoever owns the state machines, that the invariants have to find.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sabotage {
    /// The host says that bytes are committed before its journal has them.
    AcksEarly,
    /// The host grants sessions before its journal has them.
    GrantsEarly,
    /// The client's clock stands still while it sleeps.
    ClockStops,
    /// The client delivers bytes of a carrier twice.
    DeliversTwice,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    /// Bytes that arrived, in both directions.
    pub bytes: u64,
    /// Carriers that were connected.
    pub carriers: u64,
    /// Sessions that began.
    pub sessions: u64,
    /// Resumptions.
    pub resumptions: u64,
    /// Bytes that were sent again.
    pub again: u64,
    /// Sessions whose window ended.
    pub expired: u64,
    /// Times that a client was fenced and resumed.
    pub fenced: u64,
    /// Deaths of either machine.
    pub deaths: u64,
    /// Sleeps of either machine.
    pub sleeps: u64,
    /// Carriers of attackers.
    pub attacks: u64,
    /// Carriers that the host turned away.
    pub turned_away: u64,
    /// Bytes that came late, on a carrier that had been replaced.
    pub late: u64,
}

impl Stats {
    /// The sum of two.
    pub fn add(&mut self, other: &Self) {
        let Self {
            bytes,
            carriers,
            sessions,
            resumptions,
            again,
            expired,
            fenced,
            deaths,
            sleeps,
            attacks,
            turned_away,
            late,
        } = other;
        self.bytes += bytes;
        self.carriers += carriers;
        self.sessions += sessions;
        self.resumptions += resumptions;
        self.again += again;
        self.expired += expired;
        self.fenced += fenced;
        self.deaths += deaths;
        self.sleeps += sleeps;
        self.attacks += attacks;
        self.turned_away += turned_away;
        self.late += late;
    }
}

/// A promise that was broken.
#[derive(Clone, Debug, Error)]
#[error(
    "seed {seed}, after {time} ms: {what}\nbefore that:\n{trace}\nto see it again: BUS_SIM_SEED={seed} cargo test -p bus-sim --test network"
)]
pub struct Failure {
    /// Of the run.
    pub seed: u64,
    /// When.
    pub time: u64,
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
