//! Values of any type, for what is known only when the program runs.

mod codec;
mod container;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use crate::body::{BodyReader, BodyWriter};
use crate::decode::{DecodeError, DecodeOwned, decode_body};
use crate::encode::{Encode, encode_body};
use crate::endian::Endian;
use crate::error::MessageError;
use crate::fd::FdIndex;
use crate::message::Message;
use crate::names::{ObjectPath, OwnedObjectPath};
use crate::signature::{OwnedSignature, Signature, SignatureError};
use crate::ty::{Ty, Type, signature_of};

pub use container::{Array, Dict, Structure};

/// A value of any type, with its type. As part of another type it is a VARIANT: `HashMap<String, Value>` is `a{sv}`.
///
/// ```
/// use bus_wire::{Array, Value};
///
/// let value = Value::of(&vec!["a", "b"])?;
/// assert_eq!(value.signature().as_str(), "as");
/// assert_eq!(value.to::<Vec<String>>()?, ["a", "b"]);
/// assert_eq!(value, Array::try_from(vec![Value::from("a"), Value::from("b")])?.into());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// BYTE
    Byte(u8),
    /// BOOLEAN
    Bool(bool),
    /// INT16
    I16(i16),
    /// UINT16
    U16(u16),
    /// INT32
    I32(i32),
    /// UINT32
    U32(u32),
    /// INT64
    I64(i64),
    /// UINT64
    U64(u64),
    /// DOUBLE
    F64(f64),
    /// UNIX_FD
    Fd(FdIndex),
    /// STRING
    Str(String),
    /// OBJECT_PATH
    Path(OwnedObjectPath),
    /// SIGNATURE
    Signature(OwnedSignature),
    /// ARRAY of BYTE
    Bytes(Vec<u8>),
    /// ARRAY of anything but BYTE and DICT_ENTRY
    Array(Array),
    /// ARRAY of DICT_ENTRY
    Dict(Dict),
    /// STRUCT
    Struct(Structure),
    /// VARIANT
    Variant(Box<Self>),
}

/// Why values do not make a container. The program that puts them together is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// A value of another type than all others have.
    #[error("value {index} is of the type '{found}', not '{expected}' (specification, Container types)")]
    Type {
        /// Which value, counted from 0.
        index: usize,
        /// The signature that it should have.
        expected: String,
        /// The signature that it has.
        found: String,
    },
    /// What there would be is no type.
    #[error("that is no type: {0}")]
    Signature(#[from] SignatureError),
    /// An array of bytes is [`Value::Bytes`].
    #[error("an array of bytes is kept as bytes")]
    Bytes,
    /// Nothing in it says of which type it is.
    #[error("there is no value in it")]
    Empty,
}

impl Value {
    /// The value of a Rust type.
    ///
    /// # Errors
    /// As [`encode_body`](crate::encode_body).
    pub fn of<T: Encode + ?Sized>(value: &T) -> Result<Self, MessageError> {
        let mut bytes = Vec::new();
        // A tuple is a struct here.
        encode_body(&(value,), Endian::NATIVE, &mut bytes)?;
        let signature = signature_of::<T>().as_str();
        let mut reader = BodyReader::new(&bytes, signature, Endian::NATIVE);
        // What an Encode has written that does not keep to its type.
        codec::read(&mut reader).map_err(|error| MessageError::Value(alloc::format!("{error}")))
    }

    /// As a Rust type. A VARIANT is the Rust type of what it holds.
    ///
    /// # Errors
    /// It is of another type, or none of the values that `T` can be.
    pub fn to<T: DecodeOwned>(&self) -> Result<T, DecodeError> {
        let (mut signature, mut bytes) = (Vec::new(), Vec::new());
        let mut value = self;
        while let Self::Variant(inner) = value
            && *T::TY != Ty::Variant
        {
            value = inner;
        }
        value.push_signature(&mut signature);
        let encoded = codec::write_alone(value, &mut bytes);
        let signature = core::str::from_utf8(&signature).unwrap_or_default();
        let mut reader = BodyReader::new(&bytes, signature, Endian::NATIVE);
        encoded.map_err(|error| DecodeError::value(&reader, error))?;
        if *T::TY == Ty::Variant {
            return T::decode(&mut BodyReader::new(&bytes, signature, Endian::NATIVE));
        }
        decode_body(&mut reader)
    }

    /// Its type: exactly one complete type.
    pub fn signature(&self) -> OwnedSignature {
        let mut signature = Vec::new();
        self.push_signature(&mut signature);
        // What was put together was checked then.
        Signature::checked(core::str::from_utf8(&signature).unwrap_or_default()).into_owned()
    }

    /// The text, if it is a STRING, OBJECT_PATH or SIGNATURE.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            Self::Path(path) => Some(path.as_str()),
            Self::Signature(signature) => Some(signature.as_str()),
            Self::Byte(_) | Self::Bool(_) | Self::I16(_) | Self::U16(_) | Self::I32(_) | Self::U32(_) => None,
            Self::I64(_) | Self::U64(_) | Self::F64(_) | Self::Fd(_) | Self::Bytes(_) | Self::Array(_) => {
                None
            }
            Self::Dict(_) | Self::Struct(_) | Self::Variant(_) => None,
        }
    }

    /// Writes it as the next value of a body.
    pub fn write(&self, writer: &mut BodyWriter) {
        codec::write_to(self, writer);
    }
}

impl Message {
    /// All arguments of the body, whatever their types are.
    ///
    /// # Errors
    /// Never for a valid message: one that was parsed is.
    pub fn values(&self) -> Result<Vec<Value>, DecodeError> {
        let mut reader = self.body();
        let mut values = Vec::new();
        while reader.peek().is_some() {
            values.push(codec::read(&mut reader)?);
        }
        Ok(values)
    }
}

macro_rules! from {
    ($($variant:ident $rust:ty;)*) => {
        $(impl From<$rust> for Value {
            fn from(value: $rust) -> Self {
                Self::$variant(value.into())
            }
        })*
    };
}

from! {
    Byte u8;
    Bool bool;
    I16 i16;
    U16 u16;
    I32 i32;
    U32 u32;
    I64 i64;
    U64 u64;
    F64 f64;
    Fd FdIndex;
    Str String;
    Str &str;
    Path OwnedObjectPath;
    Path ObjectPath<'_>;
    Signature OwnedSignature;
    Signature Signature<'_>;
    Bytes &[u8];
    Array Array;
    Dict Dict;
    Struct Structure;
}

/// A VARIANT that holds a `T`; the type is part of the Rust type. [`Value`] holds any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Variant<T>(pub T);

impl Type for Value {
    const TY: &'static Ty = &Ty::Variant;
}

impl<T: Type> Type for Variant<T> {
    const TY: &'static Ty = &Ty::Variant;
}
