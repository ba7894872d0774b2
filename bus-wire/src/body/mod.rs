//! The values that a message carries (specification, "Marshaling").

pub(crate) mod progress;
mod read;
pub(crate) mod validate;
mod write;

pub use read::{ArrayReader, BodyReader, ReadError};
pub use write::BodyWriter;
#[cfg(feature = "serde")]
pub(crate) use write::OpenArray;
