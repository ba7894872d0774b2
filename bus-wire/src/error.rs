//! What can be wrong with a message.

use alloc::string::String;

use crate::names::NameError;
use crate::signature::SignatureError;

/// Why bytes are not a valid message, or why a message cannot be made.
///
/// `at` is the offset of the fault from the first byte of the message, in bytes. Each text names the clause of the
/// specification that is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The first byte is neither `l` nor `B`.
    #[error("byte 0: endianness flag is {flag:#04x}, not 'l' or 'B' (specification, Message Format)")]
    Endian {
        /// What it is.
        flag: u8,
    },
    /// The major protocol version is not 1.
    #[error("byte 3: protocol version is {version}, not 1 (specification, Message Format)")]
    Version {
        /// What it is.
        version: u8,
    },
    /// The message type is zero.
    #[error("byte 1: message type is 0, INVALID (specification, Message Format)")]
    TypeZero,
    /// The serial is zero.
    #[error("byte {at}: the serial is zero (specification, Message Format)")]
    SerialZero {
        /// Where.
        at: usize,
    },
    /// An array that claims more than 64 MiB.
    #[error(
        "byte {at}: an array is {length} bytes long, more than 64 MiB (specification, Marshaling: ARRAY)"
    )]
    ArrayTooLong {
        /// Where its length stands.
        at: usize,
        /// In bytes.
        length: usize,
    },
    /// A header that is to be forwarded has unknown fields, or a sender, and is longer than
    /// [`MAX_FOREIGN_HEADER`](crate::limits::MAX_FOREIGN_HEADER).
    #[error(
        "the header is {length} bytes long and has fields that are not passed on, which one of more than {limit} may not"
    )]
    ForeignHeaderTooLong {
        /// In bytes.
        length: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A message of more than 128 MiB, or than the limit of this connection.
    #[error("the message is {length} bytes long, more than {limit} (specification, Message Format)")]
    TooLong {
        /// In bytes.
        length: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The bytes given are not exactly one message.
    #[error(
        "the message is {length} bytes long by its header, but {given} bytes are given (specification, Message Format)"
    )]
    Length {
        /// By its header, in bytes.
        length: usize,
        /// What is there, in bytes.
        given: usize,
    },
    /// The bytes end before the value does, or an array before its last element.
    #[error("byte {at}: the value ends outside of what contains it (specification, Marshaling)")]
    Truncated {
        /// Where.
        at: usize,
    },
    /// The body goes on after the last value of its signature.
    #[error(
        "byte {at}: the body goes on after the last value of its signature (specification, Message Format)"
    )]
    TrailingBytes {
        /// Where.
        at: usize,
    },
    /// There is a body but no signature.
    #[error("byte {at}: there is a body but no signature (specification, Header Fields: SIGNATURE)")]
    BodyWithoutSignature {
        /// Where the body begins.
        at: usize,
    },
    /// A padding byte that is not zero.
    #[error("byte {at}: padding is not zero (specification, Marshaling)")]
    Padding {
        /// Where.
        at: usize,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("byte {at}: a boolean is {value}, not 0 or 1 (specification, Marshaling: BOOLEAN)")]
    Boolean {
        /// Where.
        at: usize,
        /// What it is.
        value: u32,
    },
    /// A string that is not UTF-8.
    #[error("byte {at}: a string is not UTF-8 (specification, Marshaling: STRING)")]
    Utf8 {
        /// Where the string's text begins.
        at: usize,
    },
    /// A string with a nul byte inside.
    #[error("byte {at}: a string contains a nul byte (specification, Marshaling: STRING)")]
    Nul {
        /// Where.
        at: usize,
    },
    /// A string or signature without the nul byte after its end.
    #[error("byte {at}: a string does not end in a nul byte (specification, Marshaling: STRING)")]
    NotTerminated {
        /// Where the nul should be.
        at: usize,
    },
    /// An object path or a name in a header field that is not valid.
    #[error("byte {at}: {what} is not valid: {cause}")]
    Name {
        /// Where its text begins.
        at: usize,
        /// Which kind of name.
        what: &'static str,
        /// What is wrong with it.
        cause: NameError,
    },
    /// A signature that is not valid.
    #[error("byte {at}: a signature is not valid: {cause}")]
    Signature {
        /// Where its text begins.
        at: usize,
        /// What is wrong with it.
        cause: SignatureError,
    },
    /// A variant whose signature is not exactly one complete type.
    #[error("byte {at}: a variant holds not exactly one complete type (specification, Marshaling: VARIANT)")]
    VariantSignature {
        /// Where its signature begins.
        at: usize,
    },
    /// Containers nested more than 64 deep.
    #[error("byte {at}: containers are nested more than 64 deep (specification, Valid Signatures)")]
    TooDeep {
        /// Where.
        at: usize,
    },
    /// A header field with the code 0.
    #[error("byte {at}: header field code is 0, INVALID (specification, Header Fields)")]
    FieldZero {
        /// Where.
        at: usize,
    },
    /// A header field whose value has not the type that it must have.
    #[error("byte {at}: header field {field} has the wrong type (specification, Header Fields)")]
    FieldType {
        /// Where.
        at: usize,
        /// Its code.
        field: u8,
    },
    /// A header field that is there twice.
    #[error("byte {at}: header field {field} is there twice (specification, Header Fields)")]
    FieldTwice {
        /// Where the second one is.
        at: usize,
        /// Its code.
        field: u8,
    },
    /// A header field that a message of this type must have.
    #[error("header field {field} is missing (specification, Header Fields)")]
    FieldMissing {
        /// Its name in the specification.
        field: &'static str,
    },
    /// The path or interface that never goes over a connection.
    #[error("byte {at}: the {what} of local messages is reserved (specification, Header Fields)")]
    ReservedLocal {
        /// Where its text begins.
        at: usize,
        /// `path` or `interface`.
        what: &'static str,
    },
    /// A message that claims more file descriptors than came with it.
    #[error(
        "the message claims {claimed} file descriptors, but {arrived} have arrived (specification, Header Fields: UNIX_FDS)"
    )]
    MissingFds {
        /// By its header.
        claimed: u32,
        /// What is there.
        arrived: usize,
    },
    /// While a message is made: a value of another type than the container declares.
    #[error(
        "a value of type '{found}' is written where the signature says '{expected}' (specification, Type System)"
    )]
    WrongType {
        /// Type code that the signature asks for.
        expected: char,
        /// Type code of the value.
        found: char,
    },
    /// While a message is made: a struct, dict entry or variant that has not all its values.
    #[error("a container was closed before all its values were written (specification, Type System)")]
    Incomplete,
    /// While a message is made: a Rust value that has no place in D-Bus, or another fault that its `Serialize` found.
    #[error("{0}")]
    Value(String),
}
