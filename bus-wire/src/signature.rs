//! The types of values, written as text (specification, "Type System" and "Valid Signatures").

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;

use crate::limits::{MAX_ARRAY_DEPTH, MAX_SIGNATURE, MAX_STRUCT_DEPTH};

/// Why a text is not a valid signature. `at` is an index into the signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// More than 255 bytes.
    #[error("it is {length} bytes long, more than {MAX_SIGNATURE} (specification, Valid Signatures)")]
    TooLong {
        /// In bytes.
        length: usize,
    },
    /// A byte that is no type code, or not one that can stand there.
    #[error("byte {code:#04x} at position {at} begins no type (specification, Type System)")]
    Code {
        /// Which.
        code: u8,
        /// Where.
        at: usize,
    },
    /// It ends within an array, a struct or a dict entry.
    #[error("it ends within a container (specification, Valid Signatures)")]
    Unfinished,
    /// `()`.
    #[error("there is an empty struct at position {at} (specification, Container types)")]
    EmptyStruct {
        /// Where it ends.
        at: usize,
    },
    /// A dict entry whose key is a container.
    #[error(
        "the dict entry at position {at} has a key that is not of a basic type (specification, Container types)"
    )]
    DictKey {
        /// Where the key is.
        at: usize,
    },
    /// A dict entry without exactly two types.
    #[error(
        "the dict entry that ends at position {at} has not exactly two types (specification, Container types)"
    )]
    DictLength {
        /// Where it should end.
        at: usize,
    },
    /// More than 32 arrays, or more than 32 structs, within each other.
    #[error(
        "at position {at}, arrays or structs are nested more than 32 deep (specification, Valid Signatures)"
    )]
    TooDeep {
        /// Where.
        at: usize,
    },
    /// Not exactly one complete type where one is needed.
    #[error("it is not exactly one complete type (specification, Type System)")]
    NotSingle,
}

/// A valid signature: any number of complete types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature<'a>(&'a str);

impl<'a> Signature<'a> {
    /// Checks the text.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn new(text: &'a str) -> Result<Self, SignatureError> {
        check(text.as_bytes()).map(|()| Self(text))
    }

    /// Checks that the text is exactly one complete type.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn single(text: &'a str) -> Result<Self, SignatureError> {
        check_single(text.as_bytes()).map(|()| Self(text))
    }

    /// Of a text that was checked before.
    #[inline]
    pub(crate) const fn checked(text: &'a str) -> Self {
        Self(text)
    }

    /// The text.
    pub const fn as_str(self) -> &'a str {
        self.0
    }

    /// A copy that owns its text; it is not checked again.
    pub fn into_owned(self) -> OwnedSignature {
        OwnedSignature(self.0.into())
    }

    /// Its complete types, one after the other.
    pub fn types(self) -> impl Iterator<Item = Signature<'a>> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (first, others) = rest.split_at(type_end(rest.as_bytes(), 0));
            rest = others;
            Some(Signature(first))
        })
    }
}

/// A [`Signature`] that owns its text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "String", try_from = "String"))]
pub struct OwnedSignature(Box<str>);

impl OwnedSignature {
    /// Checks the text.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn new(text: impl Into<Box<str>>) -> Result<Self, SignatureError> {
        let text = text.into();
        Signature::new(&text)?;
        Ok(Self(text))
    }

    /// Borrowed; it is not checked again.
    pub fn as_borrowed(&self) -> Signature<'_> {
        Signature(&self.0)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OwnedSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Signature<'_>> for OwnedSignature {
    fn from(signature: Signature<'_>) -> Self {
        signature.into_owned()
    }
}

impl TryFrom<String> for OwnedSignature {
    type Error = SignatureError;

    fn try_from(text: String) -> Result<Self, SignatureError> {
        Self::new(text)
    }
}

impl From<OwnedSignature> for String {
    fn from(signature: OwnedSignature) -> Self {
        signature.0.into()
    }
}

impl fmt::Display for Signature<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Any number of complete types.
#[inline]
pub(crate) fn check(text: &[u8]) -> Result<(), SignatureError> {
    if text.len() > MAX_SIGNATURE {
        return Err(SignatureError::TooLong { length: text.len() });
    }
    let mut at = 0;
    while at < text.len() {
        at = complete_type(text, at, 0, 0)?;
    }
    Ok(())
}

/// Exactly one complete type.
#[inline]
pub(crate) fn check_single(text: &[u8]) -> Result<(), SignatureError> {
    // Most variants hold a basic type.
    if let [code] = text
        && is_basic(*code)
    {
        return Ok(());
    }
    if text.is_empty() {
        return Err(SignatureError::NotSingle);
    }
    if text.len() > MAX_SIGNATURE {
        return Err(SignatureError::TooLong { length: text.len() });
    }
    if complete_type(text, 0, 0, 0)? == text.len() {
        Ok(())
    } else {
        Err(SignatureError::NotSingle)
    }
}

/// Where the complete type that begins at `at` ends. Each call within goes one array or struct deeper, of which there
/// are at most 64.
fn complete_type(text: &[u8], at: usize, arrays: u32, structs: u32) -> Result<usize, SignatureError> {
    let Some(&code) = text.get(at) else {
        return Err(SignatureError::Unfinished);
    };
    match code {
        b'v' => Ok(at + 1),
        code if is_basic(code) => Ok(at + 1),
        b'a' if arrays == MAX_ARRAY_DEPTH => Err(SignatureError::TooDeep { at }),
        b'a' if text.get(at + 1) == Some(&b'{') => dict_entry(text, at + 1, arrays + 1, structs),
        b'a' => complete_type(text, at + 1, arrays + 1, structs),
        b'(' if structs == MAX_STRUCT_DEPTH => Err(SignatureError::TooDeep { at }),
        b'(' => {
            let mut end = at + 1;
            if text.get(end) == Some(&b')') {
                return Err(SignatureError::EmptyStruct { at: end });
            }
            while text.get(end) != Some(&b')') {
                end = complete_type(text, end, arrays, structs + 1)?;
            }
            Ok(end + 1)
        }
        code => Err(SignatureError::Code { code, at }),
    }
}

fn dict_entry(text: &[u8], at: usize, arrays: u32, structs: u32) -> Result<usize, SignatureError> {
    match text.get(at + 1) {
        None => return Err(SignatureError::Unfinished),
        Some(b'}') => return Err(SignatureError::DictLength { at: at + 1 }),
        Some(&code) if is_basic(code) => {}
        Some(_) => return Err(SignatureError::DictKey { at: at + 1 }),
    }
    if text.get(at + 2) == Some(&b'}') {
        return Err(SignatureError::DictLength { at: at + 2 });
    }
    let end = complete_type(text, at + 2, arrays, structs)?;
    match text.get(end) {
        Some(b'}') => Ok(end + 1),
        Some(_) => Err(SignatureError::DictLength { at: end }),
        None => Err(SignatureError::Unfinished),
    }
}

/// A type that is not a container (a variant is one).
#[inline]
pub(crate) const fn is_basic(code: u8) -> bool {
    matches!(
        code,
        b'y' | b'b' | b'n' | b'q' | b'i' | b'u' | b'x' | b't' | b'd' | b'h' | b's' | b'o' | b'g'
    )
}

/// The size of a type whose every value is valid and has the same length; `None` for all others.
#[inline]
pub(crate) const fn fixed_size(code: u8) -> Option<usize> {
    match code {
        b'y' => Some(1),
        b'n' | b'q' => Some(2),
        b'i' | b'u' | b'h' => Some(4),
        b'x' | b't' | b'd' => Some(8),
        _ => None,
    }
}

/// The alignment of a type (specification, "Marshaling", summary table).
#[inline]
pub(crate) const fn alignment(code: u8) -> usize {
    match code {
        b'n' | b'q' => 2,
        b'b' | b'i' | b'u' | b'h' | b's' | b'o' | b'a' => 4,
        b'x' | b't' | b'd' | b'(' | b'{' => 8,
        _ => 1,
    }
}

/// Where the complete type (or dict entry) that begins at `at` ends, in a signature that is known to be valid.
#[inline]
pub(crate) fn type_end(text: &[u8], mut at: usize) -> usize {
    let mut open = 0u32;
    while let Some(&code) = text.get(at) {
        at += 1;
        match code {
            b'a' => continue,
            b'(' | b'{' => open += 1,
            b')' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open == 0 {
            break;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid() {
        let deep = format!("{}{}y{}", "a".repeat(32), "(".repeat(32), ")".repeat(32));
        let dicts = format!("{}y{}", "a{s".repeat(32), "}".repeat(32));
        let long = "y".repeat(255);
        for text in [
            "",
            "y",
            "ybnqiuxtdhsogv",
            "as",
            "a{sv}",
            "(y)",
            "(a(yv)a{s(ii)})",
            "aay",
            "a{oa{sa{sv}}}",
            "a{vv}",
        ] {
            assert_eq!(Signature::new(text).is_ok(), text != "a{vv}", "{text}");
        }
        for text in [&deep, &dicts, &long] {
            assert!(Signature::new(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn invalid() {
        use SignatureError::{
            Code, DictKey, DictLength, EmptyStruct, NotSingle, TooDeep, TooLong, Unfinished,
        };
        let arrays = format!("{}y", "a".repeat(33));
        let structs = format!("{}y{}", "(".repeat(33), ")".repeat(33));
        let long = "y".repeat(256);
        let cases: &[(&str, SignatureError)] = &[
            ("a", Unfinished),
            ("aa", Unfinished),
            ("(", Unfinished),
            ("(y", Unfinished),
            ("a{", Unfinished),
            ("a{s", Unfinished),
            ("a{sv", Unfinished),
            ("()", EmptyStruct { at: 1 }),
            ("(())", EmptyStruct { at: 2 }),
            ("a{}", DictLength { at: 2 }),
            ("a{s}", DictLength { at: 3 }),
            ("a{svv}", DictLength { at: 4 }),
            ("a{vs}", DictKey { at: 2 }),
            ("a{(y)s}", DictKey { at: 2 }),
            ("a{ass}", DictKey { at: 2 }),
            ("{sv}", Code { code: b'{', at: 0 }),
            ("(a{sv)}", DictLength { at: 5 }),
            ("(y}", Code { code: b'}', at: 2 }),
            (")", Code { code: b')', at: 0 }),
            ("a)", Code { code: b')', at: 1 }),
            ("a}", Code { code: b'}', at: 1 }),
            ("r", Code { code: b'r', at: 0 }),
            ("e", Code { code: b'e', at: 0 }),
            ("m", Code { code: b'm', at: 0 }),
            ("y y", Code { code: b' ', at: 1 }),
            ("y\0", Code { code: 0, at: 1 }),
            (&arrays, TooDeep { at: 32 }),
            (&structs, TooDeep { at: 32 }),
            (&long, TooLong { length: 256 }),
        ];
        for (text, error) in cases {
            assert_eq!(Signature::new(text), Err(*error), "{text}");
            assert!(Signature::single(text).is_err(), "{text}");
        }
        assert_eq!(Signature::single("yy"), Err(NotSingle));
        assert_eq!(Signature::single(""), Err(NotSingle));
    }

    #[test]
    fn types_one_by_one() {
        let types: Vec<_> = Signature::new("ya{s(ii)}aa(v)v")
            .unwrap()
            .types()
            .map(Signature::as_str)
            .collect();
        assert_eq!(types, ["y", "a{s(ii)}", "aa(v)", "v"]);
    }
}
