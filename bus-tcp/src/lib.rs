//! A byte stream that outlives its connection.

#[cfg(test)]
extern crate self as bus_tcp;

pub mod frame;
pub mod host;
mod lease;
pub mod limits;
mod moment;
mod random;
pub mod replay;
pub mod resume;
pub mod saved;
pub mod session;

pub use lease::{client_term, host_term};
pub use moment::Moment;
