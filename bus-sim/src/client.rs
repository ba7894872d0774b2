//! A simulated client, and what it checks by itself: order, doubles, replies and names, from nothing but what it reads.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bus_daemon::broker::PeerId;
use bus_wire::{Message, MessageType, message_length};
use bytes::Bytes;

use crate::files::File;
use crate::letter::DRIVER;
use crate::model::{Check, Meaning, wrong};
use crate::rule::Rule;

/// A call that a client was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) caller: String,
    pub(crate) serial: u32,
}

/// A client, from one connect to its end.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: PeerId,
    /// What it still has to write of the authentication.
    pub(crate) script: VecDeque<(Vec<u8>, Meaning)>,
    /// Writes the whole script without waiting for answers.
    pub(crate) is_hasty: bool,
    /// Lines that it has yet to be told, of those that it asked for.
    pub(crate) lines_due: usize,
    /// It has said BEGIN, and negotiated the passing of descriptors.
    pub(crate) takes_fds: bool,
    pub(crate) has_said_hello: bool,
    is_monitor: bool,
    /// It has written something after which nothing makes sense.
    pub(crate) is_done: bool,
    /// It does not read.
    pub(crate) is_asleep: bool,
    pub(crate) unique: Option<String>,
    pub(crate) serial: u32,
    /// How many bytes it has written.
    pub(crate) written: u64,
    /// Rules that it has asked for.
    pub(crate) rules: Vec<Rule>,
    /// Calls that it was sent and has not answered.
    pub(crate) unanswered: Vec<Received>,
    /// A call that it has answered.
    pub(crate) answered: Option<Received>,
    /// How many answers it waits for, by the serial of the call.
    waiting: BTreeMap<u32, u32>,
    owned: BTreeSet<String>,
    /// The number in the last message of each sender.
    numbers: BTreeMap<String, u64>,
    driver_serial: u32,
    inbox: Vec<u8>,
    files: VecDeque<File>,
    /// Messages that it has read.
    pub(crate) count: u64,
}

impl Client {
    pub(crate) fn new(id: PeerId) -> Self {
        Self {
            id,
            script: VecDeque::new(),
            is_hasty: false,
            lines_due: 0,
            takes_fds: false,
            has_said_hello: false,
            is_monitor: false,
            is_done: false,
            is_asleep: false,
            unique: None,
            serial: 0,
            written: 0,
            rules: Vec::new(),
            unanswered: Vec::new(),
            answered: None,
            waiting: BTreeMap::new(),
            owned: BTreeSet::new(),
            numbers: BTreeMap::new(),
            driver_serial: 0,
            inbox: Vec::new(),
            files: VecDeque::new(),
            count: 0,
        }
    }

    /// It sends a call and waits for the answer.
    pub(crate) fn expect(&mut self, serial: u32) {
        *self.waiting.entry(serial).or_insert(0) += 1;
    }

    /// Takes part of the stream; whole messages are returned.
    pub(crate) fn take(&mut self, bytes: &[u8], files: Vec<File>) -> Check<Vec<(Message, Vec<File>)>> {
        self.inbox.extend_from_slice(bytes);
        self.files.extend(files);
        let mut messages = Vec::new();
        loop {
            if !matches!(self.inbox.first(), None | Some(b'l' | b'B')) {
                let Some(end) = self.inbox.windows(2).position(|pair| pair == b"\r\n") else {
                    break;
                };
                self.inbox.drain(..end + 2);
                self.lines_due = self.lines_due.saturating_sub(1);
                continue;
            }
            let length = match message_length(&self.inbox) {
                Ok(Some(length)) => length,
                Ok(None) => break,
                Err(error) => return wrong(format!("{:?} reads something invalid: {error}", self.id)),
            };
            if self.inbox.len() < length {
                break;
            }
            let message = match Message::parse(Bytes::from(self.inbox.drain(..length).collect::<Vec<u8>>())) {
                Ok(message) => message,
                Err(error) => return wrong(format!("{:?} reads an invalid message: {error}", self.id)),
            };
            let claimed = message.unix_fds() as usize;
            if claimed > self.files.len() {
                return wrong(format!("{:?} reads {message:?} without its files", self.id));
            }
            let files = self.files.drain(..claimed).collect();
            messages.push((message, files));
        }
        if messages.is_empty() && self.inbox.is_empty() && !self.files.is_empty() {
            return wrong(format!("{:?} gets files without a message", self.id));
        }
        Ok(messages)
    }

    /// Looks at one message, and notes what is to be done about it.
    pub(crate) fn read(&mut self, message: &Message) -> Check {
        self.count += 1;
        let Some(sender) = message.sender() else {
            return wrong(format!("{:?} reads a message without a sender", self.id));
        };
        if sender == DRIVER {
            let serial = message.serial().get();
            if serial <= self.driver_serial {
                return wrong(format!(
                    "{:?}: the driver's serial {serial} after {}",
                    self.id, self.driver_serial
                ));
            }
            self.driver_serial = serial;
        } else {
            self.note_number(sender, message)?;
        }
        // A monitor and an eavesdropper read what is for others, too.
        let is_mine = message.destination().is_some_and(|name| {
            self.unique.is_none() || self.unique.as_deref() == Some(name) || self.owned.contains(name)
        });
        if !is_mine || self.is_monitor {
            return Ok(());
        }
        match message.message_type() {
            MessageType::MethodCall => {
                if !message.flags().contains(bus_wire::Flags::NO_REPLY_EXPECTED) {
                    let serial = message.serial().get();
                    self.unanswered.push(Received {
                        caller: sender.to_owned(),
                        serial,
                    });
                }
                Ok(())
            }
            MessageType::MethodReturn | MessageType::Error => self.note_reply(message),
            MessageType::Signal if sender == DRIVER => self.note_signal(message),
            MessageType::Signal | MessageType::Unknown(_) => Ok(()),
        }
    }

    /// Every client counts its messages; from one sender they must come in order, and once.
    fn note_number(&mut self, sender: &str, message: &Message) -> Check {
        let mut body = message.body();
        let number = body
            .skip()
            .and_then(|()| body.skip())
            .and_then(|()| body.read_u64());
        let Ok(number) = number else { return Ok(()) };
        let last = self.numbers.insert(sender.to_owned(), number);
        if last.is_some_and(|last| number <= last) {
            return wrong(format!(
                "{:?} reads message {number} of {sender} after {last:?}",
                self.id
            ));
        }
        Ok(())
    }

    fn note_reply(&mut self, message: &Message) -> Check {
        let serial = message.reply_serial().map_or(0, |serial| serial.get());
        match self.waiting.get_mut(&serial) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) => {
                self.waiting.remove(&serial);
            }
            None => {
                return wrong(format!(
                    "{:?} reads an answer that it does not wait for: {message:?}",
                    self.id
                ));
            }
        }
        if self.unique.is_none()
            && self.has_said_hello
            && message.message_type() == MessageType::MethodReturn
            && let Ok(name) = message.body().read_str()
        {
            self.unique = Some(name.to_owned());
        }
        Ok(())
    }

    fn note_signal(&mut self, message: &Message) -> Check {
        let name = message.body().read_str().unwrap_or_default().to_owned();
        if message.member() == Some("NameLost") && self.unique.as_deref() == Some(&*name) {
            // It stays connected: it is a monitor now. Nobody waits for answers to it, nor it for answers.
            self.is_monitor = true;
            self.waiting.clear();
        }
        let is_right = match message.member() {
            Some("NameAcquired") => self.owned.insert(name.clone()),
            Some("NameLost") => self.owned.remove(&name),
            Some(_) | None => true,
        };
        if is_right {
            return Ok(());
        }
        wrong(format!(
            "{:?} reads {:?} of {name}, and owns {:?}",
            self.id,
            message.member(),
            self.owned
        ))
    }

    /// At the end, with everything answered.
    pub(crate) fn check_at_rest(&self, owned: &BTreeSet<String>) -> Check {
        if !self.waiting.is_empty() {
            return wrong(format!("{:?} was never answered: {:?}", self.id, self.waiting));
        }
        if self.owned != *owned {
            return wrong(format!(
                "{:?} was told that it owns {:?}, and owns {owned:?}",
                self.id, self.owned
            ));
        }
        Ok(())
    }
}
