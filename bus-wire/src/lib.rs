//! bus-wire
