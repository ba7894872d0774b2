//! From bytes to Rust types.

mod error;
mod std_types;

use alloc::vec::Vec;

use crate::body::BodyReader;
use crate::message::Message;
use crate::ty::{Type, body_signature_of, fields_signature_of, signature_of};

pub use error::{DecodeError, DecodeFault, Step};

/// A Rust value that can be read from its D-Bus type; it may borrow from the message, which lives for `'m`.
///
/// It can be derived: `#[derive(Type, Decode)]`, with the feature `derive`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read from a D-Bus message",
    note = "it can be derived for your own types: `#[derive(Type, Decode)]`",
    note = "there is no null in D-Bus: an `Option` can only be a field of a dict struct"
)]
pub trait Decode<'m>: Type + Sized {
    /// Reads exactly one value of the type [`TY`](Type::TY).
    ///
    /// # Errors
    /// The value that is there is of another type, or not one of those that this type can be.
    fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError>;

    /// Reads the fields of a struct that has nothing around them: the arguments of a body.
    #[doc(hidden)]
    fn decode_fields(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        Self::decode(reader)
    }

    /// Reads an array.
    #[doc(hidden)]
    fn decode_array(reader: &mut BodyReader<'m>) -> Result<Vec<Self>, DecodeError> {
        let mut array = reader.enter_array()?;
        let mut elements = Vec::with_capacity(capacity(array.remaining()));
        while let Some(reader) = array.next()? {
            match Self::decode(reader) {
                Ok(element) => elements.push(element),
                Err(error) => return Err(error.within(Step::Index(elements.len()))),
            }
        }
        Ok(elements)
    }
}

/// A [`Decode`] that borrows nothing.
pub trait DecodeOwned: for<'m> Decode<'m> {}

impl<T: for<'m> Decode<'m>> DecodeOwned for T {}

/// For how many elements there is room from the start, in an array of so many bytes. Most elements are longer, and a message
/// is not to make a program ask for many times the memory that it has itself.
#[inline]
pub(crate) fn capacity(bytes: usize) -> usize {
    (bytes / 24).min(4096) + usize::from(bytes > 0)
}

impl Message {
    /// The body as a `T`, which may borrow from it. A tuple stands for the arguments, any other type for the only one; a
    /// struct may be either.
    ///
    /// # Errors
    /// The body is of another type, or a value in it is none of those that `T` can be. The error says where.
    ///
    /// ```
    /// # use bus_wire::{Message, MessageBuilder};
    /// let bytes = MessageBuilder::method_call("/a", "Add").encode(&("two", 2u32))?;
    /// let message = Message::parse(bytes.into())?;
    /// assert_eq!(message.decode::<(&str, u32)>()?, ("two", 2));
    ///
    /// let error = message.decode::<(&str, i32)>().unwrap_err();
    /// assert_eq!(error.to_string(), "argument 1: byte 8 of the body: the type is 'u', not 'i'");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn decode<'m, T: Decode<'m>>(&'m self) -> Result<T, DecodeError> {
        decode_body(&mut self.body())
    }
}

/// All that is left in `reader`, which is at the beginning of a body.
pub(crate) fn decode_body<'m, T: Decode<'m>>(reader: &mut BodyReader<'m>) -> Result<T, DecodeError> {
    let signature = reader.rest_of_signature();
    if signature == body_signature_of::<T>().as_str() {
        if T::IS_ARGUMENTS {
            T::decode_fields(reader)
        } else {
            T::decode(reader)
        }
    } else if signature == fields_signature_of::<T>().as_str() {
        T::decode_fields(reader)
    } else if signature == signature_of::<T>().as_str() {
        T::decode(reader)
    } else {
        Err(DecodeError::of_types::<T>(reader))
    }
}

impl<'m> BodyReader<'m> {
    /// A STRUCT: `fields` reads its values.
    ///
    /// # Errors
    /// There is none, or what `fields` returns.
    #[inline]
    pub fn decode_struct<T>(
        &mut self,
        fields: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        self.enter(b'(')?;
        let value = fields(self)?;
        self.leave()?;
        Ok(value)
    }

    /// An ARRAY of DICT_ENTRY: `entry` is called once for each, to read its key and its value.
    ///
    /// # Errors
    /// There is none, or what `entry` returns.
    #[inline]
    pub fn decode_dict(
        &mut self,
        mut entry: impl FnMut(&mut Self) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        let mut entries = self.enter_array()?;
        while let Some(reader) = entries.next()? {
            reader.decode_entry(&mut entry)?;
        }
        Ok(())
    }

    /// A DICT_ENTRY, the element of an array: `entry` reads its key and its value.
    #[inline]
    pub(crate) fn decode_entry<T>(
        &mut self,
        entry: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        self.enter(b'{')?;
        let value = entry(self)?;
        self.leave()?;
        Ok(value)
    }

    /// A VARIANT: `value` reads what it holds, whose type is [`peek_signature`](Self::peek_signature).
    ///
    /// # Errors
    /// There is none, or what `value` returns. Nothing can be read from this cursor after an error within a variant.
    #[inline]
    pub fn decode_variant<T>(
        &mut self,
        value: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        let outside = self.enter_variant_here()?;
        let result = value(self);
        self.leave_variant(&outside, result.is_ok())?;
        result
    }

    /// A VARIANT that holds a `T`.
    ///
    /// # Errors
    /// It holds a value of another type.
    #[inline]
    pub fn decode_variant_of<T: Decode<'m>>(&mut self) -> Result<T, DecodeError> {
        self.decode_variant(|reader| {
            if reader.rest_of_signature() == signature_of::<T>().as_str() {
                T::decode(reader)
            } else {
                Err(DecodeError::of_types::<T>(reader).within(Step::Variant))
            }
        })
    }
}
