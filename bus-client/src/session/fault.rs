//! Why there is no link, and why a call failed.

use bus_wire::MessageError;

use super::auth::AuthError;

/// Why a link was lost, or could not be had. Each text says whose fault it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The operating system says so.
    #[error("{doing}: {}", describe(*.code, *.kind))]
    Os {
        /// What was being done.
        doing: &'static str,
        /// The error number, where there is one.
        code: Option<i32>,
        /// Its kind.
        kind: std::io::ErrorKind,
    },
    /// The directory that the socket should be in is not there: the session has ended.
    #[error("the directory of the bus's socket is gone")]
    DirectoryGone,
    /// The address cannot be connected to by this library.
    #[error("the address cannot be used: {0}")]
    Address(AddressFault),
    /// The bus closed the link.
    #[error("the bus closed the link")]
    Ended,
    /// The bus does not let us in.
    #[error("authentication: {0}")]
    Auth(#[from] AuthError),
    /// The bus sent what is not a valid message.
    #[error("the bus sent an invalid message: {0}")]
    Message(#[from] MessageError),
    /// The bus answered Hello with an error, or with something that is no unique name.
    #[error("the bus answered Hello with {0}")]
    Greeting(Box<str>),
    /// The bus did not answer in time while the link was set up.
    #[error("the bus did not answer while the link was set up")]
    Silent,
    /// The bus sent more file descriptors than its messages claim.
    #[error("the bus sent more than {0} file descriptors that belong to no message")]
    Descriptors(usize),
    /// The bus takes nothing, and what waits for it has become too much.
    #[error("the bus reads nothing: {0} bytes wait for it")]
    NotReading(u64),
    /// The address names another bus than the one that answered.
    #[error("the bus has another GUID than its address says")]
    OtherBus,
    /// The application dropped the link, for another or for good.
    #[error("the application dropped the link")]
    Asked,
}

/// What is wrong with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressFault {
    /// A transport that is not known.
    #[error("the transport is not supported")]
    Transport,
    /// An option that is missing, or has no sense.
    #[error("the option {0:?} is missing or not valid")]
    Option(&'static str),
}

fn describe(code: Option<i32>, kind: std::io::ErrorKind) -> String {
    match code {
        Some(code) => std::io::Error::from_raw_os_error(code).to_string(),
        None => kind.to_string(),
    }
}

impl LinkError {
    /// What the system said while something was done.
    pub fn os(doing: &'static str, error: &std::io::Error) -> Self {
        Self::Os {
            doing,
            code: error.raw_os_error(),
            kind: error.kind(),
        }
    }
}

/// Why a call failed on this side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The link was lost.
    #[error("the link was lost: {0}")]
    Lost(LinkError),
    /// There is no bus, and the call does not wait for one.
    #[error("there is no bus at the moment")]
    Down,
    /// The connection is closed.
    #[error("the connection is closed")]
    Closed,
    /// The deadline has passed.
    #[error("no reply before the deadline")]
    Deadline,
    /// Too much waits already for the bus.
    #[error("too many calls wait for the bus")]
    Full,
    /// The destination is a unique name of a bus that is gone; whoever has it now is a stranger.
    #[error("the destination is a unique name of a bus that is gone")]
    StaleName,
    /// The link passes no file descriptors.
    #[error("the link passes no file descriptors")]
    NoDescriptors,
}

/// What became of a call that failed on this side.
///
/// ```text
/// made -> waits -> written in part -> written -> answered
///   \______________________________/      |
///               NotSent                Unknown
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fate {
    /// It was not sent, or not all of it: it has not run and will not.
    NotSent,
    /// It was sent. It may have run, or may run still.
    Unknown,
    /// It was taken by whoever should run it, as is proven by the transport.
    Taken,
}
