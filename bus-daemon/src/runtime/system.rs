//! What the kernel knows of peers: asked at accept, or when the broker wants to know.

#![allow(unsafe_code, reason = "socket options without a wrapper")]

use std::os::fd::RawFd;

use bus_wire::Fd;

use super::links::socket_of;
use crate::broker::{Credentials, JournalMemory, MachineId, PeerId, System};
use crate::journal::{Answer, Journal};

/// Linux 6.5; not in the libc crate for every target.
const SO_PEERPIDFD: i32 = 77;

/// Answers the broker's questions and notes the answers.
pub(crate) struct Kernel<'a> {
    pub(crate) journal: &'a mut Journal,
}

impl System for Kernel<'_> {
    fn peer_groups(&mut self, peer: PeerId) -> Option<Vec<u32>> {
        if let Some(Answer::Groups(groups)) = self.journal.recorded_answer() {
            return groups;
        }
        let groups = groups(socket_of(peer));
        self.journal.note_answer(peer, &Answer::Groups(groups.clone()));
        groups
    }

    fn peer_label(&mut self, peer: PeerId) -> Option<Vec<u8>> {
        if let Some(Answer::Label(label)) = self.journal.recorded_answer() {
            return label;
        }
        let label = label(socket_of(peer));
        self.journal.note_answer(peer, &Answer::Label(label.clone()));
        label
    }

    fn peer_pidfd(&mut self, peer: PeerId) -> Option<Fd> {
        if let Some(Answer::Descriptor(fd)) = self.journal.recorded_answer() {
            return fd;
        }
        let fd = option::<i32>(socket_of(peer), SO_PEERPIDFD)
            .map(Fd)
            .inspect(|fd| keep_over_exec(fd.0));
        self.journal.note_answer(peer, &Answer::Descriptor(fd));
        fd
    }

    fn journal_memory(&mut self) -> Option<JournalMemory> {
        if let Some(Answer::Memory(memory)) = self.journal.recorded_answer() {
            return Some(memory);
        }
        let memory = self.journal.memory();
        self.journal
            .note_answer(PeerId::from_u64(0), &Answer::Memory(memory));
        Some(memory)
    }

    fn machine_id(&mut self) -> MachineId {
        if let Some(Answer::MachineId(id)) = self.journal.recorded_answer() {
            return id;
        }
        let id = machine_id();
        self.journal
            .note_answer(PeerId::from_u64(0), &Answer::MachineId(id.clone()));
        id
    }

    fn duplicate(&mut self, fd: Fd) -> Option<Fd> {
        if let Some(Answer::Descriptor(copy)) = self.journal.recorded_answer() {
            return copy;
        }
        // SAFETY: makes a new descriptor, or fails.
        let copy = unsafe { libc::fcntl(fd.0, libc::F_DUPFD, 3) };
        let copy = (copy >= 0).then_some(Fd(copy));
        self.journal
            .note_answer(PeerId::from_u64(0), &Answer::Descriptor(copy));
        copy
    }
}

/// The machine's id, from the files that the specification ("org.freedesktop.DBus.Peer") and machine-id(5) name.
pub(crate) fn machine_id() -> MachineId {
    let mut found = MachineId::Missing;
    for path in ["/var/lib/dbus/machine-id", "/etc/machine-id"] {
        let Ok(text) = std::fs::read_to_string(path) else {
            continue;
        };
        let text = text.trim();
        if text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return MachineId::Found(text.to_ascii_lowercase());
        }
        found = MachineId::Invalid;
    }
    found
}

/// The kernel's cookie of a socket, the same for its whole life and for no other.
pub(crate) fn cookie(socket: RawFd) -> u64 {
    option::<u64>(socket, libc::SO_COOKIE).unwrap_or(0)
}

/// Whether a descriptor is a connection that a listener of these cookies' sockets accepted: a stream socket with a
/// name, which does not listen itself. Only accepted sockets have one here: what clients pass has none.
pub(crate) fn is_accepted_socket(fd: RawFd, listeners: &[crate::keeper::Listener]) -> Option<u32> {
    use nix::sys::socket::{UnixAddr, getsockname};
    if option::<i32>(fd, libc::SO_ACCEPTCONN) != Some(0) {
        return None;
    }
    let name: UnixAddr = getsockname(fd).ok()?;
    name.path().map(|_| ()).or(name.as_abstract().map(|_| ()))?;
    let is_same = |listener: &crate::keeper::Listener| {
        getsockname::<UnixAddr>(listener.fd).is_ok_and(|own| own == name)
    };
    listeners.iter().position(is_same).map(|index| index as u32)
}

/// SO_PEERCRED: who connected, at the time of connecting.
pub(crate) fn credentials(socket: RawFd) -> Credentials {
    option::<libc::ucred>(socket, libc::SO_PEERCRED).map_or(Credentials::default(), |found| Credentials {
        uid: Some(found.uid),
        gid: Some(found.gid),
        pid: u32::try_from(found.pid).ok().filter(|pid| *pid != 0),
    })
}

fn option<T>(socket: RawFd, name: i32) -> Option<T> {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: room for `len` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            name,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    // SAFETY: the kernel has written a whole T (plain integers).
    (result == 0 && len as usize == size_of::<T>()).then(|| unsafe { value.assume_init() })
}

fn groups(socket: RawFd) -> Option<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let mut len = (groups.len() * 4) as libc::socklen_t;
        // SAFETY: room for `len` bytes.
        let result = unsafe {
            libc::getsockopt(
                socket,
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let count = len as usize / 4;
        if result == 0 {
            groups.truncate(count);
            groups.extend(credentials(socket).gid);
            groups.sort_unstable();
            groups.dedup();
            return Some(groups);
        }
        if std::io::Error::last_os_error().raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return None;
        }
        groups.resize(count, 0);
    }
}

fn label(socket: RawFd) -> Option<Vec<u8>> {
    let mut label = vec![0_u8; 4096];
    let mut len = label.len() as libc::socklen_t;
    // SAFETY: room for `len` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_PEERSEC,
            label.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return None;
    }
    label.truncate(len as usize);
    while label.last() == Some(&0) {
        label.pop();
    }
    (!label.is_empty()).then_some(label)
}

/// Takes the close-on-exec flag off a descriptor that the broker owns.
fn keep_over_exec(fd: RawFd) {
    // SAFETY: changes a flag of a descriptor just made.
    unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
}
