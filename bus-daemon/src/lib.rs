//! A D-Bus message bus daemon that is replaced in place, without its clients noticing.
//!
//! [`broker`] is the bus as a pure state machine: events in, actions and queued bytes out. Everything that speaks to
//! the system is behind the feature `runtime`.

pub mod broker;
pub mod config;
#[cfg(feature = "runtime")]
mod control;
#[cfg(all(feature = "runtime", feature = "test-hooks"))]
mod fault;
pub mod handoff;
#[cfg(feature = "runtime")]
mod journal;
#[cfg(feature = "runtime")]
mod keeper;
#[cfg(feature = "runtime")]
mod os;
pub mod policy;
#[cfg(feature = "runtime")]
mod runtime;

#[cfg(feature = "runtime")]
pub use keeper::main_from;

/// For the fuzz target of the store: a file as `data` says, and what a worker does with it.
#[doc(hidden)]
#[cfg(all(feature = "runtime", feature = "test-hooks"))]
pub use journal::fuzz_store;
/// For benchmarks: a bus with its journal.
#[doc(hidden)]
#[cfg(all(feature = "runtime", feature = "bench-hooks"))]
pub use runtime::bench::JournaledBus;
/// For the fuzz target of the journal: damage as `data` says, and a replay.
#[doc(hidden)]
#[cfg(all(feature = "runtime", feature = "test-hooks"))]
pub use runtime::fuzz::journal as fuzz_journal;
