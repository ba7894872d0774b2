//! Values of all types, made out of arbitrary bytes.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code)]

use bus_wire::{BodyReader, BodyWriter, Endian, MessageBuilder, ReadError};

/// Decisions, taken from bytes; zeros after the last.
pub struct Source<'a>(pub &'a [u8]);

impl Source<'_> {
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&byte, rest)) => {
                self.0 = rest;
                byte
            }
            None => 0,
        }
    }

    pub fn below(&mut self, limit: u8) -> u8 {
        self.byte() % limit
    }

    pub fn u64(&mut self) -> u64 {
        (0..8).fold(0, |value, _| value << 8 | u64::from(self.byte()))
    }
}

/// A value with its type; doubles as bits, so that they can be compared.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Byte(u8),
    Bool(bool),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    F64(u64),
    Fd(u32),
    Str(String),
    Path(String),
    Signature(String),
    Array(String, Vec<Value>),
    Struct(Vec<Value>),
    Entry(Box<Value>, Box<Value>),
    Variant(String, Box<Value>),
}

const BASIC: &[u8] = b"ybnqiuxtdhsog";

/// One complete type.
pub fn arbitrary_type(source: &mut Source<'_>, depth: u32) -> String {
    let choice = source.below(if depth == 0 { 13 } else { 20 });
    match choice {
        0..=12 => char::from(BASIC[choice as usize]).to_string(),
        13 | 14 => format!("a{}", arbitrary_type(source, depth - 1)),
        15 | 16 => {
            let fields: String = (0..=source.below(3))
                .map(|_| arbitrary_type(source, depth - 1))
                .collect();
            format!("({fields})")
        }
        17 => {
            let key = char::from(BASIC[source.below(13) as usize]);
            format!("a{{{key}{}}}", arbitrary_type(source, depth - 1))
        }
        _ => "v".to_owned(),
    }
}

/// A value of the type that `signature` begins with; the rest of the signature.
pub fn arbitrary_value<'s>(source: &mut Source<'_>, signature: &'s str, depth: u32) -> (Value, &'s str) {
    let (code, rest) = signature.split_at(1);
    let value = match code {
        "y" => Value::Byte(source.byte()),
        "b" => Value::Bool(source.byte() % 2 == 1),
        "n" => Value::I16(source.u64() as i16),
        "q" => Value::U16(source.u64() as u16),
        "i" => Value::I32(source.u64() as i32),
        "u" => Value::U32(source.u64() as u32),
        "x" => Value::I64(source.u64() as i64),
        "t" => Value::U64(source.u64()),
        "d" => Value::F64(source.u64()),
        "h" => Value::Fd(source.u64() as u32),
        "s" => {
            Value::Str(["", "a", "hello", "grüße", "日本語", "12345678"][source.below(6) as usize].to_owned())
        }
        "o" => Value::Path(["/", "/a", "/org/freedesktop/DBus", "/_/0"][source.below(4) as usize].to_owned()),
        "g" => Value::Signature(["", "y", "a{sv}", "(ii)as"][source.below(4) as usize].to_owned()),
        "v" => {
            let inner = if depth == 0 {
                "y".to_owned()
            } else {
                arbitrary_type(source, depth - 1)
            };
            let (value, _) = arbitrary_value(source, &inner, depth.saturating_sub(1));
            Value::Variant(inner, Box::new(value))
        }
        "a" => {
            // The length of the element's type is known only once one was made.
            let (_, after) = arbitrary_value(&mut Source(&[]), rest, depth);
            let count = source.below(4);
            let elements = (0..count)
                .map(|_| arbitrary_value(source, rest, depth).0)
                .collect();
            return (
                Value::Array(rest[..rest.len() - after.len()].to_owned(), elements),
                after,
            );
        }
        "(" => {
            let mut fields = Vec::new();
            let mut rest = rest;
            while !rest.starts_with(')') {
                let (field, after) = arbitrary_value(source, rest, depth);
                fields.push(field);
                rest = after;
            }
            return (Value::Struct(fields), &rest[1..]);
        }
        "{" => {
            let (key, rest) = arbitrary_value(source, rest, depth);
            let (value, rest) = arbitrary_value(source, rest, depth);
            return (Value::Entry(Box::new(key), Box::new(value)), &rest[1..]);
        }
        code => panic!("{code} in a signature"),
    };
    (value, rest)
}

pub fn arbitrary_body(source: &mut Source<'_>) -> Vec<Value> {
    (0..source.below(5))
        .map(|_| {
            let signature = arbitrary_type(source, 4);
            arbitrary_value(source, &signature, 3).0
        })
        .collect()
}

pub fn write(writer: &mut BodyWriter, value: &Value) {
    match value {
        Value::Byte(value) => writer.u8(*value),
        Value::Bool(value) => writer.bool(*value),
        Value::I16(value) => writer.i16(*value),
        Value::U16(value) => writer.u16(*value),
        Value::I32(value) => writer.i32(*value),
        Value::U32(value) => writer.u32(*value),
        Value::I64(value) => writer.i64(*value),
        Value::U64(value) => writer.u64(*value),
        Value::F64(value) => writer.f64(f64::from_bits(*value)),
        Value::Fd(value) => writer.unix_fd_index(*value),
        Value::Str(text) => writer.str(text),
        Value::Path(path) => writer.object_path(path),
        Value::Signature(signature) => writer.signature(signature),
        Value::Array(element, values) => writer.array(element, |writer| {
            values.iter().for_each(|value| write(writer, value))
        }),
        Value::Struct(values) => {
            writer.structure(|writer| values.iter().for_each(|value| write(writer, value)))
        }
        Value::Entry(key, value) => writer.dict_entry(|writer| {
            write(writer, key);
            write(writer, value);
        }),
        Value::Variant(signature, value) => writer.variant(signature, |writer| write(writer, value)),
    };
}

pub fn read(reader: &mut BodyReader<'_>) -> Result<Value, ReadError> {
    Ok(match reader.peek() {
        Some(b'y') => Value::Byte(reader.read_u8()?),
        Some(b'b') => Value::Bool(reader.read_bool()?),
        Some(b'n') => Value::I16(reader.read_i16()?),
        Some(b'q') => Value::U16(reader.read_u16()?),
        Some(b'i') => Value::I32(reader.read_i32()?),
        Some(b'u') => Value::U32(reader.read_u32()?),
        Some(b'x') => Value::I64(reader.read_i64()?),
        Some(b't') => Value::U64(reader.read_u64()?),
        Some(b'd') => Value::F64(reader.read_f64()?.to_bits()),
        Some(b'h') => Value::Fd(reader.read_unix_fd_index()?),
        Some(b's') => Value::Str(reader.read_str()?.to_owned()),
        Some(b'o') => Value::Path(reader.read_object_path()?.to_owned()),
        Some(b'g') => Value::Signature(reader.read_signature()?.to_owned()),
        Some(b'a') => {
            let element = reader.peek_signature()[1..].to_owned();
            let mut values = Vec::new();
            reader.read_array(|reader| {
                values.push(read(reader)?);
                Ok(())
            })?;
            Value::Array(element, values)
        }
        Some(b'(') => Value::Struct(reader.read_struct(read_all)?),
        Some(b'{') => reader
            .read_dict_entry(|reader| Ok(Value::Entry(Box::new(read(reader)?), Box::new(read(reader)?))))?,
        Some(b'v') => reader.read_variant(|reader| {
            Ok(Value::Variant(
                reader.peek_signature().to_owned(),
                Box::new(read(reader)?),
            ))
        })?,
        other => panic!("{other:?} in a signature"),
    })
}

/// All that is left in a body or a struct.
pub fn read_all(reader: &mut BodyReader<'_>) -> Result<Vec<Value>, ReadError> {
    let mut values = Vec::new();
    while reader.peek().is_some() {
        values.push(read(reader)?);
    }
    Ok(values)
}

/// A message of some type with this body.
pub fn build(source: &mut Source<'_>, values: &[Value]) -> Option<Vec<u8>> {
    let endian = if source.byte().is_multiple_of(2) {
        Endian::Little
    } else {
        Endian::Big
    };
    let mut message = match source.below(4) {
        0 => MessageBuilder::method_call("/a/b", "Member"),
        1 => MessageBuilder::method_return(source.u64() as u32 | 1),
        2 => MessageBuilder::error("a.b.Error", source.u64() as u32 | 1),
        _ => MessageBuilder::signal("/", "a.b", "S"),
    }
    .endian(endian)
    .serial(source.u64() as u32 | 1);
    if source.byte().is_multiple_of(2) {
        message = message.destination([":1.1", "org.freedesktop.DBus"][source.below(2) as usize]);
    }
    if source.byte().is_multiple_of(4) {
        message = message.sender(":1.77");
    }
    // Only a signature of more than 255 bytes can be wrong with it.
    message
        .body(|writer| values.iter().for_each(|value| write(writer, value)))
        .build()
        .ok()
}
