//! Log lines to standard error, which never block: where a pipe is full, lines are lost and not the bus.

#![allow(unsafe_code, reason = "polls standard error")]

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Starts logging. `BUS_LOG` filters (tracing's directives); `warn` by default.
pub(crate) fn start() {
    let log = tracing_subscriber::fmt()
        .with_writer(Stderr)
        .with_ansi(false)
        .without_time()
        .with_target(false);
    let _ = match EnvFilter::try_from_env("BUS_LOG") {
        Ok(filter) => log.with_env_filter(filter).try_init(),
        // There is no filter to parse, in the pause of an upgrade above all.
        Err(_) => log.with_max_level(tracing::Level::WARN).try_init(),
    };
}

/// Standard error, written to only when it takes a line at once.
#[derive(Debug, Clone, Copy)]
struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Self;

    fn make_writer(&'a self) -> Self::Writer {
        *self
    }
}

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut poll = libc::pollfd {
            fd: 2,
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: one pollfd, no waiting.
        let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
        if ready == 1 && poll.revents & libc::POLLOUT != 0 {
            // A pipe that is ready takes PIPE_BUF bytes at once.
            let part = &line[..line.len().min(4096)];
            // SAFETY: `part` is readable. Failure loses the line only.
            unsafe { libc::write(2, part.as_ptr().cast(), part.len()) };
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
