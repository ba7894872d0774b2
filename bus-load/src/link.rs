//! One raw connection: a socket, a framer and what is still to be written.

use crate::fds;
use anyhow::{Context, bail, ensure};
use bus_wire::address::AddressList;
use bus_wire::{Fd, Framed, Framer};
use bytes::{Buf, Bytes};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

/// Most descriptors that one receive can yield (SCM_MAX_FD).
const MAX_FDS: usize = 253;
/// Small messages are written together, up to this many.
const MAX_IOV: usize = 64;

/// The client's half of the SASL EXTERNAL handshake with descriptor passing, sent in one go as sd-bus does.
#[derive(Debug)]
pub struct Handshake {
    replies: usize,
    line: Vec<u8>,
}

impl Handshake {
    /// The bytes to send, and the state that waits for the answers.
    pub fn start() -> (Vec<u8>, Handshake) {
        let uid: String = nix::unistd::getuid()
            .to_string()
            .bytes()
            .map(|digit| format!("{digit:02x}"))
            .collect();
        let bytes = format!("\0AUTH EXTERNAL {uid}\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n");
        (
            bytes.into_bytes(),
            Handshake {
                replies: 0,
                line: Vec::new(),
            },
        )
    }

    /// Takes the bus's lines off the front of `input`. True when all are there and messages follow.
    fn feed(&mut self, input: &mut Bytes) -> anyhow::Result<bool> {
        const EXPECTED: [&str; 2] = ["OK ", "AGREE_UNIX_FD"];
        while self.replies < EXPECTED.len() && input.has_remaining() {
            let byte = input.get_u8();
            self.line.push(byte);
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&self.line).into_owned();
                ensure!(
                    line.starts_with(EXPECTED[self.replies]),
                    "handshake answered with {line:?}"
                );
                self.line.clear();
                self.replies += 1;
            }
        }
        Ok(self.replies == EXPECTED.len())
    }
}

/// Where a client connects for this D-Bus address (its first `unix:path` or `unix:abstract`).
pub fn socket_address(address: &str) -> anyhow::Result<SocketAddr> {
    let list: AddressList = address
        .parse()
        .with_context(|| format!("in the address {address:?}"))?;
    for entry in list.as_slice().iter().filter(|entry| entry.transport() == "unix") {
        if let Some(path) = entry.get("path") {
            return Ok(SocketAddr::from_pathname(OsStr::from_bytes(path))?);
        }
        if let Some(name) = entry.get("abstract") {
            return Ok(SocketAddr::from_abstract_name(name)?);
        }
    }
    bail!("no unix:path or unix:abstract in the address {address:?}")
}

#[derive(Debug)]
struct Outgoing {
    bytes: Bytes,
    fds: Vec<OwnedFd>,
    /// Nothing is written beyond this many more bytes until the link is released.
    hold: Option<usize>,
}

/// What one read brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// Something; there may be more.
    Some,
    /// Nothing for now.
    Nothing,
    /// The end of the stream.
    End,
}

/// A buffer for reads, shared by all links of a thread.
pub(crate) struct Scratch {
    bytes: Vec<u8>,
    control: Vec<u8>,
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch {
            bytes: vec![0; 64 << 10],
            control: nix::cmsg_space!([RawFd; MAX_FDS]),
        }
    }
}

/// A raw connection to a bus.
pub(crate) struct Link {
    socket: UnixStream,
    framer: Framer,
    handshake: Option<Handshake>,
    output: VecDeque<Outgoing>,
    /// Descriptors that the framer holds, by the handle it knows them by.
    received: HashMap<i32, OwnedFd>,
}

impl Link {
    /// Connects; the handshake is queued, held after `hold_handshake` of its bytes where that is given.
    pub(crate) fn connect(address: &str, hold_handshake: Option<usize>) -> anyhow::Result<Link> {
        let socket = UnixStream::connect_addr(&socket_address(address)?)
            .with_context(|| format!("cannot connect to {address}"))?;
        let (bytes, handshake) = Handshake::start();
        let hold = hold_handshake.map(|at| at.clamp(1, bytes.len() - 1));
        let output = VecDeque::from([Outgoing {
            bytes: bytes.into(),
            fds: Vec::new(),
            hold,
        }]);
        let framer = Framer::new(bus_wire::limits::MAX_MESSAGE);
        Ok(Link {
            socket,
            framer,
            handshake: Some(handshake),
            output,
            received: HashMap::new(),
        })
    }

    pub(crate) fn set_nonblocking(&self) -> std::io::Result<()> {
        self.socket.set_nonblocking(true)
    }

    /// Queues a message, with descriptors.
    pub(crate) fn queue(&mut self, bytes: Vec<u8>, fds: Vec<OwnedFd>) {
        self.output.push_back(Outgoing {
            bytes: bytes.into(),
            fds,
            hold: None,
        });
    }

    /// Queues a message of which only the first `hold` bytes are written until [`Link::release`].
    pub(crate) fn queue_held(&mut self, bytes: Vec<u8>, hold: usize) {
        self.output.push_back(Outgoing {
            bytes: bytes.into(),
            fds: Vec::new(),
            hold: Some(hold),
        });
    }

    /// All is written that may be, up to the point where the link is held.
    pub(crate) fn is_held(&self) -> bool {
        self.output.front().is_some_and(|front| front.hold == Some(0))
    }

    pub(crate) fn release(&mut self) {
        self.output.iter_mut().for_each(|outgoing| outgoing.hold = None);
    }

    /// Writes what the socket takes. An error means that the bus has closed the connection.
    pub(crate) fn flush(&mut self) -> Result<(), Errno> {
        loop {
            let mut slices = Vec::with_capacity(self.output.len().min(MAX_IOV));
            for (index, outgoing) in self.output.iter().take(MAX_IOV).enumerate() {
                // Descriptors go with the first byte of their own write.
                if index > 0 && !outgoing.fds.is_empty() {
                    break;
                }
                let limit = outgoing.hold.unwrap_or(usize::MAX).min(outgoing.bytes.len());
                slices.push(IoSlice::new(&outgoing.bytes[..limit]));
                if limit < outgoing.bytes.len() {
                    break;
                }
            }
            if slices.iter().all(|slice| slice.is_empty()) {
                return Ok(());
            }
            let fds: Vec<RawFd> = self.output[0].fds.iter().map(AsRawFd::as_raw_fd).collect();
            let rights = [ControlMessage::ScmRights(&fds)];
            let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
            match sendmsg::<()>(
                self.socket.as_raw_fd(),
                &slices,
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Ok(written) => self.advance(written),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(front) = self.output.front_mut() {
            let step = written.min(front.bytes.len());
            front.bytes.advance(step);
            front.hold = front.hold.map(|hold| hold.saturating_sub(step));
            if step > 0 {
                front.fds.clear();
            }
            written -= step;
            if !front.bytes.is_empty() {
                break;
            }
            self.output.pop_front();
        }
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Reads once; then ask [`Link::next`] until it has nothing more.
    pub(crate) fn read(&mut self, scratch: &mut Scratch) -> anyhow::Result<Read> {
        let Scratch { bytes, control } = scratch;
        let (count, fds) = {
            let mut slices = [IoSliceMut::new(bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received = match recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, Some(control), flags) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return Ok(Read::Nothing),
                Err(Errno::EINTR) => return Ok(Read::Some),
                Err(Errno::ECONNRESET) => return Ok(Read::End),
                Err(error) => return Err(error.into()),
            };
            let mut fds = Vec::new();
            for message in received.cmsgs()? {
                if let ControlMessageOwned::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            (received.bytes, fds)
        };
        if count == 0 {
            return Ok(Read::End);
        }
        for &fd in &fds {
            self.received.insert(fd, fds::adopt(fd));
        }
        let mut chunk = Bytes::copy_from_slice(&bytes[..count]);
        if let Some(handshake) = &mut self.handshake {
            if !handshake.feed(&mut chunk)? {
                return Ok(Read::Some);
            }
            self.handshake = None;
        }
        self.framer.push(chunk, fds.into_iter().map(Fd));
        Ok(Read::Some)
    }

    /// The next complete message of what was read.
    pub(crate) fn next(&mut self) -> anyhow::Result<Option<Framed>> {
        Ok(self.framer.next()?)
    }

    /// The descriptor that came with a message under this handle.
    pub(crate) fn take_fd(&mut self, fd: Fd) -> Option<OwnedFd> {
        self.received.remove(&fd.0)
    }

    /// Descriptors that came and that no message has claimed.
    pub(crate) fn unclaimed_fds(&self) -> usize {
        self.received.len()
    }

    /// Ends the connection in both directions.
    pub(crate) fn shut_down(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    pub(crate) fn set_timeout(&self, timeout: std::time::Duration) -> std::io::Result<()> {
        self.socket
            .set_read_timeout(Some(timeout.max(std::time::Duration::from_millis(1))))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
