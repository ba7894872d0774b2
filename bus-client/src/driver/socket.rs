//! Bytes and file descriptors, in and out of a socket.
#![allow(
    unsafe_code,
    reason = "descriptors that the kernel hands out are taken into ownership here"
)]

use std::io::{self, IoSlice, IoSliceMut};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// The most descriptors that the kernel passes with one message (SCM_MAX_FD).
const MAX_FDS: usize = 253;

/// A connected socket that never waits.
#[derive(Debug)]
pub(crate) enum Socket {
    /// It passes descriptors.
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    pub(crate) fn unix(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self::Unix(socket))
    }

    pub(crate) fn tcp(socket: TcpStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        Ok(Self::Tcp(socket))
    }

    pub(crate) fn passes_fds(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(socket) => socket.as_fd(),
            Self::Tcp(socket) => socket.as_fd(),
        }
    }

    /// What has come; no bytes at the end of the stream, `None` where nothing has come.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
        let mut slices = [IoSliceMut::new(buffer)];
        let mut control = cmsg_space!([RawFd; MAX_FDS]);
        control.resize(control.capacity(), 0);
        let control = self.passes_fds().then_some(&mut control[..]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        // Whoever is interrupted comes again: nothing was taken, so it is told of again.
        let received = match recvmsg::<()>(self.as_fd().as_raw_fd(), &mut slices, control, flags) {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut fds = Vec::new();
        for message in received.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(numbers) = message {
                // SAFETY: the kernel has made these for this process in this very call, so they are nobody else's.
                fds.extend(
                    numbers
                        .iter()
                        .map(|number| unsafe { OwnedFd::from_raw_fd(*number) }),
                );
            }
        }
        Ok(Some((received.bytes, fds)))
    }

    /// How much was taken; `None` where there is no room.
    pub(crate) fn write(&self, slices: &[IoSlice<'_>], fds: &[BorrowedFd<'_>]) -> io::Result<Option<usize>> {
        let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control = if numbers.is_empty() { &[][..] } else { &rights };
        let flags = MsgFlags::MSG_NOSIGNAL;
        loop {
            match sendmsg::<()>(self.as_fd().as_raw_fd(), slices, control, flags, None) {
                Ok(count) => return Ok(Some(count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
