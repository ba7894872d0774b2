//! Making messages.

use alloc::vec::Vec;

use crate::body::BodyWriter;
use crate::body::validate::validate_body;
use crate::endian::Endian;
use crate::error::MessageError;
use crate::header::{Flags, Lengths, MessageType, field};
use crate::limits::{FIXED_HEADER, MAX_ARRAY, MAX_MESSAGE};
use crate::names::{self, NameError};
use crate::serial::Serial;
use crate::signature;

/// Makes one message. In little endian unless [told otherwise](Self::endian), with the serial 1 unless
/// [given](Self::serial).
///
/// ```
/// # use bus_wire::{MessageBuilder, Message};
/// let bytes = MessageBuilder::method_call("/org/freedesktop/DBus", "GetNameOwner")
///     .destination("org.freedesktop.DBus")
///     .interface("org.freedesktop.DBus")
///     .serial(7u32)
///     .body(|body| {
///         body.str("com.example.Name");
///     })
///     .build()?;
/// assert_eq!(Message::parse(bytes.into())?.signature(), "s");
/// # Ok::<(), bus_wire::MessageError>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct MessageBuilder<'a> {
    message_type: MessageType,
    flags: Flags,
    endian: Endian,
    serial: u32,
    reply_serial: Option<u32>,
    unix_fds: u32,
    path: Option<&'a str>,
    interface: Option<&'a str>,
    member: Option<&'a str>,
    error_name: Option<&'a str>,
    destination: Option<&'a str>,
    sender: Option<&'a str>,
    body: Body<'a>,
}

#[derive(Debug)]
enum Body<'a> {
    None,
    Written(BodyWriter),
    Parts { signature: &'a str, bytes: &'a [u8] },
}

impl<'a> MessageBuilder<'a> {
    /// A call of `member` on the object at `path`.
    pub fn method_call(path: &'a str, member: &'a str) -> Self {
        Self {
            path: Some(path),
            member: Some(member),
            ..Self::new(MessageType::MethodCall)
        }
    }

    /// The answer to a call that had the serial `reply_serial`.
    pub fn method_return(reply_serial: impl Into<u32>) -> Self {
        Self {
            reply_serial: Some(reply_serial.into()),
            ..Self::new(MessageType::MethodReturn)
        }
    }

    /// The answer to a call that had the serial `reply_serial`, and failed.
    pub fn error(name: &'a str, reply_serial: impl Into<u32>) -> Self {
        let reply_serial = Some(reply_serial.into());
        Self {
            error_name: Some(name),
            reply_serial,
            ..Self::new(MessageType::Error)
        }
    }

    /// A signal `member` of the object at `path`.
    pub fn signal(path: &'a str, interface: &'a str, member: &'a str) -> Self {
        let message = Self::new(MessageType::Signal);
        Self {
            path: Some(path),
            interface: Some(interface),
            member: Some(member),
            ..message
        }
    }

    fn new(message_type: MessageType) -> Self {
        Self {
            message_type,
            flags: Flags::NONE,
            endian: Endian::Little,
            serial: 1,
            reply_serial: None,
            unix_fds: 0,
            path: None,
            interface: None,
            member: None,
            error_name: None,
            destination: None,
            sender: None,
            body: Body::None,
        }
    }

    /// The interface of the method or signal.
    pub fn interface(mut self, interface: &'a str) -> Self {
        self.interface = Some(interface);
        self
    }

    /// Whom it goes to.
    pub fn destination(mut self, destination: &'a str) -> Self {
        self.destination = Some(destination);
        self
    }

    /// Whom it comes from; only a bus sets it.
    pub fn sender(mut self, sender: &'a str) -> Self {
        self.sender = Some(sender);
        self
    }

    /// Its flags, in place of those set before.
    pub fn flags(mut self, flags: Flags) -> Self {
        self.flags = flags;
        self
    }

    /// How many file descriptors go with it.
    pub fn unix_fds(mut self, count: u32) -> Self {
        self.unix_fds = count;
        self
    }

    /// Its serial.
    pub fn serial(mut self, serial: impl Into<u32>) -> Self {
        self.serial = serial.into();
        self
    }

    /// The byte order; to be set before the body.
    pub fn endian(mut self, endian: Endian) -> Self {
        self.endian = endian;
        self
    }

    /// The body: `write` writes its values, after those written before.
    pub fn body(mut self, write: impl FnOnce(&mut BodyWriter)) -> Self {
        let mut writer = match self.body {
            Body::Written(writer) => writer,
            Body::None | Body::Parts { .. } => BodyWriter::new(self.endian),
        };
        write(&mut writer);
        self.body = Body::Written(writer);
        self
    }

    /// The body as it is on the wire, in the byte order of the message; it is validated.
    pub fn body_parts(mut self, signature: &'a str, bytes: &'a [u8]) -> Self {
        self.body = Body::Parts { signature, bytes };
        self
    }

    /// The message's bytes.
    ///
    /// # Errors
    /// A name, a serial or the body is not valid, or the message is longer than 128 MiB.
    pub fn build(self) -> Result<Vec<u8>, MessageError> {
        let mut out = Vec::new();
        self.build_into(&mut out)?;
        Ok(out)
    }

    /// Appends the message's bytes.
    ///
    /// # Errors
    /// As [`build`](Self::build); `out` is as before then.
    pub fn build_into(mut self, out: &mut Vec<u8>) -> Result<(), MessageError> {
        let start = out.len();
        let result = self.write(out, start);
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    fn write(&mut self, out: &mut Vec<u8>, start: usize) -> Result<(), MessageError> {
        let (written, parts);
        let (signature, body) = match core::mem::replace(&mut self.body, Body::None) {
            Body::None => ("", &[][..]),
            Body::Written(writer) => {
                self.endian = writer.endian();
                written = writer.finish()?;
                (&*written.0, &*written.1)
            }
            Body::Parts { signature, bytes } => {
                parts = (signature, bytes);
                self.check_parts(signature, bytes)?;
                parts
            }
        };
        let serial = Serial::new(self.serial).ok_or(MessageError::SerialZero { at: 8 })?;
        let mut header = HeaderWriter {
            out,
            start,
            endian: self.endian,
        };
        header.out.reserve(FIXED_HEADER + 256 + body.len());
        let flag = self.endian.flag();
        header
            .out
            .extend_from_slice(&[flag, self.message_type.code(), self.flags.bits(), 1]);
        header.u32(body.len() as u32);
        header.u32(serial.get());
        header.u32(0);
        header.name(field::PATH, self.path, "PATH", names::check_object_path)?;
        header.name(
            field::INTERFACE,
            self.interface,
            "INTERFACE",
            names::check_interface,
        )?;
        header.name(field::MEMBER, self.member, "MEMBER", names::check_member)?;
        header.name(
            field::ERROR_NAME,
            self.error_name,
            "ERROR_NAME",
            names::check_interface,
        )?;
        if let Some(reply_serial) = self.reply_serial {
            let at = header.field(field::REPLY_SERIAL, b'u');
            header.u32(
                Serial::new(reply_serial)
                    .ok_or(MessageError::SerialZero { at })?
                    .get(),
            );
        }
        header.name(
            field::DESTINATION,
            self.destination,
            "DESTINATION",
            names::check_bus_name,
        )?;
        if !signature.is_empty() {
            header.field(field::SIGNATURE, b'g');
            header.out.push(signature.len() as u8);
            header.out.extend_from_slice(signature.as_bytes());
            header.out.push(0);
        }
        if self.unix_fds > 0 {
            header.field(field::UNIX_FDS, b'u');
            header.u32(self.unix_fds);
        }
        header.name(field::SENDER, self.sender, "SENDER", names::check_bus_name)?;
        header.finish(body)
    }

    fn check_parts(&self, signature: &str, bytes: &[u8]) -> Result<(), MessageError> {
        signature::check(signature.as_bytes()).map_err(|cause| MessageError::Signature { at: 0, cause })?;
        match self.endian {
            Endian::Little => validate_body::<false>(bytes, 0, signature.as_bytes()),
            Endian::Big => validate_body::<true>(bytes, 0, signature.as_bytes()),
        }
    }
}

struct HeaderWriter<'o> {
    out: &'o mut Vec<u8>,
    /// Where the message begins.
    start: usize,
    endian: Endian,
}

impl HeaderWriter<'_> {
    fn u32(&mut self, value: u32) {
        self.out.extend_from_slice(&self.endian.u32_bytes(value));
    }

    fn pad(&mut self) {
        let padding = (self.out.len() - self.start).wrapping_neg() % 8;
        self.out.extend_from_slice(&[0; 8][..padding]);
    }

    /// The beginning of a field; returns where its value begins.
    fn field(&mut self, code: u8, type_code: u8) -> usize {
        self.pad();
        self.out.extend_from_slice(&[code, 1, type_code, 0]);
        self.out.len() - self.start
    }

    #[inline]
    fn name(
        &mut self,
        code: u8,
        name: Option<&str>,
        what: &'static str,
        check: impl FnOnce(&[u8]) -> Result<(), NameError>,
    ) -> Result<(), MessageError> {
        let Some(name) = name else { return Ok(()) };
        let at = self.field(code, if code == field::PATH { b'o' } else { b's' });
        check(name.as_bytes()).map_err(|cause| MessageError::Name { at, what, cause })?;
        self.u32(name.len() as u32);
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(0);
        Ok(())
    }

    fn finish(mut self, body: &[u8]) -> Result<(), MessageError> {
        let fields = self.out.len() - self.start - FIXED_HEADER;
        if fields > MAX_ARRAY {
            return Err(MessageError::ArrayTooLong {
                at: 12,
                length: fields,
            });
        }
        let length = Lengths {
            endian: self.endian,
            fields,
            body: body.len(),
        }
        .total();
        if length > MAX_MESSAGE {
            return Err(MessageError::TooLong {
                length,
                limit: MAX_MESSAGE,
            });
        }
        let at = self.start + 12;
        self.out[at..at + 4].copy_from_slice(&self.endian.u32_bytes(fields as u32));
        self.pad();
        self.out.extend_from_slice(body);
        Ok(())
    }
}
