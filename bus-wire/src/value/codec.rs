//! Reading and writing values of any type.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{Array, Dict, Structure, Value, Variant};
use crate::body::{BodyReader, BodyWriter};
use crate::decode::{Decode, DecodeError, Step, capacity};
use crate::encode::{Encode, Encoder};
use crate::endian::Endian;
use crate::error::MessageError;
use crate::fd::FdIndex;
use crate::names::ObjectPath;
use crate::signature::{Signature, alignment, check_single};
use crate::ty::Ty;

impl Encode for Value {
    /// As a VARIANT.
    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.dynamic_variant(|out| self.push_signature(out), |encoder| write(self, encoder));
    }
}

impl<'m> Decode<'m> for Value {
    /// From a VARIANT.
    fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        reader.decode_variant(read)
    }
}

impl<T: Encode> Encode for Variant<T> {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.variant(&self.0);
    }
}

impl<'m, T: Decode<'m>> Decode<'m> for Variant<T> {
    #[inline]
    fn decode(reader: &mut BodyReader<'m>) -> Result<Self, DecodeError> {
        reader.decode_variant_of().map(Self)
    }
}

/// The value itself, without a variant around it, as a body.
pub(super) fn write_alone(value: &Value, out: &mut Vec<u8>) -> Result<(), MessageError> {
    let mut encoder = Encoder::new(out, Endian::NATIVE);
    write(value, &mut encoder);
    encoder.finish()
}

/// The value itself, without a variant around it.
fn write(value: &Value, encoder: &mut Encoder<'_>) {
    match value {
        Value::Byte(value) => encoder.u8(*value),
        Value::Bool(value) => encoder.bool(*value),
        Value::I16(value) => encoder.i16(*value),
        Value::U16(value) => encoder.u16(*value),
        Value::I32(value) => encoder.i32(*value),
        Value::U32(value) => encoder.u32(*value),
        Value::I64(value) => encoder.i64(*value),
        Value::U64(value) => encoder.u64(*value),
        Value::F64(value) => encoder.f64(*value),
        Value::Fd(index) => encoder.unix_fd(*index),
        Value::Str(text) => encoder.str(text),
        Value::Path(path) => encoder.object_path(path.as_borrowed()),
        Value::Signature(signature) => encoder.signature(signature.as_borrowed()),
        Value::Bytes(bytes) => encoder.byte_slice(bytes),
        Value::Variant(value) => value.encode(encoder),
        Value::Array(array) => {
            let code = array.element().as_str().bytes().next().unwrap_or(b'y');
            encoder.aligned_array(alignment(code), |encoder| {
                array.values().iter().for_each(|value| write(value, encoder));
            });
        }
        Value::Dict(dict) => encoder.array(&Ty::Struct(&[]), |encoder| {
            for (key, value) in dict.entries() {
                encoder.dict_entry(|encoder| {
                    write(key, encoder);
                    write(value, encoder);
                });
            }
        }),
        Value::Struct(structure) => encoder.structure(|encoder| {
            structure.values().iter().for_each(|value| write(value, encoder));
        }),
    }
}

/// The same, where the writer compares it with what is declared.
pub(super) fn write_to(value: &Value, writer: &mut BodyWriter) {
    let signature = |value: &Value| value.signature();
    match value {
        Value::Byte(value) => writer.u8(*value),
        Value::Bool(value) => writer.bool(*value),
        Value::I16(value) => writer.i16(*value),
        Value::U16(value) => writer.u16(*value),
        Value::I32(value) => writer.i32(*value),
        Value::U32(value) => writer.u32(*value),
        Value::I64(value) => writer.i64(*value),
        Value::U64(value) => writer.u64(*value),
        Value::F64(value) => writer.f64(*value),
        Value::Fd(index) => writer.unix_fd_index(index.0),
        Value::Str(text) => writer.str(text),
        Value::Path(path) => writer.object_path(path),
        Value::Signature(signature) => writer.signature(signature.as_str()),
        Value::Bytes(bytes) => writer.byte_slice(bytes),
        Value::Variant(value) => writer.variant(signature(value).as_str(), |writer| write_to(value, writer)),
        Value::Array(array) => writer.array(array.element().as_str(), |writer| {
            array.values().iter().for_each(|value| write_to(value, writer));
        }),
        Value::Dict(dict) => {
            let whole = signature(value);
            writer.array(&whole.as_str()[1..], |writer| {
                for (key, value) in dict.entries() {
                    writer.dict_entry(|writer| {
                        write_to(key, writer);
                        write_to(value, writer);
                    });
                }
            })
        }
        Value::Struct(structure) => writer.structure(|writer| {
            structure
                .values()
                .iter()
                .for_each(|value| write_to(value, writer));
        }),
    };
}

/// The next value, whatever its type is.
pub(super) fn read(reader: &mut BodyReader<'_>) -> Result<Value, DecodeError> {
    // Nothing was checked of bytes that are no message's; that a basic type is one, the match does.
    if !reader.is_validated() && matches!(reader.peek(), Some(b'a' | b'(')) {
        let checked = check_single(reader.peek_signature().as_bytes());
        checked.map_err(|error| DecodeError::value(reader, error))?;
    }
    Ok(match reader.peek() {
        Some(b'y') => Value::Byte(reader.read_u8()?),
        Some(b'b') => Value::Bool(reader.read_bool()?),
        Some(b'n') => Value::I16(reader.read_i16()?),
        Some(b'q') => Value::U16(reader.read_u16()?),
        Some(b'i') => Value::I32(reader.read_i32()?),
        Some(b'u') => Value::U32(reader.read_u32()?),
        Some(b'x') => Value::I64(reader.read_i64()?),
        Some(b't') => Value::U64(reader.read_u64()?),
        Some(b'd') => Value::F64(reader.read_f64()?),
        Some(b'h') => Value::Fd(FdIndex(reader.read_unix_fd_index()?)),
        Some(b's') => Value::Str(reader.read_str()?.to_owned()),
        Some(b'o') => Value::Path(ObjectPath::decode(reader)?.into_owned()),
        Some(b'g') => Value::Signature(Signature::decode(reader)?.into_owned()),
        Some(b'v') => Value::Variant(Box::new(Value::decode(reader)?)),
        Some(b'(') => Value::Struct(Structure::checked(reader.decode_struct(read_fields)?)),
        Some(b'a') => return read_array(reader),
        // An error says what is wrong with the signature.
        Some(_) | None => {
            return Err(reader.read_str().map(|_| ()).err().map_or_else(
                || DecodeError::value(reader, "there is no value"),
                DecodeError::from,
            ));
        }
    })
}

/// All values that are left in a struct.
fn read_fields(reader: &mut BodyReader<'_>) -> Result<Vec<Value>, DecodeError> {
    let mut fields = Vec::new();
    while reader.peek().is_some() {
        fields.push(read(reader).map_err(|error| error.within(Step::Position(fields.len())))?);
    }
    Ok(fields)
}

fn read_array(reader: &mut BodyReader<'_>) -> Result<Value, DecodeError> {
    match reader.peek_signature().as_bytes() {
        b"ay" => return Ok(Value::Bytes(reader.read_byte_slice()?.to_owned())),
        [b'a', b'{', ..] => return read_dict(reader),
        _ => {}
    }
    let mut array = reader.enter_array()?;
    let mut values = Vec::with_capacity(capacity(array.remaining()));
    while let Some(element) = array.next()? {
        values.push(read(element).map_err(|error| error.within(Step::Index(values.len())))?);
    }
    Ok(Value::Array(Array::checked(
        Signature::checked(array.element_signature()),
        values,
    )))
}

fn read_dict(reader: &mut BodyReader<'_>) -> Result<Value, DecodeError> {
    let mut array = reader.enter_array()?;
    let mut entries = Vec::with_capacity(capacity(array.remaining()) / 2);
    while let Some(entry) = array.next()? {
        let both = |entry: &mut BodyReader<'_>| Ok((read(entry)?, read(entry)?));
        let both = entry
            .decode_entry(both)
            .map_err(|error| error.within(Step::Index(entries.len())))?;
        entries.push(both);
    }
    let entry = array.element_signature();
    let entry = entry.strip_prefix('{').and_then(|entry| entry.strip_suffix('}'));
    Ok(Value::Dict(Dict::checked(
        Signature::checked(entry.unwrap_or_default()),
        entries,
    )))
}
