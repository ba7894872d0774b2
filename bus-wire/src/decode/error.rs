//! Why a body is not the Rust type that is asked for.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use super::Decode;
use crate::body::{BodyReader, ReadError};
use crate::signature::{alignment, type_end};
use crate::ty::{body_signature_of, signature_of};

/// Why a body, or a value in it, is not the Rust type that is asked for: what, and where.
///
/// The sender has sent something else than was agreed upon; or this program asks for something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError(Box<Inner>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    /// The innermost first.
    path: Vec<Step>,
    fault: DecodeFault,
}

/// A step on the way from a body to one value in it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// An argument, counted from 0.
    Argument(usize),
    /// A field of a struct.
    Field(&'static str),
    /// A field of a tuple, counted from 0.
    Position(usize),
    /// An element of an array, counted from 0.
    Index(usize),
    /// The value that a dict has for a key.
    Key(String),
    /// What a variant holds.
    Variant,
}

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeFault {
    /// It is of another type.
    #[error("byte {at} of the body: the type is '{found}', not '{expected}'")]
    Type {
        /// Offset into the body.
        at: usize,
        /// The signature that was asked for.
        expected: String,
        /// The signature that is there; empty where there is nothing.
        found: String,
    },
    /// It is of the right type, but not one of the values that the Rust type can be.
    #[error("byte {at} of the body: {reason}")]
    Value {
        /// Offset into the body of the byte after it.
        at: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A dict has no value for a key that it must have.
    #[error("byte {at} of the body: there is no {key:?} in the dict")]
    Missing {
        /// Offset into the body of the byte after the dict.
        at: usize,
        /// Which key.
        key: &'static str,
    },
    /// It cannot be read.
    #[error(transparent)]
    Read(ReadError),
}

impl DecodeError {
    #[cold]
    fn new(fault: DecodeFault) -> Self {
        Self(Box::new(Inner {
            path: Vec::new(),
            fault,
        }))
    }

    /// The value that `reader` has read is not one of those that are allowed.
    #[cold]
    pub fn value(reader: &BodyReader<'_>, reason: impl fmt::Display) -> Self {
        Self::new(DecodeFault::Value {
            at: reader.position(),
            reason: reason.to_string(),
        })
    }

    /// The dict that `reader` has read has no value for `key`.
    #[cold]
    pub fn missing(reader: &BodyReader<'_>, key: &'static str) -> Self {
        Self::new(DecodeFault::Missing {
            at: reader.position(),
            key,
        })
    }

    /// It was found within this part of a larger value.
    #[cold]
    #[must_use]
    pub fn within(mut self, step: Step) -> Self {
        self.0.path.push(step);
        self
    }

    /// The body, or what a variant holds, of which nothing was read, is no `T`.
    #[cold]
    pub(super) fn of_types<'m, T: Decode<'m>>(reader: &BodyReader<'m>) -> Self {
        let expected = if reader.position() == 0 {
            body_signature_of::<T>()
        } else {
            signature_of::<T>()
        };
        let mut reader = reader.clone();
        let mut expected = expected.as_str();
        let arguments = T::IS_ARGUMENTS && reader.position() == 0;
        let mut index = 0;
        // To the first argument that is not as it should be.
        while arguments && !expected.is_empty() {
            let (first, rest) = expected.split_at(type_end(expected.as_bytes(), 0));
            let found = reader.peek_signature();
            if first != found || reader.skip().is_err() {
                return Self::of_signatures(reader.position(), first, found).within(Step::Argument(index));
            }
            expected = rest;
            index += 1;
        }
        let error = Self::of_signatures(reader.position(), expected, reader.rest_of_signature());
        if arguments {
            error.within(Step::Argument(index))
        } else {
            error
        }
    }

    fn of_signatures(at: usize, expected: &str, found: &str) -> Self {
        // Where the value begins that is there, behind its padding.
        let alignment = found.bytes().next().map_or(1, alignment);
        Self::new(DecodeFault::Type {
            at: at.next_multiple_of(alignment),
            expected: expected.to_string(),
            found: found.to_string(),
        })
    }

    /// What is wrong with the value.
    pub fn fault(&self) -> &DecodeFault {
        &self.0.fault
    }

    /// Where the value is, from the body inwards.
    pub fn path(&self) -> impl Iterator<Item = &Step> {
        self.0.path.iter().rev()
    }

    /// Offset into the body at which it was found, in bytes.
    pub fn offset(&self) -> Option<usize> {
        match &self.0.fault {
            DecodeFault::Type { at, .. }
            | DecodeFault::Value { at, .. }
            | DecodeFault::Missing { at, .. } => Some(*at),
            DecodeFault::Read(
                ReadError::Type { at, .. } | ReadError::End { at, .. } | ReadError::Invalid { at },
            ) => Some(*at),
            DecodeFault::Read(ReadError::Value(_)) => None,
        }
    }
}

impl From<ReadError> for DecodeError {
    fn from(error: ReadError) -> Self {
        Self::new(match error {
            ReadError::Type { at, expected, found } => DecodeFault::Type {
                at,
                expected: expected.to_string(),
                found: found.to_string(),
            },
            ReadError::End { at, expected } => DecodeFault::Type {
                at,
                expected: expected.to_string(),
                found: String::new(),
            },
            error @ (ReadError::Invalid { .. } | ReadError::Value(_)) => DecodeFault::Read(error),
        })
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.path().enumerate() {
            match step {
                Step::Argument(number) => write!(f, "argument {number}")?,
                Step::Field(name) if index == 0 => f.write_str(name)?,
                Step::Field(name) => write!(f, ".{name}")?,
                Step::Position(number) => write!(f, ".{number}")?,
                Step::Index(number) => write!(f, "[{number}]")?,
                Step::Key(key) => write!(f, "[{key:?}]")?,
                Step::Variant => f.write_str("<variant>")?,
            }
        }
        if !self.0.path.is_empty() {
            f.write_str(": ")?;
        }
        self.0.fault.fmt(f)
    }
}

impl core::error::Error for DecodeError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match &self.0.fault {
            DecodeFault::Read(error) => Some(error),
            DecodeFault::Type { .. } | DecodeFault::Value { .. } | DecodeFault::Missing { .. } => None,
        }
    }
}
