//! The clients' ends of the links, and what the kernel knows of both.

#![allow(unsafe_code, reason = "asks about a socket by number")]

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use bus_wire::MessageBuilder;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, bind,
    connect, getpeername, recv, recvmsg, sendmsg, setsockopt, socket, sockopt,
};

use super::life::POISON;

/// Bytes that a socket holds at most, nearly: few, so that writes end in the middle of messages.
const SOCKET_BUFFER: usize = 8 << 10;

/// One client.
pub(super) struct Client {
    pub(super) index: usize,
    socket: OwnedFd,
    /// What it still has to write; with some byte goes a descriptor.
    waiting: VecDeque<(Vec<u8>, bool)>,
    serial: u32,
    /// Bytes that its socket took.
    pub(super) written: u64,
    /// Bytes that it read.
    pub(super) read: u64,
    /// Descriptors that it got.
    pub(super) fds: usize,
    /// The serials of its calls to the bus itself: each is answered once.
    pub(super) calls: Vec<u32>,
    /// Lines that the authentication gives it.
    pub(super) lines: usize,
}

/// Connections of this test have names, so that the other end tells whose it is.
fn name(index: usize) -> Vec<u8> {
    format!("bus-every-store-{}-{index}", std::process::id()).into_bytes()
}

/// Whose connection the worker has under this number.
pub(super) fn owner(fd: RawFd) -> Option<usize> {
    let address: UnixAddr = getpeername(fd).ok()?;
    let text = String::from_utf8(address.as_abstract()?.to_vec()).ok()?;
    let (prefix, index) = text.rsplit_once('-')?;
    (prefix == format!("bus-every-store-{}", std::process::id()))
        .then(|| index.parse().ok())
        .flatten()
}

/// Bytes that wait to be read from a socket.
pub(super) fn unread(fd: RawFd) -> u64 {
    let mut count: libc::c_int = 0;
    // SAFETY: room for an int.
    let result = unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut count) };
    assert_eq!(result, 0, "FIONREAD: {}", std::io::Error::last_os_error());
    u64::from(count.unsigned_abs())
}

/// Makes the worker's end of a connection hold little.
pub(super) fn narrow(fd: RawFd) {
    // SAFETY: open; only borrowed.
    let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER).unwrap();
}

impl Client {
    pub(super) fn connect(index: usize, path: &Path, passes_fds: bool) -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(socket.as_raw_fd(), &UnixAddr::new_abstract(&name(index)).unwrap()).unwrap();
        setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER).unwrap();
        connect(socket.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        let uid: String = nix::unistd::getuid()
            .to_string()
            .bytes()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let negotiate = if passes_fds { "NEGOTIATE_UNIX_FD\r\n" } else { "" };
        let mut client = Self {
            index,
            socket,
            waiting: VecDeque::new(),
            serial: 0,
            written: 0,
            read: 0,
            fds: 0,
            calls: Vec::new(),
            lines: 1 + usize::from(passes_fds),
        };
        let greeting = format!("\0AUTH EXTERNAL {uid}\r\n{negotiate}BEGIN\r\n").into_bytes();
        client.waiting.push_back((greeting, false));
        client.call("Hello", |_| {});
        client
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Bytes that the daemon's socket took for this client.
    pub(super) fn reached(&self) -> u64 {
        self.read + unread(self.fd())
    }

    /// Writes at most `len` bytes of what waits; false when nothing waits, or nothing fits.
    pub(super) fn write(&mut self, len: usize, passed: RawFd) -> bool {
        let Some((bytes, with_fd)) = self.waiting.front_mut() else {
            return false;
        };
        let rights = [passed];
        let control = if *with_fd {
            &[ControlMessage::ScmRights(&rights)][..]
        } else {
            &[]
        };
        let slice = [IoSlice::new(&bytes[..len.min(bytes.len())])];
        match sendmsg::<()>(
            self.socket.as_raw_fd(),
            &slice,
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Ok(written) => {
                self.written += written as u64;
                *with_fd = false;
                bytes.drain(..written);
                if bytes.is_empty() {
                    self.waiting.pop_front();
                }
                true
            }
            Err(Errno::EAGAIN) => false,
            Err(error) => panic!("client {}: {error}", self.index),
        }
    }

    /// Whether all of it was written.
    pub(super) fn is_done(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Reads at most `len` bytes.
    pub(super) fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut control = nix::cmsg_space!([RawFd; 64]);
        let (count, fds) = {
            let mut slice = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.socket.as_raw_fd(), &mut slice, Some(&mut control), flags) {
                Ok(message) => {
                    let mut fds = Vec::new();
                    for control in message.cmsgs().unwrap() {
                        if let ControlMessageOwned::ScmRights(more) = control {
                            fds.extend(more);
                        }
                    }
                    (message.bytes, fds)
                }
                Err(Errno::EAGAIN) => (0, Vec::new()),
                Err(error) => panic!("client {}: {}", self.index, std::io::Error::from(error)),
            }
        };
        self.fds += fds.len();
        for fd in fds {
            // SAFETY: just received, and nobody else's.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        bytes.truncate(count);
        self.read += count as u64;
        bytes
    }

    fn push(&mut self, message: MessageBuilder<'_>, with_fd: bool) {
        let mut bytes = Vec::new();
        message.build_into(&mut bytes).unwrap();
        self.waiting.push_back((bytes, with_fd));
    }

    fn next_serial(&mut self) -> u32 {
        self.serial += 1;
        self.serial
    }

    pub(super) fn call(&mut self, member: &str, body: impl FnOnce(&mut bus_wire::BodyWriter)) {
        self.call_interface("org.freedesktop.DBus", member, body);
    }

    /// A call that kills workers; its serial. It is not counted with the others.
    pub(super) fn poison(&mut self) -> u32 {
        let poison = String::from_utf8_lossy(POISON);
        self.call("NameHasOwner", |w| {
            w.str(&poison);
        });
        self.calls.pop().unwrap_or(0)
    }

    /// Whether the bus has closed the connection, and nothing is left to read.
    pub(super) fn is_at_end(&self) -> bool {
        let mut byte = [0];
        recv(self.socket.as_raw_fd(), &mut byte, MsgFlags::MSG_PEEK) == Ok(0)
    }

    /// Asks for an upgrade to the binary that is there already.
    pub(super) fn upgrade(&mut self) {
        self.call_interface("org.busdaemon.Restart1", "Upgrade", |w| {
            w.str("");
        });
    }

    fn call_interface(
        &mut self,
        interface: &str,
        member: &str,
        body: impl FnOnce(&mut bus_wire::BodyWriter),
    ) {
        let serial = self.next_serial();
        self.calls.push(serial);
        let message = MessageBuilder::method_call("/org/freedesktop/DBus", member)
            .destination("org.freedesktop.DBus")
            .interface(interface)
            .serial(serial)
            .body(body);
        self.push(message, false);
    }

    pub(super) fn send(&mut self, destination: &str, len: usize) {
        let message = MessageBuilder::method_call("/org/example", "Take")
            .destination(destination)
            .serial(self.next_serial())
            .body(|w| {
                w.byte_slice(&vec![b'x'; len]);
            });
        self.push(message, false);
    }

    pub(super) fn send_fd(&mut self, destination: &str) {
        let message = MessageBuilder::method_call("/org/example", "Hold")
            .destination(destination)
            .serial(self.next_serial())
            .unix_fds(1)
            .body(|w| {
                w.unix_fd_index(0);
            });
        self.push(message, true);
    }

    pub(super) fn signal_fd(&mut self) {
        let message = MessageBuilder::signal("/org/example", "org.example.Signals", "Opened")
            .serial(self.next_serial())
            .unix_fds(1)
            .body(|w| {
                w.unix_fd_index(0);
            });
        self.push(message, true);
    }

    pub(super) fn signal(&mut self, len: usize) {
        let message = MessageBuilder::signal("/org/example", "org.example.Signals", "Happened")
            .serial(self.next_serial())
            .body(|w| {
                w.str(&"y".repeat(len));
            });
        self.push(message, false);
    }
}
