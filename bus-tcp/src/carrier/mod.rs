//! What a session is carried over: any ordered bytes that may break at any moment.
//!
//! TCP with TLS is in [`tls`](crate::tls). What is here has no encryption, and is for connections that need none: a socket of
//! this machine, a virtual machine and its host, a command such as ssh, a WireGuard link. Who is on such a carrier the kernel
//! says ([`UnixDoor`]), or whoever opens the door ([`PlainDoor`], `VsockDoor`): *trusted* in their constructors stands for
//! that.

mod command;
mod plain;
mod unix;
#[cfg(feature = "vsock")]
mod vsock;

pub use command::CommandDial;
pub use plain::{AcceptedTcp, PlainDial, PlainDoor};
pub use unix::{UnixDial, UnixDoor};
#[cfg(feature = "vsock")]
pub use vsock::{AcceptedVsock, VsockDial, VsockDoor};

#[cfg(feature = "tls")]
pub(crate) use plain::{connect_tcp, tune};

use crate::resume::Binding;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

/// Who is on a carrier: the name that the host knows the peer by.
pub type Who = Arc<str>;

/// An open connection.
pub trait Carrier: AsyncRead + AsyncWrite + Send + Unpin {
    /// What only the two ends of this connection know; None: nothing is secret here.
    fn binding(&self) -> Option<Binding>;
}

/// One of any kind.
pub type BoxCarrier = Box<dyn Carrier>;

/// A connection that takes its time.
pub type Dialing<'a> = Pin<Box<dyn Future<Output = io::Result<BoxCarrier>> + Send + 'a>>;

/// Makes connections, one after the other.
pub trait Dial: Send + 'static {
    /// One attempt. Names are resolved each time. `hint` is where the host asked the client to go; whether to believe it is
    /// up to the dialler, none here does.
    fn dial<'a>(&'a mut self, hint: Option<&'a str>) -> Dialing<'a>;
}

/// A connection that came.
pub trait Accepted: Send {
    /// From where, for limits and the log.
    fn from(&self) -> IpAddr;
}

/// A way into a host.
pub trait Door: Send + Sync + 'static {
    /// A connection that nothing is known of.
    type Accepted: Accepted;
    /// The same after its first words, so that only those who speak cost any computing.
    type Heard: Send;

    /// The next connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Accepted>> + Send;

    /// Hears what comes first.
    fn hear(&self, accepted: Self::Accepted) -> impl Future<Output = io::Result<Self::Heard>> + Send;

    /// Finds out who it is.
    fn admit(&self, heard: Self::Heard) -> impl Future<Output = io::Result<(BoxCarrier, Who)>> + Send;
}
