//! The broker core, driven with bytes: what peers send, and what they get.
//!
//! Every script runs twice: as it is, and with the broker saved and restored after each event, every input cut in two and
//! told twice, and every link replaced before each input. Both must give the same bytes.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    missing_docs,
    unreachable_pub
)]

mod admissions;
mod announcements;
mod bus;
mod calls;
mod connecting;
mod descriptors;
mod each_limit;
mod fds;
mod limits;
mod monitoring;
mod names;
mod offsets;
mod parked;
mod policies;
mod random;
mod reloads;
mod replies;
mod restarts;
mod shares;
mod shortage;
mod signals;
mod steps;
mod transports;
mod upgrades;
