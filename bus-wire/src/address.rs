//! Server addresses (specification, "Server Addresses"): `unix:path=/run/bus;tcp:host=localhost,port=0`.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use nom::{IResult, Parser, bytes::complete::take_while};
use thiserror::Error;

use crate::guid::Guid;

/// One address: a transport with its options.
///
/// Any transport and any key is accepted; who listens or connects judges them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Address {
    transport: String,
    options: Vec<(String, Vec<u8>)>,
}

impl Address {
    /// An address without options.
    ///
    /// # Errors
    /// `transport` is not a word that can stand in an address.
    pub fn new(transport: &str) -> Result<Self, AddressError> {
        let (rest, word) = word(transport);
        if word.is_empty() || !rest.is_empty() {
            return Err(AddressError {
                position: word.len(),
                kind: AddressErrorKind::Transport,
            });
        }
        Ok(Self {
            transport: word.to_owned(),
            options: Vec::new(),
        })
    }

    /// With one more option, or with another value for it. A value may be any bytes.
    ///
    /// # Errors
    /// `key` is not a word that can stand in an address, or `value` is empty: that has no written form.
    pub fn with(mut self, key: &str, value: impl Into<Vec<u8>>) -> Result<Self, AddressError> {
        let (rest, word) = word(key);
        if word.is_empty() || !rest.is_empty() {
            return Err(AddressError {
                position: word.len(),
                kind: AddressErrorKind::Key,
            });
        }
        let value = value.into();
        if value.is_empty() {
            return Err(AddressError {
                position: 0,
                kind: AddressErrorKind::NoValue,
            });
        }
        match self.options.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = value,
            None => self.options.push((key.to_owned(), value)),
        }
        Ok(self)
    }

    /// `unix`, `tcp`, `systemd` and so on.
    pub fn transport(&self) -> &str {
        &self.transport
    }

    /// The options in the order in which they were written, values unescaped. No key is there twice.
    pub fn options(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.options
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_slice()))
    }

    /// The value of an option, unescaped: for paths, which may be any bytes.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.options()
            .find(|(known, _)| *known == key)
            .map(|(_, value)| value)
    }

    /// The value of an option where it is UTF-8.
    pub fn get_str(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(|value| core::str::from_utf8(value).ok())
    }

    /// The option `guid`, where it is one (specification, "UUIDs").
    pub fn guid(&self) -> Option<Guid> {
        self.get_str("guid")?.parse().ok()
    }
}

/// The written form, fully escaped.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.transport)?;
        for (index, (key, value)) in self.options.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{key}={}", Escaped(value))?;
        }
        Ok(())
    }
}

/// Exactly one address.
impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (rest, address) = address(text, text)?;
        match rest {
            "" | ";" => Ok(address),
            _ => Err(AddressError {
                position: text.len() - rest.len(),
                kind: AddressErrorKind::MoreThanOne,
            }),
        }
    }
}

/// Addresses separated by semicolons, in the order in which they are to be tried. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AddressList(Vec<Address>);

impl AddressList {
    /// A list to be written; `None` where there is nothing in it.
    pub fn new(addresses: Vec<Address>) -> Option<Self> {
        if addresses.is_empty() {
            None
        } else {
            Some(Self(addresses))
        }
    }

    /// As a slice.
    pub fn as_slice(&self) -> &[Address] {
        &self.0
    }

    /// The addresses.
    pub fn into_vec(self) -> Vec<Address> {
        self.0
    }
}

impl fmt::Display for AddressList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, address) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(";")?;
            }
            write!(f, "{address}")?;
        }
        Ok(())
    }
}

/// A list; a semicolon after the last address is allowed.
impl FromStr for AddressList {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.is_empty() {
            return Err(AddressError {
                position: 0,
                kind: AddressErrorKind::Empty,
            });
        }
        let mut list = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (after, address) = address(text, rest)?;
            list.push(address);
            rest = after.strip_prefix(';').unwrap_or(after);
        }
        Ok(Self(list))
    }
}

/// What is wrong with an address, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("address, byte {position}: {kind}")]
pub struct AddressError {
    /// Offset in bytes from the beginning of the text.
    pub position: usize,
    /// What was found there.
    pub kind: AddressErrorKind,
}

/// What is wrong with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AddressErrorKind {
    /// There is no address.
    #[error("there is no address")]
    Empty,
    /// No word before the colon, or no colon.
    #[error("expected the name of a transport and a colon")]
    Transport,
    /// Something else than a key.
    #[error("expected a key and '='")]
    Key,
    /// A key without a value.
    #[error("expected a value after '='")]
    NoValue,
    /// A key for the second time.
    #[error("this key is there already")]
    DuplicateKey,
    /// "It is an error if a non-optionally-escaped byte is seen unescaped."
    #[error("the byte {0:#04x} must be escaped")]
    Unescaped(u8),
    /// "It is an error if a % byte does not have two hex digits following."
    #[error("'%' is not followed by two hexadecimal digits")]
    BadEscape,
    /// A list where there should be one address.
    #[error("more than one address")]
    MoreThanOne,
}

/// `transport:[key=value{,key=value}[,]]` at the beginning of `input`, which is the end of `text`. What remains is
/// empty or begins with a semicolon.
fn address<'a>(text: &str, input: &'a str) -> Result<(&'a str, Address), AddressError> {
    let at = |rest: &str, kind| AddressError {
        position: text.len() - rest.len(),
        kind,
    };
    let (rest, transport) = word(input);
    let colon = rest.strip_prefix(':').filter(|_| !transport.is_empty());
    let mut rest = colon.ok_or_else(|| at(rest, AddressErrorKind::Transport))?;
    let mut options: Vec<(String, Vec<u8>)> = Vec::new();
    while !rest.is_empty() && !rest.starts_with(';') {
        let start = rest;
        let (after, key) = word(rest);
        let equals = after.strip_prefix('=').filter(|_| !key.is_empty());
        rest = equals.ok_or_else(|| at(after, AddressErrorKind::Key))?;
        if options.iter().any(|(known, _)| known == key) {
            return Err(at(start, AddressErrorKind::DuplicateKey));
        }
        let written = &rest[..rest.find([',', ';']).unwrap_or(rest.len())];
        if written.is_empty() {
            return Err(at(rest, AddressErrorKind::NoValue));
        }
        let value = unescape(written).map_err(|(offset, kind)| at(&rest[offset..], kind))?;
        options.push((key.to_owned(), value));
        rest = &rest[written.len()..];
        // As in the reference implementation, a comma may follow the last option.
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    Ok((
        rest,
        Address {
            transport: transport.to_owned(),
            options,
        },
    ))
}

/// The longest word (name of a transport, key) at the beginning, and what follows it.
fn word(input: &str) -> (&str, &str) {
    let is_word = |c: char| c.is_ascii_graphic() && !matches!(c, ':' | ';' | ',' | '=' | '%' | '\'' | '"');
    let parsed: IResult<&str, &str> = take_while(is_word).parse(input);
    parsed.unwrap_or((input, ""))
}

fn unescape(written: &str) -> Result<Vec<u8>, (usize, AddressErrorKind)> {
    let mut value = Vec::with_capacity(written.len());
    let mut bytes = written.bytes().enumerate();
    while let Some((offset, byte)) = bytes.next() {
        value.push(match byte {
            b'%' => {
                let mut digit = || bytes.next().and_then(|(_, byte)| char::from(byte).to_digit(16));
                match (digit(), digit()) {
                    (Some(high), Some(low)) => (high << 4 | low) as u8,
                    (_, _) => return Err((offset, AddressErrorKind::BadEscape)),
                }
            }
            // The reference implementation takes the specification's `\*` for two characters.
            b'\\' => byte,
            _ if is_optionally_escaped(byte) => byte,
            _ => return Err((char_boundary(written, offset), AddressErrorKind::Unescaped(byte))),
        });
    }
    Ok(value)
}

fn char_boundary(text: &str, mut offset: usize) -> usize {
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// "The set of optionally-escaped bytes"
fn is_optionally_escaped(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'/' | b'.' | b'*')
}

/// A value in its written form.
struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| {
            if is_optionally_escaped(*byte) {
                write!(f, "{}", char::from(*byte))
            } else {
                write!(f, "%{byte:02x}")
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, canonical: &str) -> AddressList {
        let list: AddressList = text.parse().unwrap();
        assert_eq!(list.to_string(), canonical);
        list
    }

    #[track_caller]
    fn refused(text: &str, position: usize, kind: AddressErrorKind) {
        assert_eq!(
            text.parse::<AddressList>(),
            Err(AddressError { position, kind }),
            "{text:?}"
        );
    }

    #[test]
    fn accepted() {
        let list = check(
            "unix:path=/tmp/dbus-test;unix:path=/tmp/dbus-test2",
            "unix:path=/tmp/dbus-test;unix:path=/tmp/dbus-test2",
        );
        assert_eq!(list.as_slice().len(), 2);
        assert_eq!(list.as_slice()[1].get_str("path"), Some("/tmp/dbus-test2"));
        let list = check("tcp:host=%31%32%37.0.0.1,port=0,", "tcp:host=127.0.0.1,port=0");
        assert_eq!(list.as_slice()[0].get("host"), Some(&b"127.0.0.1"[..]));
        check("systemd:", "systemd:");
        check("systemd:;", "systemd:");
        check(
            "unix:abstract=%00%ff,guid=00112233445566778899aabbccddeeff",
            "unix:abstract=%00%ff,guid=00112233445566778899aabbccddeeff",
        );
        check(
            "bus-tcp:host=h,port=1,peer=spki-sha256%3aab",
            "bus-tcp:host=h,port=1,peer=spki-sha256%3aab",
        );
        check("x:a=*\\", "x:a=*%5c");
    }

    #[test]
    fn errors_say_where() {
        refused("", 0, AddressErrorKind::Empty);
        refused(";", 0, AddressErrorKind::Transport);
        refused(":", 0, AddressErrorKind::Transport);
        refused("foo", 3, AddressErrorKind::Transport);
        refused("foo:a=b;baz", 11, AddressErrorKind::Transport);
        refused("foo:;;bar:", 5, AddressErrorKind::Transport);
        refused("foo:bar", 7, AddressErrorKind::Key);
        refused("foo:=b", 4, AddressErrorKind::Key);
        refused("foo:a=b,,c=d", 8, AddressErrorKind::Key);
        refused("foo: a=b", 4, AddressErrorKind::Key);
        refused("foo:a=", 6, AddressErrorKind::NoValue);
        refused("foo:a=b,a=c", 8, AddressErrorKind::DuplicateKey);
        refused("foo:a=b=c", 7, AddressErrorKind::Unescaped(b'='));
        refused("foo:a=x b", 7, AddressErrorKind::Unescaped(b' '));
        refused("foo:a=xé", 7, AddressErrorKind::Unescaped(0xc3));
        refused("foo:a=b:c", 7, AddressErrorKind::Unescaped(b':'));
        refused("foo:a=x%4", 7, AddressErrorKind::BadEscape);
        refused("foo:a=%zz", 6, AddressErrorKind::BadEscape);
        refused("foo:a=%é", 6, AddressErrorKind::BadEscape);
    }

    #[test]
    fn one_address() {
        assert!("unix:path=/a;".parse::<Address>().is_ok());
        let error = "unix:path=/a;unix:path=/b".parse::<Address>().unwrap_err();
        assert_eq!(
            error,
            AddressError {
                position: 12,
                kind: AddressErrorKind::MoreThanOne
            }
        );
    }

    #[test]
    fn made() {
        let address = Address::new("unix")
            .unwrap()
            .with("path", "/a b")
            .unwrap()
            .with("path", "/c,d")
            .unwrap();
        assert_eq!(address.to_string(), "unix:path=/c%2cd");
        assert!(Address::new("a:b").is_err());
        assert!(address.clone().with("a=b", "c").is_err());
        assert!(address.with("a", "").is_err());
    }

    proptest! {
        #[test]
        fn round_trip(parts in prop::collection::vec(
            ("[a-z][a-z-]{0,8}", prop::collection::btree_map("[a-zA-Z0-9_]{1,6}", prop::collection::vec(any::<u8>(), 1..8), 0..4)),
            1..4,
        )) {
            let addresses = parts.into_iter().map(|(transport, options)| {
                let address = Address::new(&transport).unwrap();
                options.into_iter().fold(address, |address, (key, value)| address.with(&key, value).unwrap())
            });
            let list = AddressList::new(addresses.collect()).unwrap();
            prop_assert_eq!(list.to_string().parse::<AddressList>(), Ok(list));
        }

        #[test]
        fn arbitrary_text(text in "\\PC*|[a-b:;,=%\\\\0é]*") {
            if let Ok(list) = text.parse::<AddressList>() {
                prop_assert_eq!(list.to_string().parse::<AddressList>(), Ok(list));
            }
        }
    }
}
