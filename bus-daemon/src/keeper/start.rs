//! How a keeper begins: afresh, or in the place of another process image.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::fcntl::{OFlag, open};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, User};

use super::announcement::{Announcement, Side, leave_foreground};
use super::error::KeeperError;
use super::listen::{fresh_guid, listen_on_all, remove_files};
use super::supervise::{Keeper, Origin, block_signals};
use super::{binary, configuration};
use crate::broker::MachineId;
use crate::config::Config;
use crate::config::options::{Options, Syslog};
use crate::control::Control;
use crate::handoff::keeper::{KeeperV1, Listener};
use crate::os::descriptor;
use crate::os::log::{SystemLog, use_system_log};

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
    own_binary: OwnBinary,
) -> Result<ExitCode, KeeperError> {
    // What was inherited is not for children; it is not closed, since the configuration may be one of them.
    descriptor::close_on_exec_from(3)
        .map_err(|error| KeeperError::system("cannot mark inherited descriptors", error))?;
    let config = crate::config::load::load(options)?;
    let system_log = match options.syslog {
        Some(Syslog::Only) => SystemLog::Only,
        Some(Syslog::Also) => SystemLog::Also,
        Some(Syslog::Never) => SystemLog::Never,
        None if config.syslog => SystemLog::Also,
        None => SystemLog::Never,
    };
    if system_log != SystemLog::Never {
        use_system_log(system_log);
    }
    super::limits::raise()?;
    if let Some(path) = config.pid_file.clone().filter(|path| Path::new(path).exists()) {
        return Err(KeeperError::PidFileExists { path });
    }
    let listeners = listen_on_all(&config.listen)?;
    let made = listeners.clone();
    // Nobody is to find the sockets of a bus that did not start.
    serve(arguments, options, own_binary, &config, listeners).inspect_err(|_| remove_files(&made))
}

/// Everything behind the moment when the sockets are there.
fn serve(
    arguments: &[OsString],
    options: &Options,
    own_binary: OwnBinary,
    config: &Config,
    listeners: Vec<Listener>,
) -> Result<ExitCode, KeeperError> {
    let foreground = if config.fork {
        match leave_foreground(config.keep_umask)? {
            Side::Foreground => return Ok(ExitCode::SUCCESS),
            Side::Daemon(foreground) => Some(foreground),
        }
    } else {
        None
    };
    let announcement = announcement(&listeners, config, options)?.with_foreground(foreground);
    if let Some(user) = &config.user {
        become_user(user, &listeners)?;
    }
    let system = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| KeeperError::system(what, error)
    };
    let epoll = Epoll::new(EpollCreateFlags::empty()).map_err(|errno| KeeperError::system("epoll", errno))?;
    let control = Control::create().map_err(system("socketpair"))?;
    let record = KeeperV1::new(
        arguments,
        &own_binary.path,
        listeners,
        fresh_guid().to_string(),
        machine_id(),
        epoll.0.into_raw_fd(),
        control,
        config.pid_file.clone(),
    );
    let encoded = configuration::encoded(config)
        .map_err(|error| KeeperError::NoState(format!("the configuration: {error}")))?;
    run(
        record,
        own_binary.fd,
        Origin::Clean {
            config: encoded,
            announcement,
        },
    )
}

/// What is to be said once the bus serves.
fn announcement(
    listeners: &[Listener],
    config: &Config,
    options: &Options,
) -> Result<Announcement, KeeperError> {
    let addresses: Vec<&str> = listeners
        .iter()
        .map(|listener| listener.address.as_str())
        // A host has one address for clients, however many sockets it has here.
        .filter(|address| !address.is_empty())
        .collect();
    let announcement = Announcement::new(addresses.join(";"), options.print_address, options.print_pid);
    match &config.pid_file {
        None => Ok(announcement),
        Some(path) => {
            let loses_rights = config.user.is_some() && nix::unistd::geteuid().is_root();
            announcement.with_pid_file(Path::new(path), loses_rights)
        }
    }
}

/// Takes the place of another process image of the daemon.
pub(crate) fn restored(
    fd: RawFd,
    own_binary: OwnBinary,
    rolled_back: Option<String>,
) -> Result<ExitCode, KeeperError> {
    binary::close_script();
    let record = KeeperV1::load(fd).map_err(KeeperError::Record)?;
    match rolled_back {
        None => run(record, own_binary.fd, Origin::Upgraded { restored_from: fd }),
        Some(reason) => {
            // Nobody else can be returned to.
            descriptor::close(fd);
            run(record.taken_back(), own_binary.fd, Origin::RolledBack { reason })
        }
    }
}

fn run(record: KeeperV1, own_binary: RawFd, origin: Origin) -> Result<ExitCode, KeeperError> {
    name_process(&record.executable());
    let signals = block_signals().map_err(|errno| KeeperError::system("signals", errno))?;
    become_subreaper();
    Ok(Keeper::new(record, own_binary, signals.as_raw_fd(), origin)?.run(&signals))
}

/// The binary of this process image.
pub(crate) struct OwnBinary {
    /// Open, to be returned to.
    pub(crate) fd: RawFd,
    /// Where it was found.
    path: PathBuf,
}

impl OwnBinary {
    /// Found while its path and the right to ask are as they were at the start. Without `/proc` it is where the system
    /// was told to look.
    pub(crate) fn find() -> Result<Self, KeeperError> {
        let open = |path: &Path| open(path, OFlag::O_PATH, Mode::empty());
        let link = Path::new("/proc/self/exe");
        let (fd, path) = match (open(link), std::fs::read_link(link)) {
            (Ok(fd), Ok(path)) => (fd, path),
            _ => {
                let path = executed_path().and_then(std::path::absolute);
                let path =
                    path.map_err(|error| KeeperError::system("cannot tell where the binary is", error))?;
                let fd = open(&path).map_err(|errno| {
                    KeeperError::system(format!("cannot open the binary {}", path.display()), errno)
                })?;
                (fd, path)
            }
        };
        Ok(Self {
            fd: fd.into_raw_fd(),
            path,
        })
    }
}

/// The path that this process image was executed by, as the kernel noted it.
#[expect(
    unsafe_code,
    reason = "reads a string that the kernel has put beside the stack"
)]
fn executed_path() -> std::io::Result<PathBuf> {
    // SAFETY: asks for a value only.
    let address = unsafe { libc::getauxval(libc::AT_EXECFN) };
    if address == 0 {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    // SAFETY: the kernel's string stays there for the life of the process image.
    let path = unsafe { std::ffi::CStr::from_ptr(address as *const libc::c_char) };
    let path = Path::new(OsStr::from_bytes(path.to_bytes())).to_owned();
    // Executed by a descriptor, it has the name that the daemon before this one gave it.
    match std::env::args_os().next() {
        Some(name) if path.starts_with("/dev/fd") => Ok(PathBuf::from(name)),
        _ => Ok(path),
    }
}

/// The name in lists of processes: one that was executed by a descriptor would be called by its number.
fn name_process(executable: &Path) {
    let name = executable.file_name().map(OsStr::as_bytes).unwrap_or_default();
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = nix::sys::prctl::set_name(&name);
    }
}

fn become_user(name: &str, listeners: &[Listener]) -> Result<(), KeeperError> {
    if !nix::unistd::geteuid().is_root() {
        // Started as somebody already: stay.
        return Ok(());
    }
    let user = match name.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(name),
    }
    .map_err(|errno| KeeperError::system(format!("cannot look up the user {name}"), errno))?
    .ok_or_else(|| KeeperError::NoUser(name.to_owned()))?;
    // The files with nonces are read again where the bus begins anew, and removed at the end.
    let nonces = listeners
        .iter()
        .filter(|one| one.address.starts_with("nonce-tcp:"));
    for path in nonces.filter_map(|one| one.path.as_deref()) {
        nix::unistd::chown(path, Some(user.uid), Some(user.gid))
            .map_err(|errno| KeeperError::system(format!("cannot give {path} to the user {name}"), errno))?;
    }
    let change = || -> nix::Result<()> {
        let c_name = std::ffi::CString::new(user.name.clone()).unwrap_or_default();
        nix::unistd::initgroups(&c_name, user.gid)?;
        nix::unistd::setresgid(user.gid, user.gid, Gid::from_raw(user.gid.as_raw()))?;
        nix::unistd::setresuid(user.uid, user.uid, user.uid)
    };
    change().map_err(|errno| KeeperError::system(format!("cannot become the user {name}"), errno))?;
    live_at(&user.dir);
    Ok(())
}

/// The home directory was that of the user who started the daemon; the keyring is the bus's own.
#[expect(unsafe_code, reason = "changes the environment of a single-threaded process")]
fn live_at(home: &Path) {
    // SAFETY: the process has one thread.
    unsafe { std::env::set_var("HOME", home) };
}

#[expect(unsafe_code, reason = "a system call without a wrapper")]
fn become_subreaper() {
    // SAFETY: sets an attribute of the process.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// The machine's id; empty where the machine has none.
fn machine_id() -> String {
    match crate::runtime::machine_id() {
        MachineId::Found(id) => id,
        MachineId::Missing | MachineId::Invalid => String::new(),
    }
}
