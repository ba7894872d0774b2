//! From a Rust type to a body.

use alloc::string::ToString;
use core::fmt::Display;

use serde::ser::{
    self, Error as _, Impossible, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeTuple,
    SerializeTupleStruct,
};

use crate::body::{BodyWriter, OpenArray};
use crate::error::MessageError;
use crate::serde_body::VARIANT;
use crate::signature::type_end;

/// The signature is that which the writer was declared with.
pub(super) fn write_body<T: Serialize + ?Sized>(
    writer: &mut BodyWriter,
    signature: &str,
    value: &T,
) -> Result<(), MessageError> {
    let single = !signature.is_empty() && type_end(signature.as_bytes(), 0) == signature.len();
    let place = if single {
        Place::OnlyArgument
    } else {
        Place::Arguments
    };
    match value.serialize(Serializer { writer, place })? {
        Written::Yes => Ok(()),
        Written::No => Err(none()),
    }
}

/// Whether anything was written: not so for `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Yes,
    No,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The body, of none or several values.
    Arguments,
    /// The body, of one value.
    OnlyArgument,
    /// The signature of a variant.
    VariantSignature,
    /// Inside of another value.
    Inner,
}

struct Serializer<'w> {
    writer: &'w mut BodyWriter,
    place: Place,
}

impl ser::Error for MessageError {
    fn custom<T: Display>(text: T) -> Self {
        Self::Value(text.to_string())
    }
}

fn none() -> MessageError {
    MessageError::custom("there is no null in D-Bus: None can only be left out of a dict")
}

fn unsupported(what: &str) -> MessageError {
    MessageError::custom(format_args!("there is no type in D-Bus for {what}"))
}

impl<'w> Serializer<'w> {
    fn inner(writer: &'w mut BodyWriter) -> Self {
        Self {
            writer,
            place: Place::Inner,
        }
    }

    /// A basic value of the type `code`, within a variant where one must come next.
    #[inline]
    fn basic(self, code: u8, write: impl FnOnce(&mut BodyWriter)) -> Result<Written, MessageError> {
        if self.writer.expected() == Some(b'v') {
            self.writer.begin_variant(&[code]);
            write(self.writer);
            self.writer.end_variant();
        } else {
            write(self.writer);
        }
        Ok(Written::Yes)
    }

    fn tuple(mut self, length: usize) -> Result<Compound<'w>, MessageError> {
        let kind = match (self.place, self.writer.expected()) {
            (Place::Arguments, _) => Kind::Arguments,
            (Place::OnlyArgument, _) if length == 1 => Kind::Arguments,
            (_, Some(b'a')) => Kind::Array(self.writer.begin_declared_array()),
            _ => self.structure(),
        };
        Ok(Compound {
            writer: self.writer,
            kind,
        })
    }

    fn structure(&mut self) -> Kind {
        self.writer.begin_struct(b'(');
        Kind::Struct
    }

    fn array(self) -> Result<Compound<'w>, MessageError> {
        if self.writer.expected() == Some(b'v') {
            return Err(unsupported(
                "a container in a variant, unless it is a Variant with its signature",
            ));
        }
        let array = self.writer.begin_declared_array();
        Ok(Compound {
            writer: self.writer,
            kind: Kind::Array(array),
        })
    }
}

struct Compound<'w> {
    writer: &'w mut BodyWriter,
    kind: Kind,
}

enum Kind {
    /// The values of the body, without anything around them.
    Arguments,
    Struct,
    Array(OpenArray),
    /// Whether the signature was written.
    Variant {
        opened: bool,
    },
}

impl Compound<'_> {
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), MessageError> {
        let place = match &mut self.kind {
            Kind::Variant { opened } if !*opened => {
                *opened = true;
                Place::VariantSignature
            }
            Kind::Variant { .. } | Kind::Arguments | Kind::Struct | Kind::Array(_) => Place::Inner,
        };
        match value.serialize(Serializer {
            writer: self.writer,
            place,
        })? {
            Written::Yes => Ok(()),
            Written::No => Err(none()),
        }
    }

    /// A field of a struct that is written as a dict.
    fn entry<T: Serialize + ?Sized>(&mut self, key: &str, value: &T) -> Result<(), MessageError> {
        let before = self.writer.mark();
        self.writer.begin_struct(b'{');
        Serializer::inner(self.writer).basic(b's', |writer| put_str(writer, key))?;
        let written = value.serialize(Serializer::inner(self.writer))?;
        match written {
            Written::Yes => self.writer.end_struct(b'}'),
            Written::No => self.writer.rewind(before),
        }
        Ok(())
    }

    fn close(self) -> Result<Written, MessageError> {
        match self.kind {
            Kind::Arguments => {}
            Kind::Struct => self.writer.end_struct(b')'),
            Kind::Array(array) => self.writer.end_array(&array),
            Kind::Variant { .. } => self.writer.end_variant(),
        }
        Ok(Written::Yes)
    }
}

/// A text, as the type that must come next.
fn put_str(writer: &mut BodyWriter, text: &str) {
    match writer.expected() {
        Some(b'o') => writer.object_path(text),
        Some(b'g') => writer.signature(text),
        _ => writer.str(text),
    };
}

impl<'w> ser::Serializer for Serializer<'w> {
    type Ok = Written;
    type Error = MessageError;
    type SerializeSeq = Compound<'w>;
    type SerializeTuple = Compound<'w>;
    type SerializeTupleStruct = Compound<'w>;
    type SerializeTupleVariant = Impossible<Written, MessageError>;
    type SerializeMap = Compound<'w>;
    type SerializeStruct = Compound<'w>;
    type SerializeStructVariant = Impossible<Written, MessageError>;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn serialize_bool(self, value: bool) -> Result<Written, MessageError> {
        self.basic(b'b', |writer| {
            writer.bool(value);
        })
    }

    fn serialize_i8(self, _value: i8) -> Result<Written, MessageError> {
        Err(unsupported("a signed byte"))
    }

    fn serialize_i16(self, value: i16) -> Result<Written, MessageError> {
        self.basic(b'n', |writer| {
            writer.i16(value);
        })
    }

    fn serialize_i32(self, value: i32) -> Result<Written, MessageError> {
        self.basic(b'i', |writer| {
            writer.i32(value);
        })
    }

    fn serialize_i64(self, value: i64) -> Result<Written, MessageError> {
        self.basic(b'x', |writer| {
            writer.i64(value);
        })
    }

    fn serialize_u8(self, value: u8) -> Result<Written, MessageError> {
        self.basic(b'y', |writer| {
            writer.u8(value);
        })
    }

    fn serialize_u16(self, value: u16) -> Result<Written, MessageError> {
        self.basic(b'q', |writer| {
            writer.u16(value);
        })
    }

    fn serialize_u32(self, value: u32) -> Result<Written, MessageError> {
        if self.writer.expected() == Some(b'h') {
            self.writer.unix_fd_index(value);
            return Ok(Written::Yes);
        }
        self.basic(b'u', |writer| {
            writer.u32(value);
        })
    }

    fn serialize_u64(self, value: u64) -> Result<Written, MessageError> {
        self.basic(b't', |writer| {
            writer.u64(value);
        })
    }

    fn serialize_f32(self, value: f32) -> Result<Written, MessageError> {
        self.serialize_f64(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<Written, MessageError> {
        self.basic(b'd', |writer| {
            writer.f64(value);
        })
    }

    fn serialize_char(self, value: char) -> Result<Written, MessageError> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, text: &str) -> Result<Written, MessageError> {
        if self.place == Place::VariantSignature {
            self.writer.begin_variant(text.as_bytes());
            return Ok(Written::Yes);
        }
        self.basic(b's', |writer| put_str(writer, text))
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<Written, MessageError> {
        if self.writer.expected() == Some(b'v') {
            self.writer.variant("ay", |writer| {
                writer.byte_slice(bytes);
            });
        } else {
            self.writer.byte_slice(bytes);
        }
        Ok(Written::Yes)
    }

    fn serialize_none(self) -> Result<Written, MessageError> {
        Ok(Written::No)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Written, MessageError> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<Written, MessageError> {
        if self.place == Place::Arguments {
            Ok(Written::Yes)
        } else {
            Err(unsupported("()"))
        }
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result<Written, MessageError> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        _name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<Written, MessageError> {
        match self.writer.expected() {
            Some(b'y') => match u8::try_from(index) {
                Ok(index) => self.serialize_u8(index),
                Err(_) => Err(unsupported("an enum of more than 256 variants in a byte")),
            },
            Some(b'i') => self.serialize_i32(index.cast_signed()),
            Some(b'u') => self.serialize_u32(index),
            _ => self.serialize_str(variant),
        }
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        value: &T,
    ) -> Result<Written, MessageError> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        _variant: &'static str,
        _value: &T,
    ) -> Result<Written, MessageError> {
        Err(unsupported("an enum with fields"))
    }

    fn serialize_seq(self, _length: Option<usize>) -> Result<Compound<'w>, MessageError> {
        self.array()
    }

    fn serialize_tuple(self, length: usize) -> Result<Compound<'w>, MessageError> {
        self.tuple(length)
    }

    fn serialize_tuple_struct(self, name: &'static str, length: usize) -> Result<Compound<'w>, MessageError> {
        if name == VARIANT {
            return Ok(Compound {
                writer: self.writer,
                kind: Kind::Variant { opened: false },
            });
        }
        self.tuple(length)
    }

    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        _variant: &'static str,
        _length: usize,
    ) -> Result<Self::SerializeTupleVariant, MessageError> {
        Err(unsupported("an enum with fields"))
    }

    fn serialize_map(self, _length: Option<usize>) -> Result<Compound<'w>, MessageError> {
        self.array()
    }

    fn serialize_struct(mut self, _name: &'static str, _length: usize) -> Result<Compound<'w>, MessageError> {
        let kind = match (self.place, self.writer.expected()) {
            (Place::Arguments, _) => Kind::Arguments,
            (_, Some(b'a')) => Kind::Array(self.writer.begin_declared_array()),
            (_, Some(b'(')) | (Place::Inner, _) => self.structure(),
            _ => Kind::Arguments,
        };
        Ok(Compound {
            writer: self.writer,
            kind,
        })
    }

    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        _variant: &'static str,
        _length: usize,
    ) -> Result<Self::SerializeStructVariant, MessageError> {
        Err(unsupported("an enum with fields"))
    }
}

impl SerializeSeq for Compound<'_> {
    type Ok = Written;
    type Error = MessageError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), MessageError> {
        self.element(value)
    }

    fn end(self) -> Result<Written, MessageError> {
        self.close()
    }
}

impl SerializeTuple for Compound<'_> {
    type Ok = Written;
    type Error = MessageError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), MessageError> {
        self.element(value)
    }

    fn end(self) -> Result<Written, MessageError> {
        self.close()
    }
}

impl SerializeTupleStruct for Compound<'_> {
    type Ok = Written;
    type Error = MessageError;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), MessageError> {
        self.element(value)
    }

    fn end(self) -> Result<Written, MessageError> {
        self.close()
    }
}

impl SerializeMap for Compound<'_> {
    type Ok = Written;
    type Error = MessageError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), MessageError> {
        self.writer.begin_struct(b'{');
        self.element(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), MessageError> {
        self.element(value)?;
        self.writer.end_struct(b'}');
        Ok(())
    }

    fn end(self) -> Result<Written, MessageError> {
        self.close()
    }
}

impl SerializeStruct for Compound<'_> {
    type Ok = Written;
    type Error = MessageError;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), MessageError> {
        if matches!(self.kind, Kind::Array(_)) {
            self.entry(key, value)
        } else {
            self.element(value)
        }
    }

    fn end(self) -> Result<Written, MessageError> {
        self.close()
    }
}
