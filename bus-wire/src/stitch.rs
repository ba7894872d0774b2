//! The header under which a bus forwards a message.

use crate::body::validate::field_end;
use crate::error::MessageError;
use crate::header::{Lengths, field};
use crate::limits::{FIXED_HEADER, MAX_ARRAY, MAX_MESSAGE};
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
    let endian = message.endian();
    pad(out, start);
    out.extend_from_slice(&[field::SENDER, 1, b's', 0]);
    out.extend_from_slice(&endian.u32_bytes(sender.len() as u32));
    out.extend_from_slice(sender.as_bytes());
    out.push(0);
    let lengths = Lengths {
        endian,
        fields: out.len() - start - FIXED_HEADER,
        body: message.body_bytes().len(),
    };
    if lengths.fields > MAX_ARRAY {
        out.truncate(start);
        return Err(MessageError::ArrayTooLong {
            at: 12,
            length: lengths.fields,
        });
    }
    if lengths.total() > MAX_MESSAGE {
        out.truncate(start);
        return Err(MessageError::TooLong {
            length: lengths.total(),
            limit: MAX_MESSAGE,
        });
    }
    out[start + 12..start + 16].copy_from_slice(&endian.u32_bytes(lengths.fields as u32));
    pad(out, start);
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
