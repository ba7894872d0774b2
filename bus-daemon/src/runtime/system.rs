//! What the kernel knows of peers: asked at accept, or when the broker wants to know.

#![allow(unsafe_code, reason = "socket options without a wrapper")]

use std::net::SocketAddr;
use std::os::fd::RawFd;

use bus_wire::Fd;
use nix::sys::socket::{UnixAddr, getsockname};

use crate::broker::{Attested, Credentials, JournalMemory, MachineId, System, Transport};
use crate::journal::{Answer, Journal, Recorded};
use crate::os::descriptor;

/// Linux 6.5; not in the libc crate for every target.
const SO_PEERPIDFD: i32 = 77;

/// Answers the broker's questions and notes the answers. In a replay it gives the noted ones.
pub(crate) struct Kernel<'a> {
    pub(crate) journal: &'a mut Journal,
}

impl Kernel<'_> {
    /// A descriptor that the system makes, as a handle: the noted one, or a new one from `make`.
    fn descriptor(&mut self, make: impl FnOnce(&Journal) -> Option<RawFd>) -> Option<Fd> {
        match self.journal.recorded_answer() {
            Recorded::Answer(Answer::Descriptor(handle)) => handle,
            Recorded::Answer(Answer::Memory(_) | Answer::MachineId(_) | Answer::AtConsole(_))
            | Recorded::Missing => None,
            Recorded::AskNow => {
                let made = make(self.journal);
                let handle = made.and_then(|number| {
                    let handle = self.journal.assign(number);
                    if handle.is_none() {
                        descriptor::close(number);
                    }
                    handle
                });
                self.journal.note_answer(&Answer::Descriptor(handle));
                handle
            }
        }
    }
}

impl System for Kernel<'_> {
    fn peer_pidfd(&mut self, socket: Fd) -> Option<Fd> {
        self.descriptor(|journal| {
            let made = option::<i32>(journal.number(socket)?, SO_PEERPIDFD)?;
            descriptor::set_close_on_exec(made, false);
            Some(made)
        })
    }

    fn journal_memory(&mut self) -> Option<JournalMemory> {
        match self.journal.recorded_answer() {
            Recorded::Answer(Answer::Memory(memory)) => Some(memory),
            Recorded::Answer(Answer::Descriptor(_) | Answer::MachineId(_) | Answer::AtConsole(_))
            | Recorded::Missing => None,
            Recorded::AskNow => {
                let memory = self.journal.memory();
                self.journal.note_answer(&Answer::Memory(memory));
                Some(memory)
            }
        }
    }

    fn machine_id(&mut self) -> MachineId {
        match self.journal.recorded_answer() {
            Recorded::Answer(Answer::MachineId(id)) => id,
            Recorded::Answer(Answer::Descriptor(_) | Answer::Memory(_) | Answer::AtConsole(_))
            | Recorded::Missing => MachineId::Missing,
            Recorded::AskNow => {
                let id = machine_id();
                self.journal.note_answer(&Answer::MachineId(id.clone()));
                id
            }
        }
    }

    fn is_at_console(&mut self, uid: u32) -> bool {
        match self.journal.recorded_answer() {
            Recorded::Answer(Answer::AtConsole(is_there)) => is_there,
            Recorded::Answer(Answer::Descriptor(_) | Answer::Memory(_) | Answer::MachineId(_))
            | Recorded::Missing => false,
            Recorded::AskNow => {
                let is_there = is_at_console(uid);
                self.journal.note_answer(&Answer::AtConsole(is_there));
                is_there
            }
        }
    }

    fn duplicate(&mut self, fd: Fd) -> Option<Fd> {
        self.descriptor(|journal| {
            // SAFETY: makes a new descriptor, or fails.
            let copy = unsafe { libc::fcntl(journal.number(fd)?, libc::F_DUPFD, 3) };
            (copy >= 0).then_some(copy)
        })
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

/// Where logind says of each user whose session it knows of what the user has (sd_uid_get_seats(3)).
const LOGIND_USERS: &str = "/run/systemd/users";

/// Whether one of a user's sessions has a seat, be it in the foreground or not. Without logind nobody's has.
fn is_at_console(uid: u32) -> bool {
    let path = format!("{LOGIND_USERS}/{uid}");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut seats = text.lines().filter_map(|line| line.strip_prefix("SEATS="));
    seats.any(|seats| !seats.trim().is_empty())
}

/// Whether a descriptor is a connection that one of these listeners accepted: a stream socket with a
/// name, which does not listen itself. Only accepted sockets have one here: what clients pass has none, or is passed on.
pub(crate) fn is_accepted_socket(fd: RawFd, listeners: &[crate::handoff::keeper::Listener]) -> Option<u32> {
    if option::<i32>(fd, libc::SO_ACCEPTCONN) != Some(0) {
        return None;
    }
    let name = Name::of(fd)?;
    let accepts = |listener: &crate::handoff::keeper::Listener| {
        Name::of(listener.fd).is_some_and(|own| own.accepts_at(&name))
    };
    listeners.iter().position(accepts).map(|index| index as u32)
}

/// Where a socket is bound.
#[derive(Debug, PartialEq, Eq)]
enum Name {
    Unix(Box<UnixAddr>),
    Internet(SocketAddr),
}

impl Name {
    /// `None` where it has none.
    fn of(fd: RawFd) -> Option<Self> {
        if let Some(at) = crate::os::socket::internet_address(fd) {
            return Some(Self::Internet(at));
        }
        let name: UnixAddr = getsockname(fd).ok()?;
        name.path().map(|_| ()).or(name.as_abstract().map(|_| ()))?;
        Some(Self::Unix(Box::new(name)))
    }

    /// Whether a listener of this name accepts connections that are bound to the other.
    fn accepts_at(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Internet(own), Self::Internet(at)) => {
                let is_any = own.ip().is_unspecified() && own.is_ipv4() == at.is_ipv4();
                own.port() == at.port() && (is_any || own.ip() == at.ip())
            }
            (own, at) => own == at,
        }
    }
}

/// What carries the links of a listener.
pub(crate) fn transport(listener: RawFd) -> Transport {
    match Name::of(listener) {
        Some(Name::Internet(_)) => Transport::Tcp,
        Some(Name::Unix(_)) | None => Transport::Unix,
    }
}

/// What the kernel tells of the process at the other end of a unix socket, at the time of connecting.
pub(crate) fn attested(socket: RawFd) -> Attested {
    let credentials = credentials(socket);
    Attested {
        credentials,
        groups: groups(socket, credentials.gid),
        label: label(socket),
    }
}

/// SO_PEERCRED. A transport that has none says that it is nobody (uid -1).
pub(crate) fn credentials(socket: RawFd) -> Credentials {
    const NOBODY: u32 = u32::MAX;
    let found = option::<libc::ucred>(socket, libc::SO_PEERCRED).filter(|found| found.uid != NOBODY);
    found.map_or(Credentials::default(), |found| Credentials {
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

/// Groups of a process that connects, at most. All of them are kept, since any may be named in a policy, and stand in each
/// entry of the peer. The kernel allows 65,536, and a user namespace gives anybody as many; the directories of large
/// organisations give nobody more than about a thousand.
pub(crate) const MOST_GROUPS: usize = 4096;

/// Whether the process at the other end has more groups than are read.
pub(crate) fn has_too_many_groups(socket: RawFd) -> bool {
    let (result, len) = option_into(socket, libc::SO_PEERGROUPS, &mut [0_u32; 32]);
    result == Err(libc::ERANGE) && len / 4 > MOST_GROUPS
}

/// SO_PEERGROUPS, with the primary one.
fn groups(socket: RawFd, primary: Option<u32>) -> Option<Vec<u32>> {
    let mut few = [0_u32; 32];
    let mut many = Vec::new();
    let mut room = few.as_mut_slice();
    loop {
        let (result, len) = option_into(socket, libc::SO_PEERGROUPS, room);
        let count = len / 4;
        match result {
            Ok(()) => {
                let mut groups: Vec<u32> = room.iter().copied().take(count).chain(primary).collect();
                groups.sort_unstable();
                groups.dedup();
                return Some(groups);
            }
            // As many as there are now; there may be more by the next time.
            Err(libc::ERANGE) if count > room.len() => {
                many.resize(count, 0);
                room = &mut many;
            }
            Err(_) => return None,
        }
    }
}

/// SO_PEERSEC, without a terminating nul.
fn label(socket: RawFd) -> Option<Vec<u8>> {
    let mut room = [0_u8; 256];
    let (result, len) = option_into(socket, libc::SO_PEERSEC, &mut room);
    result.ok()?;
    let label = &room[..len.min(room.len())];
    let end = label.iter().rposition(|byte| *byte != 0)? + 1;
    Some(label[..end].to_vec())
}

/// A socket option of any length, as numbers; how many bytes it has, or would have had. `Err` is the system's number.
fn option_into<T: Copy>(socket: RawFd, name: i32, room: &mut [T]) -> (Result<(), i32>, usize) {
    let mut len = size_of_val(room) as libc::socklen_t;
    // SAFETY: room for `len` bytes; all callers' T are integers.
    let result = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            name,
            room.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    let result = match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
    };
    (result, len as usize)
}
