//! Hundreds of raw connections in one thread with one poll loop.

mod client;
mod engine;
mod roles;
mod spec;

pub(crate) use engine::{Command, Condition, Engine, Shared};
pub(crate) use roles::{QUEUED_NAME, name_of};
