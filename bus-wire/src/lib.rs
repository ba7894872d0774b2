//! bus-wire
pub mod sasl;
