//! Containers of values, which are of one type each.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Value, ValueError};
use crate::signature::{OwnedSignature, Signature, SignatureError};

/// An ARRAY: values of one type, which is neither BYTE (that is [`Value::Bytes`]) nor DICT_ENTRY (a [`Dict`]).
#[derive(Debug, Clone, PartialEq)]
pub struct Array(Box<ArrayParts>);

#[derive(Debug, Clone, PartialEq)]
struct ArrayParts {
    element: OwnedSignature,
    values: Vec<Value>,
}

/// An ARRAY of DICT_ENTRY: keys of one basic type with values of one type, in their order. A key may come twice, since the
/// specification does not forbid it.
#[derive(Debug, Clone, PartialEq)]
pub struct Dict(Box<DictParts>);

#[derive(Debug, Clone, PartialEq)]
struct DictParts {
    /// Of the entry, without its braces.
    entry: OwnedSignature,
    entries: Vec<(Value, Value)>,
}

/// A STRUCT: at least one value.
#[derive(Debug, Clone, PartialEq)]
pub struct Structure(Vec<Value>);

/// That all of `values` are of the type `expected`.
fn check_types<'v>(expected: &str, values: impl Iterator<Item = &'v Value>) -> Result<(), ValueError> {
    let mut found = Vec::new();
    for (index, value) in values.enumerate() {
        found.clear();
        value.push_signature(&mut found);
        if found != expected.as_bytes() {
            return Err(ValueError::Type {
                index,
                expected: expected.to_string(),
                found: String::from_utf8_lossy(&found).into_owned(),
            });
        }
    }
    Ok(())
}

/// That a container, whose signature `text` is, is a type.
fn check_container(text: &[u8]) -> Result<(), ValueError> {
    crate::signature::check_single(text).map_err(ValueError::Signature)
}

impl Array {
    /// Values of the type `element`.
    ///
    /// # Errors
    /// One of them is of another type, or an array of them is no type.
    pub fn new(element: Signature<'_>, values: Vec<Value>) -> Result<Self, ValueError> {
        let text = element.as_str();
        check_container(&[b"a", text.as_bytes()].concat())?;
        if text.starts_with('{') {
            return Err(SignatureError::NotSingle.into());
        }
        if text == "y" {
            return Err(ValueError::Bytes);
        }
        check_types(text, values.iter())?;
        Ok(Self::checked(element, values))
    }

    /// Of values that are known to be of that type.
    pub(super) fn checked(element: Signature<'_>, values: Vec<Value>) -> Self {
        Self(Box::new(ArrayParts {
            element: element.into_owned(),
            values,
        }))
    }

    /// The type of the values.
    pub fn element(&self) -> Signature<'_> {
        self.0.element.as_borrowed()
    }

    /// The values.
    pub fn values(&self) -> &[Value] {
        &self.0.values
    }

    /// The values, by value.
    pub fn into_values(self) -> Vec<Value> {
        self.0.values
    }
}

/// Of the type that the first of them has.
impl TryFrom<Vec<Value>> for Array {
    type Error = ValueError;

    fn try_from(values: Vec<Value>) -> Result<Self, ValueError> {
        let element = values.first().ok_or(ValueError::Empty)?.signature();
        Self::new(element.as_borrowed(), values)
    }
}

impl Dict {
    /// Entries whose keys are of the type `key`, and their values of the type `value`.
    ///
    /// # Errors
    /// A key or a value is of another type (its index is that of the entry), or a dict of them is no type.
    pub fn new(
        key: Signature<'_>,
        value: Signature<'_>,
        entries: Vec<(Value, Value)>,
    ) -> Result<Self, ValueError> {
        let entry = [key.as_str(), value.as_str()].concat();
        check_container(&[b"a{", entry.as_bytes(), b"}"].concat())?;
        check_types(key.as_str(), entries.iter().map(|(key, _)| key))?;
        check_types(value.as_str(), entries.iter().map(|(_, value)| value))?;
        Ok(Self::checked(Signature::checked(&entry), entries))
    }

    /// Of entries that are known to be of that type.
    pub(super) fn checked(entry: Signature<'_>, entries: Vec<(Value, Value)>) -> Self {
        Self(Box::new(DictParts {
            entry: entry.into_owned(),
            entries,
        }))
    }

    /// The type of the keys.
    pub fn key(&self) -> Signature<'_> {
        Signature::checked(self.types().0)
    }

    /// The type of the values.
    pub fn value(&self) -> Signature<'_> {
        Signature::checked(self.types().1)
    }

    fn types(&self) -> (&str, &str) {
        self.0.entry.as_str().split_at(1)
    }

    /// The entries.
    pub fn entries(&self) -> &[(Value, Value)] {
        &self.0.entries
    }

    /// The entries, by value.
    pub fn into_entries(self) -> Vec<(Value, Value)> {
        self.0.entries
    }

    /// The value of the last entry that has this text as its key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let mut entries = self.0.entries.iter().rev();
        entries
            .find(|(known, _)| known.as_str() == Some(key))
            .map(|(_, value)| value)
    }
}

impl Structure {
    /// A struct of these values.
    ///
    /// # Errors
    /// There is none, or a struct of them is no type.
    pub fn new(values: Vec<Value>) -> Result<Self, ValueError> {
        if values.is_empty() {
            return Err(ValueError::Empty);
        }
        let structure = Self(values);
        let mut signature = Vec::new();
        structure.push_signature(&mut signature);
        check_container(&signature)?;
        Ok(structure)
    }

    /// Of values that are known to be those of a struct.
    pub(super) fn checked(values: Vec<Value>) -> Self {
        Self(values)
    }

    /// The values.
    pub fn values(&self) -> &[Value] {
        &self.0
    }

    /// The values, by value.
    pub fn into_values(self) -> Vec<Value> {
        self.0
    }

    fn push_signature(&self, out: &mut Vec<u8>) {
        out.push(b'(');
        for value in &self.0 {
            value.push_signature(out);
        }
        out.push(b')');
    }
}

impl Value {
    /// Appends its type.
    pub(super) fn push_signature(&self, out: &mut Vec<u8>) {
        let code = match self {
            Self::Byte(_) => b'y',
            Self::Bool(_) => b'b',
            Self::I16(_) => b'n',
            Self::U16(_) => b'q',
            Self::I32(_) => b'i',
            Self::U32(_) => b'u',
            Self::I64(_) => b'x',
            Self::U64(_) => b't',
            Self::F64(_) => b'd',
            Self::Fd(_) => b'h',
            Self::Str(_) => b's',
            Self::Path(_) => b'o',
            Self::Signature(_) => b'g',
            Self::Variant(_) => b'v',
            Self::Bytes(_) => return out.extend_from_slice(b"ay"),
            Self::Array(array) => {
                out.push(b'a');
                return out.extend_from_slice(array.element().as_str().as_bytes());
            }
            Self::Dict(dict) => {
                out.extend_from_slice(b"a{");
                out.extend_from_slice(dict.0.entry.as_str().as_bytes());
                b'}'
            }
            Self::Struct(structure) => return structure.push_signature(out),
        };
        out.push(code);
    }
}
