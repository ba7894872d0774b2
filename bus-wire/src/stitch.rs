//! The header under which a bus forwards a message.

use alloc::vec;
use alloc::vec::Vec;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::body::validate::field_end;
use crate::error::MessageError;
use crate::header::{Lengths, field};
use crate::limits::{FIXED_HEADER, MAX_ARRAY, MAX_FOREIGN_HEADER, MAX_MESSAGE};
use crate::message::Message;

/// Appends to `out` the header (fixed part, fields, padding) under which `message` is forwarded from `sender`: without
/// unknown fields and any sender that was there, with `sender` as its last field. The body is not appended.
///
/// The specification, "Header Fields: SENDER", wants the field filled in by the bus.
///
/// # Errors
/// The header fields would be longer than 64 MiB, or the message longer than 128 MiB; `out` is as before then.
pub fn stitch_header(message: &Message, sender: &str, out: &mut Vec<u8>) -> Result<(), MessageError> {
    let start = out.len();
    let bytes = message.bytes();
    let fields_end = message.fields_end();
    out.reserve(fields_end + sender.len() + 32);
    if message.has_foreign_fields() {
        out.extend_from_slice(&bytes[..FIXED_HEADER]);
        copy_own_fields(message, start, out);
    } else {
        out.extend_from_slice(&bytes[..fields_end]);
    }
    push_sender(message, sender, start, out);
    let fields = out.len() - start - FIXED_HEADER;
    if let Err(error) = check_lengths(message, fields) {
        out.truncate(start);
        return Err(error);
    }
    out[start + 12..start + 16].copy_from_slice(&message.endian().u32_bytes(fields as u32));
    pad(out, start);
    Ok(())
}

/// The same for a header that may be long: `out` gets the fixed part, what is behind it is returned, and shares the
/// message's memory where nothing has to be left out. So it costs the same, however long it is and however many it goes to.
///
/// # Errors
/// As above; and the header has fields that are not passed on and is longer than
/// [`MAX_FOREIGN_HEADER`](crate::limits::MAX_FOREIGN_HEADER).
pub fn stitch_long_header(
    message: &Message,
    sender: &str,
    out: &mut Vec<u8>,
) -> Result<SmallVec<[Bytes; 2]>, MessageError> {
    let bytes = message.bytes();
    let fields_end = message.fields_end();
    let mut rest = SmallVec::new();
    if message.has_foreign_fields() {
        if fields_end > MAX_FOREIGN_HEADER {
            return Err(MessageError::ForeignHeaderTooLong {
                length: fields_end,
                limit: MAX_FOREIGN_HEADER,
            });
        }
        let mut header = Vec::new();
        stitch_header(message, sender, &mut header)?;
        out.extend_from_slice(&header[..FIXED_HEADER]);
        rest.push(Bytes::from(header).slice(FIXED_HEADER..));
        return Ok(rest);
    }
    // As much padding as if the fields stood before it.
    let mut end = vec![0; fields_end % 8];
    push_sender(message, sender, 0, &mut end);
    let end_start = fields_end % 8;
    let fields = fields_end - FIXED_HEADER + end.len() - end_start;
    check_lengths(message, fields)?;
    pad(&mut end, 0);
    out.extend_from_slice(&bytes[..12]);
    out.extend_from_slice(&message.endian().u32_bytes(fields as u32));
    rest.push(bytes.slice(FIXED_HEADER..fields_end));
    rest.push(Bytes::from(end).slice(end_start..));
    Ok(rest)
}

/// Appends the field with the sender.
#[inline(always)]
fn push_sender(message: &Message, sender: &str, start: usize, out: &mut Vec<u8>) {
    pad(out, start);
    out.extend_from_slice(&[field::SENDER, 1, b's', 0]);
    out.extend_from_slice(&message.endian().u32_bytes(sender.len() as u32));
    out.extend_from_slice(sender.as_bytes());
    out.push(0);
}

/// Whether a message with so many bytes of fields may be.
#[inline(always)]
fn check_lengths(message: &Message, fields: usize) -> Result<(), MessageError> {
    let lengths = Lengths {
        endian: message.endian(),
        fields,
        body: message.body_bytes().len(),
    };
    if lengths.fields > MAX_ARRAY {
        return Err(MessageError::ArrayTooLong {
            at: 12,
            length: lengths.fields,
        });
    }
    if lengths.total() > MAX_MESSAGE {
        return Err(MessageError::TooLong {
            length: lengths.total(),
            limit: MAX_MESSAGE,
        });
    }
    Ok(())
}

/// Zeros up to the next multiple of 8 from `start`.
#[inline]
fn pad(out: &mut Vec<u8>, start: usize) {
    let padding = (out.len() - start).wrapping_neg() % 8;
    out.extend_from_slice(&[0; 8][..padding]);
}

/// Each field begins at a multiple of 8, so its bytes are the same wherever it stands.
fn copy_own_fields(message: &Message, start: usize, out: &mut Vec<u8>) {
    let fields = &message.bytes()[..message.fields_end()];
    let mut at = FIXED_HEADER;
    while at < fields.len() {
        let end = field_end(fields, at, message.endian());
        let code = fields[at];
        if code <= field::UNIX_FDS && code != field::SENDER {
            pad(out, start);
            out.extend_from_slice(&fields[at..end]);
        }
        at = end.next_multiple_of(8);
    }
}
