//! Reading a body value by value.

mod array;

use alloc::borrow::Cow;
use alloc::string::String;

use crate::endian::Endian;
use crate::fixed::Fixed;
use crate::limits::MAX_DEPTH;
use crate::signature::{alignment, fixed_size, type_end};

pub use array::ArrayReader;

/// Why a value cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The next value is of another type.
    #[error(
        "byte {at} of the body: a value of type '{expected}' is asked for, but there is one of type '{found}'"
    )]
    Type {
        /// Offset into the body.
        at: usize,
        /// Type code that was asked for.
        expected: char,
        /// Type code that is there.
        found: char,
    },
    /// There is no further value: the body, array, struct or variant is at its end.
    #[error("byte {at} of the body: a value of type '{expected}' is asked for, but there is none left")]
    End {
        /// Offset into the body.
        at: usize,
        /// Type code that was asked for.
        expected: char,
    },
    /// The bytes are not what the signature says. Never so in the body of a [`Message`](crate::Message).
    #[error("byte {at} of the body: the bytes are not a valid value of their type")]
    Invalid {
        /// Offset into the body.
        at: usize,
    },
    /// A value that the type asked for cannot hold, or another fault that its `Deserialize` found.
    #[error("{0}")]
    Value(String),
}

/// A cursor over a body. Nothing is copied: strings and byte arrays are borrowed from the message.
///
/// A value can be read only as the type that the signature says. The cursor never leaves the bytes it was given,
/// whatever they are.
///
/// The body of a [`Message`](crate::Message) was validated, and no text in it is validated again. What this rests on: `at`
/// and `next` always are at the same value. They move together, and what sets one of them alone (the next element of an
/// array, the end of a variant) makes sure that it still has the cursor that it has lent.
#[derive(Debug, Clone)]
pub struct BodyReader<'a> {
    /// From the first byte of the body, so that positions are offsets for alignment.
    bytes: &'a [u8],
    at: usize,
    signature: &'a str,
    /// Position in the signature.
    next: usize,
    endian: Endian,
    origin: Origin,
    /// How many containers it is in.
    depth: u8,
}

/// What is known of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// They are values of the signature.
    Validated,
    /// Nothing.
    Unknown,
}

impl<'a> BodyReader<'a> {
    /// Reads `bytes`, which begin at a multiple of 8 in their message, as the values of `signature`.
    pub fn new(bytes: &'a [u8], signature: &'a str, endian: Endian) -> Self {
        // Positions in the signature are those of bytes; no type code is beyond ASCII.
        let signature = if signature.is_ascii() { signature } else { "" };
        Self {
            bytes,
            at: 0,
            signature,
            next: 0,
            endian,
            origin: Origin::Unknown,
            depth: 0,
        }
    }

    /// Reads the body of a message, all of which was validated.
    #[inline]
    pub(crate) fn validated(bytes: &'a [u8], signature: &'a str, endian: Endian) -> Self {
        Self {
            bytes,
            at: 0,
            signature,
            next: 0,
            endian,
            origin: Origin::Validated,
            depth: 0,
        }
    }

    /// Whether the bytes are known to be values of the signature.
    #[inline]
    pub(crate) fn is_validated(&self) -> bool {
        self.origin == Origin::Validated
    }

    /// The signature from the next value on, with what closes the structs that are open.
    #[inline]
    pub(crate) fn rest_of_signature(&self) -> &'a str {
        self.signature.get(self.next..).unwrap_or_default()
    }

    /// The byte order of the values.
    pub fn endian(&self) -> Endian {
        self.endian
    }

    /// The signature of the values that are left in this body, struct or variant.
    pub fn signature(&self) -> &'a str {
        let rest = &self.signature[self.next..];
        let mut end = 0;
        while end < rest.len() && !matches!(rest.as_bytes()[end], b')' | b'}') {
            end = type_end(rest.as_bytes(), end);
        }
        &rest[..end]
    }

    /// The signature of the next value; empty where there is none.
    pub fn peek_signature(&self) -> &'a str {
        match self.peek() {
            None => "",
            Some(_) => &self.signature[self.next..type_end(self.signature.as_bytes(), self.next)],
        }
    }

    /// The type code of the next value; `None` where there is none.
    pub fn peek(&self) -> Option<u8> {
        match self.signature.as_bytes().get(self.next) {
            None | Some(b')' | b'}') => None,
            Some(&code) => Some(code),
        }
    }

    /// Offset into the body of the next byte to be read.
    pub fn position(&self) -> usize {
        self.at
    }

    /// A BYTE.
    ///
    /// # Errors
    /// See [`ReadError`]; the same holds for all that follow.
    pub fn read_u8(&mut self) -> Result<u8, ReadError> {
        Ok(u8::from_ne_bytes(self.fixed(b'y')?))
    }

    /// A BOOLEAN.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_bool(&mut self) -> Result<bool, ReadError> {
        match self.endian.u32(self.fixed(b'b')?) {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(ReadError::Invalid { at: self.at - 4 }),
        }
    }

    /// An INT16.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_i16(&mut self) -> Result<i16, ReadError> {
        Ok(self.endian.u16(self.fixed(b'n')?).cast_signed())
    }

    /// A UINT16.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_u16(&mut self) -> Result<u16, ReadError> {
        Ok(self.endian.u16(self.fixed(b'q')?))
    }

    /// An INT32.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_i32(&mut self) -> Result<i32, ReadError> {
        Ok(self.endian.u32(self.fixed(b'i')?).cast_signed())
    }

    /// A UINT32.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_u32(&mut self) -> Result<u32, ReadError> {
        Ok(self.endian.u32(self.fixed(b'u')?))
    }

    /// An INT64.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_i64(&mut self) -> Result<i64, ReadError> {
        Ok(self.endian.u64(self.fixed(b'x')?).cast_signed())
    }

    /// A UINT64.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_u64(&mut self) -> Result<u64, ReadError> {
        Ok(self.endian.u64(self.fixed(b't')?))
    }

    /// A DOUBLE.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_f64(&mut self) -> Result<f64, ReadError> {
        Ok(f64::from_bits(self.endian.u64(self.fixed(b'd')?)))
    }

    /// A UNIX_FD: an index into the file descriptors that came with the message.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_unix_fd_index(&mut self) -> Result<u32, ReadError> {
        Ok(self.endian.u32(self.fixed(b'h')?))
    }

    /// A STRING.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_str(&mut self) -> Result<&'a str, ReadError> {
        self.expect(b's')?;
        self.string()
    }

    /// An OBJECT_PATH.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_object_path(&mut self) -> Result<&'a str, ReadError> {
        self.expect(b'o')?;
        self.string()
    }

    /// A SIGNATURE.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_signature(&mut self) -> Result<&'a str, ReadError> {
        self.expect(b'g')?;
        self.signature_text()
    }

    /// An array of BYTE, without a copy.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_byte_slice(&mut self) -> Result<&'a [u8], ReadError> {
        if let Some(b'a') = self.peek()
            && self.signature.as_bytes().get(self.next + 1) != Some(&b'y')
        {
            let found = self
                .signature
                .as_bytes()
                .get(self.next + 1)
                .map_or('a', |&code| char::from(code));
            return Err(ReadError::Type {
                at: self.at,
                expected: 'y',
                found,
            });
        }
        let elements = self.enter_array()?;
        Ok(elements.rest())
    }

    /// An array of numbers, all at once: borrowed from the message where they lie there as this machine has them, copied
    /// where they are in another byte order, or begin at an address that they may not have in memory (as they do in most
    /// messages that arrived behind another).
    ///
    /// # Errors
    /// See [`ReadError`].
    ///
    /// ```
    /// # use std::borrow::Cow;
    /// # use bus_wire::{BodyReader, Endian};
    /// let body = [0, 0, 0, 4, 0, 1, 0, 2];
    /// let numbers: Cow<'_, [u16]> = BodyReader::new(&body, "aq", Endian::Big).fixed_array()?;
    /// assert_eq!(*numbers, [1, 2]);
    /// # Ok::<(), bus_wire::ReadError>(())
    /// ```
    pub fn fixed_array<T: Fixed>(&mut self) -> Result<Cow<'a, [T]>, ReadError> {
        let elements = self.enter_array()?;
        let code = elements.element_signature().bytes().next();
        let expected = T::TY.code();
        if code != Some(expected) {
            return Err(ReadError::Type {
                at: self.at,
                expected: expected.into(),
                found: code.map_or(' ', char::from),
            });
        }
        let bytes = elements.rest();
        if !bytes.len().is_multiple_of(size_of::<T>()) {
            return Err(ReadError::Invalid { at: self.at });
        }
        Ok(T::array(bytes, self.endian))
    }

    /// An array: `each` is called once for each element, to read it.
    ///
    /// # Errors
    /// See [`ReadError`]; also what `each` returns.
    pub fn read_array(
        &mut self,
        mut each: impl FnMut(&mut BodyReader<'a>) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let mut elements = self.enter_array()?;
        while let Some(element) = elements.next()? {
            each(element)?;
        }
        Ok(())
    }

    /// An array, whose elements are then read from what is returned; this cursor is after the array already.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn enter_array(&mut self) -> Result<ArrayReader<'a>, ReadError> {
        self.expect(b'a')?;
        let depth = self.deeper()?;
        let length = self.endian.u32(self.chunk(4)?) as usize;
        let element = self.next;
        let code = self.signature.as_bytes().get(element).copied().unwrap_or(b'y');
        self.align(alignment(code))?;
        let start = self.at;
        self.take(length)?;
        self.next = type_end(self.signature.as_bytes(), element);
        let reader = BodyReader {
            bytes: &self.bytes[..self.at],
            at: start,
            signature: &self.signature[element..self.next],
            next: 0,
            endian: self.endian,
            origin: self.origin,
            depth,
        };
        Ok(ArrayReader::new(reader))
    }

    /// A STRUCT: `fields` reads its values. What it leaves unread is skipped.
    ///
    /// # Errors
    /// See [`ReadError`]; also what `fields` returns.
    pub fn read_struct<T>(
        &mut self,
        fields: impl FnOnce(&mut BodyReader<'a>) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        self.enter(b'(')?;
        let value = fields(self)?;
        self.leave()?;
        Ok(value)
    }

    /// A DICT_ENTRY, the element of an array: `entry` reads its key and value. What it leaves unread is skipped.
    ///
    /// # Errors
    /// See [`ReadError`]; also what `entry` returns.
    pub fn read_dict_entry<T>(
        &mut self,
        entry: impl FnOnce(&mut BodyReader<'a>) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        self.enter(b'{')?;
        let value = entry(self)?;
        self.leave()?;
        Ok(value)
    }

    /// A VARIANT: `value` reads what it holds (its type is [`peek_signature`](Self::peek_signature)). What it leaves
    /// unread is skipped.
    ///
    /// # Errors
    /// See [`ReadError`]; also what `value` returns.
    pub fn read_variant<T>(
        &mut self,
        value: impl FnOnce(&mut BodyReader<'a>) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let outside = self.enter_variant_here()?;
        let result = value(self);
        self.leave_variant(&outside, result.is_ok())?;
        result
    }

    /// Into a variant; what is returned is needed to leave it.
    #[inline]
    pub(crate) fn enter_variant_here(&mut self) -> Result<Outside<'a>, ReadError> {
        self.expect(b'v')?;
        let depth = self.deeper()?;
        let inner = self.signature_text()?;
        let outside = Outside {
            bytes: self.bytes,
            inner,
            signature: self.signature,
            next: self.next,
            depth: self.depth,
        };
        self.depth = depth;
        self.signature = inner;
        self.next = 0;
        Ok(outside)
    }

    /// To the end of the variant that was entered. If its value was `read`, what was left unread is skipped; if not, nothing
    /// more can be read.
    #[inline]
    pub(crate) fn leave_variant(&mut self, outside: &Outside<'a>, read: bool) -> Result<(), ReadError> {
        let at = self.at;
        let is_same = is_same(self.bytes, outside.bytes) && is_same_text(self.signature, outside.inner);
        let is_read = read && is_same && self.skip_rest().is_ok() && self.next == self.signature.len();
        if !is_read {
            *self = Self::new(&[], "", self.endian);
            return if read {
                Err(ReadError::Invalid { at })
            } else {
                Ok(())
            };
        }
        self.signature = outside.signature;
        self.next = outside.next;
        self.depth = outside.depth;
        Ok(())
    }

    /// A VARIANT, whose value is then read from what is returned; this cursor is after the variant already.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn enter_variant(&mut self) -> Result<BodyReader<'a>, ReadError> {
        self.read_variant(|reader| Ok(reader.clone()))
    }

    /// Goes past the next value, of whatever type.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn skip(&mut self) -> Result<(), ReadError> {
        self.skip_within(MAX_DEPTH)
    }

    /// `depth` is how many containers deep it still may go.
    fn skip_within(&mut self, depth: u32) -> Result<(), ReadError> {
        let Some(code) = self.peek() else {
            return Err(ReadError::End {
                at: self.at,
                expected: '*',
            });
        };
        let depth = if matches!(code, b'(' | b'{' | b'v') {
            depth.checked_sub(1).ok_or(ReadError::Invalid { at: self.at })?
        } else {
            depth
        };
        match code {
            b's' | b'o' => {
                self.next += 1;
                self.string_bytes()?;
            }
            b'g' => {
                self.next += 1;
                self.signature_text()?;
            }
            b'a' => {
                self.enter_array()?;
            }
            b'(' | b'{' => {
                self.enter(code)?;
                while self.peek().is_some() {
                    self.skip_within(depth)?;
                }
                self.step_out();
            }
            b'v' => self.read_variant(|reader| reader.skip_within(depth))?,
            code => {
                self.next += 1;
                let size = fixed_size(code).unwrap_or(4);
                self.align(size)?;
                self.take(size)?;
            }
        }
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), ReadError> {
        while self.peek().is_some() {
            self.skip()?;
        }
        Ok(())
    }

    /// Into a struct or dict entry: `code` is its opening parenthesis.
    #[inline]
    pub(crate) fn enter(&mut self, code: u8) -> Result<(), ReadError> {
        self.expect(code)?;
        self.depth = self.deeper()?;
        self.align(8)
    }

    /// To the end of the struct or dict entry that was entered.
    #[inline]
    pub(crate) fn leave(&mut self) -> Result<(), ReadError> {
        self.skip_rest()?;
        self.step_out();
        Ok(())
    }

    /// Past the closing parenthesis of a struct or dict entry.
    #[inline]
    fn step_out(&mut self) {
        self.next = (self.next + 1).min(self.signature.len());
        self.depth = self.depth.saturating_sub(1);
    }

    /// How many containers are around what is in the container that comes next. Of bytes that were not validated there might
    /// be any number.
    #[inline]
    fn deeper(&self) -> Result<u8, ReadError> {
        if u32::from(self.depth) < MAX_DEPTH {
            Ok(self.depth + 1)
        } else {
            Err(ReadError::Invalid { at: self.at })
        }
    }

    #[inline]
    fn expect(&mut self, code: u8) -> Result<(), ReadError> {
        match self.peek() {
            Some(found) if found == code => {
                self.next += 1;
                Ok(())
            }
            Some(found) => Err(ReadError::Type {
                at: self.at,
                expected: code.into(),
                found: found.into(),
            }),
            None => Err(ReadError::End {
                at: self.at,
                expected: code.into(),
            }),
        }
    }

    #[inline]
    fn fixed<const N: usize>(&mut self, code: u8) -> Result<[u8; N], ReadError> {
        self.expect(code)?;
        self.chunk(N)
    }

    /// Aligned to its own size.
    #[inline]
    fn chunk<const N: usize>(&mut self, alignment: usize) -> Result<[u8; N], ReadError> {
        self.align(alignment)?;
        let at = self.at;
        self.take(N)?
            .first_chunk()
            .copied()
            .ok_or(ReadError::Invalid { at })
    }

    #[inline]
    fn align(&mut self, alignment: usize) -> Result<(), ReadError> {
        self.take(self.at.wrapping_neg() & (alignment - 1)).map(|_| ())
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], ReadError> {
        let taken = self.bytes[self.at..]
            .get(..length)
            .ok_or(ReadError::Invalid { at: self.at })?;
        self.at += length;
        Ok(taken)
    }

    fn string_bytes(&mut self) -> Result<&'a [u8], ReadError> {
        let length = self.endian.u32(self.chunk(4)?) as usize;
        let text = self.take(length)?;
        self.take(1)?;
        Ok(text)
    }

    #[inline]
    fn string(&mut self) -> Result<&'a str, ReadError> {
        let text = self.string_bytes()?;
        self.validated_text(text)
    }

    /// The text of a string, an object path or a signature.
    #[inline]
    #[expect(
        unsafe_code,
        reason = "all texts of a message are validated once, when it arrives"
    )]
    fn validated_text(&self, text: &'a [u8]) -> Result<&'a str, ReadError> {
        match self.origin {
            // SAFETY: it is the text of a value that the signature says to be here, in a body of which each such text was
            // found to be UTF-8 and which cannot have changed since.
            Origin::Validated => Ok(unsafe { core::str::from_utf8_unchecked(text) }),
            Origin::Unknown => {
                simdutf8::basic::from_utf8(text).map_err(|_| ReadError::Invalid { at: self.at })
            }
        }
    }

    #[inline]
    fn signature_text(&mut self) -> Result<&'a str, ReadError> {
        let length = self.take(1)?[0] as usize;
        let text = self.take(length)?;
        self.take(1)?;
        let text = self.validated_text(text)?;
        // Everything that follows indexes the signature by bytes.
        if self.origin == Origin::Validated || text.is_ascii() {
            Ok(text)
        } else {
            Err(ReadError::Invalid { at: self.at })
        }
    }
}

/// What a cursor is to be set to at the end of a variant.
#[derive(Debug)]
pub(crate) struct Outside<'a> {
    bytes: &'a [u8],
    /// The signature of the variant.
    inner: &'a str,
    signature: &'a str,
    next: usize,
    depth: u8,
}

#[inline]
fn is_same(one: &[u8], other: &[u8]) -> bool {
    core::ptr::eq(one, other)
}

#[inline]
fn is_same_text(one: &str, other: &str) -> bool {
    is_same(one.as_bytes(), other.as_bytes())
}
