//! Somebody who means no good: a connection that may be lost at any moment, and is made anew.

use crate::support::random::Random;
use crate::support::raw::call;
use crate::support::{DRIVER, DRIVER_PATH};
use bus_load::Handshake;
use bus_wire::{Flags, MessageBuilder};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How long a foe waits for anything.
const PATIENCE: Duration = Duration::from_millis(500);

/// What all foes share.
#[derive(Clone)]
pub struct War {
    pub socket: PathBuf,
    pub is_over: Arc<AtomicBool>,
    /// Attacks carried out, so that a campaign without any is noticed.
    pub attacks: Arc<AtomicU64>,
}

impl War {
    pub fn on(socket: &Path) -> War {
        War {
            socket: socket.to_owned(),
            is_over: Arc::default(),
            attacks: Arc::default(),
        }
    }

    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// A greeted connection.
pub struct Foe {
    pub stream: UnixStream,
    pub unique: String,
}

impl Foe {
    /// Connected and greeted, if the bus lets it.
    pub fn connect(socket: &Path) -> Option<Foe> {
        let mut stream = silent(socket)?;
        let mut hello = Handshake::start().0;
        hello.extend(call("Hello", |_| ()));
        stream.write_all(&hello).ok()?;
        let mut all = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&all);
            // The answer, and NameAcquired after it.
            if let Some((_, rest)) = text.split_once("NameAcquired")
                && let Some(at) = rest.rfind(":1.")
            {
                let unique: String = rest[at..].chars().take_while(|c| *c != '\0').collect();
                return Some(Foe { stream, unique });
            }
            let count = stream.read(&mut chunk).ok().filter(|count| *count > 0)?;
            all.extend_from_slice(&chunk[..count]);
        }
    }

    /// All of it, unless the bus takes no more for a while, or has hung up.
    pub fn send(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).ok()
    }

    pub fn send_fds(&mut self, bytes: &[u8], fds: &[RawFd]) -> Option<()> {
        let control = [ControlMessage::ScmRights(fds)];
        let sent = sendmsg::<()>(
            self.stream.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        sent.ok().filter(|sent| *sent == bytes.len()).map(|_| ())
    }

    /// Reads what there is, so that what it is sent does not end the attack.
    pub fn drain(&mut self) {
        let mut chunk = [0; 65536];
        let _ = self.stream.set_read_timeout(Some(Duration::from_millis(1)));
        while self.stream.read(&mut chunk).is_ok_and(|count| count > 0) {}
        let _ = self.stream.set_read_timeout(Some(PATIENCE));
    }

    /// Until the bus has dealt with everything before, or this long.
    pub fn settle(&mut self) -> Option<()> {
        self.send(&driver("GetId", Flags::NONE, |_| ()))?;
        self.stream
            .read(&mut [0; 4096])
            .ok()
            .filter(|count| *count > 0)
            .map(|_| ())
    }
}

/// A connection that has said nothing.
pub fn silent(socket: &Path) -> Option<UnixStream> {
    let stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    Some(stream)
}

/// A call of the bus.
pub fn driver(member: &str, flags: Flags, body: impl FnOnce(&mut bus_wire::BodyWriter)) -> Vec<u8> {
    let builder = MessageBuilder::method_call(DRIVER_PATH, member)
        .destination(DRIVER)
        .interface(DRIVER);
    builder.flags(flags).serial(7u32).body(body).build().unwrap()
}

/// A signal, to all or to one, with this much in it.
pub fn signal(to: Option<&str>, bytes: usize, fds: u32) -> Vec<u8> {
    let builder = MessageBuilder::signal("/a", "org.example.Hostile", "S");
    let builder = match to {
        Some(to) => builder.destination(to),
        None => builder,
    };
    let text = "x".repeat(bytes);
    let builder = builder.serial(7u32).unix_fds(fds).body(|body| {
        body.str(&text);
    });
    builder.build().unwrap()
}

/// What a foe does, once.
#[derive(Debug, Clone, Copy)]
pub enum Attack {
    /// Broadcasts, as fast as they are taken.
    Broadcasts,
    /// Questions with long answers.
    Lists,
    /// Messages to a connection of its own that does not read.
    Stall,
    /// As many names as it may have, and it leaves.
    Names,
    /// As many match rules as it may have, of keys that nobody else has, and it leaves.
    Rules,
    /// Half of a large message.
    HalfMessage,
    /// The configuration is to be read again, and again.
    Reloads,
    /// Descriptors that nobody takes.
    Descriptors,
    /// Connections that do not authenticate.
    Silence,
    /// What is no message.
    Garbage,
}

pub const ATTACKS: [Attack; 10] = [
    Attack::Broadcasts,
    Attack::Lists,
    Attack::Stall,
    Attack::Names,
    Attack::Rules,
    Attack::HalfMessage,
    Attack::Reloads,
    Attack::Descriptors,
    Attack::Silence,
    Attack::Garbage,
];

/// One attack after the other, until the war is over: the first of them `first`, then any.
pub fn fight(war: &War, first: Attack, mut random: Random) {
    let mut next = first;
    while !war.is_over() {
        if next.carry_out(war, &mut random).is_some() {
            war.attacks.fetch_add(1, Ordering::Relaxed);
        }
        next = *random.pick(&ATTACKS);
    }
}

impl Attack {
    /// `None`: the bus hung up, or let nobody in.
    fn carry_out(self, war: &War, random: &mut Random) -> Option<()> {
        let mut foe = Foe::connect(&war.socket)?;
        let rounds = 5 + random.below(20);
        match self {
            Self::Broadcasts => {
                let batch = signal(None, random.below(3000) as usize, 0).repeat(50);
                for _ in 0..rounds {
                    foe.send(&batch)?;
                }
            }
            Self::Lists => {
                let batch = driver("ListNames", Flags::NONE, |_| ()).repeat(100);
                for _ in 0..rounds {
                    foe.send(&batch)?;
                    foe.drain();
                }
            }
            Self::Stall => {
                let stalled = Foe::connect(&war.socket)?;
                let batch = signal(Some(&stalled.unique), 600, 0).repeat(90);
                for _ in 0..rounds {
                    foe.send(&batch)?;
                }
            }
            Self::Names => {
                let own = foe.unique.replace([':', '.'], "n");
                let flags = Flags::NO_REPLY_EXPECTED;
                for n in 0..500 {
                    foe.send(&driver("RequestName", flags, |body| {
                        body.str(&format!("org.example.{own}.a{n}")).u32(0);
                    }))?;
                }
                foe.settle()?;
            }
            Self::Rules => {
                for n in 0..500 {
                    let key = random.below(60);
                    foe.send(&driver("AddMatch", Flags::NO_REPLY_EXPECTED, |body| {
                        body.str(&format!("type='signal',arg{key}='{n}',path_namespace='/a/b{n}'"));
                    }))?;
                }
                foe.settle()?;
            }
            Self::HalfMessage => {
                let whole = signal(None, 4 << 20, 0);
                let cut = random.below(whole.len() as u64) as usize;
                foe.send(&whole[..cut])?;
                std::thread::sleep(random.duration(Duration::ZERO..Duration::from_millis(200)));
            }
            Self::Reloads => {
                foe.send(&driver("ReloadConfig", Flags::NONE, |_| ()).repeat(20))?;
                foe.drain();
            }
            Self::Descriptors => {
                let stalled = Foe::connect(&war.socket)?;
                let fds = [foe.stream.as_raw_fd(); 16];
                let message = signal(Some(&stalled.unique), 2000, 16);
                for _ in 0..rounds * 4 {
                    foe.send_fds(&message, &fds)?;
                }
            }
            Self::Silence => {
                let mut all: Vec<UnixStream> = (0..50).filter_map(|_| silent(&war.socket)).collect();
                for stream in &mut all {
                    let _ = stream.write_all(b"\0AUTH");
                }
                std::thread::sleep(random.duration(Duration::ZERO..Duration::from_millis(500)));
            }
            Self::Garbage => {
                let mut bytes = signal(None, 100, 0);
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << random.below(8);
                foe.send(&bytes.repeat(3))?;
                foe.drain();
            }
        }
        Some(())
    }
}
