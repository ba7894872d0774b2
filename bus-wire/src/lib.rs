//! The D-Bus wire protocol, as plain values without I/O.
//!
//! - [`Message`]: one message, validated completely and once, with its header fields as offsets into the received
//!   bytes. [`MessageBuilder`] makes one, [`stitch_header`] puts the sender into one that is forwarded.
//! - [`BodyReader`] and [`BodyWriter`]: a body value by value; [`serde`]: a body as a Rust type.
//! - [`Framer`]: messages out of a byte stream; [`SendQueue`]: a byte stream out of messages.
//! - [`sasl`], [`match_rule`], [`address`]: the texts of the protocol.
//!
//! The framer, the send queue and the authentication are plain values that can be saved in the middle of a message
//! and continued by another process.

// The tests within and beside the crate share what makes values.
#[cfg(test)]
extern crate self as bus_wire;

pub mod address;
mod arrival;
pub mod body;
pub mod builder;
mod endian;
pub mod error;
mod fd;
pub mod framer;
pub mod guid;
pub mod header;
pub mod limits;
pub mod match_rule;
mod message;
pub mod names;
pub mod sasl;
pub mod send_queue;
pub mod serde;
mod serial;
pub mod signature;
mod stitch;

pub use self::serde::{Variant, from_body, to_body};
pub use address::{Address, AddressError, AddressList};
pub use body::{ArrayReader, BodyReader, BodyWriter, ReadError};
pub use builder::MessageBuilder;
pub use endian::Endian;
pub use error::MessageError;
pub use fd::{Fd, Fds};
pub use framer::{Framed, Framer, FramerState, LargeMessage, NextCall};
pub use guid::Guid;
pub use header::{Flags, MessageType, message_length};
pub use match_rule::{Arg, ArgCondition, ArgKind, MatchRule, MatchRuleError, PathCondition};
pub use message::Message;
pub use names::{
    BusName, ErrorName, InterfaceName, MemberName, NameError, ObjectPath, UniqueName, WellKnownName,
};
pub use sasl::{Mechanism, SaslConfig, SaslDone, SaslError, SaslServer, SaslStage, SaslState, SaslStep};
pub use send_queue::{PieceState, SendQueue, SendQueueState, TailPiece};
pub use serial::Serial;
pub use signature::{Signature, SignatureError};
pub use stitch::{stitch_header, stitch_long_header};
