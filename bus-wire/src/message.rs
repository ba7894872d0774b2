//! A received message.

use core::fmt;

use bytes::Bytes;

use crate::body::BodyReader;
use crate::body::validate::{Validator, validate_body};
use crate::endian::Endian;
use crate::error::MessageError;
use crate::header::{Flags, Lengths, MessageType, field};
use crate::limits::FIXED_HEADER;
use crate::names::{self, BusName, ErrorName, InterfaceName, MemberName, ObjectPath};
use crate::serial::Serial;
use crate::signature;

/// One message, known to be valid in every respect.
///
/// It holds the received bytes and where in them the header fields are: cloning it copies no byte of the message.
#[derive(Clone)]
pub struct Message {
    bytes: Bytes,
    header: Header,
}

/// A text in the message's bytes; none where `start` is 0 (which is never the start of a text).
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    start: u32,
    length: u32,
}

/// A header that was parsed, or that is: then the fields that follow are missing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    endian: Endian,
    message_type: MessageType,
    flags: Flags,
    has_foreign_fields: bool,
    serial: Serial,
    reply_serial: Option<Serial>,
    unix_fds: u32,
    /// End of the array of fields, before the padding.
    fields_end: u32,
    body_start: u32,
    path: Span,
    interface: Span,
    member: Span,
    error_name: Span,
    destination: Span,
    sender: Span,
    signature: Span,
}

impl Header {
    /// The types of the body.
    #[inline]
    pub(crate) fn signature<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let start = self.signature.start as usize;
        &bytes[start..start + self.signature.length as usize]
    }

    /// Notes a field that the bus does not pass on.
    pub(crate) fn note_foreign_field(&mut self) {
        self.has_foreign_fields = true;
    }

    /// Notes a valid path that is not the reserved one.
    pub(crate) fn note_path(&mut self, start: usize, length: usize) {
        self.path = Span {
            start: start as u32,
            length: length as u32,
        };
    }
}

impl Message {
    /// Takes bytes that are exactly one message, and validates all of it: the header, its fields, and the body against
    /// its signature (specification, "Message Format", "Marshaling", "Valid Names").
    ///
    /// # Errors
    /// What is wrong, and where.
    #[inline]
    pub fn parse(bytes: Bytes) -> Result<Self, MessageError> {
        let lengths = match Lengths::read(&bytes)? {
            Some(lengths) if lengths.total() == bytes.len() => lengths,
            Some(lengths) => {
                return Err(MessageError::Length {
                    length: lengths.total(),
                    given: bytes.len(),
                });
            }
            None => {
                return Err(MessageError::Length {
                    length: FIXED_HEADER,
                    given: bytes.len(),
                });
            }
        };
        let header = match lengths.endian {
            Endian::Little => parse_header::<false, true>(&bytes, lengths),
            Endian::Big => parse_header::<true, true>(&bytes, lengths),
        }?;
        Ok(Self { bytes, header })
    }

    /// Of exactly one message, all of which was validated.
    pub(crate) fn validated(bytes: Bytes, header: Header) -> Self {
        Self { bytes, header }
    }

    #[cfg(test)]
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// The whole message.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The byte order it is written in.
    pub fn endian(&self) -> Endian {
        self.header.endian
    }

    /// What it is for.
    pub fn message_type(&self) -> MessageType {
        self.header.message_type
    }

    /// Its flags.
    pub fn flags(&self) -> Flags {
        self.header.flags
    }

    /// Its serial.
    pub fn serial(&self) -> Serial {
        self.header.serial
    }

    /// The serial of the call that it answers.
    pub fn reply_serial(&self) -> Option<Serial> {
        self.header.reply_serial
    }

    /// The object that it goes to, or comes from.
    pub fn path(&self) -> Option<&str> {
        self.text(self.header.path)
    }

    /// The interface of the method or signal.
    pub fn interface(&self) -> Option<&str> {
        self.text(self.header.interface)
    }

    /// The method or signal.
    pub fn member(&self) -> Option<&str> {
        self.text(self.header.member)
    }

    /// The name of the error.
    pub fn error_name(&self) -> Option<&str> {
        self.text(self.header.error_name)
    }

    /// Whom it goes to.
    pub fn destination(&self) -> Option<&str> {
        self.text(self.header.destination)
    }

    /// Whom it comes from, as its bytes say.
    pub fn sender(&self) -> Option<&str> {
        self.text(self.header.sender)
    }

    /// [`path`](Self::path) as a checked name.
    pub fn object_path(&self) -> Option<ObjectPath<'_>> {
        self.path().map(ObjectPath::checked)
    }

    /// [`interface`](Self::interface) as a checked name.
    pub fn interface_name(&self) -> Option<InterfaceName<'_>> {
        self.interface().map(InterfaceName::checked)
    }

    /// [`member`](Self::member) as a checked name.
    pub fn member_name(&self) -> Option<MemberName<'_>> {
        self.member().map(MemberName::checked)
    }

    /// [`error_name`](Self::error_name) as a checked name.
    pub fn error(&self) -> Option<ErrorName<'_>> {
        self.error_name().map(ErrorName::checked)
    }

    /// [`destination`](Self::destination) as a checked name.
    pub fn destination_name(&self) -> Option<BusName<'_>> {
        self.destination().map(BusName::checked)
    }

    /// [`sender`](Self::sender) as a checked name.
    pub fn sender_name(&self) -> Option<BusName<'_>> {
        self.sender().map(BusName::checked)
    }

    /// The types of the body; empty where there is none.
    pub fn signature(&self) -> &str {
        self.text(self.header.signature).unwrap_or("")
    }

    /// How many file descriptors come with it.
    pub fn unix_fds(&self) -> u32 {
        self.header.unix_fds
    }

    /// The body's bytes.
    pub fn body_bytes(&self) -> &[u8] {
        &self.bytes[self.header.body_start as usize..]
    }

    /// All bytes of the message, shared.
    pub fn to_bytes(&self) -> Bytes {
        self.bytes.clone()
    }

    /// The body's bytes, sharing the message's.
    pub fn body_slice(&self) -> Bytes {
        self.bytes.slice(self.header.body_start as usize..)
    }

    /// Reads the body value by value.
    pub fn body(&self) -> BodyReader<'_> {
        BodyReader::validated(self.body_bytes(), self.signature(), self.header.endian)
    }

    /// Whether there are header fields that a bus does not pass on: unknown ones, or a sender.
    pub fn has_foreign_fields(&self) -> bool {
        self.header.has_foreign_fields
    }

    /// Where the array of header fields ends, before the padding.
    pub(crate) fn fields_end(&self) -> usize {
        self.header.fields_end as usize
    }

    #[inline]
    #[expect(
        unsafe_code,
        reason = "all texts of a message are validated once, when it arrives"
    )]
    fn text(&self, span: Span) -> Option<&str> {
        if span.start == 0 {
            return None;
        }
        let start = span.start as usize;
        let text = &self.bytes[start..start + span.length as usize];
        // SAFETY: all texts of a header, which are names, a path and a signature, were found to be ASCII when the message was
        // parsed, and its bytes cannot have changed since.
        Some(unsafe { core::str::from_utf8_unchecked(text) })
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Message");
        debug
            .field("type", &self.message_type())
            .field("serial", &self.serial().get());
        if self.flags() != Flags::NONE {
            debug.field("flags", &self.flags());
        }
        if let Some(serial) = self.reply_serial() {
            debug.field("reply_serial", &serial.get());
        }
        let texts = [
            ("sender", self.sender()),
            ("destination", self.destination()),
            ("path", self.path()),
            ("interface", self.interface()),
            ("member", self.member()),
            ("error_name", self.error_name()),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                debug.field(name, &text);
            }
        }
        if self.unix_fds() > 0 {
            debug.field("unix_fds", &self.unix_fds());
        }
        debug
            .field("signature", &self.signature())
            .field("body_length", &self.body_bytes().len())
            .finish()
    }
}

const LOCAL_PATH: &[u8] = b"/org/freedesktop/DBus/Local";
const LOCAL_INTERFACE: &[u8] = b"org.freedesktop.DBus.Local";

/// Whom the call that these bytes begin with goes to, and which method it calls. `None`: its header is not valid.
pub(crate) fn called(bytes: &[u8], lengths: Lengths) -> Option<(Option<&str>, &str)> {
    let header = header_alone(bytes, lengths)?;
    Some((text_at(bytes, header.destination), text_at(bytes, header.member)?))
}

/// What the message that these bytes begin with is for, how many file descriptors it has, and whom it goes to. `None`: its
/// header is not valid.
pub(crate) fn addressed(bytes: &[u8], lengths: Lengths) -> Option<(MessageType, u32, Option<&str>)> {
    let header = header_alone(bytes, lengths)?;
    Some((
        header.message_type,
        header.unix_fds,
        text_at(bytes, header.destination),
    ))
}

fn header_alone(bytes: &[u8], lengths: Lengths) -> Option<Header> {
    let header = match lengths.endian {
        Endian::Little => parse_header::<false, false>(bytes, lengths),
        Endian::Big => parse_header::<true, false>(bytes, lengths),
    };
    header.ok()
}

fn text_at(bytes: &[u8], span: Span) -> Option<&str> {
    let start = span.start as usize;
    let text = bytes.get(start..start + span.length as usize)?;
    core::str::from_utf8(text).ok().filter(|_| start > 0)
}

/// The header, and if it is `WHOLE` the body against its signature; otherwise there may be nothing of the body yet.
pub(crate) fn parse_header<const BIG: bool, const WHOLE: bool>(
    bytes: &[u8],
    lengths: Lengths,
) -> Result<Header, MessageError> {
    let fields_end = lengths.fields_end();
    let mut header = begin_header::<BIG>(&bytes[..FIXED_HEADER], lengths)?;
    let mut seen = 0;
    let fields = &bytes[..fields_end];
    parse_fields::<BIG>(fields, FIXED_HEADER, fields_end, &mut header, &mut seen)?;
    finish_header(bytes, lengths, &header, seen)?;
    if WHOLE {
        validate_body::<BIG>(bytes, lengths.header(), header.signature(bytes))?;
    }
    Ok(header)
}

/// The fixed part.
#[inline(always)]
pub(crate) fn begin_header<const BIG: bool>(fixed: &[u8], lengths: Lengths) -> Result<Header, MessageError> {
    let mut input = Validator::<BIG>::new(fixed, 8);
    Ok(Header {
        endian: lengths.endian,
        message_type: MessageType::from_code(fixed[1]).ok_or(MessageError::TypeZero)?,
        flags: Flags::from_bits(fixed[2]),
        has_foreign_fields: false,
        serial: Serial::new(input.u32()?).ok_or(MessageError::SerialZero { at: 8 })?,
        reply_serial: None,
        unix_fds: 0,
        fields_end: lengths.fields_end() as u32,
        body_start: lengths.header() as u32,
        path: Span::default(),
        interface: Span::default(),
        member: Span::default(),
        error_name: Span::default(),
        destination: Span::default(),
        sender: Span::default(),
        signature: Span::default(),
    })
}

/// What is behind the fields, and whether all are there that must be.
#[inline(always)]
pub(crate) fn finish_header(
    bytes: &[u8],
    lengths: Lengths,
    header: &Header,
    seen: u16,
) -> Result<(), MessageError> {
    let body_start = lengths.header();
    if let Some(at) = (lengths.fields_end()..body_start).find(|&at| bytes[at] != 0) {
        return Err(MessageError::Padding { at });
    }
    check_required(header, seen)?;
    if lengths.body > 0 && header.signature(bytes).is_empty() {
        return Err(MessageError::BodyWithoutSignature { at: body_start });
    }
    Ok(())
}

/// The fields that begin at `at`, as far as `until`; where the last of them ends.
#[inline(never)]
pub(crate) fn parse_fields<const BIG: bool>(
    fields: &[u8],
    at: usize,
    until: usize,
    header: &mut Header,
    seen: &mut u16,
) -> Result<usize, MessageError> {
    let mut input = Validator::<BIG>::new(fields, at);
    while input.position() < until {
        parse_field(&mut input, header, seen)?;
    }
    Ok(input.position())
}

/// One `(yv)` of the array of header fields; the padding before it included.
#[inline]
fn parse_field<const BIG: bool>(
    input: &mut Validator<'_, BIG>,
    header: &mut Header,
    seen: &mut u16,
) -> Result<(), MessageError> {
    input.align(8)?;
    let at = input.position();
    // The code, and the signature of the variant: one character for each field that is known.
    let code = input.byte()?;
    if code == 0 {
        return Err(MessageError::FieldZero { at });
    }
    if code > field::UNIX_FDS {
        header.note_foreign_field();
        // The array of fields and the struct that the field is are containers too.
        return input.variant(2);
    }
    let expected = match code {
        field::PATH => b'o',
        field::REPLY_SERIAL | field::UNIX_FDS => b'u',
        field::SIGNATURE => b'g',
        _ => b's',
    };
    if input.take(3)? != [1, expected, 0] {
        return Err(MessageError::FieldType { at, field: code });
    }
    if *seen & 1 << code != 0 {
        return Err(MessageError::FieldTwice { at, field: code });
    }
    *seen |= 1 << code;
    match code {
        field::REPLY_SERIAL => {
            let at = input.position();
            header.reply_serial = Some(Serial::new(input.u32()?).ok_or(MessageError::SerialZero { at })?);
        }
        field::UNIX_FDS => header.unix_fds = input.u32()?,
        field::SIGNATURE => {
            let (at, text) = input.signature_text()?;
            signature::check(text).map_err(|cause| MessageError::Signature { at, cause })?;
            header.signature = span(at, text);
        }
        _ => {
            let (at, text) = input.text()?;
            parse_name(header, code, at, text)?;
        }
    }
    Ok(())
}

fn span(at: usize, text: &[u8]) -> Span {
    Span {
        start: at as u32,
        length: text.len() as u32,
    }
}

#[inline]
fn parse_name(header: &mut Header, code: u8, at: usize, text: &[u8]) -> Result<(), MessageError> {
    let (what, slot, checked) = match code {
        field::PATH => {
            if text == LOCAL_PATH {
                return Err(MessageError::ReservedLocal { at, what: "path" });
            }
            ("PATH", &mut header.path, names::check_object_path(text))
        }
        field::INTERFACE => {
            if text == LOCAL_INTERFACE {
                return Err(MessageError::ReservedLocal {
                    at,
                    what: "interface",
                });
            }
            ("INTERFACE", &mut header.interface, names::check_interface(text))
        }
        field::MEMBER => ("MEMBER", &mut header.member, names::check_member(text)),
        field::ERROR_NAME => ("ERROR_NAME", &mut header.error_name, names::check_interface(text)),
        field::DESTINATION => (
            "DESTINATION",
            &mut header.destination,
            names::check_bus_name(text),
        ),
        _ => {
            header.has_foreign_fields = true;
            ("SENDER", &mut header.sender, names::check_bus_name(text))
        }
    };
    *slot = span(at, text);
    checked.map_err(|cause| MessageError::Name { at, what, cause })
}

/// The table of "Header Fields": what each type of message must have.
fn check_required(header: &Header, seen: u16) -> Result<(), MessageError> {
    let required: &[(u8, &'static str)] = match header.message_type {
        MessageType::MethodCall => &[(field::PATH, "PATH"), (field::MEMBER, "MEMBER")],
        MessageType::MethodReturn => &[(field::REPLY_SERIAL, "REPLY_SERIAL")],
        MessageType::Error => &[
            (field::ERROR_NAME, "ERROR_NAME"),
            (field::REPLY_SERIAL, "REPLY_SERIAL"),
        ],
        MessageType::Signal => &[
            (field::PATH, "PATH"),
            (field::INTERFACE, "INTERFACE"),
            (field::MEMBER, "MEMBER"),
        ],
        MessageType::Unknown(_) => &[],
    };
    match required.iter().find(|(code, _)| seen & 1 << code == 0) {
        Some(&(_, field)) => Err(MessageError::FieldMissing { field }),
        None => Ok(()),
    }
}
