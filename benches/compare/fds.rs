//! Messages with descriptors over a stream.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use anyhow::{Result, ensure};
use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Most descriptors that come with one read: those of one message.
const MOST: usize = 16;

/// Writes bytes and descriptors, all of them in one write.
pub(crate) fn send(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let slices = [IoSlice::new(bytes)];
    let sent = sendmsg::<()>(stream.as_raw_fd(), &slices, &rights, MsgFlags::empty(), None)?;
    ensure!(
        sent == bytes.len(),
        "a socket took only a part of a message with descriptors"
    );
    Ok(())
}

/// Reads once: how many bytes, and the descriptors that came with them.
pub(crate) fn receive(stream: &UnixStream, buffer: &mut [u8]) -> std::io::Result<(usize, Vec<OwnedFd>)> {
    let mut slices = [IoSliceMut::new(buffer)];
    let mut control = cmsg_space!([RawFd; MOST]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            #[expect(unsafe_code, reason = "the kernel has just made them")]
            // SAFETY: they are ours, and nobody else has them.
            fds.extend(
                numbers
                    .into_iter()
                    .map(|number| unsafe { OwnedFd::from_raw_fd(number) }),
            );
        }
    }
    Ok((received.bytes, fds))
}
