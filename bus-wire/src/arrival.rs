//! A message that is parsed while it arrives.

use alloc::boxed::Box;

use bytes::Bytes;

use crate::body::progress::Progress;
use crate::body::validate::Validator;
use crate::endian::Endian;
use crate::error::MessageError;
use crate::header::{Lengths, field};
use crate::limits::{FIXED_HEADER, LARGE_MESSAGE};
use crate::message::{self, Header, Message};

/// Most bytes that a header field takes of those which are parsed in one go, with the padding before it.
const SHORT_FIELD: usize = 512;
/// The longest text of those.
const SHORT_TEXT: usize = 255;

/// How far a message was parsed of which the beginning has arrived.
///
/// It comes to the verdict of [`Message::parse`] with the same error, whatever the pieces are. That a message is wrong is
/// said when all of it is there, so that how far it was parsed before makes no difference to anybody.
///
/// ```text
/// Header ──the header is there──> Body ──all values are there──> Done
/// Header, Fields, Body ──something is wrong──> Refused
/// Header ──it is a long one──> Fields ──it is there──> Body
/// ```
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    lengths: Lengths,
    /// Whether the header is long.
    is_long: bool,
    stage: Stage,
    /// How many bytes were looked at. What cannot be parsed without those behind them is kept small.
    seen: usize,
}

#[derive(Debug, Clone)]
enum Stage {
    Header,
    Fields(Box<Fields>),
    Body(Header, Box<Progress>),
    Done(Header),
    Refused(MessageError),
}

/// A long header, as far as it was parsed.
#[derive(Debug, Clone)]
struct Fields {
    header: Header,
    /// The fields that are there: a bit for each code.
    codes: u16,
    /// Where the next field begins.
    at: usize,
    long: Option<LongField>,
    /// The value of an unknown field: a variant of any type.
    unknown: Progress,
}

/// A field that begins there, and is parsed as it arrives.
#[derive(Debug, Clone)]
enum LongField {
    /// One with an unknown code.
    Unknown,
    /// The path, and where its text begins.
    Path(Progress, usize),
}

impl Arrival {
    /// Nothing was parsed yet.
    pub(crate) fn new(lengths: Lengths) -> Self {
        Self {
            lengths,
            is_long: lengths.header() > LARGE_MESSAGE,
            stage: Stage::Header,
            seen: 0,
        }
    }

    /// How many bytes were looked at.
    pub(crate) fn seen(&self) -> usize {
        self.seen
    }

    /// Bytes of the whole message.
    pub(crate) fn total(&self) -> usize {
        self.lengths.total()
    }

    /// Goes on with what has arrived: at least as many bytes as the last time, and at most the message.
    pub(crate) fn advance(&mut self, have: &[u8]) {
        self.seen = have.len();
        let result = match self.lengths.endian {
            Endian::Little => self.go_on::<false>(have),
            Endian::Big => self.go_on::<true>(have),
        };
        if let Err(error) = result {
            self.stage = Stage::Refused(error);
        }
    }

    /// All has arrived.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub(crate) fn finish(mut self, bytes: Bytes) -> Result<Message, MessageError> {
        self.advance(&bytes);
        match self.stage {
            Stage::Done(header) => Ok(Message::validated(bytes, header)),
            Stage::Refused(error) => Err(error),
            Stage::Header | Stage::Fields(_) | Stage::Body(..) => Err(MessageError::Length {
                length: self.lengths.total(),
                given: bytes.len(),
            }),
        }
    }

    fn go_on<const BIG: bool>(&mut self, have: &[u8]) -> Result<(), MessageError> {
        if let Stage::Header = self.stage
            && have.len() >= FIXED_HEADER
        {
            if self.is_long {
                self.stage = Stage::Fields(Box::new(Fields {
                    header: message::begin_header::<BIG>(&have[..FIXED_HEADER], self.lengths)?,
                    codes: 0,
                    at: FIXED_HEADER,
                    long: None,
                    // The array of fields and the struct that the field is are containers too.
                    unknown: Progress::new(b"v", FIXED_HEADER, 2, self.lengths.fields_end()),
                }));
            } else if have.len() >= self.lengths.header() {
                let header = message::parse_header::<BIG, false>(have, self.lengths)?;
                self.stage = self.body(header, have);
            }
        }
        if let Stage::Fields(fields) = &mut self.stage
            && let Some(header) = fields.advance::<BIG>(have, self.lengths)?
        {
            self.stage = self.body(header, have);
        }
        if let Stage::Body(header, progress) = &mut self.stage
            && let Some(at) = progress.advance::<BIG>(have)?
        {
            if at < self.lengths.total() {
                return Err(MessageError::TrailingBytes { at });
            }
            if have.len() == self.lengths.total() {
                self.stage = Stage::Done(*header);
            }
        }
        Ok(())
    }

    fn body(&self, header: Header, have: &[u8]) -> Stage {
        let signature = header.signature(have);
        let progress = Progress::new(signature, self.lengths.header(), 0, self.lengths.total());
        Stage::Body(header, Box::new(progress))
    }
}

impl Fields {
    /// Goes on as far as the message has arrived; the header, once it is there.
    fn advance<const BIG: bool>(
        &mut self,
        have: &[u8],
        lengths: Lengths,
    ) -> Result<Option<Header>, MessageError> {
        let end = lengths.fields_end();
        let fields = &have[..have.len().min(end)];
        while self.at < end {
            if self.long.is_none() && !self.begin_field::<BIG>(fields, end)? {
                return Ok(None);
            }
            let end_of_long = match &mut self.long {
                None => continue,
                Some(LongField::Unknown) => self.unknown.advance::<BIG>(fields)?,
                Some(LongField::Path(path, _)) => advance_path::<BIG>(path, fields)?,
            };
            let Some(at) = end_of_long else {
                return Ok(None);
            };
            if let Some(LongField::Path(_, start)) = self.long.take() {
                self.header.note_path(start, at - 1 - start);
            }
            self.at = at;
        }
        if have.len() < lengths.header() {
            return Ok(None);
        }
        message::finish_header(have, lengths, &self.header, self.codes)?;
        Ok(Some(self.header))
    }

    /// Parses a field, or begins with one that may be long. False: more bytes are needed.
    fn begin_field<const BIG: bool>(&mut self, fields: &[u8], end: usize) -> Result<bool, MessageError> {
        let is_all = fields.len() == end;
        if !is_all && fields.len() < self.at + SHORT_FIELD {
            return Ok(false);
        }
        let mut input = Validator::<BIG>::new(fields, self.at);
        input.align(8)?;
        let begin = input.position();
        let code = input.byte()?;
        if code > field::UNIX_FDS {
            self.header.note_foreign_field();
            self.unknown.restart(begin + 1);
            self.long = Some(LongField::Unknown);
            return Ok(true);
        }
        if let Some((type_code, length)) = long_text::<BIG>(input) {
            let start = begin + 8;
            if (code, type_code) == (field::PATH, b'o') && self.codes & 1 << code == 0 {
                self.codes |= 1 << code;
                self.long = Some(LongField::Path(Progress::new(b"o", begin + 4, 2, end), start));
                return Ok(true);
            }
            // It is too long for the name that it is; but what is wrong behind it comes first.
            if start + length <= end && fields.len() < (start + length + 1).min(end) {
                return Ok(false);
            }
        }
        let one = self.at + 1;
        self.at = message::parse_fields::<BIG>(fields, self.at, one, &mut self.header, &mut self.codes)?;
        Ok(true)
    }
}

/// The type and length of a field's text, behind its code, where it is long.
fn long_text<const BIG: bool>(mut input: Validator<'_, BIG>) -> Option<(u8, usize)> {
    let Ok(&[1, type_code @ (b's' | b'o'), 0]) = input.take(3) else {
        return None;
    };
    let length = input.u32().ok()? as usize;
    (length > SHORT_TEXT).then_some((type_code, length))
}

/// Validates a long path as far as it has arrived; returns where it ends, once it is there.
fn advance_path<const BIG: bool>(path: &mut Progress, fields: &[u8]) -> Result<Option<usize>, MessageError> {
    path.advance::<BIG>(fields).map_err(|mut error| {
        if let MessageError::Name { what, .. } = &mut error {
            *what = "PATH";
        }
        error
    })
}

#[cfg(test)]
mod tests;
