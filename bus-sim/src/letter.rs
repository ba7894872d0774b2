//! A message as the clients and the model think of it.

use bus_wire::{BodyWriter, Endian, Flags, Message, MessageBuilder, MessageType};

use crate::files::File;
use crate::rule::Rule;

/// The name of the bus itself.
pub(crate) const DRIVER: &str = "org.freedesktop.DBus";

/// The kind of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Call,
    Return,
    Error,
    Signal,
}

/// One argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Str(String),
    Path(String),
    U32(u32),
    U64(u64),
    Bool(bool),
    Strs(Vec<String>),
    /// So many bytes.
    Bytes(usize),
    Fd(u32),
}

/// What a call to the driver means, beside its arguments.
#[derive(Debug, Clone, Default)]
pub(crate) struct Note {
    /// The rules that are written in it.
    pub(crate) rules: Vec<Rule>,
    /// It has an argument that is no valid rule or name.
    pub(crate) is_wrong: bool,
}

/// A message.
#[derive(Debug, Clone)]
pub(crate) struct Letter {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    /// 0 = the driver's own count.
    pub(crate) serial: u32,
    pub(crate) sender: String,
    pub(crate) destination: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) interface: Option<String>,
    pub(crate) member: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) reply_serial: Option<u32>,
    pub(crate) values: Vec<Value>,
    pub(crate) is_big_endian: bool,
    pub(crate) files: Vec<File>,
    /// Its body is just that of `values`; otherwise anything.
    pub(crate) is_exact: bool,
    /// The body as bytes, once written.
    pub(crate) body: Vec<u8>,
    pub(crate) signature: String,
    pub(crate) note: Note,
}

pub(crate) const NO_REPLY: u8 = 1;
pub(crate) const NO_AUTO_START: u8 = 2;

impl Letter {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            flags: 0,
            serial: 0,
            sender: String::new(),
            destination: None,
            path: None,
            interface: None,
            member: None,
            error: None,
            reply_serial: None,
            values: Vec::new(),
            is_big_endian: false,
            files: Vec::new(),
            is_exact: true,
            body: Vec::new(),
            signature: String::new(),
            note: Note::default(),
        }
    }

    /// A signal of the driver.
    pub(crate) fn driver_signal(member: &str, words: &[&str]) -> Self {
        Self {
            flags: NO_REPLY,
            sender: DRIVER.to_owned(),
            path: Some("/org/freedesktop/DBus".to_owned()),
            interface: Some(DRIVER.to_owned()),
            member: Some(member.to_owned()),
            ..Self::new(Kind::Signal)
        }
        .with(words.iter().map(|word| Value::Str((*word).to_owned())).collect())
    }

    /// An answer of the driver.
    pub(crate) fn driver_reply(reply_serial: u32, values: Vec<Value>) -> Self {
        Self {
            flags: NO_REPLY,
            sender: DRIVER.to_owned(),
            reply_serial: Some(reply_serial),
            ..Self::new(Kind::Return)
        }
        .with(values)
    }

    /// An error of the driver; its text is for people, and anything.
    pub(crate) fn driver_error(reply_serial: u32, name: &str) -> Self {
        Self {
            flags: NO_REPLY,
            sender: DRIVER.to_owned(),
            reply_serial: Some(reply_serial),
            error: Some(format!("org.freedesktop.DBus.Error.{name}")),
            is_exact: false,
            ..Self::new(Kind::Error)
        }
    }

    /// With these arguments.
    pub(crate) fn with(mut self, values: Vec<Value>) -> Self {
        let endian = if self.is_big_endian {
            Endian::Big
        } else {
            Endian::Little
        };
        let mut writer = BodyWriter::new(endian);
        for value in &values {
            match value {
                Value::Str(text) => writer.str(text),
                Value::Path(path) => writer.object_path(path),
                Value::U32(number) => writer.u32(*number),
                Value::U64(number) => writer.u64(*number),
                Value::Bool(flag) => writer.bool(*flag),
                Value::Strs(texts) => writer.str_array(texts.iter().map(String::as_str)),
                Value::Bytes(count) => writer.byte_slice(&vec![*count as u8; *count]),
                Value::Fd(index) => writer.unix_fd_index(*index),
            };
        }
        if let Ok((signature, body)) = writer.finish() {
            (self.signature, self.body) = (signature, body);
        }
        self.values = values;
        self
    }

    /// Its sender waits for an answer.
    pub(crate) fn expects_reply(&self) -> bool {
        self.kind == Kind::Call && self.flags & NO_REPLY == 0
    }

    pub(crate) fn is_reply(&self) -> bool {
        matches!(self.kind, Kind::Return | Kind::Error)
    }

    /// Its bytes, under the sender's name that it claims.
    pub(crate) fn encode(&self, claimed_sender: Option<&str>) -> Result<Vec<u8>, String> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (path, interface, member) = (text(&self.path), text(&self.interface), text(&self.member));
        let error = text(&self.error);
        let reply_serial = self.reply_serial.unwrap_or_default();
        let mut builder = match self.kind {
            Kind::Call => MessageBuilder::method_call(&path, &member),
            Kind::Return => MessageBuilder::method_return(reply_serial),
            Kind::Error => MessageBuilder::error(&error, reply_serial),
            Kind::Signal => MessageBuilder::signal(&path, &interface, &member),
        };
        if self.kind == Kind::Call && self.interface.is_some() {
            builder = builder.interface(&interface);
        }
        if let Some(destination) = &self.destination {
            builder = builder.destination(destination);
        }
        if let Some(sender) = claimed_sender {
            builder = builder.sender(sender);
        }
        let endian = if self.is_big_endian {
            Endian::Big
        } else {
            Endian::Little
        };
        builder
            .flags(Flags::from_bits(self.flags))
            .endian(endian)
            .serial(self.serial.max(1))
            .unix_fds(self.files.len() as u32)
            .body_parts(&self.signature, &self.body)
            .build()
            .map_err(|error| format!("a message of the simulation is not valid: {error}"))
    }

    /// In what a message that was sent is not this one.
    pub(crate) fn compare(&self, message: &Message, files: &[File]) -> Result<(), String> {
        let kind = match message.message_type() {
            MessageType::MethodCall => Kind::Call,
            MessageType::MethodReturn => Kind::Return,
            MessageType::Error => Kind::Error,
            MessageType::Signal => Kind::Signal,
            MessageType::Unknown(code) => return Err(format!("it is of the unknown type {code}")),
        };
        let found = (
            kind,
            message.flags().bits(),
            message.sender(),
            message.destination(),
            message.path(),
            message.interface(),
            message.member(),
            message.error_name(),
            message.reply_serial().map(|serial| serial.get()),
            files,
        );
        let expected = (
            self.kind,
            self.flags,
            Some(&*self.sender),
            self.destination.as_deref(),
            self.path.as_deref(),
            self.interface.as_deref(),
            self.member.as_deref(),
            self.error.as_deref(),
            self.reply_serial,
            &*self.files,
        );
        if found != expected {
            return Err(format!("it is {found:?}"));
        }
        if self.serial != 0 && message.serial().get() != self.serial {
            return Err(format!("its serial is {}", message.serial().get()));
        }
        let is_big_endian = message.endian() == Endian::Big;
        if self.is_exact
            && (message.signature(), message.body_bytes(), is_big_endian)
                != (&*self.signature, &*self.body, self.is_big_endian)
        {
            return Err(format!(
                "its body of {} bytes, signature \"{}\", is another",
                message.body_bytes().len(),
                message.signature()
            ));
        }
        Ok(())
    }

    /// In short, for a failure.
    pub(crate) fn short(&self) -> String {
        let what = match self.kind {
            Kind::Call | Kind::Signal => self.member.clone(),
            Kind::Return => None,
            Kind::Error => self.error.clone(),
        };
        let values: Vec<String> = self.values.iter().map(|value| format!("{value:?}")).collect();
        format!(
            "{:?} {} (serial {}, reply to {:?}) from \"{}\" to {:?} with {} files: {}",
            self.kind,
            what.unwrap_or_default(),
            self.serial,
            self.reply_serial,
            self.sender,
            self.destination,
            self.files.len(),
            values.join(", ")
        )
    }
}
