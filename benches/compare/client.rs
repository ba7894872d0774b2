//! The clients of the load: one thread, one epoll, connections that never block.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::fds;
use crate::message::{Argument, Head, Kind, Parts, text_field};

const BUS: &str = "org.freedesktop.DBus";

/// A message has come in on the connection with this number.
pub(crate) struct Arrival {
    pub(crate) connection: usize,
    pub(crate) kind: u8,
    pub(crate) serial: u32,
}

/// All connections of one load to one bus.
pub(crate) struct Clients {
    path: String,
    epoll: Epoll,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    /// What is sent where a message is to have descriptors.
    file: File,
    received_fds: usize,
}

pub(crate) struct Connection {
    stream: UnixStream,
    pub(crate) name: String,
    serial: u32,
    /// A message that has come in part, up to and including its header.
    partial: Vec<u8>,
    /// Bytes of a body that are still to come and will be thrown away.
    skip: usize,
    /// The message that is being skipped, to be reported at its end.
    skipped: Option<Head>,
    out: Vec<u8>,
    sent: usize,
    blocked: bool,
}

impl Clients {
    pub(crate) fn new(path: &str) -> Result<Clients> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Clients {
            path: path.to_owned(),
            epoll,
            connections: Vec::new(),
            buffer: vec![0; 1 << 20],
            file: File::open("/dev/null")?,
            received_fds: 0,
        })
    }

    /// Opens so many connections, each with its Hello answered and everything that follows it read.
    pub(crate) fn open(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            let Greeted { stream, name, rest } = say_hello(&self.path, false)?;
            stream.set_nonblocking(true)?;
            let number = self.connections.len();
            self.epoll.add(
                stream.as_fd(),
                EpollEvent::new(EpollFlags::EPOLLIN, number as u64),
            )?;
            let mut connection = Connection {
                stream,
                name,
                serial: 1,
                partial: Vec::new(),
                skip: 0,
                skipped: None,
                out: Vec::new(),
                sent: 0,
                blocked: false,
            };
            let mut rest = rest.as_slice();
            while connection.next_message(&mut rest).is_some() {}
            self.connections.push(connection);
            self.call(number, &Parts::driver("org.freedesktop.DBus.Peer", "Ping", &[]))?;
        }
        Ok(())
    }

    pub(crate) fn count(&self) -> usize {
        self.connections.len()
    }

    pub(crate) fn name(&self, connection: usize) -> &str {
        &self.connections[connection].name
    }

    /// The next serial of a connection.
    pub(crate) fn serial(&mut self, connection: usize) -> u32 {
        let serial = &mut self.connections[connection].serial;
        *serial = serial.wrapping_add(1).max(1);
        *serial
    }

    pub(crate) fn add_match(&mut self, connection: usize, rule: &str) -> Result<()> {
        self.call(
            connection,
            &Parts::driver(BUS, "AddMatch", &[Argument::Text(rule)]),
        )
    }

    /// Calls and waits for the answer; whatever else comes meanwhile is dropped.
    pub(crate) fn call(&mut self, connection: usize, parts: &Parts<'_>) -> Result<()> {
        let serial = self.serial(connection);
        self.queue(connection, parts.encode(serial).bytes());
        self.flush(connection)?;
        let mut answered = false;
        while !answered {
            self.wait(&mut |_, arrival| {
                answered |= arrival.connection == connection && arrival.kind == Kind::Return as u8;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// How many descriptors have come in; they are closed again.
    pub(crate) fn received_fds(&self) -> usize {
        self.received_fds
    }

    /// Writes a message that has so many descriptors, at once.
    pub(crate) fn send_with_fds(&mut self, number: usize, bytes: &[u8], count: usize) -> Result<()> {
        let Connection { stream, out, .. } = &self.connections[number];
        ensure!(out.is_empty(), "a message with descriptors may not wait");
        fds::send(stream, bytes, &vec![self.file.as_raw_fd(); count])
    }

    /// Adds to what a connection will write.
    pub(crate) fn queue(&mut self, connection: usize, bytes: &[u8]) {
        self.connections[connection].out.extend_from_slice(bytes);
    }

    /// Writes what is queued, as far as the socket takes it; the rest follows from within [`Clients::wait`].
    pub(crate) fn flush(&mut self, number: usize) -> Result<()> {
        let connection = &mut self.connections[number];
        while connection.sent < connection.out.len() {
            match connection.stream.write(&connection.out[connection.sent..]) {
                Ok(sent) => connection.sent += sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !connection.blocked {
                        connection.blocked = true;
                        let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT;
                        let mut event = EpollEvent::new(both, number as u64);
                        self.epoll.modify(connection.stream.as_fd(), &mut event)?;
                    }
                    return Ok(());
                }
                Err(error) => return Err(error).context("the bus closed a connection"),
            }
        }
        connection.out.clear();
        connection.sent = 0;
        if connection.blocked {
            connection.blocked = false;
            let mut event = EpollEvent::new(EpollFlags::EPOLLIN, number as u64);
            self.epoll.modify(connection.stream.as_fd(), &mut event)?;
        }
        Ok(())
    }

    /// Waits until something comes in and hands over each message. An error reply ends the measurement.
    pub(crate) fn wait(&mut self, handle: &mut dyn FnMut(&mut Clients, Arrival) -> Result<()>) -> Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        let ready = match self.epoll.wait(&mut events, EpollTimeout::from(20_000u16)) {
            Err(nix::errno::Errno::EINTR) => return Ok(()),
            ready => ready?,
        };
        ensure!(ready > 0, "nothing came in for 20 seconds");
        for event in &events[..ready] {
            let number = event.data() as usize;
            if event.events().contains(EpollFlags::EPOLLOUT) {
                self.flush(number)?;
            }
            if event
                .events()
                .intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
            {
                self.receive(number, handle)?;
            }
        }
        Ok(())
    }

    fn receive(
        &mut self,
        number: usize,
        handle: &mut dyn FnMut(&mut Clients, Arrival) -> Result<()>,
    ) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let (read, fds) = match fds::receive(&self.connections[number].stream, &mut buffer) {
            Ok((0, _)) => bail!("the bus closed a connection"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => (0, Vec::new()),
            read => read?,
        };
        self.received_fds += fds.len();
        let mut chunk = &buffer[..read];
        while let Some(head) = self.connections[number].next_message(&mut chunk) {
            ensure!(head.kind != Kind::Error as u8, "the bus answered with an error");
            handle(
                self,
                Arrival {
                    connection: number,
                    kind: head.kind,
                    serial: head.serial,
                },
            )?;
        }
        self.buffer = buffer;
        self.flush(number)
    }
}

impl Connection {
    /// The head of the next message that has come in completely; its body has been thrown away.
    fn next_message(&mut self, chunk: &mut &[u8]) -> Option<Head> {
        if self.skip == 0 && self.skipped.is_none() {
            let head = if self.partial.is_empty() {
                Head::read(chunk)
            } else {
                let more = chunk.len().min(16usize.saturating_sub(self.partial.len()));
                self.partial.extend_from_slice(&chunk[..more]);
                *chunk = &chunk[more..];
                Head::read(&self.partial)
            };
            let Some(head) = head else {
                self.partial.extend_from_slice(chunk);
                *chunk = &[];
                return None;
            };
            self.skip = head.total - self.partial.len();
            self.partial.clear();
            self.skipped = Some(head);
        }
        let here = self.skip.min(chunk.len());
        *chunk = &chunk[here..];
        self.skip -= here;
        if self.skip == 0 { self.skipped.take() } else { None }
    }
}

/// A connection whose Hello has been answered.
pub(crate) struct Greeted {
    stream: UnixStream,
    name: String,
    /// What came in behind the answer.
    rest: Vec<u8>,
}

/// Connects, authenticates and says Hello, in three round trips or with everything in one write.
pub(crate) fn say_hello(path: &str, at_once: bool) -> Result<Greeted> {
    let mut stream = UnixStream::connect(path).with_context(|| format!("cannot connect to {path}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let uid = nix::unistd::geteuid().to_string();
    let identity: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
    let auth = format!("\0AUTH EXTERNAL {identity}\r\n");
    let hello = Parts::driver(BUS, "Hello", &[]).encode(1);
    let mut input = Vec::new();
    if at_once {
        let mut all = auth.into_bytes();
        all.extend_from_slice(b"NEGOTIATE_UNIX_FD\r\nBEGIN\r\n");
        all.extend_from_slice(hello.bytes());
        stream.write_all(&all)?;
        read_line(&mut stream, &mut input, "OK ")?;
        read_line(&mut stream, &mut input, "AGREE_UNIX_FD")?;
    } else {
        stream.write_all(auth.as_bytes())?;
        read_line(&mut stream, &mut input, "OK ")?;
        stream.write_all(b"NEGOTIATE_UNIX_FD\r\n")?;
        read_line(&mut stream, &mut input, "AGREE_UNIX_FD")?;
        let mut rest = b"BEGIN\r\n".to_vec();
        rest.extend_from_slice(hello.bytes());
        stream.write_all(&rest)?;
    }
    loop {
        if let Some(head) = Head::read(&input).filter(|head| input.len() >= head.total) {
            ensure!(
                head.kind == Kind::Return as u8,
                "Hello was answered with an error"
            );
            let name = text_field(&input, 6).context("the reply to Hello has no destination")?;
            return Ok(Greeted {
                stream,
                name: name.to_owned(),
                rest: input.split_off(head.total),
            });
        }
        read_more(&mut stream, &mut input)?;
    }
}

fn read_line(stream: &mut UnixStream, input: &mut Vec<u8>, want: &str) -> Result<()> {
    loop {
        if let Some(end) = input.windows(2).position(|pair| pair == b"\r\n") {
            let line: Vec<u8> = input.drain(..end + 2).collect();
            ensure!(
                line.starts_with(want.as_bytes()),
                "expected {want}, got {}",
                String::from_utf8_lossy(&line)
            );
            return Ok(());
        }
        read_more(stream, input)?;
    }
}

fn read_more(stream: &mut UnixStream, input: &mut Vec<u8>) -> Result<()> {
    let mut buffer = [0; 4096];
    let read = stream.read(&mut buffer)?;
    ensure!(read > 0, "the bus closed a connection that was being made");
    input.extend_from_slice(&buffer[..read]);
    Ok(())
}
