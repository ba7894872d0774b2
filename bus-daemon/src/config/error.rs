//! Why a configuration is refused. All messages name a file, and a line where there is one.

use std::io;
use std::path::PathBuf;

use bus_wire::AddressError;
use thiserror::Error;

use super::listen::KeyError;
use super::policy::{Place, PolicyError};

/// How deep files may include each other. Far beyond any use, and well within the stack.
pub(super) const MAX_INCLUDES: usize = 64;

/// How many files a configuration may have, those that are included more than once counted as often.
pub(super) const MOST_FILES: usize = 2_000;
/// How many bytes there may be in all of them.
pub(super) const MOST_BYTES: usize = 64 * 1024 * 1024;

/// Why a configuration is refused. The message names file and line.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Neither the files nor the command line say where to listen.
    #[error("the configuration names no address to listen on (<listen>, or --address)")]
    NoListen,
    /// There is something wrong in a file.
    #[error("{place}: {problem}")]
    Content {
        /// Where.
        place: Place,
        /// What.
        problem: Problem,
    },
}

impl ConfigError {
    /// The D-Bus error that tells of it: as dbus-daemon answers ReloadConfig.
    pub fn error_name(&self) -> &'static str {
        match self {
            Self::Read { error, .. } if error.kind() == io::ErrorKind::NotFound => {
                "org.freedesktop.DBus.Error.FileNotFound"
            }
            Self::Read { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
                "org.freedesktop.DBus.Error.AccessDenied"
            }
            Self::Read { .. } | Self::NoListen | Self::Content { .. } => FAILED,
        }
    }
}

const FAILED: &str = "org.freedesktop.DBus.Error.Failed";

/// What is wrong in a file.
#[derive(Debug, Error)]
pub enum Problem {
    /// The file is neither UTF-8 nor UTF-16 with a byte order mark.
    #[error("the file is not UTF-8")]
    NotUnicode,
    /// A document type with attributes that are there without being written. They would be passed over.
    #[error("default values of attributes (<!ATTLIST>) are not supported")]
    DefaultAttribute,
    /// An entity that is in another file.
    #[error("entities of other files are not supported")]
    ExternalEntity,
    /// Entities that would become very long.
    #[error("its entities may become too long")]
    Entities,
    /// An XML namespace: the format has none.
    #[error("<{0}> has no attribute \"xmlns\", nor any with a prefix")]
    Namespace(String),
    /// More files than anybody has.
    #[error("there are more than {MOST_FILES} files, or more than {MOST_BYTES} bytes in them")]
    TooMuch,
    /// It is not well-formed XML.
    #[error("{0}")]
    Xml(String),
    /// The root is something else.
    #[error("the root element is <{0}> and not <busconfig>")]
    Root(String),
    /// An element that does not exist, or not there.
    #[error("<{parent}> has no element <{element}>")]
    Element {
        /// Its name.
        element: String,
        /// Where it stands.
        parent: String,
    },
    /// An attribute that the element does not have.
    #[error("<{element}> has no attribute {attribute:?}")]
    Attribute {
        /// The element.
        element: String,
        /// The attribute.
        attribute: String,
    },
    /// An attribute that the element must have.
    #[error("<{element}> must have the attribute {attribute:?}")]
    NoAttribute {
        /// The element.
        element: String,
        /// The attribute.
        attribute: &'static str,
    },
    /// Text where there should be none.
    #[error("<{0}> cannot contain text")]
    Text(String),
    /// No text where there should be some.
    #[error("<{0}> must contain text")]
    NoText(String),
    /// Blanks around a text that is a name.
    #[error("<{0}> cannot have blanks around its text")]
    Padded(String),
    /// A value that an attribute cannot have.
    #[error("{attribute}={value:?} must be {expected}")]
    Value {
        /// The attribute.
        attribute: String,
        /// Its value.
        value: String,
        /// What it can be.
        expected: &'static str,
    },
    /// Not an address.
    #[error("{text:?}: {error}")]
    Listen {
        /// The text.
        text: String,
        /// What is wrong.
        error: AddressError,
    },
    /// A key of an address makes no sense.
    #[error("{text:?}: {error}")]
    ListenKey {
        /// The address.
        text: String,
        /// What is wrong.
        error: KeyError,
    },
    /// A transport that nobody can listen on.
    #[error("{text:?}: cannot listen on the transport {transport:?}")]
    Transport {
        /// The text.
        text: String,
        /// Its transport.
        transport: String,
    },
    /// An authentication mechanism that does not exist.
    #[error("<auth>{0}</auth>: the mechanisms are EXTERNAL, DBUS_COOKIE_SHA1 and ANONYMOUS")]
    Auth(String),
    /// No such limit.
    #[error("there is no limit {0:?}")]
    UnknownLimit(String),
    /// Not a number, or one that is too small or too large.
    #[error("<limit name={name:?}>: {text:?} is not a number from 0 to {max}")]
    Limit {
        /// Which limit.
        name: String,
        /// Its text.
        text: String,
        /// The largest value it can have.
        max: u64,
    },
    /// `<apparmor mode="required">`.
    #[error("AppArmor mediation is required, and not supported")]
    AppArmor,
    /// A file includes itself, by way of others or at once.
    #[error("{} includes itself", .0.display())]
    Circular(PathBuf),
    /// Too many files within each other.
    #[error("files include each other more than {MAX_INCLUDES} deep")]
    TooDeep,
    /// A policy that is wrong.
    #[error("{0}")]
    Policy(#[from] PolicyError),
}
