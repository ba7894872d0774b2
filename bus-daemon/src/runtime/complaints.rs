//! Log lines that peers bring about: so many for each user, whatever their peers do.

use std::fmt::Arguments;
use std::time::Duration;

use crate::os::clock;
use crate::os::rate::{Permit, Rates};

/// Writes log lines about peers, as far as their users' rates permit.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    rates: Rates,
}

impl Complaints {
    /// A line about a peer of this user, or of nobody known.
    pub(crate) fn warn(&mut self, uid: Option<u32>, text: Arguments<'_>) {
        if let Some(permit) = self.permit(uid) {
            tracing::warn!("{text}{permit}");
        }
    }

    fn permit(&mut self, uid: Option<u32>) -> Option<Permit> {
        self.rates.permit(uid, Duration::from_nanos(clock::monotonic().0))
    }
}
