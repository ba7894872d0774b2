//! `bus carry`: the far end of a carrier that is a command's input and output, as in `ssh HOST bus carry`.
//!
//! A session outlives ssh, so it cannot live in this process: it is the listener's, on a unix socket of this machine, and this
//! process passes bytes on. Who is there the listener learns from the kernel: the user that ssh logged in.

use anyhow::Context;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::thread;

/// Bytes that are passed on at once.
const CHUNK: usize = 64 * 1024;

/// Until either end is over.
pub(crate) fn run(socket: &Path) -> anyhow::Result<ExitCode> {
    let near = UnixStream::connect(socket).with_context(|| format!("no session at {}", socket.display()))?;
    let far = near.try_clone()?;
    // This thread is not waited for: reading may take for ever, and the process ends when the socket does.
    thread::spawn(move || {
        // Whatever the reason, no more comes: the other side has to know.
        let _ = pass(&mut io::stdin().lock(), &mut &near);
        let _ = near.shutdown(Shutdown::Both);
    });
    pass(&mut &far, &mut io::stdout().lock())?;
    Ok(ExitCode::SUCCESS)
}

fn pass(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                to.write_all(&buffer[..count])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
