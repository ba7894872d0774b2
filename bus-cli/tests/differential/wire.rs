//! Messages as no library would write them, and what comes back, in short.

use super::support::raw::Raw;
use super::support::{Bus, DRIVER, DRIVER_PATH};
use bus_wire::{BodyWriter, Endian, Message, MessageType};

/// What a bus says to one connection: a line for each message, and `closed`.
pub type Transcript = Vec<String>;

/// The value of a header field, right or wrong.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    Text(&'a str),
    Path(&'a str),
    Signature(&'a str),
    Number(u32),
}

pub const PATH: u8 = 1;
pub const INTERFACE: u8 = 2;
pub const MEMBER: u8 = 3;
pub const ERROR: u8 = 4;
pub const REPLY_SERIAL: u8 = 5;
pub const DESTINATION: u8 = 6;
pub const SENDER: u8 = 7;
pub const SIGNATURE: u8 = 8;
pub const UNIX_FDS: u8 = 9;

pub const METHOD_CALL: u8 = 1;
pub const METHOD_RETURN: u8 = 2;
pub const ERROR_REPLY: u8 = 3;
pub const SIGNAL: u8 = 4;

/// A message in little endian, right or wrong.
#[derive(Debug, Clone)]
pub struct Letter<'a> {
    pub kind: u8,
    pub flags: u8,
    pub version: u8,
    pub serial: u32,
    pub fields: Vec<(u8, Value<'a>)>,
    pub body: Vec<u8>,
}

impl<'a> Letter<'a> {
    pub fn new(kind: u8, fields: &[(u8, Value<'a>)]) -> Letter<'a> {
        Letter {
            kind,
            flags: 0,
            version: 1,
            serial: 2,
            fields: fields.to_vec(),
            body: Vec::new(),
        }
    }

    /// A call to the bus.
    pub fn to_driver(path: &'a str, interface: Option<&'a str>, member: &'a str) -> Letter<'a> {
        let mut fields = vec![
            (PATH, Value::Path(path)),
            (MEMBER, Value::Text(member)),
            (DESTINATION, Value::Text(DRIVER)),
        ];
        fields.extend(interface.map(|interface| (INTERFACE, Value::Text(interface))));
        Letter::new(METHOD_CALL, &fields)
    }

    /// The same, at the canonical place.
    pub fn call(member: &'a str) -> Letter<'a> {
        Letter::to_driver(DRIVER_PATH, Some(DRIVER), member)
    }

    /// With this field in the place of that of the same code, if there is one.
    pub fn with(mut self, code: u8, value: Value<'a>) -> Letter<'a> {
        self.fields.retain(|(other, _)| *other != code);
        self.and(code, value)
    }

    /// With this field at the end.
    pub fn and(mut self, code: u8, value: Value<'a>) -> Letter<'a> {
        self.fields.push((code, value));
        self
    }

    pub fn without(mut self, code: u8) -> Letter<'a> {
        self.fields.retain(|(other, _)| *other != code);
        self
    }

    pub fn flags(mut self, flags: u8) -> Letter<'a> {
        self.flags = flags;
        self
    }

    /// With a body, and its signature.
    pub fn body(mut self, signature: &'a str, write: impl FnOnce(&mut BodyWriter)) -> Letter<'a> {
        let mut writer = BodyWriter::new(Endian::Little);
        write(&mut writer);
        let (found, bytes) = writer.finish().unwrap();
        assert_eq!(found, signature);
        self.body = bytes;
        if signature.is_empty() {
            self
        } else {
            self.and(SIGNATURE, Value::Signature(signature))
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut fields = Vec::new();
        for (code, value) in &self.fields {
            fields.resize(fields.len().next_multiple_of(8), 0);
            let kind = match value {
                Value::Text(_) => b's',
                Value::Path(_) => b'o',
                Value::Signature(_) => b'g',
                Value::Number(_) => b'u',
            };
            fields.extend([*code, 1, kind, 0]);
            match value {
                Value::Text(text) | Value::Path(text) => {
                    fields.extend((text.len() as u32).to_le_bytes());
                    fields.extend(text.as_bytes());
                    fields.push(0);
                }
                Value::Signature(text) => {
                    fields.push(text.len() as u8);
                    fields.extend(text.as_bytes());
                    fields.push(0);
                }
                Value::Number(number) => fields.extend(number.to_le_bytes()),
            }
        }
        let mut bytes = vec![b'l', self.kind, self.flags, self.version];
        bytes.extend((self.body.len() as u32).to_le_bytes());
        bytes.extend(self.serial.to_le_bytes());
        bytes.extend((fields.len() as u32).to_le_bytes());
        bytes.extend(fields);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(&self.body);
        bytes
    }
}

/// The serial of the call that ends a case.
const LAST: u32 = 999;

/// What comes back for these bytes on a connection of their own.
pub fn answers(bus: &Bus, bytes: &[u8]) -> Transcript {
    answers_to(Raw::ready(bus), bytes, "GetId")
}

/// What comes back for these bytes, up to the answer of one more call to the bus.
pub fn answers_to(mut raw: Raw, bytes: &[u8], last: &str) -> Transcript {
    raw.send(bytes);
    let mut call = Letter::call(last);
    call.serial = LAST;
    raw.send(&call.bytes());
    let mut all = Transcript::new();
    loop {
        let Some(message) = raw.message() else {
            all.push("closed".to_owned());
            return all;
        };
        let reply_to = message.reply_serial().map(|serial| serial.get());
        if reply_to == Some(LAST) {
            return all;
        }
        // What comes with Hello may be on its way still.
        let is_greeting = message.member() == Some("NameAcquired")
            && message.body().read_str().is_ok_and(|name| name == raw.unique);
        if !is_greeting {
            all.push(in_short(&message));
        }
    }
}

/// Without what is by chance, such as ids and serials of the bus.
pub fn in_short(message: &Message) -> String {
    let reply_to = message.reply_serial().map_or(0, |serial| serial.get());
    match message.message_type() {
        MessageType::MethodReturn => {
            let signature = message.signature();
            let value = match signature {
                "u" => message.body().read_u32().unwrap().to_string(),
                "b" => message.body().read_bool().unwrap().to_string(),
                _ => String::new(),
            };
            format!("return {signature} {value} re {reply_to}")
        }
        MessageType::Error => format!("{} re {reply_to}", message.error_name().unwrap()),
        MessageType::Signal => format!("signal {}", message.member().unwrap()),
        MessageType::MethodCall => format!("call {}", message.member().unwrap()),
        MessageType::Unknown(kind) => format!("type {kind}"),
    }
}
