//! Waits for a time on CLOCK_BOOTTIME: tokio's own timers stand still while the machine sleeps, and a machine that wakes has
//! to ask at once whether anybody is still there.

use crate::moment::Moment;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// A time to wait for.
#[derive(Debug)]
pub(super) struct Timer {
    fd: AsyncFd<Fd>,
    armed: Option<Moment>,
}

/// What tokio can wait for.
#[derive(Debug)]
struct Fd(TimerFd);

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let fd = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
        #[allow(unsafe_code)]
        // SAFETY: the descriptor is owned by what is registered, and stays open and the same until that is dropped.
        let fd = unsafe { AsyncFd::register_with_interest(Fd(fd), tokio::io::Interest::READABLE) }?;
        Ok(Self { fd, armed: None })
    }

    /// Ready when that time has come. Another time than before replaces it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, at: Moment) -> Poll<io::Result<()>> {
        if self.armed != Some(at) {
            // Zero would disarm it.
            let since_boot = Duration::from_micros(at.as_micros().max(1));
            let expiration = Expiration::OneShot(TimeSpec::from_duration(since_boot));
            self.fd
                .get_ref()
                .0
                .set(expiration, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            self.armed = Some(at);
        }
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            // Reading tells it to be quiet; whether it is time the caller sees.
            let mut count = [0; 8];
            match nix::unistd::read(&self.fd.get_ref().0, &mut count) {
                Ok(_) => {
                    self.armed = None;
                    return Poll::Ready(Ok(()));
                }
                Err(nix::Error::EAGAIN) => guard.clear_ready(),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}
