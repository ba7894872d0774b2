//! Names and object paths, validated once (specification, "Valid Names" and "Valid Object Paths").
//!
//! All borrow the text that they name, and are as cheap to copy as a `&str`.

use core::fmt;

use crate::limits::MAX_NAME;

/// Why a text is not the name that it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("it is empty (specification, Valid Names)")]
    Empty,
    /// More than 255 bytes.
    #[error("it is {length} bytes long, more than {MAX_NAME} (specification, Valid Names)")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// A byte that is not allowed, or not at this place.
    #[error("byte {byte:#04x} at position {at} is not allowed there (specification, Valid Names)")]
    Byte {
        /// Which.
        byte: u8,
        /// Where: index into the name.
        at: usize,
    },
    /// Two separators in a row, or one at the end, or at the beginning.
    #[error("there is an empty element at position {at} (specification, Valid Names)")]
    EmptyElement {
        /// Where: index into the name.
        at: usize,
    },
    /// A name without a dot where two elements are needed.
    #[error(
        "it has one element only; there must be at least two, parted by a dot (specification, Valid Names)"
    )]
    OneElement,
    /// An object path that does not begin with a slash.
    #[error("it does not begin with '/' (specification, Valid Object Paths)")]
    NotAbsolute,
    /// A name that begins with a colon where a well-known one is needed, or the other way round.
    #[error(
        "a name of the other kind is needed here: only unique names begin with ':' (specification, Bus Names)"
    )]
    WrongKind,
}

const DIGIT: u8 = 1;
const LETTER: u8 = 2; // and underscore
const DASH: u8 = 4;

/// The class of each byte; separators and all that is never allowed have none.
static CLASS: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'0'..=b'9' => DIGIT,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => LETTER,
            b'-' => DASH,
            _ => 0,
        };
        byte += 1;
    }
    table
};

#[inline]
fn length(text: &[u8]) -> Result<(), NameError> {
    match text.len() {
        0 => Err(NameError::Empty),
        1..=MAX_NAME => Ok(()),
        length => Err(NameError::TooLong { length }),
    }
}

/// Elements parted by dots, from `start` on; `first` and `rest` are the classes allowed in an element.
#[inline]
fn dotted(text: &[u8], start: usize, first: u8, rest: u8) -> Result<(), NameError> {
    let mut allowed = first;
    let mut dots = 0;
    for (at, &byte) in text.iter().enumerate().skip(start) {
        if CLASS[byte as usize] & allowed != 0 {
            allowed = rest;
        } else if byte == b'.' && at > start && text[at - 1] != b'.' {
            allowed = first;
            dots += 1;
        } else if byte == b'.' {
            return Err(NameError::EmptyElement { at });
        } else {
            return Err(NameError::Byte { byte, at });
        }
    }
    match text.last() {
        _ if text.len() == start => Err(NameError::EmptyElement { at: start }),
        Some(b'.') => Err(NameError::EmptyElement { at: text.len() }),
        _ if dots == 0 => Err(NameError::OneElement),
        _ => Ok(()),
    }
}

#[inline]
pub(crate) fn check_object_path(text: &[u8]) -> Result<(), NameError> {
    match text {
        [] => return Err(NameError::Empty),
        [b'/'] => return Ok(()),
        [b'/', ..] => {}
        _ => return Err(NameError::NotAbsolute),
    }
    let mut after_slash = true;
    for (at, &byte) in text.iter().enumerate().skip(1) {
        if CLASS[byte as usize] & (DIGIT | LETTER) != 0 {
            after_slash = false;
        } else if byte != b'/' {
            return Err(NameError::Byte { byte, at });
        } else if after_slash {
            return Err(NameError::EmptyElement { at });
        } else {
            after_slash = true;
        }
    }
    if after_slash {
        Err(NameError::EmptyElement { at: text.len() })
    } else {
        Ok(())
    }
}

/// The beginning of an object path: all of it gets the verdict of [`check_object_path`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PathSoFar {
    length: usize,
    after_slash: bool,
}

impl PathSoFar {
    /// With the bytes that follow.
    pub(crate) fn extended(self, bytes: &[u8]) -> Result<Self, NameError> {
        let mut after_slash = self.after_slash;
        for (index, &byte) in bytes.iter().enumerate() {
            let at = self.length + index;
            if at == 0 && byte != b'/' {
                return Err(NameError::NotAbsolute);
            } else if CLASS[byte as usize] & (DIGIT | LETTER) != 0 {
                after_slash = false;
            } else if byte != b'/' {
                return Err(NameError::Byte { byte, at });
            } else if after_slash {
                return Err(NameError::EmptyElement { at });
            } else {
                after_slash = true;
            }
        }
        let length = self.length + bytes.len();
        Ok(Self { length, after_slash })
    }

    /// Nothing follows.
    pub(crate) fn finish(self) -> Result<(), NameError> {
        match self.length {
            0 => Err(NameError::Empty),
            1 => Ok(()),
            at if self.after_slash => Err(NameError::EmptyElement { at }),
            _ => Ok(()),
        }
    }
}

#[inline]
pub(crate) fn check_interface(text: &[u8]) -> Result<(), NameError> {
    length(text)?;
    dotted(text, 0, LETTER, LETTER | DIGIT)
}

#[inline]
pub(crate) fn check_member(text: &[u8]) -> Result<(), NameError> {
    length(text)?;
    let mut allowed = LETTER;
    for (at, &byte) in text.iter().enumerate() {
        if CLASS[byte as usize] & allowed == 0 {
            return Err(NameError::Byte { byte, at });
        }
        allowed = LETTER | DIGIT;
    }
    Ok(())
}

#[inline]
pub(crate) fn check_bus_name(text: &[u8]) -> Result<(), NameError> {
    if text.first() == Some(&b':') {
        check_unique_name(text)
    } else {
        check_well_known_name(text)
    }
}

#[inline]
fn check_unique_name(text: &[u8]) -> Result<(), NameError> {
    length(text)?;
    if text[0] != b':' {
        return Err(NameError::WrongKind);
    }
    dotted(text, 1, LETTER | DIGIT | DASH, LETTER | DIGIT | DASH)
}

#[inline]
fn check_well_known_name(text: &[u8]) -> Result<(), NameError> {
    length(text)?;
    if text[0] == b':' {
        return Err(NameError::WrongKind);
    }
    dotted(text, 0, LETTER | DASH, LETTER | DIGIT | DASH)
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name<'a>(&'a str);

        impl<'a> $name<'a> {
            /// Checks the text.
            ///
            /// # Errors
            /// What is wrong with it, and where.
            pub fn new(text: &'a str) -> Result<Self, NameError> {
                $check(text.as_bytes()).map(|()| Self(text))
            }

            /// The text.
            pub const fn as_str(self) -> &'a str {
                self.0
            }
        }

        impl core::ops::Deref for $name<'_> {
            type Target = str;

            fn deref(&self) -> &str {
                self.0
            }
        }

        impl fmt::Display for $name<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.0)
            }
        }

        impl<'a> TryFrom<&'a str> for $name<'a> {
            type Error = NameError;

            fn try_from(text: &'a str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl<'a> From<$name<'a>> for &'a str {
            fn from(name: $name<'a>) -> &'a str {
                name.0
            }
        }
    };
}

name!(
    /// The path of an object, such as `/org/freedesktop/DBus` (specification, "Valid Object Paths").
    ObjectPath,
    check_object_path
);
name!(
    /// The name of an interface, such as `org.freedesktop.DBus.Peer` (specification, "Interface names").
    InterfaceName,
    check_interface
);
name!(
    /// The name of a method or signal, such as `Ping` (specification, "Member names").
    MemberName,
    check_member
);
name!(
    /// The name of an error, such as `org.freedesktop.DBus.Error.Failed` (specification, "Error names").
    ErrorName,
    check_interface
);
name!(
    /// The name of a connection, unique or well-known (specification, "Bus names").
    BusName,
    check_bus_name
);
name!(
    /// The name that the bus gives to a connection, such as `:1.42` (specification, "Bus names").
    UniqueName,
    check_unique_name
);
name!(
    /// The name that a connection asked for, such as `org.freedesktop.Notifications` (specification, "Bus names").
    WellKnownName,
    check_well_known_name
);

impl BusName<'_> {
    /// Whether it begins with a colon.
    pub fn is_unique(self) -> bool {
        self.0.starts_with(':')
    }
}

impl<'a> From<UniqueName<'a>> for BusName<'a> {
    fn from(name: UniqueName<'a>) -> Self {
        Self(name.0)
    }
}

impl<'a> From<WellKnownName<'a>> for BusName<'a> {
    fn from(name: WellKnownName<'a>) -> Self {
        Self(name.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check<T: std::fmt::Debug>(
        new: impl Fn(&'static str) -> Result<T, NameError>,
        good: &[&'static str],
        bad: &[&'static str],
    ) {
        for text in good {
            assert!(new(text).is_ok(), "{text:?} is valid: {:?}", new(text));
        }
        for text in bad {
            assert!(new(text).is_err(), "{text:?} is not valid");
        }
    }

    fn long(head: &str, length: usize) -> &'static str {
        let mut text = head.to_owned();
        text.push_str(&"x".repeat(length - head.len()));
        Box::leak(text.into_boxed_str())
    }

    #[test]
    fn object_paths() {
        check(
            ObjectPath::new,
            &["/", "/a", "/a/b", "/0/_/Z9", long("/", 4096)],
            &[
                "", "a", "//", "/a/", "/a//b", "/a-b", "/a.b", "/é", "/a b", "/a\0",
            ],
        );
    }

    #[test]
    fn interfaces_and_errors() {
        let good = ["a.b", "org.freedesktop.DBus", "_._", "a1.b2", long("a.", 255)];
        let bad = [
            "",
            "a",
            ".a",
            "a.",
            "a..b",
            "1a.b",
            "a.1b",
            "a-b.c",
            ":a.b",
            "a.b c",
            "a.é",
            long("a.", 256),
        ];
        check(InterfaceName::new, &good, &bad);
        check(ErrorName::new, &good, &bad);
    }

    #[test]
    fn members() {
        check(
            MemberName::new,
            &["A", "_", "a0", long("a", 255)],
            &["", "0a", "a.b", "a-b", "é", long("a", 256)],
        );
    }

    #[test]
    fn bus_names() {
        let unique = [":1.0", ":1.42", ":a.b", ":-.-", ":1.2.3"];
        let known = ["a.b", "a-b.c", "_a._b", "org.freedesktop.DBus", "-a.b"];
        let bad = [
            "", ":", ".", ":1", ":.1", ":1.", ":1..2", "::1.2", "a", ".a.b", "a.b.", "a..b", "1a.b", "a.1b",
            "a.b:c", "a.b/c",
        ];
        check(BusName::new, &unique, &bad);
        check(BusName::new, &known, &bad);
        check(UniqueName::new, &unique, &known);
        check(WellKnownName::new, &known, &unique);
        assert!(BusName::new(":1.1").unwrap().is_unique());
        assert!(!BusName::new("a.b").unwrap().is_unique());
    }

    #[test]
    fn errors_say_where() {
        assert_eq!(
            InterfaceName::new("a.b!"),
            Err(NameError::Byte { byte: b'!', at: 3 })
        );
        assert_eq!(InterfaceName::new("a..b"), Err(NameError::EmptyElement { at: 2 }));
        assert_eq!(InterfaceName::new("abc"), Err(NameError::OneElement));
        assert_eq!(WellKnownName::new(":1.2"), Err(NameError::WrongKind));
    }
}
