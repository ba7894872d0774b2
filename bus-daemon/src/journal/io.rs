//! The system calls that move bytes, each through the in-flight slot.

#![allow(
    unsafe_code,
    reason = "recvmmsg and sendmmsg on memory that the kernel reads and writes"
)]

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::Ordering;

use bus_wire::{Fd, LargeMessage, SendQueue};
use bytes::Bytes;
use smallvec::SmallVec;

use super::extent::is_many;
use super::header::{CONTROL, InFlight, MAX_FDS};
use super::record::{Fields, Kind};
use super::store::{ExtentPlace, StoreError};
use super::{Extent, Journal};
use crate::broker::{Fds, PeerId};

/// Most slices in one write.
pub(super) const SLICES: usize = 64;

/// Most bytes of a large message in one read: it is validated as it arrives, and no event may take long.
const LARGE_READ: usize = 256 * 1024;

/// Bytes of the control buffer.
#[cfg(feature = "bench-hooks")]
pub(super) const CONTROL_BYTES: usize = CONTROL;

/// What one read brought.
#[derive(Debug)]
pub(crate) enum Read {
    /// Bytes, and perhaps descriptors.
    Data {
        /// At least one byte: of a read into the log what it brought, of one into an extent all that is there.
        bytes: Bytes,
        /// Descriptors that came with them.
        fds: Fds,
        /// How many bytes this read brought.
        len: usize,
        /// The read took all there was room for: there may be more.
        full: bool,
        /// The kernel had to drop descriptors, for want of room in the descriptor table.
        lost_fds: bool,
    },
    /// The peer has ended the stream.
    End,
    /// Nothing there.
    Empty,
}

/// What one write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    /// Absolute offset behind the last byte of the link's stream that the socket took.
    pub(crate) upto: u64,
    /// It took less than was offered: it is full.
    pub(crate) blocked: bool,
}

impl Journal {
    /// Reads from a link into the log; `taken` bytes of its stream were read before. The record is written when this
    /// returns [`Read::Data`].
    pub(crate) fn receive(&mut self, socket: RawFd, peer: PeerId, taken: u64) -> Result<Read> {
        #[cfg(feature = "bench-hooks")]
        if super::plain::is_wanted() {
            return self.receive_plain(socket);
        }
        let room = self.arm_receive(taken);
        let Some((len, numbers, lost_fds)) = self.call_receive(socket, peer, InFlight::Receive)? else {
            return Ok(Read::Empty);
        };
        if len == 0 {
            self.header.slot.disarm();
            return Ok(Read::End);
        }
        let fds = self.assign_all(&numbers);
        let lost_fds = lost_fds || fds.len() < numbers.len();
        let fields = Fields {
            lost_fds,
            ..Fields::new(peer.to_u64(), taken + len as u64)
        };
        let bytes = self.log.finish_read(fields, len, &fds);
        self.header.slot.disarm();
        let full = len == room;
        Ok(Read::Data {
            bytes,
            fds,
            len,
            full,
            lost_fds,
        })
    }

    /// Puts into the slot where a read into the log goes; how much there is room for.
    pub(super) fn arm_receive(&mut self, taken: u64) -> usize {
        let room = self.log.room();
        self.header.slot.iov = libc::iovec {
            iov_base: room.start.cast(),
            iov_len: room.len,
        };
        self.header.slot.offset.store(taken, Ordering::Relaxed);
        room.len
    }

    /// Reads the next part of a large message into its extent, where what has arrived of it stands; `taken` bytes of the
    /// link's stream were read before.
    pub(crate) fn receive_large(
        &mut self,
        socket: RawFd,
        peer: PeerId,
        taken: u64,
        extent: &mut Extent,
        large: LargeMessage,
    ) -> Result<Read> {
        let filled = large.have;
        let room = (large.total - filled).min(LARGE_READ);
        self.header.slot.iov = libc::iovec {
            iov_base: extent.room(filled, room).cast(),
            iov_len: room,
        };
        self.header.slot.offset.store(taken, Ordering::Relaxed);
        let ExtentPlace { offset, class } = extent.place();
        self.header.slot.extent.store(offset, Ordering::Relaxed);
        self.header.slot.filled.store(filled as u64, Ordering::Relaxed);
        self.header.slot.class.store(u32::from(class), Ordering::Relaxed);
        let Some((len, numbers, lost_fds)) = self.call_receive(socket, peer, InFlight::ReceiveLarge)? else {
            return Ok(Read::Empty);
        };
        if len == 0 {
            self.header.slot.disarm();
            return Ok(Read::End);
        }
        let fds = self.assign_all(&numbers);
        let lost_fds = lost_fds || fds.len() < numbers.len();
        let fields = Fields {
            extent: offset,
            filled: (filled + len) as u32,
            class,
            lost_fds,
            ..Fields::new(peer.to_u64(), taken + len as u64)
        };
        self.log.append(Kind::ReceivedLarge, fields, &fds);
        self.header.slot.disarm();
        extent.note_filled(filled + len, is_many(self.lent_bytes));
        Ok(Read::Data {
            bytes: extent.prefix(filled + len),
            fds,
            len,
            full: true,
            lost_fds,
        })
    }

    /// Writes from the head of a send queue, once. The record is written when this returns.
    ///
    /// # Errors
    /// The system's; `InvalidData` where what waits in the store is damaged, `ResourceBusy` where the system does not give it
    /// now.
    pub(crate) fn send(&mut self, socket: RawFd, peer: PeerId, queue: &SendQueue) -> Result<Written> {
        #[cfg(feature = "bench-hooks")]
        if super::plain::is_wanted() {
            return self.send_plain(socket, queue);
        }
        let mut slices = SmallVec::<[IoSlice<'_>; SLICES]>::new();
        let fds = match queue.next_stored_write() {
            None => queue.next_write(&mut slices, SLICES),
            Some((most, fds)) => {
                let stored = self.waiting.read(peer.index, queue.sent(), most);
                let stored = stored.map_err(unreadable)?;
                if stored.is_empty() {
                    return Err(Error::new(
                        ErrorKind::InvalidData,
                        "what waits for it is not stored",
                    ));
                }
                slices.push(IoSlice::new(stored));
                fds
            }
        };
        let is_stored = queue.next_stored_write().is_some();
        let offered: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
        let slot = &mut self.header.slot;
        slot.peer.store(peer.to_u64(), Ordering::Relaxed);
        slot.sequence.store(self.log.sequence(), Ordering::Relaxed);
        slot.offset.store(queue.sent(), Ordering::Relaxed);
        let message = &mut slot.message.msg_hdr;
        message.msg_name = ptr::null_mut();
        message.msg_namelen = 0;
        message.msg_iov = slices.as_mut_ptr().cast();
        message.msg_iovlen = slices.len() as _;
        message.msg_flags = 0;
        if fds.is_empty() {
            message.msg_control = ptr::null_mut();
            message.msg_controllen = 0;
        } else {
            let manifest = &self.manifest;
            let len = put_fds(&mut slot.control.0, fds, |handle| manifest.number(handle));
            message.msg_control = slot.control.0.as_mut_ptr().cast();
            message.msg_controllen = len as _;
        }
        slot.arm(InFlight::Send);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the slot's header names valid slices (IoSlice has the layout of iovec) and its own control buffer.
        let result = unsafe { libc::sendmmsg(socket, &raw mut slot.message, 1, flags as _) };
        drop(slices);
        if result < 0 {
            let error = Error::last_os_error();
            slot.disarm();
            let is_full = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
            return if is_full {
                Ok(Written {
                    upto: queue.sent(),
                    blocked: true,
                })
            } else {
                Err(error)
            };
        }
        let len = u64::from(slot.message.msg_len);
        let upto = queue.sent() + len;
        if len > 0 {
            self.log.append(Kind::Sent, Fields::new(peer.to_u64(), upto), &[]);
            if is_stored {
                self.waiting.note_released(len);
            }
        }
        self.header.slot.disarm();
        Ok(Written {
            upto,
            blocked: len < offered,
        })
    }

    /// One `recvmmsg` with the slot's `iov`. `None`: nothing there. The slot stays armed when it brought something.
    pub(super) fn call_receive(
        &mut self,
        socket: RawFd,
        peer: PeerId,
        what: InFlight,
    ) -> Result<Option<(usize, Numbers, bool)>> {
        let slot = &mut self.header.slot;
        slot.peer.store(peer.to_u64(), Ordering::Relaxed);
        slot.sequence.store(self.log.sequence(), Ordering::Relaxed);
        let message = &mut slot.message.msg_hdr;
        message.msg_name = ptr::null_mut();
        message.msg_namelen = 0;
        message.msg_iov = &raw mut slot.iov;
        message.msg_iovlen = 1;
        message.msg_control = slot.control.0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL as _;
        message.msg_flags = 0;
        slot.arm(what);
        loop {
            // SAFETY: the slot's header names its own iov and control buffer; the iov names room that nobody reads.
            let result = unsafe {
                libc::recvmmsg(
                    socket,
                    &raw mut slot.message,
                    1,
                    libc::MSG_DONTWAIT as _,
                    ptr::null_mut(),
                )
            };
            if result >= 0 {
                break;
            }
            let error = Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // Reported before data that is still unread: read on, to the end.
                Some(libc::ECONNRESET) => {}
                Some(libc::EAGAIN) => {
                    slot.disarm();
                    return Ok(None);
                }
                _ => {
                    slot.disarm();
                    return Err(error);
                }
            }
        }
        let lost_fds = slot.has_lost_fds();
        let control = slot.message.msg_hdr.msg_controllen.min(CONTROL);
        let fds = if control == 0 {
            Numbers::new()
        } else {
            take_fds(&slot.control.0[..control])
        };
        Ok(Some((slot.message.msg_len as usize, fds, lost_fds)))
    }
}

fn unreadable(error: StoreError) -> Error {
    let kind = match error {
        StoreError::Damaged { .. } | StoreError::Caller(_) => ErrorKind::InvalidData,
        StoreError::System { .. } | StoreError::Full { .. } => ErrorKind::ResourceBusy,
    };
    Error::new(kind, error)
}

const CMSG_HEADER: usize = size_of::<libc::cmsghdr>();

/// Descriptors by their numbers in the process's table.
pub(super) type Numbers = SmallVec<[RawFd; 4]>;

/// The descriptors in received control data.
pub(super) fn take_fds(mut control: &[u8]) -> Numbers {
    let mut fds = Numbers::new();
    while control.len() >= CMSG_HEADER {
        // SAFETY: any bytes are a cmsghdr; the slice is long enough; no alignment is assumed.
        let header = unsafe { control.as_ptr().cast::<libc::cmsghdr>().read_unaligned() };
        let len = header.cmsg_len;
        if len < CMSG_HEADER || len > control.len() {
            break;
        }
        if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
            let numbers = control[CMSG_HEADER..len].chunks_exact(4);
            fds.extend(
                numbers
                    .filter_map(|bytes| bytes.try_into().ok())
                    .map(i32::from_ne_bytes),
            );
        }
        let next = len
            .next_multiple_of(align_of::<libc::cmsghdr>())
            .min(control.len());
        control = &control[next..];
    }
    fds
}

/// Writes control data that carries `fds`, of which `number` tells the numbers; its length.
pub(super) fn put_fds(
    control: &mut [u8; CONTROL],
    fds: &[Fd],
    number: impl Fn(Fd) -> Option<RawFd>,
) -> usize {
    let fds = &fds[..fds.len().min(MAX_FDS)];
    let len = CMSG_HEADER + 4 * fds.len();
    // SAFETY: zeroes are a cmsghdr.
    let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
    header.cmsg_len = len as _;
    header.cmsg_level = libc::SOL_SOCKET;
    header.cmsg_type = libc::SCM_RIGHTS;
    // SAFETY: the buffer begins with room for a header and is aligned for it.
    unsafe {
        control
            .as_mut_ptr()
            .cast::<libc::cmsghdr>()
            .write_unaligned(header)
    };
    for (place, fd) in control[CMSG_HEADER..].chunks_exact_mut(4).zip(fds) {
        // A handle without a number is a fault of ours; the system refuses to send it.
        place.copy_from_slice(&number(*fd).unwrap_or(-1).to_ne_bytes());
    }
    len.next_multiple_of(8)
}
