//! The fixed part of a message's header.

use core::fmt;

use crate::endian::Endian;
use crate::error::MessageError;
use crate::limits::{FIXED_HEADER, MAX_ARRAY, MAX_MESSAGE};

/// What a message is for (specification, "Message Format").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum MessageType {
    /// Asks for a reply.
    MethodCall,
    /// The reply to a call.
    MethodReturn,
    /// The reply to a call that failed.
    Error,
    /// Tells all who listen.
    Signal,
    /// A type that this version of the protocol does not know; it must be ignored. Never 0 to 4.
    Unknown(u8),
}

impl MessageType {
    /// From the second byte of a message; `None` for 0, INVALID.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => None,
            1 => Some(Self::MethodCall),
            2 => Some(Self::MethodReturn),
            3 => Some(Self::Error),
            4 => Some(Self::Signal),
            code => Some(Self::Unknown(code)),
        }
    }

    /// The second byte of a message.
    pub const fn code(self) -> u8 {
        match self {
            Self::MethodCall => 1,
            Self::MethodReturn => 2,
            Self::Error => 3,
            Self::Signal => 4,
            Self::Unknown(code) => code,
        }
    }

    /// Whether it is a reply: a return or an error.
    pub const fn is_reply(self) -> bool {
        matches!(self, Self::MethodReturn | Self::Error)
    }
}

/// The flags of a message; bits that this version does not know are kept (specification, "Message Format").
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Flags(u8);

impl Flags {
    /// None set.
    pub const NONE: Self = Self(0);
    /// The sender of the call does not want a reply.
    pub const NO_REPLY_EXPECTED: Self = Self(1);
    /// The bus must not start a service for it.
    pub const NO_AUTO_START: Self = Self(2);
    /// The caller can wait while the user is asked for permission.
    pub const ALLOW_INTERACTIVE_AUTHORIZATION: Self = Self(4);

    /// From the third byte of a message.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The third byte of a message.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all flags of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl core::ops::BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flags({:#04x})", self.0)
    }
}

/// The codes of the header fields (specification, "Header Fields").
pub mod field {
    /// The object that a call goes to, or a signal comes from.
    pub const PATH: u8 = 1;
    /// The interface of the method or signal.
    pub const INTERFACE: u8 = 2;
    /// The method or signal.
    pub const MEMBER: u8 = 3;
    /// The name of the error.
    pub const ERROR_NAME: u8 = 4;
    /// The serial of the call that this is the reply to.
    pub const REPLY_SERIAL: u8 = 5;
    /// Whom it goes to.
    pub const DESTINATION: u8 = 6;
    /// Whom it comes from; only the bus sets it.
    pub const SENDER: u8 = 7;
    /// The types of the body.
    pub const SIGNATURE: u8 = 8;
    /// How many file descriptors come with it.
    pub const UNIX_FDS: u8 = 9;
}

/// The lengths in the fixed part of a header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lengths {
    pub(crate) endian: Endian,
    /// Of the array of header fields, without padding.
    pub(crate) fields: usize,
    pub(crate) body: usize,
}

impl Lengths {
    #[inline]
    pub(crate) fn read(first16: &[u8]) -> Result<Option<Self>, MessageError> {
        let Some(fixed) = first16.first_chunk::<FIXED_HEADER>() else {
            return Ok(None);
        };
        let flag = fixed[0];
        let endian = Endian::from_flag(flag).ok_or(MessageError::Endian { flag })?;
        if fixed[3] != 1 {
            return Err(MessageError::Version { version: fixed[3] });
        }
        let body = endian.u32([fixed[4], fixed[5], fixed[6], fixed[7]]) as usize;
        let fields = endian.u32([fixed[12], fixed[13], fixed[14], fixed[15]]) as usize;
        if fields > MAX_ARRAY {
            return Err(MessageError::ArrayTooLong {
                at: 12,
                length: fields,
            });
        }
        let lengths = Self { endian, fields, body };
        // Checked before the sum, which could overflow where usize has 32 bits.
        if body > MAX_MESSAGE || lengths.total() > MAX_MESSAGE {
            return Err(MessageError::TooLong {
                length: lengths.header().saturating_add(body),
                limit: MAX_MESSAGE,
            });
        }
        Ok(Some(lengths))
    }

    /// Where the array of header fields ends, before the padding.
    pub(crate) const fn fields_end(self) -> usize {
        FIXED_HEADER + self.fields
    }

    /// Length of the header with its padding.
    pub(crate) const fn header(self) -> usize {
        FIXED_HEADER + self.fields.next_multiple_of(8)
    }

    pub(crate) const fn total(self) -> usize {
        self.header() + self.body
    }
}

/// The length in bytes of the message that begins with these bytes; `None` where fewer than 16 are given.
///
/// # Errors
/// The endianness flag or the protocol version is wrong, or a length is beyond the limits of the specification
/// (array 64 MiB, message 128 MiB).
pub fn message_length(first16: &[u8]) -> Result<Option<usize>, MessageError> {
    Ok(Lengths::read(first16)?.map(Lengths::total))
}
