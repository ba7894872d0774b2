//! How the types of the standard library are read.

use alloc::borrow::{Cow, ToOwned};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;

use super::{Decode, DecodeError, Step};
use crate::body::BodyReader;
use crate::fd::FdIndex;
use crate::fixed::Fixed;
use crate::names::{
    BusName, ErrorName, InterfaceName, MemberName, ObjectPath, OwnedBusName, OwnedErrorName,
    OwnedInterfaceName, OwnedMemberName, OwnedObjectPath, OwnedUniqueName, OwnedWellKnownName, UniqueName,
    WellKnownName,
};
use crate::signature::{OwnedSignature, Signature};
use crate::tuples::for_tuples;

macro_rules! fixed {
    ($($rust:ident $read:ident;)+) => {
        $(impl<'m> Decode<'m> for $rust {
            #[inline]
            fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
                Ok(reader.$read()?)
            }

            #[inline]
            fn decode_array(reader: &mut BodyReader<'m>) -> Result<Vec<Self>, DecodeError> {
                Ok(reader.fixed_array()?.into_owned())
            }
        })+
    };
}

fixed! {
    u8 read_u8;
    i16 read_i16;
    u16 read_u16;
    i32 read_i32;
    u32 read_u32;
    i64 read_i64;
    u64 read_u64;
    f64 read_f64;
}

impl<'m> Decode<'m> for bool {
    #[inline]
    fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        Ok(reader.read_bool()?)
    }
}

impl<'m> Decode<'m> for FdIndex {
    #[inline]
    fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        Ok(Self(reader.read_unix_fd_index()?))
    }
}

impl<'m: 'a, 'a> Decode<'m> for &'a str {
    #[inline]
    fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        Ok(reader.read_str()?)
    }
}

impl<'m> Decode<'m> for String {
    #[inline]
    fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        Ok(reader.read_str()?.to_owned())
    }
}

impl<'m> Decode<'m> for Box<str> {
    #[inline]
    fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        Ok(reader.read_str()?.into())
    }
}

impl<'m: 'a, 'a> Decode<'m> for Cow<'a, str> {
    #[inline]
    fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        Ok(Cow::Borrowed(reader.read_str()?))
    }
}

impl<'m: 'a, 'a> Decode<'m> for &'a [u8] {
    #[inline]
    fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        Ok(reader.read_byte_slice()?)
    }
}

impl<'m: 'a, 'a, T: Fixed> Decode<'m> for Cow<'a, [T]> {
    #[inline]
    fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        Ok(reader.fixed_array()?)
    }
}

/// What the value just read is not.
#[cold]
fn invalid(reader: &BodyReader<'_>, text: &str, reason: impl Display) -> DecodeError {
    DecodeError::value(reader, format!("{text:?} is not valid: {reason}"))
}

impl<'m: 'a, 'a> Decode<'m> for ObjectPath<'a> {
    #[inline]
    fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        let text = reader.read_object_path()?;
        if reader.is_validated() {
            return Ok(Self::checked(text));
        }
        Self::new(text).map_err(|error| invalid(reader, text, error))
    }
}

impl<'m: 'a, 'a> Decode<'m> for Signature<'a> {
    #[inline]
    fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        let text = reader.read_signature()?;
        if reader.is_validated() {
            return Ok(Self::checked(text));
        }
        Self::new(text).map_err(|error| invalid(reader, text, error))
    }
}

macro_rules! name {
    ($($name:ident)+) => {
        $(impl<'m: 'a, 'a> Decode<'m> for $name<'a> {
            #[inline]
            fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
                let text = reader.read_str()?;
                Self::new(text).map_err(|error| invalid(reader, text, error))
            }
        })+
    };
}

name!(BusName ErrorName InterfaceName MemberName UniqueName WellKnownName);

macro_rules! owned {
    ($($owned:ident $name:ident;)+) => {
        $(impl<'m> Decode<'m> for $owned {
            #[inline]
            fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
                Ok($name::decode(reader)?.into_owned())
            }
        })+
    };
}

owned! {
    OwnedObjectPath ObjectPath;
    OwnedSignature Signature;
    OwnedBusName BusName;
    OwnedErrorName ErrorName;
    OwnedInterfaceName InterfaceName;
    OwnedMemberName MemberName;
    OwnedUniqueName UniqueName;
    OwnedWellKnownName WellKnownName;
}

impl<'m, T: Decode<'m>> Decode<'m> for Vec<T> {
    #[inline]
    fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        T::decode_array(reader)
    }
}

impl<'m, T: Decode<'m>, const N: usize> Decode<'m> for [T; N] {
    fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        let elements = T::decode_array(reader)?;
        let length = elements.len();
        let wrong = |_| DecodeError::value(reader, format!("an array has {length} elements, not {N}"));
        elements.try_into().map_err(wrong)
    }
}

/// Reads an array of dict entries into `insert`.
#[inline]
fn dict<'m, K: Decode<'m>, V: Decode<'m>>(
    reader: &mut BodyReader<'m>,
    mut insert: impl FnMut(K, V),
) -> Result<(), DecodeError> {
    let mut index = 0;
    reader.decode_dict(|entry| {
        let key_at = entry.clone();
        let key = K::decode(entry).map_err(|error| error.within(Step::Index(index)))?;
        match V::decode(entry) {
            Ok(value) => insert(key, value),
            Err(error) => return Err(error.within(key_step(key_at, index))),
        }
        index += 1;
        Ok(())
    })
}

/// Which entry of a dict it was.
#[cold]
fn key_step(mut key_at: BodyReader<'_>, index: usize) -> Step {
    match key_at.peek() {
        Some(b's') => key_at.read_str().map(ToOwned::to_owned),
        Some(b'o') => key_at.read_object_path().map(ToOwned::to_owned),
        Some(_) | None => return Step::Index(index),
    }
    .map_or(Step::Index(index), Step::Key)
}

/// Of a key that comes twice, the last value counts.
impl<'m, K: Decode<'m> + Ord, V: Decode<'m>> Decode<'m> for BTreeMap<K, V> {
    fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        let mut map = Self::new();
        dict(reader, |key, value| {
            map.insert(key, value);
        })?;
        Ok(map)
    }
}

/// Of a key that comes twice, the last value counts.
#[cfg(feature = "std")]
impl<'m, K, V, S> Decode<'m> for std::collections::HashMap<K, V, S>
where
    K: Decode<'m> + Eq + core::hash::Hash,
    V: Decode<'m>,
    S: core::hash::BuildHasher + Default,
{
    fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        let bytes = reader.clone().enter_array()?.remaining();
        let mut map = Self::with_capacity_and_hasher(super::capacity(bytes), S::default());
        dict(reader, |key, value| {
            map.insert(key, value);
        })?;
        Ok(map)
    }
}

impl<'m> Decode<'m> for () {
    #[inline]
    fn decode(_reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        Ok(())
    }
}

macro_rules! tuple {
    ($($name:ident $index:tt)+) => {
        impl<'m, $($name: Decode<'m>),+> Decode<'m> for ($($name,)+) {
            #[inline]
            fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
                reader.decode_struct(|reader| {
                    Ok(($($name::decode(reader).map_err(|error| error.within(Step::Position($index)))?,)+))
                })
            }

            #[inline]
            fn decode_fields(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
                Ok(($($name::decode(reader).map_err(|error| error.within(Step::Argument($index)))?,)+))
            }
        }
    };
}

for_tuples!(tuple);
