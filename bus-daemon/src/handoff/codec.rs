//! The one place that knows how the bodies of saved records are encoded.
//!
//! bincode is no longer maintained (RUSTSEC-2025-0141); behind these two functions it can be replaced with the next
//! version of the state format.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// No record is longer; no claim of a length beyond this sizes memory. 256 MiB.
pub const LONGEST: usize = 256 << 20;

const FORMAT: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<LONGEST>,
> = bincode::config::standard().with_limit::<LONGEST>();

/// A value that cannot be encoded or bytes that are no such value; says what.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(String);

/// The bytes of a value.
///
/// # Errors
/// When it is longer than [`LONGEST`].
pub fn encode(value: &impl Serialize) -> Result<Vec<u8>, CodecError> {
    bincode::serde::encode_to_vec(value, FORMAT).map_err(|error| CodecError(error.to_string()))
}

/// The value that is all of `bytes`.
///
/// # Errors
/// When they are no such value, or something is left over.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) = bincode::serde::decode_from_slice(bytes, FORMAT)
        .map_err(|error| CodecError(error.to_string()))?;
    if used == bytes.len() {
        Ok(value)
    } else {
        Err(CodecError(format!("{} bytes are left over", bytes.len() - used)))
    }
}
