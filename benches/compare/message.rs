//! The few messages that the load consists of, encoded by hand: what measures shares no code with what it measures.

/// A message type of the specification ("Header Fields", table of message types).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Call = 1,
    Return = 2,
    Error = 3,
    Signal = 4,
}

/// One argument of a body.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument<'a> {
    Text(&'a str),
    Number(u32),
    /// An array of so many zero bytes.
    Bytes(usize),
}

/// What a message is made of; absent fields are empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) kind: Kind,
    pub(crate) path: &'a str,
    pub(crate) interface: &'a str,
    pub(crate) member: &'a str,
    pub(crate) destination: &'a str,
    pub(crate) reply_serial: u32,
    /// How many descriptors come with it.
    pub(crate) fds: u32,
    pub(crate) body: &'a [Argument<'a>],
}

impl<'a> Parts<'a> {
    pub(crate) const fn new(kind: Kind) -> Parts<'a> {
        Parts {
            kind,
            path: "",
            interface: "",
            member: "",
            destination: "",
            reply_serial: 0,
            fds: 0,
            body: &[],
        }
    }

    /// A call of the bus itself.
    pub(crate) const fn driver(interface: &'a str, member: &'a str, body: &'a [Argument<'a>]) -> Parts<'a> {
        Parts {
            kind: Kind::Call,
            path: "/org/freedesktop/DBus",
            interface,
            member,
            destination: "org.freedesktop.DBus",
            reply_serial: 0,
            fds: 0,
            body,
        }
    }

    /// The bytes of the message, little-endian, and where in them the reply serial stands.
    pub(crate) fn encode(&self, serial: u32) -> Template {
        let (signature, body) = encode_body(self.body);
        let mut out = vec![b'l', self.kind as u8, 0, 1];
        put_u32(&mut out, body.len() as u32);
        put_u32(&mut out, serial);
        put_u32(&mut out, 0);
        let fields_at = out.len();
        let mut reply_serial_at = None;
        let texts = [
            (1, b'o', self.path),
            (2, b's', self.interface),
            (3, b's', self.member),
            (6, b's', self.destination),
        ];
        for (code, kind, text) in texts.into_iter().filter(|(_, _, text)| !text.is_empty()) {
            pad(&mut out, 8);
            out.extend_from_slice(&[code, 1, kind, 0]);
            put_text(&mut out, text);
        }
        if matches!(self.kind, Kind::Return | Kind::Error) {
            pad(&mut out, 8);
            out.extend_from_slice(&[5, 1, b'u', 0]);
            reply_serial_at = Some(out.len());
            put_u32(&mut out, self.reply_serial);
        }
        if !signature.is_empty() {
            pad(&mut out, 8);
            out.extend_from_slice(&[8, 1, b'g', 0, signature.len() as u8]);
            out.extend_from_slice(signature.as_bytes());
            out.push(0);
        }
        if self.fds > 0 {
            pad(&mut out, 8);
            out.extend_from_slice(&[9, 1, b'u', 0]);
            put_u32(&mut out, self.fds);
        }
        let fields = (out.len() - fields_at) as u32;
        out[12..16].copy_from_slice(&fields.to_le_bytes());
        pad(&mut out, 8);
        out.extend_from_slice(&body);
        Template {
            bytes: out,
            reply_serial_at,
        }
    }
}

/// An encoded message whose serials are filled in each time it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    reply_serial_at: Option<usize>,
}

impl Template {
    pub(crate) fn set_serial(&mut self, serial: u32) -> &mut Template {
        self.bytes[8..12].copy_from_slice(&serial.to_le_bytes());
        self
    }

    pub(crate) fn set_reply_serial(&mut self, serial: u32) -> &mut Template {
        if let Some(at) = self.reply_serial_at {
            self.bytes[at..at + 4].copy_from_slice(&serial.to_le_bytes());
        }
        self
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What the load looks at in a message that arrives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) kind: u8,
    pub(crate) serial: u32,
    /// Length of the header with its padding, in bytes.
    pub(crate) header: usize,
    /// Length of the whole message, in bytes.
    pub(crate) total: usize,
}

impl Head {
    /// Reads the fixed part; `None` while fewer than its 16 bytes are there. Only little-endian, as all here send it.
    pub(crate) fn read(bytes: &[u8]) -> Option<Head> {
        let fixed = bytes.first_chunk::<16>()?;
        let word = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let header = (16 + word(12) as usize).next_multiple_of(8);
        Some(Head {
            kind: fixed[1],
            serial: word(8),
            header,
            total: header + word(4) as usize,
        })
    }
}

/// The header field `code` of type string or object path, if the message has it.
pub(crate) fn text_field(message: &[u8], code: u8) -> Option<&str> {
    let end = 16 + u32::from_le_bytes(message.get(12..16)?.try_into().ok()?) as usize;
    let mut at = 16usize;
    while at < end {
        at = at.next_multiple_of(8);
        let kind = *message.get(at + 2)?;
        let value = at + 4;
        let length = u32::from_le_bytes(message.get(value..value + 4)?.try_into().ok()?) as usize;
        at = match kind {
            b's' | b'o' if *message.get(at)? == code => {
                return std::str::from_utf8(message.get(value + 4..value + 4 + length)?).ok();
            }
            b's' | b'o' => value + 4 + length + 1,
            b'g' => value + usize::from(*message.get(value)?) + 2,
            _ => value + 4,
        };
    }
    None
}

fn encode_body(arguments: &[Argument<'_>]) -> (String, Vec<u8>) {
    let (mut signature, mut body) = (String::new(), Vec::new());
    for argument in arguments {
        pad(&mut body, 4);
        match *argument {
            Argument::Text(text) => {
                signature.push('s');
                put_text(&mut body, text);
            }
            Argument::Number(number) => {
                signature.push('u');
                put_u32(&mut body, number);
            }
            Argument::Bytes(length) => {
                signature.push_str("ay");
                put_u32(&mut body, length as u32);
                body.resize(body.len() + length, 0);
            }
        }
    }
    (signature, body)
}

fn pad(out: &mut Vec<u8>, alignment: usize) {
    out.resize(out.len().next_multiple_of(alignment), 0);
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_u32(out, text.len() as u32);
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}
