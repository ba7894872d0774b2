//! bus-daemon
