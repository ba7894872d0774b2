//! Writing a body value by value.

#[cfg(feature = "serde")]
mod declared;

use alloc::string::String;
use alloc::vec::Vec;

use crate::endian::Endian;
use crate::error::MessageError;
use crate::limits::{MAX_ARRAY, MAX_DEPTH};
use crate::names;
use crate::signature::{self, alignment};

/// Writes values one after the other, and notes their signature.
///
/// The first fault (a value of another type than its container declares, a string with a nul byte, a limit) is kept,
/// and reported by [`finish`](Self::finish); what is written after it does not matter.
#[derive(Debug)]
pub struct BodyWriter {
    bytes: Vec<u8>,
    endian: Endian,
    /// Of the values written so far, outside of arrays and variants.
    signature: Vec<u8>,
    /// What the arrays and variants that are open must contain; the frames are ranges of it.
    declared: Vec<u8>,
    frames: Vec<Frame>,
    /// How many containers are open.
    depth: u32,
    fault: Option<MessageError>,
}

/// The inside of an array or a variant.
#[derive(Debug, Clone, Copy)]
struct Frame {
    start: usize,
    next: usize,
    end: usize,
    /// An array: after the last type comes the first again.
    repeats: bool,
    /// Length of `declared` when it is closed.
    restore: usize,
}

/// An array that is open.
#[derive(Debug)]
#[must_use]
pub(crate) struct OpenArray {
    /// Where its length stands.
    length_at: usize,
    start: usize,
}

impl BodyWriter {
    /// An empty body.
    pub fn new(endian: Endian) -> Self {
        Self {
            bytes: Vec::new(),
            endian,
            signature: Vec::new(),
            declared: Vec::new(),
            frames: Vec::new(),
            depth: 0,
            fault: None,
        }
    }

    /// The byte order it is written in.
    pub fn endian(&self) -> Endian {
        self.endian
    }

    /// The signature and the bytes.
    ///
    /// # Errors
    /// The first fault of all that was written.
    pub fn finish(mut self) -> Result<(String, Vec<u8>), MessageError> {
        // Only a body of a declared signature has a frame left.
        if self.frames.iter().any(|frame| frame.next != frame.end) {
            self.fail(MessageError::Incomplete);
        }
        if self.fault.is_none()
            && let Err(cause) = signature::check(&self.signature)
        {
            self.fail(MessageError::Signature { at: 0, cause });
        }
        match self.fault {
            Some(fault) => Err(fault),
            // A checked signature is ASCII.
            None => Ok((String::from_utf8_lossy(&self.signature).into_owned(), self.bytes)),
        }
    }

    /// A BYTE.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.code(b'y');
        self.bytes.push(value);
        self
    }

    /// A BOOLEAN.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.code(b'b');
        self.put_u32(value.into());
        self
    }

    /// An INT16.
    pub fn i16(&mut self, value: i16) -> &mut Self {
        self.fixed(b'n', self.endian.u16_bytes(value.cast_unsigned()))
    }

    /// A UINT16.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.fixed(b'q', self.endian.u16_bytes(value))
    }

    /// An INT32.
    pub fn i32(&mut self, value: i32) -> &mut Self {
        self.fixed(b'i', self.endian.u32_bytes(value.cast_unsigned()))
    }

    /// A UINT32.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.fixed(b'u', self.endian.u32_bytes(value))
    }

    /// An INT64.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.fixed(b'x', self.endian.u64_bytes(value.cast_unsigned()))
    }

    /// A UINT64.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.fixed(b't', self.endian.u64_bytes(value))
    }

    /// A DOUBLE.
    pub fn f64(&mut self, value: f64) -> &mut Self {
        self.fixed(b'd', self.endian.u64_bytes(value.to_bits()))
    }

    /// A UNIX_FD: an index into the file descriptors that go with the message.
    pub fn unix_fd_index(&mut self, index: u32) -> &mut Self {
        self.fixed(b'h', self.endian.u32_bytes(index))
    }

    /// A STRING; it must not contain a nul byte.
    pub fn str(&mut self, text: &str) -> &mut Self {
        self.code(b's');
        if text.as_bytes().contains(&0) {
            self.fail(MessageError::Nul { at: self.bytes.len() });
        }
        self.put_text(text);
        self
    }

    /// An OBJECT_PATH; it must be valid.
    pub fn object_path(&mut self, path: &str) -> &mut Self {
        self.code(b'o');
        if let Err(cause) = names::check_object_path(path.as_bytes()) {
            self.fail(MessageError::Name {
                at: self.bytes.len(),
                what: "an object path",
                cause,
            });
        }
        self.put_text(path);
        self
    }

    /// A SIGNATURE; it must be valid.
    pub fn signature(&mut self, signature: &str) -> &mut Self {
        self.code(b'g');
        if let Err(cause) = signature::check(signature.as_bytes()) {
            self.fail(MessageError::Signature {
                at: self.bytes.len(),
                cause,
            });
        }
        self.put_signature(signature.as_bytes());
        self
    }

    /// An array of BYTE.
    pub fn byte_slice(&mut self, bytes: &[u8]) -> &mut Self {
        self.array("y", |writer| {
            writer.bytes.extend_from_slice(bytes);
        })
    }

    /// An array of STRING.
    pub fn str_array<'s>(&mut self, texts: impl IntoIterator<Item = &'s str>) -> &mut Self {
        self.array("s", |writer| {
            for text in texts {
                writer.str(text);
            }
        })
    }

    /// An array: `elements` writes any number of values of the type `element` (`{...}` for dict entries).
    pub fn array(&mut self, element: &str, elements: impl FnOnce(&mut Self)) -> &mut Self {
        let array = self.begin_array(element.as_bytes());
        elements(self);
        self.end_array(&array);
        self
    }

    /// A STRUCT: `fields` writes its values.
    pub fn structure(&mut self, fields: impl FnOnce(&mut Self)) -> &mut Self {
        self.begin_struct(b'(');
        fields(self);
        self.end_struct(b')');
        self
    }

    /// A DICT_ENTRY, the element of an array: `entry` writes its key and its value.
    pub fn dict_entry(&mut self, entry: impl FnOnce(&mut Self)) -> &mut Self {
        self.begin_struct(b'{');
        entry(self);
        self.end_struct(b'}');
        self
    }

    /// A VARIANT: `value` writes one value of the type `signature`.
    pub fn variant(&mut self, signature: &str, value: impl FnOnce(&mut Self)) -> &mut Self {
        self.begin_variant(signature.as_bytes());
        value(self);
        self.end_variant();
        self
    }

    pub(crate) fn begin_array(&mut self, element: &[u8]) -> OpenArray {
        self.code(b'a');
        let restore = self.declared.len();
        let start = match self.frames.last() {
            // What it contains is declared already, as part of what it is in.
            Some(frame) => {
                let start = frame.next;
                self.codes(element);
                start
            }
            None => {
                self.signature.extend_from_slice(element);
                self.declared.extend_from_slice(element);
                restore
            }
        };
        let end = (start + element.len()).min(self.declared.len());
        self.push_frame(start.min(end), end, true, restore);
        self.put_u32(0);
        let length_at = self.bytes.len() - 4;
        self.align(alignment(element.first().copied().unwrap_or(b'y')));
        self.deeper();
        OpenArray {
            length_at,
            start: self.bytes.len(),
        }
    }

    pub(crate) fn end_array(&mut self, array: &OpenArray) {
        self.depth -= 1;
        let length = self.bytes.len() - array.start;
        if length > MAX_ARRAY {
            self.fail(MessageError::ArrayTooLong {
                at: array.length_at,
                length,
            });
        }
        let length = self.endian.u32_bytes(length as u32);
        self.bytes[array.length_at..array.length_at + 4].copy_from_slice(&length);
        if let Some(frame) = self.frames.pop() {
            if frame.next != frame.start && frame.next != frame.end {
                self.fail(MessageError::Incomplete);
            }
            self.declared.truncate(frame.restore);
        }
    }

    pub(crate) fn begin_struct(&mut self, open: u8) {
        self.code(open);
        self.align(8);
        self.deeper();
    }

    pub(crate) fn end_struct(&mut self, close: u8) {
        self.depth -= 1;
        // After the last type of an array's element comes the first only for the next element.
        self.code(close);
    }

    pub(crate) fn begin_variant(&mut self, signature: &[u8]) {
        self.code(b'v');
        if let Err(cause) = signature::check_single(signature) {
            self.fail(MessageError::Signature {
                at: self.bytes.len(),
                cause,
            });
        }
        self.put_signature(signature);
        let restore = self.declared.len();
        self.declared.extend_from_slice(signature);
        self.push_frame(restore, self.declared.len(), false, restore);
        self.deeper();
    }

    pub(crate) fn end_variant(&mut self) {
        self.depth -= 1;
        if let Some(frame) = self.frames.pop() {
            if frame.next != frame.end {
                self.fail(MessageError::Incomplete);
            }
            self.declared.truncate(frame.restore);
        }
    }

    pub(crate) fn fail(&mut self, fault: MessageError) {
        self.fault.get_or_insert(fault);
    }

    fn push_frame(&mut self, start: usize, end: usize, repeats: bool, restore: usize) {
        self.frames.push(Frame {
            start,
            next: start,
            end,
            repeats,
            restore,
        });
    }

    fn deeper(&mut self) {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            self.fail(MessageError::TooDeep { at: self.bytes.len() });
        }
    }

    /// Notes one type code, or compares it with what is declared.
    #[inline]
    fn code(&mut self, code: u8) {
        let Some(frame) = self.frames.last_mut() else {
            self.signature.push(code);
            return;
        };
        if frame.repeats && frame.next == frame.end {
            frame.next = frame.start;
        }
        let expected = if frame.next < frame.end {
            self.declared.get(frame.next).copied()
        } else {
            None
        };
        if expected == Some(code) {
            frame.next += 1;
        } else {
            let expected = expected.map_or(' ', char::from);
            self.fail(MessageError::WrongType {
                expected,
                found: code.into(),
            });
        }
    }

    /// The types of an array's elements; unlike values, they do not begin an element again.
    fn codes(&mut self, codes: &[u8]) {
        let Some(frame) = self.frames.last_mut() else {
            return;
        };
        let expected = self.declared[..frame.end].get(frame.next..).unwrap_or_default();
        if expected.starts_with(codes) && !codes.is_empty() {
            frame.next += codes.len();
        } else {
            let expected = expected.first().map_or(' ', |&code| char::from(code));
            let found = codes.first().map_or(' ', |&code| char::from(code));
            self.fail(MessageError::WrongType { expected, found });
        }
    }

    #[inline]
    fn fixed<const N: usize>(&mut self, code: u8, bytes: [u8; N]) -> &mut Self {
        self.code(code);
        self.align(N);
        self.bytes.extend_from_slice(&bytes);
        self
    }

    #[inline]
    fn align(&mut self, alignment: usize) {
        let padding = self.bytes.len().wrapping_neg() & (alignment - 1);
        self.bytes.extend_from_slice(&[0; 8][..padding]);
    }

    #[inline]
    fn put_u32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend_from_slice(&self.endian.u32_bytes(value));
    }

    #[inline]
    fn put_text(&mut self, text: &str) {
        // A longer text than the 32 bits can say is a longer message than is allowed, which is found at the end.
        self.put_u32(text.len() as u32);
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    #[inline]
    fn put_signature(&mut self, signature: &[u8]) {
        self.bytes.push(signature.len() as u8);
        self.bytes.extend_from_slice(signature);
        self.bytes.push(0);
    }
}
