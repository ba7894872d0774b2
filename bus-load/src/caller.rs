//! A blocking caller: one connection, one call at a time.

use crate::clock::Deadline;
use crate::link::{Link, Read, Scratch};
use bus_wire::{BodyReader, BodyWriter, Message, MessageBuilder, MessageType};
use std::fmt;
use std::time::Duration;

/// The bus itself: its name, its object and its interface.
const BUS: [&str; 3] = [
    "org.freedesktop.DBus",
    "/org/freedesktop/DBus",
    "org.freedesktop.DBus",
];
/// How long a call waits for its reply unless [`Caller::set_timeout`] says otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Why a call has no result.
#[derive(Debug)]
pub enum CallError {
    /// The callee, or the bus for it, answered with this error.
    Reply {
        /// The error's name.
        name: String,
        /// Its first argument, if that is a string.
        message: String,
    },
    /// The connection broke, could not be made, or no reply came in time.
    Broken(anyhow::Error),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Reply { name, message } => write!(f, "{name}: {message}"),
            CallError::Broken(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for CallError {}

impl From<anyhow::Error> for CallError {
    fn from(error: anyhow::Error) -> CallError {
        CallError::Broken(error)
    }
}

/// A connection for calls, one at a time.
pub struct Caller {
    link: Link,
    scratch: Scratch,
    serial: u32,
    unique: String,
    timeout: Duration,
}

impl Caller {
    /// Connects, authenticates and says hello.
    pub fn connect(address: &str) -> Result<Caller, CallError> {
        let link = Link::connect(address, None)?;
        let mut caller = Caller {
            link,
            scratch: Scratch::new(),
            serial: 0,
            unique: String::new(),
            timeout: TIMEOUT,
        };
        let hello = caller.call_bus("Hello", |_| ())?;
        caller.unique = read(&hello, |body| body.read_str().map(str::to_owned))?;
        Ok(caller)
    }

    /// The unique name that the bus gave.
    pub fn unique_name(&self) -> &str {
        &self.unique
    }

    /// How long calls wait for their replies.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Calls a method of the bus's own interface.
    pub fn call_bus(
        &mut self,
        member: &str,
        body: impl FnOnce(&mut BodyWriter),
    ) -> Result<Message, CallError> {
        self.call(BUS[0], BUS[1], BUS[2], member, body)
    }

    /// Calls a method and waits for its reply.
    pub fn call(
        &mut self,
        destination: &str,
        path: &str,
        interface: &str,
        member: &str,
        body: impl FnOnce(&mut BodyWriter),
    ) -> Result<Message, CallError> {
        self.serial += 1;
        let bytes = MessageBuilder::method_call(path, member)
            .interface(interface)
            .destination(destination)
            .serial(self.serial)
            .body(body)
            .build()
            .map_err(anyhow::Error::from)?;
        self.link.queue(bytes, Vec::new());
        let deadline = Deadline::after(self.timeout);
        loop {
            self.link
                .flush()
                .map_err(|errno| broken(format!("the bus closed the connection: {errno}")))?;
            while let Some(framed) = self.link.next()? {
                for &fd in &framed.fds {
                    drop(self.link.take_fd(fd));
                }
                let message = framed.message;
                if message.reply_serial().map(|serial| serial.get()) != Some(self.serial) {
                    continue;
                }
                if message.message_type() == MessageType::Error {
                    let text = read(&message, |body| body.read_str().map(str::to_owned)).unwrap_or_default();
                    let name = message.error_name().unwrap_or_default().to_owned();
                    return Err(CallError::Reply { name, message: text });
                }
                return Ok(message);
            }
            if deadline.passed() {
                return Err(broken(format!("no reply to {member} within {:?}", self.timeout)));
            }
            self.link
                .set_timeout(deadline.left())
                .map_err(anyhow::Error::from)?;
            if self.link.read(&mut self.scratch)? == Read::End {
                return Err(broken("the bus closed the connection".to_owned()));
            }
        }
    }

    /// Calls a method of the bus that takes one string and gives one.
    pub fn ask(&mut self, member: &str, argument: &str) -> Result<String, CallError> {
        let reply = self.call_bus(member, |body| {
            body.str(argument);
        })?;
        read(&reply, |body| body.read_str().map(str::to_owned))
    }

    /// Calls a method of the bus that takes at most one string and gives a list of strings.
    pub fn list(&mut self, member: &str, argument: Option<&str>) -> Result<Vec<String>, CallError> {
        let reply = self.call_bus(member, |body| {
            if let Some(argument) = argument {
                body.str(argument);
            }
        })?;
        read(&reply, |body| {
            let mut strings = Vec::new();
            body.read_array(|item| {
                strings.push(item.read_str()?.to_owned());
                Ok(())
            })?;
            Ok(strings)
        })
    }
}

/// Reads the body of a reply.
fn read<T>(
    message: &Message,
    take: impl FnOnce(&mut BodyReader<'_>) -> Result<T, bus_wire::ReadError>,
) -> Result<T, CallError> {
    take(&mut message.body()).map_err(|error| CallError::Broken(error.into()))
}

fn broken(why: String) -> CallError {
    CallError::Broken(anyhow::Error::msg(why))
}
