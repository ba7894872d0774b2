//! Somebody who only listens: who comes to the bus, who leaves it, and what each said before.

use super::raw::{Raw, call};
use super::{Bus, DRIVER};
use bus_load::clock::Deadline;
use bus_load::fds;
use bus_wire::{Fd, Framer, Message, MessageBuilder, MessageType, limits};
use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The signals that the observer listens for.
pub const PATH: &str = "/org/busdaemon/Test";
pub const INTERFACE: &str = "org.busdaemon.Test1";
const SAID: &str = "Said";

/// A numbered signal to everybody; `padding` makes it long, and a descriptor may come with it.
pub fn said(number: u64, padding: usize, has_descriptor: bool) -> Vec<u8> {
    let message = MessageBuilder::signal(PATH, INTERFACE, SAID).serial(4_000_000u32);
    let message = message.unix_fds(u32::from(has_descriptor)).body(|body| {
        body.u64(number).byte_slice(&vec![0; padding]);
        if has_descriptor {
            body.unix_fd_index(0);
        }
    });
    message.build().unwrap()
}

/// What was said under one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// The number in the speaker's unique name.
    pub by: u64,
    /// What the descriptor with it holds.
    pub descriptor: Option<u64>,
}

/// A connection that sends nothing from its beginning on, and its books. What comes twice or in the wrong order ends the
/// test at once.
pub struct Observer {
    stream: UnixStream,
    framer: Framer,
    /// The newest of those who have come.
    newest: u64,
    here: BTreeSet<u64>,
    gone: BTreeSet<u64>,
    said: BTreeMap<u64, Said>,
}

impl Observer {
    /// Connects, subscribes, and falls silent.
    pub fn start(bus: &Bus) -> Observer {
        let mut raw = Raw::ready(bus);
        for rule in [
            format!("type='signal',sender='{DRIVER}',member='NameOwnerChanged'"),
            format!("type='signal',interface='{INTERFACE}',member='{SAID}'"),
        ] {
            raw.send(&call("AddMatch", |body| {
                body.str(&rule);
            }));
            while raw.message().unwrap().message_type() != MessageType::MethodReturn {}
        }
        Observer {
            newest: number_of(&raw.unique),
            stream: raw.stream,
            framer: Framer::new(limits::MAX_MESSAGE),
            here: BTreeSet::new(),
            gone: BTreeSet::new(),
            said: BTreeMap::new(),
        }
    }

    /// Listens until the next piece of news has come; false if the deadline passed before.
    pub fn listen(&mut self, deadline: Deadline) -> bool {
        let left = deadline.left().max(Duration::from_micros(1));
        self.stream.set_read_timeout(Some(left)).unwrap();
        let mut chunk = vec![0; 64 << 10];
        let mut control = nix::cmsg_space!([RawFd; 253]);
        let (length, descriptors) = {
            let mut parts = [IoSliceMut::new(&mut chunk)];
            let socket = self.stream.as_raw_fd();
            let received = recvmsg::<()>(socket, &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC);
            let received = match received {
                Ok(received) => received,
                Err(Errno::EAGAIN | Errno::EINTR) => return false,
                Err(error) => panic!("the observer hears nothing any more: {error}"),
            };
            let mut descriptors = Vec::new();
            for message in received.cmsgs().unwrap() {
                if let ControlMessageOwned::ScmRights(fds) = message {
                    descriptors.extend(fds);
                }
            }
            (received.bytes, descriptors)
        };
        assert!(length > 0, "the observer was disconnected");
        self.framer.push(
            Bytes::copy_from_slice(&chunk[..length]),
            descriptors.into_iter().map(Fd),
        );
        while let Some(framed) = self.framer.next().unwrap() {
            let descriptor = framed.fds.first().map(|fd| content(fd.0));
            self.note(&framed.message, descriptor);
        }
        true
    }

    /// Listens until all is so, or the deadline has passed.
    pub fn listen_until(&mut self, deadline: Deadline, is_so: impl Fn(&Observer) -> bool) -> bool {
        while !is_so(self) {
            if deadline.passed() {
                return false;
            }
            self.listen(deadline);
        }
        true
    }

    /// What was said under this number, if anything.
    pub fn said(&self, number: u64) -> Option<Said> {
        self.said.get(&number).copied()
    }

    pub fn is_here(&self, who: u64) -> bool {
        self.here.contains(&who)
    }

    pub fn is_gone(&self, who: u64) -> bool {
        self.gone.contains(&who)
    }

    /// Those who have come and not left.
    pub fn here(&self) -> &BTreeSet<u64> {
        &self.here
    }

    /// How many have left.
    pub fn departures(&self) -> usize {
        self.gone.len()
    }

    fn note(&mut self, message: &Message, descriptor: Option<u64>) {
        let mut body = message.body();
        if message.member() == Some(SAID) {
            let by = number_of(message.sender().unwrap());
            let number = body.read_u64().unwrap();
            assert!(self.here.contains(&by), ":1.{by} spoke and was not here");
            let before = self.said.insert(number, Said { by, descriptor });
            assert_eq!(before, None, "number {number} came twice");
            return;
        }
        let [name, old, new] = [(); 3].map(|()| body.read_str().unwrap().to_owned());
        if !name.starts_with(':') {
            return;
        }
        let who = number_of(&name);
        if old.is_empty() {
            assert_eq!(new, name);
            assert!(who > self.newest, "{name} came after :1.{}", self.newest);
            self.newest = who;
            self.here.insert(who);
        } else {
            assert_eq!((old, new.as_str()), (name.clone(), ""));
            assert!(self.here.remove(&who), "{name} left and was not here");
            self.gone.insert(who);
        }
    }
}

/// The number in a unique name.
pub fn number_of(unique: &str) -> u64 {
    unique.strip_prefix(":1.").unwrap().parse().unwrap()
}

/// The number that a descriptor holds ([`fds::numbered`]); it is closed.
fn content(fd: RawFd) -> u64 {
    let copy = std::fs::File::open(format!("/proc/self/fd/{fd}")).unwrap();
    nix::unistd::close(fd).unwrap();
    fds::number_of(copy.into()).unwrap()
}
