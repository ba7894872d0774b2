//! Identifiers of servers, buses and machines.

use core::fmt;
use core::str::FromStr;

/// A globally unique id: 16 bytes, written as 32 hexadecimal digits (specification, "UUIDs").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Guid([u8; 16]);

impl Guid {
    /// From 16 bytes, whose origin (randomness, time) is the caller's affair.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// Not 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID: it must be exactly 32 hexadecimal digits (specification, UUIDs)")]
pub struct GuidError;

impl FromStr for Guid {
    type Err = GuidError;

    fn from_str(text: &str) -> Result<Self, GuidError> {
        let digits: &[u8; 32] = text.as_bytes().try_into().map_err(|_| GuidError)?;
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = hex(pair[0])? << 4 | hex(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

fn hex(digit: u8) -> Result<u8, GuidError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(GuidError),
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digit = |value: u8| b"0123456789abcdef"[usize::from(value)];
        let mut text = [0; 32];
        for (pair, byte) in text.as_chunks_mut().0.iter_mut().zip(self.0) {
            *pair = [digit(byte >> 4), digit(byte & 15)];
        }
        f.write_str(core::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guid({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        let text = "00112233445566778899aabbccddeeff";
        let guid: Guid = text.parse().unwrap();
        assert_eq!(guid.as_bytes()[15], 0xff);
        assert_eq!(guid.to_string(), text);
        assert_eq!(text.to_uppercase().parse::<Guid>(), Ok(guid));
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "00",
            "00112233445566778899aabbccddeef",
            "0011223344556677-8899aabbccddeef",
            "é0112233445566778899aabbccddeeff",
        ] {
            assert_eq!(text.parse::<Guid>(), Err(GuidError), "{text}");
        }
    }
}
