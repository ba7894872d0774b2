//! Making messages.

use alloc::vec::Vec;

use crate::body::BodyWriter;
use crate::body::validate::validate_body;
use crate::encode::{Encode, encode_body};
use crate::endian::Endian;
use crate::error::MessageError;
use crate::header::{Flags, MessageType, field};
use crate::limits::{FIXED_HEADER, MAX_ARRAY, MAX_MESSAGE};
use crate::names::{self, BusName, ErrorName, InterfaceName, MemberName, NameArg, NameError, ObjectPath};
use crate::serial::Serial;
use crate::signature;
use crate::ty::body_signature_of;

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
    path: Option<NameArg<'a, ObjectPath<'a>>>,
    interface: Option<NameArg<'a, InterfaceName<'a>>>,
    member: Option<NameArg<'a, MemberName<'a>>>,
    error_name: Option<NameArg<'a, ErrorName<'a>>>,
    destination: Option<NameArg<'a, BusName<'a>>>,
    sender: Option<NameArg<'a, BusName<'a>>>,
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
    pub fn method_call(
        path: impl Into<NameArg<'a, ObjectPath<'a>>>,
        member: impl Into<NameArg<'a, MemberName<'a>>>,
    ) -> Self {
        Self {
            path: Some(path.into()),
            member: Some(member.into()),
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
    pub fn error(name: impl Into<NameArg<'a, ErrorName<'a>>>, reply_serial: impl Into<u32>) -> Self {
        let reply_serial = Some(reply_serial.into());
        Self {
            error_name: Some(name.into()),
            reply_serial,
            ..Self::new(MessageType::Error)
        }
    }

    /// A signal `member` of the object at `path`.
    pub fn signal(
        path: impl Into<NameArg<'a, ObjectPath<'a>>>,
        interface: impl Into<NameArg<'a, InterfaceName<'a>>>,
        member: impl Into<NameArg<'a, MemberName<'a>>>,
    ) -> Self {
        let message = Self::new(MessageType::Signal);
        Self {
            path: Some(path.into()),
            interface: Some(interface.into()),
            member: Some(member.into()),
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
    pub fn interface(mut self, interface: impl Into<NameArg<'a, InterfaceName<'a>>>) -> Self {
        self.interface = Some(interface.into());
        self
    }

    /// Whom it goes to.
    pub fn destination(mut self, destination: impl Into<NameArg<'a, BusName<'a>>>) -> Self {
        self.destination = Some(destination.into());
        self
    }

    /// Whom it comes from; only a bus sets it.
    pub fn sender(mut self, sender: impl Into<NameArg<'a, BusName<'a>>>) -> Self {
        self.sender = Some(sender.into());
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

    /// The message's bytes, with the body that `body` is: a tuple stands for the arguments, any other type for the only one.
    ///
    /// # Errors
    /// As [`build`](Self::build), and those of [`encode_body`].
    ///
    /// ```
    /// # use bus_wire::{MessageBuilder, Message};
    /// let bytes = MessageBuilder::method_call("/a", "Add").encode(&("two", 2u32))?;
    /// assert_eq!(Message::parse(bytes.into())?.signature(), "su");
    /// # Ok::<(), bus_wire::MessageError>(())
    /// ```
    pub fn encode<T: Encode + ?Sized>(self, body: &T) -> Result<Vec<u8>, MessageError> {
        let mut out = Vec::new();
        self.encode_into(body, &mut out)?;
        Ok(out)
    }

    /// As [`encode`](Self::encode), behind what `out` holds: with a buffer that is used again, no memory is asked for.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); `out` is as before then.
    pub fn encode_into<T: Encode + ?Sized>(self, body: &T, out: &mut Vec<u8>) -> Result<(), MessageError> {
        let start = out.len();
        let result = self.write_typed(body, out, start);
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    #[inline]
    fn write_typed<T: Encode + ?Sized>(
        &self,
        body: &T,
        out: &mut Vec<u8>,
        start: usize,
    ) -> Result<(), MessageError> {
        let mut header = self.write_header(out, start, body_signature_of::<T>().as_str(), 0)?;
        header.finish_fields()?;
        let body_start = header.out.len();
        encode_body(body, self.endian, header.out)?;
        let length = header.out.len() - body_start;
        header.finish_body(length)
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
        let mut header = self.write_header(out, start, signature, body.len())?;
        header.finish_fields()?;
        header.out.extend_from_slice(body);
        header.finish_body(body.len())
    }

    /// The header up to its last field.
    #[inline]
    fn write_header<'o>(
        &self,
        out: &'o mut Vec<u8>,
        start: usize,
        signature: &str,
        body_length: usize,
    ) -> Result<HeaderWriter<'o>, MessageError> {
        let serial = Serial::new(self.serial).ok_or(MessageError::SerialZero { at: 8 })?;
        let mut header = HeaderWriter {
            out,
            start,
            endian: self.endian,
        };
        header.out.reserve(FIXED_HEADER + 256 + body_length);
        let flag = self.endian.flag();
        header
            .out
            .extend_from_slice(&[flag, self.message_type.code(), self.flags.bits(), 1]);
        header.u32(0);
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
        Ok(header)
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
    fn name<N>(
        &mut self,
        code: u8,
        name: Option<NameArg<'_, N>>,
        what: &'static str,
        check: impl FnOnce(&[u8]) -> Result<(), NameError>,
    ) -> Result<(), MessageError> {
        let Some(NameArg {
            text: name,
            is_checked,
            ..
        }) = name
        else {
            return Ok(());
        };
        let at = self.field(code, if code == field::PATH { b'o' } else { b's' });
        if !is_checked {
            check(name.as_bytes()).map_err(|cause| MessageError::Name { at, what, cause })?;
        }
        self.u32(name.len() as u32);
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(0);
        Ok(())
    }

    /// Behind the last field.
    fn finish_fields(&mut self) -> Result<(), MessageError> {
        let fields = self.out.len() - self.start - FIXED_HEADER;
        if fields > MAX_ARRAY {
            return Err(MessageError::ArrayTooLong {
                at: 12,
                length: fields,
            });
        }
        self.set(12, fields);
        self.pad();
        Ok(())
    }

    /// Behind the body, of this length.
    fn finish_body(&mut self, body: usize) -> Result<(), MessageError> {
        let length = self.out.len() - self.start;
        if length > MAX_MESSAGE {
            return Err(MessageError::TooLong {
                length,
                limit: MAX_MESSAGE,
            });
        }
        self.set(4, body);
        Ok(())
    }

    /// A length in the fixed part of the header.
    fn set(&mut self, at: usize, length: usize) {
        let at = self.start + at;
        self.out[at..at + 4].copy_from_slice(&self.endian.u32_bytes(length as u32));
    }
}
