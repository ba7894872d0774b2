//! From Rust types to bytes.

mod std_types;

use alloc::vec::Vec;

use crate::body::validate::validate_body;
use crate::endian::Endian;
use crate::error::MessageError;
use crate::fd::FdIndex;
use crate::limits::{MAX_ARRAY, MAX_DEPTH, MAX_MESSAGE, MAX_SIGNATURE};
use crate::names::ObjectPath;
use crate::signature::{self, Signature};
use crate::ty::{Ty, Type, body_signature_of, signature_of};

/// A Rust value that can be written as its D-Bus type.
///
/// It can be derived: `#[derive(Type, Encode)]`, with the feature `derive`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be written into a D-Bus message",
    note = "it can be derived for your own types: `#[derive(Type, Encode)]`",
    note = "there is no null in D-Bus: an `Option` can only be a field of a dict struct"
)]
pub trait Encode: Type {
    /// Writes exactly one value of the type [`TY`](Type::TY). What is wrong with it is told by the encoder.
    fn encode(&self, encoder: &mut Encoder<'_>);

    /// Writes the elements of an array.
    #[doc(hidden)]
    fn encode_elements(elements: &[Self], encoder: &mut Encoder<'_>)
    where
        Self: Sized,
    {
        for element in elements {
            element.encode(encoder);
        }
    }
}

/// Appends the body that `value` is to `out`, and returns its signature: see
/// [`body_signature_of`](crate::body_signature_of). The body must begin at a multiple of 8 in its message; `out` may hold
/// anything before.
///
/// # Errors
/// A limit of the specification (array 64 MiB, message 128 MiB, 64 containers within each other), a string with a nul
/// byte, or what an [`Encode`] finds itself. `out` is as before then.
///
/// ```
/// # use bus_wire::{Endian, encode_body};
/// let mut body = Vec::new();
/// let signature = encode_body(&("a", 7u32), Endian::Little, &mut body)?;
/// assert_eq!(signature.as_str(), "su");
/// assert_eq!(body, b"\x01\0\0\0a\0\0\0\x07\0\0\0");
/// # Ok::<(), bus_wire::MessageError>(())
/// ```
pub fn encode_body<T: Encode + ?Sized>(
    value: &T,
    endian: Endian,
    out: &mut Vec<u8>,
) -> Result<Signature<'static>, MessageError> {
    let start = out.len();
    let mut encoder = Encoder::new(out, endian);
    // Arguments are not within a struct.
    encoder.left += u32::from(T::IS_ARGUMENTS);
    value.encode(&mut encoder);
    encoder.finish()?;
    let signature = body_signature_of::<T>();
    debug_assert_eq!(
        match endian {
            Endian::Little => validate_body::<false>(&out[start..], 0, signature.as_str().as_bytes()),
            Endian::Big => validate_body::<true>(&out[start..], 0, signature.as_str().as_bytes()),
        },
        Ok(()),
        "an Encode has not written the type that it says"
    );
    Ok(signature)
}

/// Writes values one after the other behind what a buffer holds.
///
/// Nothing is compared with a signature: whoever implements [`Encode`] keeps to the type. The first fault (a string with a
/// nul byte, a limit) is kept, and what is written after it does not matter.
#[derive(Debug)]
pub struct Encoder<'o> {
    out: &'o mut Vec<u8>,
    /// Where the body begins.
    start: usize,
    endian: Endian,
    /// How many containers deep it still may go.
    left: u32,
    fault: Option<MessageError>,
}

impl<'o> Encoder<'o> {
    pub(crate) fn new(out: &'o mut Vec<u8>, endian: Endian) -> Self {
        Self {
            start: out.len(),
            out,
            endian,
            left: MAX_DEPTH,
            fault: None,
        }
    }

    /// The first fault; then nothing has been written.
    pub(crate) fn finish(mut self) -> Result<(), MessageError> {
        let length = self.position();
        if length > MAX_MESSAGE {
            self.fail(MessageError::TooLong {
                length,
                limit: MAX_MESSAGE,
            });
        }
        match self.fault {
            None => Ok(()),
            Some(fault) => {
                self.out.truncate(self.start);
                Err(fault)
            }
        }
    }

    /// The byte order that it writes.
    pub fn endian(&self) -> Endian {
        self.endian
    }

    /// How many bytes of the body were written.
    pub fn position(&self) -> usize {
        self.out.len() - self.start
    }

    /// The value that is being written cannot be: the whole body fails with this error, unless there is an earlier one.
    #[cold]
    pub fn fail(&mut self, fault: MessageError) {
        self.fault.get_or_insert(fault);
    }

    /// A BYTE.
    #[inline]
    pub fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    /// A BOOLEAN.
    #[inline]
    pub fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    /// An INT16.
    #[inline]
    pub fn i16(&mut self, value: i16) {
        self.u16(value.cast_unsigned());
    }

    /// A UINT16.
    #[inline]
    pub fn u16(&mut self, value: u16) {
        self.fixed(self.endian.u16_bytes(value));
    }

    /// An INT32.
    #[inline]
    pub fn i32(&mut self, value: i32) {
        self.u32(value.cast_unsigned());
    }

    /// A UINT32.
    #[inline]
    pub fn u32(&mut self, value: u32) {
        self.fixed(self.endian.u32_bytes(value));
    }

    /// An INT64.
    #[inline]
    pub fn i64(&mut self, value: i64) {
        self.u64(value.cast_unsigned());
    }

    /// A UINT64.
    #[inline]
    pub fn u64(&mut self, value: u64) {
        self.fixed(self.endian.u64_bytes(value));
    }

    /// A DOUBLE.
    #[inline]
    pub fn f64(&mut self, value: f64) {
        self.u64(value.to_bits());
    }

    /// A UNIX_FD.
    #[inline]
    pub fn unix_fd(&mut self, index: FdIndex) {
        self.u32(index.0);
    }

    /// A STRING; it must not contain a nul byte.
    #[inline]
    pub fn str(&mut self, text: &str) {
        if text.as_bytes().contains(&0) {
            self.fail(MessageError::Nul { at: self.position() });
        }
        self.text(text);
    }

    /// An OBJECT_PATH.
    #[inline]
    pub fn object_path(&mut self, path: ObjectPath<'_>) {
        self.text(path.as_str());
    }

    /// A SIGNATURE.
    #[inline]
    pub fn signature(&mut self, signature: Signature<'_>) {
        self.signature_text(signature.as_str());
    }

    /// An array of BYTE.
    #[inline]
    pub fn byte_slice(&mut self, bytes: &[u8]) {
        self.array(&Ty::Byte, |encoder| encoder.raw(bytes));
    }

    /// An ARRAY of `element`, or of dict entries: `elements` writes any number of them.
    ///
    /// For dict entries, `element` is a struct: what matters is the alignment.
    #[inline]
    pub fn array(&mut self, element: &Ty, elements: impl FnOnce(&mut Self)) {
        self.aligned_array(element.alignment(), elements);
    }

    #[inline]
    pub(crate) fn aligned_array(&mut self, alignment: usize, elements: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length_at = self.out.len() - 4;
        self.align(alignment);
        let from = self.out.len();
        self.deeper(elements);
        let length = self.out.len() - from;
        if length > MAX_ARRAY {
            let at = length_at - self.start;
            self.fail(MessageError::ArrayTooLong { at, length });
        }
        let bytes = self.endian.u32_bytes(length as u32);
        self.out[length_at..length_at + 4].copy_from_slice(&bytes);
    }

    /// A STRUCT: `fields` writes its values.
    #[inline]
    pub fn structure(&mut self, fields: impl FnOnce(&mut Self)) {
        self.align(8);
        self.deeper(fields);
    }

    /// A DICT_ENTRY, the element of an array: `entry` writes its key and its value.
    #[inline]
    pub fn dict_entry(&mut self, entry: impl FnOnce(&mut Self)) {
        self.structure(entry);
    }

    /// A VARIANT that holds `value`.
    #[inline]
    pub fn variant<T: Encode + ?Sized>(&mut self, value: &T) {
        self.signature_text(signature_of::<T>().as_str());
        self.deeper(|encoder| value.encode(encoder));
    }

    /// A VARIANT: `signature` appends the type to a buffer, and `value` writes a value of it.
    pub(crate) fn dynamic_variant(
        &mut self,
        signature: impl FnOnce(&mut Vec<u8>),
        value: impl FnOnce(&mut Self),
    ) {
        let length_at = self.out.len();
        self.out.push(0);
        signature(self.out);
        let length = self.out.len() - length_at - 1;
        if let Err(cause) = signature::check_single(&self.out[length_at + 1..]) {
            let at = self.position() - length;
            self.fail(MessageError::Signature { at, cause });
        }
        debug_assert!(length <= MAX_SIGNATURE || self.fault.is_some());
        self.out[length_at] = length as u8;
        self.out.push(0);
        self.deeper(value);
    }

    #[inline]
    fn deeper(&mut self, inside: impl FnOnce(&mut Self)) {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                inside(self);
                self.left += 1;
            }
            None => self.fail(MessageError::TooDeep { at: self.position() }),
        }
    }

    /// Bytes that are values already, aligned and in the right order.
    #[inline]
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    #[inline]
    pub(crate) fn fixed<const N: usize>(&mut self, bytes: [u8; N]) {
        self.align(N);
        self.out.extend_from_slice(&bytes);
    }

    #[inline]
    fn align(&mut self, alignment: usize) {
        let padding = self.position().wrapping_neg() & (alignment - 1);
        if padding > 0 {
            self.out.extend_from_slice(&[0; 8][..padding]);
        }
    }

    #[inline]
    fn text(&mut self, text: &str) {
        // A longer text than the 32 bits can say is a longer message than is allowed, which is found at the end.
        self.u32(text.len() as u32);
        self.out.reserve(text.len() + 1);
        self.out.extend_from_slice(text.as_bytes());
        self.out.push(0);
    }

    #[inline]
    fn signature_text(&mut self, signature: &str) {
        self.out.reserve(signature.len() + 2);
        self.out.push(signature.len() as u8);
        self.out.extend_from_slice(signature.as_bytes());
        self.out.push(0);
    }
}
