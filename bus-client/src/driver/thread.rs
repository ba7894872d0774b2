//! The driver as a thread of its own.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Engine, Start};
use crate::error::Error;
use crate::session::LinkError;
use crate::shared::{Handle, Shared};

pub(crate) fn spawn_thread(start: Start) -> Result<Handle, Error> {
    let os = |doing| move |error: std::io::Error| Error::Connect(LinkError::os(doing, &error));
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let woken = EventFd::from_flags(flags).map_err(|error| os("eventfd")(error.into()))?;
    let woken = Arc::new(woken);
    let wake = woken.clone();
    let shared = Arc::new(Shared::new(
        start.timeout,
        false,
        // Where it is full the driver is woken anyway.
        Box::new(move || {
            let _ = wake.write(1);
        }),
    ));
    // Before the driver runs: it closes the connection with the last handle, which may be that of a call that came at once.
    let handle = Handle::new(shared.clone());
    std::thread::Builder::new()
        .name("bus-client".to_owned())
        .spawn(move || drive(start, shared, &woken))
        .map_err(os("spawn a thread"))?;
    Ok(handle)
}

fn drive(start: Start, shared: Arc<Shared>, woken: &EventFd) {
    let _span = tracing::debug_span!("bus_client", driver = "thread").entered();
    let mut engine = Engine::new(start, shared);
    engine.turn(false);
    while !engine.is_over() {
        let readable = wait(&engine, woken);
        engine.turn(readable);
    }
}

/// Whether there is something to be read.
fn wait(engine: &Engine, woken: &EventFd) -> bool {
    let interest = engine.interest();
    let timeout = match interest.deadline {
        // A millisecond more rather than one that is too early and wakes for nothing.
        Some(deadline) => deadline.saturating_sub(engine.clock().now()) + Duration::from_millis(1),
        None => Duration::from_secs(3600),
    };
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let mut fds = vec![PollFd::new(woken.as_fd(), PollFlags::POLLIN)];
    let mut events = PollFlags::POLLIN;
    if interest.write {
        events |= PollFlags::POLLOUT;
    }
    let socket = engine.socket().map(|socket| {
        fds.push(PollFd::new(socket, events));
        fds.len() - 1
    });
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => tracing::error!(%error, "poll"),
    }
    let has = |fd: &PollFd<'_>, flags| fd.revents().is_some_and(|events| events.intersects(flags));
    if has(&fds[0], PollFlags::POLLIN) {
        let _ = woken.read();
    }
    let readable = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
    socket.is_some_and(|index| has(&fds[index], readable))
}
