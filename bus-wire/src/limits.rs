//! The limits that the specification sets, and the sizes at which this crate changes its ways.

/// Longest message, header and body (specification, "Message Format": 2 to the 27th, 128 MiB).
pub const MAX_MESSAGE: usize = 1 << 27;
/// Longest content of an array (specification, "Marshaling": 2 to the 26th, 64 MiB).
pub const MAX_ARRAY: usize = 1 << 26;
/// Longest bus, interface, member or error name (specification, "Valid Names").
pub const MAX_NAME: usize = 255;
/// Longest signature (specification, "Valid Signatures").
pub const MAX_SIGNATURE: usize = 255;
/// Deepest nesting of arrays in a signature (specification, "Valid Signatures").
pub const MAX_ARRAY_DEPTH: u32 = 32;
/// Deepest nesting of structs in a signature (specification, "Valid Signatures").
pub const MAX_STRUCT_DEPTH: u32 = 32;
/// Deepest nesting of containers in a value, counting variants (specification, "Valid Signatures").
pub const MAX_DEPTH: u32 = 64;
/// Length of the fixed part of a header, up to and with the length of the array of header fields.
pub const FIXED_HEADER: usize = 16;
/// Longest header that may have fields which a bus does not pass on: to leave them out is work. No limit of the
/// specification's, which knows no such fields.
pub const MAX_FOREIGN_HEADER: usize = 1 << 20;
/// From this length on a header is forwarded by [`stitch_long_header`](crate::stitch_long_header).
pub const LONG_HEADER: usize = 4096;
/// A partial message longer than this is reported by [`Framer::large`](crate::Framer::large).
pub const LARGE_MESSAGE: usize = 64 * 1024;
