//! A D-Bus client whose connection comes back, and says what became of everything.

pub mod session;
