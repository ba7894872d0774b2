//! The D-Bus wire protocol, as plain values without I/O.
//!
//! - [`Message`]: one message, validated completely and once, with its header fields as offsets into the received
//!   bytes. [`MessageBuilder`] makes one, [`stitch_header`] puts the sender into one that is forwarded.
//! - [`Encode`](trait@Encode) and [`Decode`](trait@Decode): a body as Rust types, with [`Type`](trait@Type) for its
//!   signature, which the compiler computes; [`Value`]: a value of any type.
//! - [`BodyReader`] and [`BodyWriter`]: a body value by value; `serde_body`: a body as a Rust type through serde.
//! - [`Framer`]: messages out of a byte stream; [`SendQueue`]: a byte stream out of messages.
//! - [`sasl`], [`match_rule`], [`address`]: the texts of the protocol.
//!
//! The framer, the send queue and the authentication are plain values that can be saved in the middle of a message
//! and continued by another process.
//!
//! The crate needs an allocator and nothing else. Features:
//!
//! | feature | default | what it brings |
//! |---|---|---|
//! | `std` | yes | [`SendQueue::next_write`], hash maps, the fastest UTF-8 check that the processor has |
//! | `derive` | no | `#[derive(Type, Encode, Decode)]`, as described at [`bus_wire_derive`](https://docs.rs/bus-wire-derive) |
//! | `serde` | no | `Serialize` and `Deserialize` for what can be saved, and the module `serde_body` |

#![cfg_attr(not(any(feature = "std", test)), no_std)]

extern crate alloc;

// The tests within and beside the crate share what makes values.
#[cfg(test)]
extern crate self as bus_wire;

pub mod address;
mod arrival;
pub mod body;
pub mod builder;
pub mod decode;
mod derived;
pub mod encode;
mod endian;
pub mod error;
mod fd;
mod fixed;
pub mod framer;
pub mod guid;
pub mod header;
pub mod limits;
pub mod match_rule;
mod message;
pub mod names;
pub mod sasl;
pub mod send_queue;
#[cfg(feature = "serde")]
pub mod serde_body;
mod serial;
pub mod signature;
mod stitch;
mod tuples;
pub mod ty;
pub mod value;

#[cfg(feature = "derive")]
pub use bus_wire_derive::{Decode, Encode, Type};

#[doc(hidden)]
pub mod __private {
    pub use crate::derived::*;

    /// Without the derives of the same names.
    pub mod traits {
        pub use crate::decode::Decode;
        pub use crate::encode::Encode;
        pub use crate::ty::Type;
    }
}

pub use address::{Address, AddressError, AddressList};
pub use body::{ArrayReader, BodyReader, BodyWriter, ReadError};
pub use builder::MessageBuilder;
pub use decode::{Decode, DecodeError, DecodeFault, DecodeOwned, Step};
pub use encode::{Encode, Encoder, encode_body};
pub use endian::Endian;
pub use error::MessageError;
pub use fd::{Fd, FdIndex, Fds};
pub use fixed::Fixed;
pub use framer::{Framed, Framer, FramerState, LargeMessage, NextCall, NextWithFds};
pub use guid::Guid;
pub use header::{Flags, MessageType, message_length};
pub use match_rule::{
    Arg, ArgCondition, ArgKind, MatchRule, MatchRuleBuilder, MatchRuleError, PathCondition,
};
pub use message::Message;
pub use names::{
    BusName, ErrorName, InterfaceName, MemberName, NameArg, NameError, ObjectPath, OwnedBusName,
    OwnedErrorName, OwnedInterfaceName, OwnedMemberName, OwnedObjectPath, OwnedUniqueName,
    OwnedWellKnownName, UniqueName, WellKnownName,
};
pub use sasl::{
    ClientMechanism, CookieQuestion, Mechanism, NONCE as SASL_NONCE, SaslClient, SaslClientConfig,
    SaslClientDone, SaslClientError, SaslClientEvent, SaslClientStep, SaslConfig, SaslDone, SaslError,
    SaslServer, SaslStage, SaslState, SaslStep,
};
pub use send_queue::{PieceState, SendQueue, SendQueueState, TailPiece};
pub use serial::Serial;
pub use signature::{OwnedSignature, Signature, SignatureError};
pub use stitch::{stitch_header, stitch_long_header};
pub use ty::{Ty, Type, body_signature_of, signature_of};
pub use value::{Array, Dict, Structure, Value, ValueError, Variant};
