//! A body as a Rust type, through serde.
//!
//! The signature is given, not derived from the type, and the type must fit it:
//!
//! | signature | Rust |
//! |---|---|
//! | `y` `q` `u` `t`, `n` `i` `x`, `d`, `b` | `u8` to `u64`, `i16` to `i64`, `f64`, `bool` |
//! | `s` `o` `g` | `String`, `&str`, `char`; an enum without fields, by the name of its variant |
//! | `h` | `u32`: an index into the message's file descriptors |
//! | `a` | `Vec`, slices, arrays; for `ay` also what serde calls bytes, such as `&[u8]` |
//! | `a{..}` | maps; with string keys also a struct, whose fields may be `Option` and are left out if `None` |
//! | `(..)` | tuples and structs, by order |
//! | `v` | the value itself when read, and basic values when written; [`Variant`] where the signature matters |
//!
//! A body of several values is a tuple or a struct; a body of one value may also be that value, and a tuple of one is
//! always a body of one value. An empty body is `()`.

mod de;
mod ser;

use alloc::string::String;
use alloc::vec::Vec;

use serde::de::{self as serde_de, Deserialize, SeqAccess};
use serde::ser::{Serialize, SerializeTupleStruct};

use crate::body::{BodyWriter, ReadError};
use crate::endian::Endian;
use crate::error::MessageError;
use crate::message::Message;

/// The name under which a [`Variant`] is known to the serialisers of this module.
const VARIANT: &str = "$bus_wire::Variant";

/// A VARIANT with its signature (specification, "Container types").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Variant<T, S = String> {
    /// The type of the value: one complete type.
    pub signature: S,
    /// What it holds.
    pub value: T,
}

impl<T, S> Variant<T, S> {
    /// A variant that holds `value`, of the type `signature`.
    pub const fn new(signature: S, value: T) -> Self {
        Self { signature, value }
    }
}

/// The signature and the bytes, in little endian, of a body that holds `value`.
///
/// # Errors
/// The value does not fit the signature, or a limit of the specification is passed.
pub fn to_body<T: Serialize + ?Sized>(signature: &str, value: &T) -> Result<(String, Vec<u8>), MessageError> {
    to_body_in(Endian::Little, signature, value)
}

/// As [`to_body`], in the given byte order.
///
/// # Errors
/// As [`to_body`].
pub fn to_body_in<T: Serialize + ?Sized>(
    endian: Endian,
    signature: &str,
    value: &T,
) -> Result<(String, Vec<u8>), MessageError> {
    let mut writer = BodyWriter::declared(signature, endian);
    ser::write_body(&mut writer, signature, value)?;
    writer.finish()
}

/// The body of a message as a `T`, which may borrow from it.
///
/// # Errors
/// The body is of other types than `T` asks for, or has more values.
pub fn from_body<'a, T: Deserialize<'a>>(message: &'a Message) -> Result<T, ReadError> {
    de::read_body(message.body())
}

impl<T: Serialize, S: AsRef<str>> Serialize for Variant<T, S> {
    fn serialize<Z: serde::Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        let mut fields = serializer.serialize_tuple_struct(VARIANT, 2)?;
        fields.serialize_field(self.signature.as_ref())?;
        fields.serialize_field(&self.value)?;
        fields.end()
    }
}

impl<'de, T: Deserialize<'de>, S: Deserialize<'de>> Deserialize<'de> for Variant<T, S> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T, S>(core::marker::PhantomData<(T, S)>);

        impl<'de, T: Deserialize<'de>, S: Deserialize<'de>> serde_de::Visitor<'de> for Visitor<T, S> {
            type Value = Variant<T, S>;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("a variant")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
                let missing = |index| serde_de::Error::invalid_length(index, &"a signature and a value");
                let signature = fields.next_element()?.ok_or_else(|| missing(0))?;
                let value = fields.next_element()?.ok_or_else(|| missing(1))?;
                Ok(Variant { signature, value })
            }
        }

        deserializer.deserialize_tuple_struct(VARIANT, 2, Visitor(core::marker::PhantomData))
    }
}
