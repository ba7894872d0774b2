//! The one place that knows how the bodies of saved records are encoded.
//!
//! bincode is no longer maintained (RUSTSEC-2025-0141); behind these two functions it can be replaced with the next
//! version of the state format.

use serde::{Deserialize, Serialize};

/// No record is longer. 2 GiB: more than the longest queue that a configuration usually allows, with one message more.
pub const LONGEST: usize = 2 << 30;

/// Up to these lengths a record claims at most 16 times as much memory: a number of one byte may stand for eight. Only
/// byte strings make records longer.
const SHORT: usize = 1 << 20;
const LONG: usize = 128 << 20;

type Format<const LIMIT: usize> = bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<LIMIT>,
>;

const FORMAT: Format<{ 2 * LONGEST }> = bincode::config::standard().with_limit();
const LONG_FORMAT: Format<{ 16 * LONG }> = bincode::config::standard().with_limit();
const SHORT_FORMAT: Format<{ 16 * SHORT }> = bincode::config::standard().with_limit();

/// A value that cannot be encoded or bytes that are no such value; says what.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(String);

impl From<std::io::Error> for CodecError {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// The bytes of a value.
///
/// # Errors
/// When it is longer than [`LONGEST`].
pub fn encode(value: &impl Serialize) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::new();
    encode_into(value, &mut bytes)?;
    Ok(bytes)
}

/// Adds the bytes of a value.
///
/// # Errors
/// When it is longer than [`LONGEST`]. Part of it may have been added then.
pub fn encode_into(value: &impl Serialize, bytes: &mut impl std::io::Write) -> Result<(), CodecError> {
    let length = bincode::serde::encode_into_std_write(value, bytes, FORMAT)
        .map_err(|error| CodecError(error.to_string()))?;
    if length > LONGEST {
        return Err(CodecError(format!("a record of {length} bytes is too long")));
    }
    Ok(())
}

/// The value that is all of `bytes`.
///
/// # Errors
/// When they are no such value, or something is left over.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    let decoded = if bytes.len() <= SHORT {
        bincode::serde::borrow_decode_from_slice(bytes, SHORT_FORMAT)
    } else if bytes.len() <= LONG {
        bincode::serde::borrow_decode_from_slice(bytes, LONG_FORMAT)
    } else {
        bincode::serde::borrow_decode_from_slice(bytes, FORMAT)
    };
    let (value, used) = decoded.map_err(|error| CodecError(error.to_string()))?;
    if used == bytes.len() {
        Ok(value)
    } else {
        Err(CodecError(format!("{} bytes are left over", bytes.len() - used)))
    }
}
