//! Listening sockets. The keeper makes them, since clients see the credentials of the process that called listen().

mod tcp;

use std::io::{Error, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bus_wire::{Address, AddressError, AddressList, Guid};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};

use crate::config::listen::unix_place;
use crate::handoff::keeper::Listener;
use crate::os::random;

/// An address that the daemon cannot listen on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// Not an address to listen on, here or anywhere.
    #[error("cannot listen on {address:?}: {reason}")]
    BadAddress {
        /// As given.
        address: String,
        /// Why not.
        reason: String,
    },
    /// It may be one elsewhere.
    #[error("cannot listen on {address:?}: {reason}")]
    Unavailable {
        /// As given.
        address: String,
        /// Why not.
        reason: String,
    },
    /// The system said no.
    #[error("cannot listen on {address:?}: {error}")]
    System {
        /// As given.
        address: String,
        /// What it said.
        error: Error,
    },
    /// No address of a list works.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NoneOf(Vec<ListenError>),
}

/// Listens on all of `addresses`. Each may be a list joined with `;`: then on the first of it that works, as
/// dbus_server_listen() does.
pub(crate) fn listen_on_all(addresses: &[String]) -> Result<Vec<Listener>, ListenError> {
    let mut listeners = Vec::new();
    for list in addresses {
        if let Err(error) = listen_on_first(list, &mut listeners) {
            // Nobody is to find half a bus.
            remove_files(&listeners);
            return Err(error);
        }
    }
    Ok(listeners)
}

/// Removes the files of sockets, and of nonces, that nobody listens on any more.
pub(crate) fn remove_files(listeners: &[Listener]) {
    for path in listeners.iter().filter_map(|listener| listener.path.as_ref()) {
        let _ = std::fs::remove_file(path);
    }
}

fn listen_on_first(list: &str, listeners: &mut Vec<Listener>) -> Result<(), ListenError> {
    let parsed: AddressList = list
        .parse()
        .map_err(|error: AddressError| ListenError::BadAddress {
            address: list.to_owned(),
            reason: error.to_string(),
        })?;
    let mut errors = Vec::new();
    for address in parsed.as_slice() {
        match listen_on(address, listeners) {
            Ok(()) => return Ok(()),
            Err(error @ ListenError::BadAddress { .. }) => return Err(error),
            Err(error) => errors.push(error),
        }
    }
    Err(ListenError::NoneOf(errors))
}

fn listen_on(address: &Address, listeners: &mut Vec<Listener>) -> Result<(), ListenError> {
    let text = address.to_string();
    let bad = |reason: &str| ListenError::BadAddress {
        address: text.clone(),
        reason: reason.into(),
    };
    let unavailable = |reason: &str| ListenError::Unavailable {
        address: text.clone(),
        reason: reason.into(),
    };
    let system = |error: Error| ListenError::System {
        address: text.clone(),
        error,
    };
    match address.transport() {
        "unix" => {
            let (place, value) = unix_place(address).map_err(|error| bad(&error.to_string()))?;
            if place == "abstract" {
                let name = UnixAddr::new_abstract(value.as_bytes()).map_err(|error| system(error.into()))?;
                let fd = open(&name).map_err(system)?;
                listeners.push(listener(fd, "abstract", value, None));
                return Ok(());
            }
            let (fd, path) = match place {
                "path" => at_path(Path::new(value)).map(|fd| (fd, PathBuf::from(value))),
                "runtime" => {
                    let dir = std::env::var_os("XDG_RUNTIME_DIR")
                        .ok_or_else(|| unavailable("XDG_RUNTIME_DIR is not set"))?;
                    let path = Path::new(&dir).join("bus");
                    at_path(&path).map(|fd| (fd, path))
                }
                _ => in_directory(Path::new(value)),
            }
            .map_err(system)?;
            let path = path
                .to_str()
                .ok_or_else(|| bad("its path is not UTF-8"))?
                .to_owned();
            listeners.push(listener(fd, "path", &path, Some(path.clone())));
            Ok(())
        }
        "systemd" => {
            let passed = passed_by_service_manager();
            if passed.is_empty() {
                return Err(unavailable("the service manager passed no sockets (LISTEN_FDS)"));
            }
            for fd in passed {
                adopt(fd).map_err(|errno| system(errno.into()))?;
                if let Some(listener) = tcp::passed(fd) {
                    listeners.push(listener);
                    continue;
                }
                let name: UnixAddr =
                    nix::sys::socket::getsockname(fd).map_err(|error| system(error.into()))?;
                if let Some(path) = name.path().and_then(Path::to_str) {
                    // The socket's file belongs to the service manager.
                    listeners.push(listener(fd, "path", path, None));
                } else if let Some(name) = name.as_abstract().and_then(|name| std::str::from_utf8(name).ok())
                {
                    listeners.push(listener(fd, "abstract", name, None));
                } else {
                    return Err(bad("a socket passed by the service manager has no usable name"));
                }
            }
            Ok(())
        }
        "tcp" | "nonce-tcp" => {
            listeners.extend(tcp::listen_on(address)?);
            Ok(())
        }
        _ => Err(unavailable("its transport is not known")),
    }
}

fn listener(fd: RawFd, key: &str, value: &str, path: Option<String>) -> Listener {
    let guid = fresh_guid().to_string();
    let address = Address::new("unix")
        .and_then(|address| address.with(key, value))
        .and_then(|address| address.with("guid", guid.as_str()))
        .map_or_else(|_| String::new(), |address| address.to_string());
    Listener {
        fd,
        address,
        guid,
        path,
    }
}

/// A new guid: 12 random bytes and the time in seconds (specification, "UUIDs").
pub(crate) fn fresh_guid() -> Guid {
    let mut bytes = [0; 16];
    random::fill(&mut bytes[..12]);
    let seconds = crate::os::clock::unix_seconds();
    bytes[12..].copy_from_slice(&(seconds as u32).to_be_bytes());
    Guid::from_bytes(bytes)
}

fn open(name: &UnixAddr) -> Result<RawFd, Error> {
    let socket: OwnedFd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    bind(socket.as_raw_fd(), name)?;
    listen(&socket, Backlog::new(4096).unwrap_or(Backlog::MAXCONN))?;
    Ok(socket.into_raw_fd())
}

/// A socket file that anybody may connect to: authentication decides. A socket that is there already is replaced, as by
/// dbus-daemon; another kind of file is left alone.
fn at_path(path: &Path) -> Result<RawFd, Error> {
    use std::os::unix::fs::FileTypeExt;
    let name = UnixAddr::new(path)?;
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        if is_live(&name) {
            tracing::warn!("{}: the socket of another process is replaced", path.display());
        }
        std::fs::remove_file(path)?;
    }
    let fd = open(&name)?;
    open_to_all(path)?;
    Ok(fd)
}

fn open_to_all(path: &Path) -> Result<(), Error> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).inspect_err(|_| {
        let _ = std::fs::remove_file(path);
    })
}

/// Whether somebody listens there. Without waiting: a listener that accepts nothing is one as well.
fn is_live(name: &UnixAddr) -> bool {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let Ok(probe) = socket(AddressFamily::Unix, SockType::Stream, flags, None) else {
        return false;
    };
    matches!(connect(probe.as_raw_fd(), name), Ok(()) | Err(Errno::EAGAIN))
}

/// A socket under a random name (specification: `dir`, `tmpdir`).
fn in_directory(directory: &Path) -> Result<(RawFd, PathBuf), Error> {
    for _ in 0..16 {
        let path = directory.join(format!("dbus-{}", random_name()));
        match open(&UnixAddr::new(&path)?) {
            Ok(fd) => {
                open_to_all(&path)?;
                return Ok((fd, path));
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::AddrInUse.into())
}

/// Ten letters and digits.
fn random_name() -> String {
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = [0; 10];
    random::fill(&mut random);
    let letters = random
        .iter()
        .map(|byte| char::from(LETTERS[usize::from(*byte) % 62]));
    letters.collect()
}

/// Makes a passed socket one of the daemon's own: accepting must not wait (they come blocking, as a rule), and an upgrade
/// must not close it.
#[expect(unsafe_code, reason = "a descriptor by number")]
fn adopt(fd: RawFd) -> nix::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    // SAFETY: the service manager passed it for this process to keep.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    crate::os::descriptor::set_close_on_exec(fd, false);
    Ok(())
}

/// The descriptors of sd_listen_fds(3), if they are meant for this process.
fn passed_by_service_manager() -> Vec<RawFd> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Vec::new();
    }
    (0..number("LISTEN_FDS").unwrap_or(0).min(64))
        .map(|index| 3 + index as RawFd)
        .collect()
}
