//! Saved state as bytes: magic, what it is, version, length, checksum, body. This module alone knows the encoding.

use serde::Serialize;
use serde::de::DeserializeOwned;

const MAGIC: [u8; 4] = *b"BUSt";
const VERSION: u16 = 1;
const HEAD: usize = 4 + 2 + 2 + 8 + 4;
/// A field of a byte may stand for a number of eight.
const LIMIT: usize = 1 << 31;

/// What the bytes are of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// One session, of either side.
    Session = 1,
    /// A whole host.
    Host = 2,
    /// What the tokio driver keeps of a client.
    Client = 3,
    /// What the tokio driver keeps of a host.
    Listener = 4,
}

/// Bytes that are no saved state. Whoever kept them is at fault.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SavedError {
    /// Not ours, or of something else.
    #[error("not the saved state that is asked for")]
    Kind,
    /// From another version.
    #[error("saved state of version {0}, not {VERSION}")]
    Version(u16),
    /// Cut, or changed.
    #[error("saved state is damaged")]
    Damaged,
    /// Too long to be saved.
    #[error("state that cannot be saved: {0}")]
    Unsaveable(String),
}

/// The bytes of `state`.
///
/// # Errors
/// It is longer than 2 GiB.
pub fn encode(kind: Kind, state: &impl Serialize) -> Result<Vec<u8>, SavedError> {
    let body = bincode::serde::encode_to_vec(state, bincode::config::standard().with_limit::<LIMIT>())
        .map_err(|error| SavedError::Unsaveable(error.to_string()))?;
    let mut bytes = Vec::with_capacity(HEAD + body.len());
    bytes.extend(MAGIC);
    bytes.extend((kind as u16).to_be_bytes());
    bytes.extend(VERSION.to_be_bytes());
    bytes.extend((body.len() as u64).to_be_bytes());
    bytes.extend(crc32c::crc32c(&body).to_be_bytes());
    bytes.extend(body);
    Ok(bytes)
}

/// The state that is all of `bytes`.
///
/// # Errors
/// They are no such state.
pub fn decode<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, SavedError> {
    let (head, body) = bytes.split_first_chunk::<HEAD>().ok_or(SavedError::Damaged)?;
    if head[..4] != MAGIC || head[4..6] != (kind as u16).to_be_bytes() {
        return Err(SavedError::Kind);
    }
    let version = u16::from_be_bytes([head[6], head[7]]);
    if version != VERSION {
        return Err(SavedError::Version(version));
    }
    if head[8..16] != (body.len() as u64).to_be_bytes() || head[16..] != crc32c::crc32c(body).to_be_bytes() {
        return Err(SavedError::Damaged);
    }
    let config = bincode::config::standard().with_limit::<LIMIT>();
    match bincode::serde::decode_from_slice(body, config) {
        Ok((state, used)) if used == body.len() => Ok(state),
        Ok(_) | Err(_) => Err(SavedError::Damaged),
    }
}
