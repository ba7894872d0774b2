//! The bare relay: what the kernel charges for moving the bytes, and nothing else.
//!
//! It answers authentication and the few calls of the bus itself that the load makes, learns who is called what, and from then
//! on sends what one `recv` brought with one `send`, looking at the first message only. It validates nothing, stamps no sender
//! and keeps no rules: a floor to compare with, not a bus.

use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context, Result, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::fds;
use crate::message::{Argument, Head, Kind, Parts, text_field};

const LISTENER: u64 = u64::MAX;
const OK: &[u8] = b"OK 00000000000000000000000000000000\r\n";

/// Serves on a socket at `path` until it is killed.
pub(crate) fn serve(path: &str) -> Result<()> {
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen at {path}"))?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut relay = Relay {
        epoll,
        links: vec![None],
        listeners: Vec::new(),
    };
    let mut events = vec![EpollEvent::empty(); 256];
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let ready = match relay.epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            ready => ready?,
        };
        for event in &events[..ready] {
            match event.data() {
                LISTENER => relay.accept(&listener)?,
                id => {
                    if event.events().contains(EpollFlags::EPOLLOUT) {
                        relay.flush(id)?;
                    }
                    relay.receive(id, &mut buffer)?;
                }
            }
        }
    }
}

struct Relay {
    epoll: Epoll,
    /// By number: `:1.N` is at N. Numbers are not used again.
    links: Vec<Option<Link>>,
    /// Who has added a match rule, whichever: signals go to all of them.
    listeners: Vec<u64>,
}

struct Link {
    stream: UnixStream,
    /// BEGIN has been read.
    begun: bool,
    /// Bytes of the last message that are still to come.
    rest: usize,
    /// The head of a message that came in part.
    head: Vec<u8>,
    target: Target,
    /// What the socket has not taken yet, from `sent` on.
    queued: Vec<u8>,
    sent: usize,
    /// Who is not read until that has gone.
    waiting: Vec<u64>,
}

#[derive(Clone, Copy)]
enum Target {
    Nobody,
    One(u64),
    Listeners,
}

impl Target {
    fn named(name: &str) -> Target {
        name.strip_prefix(":1.")
            .and_then(|number| number.parse().ok())
            .map_or(Target::Nobody, Target::One)
    }
}

impl Relay {
    fn accept(&mut self, listener: &UnixListener) -> Result<()> {
        loop {
            let stream = match listener.accept() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                accepted => accepted?.0,
            };
            stream.set_nonblocking(true)?;
            self.epoll.add(
                stream.as_fd(),
                EpollEvent::new(EpollFlags::EPOLLIN, self.links.len() as u64),
            )?;
            let link = Link {
                stream,
                begun: false,
                rest: 0,
                head: Vec::new(),
                target: Target::Nobody,
                queued: Vec::new(),
                sent: 0,
                waiting: Vec::new(),
            };
            self.links.push(Some(link));
        }
    }

    fn link(&mut self, id: u64) -> Option<&mut Link> {
        self.links.get_mut(id as usize)?.as_mut()
    }

    fn receive(&mut self, id: u64, buffer: &mut [u8]) -> Result<()> {
        let Some(link) = self.link(id) else { return Ok(()) };
        let (read, fds) = match fds::receive(&link.stream, buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Ok((read, fds)) if read > 0 => (read, fds),
            Ok(_) | Err(_) => {
                self.links[id as usize] = None;
                self.listeners.retain(|&listener| listener != id);
                return Ok(());
            }
        };
        let mut chunk = &buffer[..read];
        if !link.begun {
            chunk = authenticate(link, chunk)?;
        }
        if link.head.is_empty() {
            return self.route(id, chunk, &fds);
        }
        let mut whole = std::mem::take(&mut link.head);
        whole.extend_from_slice(chunk);
        self.route(id, &whole, &fds)
    }

    /// Finds where the messages of a chunk end, answers those to the bus, and sends the others on in one piece.
    fn route(&mut self, id: u64, chunk: &[u8], fds: &[OwnedFd]) -> Result<()> {
        let Some(link) = self.link(id) else { return Ok(()) };
        let mut at = link.rest.min(chunk.len());
        link.rest -= at;
        let mut target = link.target;
        let mut decided = at > 0;
        while at < chunk.len() {
            let Some(head) = Head::read(&chunk[at..]).filter(|head| chunk.len() - at >= head.header) else {
                link.head.extend_from_slice(&chunk[at..]);
                break;
            };
            if !decided {
                let message = &chunk[at..];
                match text_field(message, 6) {
                    Some("org.freedesktop.DBus") => return self.answer(id, chunk),
                    Some(name) => target = Target::named(name),
                    None => target = Target::Listeners,
                }
                decided = true;
            }
            let here = head.total.min(chunk.len() - at);
            link.rest = head.total - here;
            at += here;
        }
        link.target = target;
        let chunk = &chunk[..at];
        match target {
            Target::Nobody => Ok(()),
            Target::One(to) => self.send(id, to, chunk, fds),
            Target::Listeners => {
                for to in self.listeners.clone() {
                    self.send(id, to, chunk, fds)?;
                }
                Ok(())
            }
        }
    }

    /// Answers a chunk of whole calls to the bus itself.
    fn answer(&mut self, id: u64, chunk: &[u8]) -> Result<()> {
        let name = format!(":1.{id}");
        let mut replies = Vec::new();
        let mut at = 0;
        while let Some(head) = Head::read(&chunk[at..]) {
            let text = [Argument::Text(&name)];
            let body: &[Argument<'_>] = match text_field(&chunk[at..], 3) {
                Some("Hello") => &text,
                Some("RequestName" | "ReleaseName") => &[Argument::Number(1)],
                Some("AddMatch") => {
                    if !self.listeners.contains(&id) {
                        self.listeners.push(id);
                    }
                    &[]
                }
                _ => &[],
            };
            let reply = Parts {
                destination: &name,
                reply_serial: head.serial,
                body,
                ..Parts::new(Kind::Return)
            };
            replies.extend_from_slice(reply.encode(1).bytes());
            at = (at + head.total).min(chunk.len());
        }
        self.send(id, id, &replies, &[])
    }

    fn send(&mut self, from: u64, to: u64, bytes: &[u8], fds: &[OwnedFd]) -> Result<()> {
        let Some(link) = self.link(to) else { return Ok(()) };
        if !fds.is_empty() {
            ensure!(link.queued.is_empty(), "the relay keeps no descriptors");
            let numbers: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
            return fds::send(&link.stream, bytes, &numbers);
        }
        let sent = if link.queued.is_empty() {
            write(&mut link.stream, bytes)
        } else {
            0
        };
        if sent < bytes.len() {
            link.queued.extend_from_slice(&bytes[sent..]);
            link.waiting.push(from);
            self.listen_for(to, EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT)?;
            self.listen_for(from, EpollFlags::empty())?;
        }
        Ok(())
    }

    fn flush(&mut self, id: u64) -> Result<()> {
        let Some(link) = self.link(id) else { return Ok(()) };
        link.sent += write(&mut link.stream, &link.queued[link.sent..]);
        if link.sent == link.queued.len() {
            link.queued.clear();
            link.sent = 0;
            let waiting = std::mem::take(&mut link.waiting);
            self.listen_for(id, EpollFlags::EPOLLIN)?;
            for from in waiting {
                self.listen_for(from, EpollFlags::EPOLLIN)?;
            }
        }
        Ok(())
    }

    fn listen_for(&self, id: u64, interest: EpollFlags) -> Result<()> {
        if let Some(Some(link)) = self.links.get(id as usize) {
            self.epoll
                .modify(link.stream.as_fd(), &mut EpollEvent::new(interest, id))?;
        }
        Ok(())
    }
}

/// Takes the lines up to BEGIN, agreeing to everything; what follows them is left.
fn authenticate<'a>(link: &mut Link, chunk: &'a [u8]) -> Result<&'a [u8]> {
    let mut rest = chunk.strip_prefix(b"\0").unwrap_or(chunk);
    let mut answer = Vec::new();
    while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let (line, after) = (&rest[..end], &rest[end + 2..]);
        rest = after;
        match line {
            b"BEGIN" => {
                link.begun = true;
                break;
            }
            b"NEGOTIATE_UNIX_FD" => answer.extend_from_slice(b"AGREE_UNIX_FD\r\n"),
            _ => answer.extend_from_slice(OK),
        }
    }
    if !answer.is_empty() {
        link.stream.write_all(&answer)?;
    }
    Ok(rest)
}

/// How many bytes the socket took; a broken one is noticed when it is read.
fn write(stream: &mut UnixStream, bytes: &[u8]) -> usize {
    stream.write(bytes).unwrap_or(0)
}
