//! A well-known name as a text, version 1.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use bytestring::ByteString;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::broker::lent;

/// Saved as a string is, without a copy.
#[derive(Clone)]
pub(crate) enum NameTextV1 {
    /// That of a living broker is shared with it.
    Shared(Arc<str>),
    /// One that was read; it may lie in the state.
    Read(ByteString),
}

impl NameTextV1 {
    /// The name as a broker has it.
    pub(in crate::broker) fn into_shared(self) -> Arc<str> {
        match self {
            Self::Shared(name) => name,
            Self::Read(name) => Arc::from(&*name),
        }
    }
}

impl Deref for NameTextV1 {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Shared(name) => name,
            Self::Read(name) => name,
        }
    }
}

impl From<&Arc<str>> for NameTextV1 {
    fn from(name: &Arc<str>) -> Self {
        Self::Shared(Arc::clone(name))
    }
}

impl From<String> for NameTextV1 {
    fn from(name: String) -> Self {
        Self::Read(name.into())
    }
}

impl PartialEq for NameTextV1 {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for NameTextV1 {}

impl fmt::Debug for NameTextV1 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, formatter)
    }
}

impl Serialize for NameTextV1 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for NameTextV1 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl Visitor<'_> for NameVisitor {
            type Value = NameTextV1;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a name")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<NameTextV1, E> {
                let text = lent::text(bytes).ok_or_else(|| E::custom("a name that is no text"))?;
                Ok(NameTextV1::Read(text))
            }
        }
        // The bytes of a string, of which it is asked once whether they are one.
        deserializer.deserialize_bytes(NameVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::codec;

    #[test]
    fn the_bytes_of_a_name_are_those_of_a_string() {
        for name in ["", "org.example.Name", "é"] {
            let expected = codec::encode(&name).unwrap();
            for held in [
                NameTextV1::from(&Arc::from(name)),
                NameTextV1::from(name.to_owned()),
            ] {
                assert_eq!(codec::encode(&held).unwrap(), expected);
                assert_eq!(codec::decode::<NameTextV1>(&expected).unwrap(), held);
            }
        }
        assert!(codec::decode::<NameTextV1>(&[2, 0xc3, 0x28]).is_err());
    }
}
