//! Listening sockets. The keeper makes them, since clients see the credentials of the process that called listen().

use std::io::{Error, ErrorKind};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bus_wire::{Address, AddressError, AddressList, Guid};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};

use crate::handoff::keeper::Listener;
use crate::os::random;

/// An address that the daemon cannot listen on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// Not an address at all.
    #[error("cannot listen on {address:?}: {reason}")]
    BadAddress {
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
}

/// Listens on all of `addresses` (each may be a list joined with `;`).
pub(crate) fn listen_on_all(addresses: &[String]) -> Result<Vec<Listener>, ListenError> {
    let mut listeners = Vec::new();
    for list in addresses {
        let parsed: AddressList = list
            .parse()
            .map_err(|error: AddressError| ListenError::BadAddress {
                address: list.clone(),
                reason: error.to_string(),
            })?;
        for address in parsed.as_slice() {
            listen_on(address, &mut listeners)?;
        }
    }
    Ok(listeners)
}

fn listen_on(address: &Address, listeners: &mut Vec<Listener>) -> Result<(), ListenError> {
    let text = address.to_string();
    let bad = |reason: &str| ListenError::BadAddress {
        address: text.clone(),
        reason: reason.into(),
    };
    let system = |error: Error| ListenError::System {
        address: text.clone(),
        error,
    };
    match address.transport() {
        "unix" => {
            let places: Vec<&str> = ["path", "abstract", "dir", "tmpdir", "runtime"]
                .into_iter()
                .filter(|key| address.get(key).is_some())
                .collect();
            let &[place] = places.as_slice() else {
                return Err(bad(
                    "give exactly one of path, abstract, dir, tmpdir and runtime (specification, \"Unix Domain Sockets\")",
                ));
            };
            let value = address
                .get_str(place)
                .ok_or_else(|| bad("its value is not UTF-8"))?;
            if place == "abstract" {
                let name = UnixAddr::new_abstract(value.as_bytes()).map_err(|error| system(error.into()))?;
                let fd = open(&name).map_err(system)?;
                listeners.push(listener(fd, "abstract", value, None));
                return Ok(());
            }
            let (fd, path) = match place {
                "path" => at_path(Path::new(value)).map(|fd| (fd, PathBuf::from(value))),
                "runtime" => {
                    if value != "yes" {
                        return Err(bad("the only value of runtime is \"yes\""));
                    }
                    let dir = std::env::var_os("XDG_RUNTIME_DIR")
                        .ok_or_else(|| bad("XDG_RUNTIME_DIR is not set"))?;
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
                return Err(bad("the service manager passed no sockets (LISTEN_FDS)"));
            }
            for fd in passed {
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
        "tcp" | "nonce-tcp" => Err(bad("listening on TCP is not supported yet")),
        _ => Err(bad("its transport is not known")),
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

/// A socket file that anybody may connect to: authentication decides. One left by a daemon that is gone is replaced.
fn at_path(path: &Path) -> Result<RawFd, Error> {
    use std::os::unix::fs::FileTypeExt;
    if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(Error::new(ErrorKind::AddrInUse, "another process listens there")),
            Err(_) => std::fs::remove_file(path)?,
        }
    }
    let fd = open(&UnixAddr::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
    Ok(fd)
}

/// A socket under a random name (specification: `dir`, `tmpdir`).
fn in_directory(directory: &Path) -> Result<(RawFd, PathBuf), Error> {
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    for _ in 0..16 {
        let mut random = [0; 10];
        random::fill(&mut random);
        let name: String = random
            .iter()
            .map(|byte| char::from(LETTERS[usize::from(*byte) % 62]))
            .collect();
        let path = directory.join(format!("dbus-{name}"));
        match open(&UnixAddr::new(&path)?) {
            Ok(fd) => {
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
                return Ok((fd, path));
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::AddrInUse.into())
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
