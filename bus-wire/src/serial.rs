//! The serial of a message.

use core::fmt;
use core::num::NonZeroU32;

/// The serial of a message, chosen by its sender; never zero (specification, "Message Format").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Serial(NonZeroU32);

impl Serial {
    /// The first serial that a sender usually chooses.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// `None` where `serial` is zero.
    pub const fn new(serial: u32) -> Option<Self> {
        match NonZeroU32::new(serial) {
            Some(serial) => Some(Self(serial)),
            None => None,
        }
    }

    /// As a number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// The serial after this one; after the greatest comes 1.
    #[must_use]
    pub const fn next(self) -> Self {
        match self.0.checked_add(1) {
            Some(next) => Self(next),
            None => Self::FIRST,
        }
    }
}

impl From<Serial> for u32 {
    fn from(serial: Serial) -> Self {
        serial.get()
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_no_serial_and_is_skipped() {
        assert_eq!(Serial::new(0), None);
        assert_eq!(Serial::new(7).unwrap().next().get(), 8);
        assert_eq!(Serial::new(u32::MAX).unwrap().next(), Serial::FIRST);
    }
}
