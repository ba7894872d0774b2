//! How a keeper begins: afresh, or in the place of another process image.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd};
use std::process::ExitCode;

use nix::fcntl::OFlag;
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::unistd::{ForkResult, Gid, Uid, User};

use super::control::Control;
use super::listen::{fresh_guid, listen_on_all};
use super::record::KeeperV1;
use super::supervise::{Keeper, Origin, block_signals};
use crate::config::options::Options;

/// Prints to standard output.
pub(crate) fn print(text: &str) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// A clean start.
pub(crate) fn clean(
    arguments: &[OsString],
    options: &Options,
    own_binary: RawFd,
) -> Result<ExitCode, String> {
    // What was inherited is not for children; it is not closed, since the configuration may be one of them.
    super::close_on_exec_from(3).map_err(|error| format!("cannot mark inherited descriptors: {error}"))?;
    let config = crate::config::load::load(options).map_err(|error| error.to_string())?;
    let executable = std::fs::read_link("/proc/self/exe")
        .map_err(|error| format!("cannot tell where the daemon's own binary is: {error}"))?;
    raise_descriptor_limit();
    if config.listen.is_empty() {
        return Err("the configuration names no address to listen on (<listen>, or --address)".into());
    }
    let pid_file = config.pid_file.clone();
    if let Some(path) = pid_file
        .as_ref()
        .filter(|path| std::path::Path::new(path).exists())
    {
        return Err(format!(
            "the pid file {path} exists: another daemon may be running; remove it if not"
        ));
    }
    let listeners = listen_on_all(&config.listen).map_err(|error| error.to_string())?;
    let addresses: Vec<&str> = listeners
        .iter()
        .map(|listener| listener.address.as_str())
        .collect();
    let addresses = addresses.join(";");

    if config.fork && fork_to_background(config.keep_umask)?.is_parent() {
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(path) = &pid_file {
        std::fs::write(path, format!("{}\n", std::process::id()))
            .map_err(|error| format!("cannot write the pid file {path}: {error}"))?;
    }
    if let Some(fd) = options.print_address {
        tell(fd, &addresses)?;
    }
    if let Some(fd) = options.print_pid {
        tell(fd, &std::process::id().to_string())?;
    }
    for fd in [options.print_address, options.print_pid]
        .into_iter()
        .flatten()
        .filter(|fd| *fd > 2)
    {
        // Whoever reads there reads to the end. The same descriptor may have been given for both.
        let _ = nix::unistd::close(fd);
    }
    background_ready();

    if let Some(user) = &config.user {
        become_user(user)?;
    }
    let epoll = Epoll::new(EpollCreateFlags::empty()).map_err(|errno| format!("epoll: {errno}"))?;
    let control = Control::create().map_err(|error| format!("socketpair: {error}"))?;
    let record = KeeperV1::new(
        arguments,
        &executable,
        listeners,
        fresh_guid().to_string(),
        machine_id(),
        epoll.0.into_raw_fd(),
        control,
        pid_file,
    );
    let signals = block_signals().map_err(|errno| format!("signals: {errno}"))?;
    become_subreaper();
    Ok(Keeper::new(record, own_binary, signals.as_raw_fd(), None)
        .run(&signals, Origin::Clean(Box::new(config))))
}

/// Takes the place of another process image of the daemon.
pub(crate) fn restored(
    fd: RawFd,
    own_binary: RawFd,
    rolled_back: Option<String>,
) -> Result<ExitCode, String> {
    let record = KeeperV1::load(fd)?;
    let signals = block_signals().map_err(|errno| format!("signals: {errno}"))?;
    become_subreaper();
    let keeper = match rolled_back {
        None => {
            Keeper::new(record, own_binary, signals.as_raw_fd(), Some(fd)).run(&signals, Origin::Upgraded)
        }
        Some(reason) => {
            // Nobody else can be returned to.
            let _ = nix::unistd::close(fd);
            Keeper::new(record.taken_back(), own_binary, signals.as_raw_fd(), None)
                .run(&signals, Origin::RolledBack { reason })
        }
    };
    Ok(keeper)
}

fn tell(fd: RawFd, line: &str) -> Result<(), String> {
    #[expect(unsafe_code, reason = "a descriptor given by number")]
    // SAFETY: ManuallyDrop keeps it open here; it is closed once both lines are written.
    let mut file = std::mem::ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(fd) });
    // In one write: some launchers read only once.
    file.write_all(format!("{line}\n").as_bytes())
        .map_err(|error| format!("cannot write to descriptor {fd}: {error}"))
}

fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const WANTED: u64 = 65_536;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    let raised = if nix::unistd::geteuid().is_root() && hard < WANTED {
        setrlimit(Resource::RLIMIT_NOFILE, WANTED, WANTED)
    } else {
        Err(nix::errno::Errno::EPERM)
    };
    if raised.is_err() && soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err() {
        tracing::warn!("cannot raise the limit of open files from {soft}");
    }
}

/// Writing end of the pipe on which the parent waits until the daemon is ready.
static READY: std::sync::OnceLock<RawFd> = std::sync::OnceLock::new();

/// Leaves the foreground; the parent returns only when the child is ready or has failed.
#[expect(unsafe_code, reason = "fork of a single-threaded process")]
fn fork_to_background(keep_umask: bool) -> Result<ForkResult, String> {
    let pipe = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| format!("pipe: {errno}"))?;
    // SAFETY: the process has one thread.
    match unsafe { nix::unistd::fork() }.map_err(|errno| format!("fork: {errno}"))? {
        parent @ ForkResult::Parent { .. } => {
            drop(pipe.1);
            let mut answer = Vec::new();
            let read = std::fs::File::from(pipe.0).read_to_end(&mut answer);
            if read.is_ok() && answer == b"ready" {
                Ok(parent)
            } else {
                Err("the daemon did not become ready in the background".into())
            }
        }
        child @ ForkResult::Child => {
            drop(pipe.0);
            let _ = READY.set(pipe.1.into_raw_fd());
            let _ = nix::unistd::setsid();
            if !keep_umask {
                nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
            }
            // The working directory stays: a reload finds a configuration file named relative to it.
            Ok(child)
        }
    }
}

/// The daemon listens and has said where: the parent may go, and the terminal is let go of.
fn background_ready() {
    let Some(&ready) = READY.get() else { return };
    if let Ok(null) = nix::fcntl::open("/dev/null", OFlag::O_RDWR, nix::sys::stat::Mode::empty()) {
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
        if null.as_raw_fd() <= 2 {
            let _ = null.into_raw_fd();
        }
        crate::os::log::follow();
    }
    #[expect(unsafe_code, reason = "takes the descriptor back")]
    // SAFETY: made by `fork_to_background` and used only here.
    let mut pipe = unsafe { std::fs::File::from_raw_fd(ready) };
    let _ = pipe.write_all(b"ready");
}

fn become_user(name: &str) -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        // Started as somebody already: stay.
        return Ok(());
    }
    let user = match name.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(name),
    }
    .map_err(|errno| format!("cannot look up the user {name}: {errno}"))?
    .ok_or_else(|| format!("the configuration's <user> {name} does not exist"))?;
    let change = || -> nix::Result<()> {
        let c_name = std::ffi::CString::new(user.name.clone()).unwrap_or_default();
        nix::unistd::initgroups(&c_name, user.gid)?;
        nix::unistd::setresgid(user.gid, user.gid, Gid::from_raw(user.gid.as_raw()))?;
        nix::unistd::setresuid(user.uid, user.uid, user.uid)
    };
    change().map_err(|errno| format!("cannot become the user {name}: {errno}"))
}

#[expect(unsafe_code, reason = "a system call without a wrapper")]
fn become_subreaper() {
    // SAFETY: sets an attribute of the process.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// The machine's id; a random one where the machine has none.
fn machine_id() -> String {
    for path in ["/var/lib/dbus/machine-id", "/etc/machine-id"] {
        if let Ok(text) = std::fs::read_to_string(path) {
            let text = text.trim();
            if text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return text.to_ascii_lowercase();
            }
        }
    }
    tracing::warn!("this machine has no id (/etc/machine-id); a random one is used");
    fresh_guid().to_string()
}
