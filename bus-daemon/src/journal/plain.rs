//! For benchmarks only: links without the journal, to measure what it costs. Bytes are received into a buffer of 256 KiB
//! by `recvmsg` and sent by `sendmsg`; nothing is noted.

#![allow(unsafe_code, reason = "recvmsg and sendmsg on buffers")]

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::os::fd::RawFd;
use std::sync::OnceLock;

use bus_wire::SendQueue;
use smallvec::SmallVec;

use super::header::CONTROL;
use super::io::{CONTROL_BYTES, Read, SLICES, Written, put_fds, take_fds};
use super::{Journal, header::ControlBuffer};

/// Whether this process was asked to run without the journal.
pub(super) fn is_wanted() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    *WANTED.get_or_init(|| std::env::var_os("BUS_BENCH_PLAIN").is_some())
}

impl Journal {
    pub(super) fn receive_plain(&mut self, socket: RawFd) -> Result<Read> {
        let room = self.log.plain_room();
        let mut iov = libc::iovec {
            iov_base: room.start.cast(),
            iov_len: room.len,
        };
        let mut control = ControlBuffer([0; CONTROL]);
        // SAFETY: zeroes are a msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_BYTES;
        // SAFETY: the header names room that nobody reads, and its own control buffer.
        let len = unsafe { libc::recvmsg(socket, &raw mut message, libc::MSG_DONTWAIT) };
        let Ok(len) = usize::try_from(len) else {
            let error = Error::last_os_error();
            return if error.kind() == ErrorKind::WouldBlock {
                Ok(Read::Empty)
            } else {
                Err(error)
            };
        };
        if len == 0 {
            return Ok(Read::End);
        }
        let fds = self.assign_all(&take_fds(&control.0[..message.msg_controllen.min(CONTROL)]));
        let bytes = self.log.plain_read(len);
        let full = len == room.len || !fds.is_empty();
        Ok(Read::Data {
            bytes,
            fds,
            len,
            full,
            lost_fds: false,
        })
    }

    pub(super) fn send_plain(&mut self, socket: RawFd, queue: &SendQueue) -> Result<Written> {
        let mut slices = SmallVec::<[IoSlice<'_>; SLICES]>::new();
        let fds = queue.next_write(&mut slices, SLICES);
        let offered: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
        let mut control = ControlBuffer([0; CONTROL]);
        // SAFETY: zeroes are a msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = slices.as_mut_ptr().cast();
        message.msg_iovlen = slices.len();
        if !fds.is_empty() {
            message.msg_controllen = put_fds(&mut control.0, fds, |handle| self.manifest.number(handle));
            message.msg_control = control.0.as_mut_ptr().cast();
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the header names valid slices and its own control buffer.
        let len = unsafe { libc::sendmsg(socket, &raw const message, flags) };
        match u64::try_from(len) {
            Ok(len) => Ok(Written {
                upto: queue.sent() + len,
                blocked: len < offered,
            }),
            Err(_) => {
                let error = Error::last_os_error();
                if error.kind() == ErrorKind::WouldBlock {
                    Ok(Written {
                        upto: queue.sent(),
                        blocked: true,
                    })
                } else {
                    Err(error)
                }
            }
        }
    }
}
