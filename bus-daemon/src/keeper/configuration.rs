//! Reading the configuration: a child of the keeper does it, since a file system may take as long as it likes.

use std::ffi::OsString;
use std::io::Result;
use std::os::fd::RawFd;

use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use serde::Serialize;

use super::helper::{Helper, HelperEnd, describe};
use super::watch::{Watched, WatchedDisk};
use crate::broker::ConfigV2;
use crate::config::Config;
use crate::config::options::{self, Command};
use crate::control::{Outcome, Refusal};
use crate::handoff::codec;
use crate::os::clock::Nanos;
use crate::os::descriptor::close;
use crate::os::memfd;

/// How long it may take.
const PATIENCE: Nanos = Nanos(10_000_000_000);

const FAILED: &str = "org.freedesktop.DBus.Error.Failed";
const TIMEOUT: &str = "org.freedesktop.DBus.Error.Timeout";

/// The configuration is being read. Dropped, it leaves nothing behind.
pub(crate) struct Reading {
    helper: Helper,
    patience: Nanos,
    /// Where the child puts the outcome; -1 once it was given away.
    payload: RawFd,
    /// Where it puts which directories it watches.
    watched: RawFd,
}

/// What was read.
#[derive(Debug)]
pub(crate) struct ReadConfiguration {
    /// A memfd with the encoded outcome, the caller's from now on.
    pub(crate) payload: RawFd,
    /// The encoded configuration in it, or why there is none.
    pub(crate) config: std::result::Result<Vec<u8>, Refusal>,
    /// Which directories are watched since.
    pub(crate) watched: Watched,
}

impl Reading {
    /// Begins to read what a start with these arguments would read. `payload` is an empty memfd for the outcome; it is
    /// still the caller's where this fails. The directories that are read are watched by this instance of inotify.
    pub(crate) fn start(arguments: Vec<OsString>, payload: RawFd, instance: Option<RawFd>) -> Result<Self> {
        Self::begin(payload, instance, |disk| read(arguments, disk))
    }

    /// The same for what was read before: what is to be said of it was said then.
    pub(crate) fn start_silent(
        arguments: Vec<OsString>,
        payload: RawFd,
        instance: Option<RawFd>,
    ) -> Result<Self> {
        Self::begin(payload, instance, |disk| {
            tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || {
                read(arguments, disk)
            })
        })
    }

    fn begin(
        payload: RawFd,
        instance: Option<RawFd>,
        read: impl FnOnce(&WatchedDisk) -> std::result::Result<Vec<u8>, Refusal>,
    ) -> Result<Self> {
        let patience = patience();
        let watched = memfd::create(c"bus-watched")?;
        let kept: Vec<RawFd> = [payload, watched].into_iter().chain(instance).collect();
        let helper = Helper::fork(patience, &kept, || {
            let disk = WatchedDisk::new(instance);
            let outcome = Outcome::Configuration(read(&disk));
            let written = write(payload, &outcome).and_then(|()| write(watched, &disk.into_watched()));
            i32::from(written.is_err())
        });
        Ok(Self {
            helper: helper.inspect_err(|_| close(watched))?,
            patience,
            payload,
            watched,
        })
    }

    /// What this process has open for it.
    pub(crate) fn fds(&self) -> [RawFd; 2] {
        [self.payload, self.watched]
    }

    /// When to look at it at the latest.
    pub(crate) fn due(&self) -> Option<Nanos> {
        self.helper.due()
    }

    /// Takes note of the end of a process, if it is the child.
    pub(crate) fn note_end(&mut self, ended: Pid, status: WaitStatus) -> bool {
        self.helper.note_end(ended, status)
    }

    /// Waits for the end, where there is nothing else to do meanwhile: what was read.
    pub(crate) fn wait(mut self) -> ReadConfiguration {
        loop {
            if let Some(read) = self.follow() {
                return read;
            }
            self.helper.wait_a_little();
        }
    }

    /// Goes on: what was read, once that is known.
    pub(crate) fn follow(&mut self) -> Option<ReadConfiguration> {
        self.helper.check_time();
        let end = self.helper.end()?;
        let config = match end {
            HelperEnd::Ended(WaitStatus::Exited(_, 0)) => self.outcome(),
            HelperEnd::Ended(status) => Err(Refusal {
                error: FAILED.into(),
                text: format!("the process that read the configuration {}", describe(status)),
            }),
            HelperEnd::Late => Err(Refusal {
                error: TIMEOUT.into(),
                text: format!(
                    "reading the configuration took more than {} s",
                    self.patience.0.div_ceil(1_000_000_000)
                ),
            }),
        };
        if let Err(refusal) = &config {
            // What a child that did not end well has written is not looked at.
            let outcome = Outcome::Configuration(Err(refusal.clone()));
            let written = write(self.payload, &outcome);
            if let Err(error) = written {
                tracing::error!("no memory for the outcome of a reload: {error}");
            }
        }
        Some(ReadConfiguration {
            payload: std::mem::replace(&mut self.payload, -1),
            config,
            watched: self.watched(),
        })
    }

    /// None where the child did not come to say so.
    fn watched(&self) -> Watched {
        let bytes = memfd::read(self.watched).ok();
        bytes
            .and_then(|bytes| codec::decode(&bytes).ok())
            .unwrap_or_default()
    }

    fn outcome(&self) -> std::result::Result<Vec<u8>, Refusal> {
        let unreadable = |text: String| Refusal {
            error: FAILED.into(),
            text: format!("what the process has written that read the configuration: {text}"),
        };
        let bytes = memfd::read(self.payload).map_err(|error| unreadable(error.to_string()))?;
        match codec::decode(&bytes) {
            Ok(Outcome::Configuration(config)) => config,
            Ok(Outcome::Trial(_) | Outcome::Keyring(_)) => Err(unreadable("it is something else".into())),
            Err(error) => Err(unreadable(error.to_string())),
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.helper.abandon();
        close(self.payload);
        close(self.watched);
    }
}

fn write(memfd: RawFd, value: &impl Serialize) -> Result<()> {
    let bytes = codec::encode(value).map_err(std::io::Error::other)?;
    memfd::replace(memfd, &bytes)
}

fn patience() -> Nanos {
    #[cfg(feature = "test-hooks")]
    if let Some(patience) = crate::fault::patience() {
        return patience;
    }
    PATIENCE
}

/// In the child.
fn read(arguments: Vec<OsString>, disk: &WatchedDisk) -> std::result::Result<Vec<u8>, Refusal> {
    let failed = |text: String| Refusal {
        error: FAILED.into(),
        text,
    };
    let arguments = arguments.into_iter().filter_map(|one| one.into_string().ok());
    let options = match options::parse(arguments).map_err(|error| failed(error.to_string()))? {
        Command::Run(options) => options,
        Command::Help | Command::Version | Command::Introspect => {
            return Err(failed("the command line asks for no bus".into()));
        }
    };
    let config = crate::config::load::load_from(&options, disk).map_err(|error| Refusal {
        error: error.error_name().into(),
        text: error.to_string(),
    })?;
    encoded(&config).map_err(|error| failed(error.to_string()))
}

/// A configuration as it stands in the payload of an errand.
pub(crate) fn encoded(config: &Config) -> std::result::Result<Vec<u8>, codec::CodecError> {
    codec::encode(&ConfigV2::from(config))
}

/// The inverse of [`encoded`].
pub(crate) fn decoded(bytes: &[u8]) -> std::result::Result<Config, codec::CodecError> {
    crate::journal::decode_config(bytes)
}
