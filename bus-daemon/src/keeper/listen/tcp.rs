//! Listening on `tcp:` and `nonce-tcp:` (specification, "TCP Sockets" and "Nonce-secured TCP Sockets").

use std::io::{Error, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use bus_wire::{Address, SASL_NONCE};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};

use super::{ListenError, fresh_guid, random_name};
use crate::config::listen::{Family, TcpAddress};
use crate::handoff::keeper::Listener;
use crate::os::random;
use crate::os::socket::internet_address;

/// How often another port is tried, where the system chooses it and another address of the host has it in use.
const TRIES: u32 = 16;

/// Listens on all addresses of a host, with one port. The first listener has the address that clients are told, the others
/// have none of their own.
pub(super) fn listen_on(address: &Address) -> Result<Vec<Listener>, ListenError> {
    let text = address.to_string();
    let tcp = TcpAddress::of(address).map_err(|reason| ListenError::BadAddress {
        address: text.clone(),
        reason: reason.to_string(),
    })?;
    let system = |error: Error| ListenError::System {
        address: text.clone(),
        error,
    };
    let (port, sockets) = open_all(&tcp).map_err(system)?;
    let nonce_file = if tcp.has_nonce {
        Some(write_nonce().map_err(system)?)
    } else {
        None
    };
    let nonce_file = nonce_file.and_then(|path| path.into_os_string().into_string().ok());
    let guid = fresh_guid().to_string();
    let first = printed(&tcp, port, &sockets, nonce_file.as_deref(), &guid);
    let rest = std::iter::repeat(String::new());
    let addresses = std::iter::once(first).chain(rest);
    let listeners = sockets
        .into_iter()
        .zip(addresses)
        .map(|((socket, _), address)| Listener {
            fd: socket.into_raw_fd(),
            address,
            guid: guid.clone(),
            path: nonce_file.clone(),
        });
    Ok(listeners.collect())
}

/// The address by which clients connect.
fn printed(
    tcp: &TcpAddress,
    port: u16,
    sockets: &[(OwnedFd, SocketAddr)],
    nonce_file: Option<&str>,
    guid: &str,
) -> String {
    let is_one_kind = |is_kind: fn(&SocketAddr) -> bool| sockets.iter().all(|(_, at)| is_kind(at));
    let family = if is_one_kind(SocketAddr::is_ipv4) {
        Some("ipv4")
    } else if is_one_kind(SocketAddr::is_ipv6) {
        Some("ipv6")
    } else {
        None
    };
    let port = port.to_string();
    let transport = if tcp.has_nonce { "nonce-tcp" } else { "tcp" };
    let keys = [
        ("host", Some(tcp.host.as_str())),
        ("port", Some(port.as_str())),
        ("family", family),
        ("noncefile", nonce_file),
        ("guid", Some(guid)),
    ];
    let given = keys.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let address = Address::new(transport);
    let address = given.fold(address, |address, (key, value)| {
        address.and_then(|one| one.with(key, value))
    });
    address.map_or_else(|_| String::new(), |address| address.to_string())
}

/// The address of a socket that the service manager has passed.
pub(super) fn passed(fd: RawFd) -> Option<Listener> {
    let at = internet_address(fd)?;
    let tcp = TcpAddress {
        host: at.ip().to_string(),
        bind: None,
        port: at.port(),
        family: None,
        has_nonce: false,
    };
    let guid = fresh_guid().to_string();
    let family = if at.is_ipv4() { "ipv4" } else { "ipv6" };
    let address = Address::new("tcp")
        .and_then(|one| one.with("host", tcp.host.as_str()))
        .and_then(|one| one.with("port", at.port().to_string().as_str()))
        .and_then(|one| one.with("family", family))
        .and_then(|one| one.with("guid", guid.as_str()));
    Some(Listener {
        fd,
        address: address.map_or_else(|_| String::new(), |address| address.to_string()),
        guid,
        path: None,
    })
}

type Opened = Vec<(OwnedFd, SocketAddr)>;

fn open_all(tcp: &TcpAddress) -> Result<(u16, Opened), Error> {
    let addresses = addresses(tcp)?;
    let mut tries = 0;
    loop {
        match open_each(&addresses, tcp.port) {
            Err(error) if tcp.port == 0 && error.kind() == ErrorKind::AddrInUse && tries < TRIES => {
                tries += 1
            }
            opened => return opened,
        }
    }
}

/// Of the interface to listen on.
fn addresses(tcp: &TcpAddress) -> Result<Vec<IpAddr>, Error> {
    let name = tcp.bind.as_deref().unwrap_or(&tcp.host);
    let found: Vec<IpAddr> = match name {
        "*" => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        name => (name, 0).to_socket_addrs()?.map(|at| at.ip()).collect(),
    };
    let is_wanted = |address: &IpAddr| match tcp.family {
        None => true,
        Some(Family::Ipv4) => address.is_ipv4(),
        Some(Family::Ipv6) => address.is_ipv6(),
    };
    let mut wanted: Vec<IpAddr> = Vec::new();
    for address in found.into_iter().filter(is_wanted) {
        if !wanted.contains(&address) {
            wanted.push(address);
        }
    }
    if wanted.is_empty() {
        let text = format!("{name} has no address of the family that is asked for");
        return Err(Error::new(ErrorKind::AddrNotAvailable, text));
    }
    Ok(wanted)
}

/// An address that this machine does not have (IPv6 may be turned off) is left out, if another works.
fn open_each(addresses: &[IpAddr], port: u16) -> Result<(u16, Opened), Error> {
    let mut opened: Opened = Vec::new();
    let mut port = port;
    let mut refused = None;
    for address in addresses {
        match open(SocketAddr::new(*address, port)) {
            Ok((socket, at)) => {
                port = at.port();
                opened.push((socket, at));
            }
            Err(errno @ (Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT)) => refused = Some(errno),
            Err(errno) => return Err(errno.into()),
        }
    }
    match refused {
        Some(errno) if opened.is_empty() => Err(errno.into()),
        Some(_) | None => Ok((port, opened)),
    }
}

fn open(at: SocketAddr) -> nix::Result<(OwnedFd, SocketAddr)> {
    let family = if at.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let socket: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
    // A bus that is started again finds its port free.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if at.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    // Connections have these from the listener. Calls wait for nothing but their answers; and of a machine that is gone
    // nothing else tells.
    setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    setsockopt(&socket, sockopt::KeepAlive, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    listen(&socket, Backlog::new(4096).unwrap_or(Backlog::MAXCONN))?;
    let at = internet_address(socket.as_raw_fd()).ok_or(Errno::EINVAL)?;
    Ok((socket, at))
}

/// A file with a nonce that only this user can read.
fn write_nonce() -> Result<PathBuf, Error> {
    let mut nonce = [0; SASL_NONCE];
    random::fill(&mut nonce);
    for _ in 0..16 {
        let path = std::env::temp_dir().join(format!("dbus_nonce-{}", random_name()));
        let mut options = std::fs::OpenOptions::new();
        let opened = options.write(true).create_new(true).mode(0o600).open(&path);
        let mut file = match opened {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            opened => opened?,
        };
        let written = file.write_all(&nonce);
        return written.map(|()| path.clone()).inspect_err(|_| {
            let _ = std::fs::remove_file(&path);
        });
    }
    Err(ErrorKind::AlreadyExists.into())
}
