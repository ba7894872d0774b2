//! Receivers that do not read for a while, a sender of numbered messages for them, and books of who is to get which.

use super::raw::{Raw, call};
use super::{Bus, DRIVER, DRIVER_PATH};
use bus_load::fds;
use bus_wire::{Fd, Framer, Message, MessageBuilder, MessageType, limits};
use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

const PATH: &str = "/org/busdaemon/Test";
const INTERFACE: &str = "org.busdaemon.Waiting1";
const NUMBERED: &str = "Numbered";

/// The bytes of the message with this number, which no other number near it has.
fn content(number: u64, length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..251)
        .map(|index: u64| (index * index + number * 31) as u8)
        .collect();
    bytes.rotate_left((number % 251) as usize);
    let mut all = bytes.repeat(length / 251 + 1);
    all.truncate(length);
    all
}

/// What a receiver is to get: the number, the bytes beside it, and whether a descriptor comes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Expected {
    number: u64,
    length: usize,
    has_descriptor: bool,
}

/// What a receiver gets of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Subscriber,
    /// What is sent to itself only.
    Addressee,
    /// Everything.
    Monitor,
}

/// A receiver, and what it is to get and has not got.
pub struct Stalled {
    stream: std::os::unix::net::UnixStream,
    pub unique: String,
    role: Role,
    framer: Framer,
    expected: VecDeque<Expected>,
    answered: bool,
    /// Bytes read so far.
    pub taken: u64,
}

impl Stalled {
    /// Connects, and reads what comes before the first numbered message.
    pub fn start(bus: &Bus, role: Role) -> Stalled {
        let mut raw = Raw::ready(bus);
        match role {
            Role::Subscriber => raw.send(&call("AddMatch", |body| {
                body.str(&format!("type='signal',interface='{INTERFACE}'"));
            })),
            Role::Addressee => raw.send(&call("GetId", |_| ())),
            Role::Monitor => {
                let builder = MessageBuilder::method_call(DRIVER_PATH, "BecomeMonitor")
                    .destination(DRIVER)
                    .interface("org.freedesktop.DBus.Monitoring");
                let builder = builder.serial(1u32).body(|body| {
                    body.str_array([format!("interface='{INTERFACE}'").as_str()])
                        .u32(0);
                });
                raw.send(&builder.build().unwrap());
            }
        }
        loop {
            let message = raw.message().unwrap();
            assert_ne!(message.message_type(), MessageType::Error, "{message:?}");
            if message.message_type() == MessageType::MethodReturn {
                break;
            }
        }
        if role == Role::Monitor {
            // It loses its name, which is the last that it hears of this kind.
            let message = raw.message().unwrap();
            assert_eq!(message.member(), Some("NameLost"), "{message:?}");
        }
        Stalled {
            stream: raw.stream,
            unique: raw.unique,
            role,
            framer: Framer::new(limits::MAX_MESSAGE),
            expected: VecDeque::new(),
            answered: false,
            taken: 0,
        }
    }

    /// Its connection.
    pub fn stream(&self) -> std::os::unix::net::UnixStream {
        self.stream.try_clone().unwrap()
    }

    /// Messages that it is still to get.
    pub fn missing(&self) -> usize {
        self.expected.len()
    }

    /// Reads at most so many bytes, and checks the messages that are complete. False at the end of the stream.
    pub fn read(&mut self, most: usize) -> bool {
        let mut chunk = vec![0; most];
        let mut control = nix::cmsg_space!([RawFd; 253]);
        let (length, descriptors) = {
            let mut parts = [IoSliceMut::new(&mut chunk)];
            let socket = self.stream.as_raw_fd();
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received = match recvmsg::<()>(socket, &mut parts, Some(&mut control), flags) {
                Ok(received) => received,
                Err(Errno::EINTR) => return true,
                Err(Errno::ECONNRESET) => return false,
                Err(error) => panic!(
                    "{} ({:?}) got {} bytes, and lacks {} messages: {error}",
                    self.unique,
                    self.role,
                    self.taken,
                    self.missing()
                ),
            };
            let mut descriptors = Vec::new();
            for message in received.cmsgs().unwrap() {
                if let ControlMessageOwned::ScmRights(fds) = message {
                    descriptors.extend(fds);
                }
            }
            (received.bytes, descriptors)
        };
        if length == 0 {
            return false;
        }
        self.taken += length as u64;
        chunk.truncate(length);
        self.framer
            .push(Bytes::from(chunk), descriptors.into_iter().map(Fd));
        while let Some(framed) = self.framer.next().unwrap() {
            self.check(&framed.message, &framed.fds);
        }
        true
    }

    fn check(&mut self, message: &Message, fds: &[Fd]) {
        let numbers: Vec<u64> = fds.iter().map(|fd| number_in(fd.0)).collect();
        if message.interface() != Some(INTERFACE) {
            self.answered |= message
                .reply_serial()
                .is_some_and(|serial| serial.get() == 4_000_000);
            assert!(fds.is_empty());
            return;
        }
        let mut body = message.body();
        let number = body.read_u64().unwrap();
        let (who, role) = (&self.unique, self.role);
        let expected = self.expected.pop_front();
        let expected = expected.unwrap_or_else(|| panic!("{who} ({role:?}) gets {number} beyond the last"));
        assert_eq!(
            number, expected.number,
            "{who} ({role:?}) gets another message than the next"
        );
        let bytes = body.read_byte_slice().unwrap();
        assert!(
            bytes == content(number, expected.length),
            "{who} ({role:?}): the content of {number} is another"
        );
        let descriptors: &[u64] = if expected.has_descriptor { &[number] } else { &[] };
        assert_eq!(numbers, descriptors, "{who} ({role:?}): descriptors of {number}");
    }

    /// Reads until everything has come, and nothing else.
    pub fn finish(&mut self) {
        while !self.expected.is_empty() {
            assert!(
                self.read(256 * 1024),
                "{} ({:?}) was disconnected and lacks {} messages",
                self.unique,
                self.role,
                self.missing()
            );
        }
        if self.role != Role::Monitor {
            let question = MessageBuilder::method_call(DRIVER_PATH, "GetId").destination(DRIVER);
            let question = question.serial(4_000_000u32).build().unwrap();
            nix::unistd::write(&self.stream, &question).unwrap();
            self.answered = false;
            while !self.answered {
                assert!(
                    self.read(4096),
                    "{} ({:?}) was disconnected",
                    self.unique,
                    self.role
                );
            }
        }
    }

    /// Reads up to the end of the stream, which must come before everything has; what comes before the end is right. How
    /// many messages it did not get.
    pub fn expect_end(mut self) -> usize {
        while self.read(256 * 1024) {}
        assert_ne!(self.missing(), 0, "{} was not disconnected", self.unique);
        self.missing()
    }
}

/// The number that a descriptor holds, which is closed.
fn number_in(fd: RawFd) -> u64 {
    let copy = File::open(format!("/proc/self/fd/{fd}")).unwrap();
    nix::unistd::close(fd).unwrap();
    fds::number_of(copy.into()).unwrap()
}

/// Whom a message is for.
#[derive(Debug, Clone, Copy)]
pub enum To {
    Everybody,
    /// The one at this place of the list.
    One(usize),
}

/// Sends numbered messages.
pub struct Sender {
    raw: Raw,
    number: u64,
    /// What is still to be sent of a message that was begun.
    rest: Vec<u8>,
}

impl Sender {
    pub fn start(bus: &Bus) -> Sender {
        Sender {
            raw: Raw::ready(bus),
            number: 0,
            rest: Vec::new(),
        }
    }

    /// Sends the next message and writes into the books who is to get it.
    pub fn send(&mut self, receivers: &mut [Stalled], to: To, length: usize, has_descriptor: bool) {
        self.begin(receivers, to, length, has_descriptor, usize::MAX);
    }

    /// The same of so many first bytes of it only.
    pub fn begin(
        &mut self,
        receivers: &mut [Stalled],
        to: To,
        length: usize,
        has_descriptor: bool,
        first: usize,
    ) {
        assert!(self.rest.is_empty(), "another message is under way");
        self.number += 1;
        let number = self.number;
        let expected = Expected {
            number,
            length,
            has_descriptor,
        };
        let mut message = MessageBuilder::signal(PATH, INTERFACE, NUMBERED).serial(number as u32);
        if let To::One(index) = to {
            message = message.destination(&receivers[index].unique);
        }
        let message = message.unix_fds(u32::from(has_descriptor)).body(|body| {
            body.u64(number).byte_slice(&content(number, length));
            if has_descriptor {
                body.unix_fd_index(0);
            }
        });
        let bytes = message.build().unwrap();
        for (index, receiver) in receivers.iter_mut().enumerate() {
            let is_meant = match to {
                To::Everybody => receiver.role == Role::Subscriber,
                To::One(place) => place == index,
            };
            if is_meant || receiver.role == Role::Monitor {
                receiver.expected.push_back(expected);
            }
        }
        let (now, later) = bytes.split_at(first.min(bytes.len()));
        self.write(now, has_descriptor.then(|| fds::numbered(number).unwrap()));
        self.rest = later.to_vec();
    }

    /// Sends at most so many more bytes of the message that was begun. False: all of it is sent.
    pub fn go_on(&mut self, most: usize) -> bool {
        let now: Vec<u8> = self.rest.drain(..most.min(self.rest.len())).collect();
        self.write(&now, None);
        !self.rest.is_empty()
    }

    /// Sends the next message, to everybody or the one of this name, of which nobody keeps books.
    pub fn send_unnoted(&mut self, to: Option<&str>, length: usize) {
        self.number += 1;
        let mut message = MessageBuilder::signal(PATH, INTERFACE, NUMBERED).serial(self.number as u32);
        if let Some(to) = to {
            message = message.destination(to);
        }
        let message = message.body(|body| {
            body.u64(self.number).byte_slice(&vec![7; length]);
        });
        self.write(&message.build().unwrap(), None);
    }

    fn write(&mut self, mut bytes: &[u8], fd: Option<OwnedFd>) {
        let numbers: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let mut control: Vec<ControlMessage<'_>> = Vec::new();
        if !numbers.is_empty() {
            control.push(ControlMessage::ScmRights(&numbers));
        }
        while !bytes.is_empty() {
            let parts = [IoSlice::new(bytes)];
            let flags = MsgFlags::MSG_NOSIGNAL;
            let sent = sendmsg::<()>(self.raw.stream.as_raw_fd(), &parts, &control, flags, None);
            let sent = sent.expect("the sender is read from");
            control.clear();
            bytes = &bytes[sent..];
        }
    }

    /// Waits until the bus has dealt with all that was sent.
    pub fn settle(&mut self) {
        let question = MessageBuilder::method_call(DRIVER_PATH, "GetId").destination(DRIVER);
        let question = question.serial(4_000_000u32).build().unwrap();
        self.raw.send(&question);
        loop {
            let message = self.raw.message().expect("the sender was disconnected");
            if message
                .reply_serial()
                .is_some_and(|serial| serial.get() == 4_000_000)
            {
                return;
            }
        }
    }
}

/// Bytes of memory of the daemon: what its processes have for themselves, and the files in memory that they have open.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    pub private: u64,
    pub files: u64,
}

impl Memory {
    /// As soon as there is a worker that stays for so long.
    pub fn of(bus: &Bus) -> Memory {
        let mut memory = None;
        super::wait_until("a worker", || {
            memory = Memory::try_of(bus);
            memory.is_some()
        });
        memory.unwrap()
    }

    fn try_of(bus: &Bus) -> Option<Memory> {
        use std::os::unix::fs::MetadataExt;
        let (mut private, mut files) = (0, std::collections::BTreeMap::new());
        for process in [bus.pid(), bus.worker()?] {
            let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
            let kib = line?.trim().trim_end_matches(" kB");
            private += kib.parse::<u64>().unwrap() * 1024;
            for entry in std::fs::read_dir(format!("/proc/{process}/fd")).ok()? {
                let path = entry.ok()?.path();
                let is_memfd =
                    std::fs::read_link(&path).is_ok_and(|link| link.to_string_lossy().starts_with("/memfd:"));
                if let (true, Ok(metadata)) = (is_memfd, std::fs::metadata(&path)) {
                    files.insert(metadata.ino(), metadata.blocks() * 512);
                }
            }
        }
        Some(Memory {
            private,
            files: files.values().sum(),
        })
    }

    pub fn total(self) -> u64 {
        self.private + self.files
    }
}

/// A number of the bus's statistics.
pub fn stat(caller: &mut bus_load::Caller, key: &str) -> u64 {
    let reply = caller.call(
        DRIVER,
        DRIVER_PATH,
        "org.freedesktop.DBus.Debug.Stats",
        "GetStats",
        |_| {},
    );
    let reply = reply.unwrap();
    let mut found = None;
    reply
        .body()
        .read_array(|body| {
            body.read_dict_entry(|entry| {
                let name = entry.read_str()?;
                let value = entry.read_variant(|value| match value.peek_signature() {
                    "t" => value.read_u64(),
                    _ => value.read_u32().map(u64::from),
                })?;
                if name == key {
                    found = Some(value);
                }
                Ok(())
            })
        })
        .unwrap();
    found.unwrap_or_else(|| panic!("no {key} in the statistics"))
}
