//! The errand that finds a cookie: a child of the keeper reads the keyring of the bus's user, since a home directory may be
//! far, its lock may be held, and the user data base may hang.

mod file;

use std::os::fd::RawFd;

use nix::sys::wait::WaitStatus;
use nix::unistd::{Pid, User};

use super::helper::{Helper, HelperEnd, describe};
use crate::broker::Keys;
use crate::control::Outcome;
use crate::handoff::codec;
use crate::os::clock::Nanos;
use crate::os::descriptor::close;
use crate::os::{memfd, random};

/// How long it may take.
const PATIENCE: Nanos = Nanos(10_000_000_000);

/// A cookie is being looked for. Dropped, it leaves nothing behind but perhaps a lock, which is outlived.
pub(crate) struct KeyringReading {
    helper: Helper,
    /// Where the child puts the outcome; -1 once it was given away.
    payload: RawFd,
}

impl KeyringReading {
    /// Begins. `payload` is an empty memfd for the outcome; it is still the caller's where this fails.
    pub(crate) fn start(payload: RawFd) -> std::io::Result<Self> {
        let helper = Helper::fork(PATIENCE, &[payload], || {
            i32::from(write(payload, find()).is_err())
        })?;
        Ok(Self { helper, payload })
    }

    /// What this process has open for it.
    pub(crate) fn fd(&self) -> RawFd {
        self.payload
    }

    /// When to look at it at the latest.
    pub(crate) fn due(&self) -> Option<Nanos> {
        self.helper.due()
    }

    /// Takes note of the end of a process, if it is the child.
    pub(crate) fn note_end(&mut self, ended: Pid, status: WaitStatus) -> bool {
        self.helper.note_end(ended, status)
    }

    /// Goes on: the memfd with the outcome, the caller's from now on, once that is known.
    pub(crate) fn follow(&mut self) -> Option<RawFd> {
        self.helper.check_time();
        let failed = match self.helper.end()? {
            HelperEnd::Ended(WaitStatus::Exited(_, 0)) => None,
            HelperEnd::Ended(status) => {
                Some(format!("the process that read the keyring {}", describe(status)))
            }
            HelperEnd::Late => {
                let seconds = PATIENCE.0.div_ceil(1_000_000_000);
                Some(format!("reading the keyring took more than {seconds} s"))
            }
        };
        if let Some(text) = failed {
            // What a child that did not end well has written is not looked at.
            if let Err(error) = write(self.payload, Err(text)) {
                tracing::error!("no memory for what was found in the keyring: {error}");
            }
        }
        Some(std::mem::replace(&mut self.payload, -1))
    }
}

impl Drop for KeyringReading {
    fn drop(&mut self) {
        self.helper.abandon();
        close(self.payload);
    }
}

fn write(payload: RawFd, keys: Result<Keys, String>) -> std::io::Result<()> {
    let bytes = codec::encode(&Outcome::Keyring(keys)).map_err(std::io::Error::other)?;
    memfd::replace(payload, &bytes)
}

/// In the child.
fn find() -> Result<Keys, String> {
    let uid = nix::unistd::geteuid();
    let known = User::from_uid(uid).ok().flatten();
    let directory = file::directory(known.as_ref()).map_err(|error| error.to_string())?;
    let cookie = file::cookie(&directory, uid).map_err(|error| error.to_string())?;
    let mut seed = [0; 16];
    random::fill(&mut seed);
    Ok(Keys {
        user: known.map_or_else(String::new, |user| user.name),
        cookie,
        seed,
    })
}
