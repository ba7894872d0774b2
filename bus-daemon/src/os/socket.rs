//! Where sockets are bound.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

use nix::sys::socket::{SockaddrStorage, getsockname};

/// The address and port of a socket of the internet; `None` for any other.
pub(crate) fn internet_address(fd: RawFd) -> Option<SocketAddr> {
    let name: SockaddrStorage = getsockname(fd).ok()?;
    if let Some(v4) = name.as_sockaddr_in() {
        return Some(SocketAddr::new(IpAddr::V4(v4.ip()), v4.port()));
    }
    let v6 = name.as_sockaddr_in6()?;
    Some(SocketAddr::new(IpAddr::V6(v6.ip()), v6.port()))
}
