//! A D-Bus client whose connection comes back, and says what became of everything.
//!
//! ```no_run
//! # async fn example() -> Result<(), bus_client::Error> {
//! let connection = bus_client::Connection::session().connect().await?;
//! let id: String = connection
//!     .call("org.freedesktop.DBus", "/", "org.freedesktop.DBus.GetId", &())
//!     .await?;
//! # Ok(())
//! # }
//! ```
//!
//! - [`Connection`]: calls, signals, names, objects. When the bus goes it comes back by itself, asks for its match rules and
//!   names again, and every handle stays valid. [`Error::fate`] says what became of a call.
//! - [`session`]: the pure core that decides all of this, without a clock, a socket or a runtime.
//!
//! - `#[derive(Type, Encode, Decode)]`, with the feature `derive`, which is on by default: structs and enums of the application as
//!   arguments. The attributes `#[bus(..)]` are those of the crate bus-wire-derive, and no other crate has to be depended on.
//!
//! The driver is a tokio task ([`Builder::connect`]) or a thread of its own ([`Builder::connect_thread`]); calls and streams are
//! the same types for both, with `.await` or `.wait()`.

pub mod session;

#[cfg(feature = "runtime")]
mod address;
#[cfg(feature = "runtime")]
mod builder;
#[cfg(feature = "runtime")]
mod call;
#[cfg(feature = "runtime")]
mod clock;
#[cfg(feature = "runtime")]
mod connection;
#[cfg(feature = "runtime")]
mod driver;
#[cfg(feature = "runtime")]
mod error;
#[cfg(feature = "runtime")]
mod listener;
#[cfg(feature = "runtime")]
mod message;
#[cfg(feature = "runtime")]
mod object;
#[cfg(feature = "runtime")]
mod rule;
#[cfg(feature = "runtime")]
mod shared;
#[cfg(feature = "runtime")]
mod stream;
#[cfg(feature = "runtime")]
mod wait;

/// What derived code calls; not for anybody else.
#[doc(hidden)]
pub mod __private {
    pub use bus_wire;
}

// The traits alone: the derives of the same names are this crate's, not those that bus-wire may have.
pub use bus_wire::__private::traits::{Decode, Encode, Type};
pub use bus_wire::{DecodeOwned, FdIndex, Flags, Guid, MessageType, Value, Variant};
#[cfg(feature = "derive")]
pub use bus_wire_derive::{ClientDecode as Decode, ClientEncode as Encode, ClientType as Type};
pub use session::{
    Cause, Decision, Fate, Known, LinkError, Missed, NameFlags, NameState, Refusal, State, WhileDown,
};

#[cfg(feature = "runtime")]
pub use self::{
    builder::{Builder, Link},
    call::{Call, CallFuture},
    connection::{Connection, Credentials},
    error::{Error, Remote},
    listener::{Accept, Listener},
    message::Message,
    object::{BoxFuture, Cancelled, Exported, Incoming, Interface, Objects, Reply, WOULD_DEADLOCK},
    rule::Rule,
    stream::{Event, Name, NameChange, NameWatch, OwnName, Signal, Signals, States},
};
