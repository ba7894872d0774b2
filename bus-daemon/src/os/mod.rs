//! The ground floor: what the daemon asks of the operating system. Nothing here knows of buses; keeper, runtime, journal
//! and handoff stand on it.

pub(crate) mod log;
pub(crate) mod rate;
mod sink;
