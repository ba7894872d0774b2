//! What derived code calls; not for anybody else.

use alloc::collections::BTreeMap;
use alloc::format;
use core::fmt::Debug;

use crate::body::BodyReader;
use crate::decode::{Decode, DecodeError, Step};
use crate::encode::{Encode, Encoder};
use crate::ty::{Ty, Type};

pub use core::option::Option::{self, None, Some};
pub use core::result::Result::{self, Err, Ok};

/// A field of a struct.
#[inline]
pub fn field<'m, T: Decode<'m>>(reader: &mut BodyReader<'m>, step: Step) -> Result<T, DecodeError> {
    T::decode(reader).map_err(|error| error.within(step))
}

/// An enum has no variant for this.
#[cold]
pub fn no_variant(reader: &BodyReader<'_>, name: &str, value: impl Debug) -> DecodeError {
    DecodeError::value(reader, format!("{name} has no variant {value:?}"))
}

/// `a{sv}`
#[inline]
pub fn write_dict(encoder: &mut Encoder<'_>, entries: impl FnOnce(&mut Encoder<'_>)) {
    encoder.array(&Ty::Struct(&[]), entries);
}

/// A value of a dict: what is a VARIANT itself is not wrapped in another.
#[inline]
fn write_value<T: Encode>(value: &T, encoder: &mut Encoder<'_>) {
    if is_variant::<T>() {
        value.encode(encoder);
    } else {
        encoder.variant(value);
    }
}

#[inline]
fn read_value<'m, T: Decode<'m>>(reader: &mut BodyReader<'m>) -> Result<T, DecodeError> {
    if is_variant::<T>() {
        T::decode(reader)
    } else {
        reader.decode_variant_of()
    }
}

const fn is_variant<T: Type>() -> bool {
    matches!(T::TY, Ty::Variant)
}

/// A field of a dict that is written.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a field of a dict: it is neither an `Encode` nor an `Option` of one"
)]
pub trait WriteField {
    /// The entry; none for `None`.
    fn write(&self, key: &str, encoder: &mut Encoder<'_>);
}

impl<T: Encode> WriteField for T {
    #[inline]
    fn write(&self, key: &str, encoder: &mut Encoder<'_>) {
        encoder.dict_entry(|encoder| {
            encoder.str(key);
            write_value(self, encoder);
        });
    }
}

impl<T: Encode> WriteField for Option<T> {
    #[inline]
    fn write(&self, key: &str, encoder: &mut Encoder<'_>) {
        if let Some(value) = self {
            value.write(key, encoder);
        }
    }
}

/// A field of a dict that is read.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a field of a dict: it is neither a `Decode` nor an `Option` of one"
)]
pub trait ReadField<'m>: Sized {
    /// The value of the entry whose key was read.
    fn read(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError>;
    /// What it is where there is no entry.
    fn absent() -> Option<Self>;
}

impl<'m, T: Decode<'m>> ReadField<'m> for T {
    #[inline]
    fn read(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        read_value(reader)
    }

    fn absent() -> Option<Self> {
        None
    }
}

impl<'m, T: Decode<'m>> ReadField<'m> for Option<T> {
    #[inline]
    fn read(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        read_value(reader).map(Some)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

/// The value of the entry whose key was read.
#[inline]
pub fn read_field<'m, T: ReadField<'m>>(
    reader: &mut BodyReader<'m>,
    key: &'static str,
) -> Result<T, DecodeError> {
    T::read(reader).map_err(|error| error.within(Step::Key(key.into())))
}

/// What was read, or what it is otherwise.
#[inline]
pub fn present<'m, T: ReadField<'m>>(
    value: Option<T>,
    reader: &BodyReader<'m>,
    key: &'static str,
) -> Result<T, DecodeError> {
    value
        .or_else(T::absent)
        .ok_or_else(|| DecodeError::missing(reader, key))
}

/// What was read, or the default.
#[inline]
pub fn or_default<T: Default>(value: Option<T>) -> T {
    value.unwrap_or_default()
}

/// Nothing yet.
#[inline]
pub fn default<T: Default>() -> T {
    T::default()
}

/// The entries that no other field takes, when they are written.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot take the rest of a dict: it is no map of texts to variants"
)]
pub trait WriteRest {
    /// All entries.
    fn write(&self, encoder: &mut Encoder<'_>);
}

/// The same, when they are read.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot take the rest of a dict: it is no map of texts to variants"
)]
pub trait ReadRest<'m> {
    /// The entry whose key was read.
    fn read(&mut self, key: &'m str, reader: &mut BodyReader<'m>) -> Result<(), DecodeError>;
}

macro_rules! rest {
    ($($(#[$attribute:meta])* $map:ty, [$($parameters:tt)*] [$($bounds:tt)*];)*) => {
        $($(#[$attribute])*
        impl<K: AsRef<str>, V: Encode, $($parameters)*> WriteRest for $map {
            fn write(&self, encoder: &mut Encoder<'_>) {
                for (key, value) in self {
                    WriteField::write(value, key.as_ref(), encoder);
                }
            }
        }

        $(#[$attribute])*
        impl<'m, K: From<&'m str> + $($bounds)*, V: Decode<'m>, $($parameters)*> ReadRest<'m> for $map {
            fn read(&mut self, key: &'m str, reader: &mut BodyReader<'m>) -> Result<(), DecodeError> {
                match read_value(reader) {
                    Ok(value) => drop(self.insert(key.into(), value)),
                    Err(error) => return Err(error.within(Step::Key(key.into()))),
                }
                Ok(())
            }
        })*
    };
}

rest! {
    BTreeMap<K, V>, [] [Ord];
    #[cfg(feature = "std")]
    std::collections::HashMap<K, V, S>, [S: core::hash::BuildHasher] [Eq + core::hash::Hash];
}
