//! Connecting to addresses.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bus_wire::{Address, AddressList, Guid};

use super::socket::Socket;
use crate::session::{AddressFault, LinkError};
use crate::shared::{Request, Shared};

/// What came of an attempt: a socket, and the GUID that its address says.
pub(crate) type Dialled = Result<(Socket, Option<Guid>), LinkError>;

/// How long one address of a host may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Connects where that takes no time: to unix sockets only.
pub(super) fn at_once(addresses: &AddressList) -> Option<Dialled> {
    let is_local = |address: &Address| address.transport() == "unix";
    addresses.as_slice().iter().all(is_local).then(|| dial(addresses))
}

/// Connects in a thread of its own: names are looked up, and hosts may be far.
pub(super) fn elsewhere(addresses: AddressList, attempt: u64, shared: Arc<Shared>) {
    let to = shared.clone();
    let spawned = std::thread::Builder::new()
        .name("bus-dial".to_owned())
        .spawn(move || to.push(Request::Dialled(attempt, dial(&addresses))));
    if let Err(error) = spawned {
        let error = LinkError::os("spawn a thread", &error);
        let _ = shared.push(Request::Dialled(attempt, Err(error)));
    }
}

/// The first that can be connected to. The error is the last one's.
fn dial(addresses: &AddressList) -> Dialled {
    let mut result = Err(LinkError::Address(AddressFault::Transport));
    for address in addresses.as_slice() {
        result = dial_one(address).map(|socket| (socket, address.guid()));
        if result.is_ok() {
            break;
        }
    }
    result
}

fn dial_one(address: &Address) -> Result<Socket, LinkError> {
    let os = |error: io::Error| LinkError::os("connect", &error);
    match address.transport() {
        "unix" => {
            let to = unix_address(address)?;
            match UnixStream::connect_addr(&to).and_then(Socket::unix) {
                Err(_) if is_directory_gone(address) => Err(LinkError::DirectoryGone),
                result => result.map_err(os),
            }
        }
        "tcp" => tcp(address).and_then(|socket| Socket::tcp(socket).map_err(os)),
        "nonce-tcp" => {
            let file = address.get("noncefile").ok_or(missing("noncefile"))?;
            let mut nonce = [0; 16];
            std::fs::File::open(path(file))
                .and_then(|mut file| file.read_exact(&mut nonce))
                .map_err(|error| LinkError::os("read the nonce", &error))?;
            let mut socket = tcp(address)?;
            socket.write_all(&nonce).map_err(os)?;
            Socket::tcp(socket).map_err(os)
        }
        "unixexec" => unixexec(address),
        _ => Err(LinkError::Address(AddressFault::Transport)),
    }
}

const fn missing(option: &'static str) -> LinkError {
    LinkError::Address(AddressFault::Option(option))
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

/// Of `unix:` with `path`, `abstract` or `runtime` (specification, "Unix Domain Sockets").
pub(crate) fn unix_address(address: &Address) -> Result<SocketAddr, LinkError> {
    let os = |error: io::Error| LinkError::os("connect", &error);
    if let Some(path) = unix_path(address) {
        return SocketAddr::from_pathname(path).map_err(os);
    }
    match address.get("abstract") {
        Some(name) => SocketAddr::from_abstract_name(name).map_err(os),
        None => Err(missing("path")),
    }
}

/// The path of a unix socket, if it has one.
pub(super) fn unix_path(address: &Address) -> Option<PathBuf> {
    if address.transport() != "unix" {
        return None;
    }
    if let Some(bytes) = address.get("path") {
        return Some(path(bytes));
    }
    let is_runtime = address.get_str("runtime") == Some("yes");
    let directory = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| is_runtime)?;
    Some(Path::new(&directory).join("bus"))
}

/// With its directory a session's bus is gone for good.
fn is_directory_gone(address: &Address) -> bool {
    let path = unix_path(address);
    let directory = path.as_deref().and_then(Path::parent);
    directory.is_some_and(|directory| !directory.as_os_str().is_empty() && !directory.exists())
}

fn tcp(address: &Address) -> Result<TcpStream, LinkError> {
    let os = |error: io::Error| LinkError::os("connect", &error);
    let host = address.get_str("host").unwrap_or("localhost");
    let port = address.get_str("port").and_then(|port| port.parse::<u16>().ok());
    let port = port.filter(|port| *port > 0).ok_or(missing("port"))?;
    let family = address.get_str("family");
    let mut last = LinkError::Address(AddressFault::Option("host"));
    for to in (host, port).to_socket_addrs().map_err(os)? {
        let is_wanted = match family {
            Some("ipv4") => to.is_ipv4(),
            Some("ipv6") => to.is_ipv6(),
            _ => true,
        };
        if !is_wanted {
            continue;
        }
        match TcpStream::connect_timeout(&to, PATIENCE) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = os(error),
        }
    }
    Err(last)
}

/// The bus is at the other end of a program's standard input and output (specification, "Executed Subprocesses on Unix").
fn unixexec(address: &Address) -> Result<Socket, LinkError> {
    let os = |error: io::Error| LinkError::os("execute", &error);
    let program = address.get("path").ok_or(missing("path"))?;
    let mut command = Command::new(path(program));
    if let Some(name) = address.get("argv0") {
        std::os::unix::process::CommandExt::arg0(&mut command, std::ffi::OsStr::from_bytes(name));
    }
    for index in 1.. {
        let Some(argument) = address.get(&format!("argv{index}")) else {
            break;
        };
        command.arg(std::ffi::OsStr::from_bytes(argument));
    }
    let (ours, theirs) = UnixStream::pair().map_err(os)?;
    let input = OwnedFd::from(theirs);
    let output = input.try_clone().map_err(os)?;
    let mut child = command
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .spawn()
        .map_err(os)?;
    // It ends when we close our side; somebody has to be told.
    let _ = std::thread::Builder::new()
        .name("bus-reap".to_owned())
        .spawn(move || child.wait());
    Socket::unix(ours).map_err(os)
}
