//! bus-load
