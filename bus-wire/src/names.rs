//! Names and object paths, validated once (specification, "Valid Names" and "Valid Object Paths").
//!
//! Each comes in two forms: `ObjectPath` borrows its text, [`OwnedObjectPath`] owns it. Neither is ever checked again.

mod check;

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;
use core::marker::PhantomData;

pub(crate) use check::{
    PathSoFar, check_bus_name, check_interface, check_member, check_object_path, check_unique_name,
    check_well_known_name,
};

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

/// A name that a message is to have: one that was checked and is not checked again, or a text that is checked when the message
/// is made. `N` is the type of the checked name.
#[derive(Debug, Clone, Copy)]
pub struct NameArg<'a, N> {
    pub(crate) text: &'a str,
    pub(crate) is_checked: bool,
    kind: PhantomData<fn() -> N>,
}

impl<'a, N> NameArg<'a, N> {
    const fn checked(text: &'a str) -> Self {
        Self {
            text,
            is_checked: true,
            kind: PhantomData,
        }
    }
}

impl<'a, N, T: AsRef<str> + ?Sized> From<&'a T> for NameArg<'a, N> {
    fn from(text: &'a T) -> Self {
        Self {
            text: text.as_ref(),
            is_checked: false,
            kind: PhantomData,
        }
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $owned:ident, $check:expr) => {
        $(#[$doc])*
        ///
        /// Borrowed, and as cheap to copy as a `&str`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name<'a>(&'a str);

        impl<'a> $name<'a> {
            /// Checks the text.
            ///
            /// # Errors
            /// What is wrong with it, and where.
            pub const fn new(text: &'a str) -> Result<Self, NameError> {
                match $check(text.as_bytes()) {
                    Ok(()) => Ok(Self(text)),
                    Err(error) => Err(error),
                }
            }

            /// Of a text that is part of the program: in a `const`, the compiler checks it.
            ///
            /// # Panics
            /// The text is not valid; in a `const`, this is an error of compilation.
            pub const fn from_static(text: &'static str) -> $name<'static> {
                match $check(text.as_bytes()) {
                    Ok(()) => $name(text),
                    Err(_) => panic!(concat!("not a valid ", stringify!($name))),
                }
            }

            /// Of a text that was checked before.
            #[inline]
            #[allow(dead_code, reason = "not needed for names of every kind")]
            pub(crate) const fn checked(text: &'a str) -> Self {
                Self(text)
            }

            /// The text.
            pub const fn as_str(self) -> &'a str {
                self.0
            }

            /// A copy that owns its text; it is not checked again.
            pub fn into_owned(self) -> $owned {
                $owned(self.0.into())
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

        impl<'a> From<&'a $owned> for $name<'a> {
            fn from(name: &'a $owned) -> Self {
                name.as_borrowed()
            }
        }

        impl<'a> From<$name<'a>> for NameArg<'a, $name<'a>> {
            fn from(name: $name<'a>) -> Self {
                Self::checked(name.0)
            }
        }

        impl<'a> From<&'a $owned> for NameArg<'a, $name<'a>> {
            fn from(name: &'a $owned) -> Self {
                Self::checked(&name.0)
            }
        }

        #[doc = concat!("A [`", stringify!($name), "`] that owns its text.")]
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[cfg_attr(feature = "serde", serde(into = "String", try_from = "String"))]
        pub struct $owned(Box<str>);

        impl $owned {
            /// Checks the text.
            ///
            /// # Errors
            /// What is wrong with it, and where.
            pub fn new(text: impl Into<Box<str>>) -> Result<Self, NameError> {
                let text = text.into();
                $name::new(&text)?;
                Ok(Self(text))
            }

            /// Borrowed; it is not checked again.
            pub fn as_borrowed(&self) -> $name<'_> {
                $name(&self.0)
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl core::ops::Deref for $owned {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $owned {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<$name<'_>> for $owned {
            fn from(name: $name<'_>) -> Self {
                name.into_owned()
            }
        }

        impl TryFrom<String> for $owned {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $owned {
            type Error = NameError;

            fn try_from(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<$owned> for String {
            fn from(name: $owned) -> Self {
                name.0.into()
            }
        }
    };
}

name!(
    /// The path of an object, such as `/org/freedesktop/DBus` (specification, "Valid Object Paths").
    ObjectPath,
    OwnedObjectPath,
    check_object_path
);
name!(
    /// The name of an interface, such as `org.freedesktop.DBus.Peer` (specification, "Interface names").
    InterfaceName,
    OwnedInterfaceName,
    check_interface
);
name!(
    /// The name of a method or signal, such as `Ping` (specification, "Member names").
    MemberName,
    OwnedMemberName,
    check_member
);
name!(
    /// The name of an error, such as `org.freedesktop.DBus.Error.Failed` (specification, "Error names").
    ErrorName,
    OwnedErrorName,
    check_interface
);
name!(
    /// The name of a connection, unique or well-known (specification, "Bus names").
    BusName,
    OwnedBusName,
    check_bus_name
);
name!(
    /// The name that the bus gives to a connection, such as `:1.42` (specification, "Bus names").
    UniqueName,
    OwnedUniqueName,
    check_unique_name
);
name!(
    /// The name that a connection asked for, such as `org.freedesktop.Notifications` (specification, "Bus names").
    WellKnownName,
    OwnedWellKnownName,
    check_well_known_name
);

impl BusName<'_> {
    /// Whether it begins with a colon.
    pub fn is_unique(self) -> bool {
        self.0.starts_with(':')
    }
}

impl<'a> From<UniqueName<'a>> for NameArg<'a, BusName<'a>> {
    fn from(name: UniqueName<'a>) -> Self {
        Self::checked(name.0)
    }
}

impl<'a> From<WellKnownName<'a>> for NameArg<'a, BusName<'a>> {
    fn from(name: WellKnownName<'a>) -> Self {
        Self::checked(name.0)
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

impl From<OwnedUniqueName> for OwnedBusName {
    fn from(name: OwnedUniqueName) -> Self {
        Self(name.0)
    }
}

impl From<OwnedWellKnownName> for OwnedBusName {
    fn from(name: OwnedWellKnownName) -> Self {
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
    fn constants_and_owned_names() {
        const PATH: ObjectPath<'static> = ObjectPath::from_static("/org/freedesktop/DBus");
        const UNIQUE: UniqueName<'static> = UniqueName::from_static(":1.42");
        let owned = PATH.into_owned();
        assert_eq!(owned.as_borrowed(), PATH);
        assert_eq!(OwnedObjectPath::new(PATH.as_str()), Ok(owned.clone()));
        assert_eq!(String::from(owned), PATH.as_str());
        assert_eq!(OwnedObjectPath::new("a"), Err(NameError::NotAbsolute));
        assert!(OwnedBusName::from(UNIQUE.into_owned()).as_borrowed().is_unique());
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
