//! Message bodies as JSON.

use bus_load::CallError;
use bus_wire::{BodyReader, Message, ReadError};
use serde_json::{Map, Value};

/// The first value of a message.
pub(crate) fn first(message: &Message) -> Result<Value, CallError> {
    read(&mut message.body()).map_err(|error| CallError::Broken(error.into()))
}

/// All values of a message.
pub(crate) fn all(message: &Message) -> Result<Vec<Value>, CallError> {
    let mut body = message.body();
    let mut values = Vec::new();
    while body.peek().is_some() {
        values.push(read(&mut body).map_err(|error| CallError::Broken(error.into()))?);
    }
    Ok(values)
}

/// The next value. Dictionaries are objects, structures and other arrays are arrays, variants are what they hold.
fn read(body: &mut BodyReader<'_>) -> Result<Value, ReadError> {
    Ok(match body.peek() {
        Some(b'y') => body.read_u8()?.into(),
        Some(b'b') => body.read_bool()?.into(),
        Some(b'n') => body.read_i16()?.into(),
        Some(b'q') => body.read_u16()?.into(),
        Some(b'i') => body.read_i32()?.into(),
        Some(b'u') => body.read_u32()?.into(),
        Some(b'x') => body.read_i64()?.into(),
        Some(b't') => body.read_u64()?.into(),
        Some(b'd') => body.read_f64()?.into(),
        Some(b'h') => body.read_unix_fd_index()?.into(),
        Some(b's') => body.read_str()?.into(),
        Some(b'o') => body.read_object_path()?.into(),
        Some(b'g') => body.read_signature()?.into(),
        Some(b'v') => body.read_variant(read)?,
        Some(b'(') => body.read_struct(|fields| {
            let mut values = Vec::new();
            while fields.peek().is_some_and(|code| code != b')') {
                values.push(read(fields)?);
            }
            Ok(Value::Array(values))
        })?,
        Some(b'a') if body.peek_signature().starts_with("a{") => {
            let mut entries = Map::new();
            body.read_array(|element| {
                let (key, value) = element.read_dict_entry(|entry| Ok((read(entry)?, read(entry)?)))?;
                let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
                entries.insert(key, value);
                Ok(())
            })?;
            Value::Object(entries)
        }
        Some(b'a') => {
            let mut values = Vec::new();
            body.read_array(|element| {
                values.push(read(element)?);
                Ok(())
            })?;
            Value::Array(values)
        }
        _ => Value::Null,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bus_wire::MessageBuilder;
    use serde_json::json;

    #[test]
    fn every_shape_has_its_json() {
        let bytes = MessageBuilder::signal("/a", "a.b", "C")
            .serial(1u32)
            .body(|body| {
                body.array("{sv}", |item| {
                    item.dict_entry(|entry| {
                        entry.str("last");
                        entry.variant("(suas)", |value| {
                            value.structure(|fields| {
                                fields.str("upgrade").u32(7).str_array(["x", "y"]);
                            });
                        });
                    });
                });
            })
            .build()
            .unwrap();
        let message = Message::parse(bytes.into()).unwrap();
        assert_eq!(
            first(&message).unwrap(),
            json!({"last": ["upgrade", 7, ["x", "y"]]})
        );
    }
}
