//! A client that does one thing after the other.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bus_wire::{BodyWriter, Framer, Message, MessageBuilder};
use bytes::Bytes;

const BUS: &str = "org.freedesktop.DBus";
const PATH: &str = "/org/freedesktop/DBus";
const RESTART: &str = "org.busdaemon.Restart1";

pub(crate) struct Client {
    stream: UnixStream,
    framer: Framer,
    serial: u32,
}

/// The property `LastRestart`.
pub(crate) struct LastRestart {
    /// In microseconds.
    pub(crate) pause: u64,
    pub(crate) carried: u32,
    pub(crate) dropped: u32,
}

impl Client {
    /// Connects, authenticates and says Hello.
    pub(crate) fn connect(path: &str) -> Result<Self> {
        let mut stream = UnixStream::connect(path).with_context(|| format!("cannot connect to {path}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let uid = nix::unistd::geteuid().to_string();
        let identity: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        stream.write_all(format!("\0AUTH EXTERNAL {identity}\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        ensure!(
            line.starts_with(b"OK "),
            "not authenticated: {}",
            String::from_utf8_lossy(&line)
        );
        stream.write_all(b"BEGIN\r\n")?;
        let framer = Framer::new(bus_wire::limits::MAX_MESSAGE);
        let mut client = Self {
            stream,
            framer,
            serial: 0,
        };
        client.call(BUS, "Hello", |_| {})?;
        Ok(client)
    }

    /// One name and one match rule.
    pub(crate) fn settle(&mut self, number: usize) -> Result<()> {
        self.call(BUS, "RequestName", |w| {
            w.str(&format!("org.example.Service{number}")).u32(0);
        })?;
        let rule = format!(
            "type='signal',sender='org.example.Service{}',interface='org.example.Thing',member='Changed'",
            number / 2
        );
        self.call(BUS, "AddMatch", |w| {
            w.str(&rule);
        })?;
        Ok(())
    }

    pub(crate) fn ping(&mut self) -> Result<()> {
        self.call("org.freedesktop.DBus.Peer", "Ping", |_| {}).map(drop)
    }

    /// To the same binary. The new generation.
    pub(crate) fn upgrade(&mut self) -> Result<u32> {
        let reply = self.call(RESTART, "Upgrade", |w| {
            w.str("");
        })?;
        Ok(reply.body().read_u32()?)
    }

    pub(crate) fn last_restart(&mut self) -> Result<LastRestart> {
        let reply = self.call("org.freedesktop.DBus.Properties", "Get", |w| {
            w.str(RESTART).str("LastRestart");
        })?;
        let mut last = LastRestart {
            pause: 0,
            carried: 0,
            dropped: 0,
        };
        reply.body().read_variant(|value| {
            value.read_struct(|fields| {
                fields.read_str()?;
                last.pause = fields.read_u64()?;
                last.carried = fields.read_u32()?;
                last.dropped = fields.read_u32()?;
                fields.read_u32()?;
                Ok(())
            })
        })?;
        Ok(last)
    }

    /// Calls the bus and waits for the answer; whatever else comes meanwhile is dropped.
    fn call(&mut self, interface: &str, member: &str, body: impl FnOnce(&mut BodyWriter)) -> Result<Message> {
        self.serial += 1;
        let call = MessageBuilder::method_call(PATH, member)
            .interface(interface)
            .destination(BUS)
            .serial(self.serial)
            .body(body)
            .build()?;
        self.stream.write_all(&call)?;
        let mut buffer = [0; 4096];
        loop {
            while let Some(framed) = self.framer.next()? {
                let message = framed.message;
                if message
                    .reply_serial()
                    .is_some_and(|serial| serial.get() == self.serial)
                {
                    if let Some(error) = message.error_name() {
                        bail!(
                            "{member}: {error}: {}",
                            message.body().read_str().unwrap_or_default()
                        );
                    }
                    return Ok(message);
                }
            }
            let read = self.stream.read(&mut buffer)?;
            ensure!(read > 0, "the bus closed a connection");
            self.framer.push(Bytes::copy_from_slice(&buffer[..read]), []);
        }
    }
}
