//! A D-Bus message bus daemon that is replaced in place, without its clients noticing.

pub mod config;
