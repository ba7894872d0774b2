//! The driver as a task of tokio's.
#![allow(unsafe_code, reason = "the runtime is to wait for descriptors that it owns")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tracing::Instrument;

use super::{Engine, Start};
use crate::error::Error;
use crate::shared::{Handle, Shared};

pub(crate) fn spawn_task(start: Start) -> Result<Handle, Error> {
    let woken = Arc::new(Notify::new());
    let wake = woken.clone();
    let shared = Arc::new(Shared::new(
        start.timeout,
        true,
        Box::new(move || wake.notify_one()),
    ));
    // Before the driver runs: it closes the connection with the last handle, which may be that of a call that came at once.
    let handle = Handle::new(shared.clone());
    let span = tracing::debug_span!("bus_client", driver = "task");
    tokio::spawn(async move { drive(start, shared, &woken).await }.instrument(span));
    Ok(handle)
}

/// A duplicate that the runtime waits for: the engine's own may be closed at any time. Which one it is of.
struct Waited {
    of: RawFd,
    fd: AsyncFd<OwnedFd>,
}

impl Waited {
    fn new(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<Self> {
        let duplicate = fd.try_clone_to_owned()?;
        // SAFETY: the duplicate is valid and owned by the `AsyncFd` from here on; nobody else closes or replaces it.
        let waited = unsafe { AsyncFd::register(duplicate) }?;
        Ok(Self {
            of: fd.as_raw_fd(),
            fd: waited,
        })
    }

    /// Keeps it where it is still the right one.
    fn keep(
        waited: Option<Self>,
        fd: Option<std::os::fd::BorrowedFd<'_>>,
        is_same: bool,
    ) -> io::Result<Option<Self>> {
        match (waited, fd) {
            (Some(waited), Some(fd)) if is_same && waited.of == fd.as_raw_fd() => Ok(Some(waited)),
            (_, Some(fd)) => Ok(Some(Self::new(fd)?)),
            (_, None) => Ok(None),
        }
    }
}

async fn drive(start: Start, shared: Arc<Shared>, woken: &Notify) {
    let mut engine = Engine::new(start, shared);
    let mut socket: Option<Waited> = None;
    let (mut generation, mut readable) = (0, false);
    loop {
        engine.turn(readable);
        if engine.is_over() {
            return;
        }
        let is_same = generation == engine.generation();
        generation = engine.generation();
        match Waited::keep(socket.take(), engine.socket(), is_same) {
            Ok(kept) => socket = kept,
            // Without descriptors to wait with nothing is to be done but to look from time to time.
            Err(error) => tracing::error!(%error, "the runtime cannot wait for the socket"),
        }
        let interest = engine.interest();
        let deadline = interest.deadline.map(|deadline| engine.clock().at(deadline));
        let sleep = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        readable = tokio::select! {
            () = woken.notified() => false,
            () = is_readable(socket.as_ref()) => true,
            () = is_writable(socket.as_ref(), interest.write) => false,
            () = sleep => false,
        };
    }
}

/// The engine reads until there is nothing more, or comes again by itself: so what was told by the edge is taken.
async fn is_readable(waited: Option<&Waited>) {
    match waited {
        Some(waited) => match waited.fd.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            Err(error) => tracing::error!(%error, "the runtime is going down"),
        },
        None => std::future::pending().await,
    }
}

async fn is_writable(waited: Option<&Waited>, is_wanted: bool) {
    match waited.filter(|_| is_wanted) {
        Some(waited) => match waited.fd.writable().await {
            Ok(mut guard) => guard.clear_ready(),
            Err(error) => tracing::error!(%error, "the runtime is going down"),
        },
        None => std::future::pending().await,
    }
}
