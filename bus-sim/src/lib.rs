//! bus-sim
