//! The ground floor: what the kernel offers, in the daemon's own words. Nothing in here knows of buses.
//!
//! Architecture invariant: this module depends on no other module of the daemon.

pub(crate) mod build;
pub(crate) mod clock;
pub(crate) mod control_group;
pub(crate) mod descriptor;
pub(crate) mod inotify;
pub(crate) mod log;
pub(crate) mod memfd;
pub(crate) mod memory;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod rate;
pub(crate) mod region;
mod sink;
pub(crate) mod socket;
mod syslog;
