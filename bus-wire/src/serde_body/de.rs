//! From a body to a Rust type.

use alloc::format;
use alloc::string::ToString;
use core::fmt::Display;

use serde::de::value::{BorrowedStrDeserializer, StrDeserializer, U32Deserializer};
use serde::de::{
    self, Deserialize, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use crate::body::{ArrayReader, BodyReader, ReadError};
use crate::serde_body::VARIANT;

/// All of a body.
pub(super) fn read_body<'a, T: Deserialize<'a>>(mut reader: BodyReader<'a>) -> Result<T, ReadError> {
    let single = !reader.signature().is_empty() && reader.peek_signature() == reader.signature();
    let place = if single {
        Place::OnlyArgument
    } else {
        Place::Arguments
    };
    let value = T::deserialize(Deserializer {
        reader: &mut reader,
        place,
    })?;
    match reader.signature() {
        "" => Ok(value),
        rest => Err(ReadError::Value(format!(
            "the body has further values of the types '{rest}'"
        ))),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The body, of none or several values.
    Arguments,
    /// The body, of one value.
    OnlyArgument,
    /// Inside of another value.
    Inner,
}

struct Deserializer<'r, 'a> {
    reader: &'r mut BodyReader<'a>,
    place: Place,
}

impl de::Error for ReadError {
    fn custom<T: Display>(text: T) -> Self {
        Self::Value(text.to_string())
    }
}

impl<'r, 'a> Deserializer<'r, 'a> {
    fn inner(reader: &'r mut BodyReader<'a>) -> Self {
        Self {
            reader,
            place: Place::Inner,
        }
    }

    /// The values of the body, without anything around them.
    fn arguments<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_seq(Fields { reader: self.reader })
    }
}

impl<'a> de::Deserializer<'a> for Deserializer<'_, 'a> {
    type Error = ReadError;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let reader = self.reader;
        match reader.peek() {
            Some(b'y') => visitor.visit_u8(reader.read_u8()?),
            Some(b'b') => visitor.visit_bool(reader.read_bool()?),
            Some(b'n') => visitor.visit_i16(reader.read_i16()?),
            Some(b'q') => visitor.visit_u16(reader.read_u16()?),
            Some(b'i') => visitor.visit_i32(reader.read_i32()?),
            Some(b'u') => visitor.visit_u32(reader.read_u32()?),
            Some(b'x') => visitor.visit_i64(reader.read_i64()?),
            Some(b't') => visitor.visit_u64(reader.read_u64()?),
            Some(b'd') => visitor.visit_f64(reader.read_f64()?),
            Some(b'h') => visitor.visit_u32(reader.read_unix_fd_index()?),
            Some(b's') => visitor.visit_borrowed_str(reader.read_str()?),
            Some(b'o') => visitor.visit_borrowed_str(reader.read_object_path()?),
            Some(b'g') => visitor.visit_borrowed_str(reader.read_signature()?),
            Some(b'v') => reader.read_variant(|reader| Deserializer::inner(reader).deserialize_any(visitor)),
            Some(b'a') => {
                let array = reader.enter_array()?;
                if array.element_signature().starts_with('{') {
                    visitor.visit_map(Elements { array })
                } else {
                    visitor.visit_seq(Elements { array })
                }
            }
            Some(b'(') => {
                reader.enter(b'(')?;
                let value = visitor.visit_seq(Fields { reader })?;
                match reader.signature() {
                    "" => reader.leave()?,
                    rest => {
                        return Err(de::Error::custom(format_args!(
                            "a struct has further values of the types '{rest}'"
                        )));
                    }
                }
                Ok(value)
            }
            Some(_) => Err(ReadError::Invalid {
                at: reader.position(),
            }),
            None if self.place == Place::Arguments => visitor.visit_unit(),
            None => Err(ReadError::End {
                at: reader.position(),
                expected: '*',
            }),
        }
    }

    fn deserialize_bytes<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.reader.peek_signature() {
            "ay" => visitor.visit_borrowed_bytes(self.reader.read_byte_slice()?),
            "v" => self
                .reader
                .read_variant(|reader| Deserializer::inner(reader).deserialize_bytes(visitor)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_byte_buf<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_tuple<V: Visitor<'a>>(self, length: usize, visitor: V) -> Result<V::Value, ReadError> {
        match self.place {
            Place::Arguments => self.arguments(visitor),
            Place::OnlyArgument if length == 1 => self.arguments(visitor),
            Place::OnlyArgument | Place::Inner => self.deserialize_any(visitor),
        }
    }

    fn deserialize_tuple_struct<V: Visitor<'a>>(
        self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        if name == VARIANT {
            let value = |reader: &mut BodyReader<'a>| {
                let signature = Some(reader.peek_signature());
                visitor.visit_seq(VariantParts { reader, signature })
            };
            return self.reader.read_variant(value);
        }
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_struct<V: Visitor<'a>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match (self.place, self.reader.peek()) {
            (Place::Arguments, _) => self.arguments(visitor),
            (Place::Inner, _) | (_, Some(b'(' | b'a' | b'v')) => self.deserialize_any(visitor),
            _ => self.arguments(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let reader = self.reader;
        let index: U32Deserializer<ReadError> = match reader.peek() {
            Some(b'y') => u32::from(reader.read_u8()?).into_deserializer(),
            Some(b'u') => reader.read_u32()?.into_deserializer(),
            Some(b'i') => match u32::try_from(reader.read_i32()?) {
                Ok(index) => index.into_deserializer(),
                Err(_) => return Err(de::Error::custom("the variant of an enum is negative")),
            },
            Some(b'v') => {
                return reader.read_variant(|reader| {
                    Deserializer::inner(reader).deserialize_enum(name, variants, visitor)
                });
            }
            _ => {
                let name: StrDeserializer<'_, ReadError> = reader.read_str()?.into_deserializer();
                return visitor.visit_enum(name);
            }
        };
        visitor.visit_enum(IndexAccess(index))
    }

    fn deserialize_unit<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.reader.peek() {
            None => visitor.visit_unit(),
            Some(found) => Err(ReadError::Type {
                at: self.reader.position(),
                expected: ' ',
                found: found.into(),
            }),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'a>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.reader.skip()?;
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        <W: Visitor<'a>>
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string seq map identifier
    }
}

/// The values of a struct or a body.
struct Fields<'r, 'a> {
    reader: &'r mut BodyReader<'a>,
}

impl<'a> SeqAccess<'a> for Fields<'_, 'a> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        match self.reader.peek() {
            Some(_) => seed.deserialize(Deserializer::inner(self.reader)).map(Some),
            None => Ok(None),
        }
    }
}

struct Elements<'a> {
    array: ArrayReader<'a>,
}

impl<'a> SeqAccess<'a> for Elements<'a> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        match self.array.next()? {
            Some(element) => seed.deserialize(Deserializer::inner(element)).map(Some),
            None => Ok(None),
        }
    }
}

impl<'a> MapAccess<'a> for Elements<'a> {
    type Error = ReadError;

    fn next_key_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        match self.array.next()? {
            Some(entry) => {
                entry.enter(b'{')?;
                seed.deserialize(Deserializer::inner(entry)).map(Some)
            }
            None => Ok(None),
        }
    }

    fn next_value_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<T::Value, ReadError> {
        let entry = self.array.element();
        let value = seed.deserialize(Deserializer::inner(entry))?;
        entry.leave()?;
        Ok(value)
    }
}

/// The signature of a variant, then its value.
struct VariantParts<'r, 'a> {
    reader: &'r mut BodyReader<'a>,
    signature: Option<&'a str>,
}

impl<'a> SeqAccess<'a> for VariantParts<'_, 'a> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        match self.signature.take() {
            Some(signature) => seed
                .deserialize(BorrowedStrDeserializer::new(signature))
                .map(Some),
            None => seed.deserialize(Deserializer::inner(self.reader)).map(Some),
        }
    }
}

/// A variant of an enum without fields, by its number.
struct IndexAccess(U32Deserializer<ReadError>);

impl<'a> EnumAccess<'a> for IndexAccess {
    type Error = ReadError;
    type Variant = UnitOnly;

    fn variant_seed<V: DeserializeSeed<'a>>(self, seed: V) -> Result<(V::Value, UnitOnly), ReadError> {
        Ok((seed.deserialize(self.0)?, UnitOnly))
    }
}

struct UnitOnly;

impl<'a> de::VariantAccess<'a> for UnitOnly {
    type Error = ReadError;

    fn unit_variant(self) -> Result<(), ReadError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'a>>(self, _seed: T) -> Result<T::Value, ReadError> {
        Err(de::Error::custom(
            "there is no type in D-Bus for an enum with fields",
        ))
    }

    fn tuple_variant<V: Visitor<'a>>(self, _length: usize, _visitor: V) -> Result<V::Value, ReadError> {
        Err(de::Error::custom(
            "there is no type in D-Bus for an enum with fields",
        ))
    }

    fn struct_variant<V: Visitor<'a>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, ReadError> {
        Err(de::Error::custom(
            "there is no type in D-Bus for an enum with fields",
        ))
    }
}
