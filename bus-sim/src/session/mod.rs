//! The client's session core against a modelled bus: one thread, one seed.
//!
//! The bus dies at any byte in either direction, comes back as itself (the link was cut) or as another, refuses parts of the
//! replay, is slow, and in some runs lies. `world` is what happens, `checker` what must be true of it.

mod bus;
mod checker;
mod world;

use thiserror::Error;

/// What a run is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionOptions {
    /// How many things happen.
    pub steps: u32,
    /// In so many of 1000 steps the bus dies; the next is another.
    pub deaths: u32,
    /// In so many of 1000 steps the link is cut; the bus stays.
    pub cuts: u32,
    /// So many of 1000 rules and names are refused.
    pub refuses: u32,
    /// So many of 1000 messages are answered with a lie. Then only what must be true of any bus is checked.
    pub lies: u32,
    /// A death at exactly this byte of what both sides have written, counted from the beginning.
    pub death_at: Option<u64>,
    /// The window in which the services of a bus that is gone are expected on the next.
    pub settles: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            steps: 1000,
            deaths: 6,
            cuts: 4,
            refuses: 0,
            lies: 0,
            death_at: None,
            settles: true,
        }
    }
}

/// What happened in runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionStats {
    /// Links that were up.
    pub links: u64,
    /// Buses that died.
    pub deaths: u64,
    /// Calls that were made.
    pub calls: u64,
    /// Calls that were answered.
    pub answered: u64,
    /// Calls that are known not to have been sent.
    pub not_sent: u64,
    /// Calls of which it is not known whether they ran.
    pub unknown: u64,
    /// Of these, those that ran.
    pub unknown_ran: u64,
    /// Signals that streams were given.
    pub signals: u64,
    /// Notes of an outage.
    pub notes: u64,
    /// Changes of owners that were inferred.
    pub inferred: u64,
    /// Bytes that both sides have written.
    pub bytes: u64,
}

impl SessionStats {
    /// The sum of both.
    pub fn add(&mut self, other: &Self) {
        self.links += other.links;
        self.deaths += other.deaths;
        self.calls += other.calls;
        self.answered += other.answered;
        self.not_sent += other.not_sent;
        self.unknown += other.unknown;
        self.unknown_ran += other.unknown_ran;
        self.signals += other.signals;
        self.notes += other.notes;
        self.inferred += other.inferred;
        self.bytes += other.bytes;
    }
}

/// Something that must not be.
#[derive(Debug, Clone, Error)]
#[error("seed {seed}, step {step}: {what} (BUS_SIM_SEED={seed} runs it again)")]
pub struct SessionFailure {
    /// Of the run.
    pub seed: u64,
    /// Where in it.
    pub step: u32,
    /// What is wrong.
    pub what: String,
}

/// One run.
///
/// # Errors
/// What must not be.
pub fn run_session(seed: u64, options: SessionOptions) -> Result<SessionStats, SessionFailure> {
    let mut world = world::World::new(seed, options);
    world.run().map_err(|what| SessionFailure {
        seed,
        step: world.step(),
        what,
    })
}

/// How often a session is woken in so many seconds without a bus, with so many streams and callers that wait.
pub fn wake_ups_without_a_bus(seed: u64, seconds: u64, streams: u64, callers: u64) -> u64 {
    world::wake_ups(seed, seconds, streams, callers)
}
