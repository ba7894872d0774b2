//! Whether bytes are values of the types that a signature says (specification, "Marshaling").

use super::progress::Progress;
use crate::endian::Endian;
use crate::error::MessageError;
use crate::limits::{MAX_ARRAY, MAX_DEPTH};
use crate::names;
use crate::signature::{self, SignatureError, alignment, fixed_size, type_end};

/// The longest signature, of a body or a variant, whose values are validated by recursion: with a longer one, few bytes
/// could make much work of it.
const SHORT_SIGNATURE: usize = 16;
/// The longest body that is validated by recursion, which has less to prepare than [`Progress`].
const SHORT_BODY: usize = 8 * 1024;

/// Checks that the body, from `start` to the end of the message, is exactly the values of `signature`, which is valid.
#[inline]
pub(crate) fn validate_body<const BIG: bool>(
    message: &[u8],
    start: usize,
    signature: &[u8],
) -> Result<(), MessageError> {
    if signature.len() > SHORT_SIGNATURE || message.len() - start > SHORT_BODY {
        let end = by_steps::<BIG>(signature, message, start, 0)?;
        return check_end(message, end);
    }
    validate_by_recursion::<BIG, false>(message, start, signature)
}

/// The same by recursion; `ALONE`: including all variants.
#[inline]
pub(crate) fn validate_by_recursion<const BIG: bool, const ALONE: bool>(
    message: &[u8],
    start: usize,
    signature: &[u8],
) -> Result<(), MessageError> {
    let mut input = Recursive::<BIG, ALONE>::new(message, start);
    let mut at = 0;
    while at < signature.len() {
        at = input.value(signature, at, 0)?;
    }
    check_end(message, input.position())
}

#[inline]
fn check_end(message: &[u8], at: usize) -> Result<(), MessageError> {
    if at < message.len() {
        return Err(MessageError::TrailingBytes { at });
    }
    Ok(())
}

/// Validates values that begin at `at`, within so many containers, and end at the end of `bytes` at the latest; returns
/// where they end.
#[inline(never)]
fn by_steps<const BIG: bool>(
    signature: &[u8],
    bytes: &[u8],
    at: usize,
    depth: u32,
) -> Result<usize, MessageError> {
    let end = Progress::new(signature, at, depth, bytes.len()).advance::<BIG>(bytes)?;
    end.ok_or(MessageError::Truncated { at })
}

/// Where the header field that begins at `at` ends; the header is valid.
pub(crate) fn field_end(fields: &[u8], at: usize, endian: Endian) -> usize {
    fn end<const BIG: bool>(fields: &[u8], at: usize) -> Result<usize, MessageError> {
        let mut input = Validator::<BIG>::new(fields, at);
        input.byte()?;
        input.variant(2)?;
        Ok(input.position())
    }
    let end = match endian {
        Endian::Little => end::<false>(fields, at),
        Endian::Big => end::<true>(fields, at),
    };
    end.unwrap_or(fields.len())
}

/// A cursor over a message, all of which is there, that stops at the first fault.
pub(crate) type Validator<'a, const BIG: bool> = Recursive<'a, BIG, false>;

/// A [`Validator`]; if it is `ALONE`, it leaves no variant to [`Progress`], which comes to the same verdict.
///
/// `bytes` always begins with the message, so that positions are offsets for errors and for alignment; its end is that
/// of the innermost array.
pub(crate) struct Recursive<'a, const BIG: bool, const ALONE: bool> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a, const BIG: bool, const ALONE: bool> Recursive<'a, BIG, ALONE> {
    #[inline]
    pub(crate) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    #[inline]
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    #[inline]
    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], MessageError> {
        let taken = self.bytes[self.at..]
            .get(..length)
            .ok_or(MessageError::Truncated { at: self.at })?;
        self.at += length;
        Ok(taken)
    }

    #[inline]
    pub(crate) fn byte(&mut self) -> Result<u8, MessageError> {
        Ok(self.take(1)?[0])
    }

    #[inline]
    pub(crate) fn align(&mut self, alignment: usize) -> Result<(), MessageError> {
        let from = self.at;
        for (index, &byte) in self
            .take(from.wrapping_neg() & (alignment - 1))?
            .iter()
            .enumerate()
        {
            if byte != 0 {
                return Err(MessageError::Padding { at: from + index });
            }
        }
        Ok(())
    }

    /// Aligned.
    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, MessageError> {
        self.align(4)?;
        let at = self.at;
        let bytes = self
            .take(4)?
            .first_chunk()
            .ok_or(MessageError::Truncated { at })?;
        Ok(if BIG {
            u32::from_be_bytes(*bytes)
        } else {
            u32::from_le_bytes(*bytes)
        })
    }

    /// The text of a string or object path, and where it begins; nothing is known of its bytes.
    #[inline]
    pub(crate) fn text(&mut self) -> Result<(usize, &'a [u8]), MessageError> {
        let length = self.u32()? as usize;
        self.terminated(length)
    }

    /// The text of a signature, and where it begins; nothing is known of its bytes.
    #[inline]
    pub(crate) fn signature_text(&mut self) -> Result<(usize, &'a [u8]), MessageError> {
        let length = self.byte()? as usize;
        self.terminated(length)
    }

    #[inline]
    fn terminated(&mut self, length: usize) -> Result<(usize, &'a [u8]), MessageError> {
        let at = self.at;
        let text = self.take(length)?;
        match self.byte()? {
            0 => Ok((at, text)),
            _ => Err(MessageError::NotTerminated { at: self.at - 1 }),
        }
    }

    #[inline]
    fn string(&mut self) -> Result<(), MessageError> {
        let (at, text) = self.text()?;
        if simdutf8::basic::from_utf8(text).is_err() {
            return Err(MessageError::Utf8 { at });
        }
        // `contains` of bytes is memchr; the search for the place is only for the error.
        if text.contains(&0) {
            let nul = text.iter().position(|&byte| byte == 0).unwrap_or(0);
            return Err(MessageError::Nul { at: at + nul });
        }
        Ok(())
    }

    fn boolean(&mut self) -> Result<(), MessageError> {
        match self.u32()? {
            0 | 1 => Ok(()),
            value => Err(MessageError::Boolean {
                at: self.at - 4,
                value,
            }),
        }
    }

    /// The value of the complete type at `at` of the signature; returns where that type ends. `depth` is how many
    /// containers are around the value. Each call within goes one deeper, so there are at most [`MAX_DEPTH`].
    pub(crate) fn value(&mut self, signature: &[u8], at: usize, depth: u32) -> Result<usize, MessageError> {
        let code = signature[at];
        if let Some(size) = fixed_size(code) {
            self.align(size)?;
            self.take(size)?;
            return Ok(at + 1);
        }
        match code {
            b's' => self.string()?,
            b'o' => {
                let (at, text) = self.text()?;
                names::check_object_path(text).map_err(|cause| MessageError::Name {
                    at,
                    what: "an object path",
                    cause,
                })?;
            }
            b'g' => {
                let (at, text) = self.signature_text()?;
                signature::check(text).map_err(|cause| MessageError::Signature { at, cause })?;
            }
            b'b' => self.boolean()?,
            b'v' => self.variant(depth)?,
            b'a' => return self.array(signature, at, depth),
            _ => return self.structure(signature, at, depth),
        }
        Ok(at + 1)
    }

    /// A struct or dict entry.
    fn structure(&mut self, signature: &[u8], at: usize, depth: u32) -> Result<usize, MessageError> {
        self.deeper(depth)?;
        self.align(8)?;
        let mut at = at + 1;
        while !matches!(signature[at], b')' | b'}') {
            at = self.value(signature, at, depth + 1)?;
        }
        Ok(at + 1)
    }

    fn array(&mut self, signature: &[u8], at: usize, depth: u32) -> Result<usize, MessageError> {
        self.deeper(depth)?;
        let length = self.u32()? as usize;
        if length > MAX_ARRAY {
            return Err(MessageError::ArrayTooLong {
                at: self.at - 4,
                length,
            });
        }
        let element = at + 1;
        let code = signature[element];
        // There also before an array without elements, and not part of its length.
        self.align(alignment(code))?;
        if let Some(size) = fixed_size(code) {
            if !length.is_multiple_of(size) {
                return Err(MessageError::Truncated { at: self.at + length });
            }
            self.take(length)?;
            return Ok(element + 1);
        }
        let start = self.at;
        self.take(length)?;
        let outer = self.bytes;
        self.bytes = &outer[..self.at];
        self.at = start;
        match code {
            b's' => {
                while self.at < start + length {
                    self.string()?;
                }
            }
            _ => {
                while self.at < start + length {
                    self.value(signature, element, depth + 1)?;
                }
            }
        }
        self.bytes = outer;
        Ok(type_end(signature, element))
    }

    /// A variant: a signature of one complete type, and its value.
    pub(crate) fn variant(&mut self, depth: u32) -> Result<(), MessageError> {
        self.deeper(depth)?;
        let (at, inner) = self.signature_text()?;
        signature::check_single(inner).map_err(|cause| {
            if cause == SignatureError::NotSingle {
                MessageError::VariantSignature { at }
            } else {
                MessageError::Signature { at, cause }
            }
        })?;
        if !ALONE && inner.len() > SHORT_SIGNATURE {
            self.at = by_steps::<BIG>(inner, self.bytes, self.at, depth + 1)?;
        } else {
            self.value(inner, 0, depth + 1)?;
        }
        Ok(())
    }

    #[inline]
    fn deeper(&self, depth: u32) -> Result<(), MessageError> {
        if depth < MAX_DEPTH {
            Ok(())
        } else {
            Err(MessageError::TooDeep { at: self.at })
        }
    }
}
