//! Handing the bus from one process image to the next: what is saved, how it is written, how it is tried.

pub mod codec;
pub mod container;
pub mod image;
#[cfg(feature = "runtime")]
pub(crate) mod memfd;
#[cfg(feature = "runtime")]
pub(crate) mod preflight;
