//! What replacing a process image with open descriptors costs this machine, with no daemon in it: a process that holds
//! so many sockets marks them close-on-exec, takes the mark off again, and executes itself.

#![allow(unsafe_code, reason = "system calls on descriptors by number")]

use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::{IntoRawFd, RawFd};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::clock;
use crate::report::Series;

/// Each in nanoseconds.
pub(crate) struct Floor {
    /// From before exec to the first line of `main` of the new image.
    pub(crate) exec: Series,
    /// Taking close-on-exec off each descriptor.
    pub(crate) clear: Series,
    /// Setting it on all descriptors with one call.
    pub(crate) set: Series,
}

/// In a process of its own.
pub(crate) fn measure(size: usize, rounds: usize) -> Result<Floor> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--floor", &size.to_string(), &rounds.to_string()])
        .output()?;
    ensure!(
        output.status.success(),
        "the floor: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut floor = Floor {
        exec: Series::default(),
        clear: Series::default(),
        set: Series::default(),
    };
    for line in String::from_utf8(output.stdout)?.lines() {
        let mut words = line.split(' ').map(str::parse);
        for series in [&mut floor.exec, &mut floor.clear, &mut floor.set] {
            series.add(words.next().context("the floor said too little")??);
        }
    }
    ensure!(
        floor.exec.len() == rounds,
        "{} rounds of the floor",
        floor.exec.len()
    );
    Ok(floor)
}

/// From before the SIGKILL of a process that shares a table of so many descriptors to the first line of the one that is
/// started in its place. In a process of its own.
pub(crate) fn respawn(size: usize, rounds: usize) -> Result<Series> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--floor-respawn", &size.to_string(), &rounds.to_string()])
        .output()?;
    ensure!(
        output.status.success(),
        "the floor of a respawn: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut series = Series::default();
    for line in String::from_utf8(output.stdout)?.lines() {
        series.add(line.parse()?);
    }
    Ok(series)
}

fn begin_respawn(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let size: usize = arguments.next().context("how many descriptors?")?.parse()?;
    let rounds: usize = arguments.next().context("how many rounds?")?.parse()?;
    let mut sockets = Vec::new();
    for _ in 0..size.div_ceil(2) {
        sockets.push(socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_NONBLOCK,
        )?);
    }
    // The child says when it began, on a pipe.
    let (mut reader, writer) = std::io::pipe()?;
    let mut child = sharer(&writer)?;
    let mut began = [0; 8];
    reader.read_exact(&mut began)?;
    for _ in 0..rounds {
        std::thread::sleep(std::time::Duration::from_millis(10));
        let before = clock::now()?;
        // SAFETY: plain system calls on a child of this process.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
        child = sharer(&writer)?;
        reader.read_exact(&mut began)?;
        writeln!(std::io::stdout().lock(), "{}", u64::from_ne_bytes(began) - before)?;
    }
    // SAFETY: as above.
    unsafe { libc::kill(child, libc::SIGKILL) };
    drop(sockets);
    Ok(())
}

/// A process that shares the table of descriptors, says when it began, and waits for its end.
fn sharer(writer: &std::io::PipeWriter) -> Result<libc::pid_t> {
    // SAFETY: like fork, in a process with one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_FILES | libc::SIGCHLD, 0, 0, 0, 0) };
    ensure!(pid >= 0, "clone: {}", std::io::Error::last_os_error());
    if pid == 0 {
        let began = clock::now().unwrap_or(0);
        let _ = { writer }.write_all(&began.to_ne_bytes());
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    }
    Ok(libc::pid_t::try_from(pid)?)
}

/// The life of an image of the measured process; `None` if this is none.
pub(crate) fn image() -> Option<Result<()>> {
    let started = clock::now();
    let mut arguments = std::env::args().skip(1);
    let outcome = match arguments.next().as_deref() {
        Some("--floor") => begin(arguments),
        Some("--floor-respawn") => begin_respawn(arguments),
        Some("--floor-image") => started.and_then(|started| go_on(arguments, started)),
        _ => return None,
    };
    Some(outcome)
}

fn begin(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let size: usize = arguments.next().context("how many descriptors?")?.parse()?;
    let rounds: usize = arguments.next().context("how many rounds?")?.parse()?;
    let mut last = 0;
    for _ in 0..size.div_ceil(2) {
        let (one, other) = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_NONBLOCK,
        )?;
        last = one.into_raw_fd().max(other.into_raw_fd());
    }
    round(rounds, last)
}

fn go_on(mut arguments: impl Iterator<Item = String>, started: u64) -> Result<()> {
    let mut number = || -> Result<u64> { Ok(arguments.next().context("an argument is missing")?.parse()?) };
    let (rounds, last, before) = (number()? as usize, number()? as RawFd, number()?);
    let (clear, set) = (number()?, number()?);
    writeln!(std::io::stdout().lock(), "{} {clear} {set}", started - before)?;
    if rounds == 0 {
        return Ok(());
    }
    round(rounds, last)
}

/// Marks, clears and goes on as a new image.
fn round(rounds: usize, last: RawFd) -> Result<()> {
    let before = clock::now()?;
    // SAFETY: changes flags only.
    let marked = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    ensure!(marked == 0, "close_range: {}", std::io::Error::last_os_error());
    let set = clock::now()? - before;
    let before = clock::now()?;
    for fd in 3..=last {
        // SAFETY: changes a flag only.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    }
    let clear = clock::now()? - before;
    let own = CString::new(std::env::current_exe()?.into_os_string().into_encoded_bytes())?;
    let before = clock::now()?;
    let numbers = [(rounds - 1) as u64, last as u64, before, clear, set].map(|number| number.to_string());
    let mut arguments = vec![own.clone(), c"--floor-image".to_owned()];
    for number in numbers {
        arguments.push(CString::new(number)?);
    }
    nix::unistd::execv(&own, &arguments)?;
    Ok(())
}
