//! Handing the bus from one process image to the next: what is saved, and how it is written.

pub mod codec;
pub mod container;
pub mod form;
pub mod image;
#[cfg(feature = "runtime")]
pub(crate) mod keeper;
pub mod stored;
