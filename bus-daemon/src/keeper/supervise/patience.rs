//! Waiting for what the system has no room for just now: processes, memory, descriptors.

use std::io::{Error, Result};
use std::time::Duration;

use crate::os::process;

/// How long to wait at first and at most.
const FIRST: Duration = Duration::from_millis(20);
const LAST: Duration = Duration::from_secs(1);

/// How often what was refused is tried again.
#[derive(Debug)]
pub(super) struct Patience {
    /// How long to wait next; `None`: not at all.
    next: Option<Duration>,
    has_told: bool,
}

impl Patience {
    /// Whatever is refused stays refused: nobody would lose anything.
    pub(super) fn none() -> Self {
        Self {
            next: None,
            has_told: false,
        }
    }

    /// Whatever is refused for want of room is tried again and again, until the daemon is to stop. All that there is to be lost
    /// lies in shared memory, and waits as well.
    pub(super) fn endless() -> Self {
        Self {
            next: Some(FIRST),
            has_told: false,
        }
    }

    /// Waits before it is tried again. False: that is no use.
    pub(super) fn wait(&mut self, what: &str, error: &Error) -> bool {
        let Some(delay) = self.next else { return false };
        if !is_want_of_room(error) || process::is_asked_to_stop() {
            return false;
        }
        if !self.has_told {
            tracing::error!("{what}: {error}; it is tried again until there is room");
            self.has_told = true;
        }
        std::thread::sleep(delay);
        self.next = Some((2 * delay).min(LAST));
        true
    }

    /// Tries until there is room.
    pub(super) fn until_there_is_room<T>(
        mut self,
        what: &str,
        mut attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        loop {
            match attempt() {
                Err(error) if self.wait(what, &error) => {}
                result => return result,
            }
        }
    }
}

/// Whether others may give back what is missing.
fn is_want_of_room(error: &Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::ENOSPC)
    )
}
