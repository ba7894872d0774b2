//! A client that asks the bus for many things at once, and keeps books of the answers: each call has exactly one.

use super::raw::Raw;
use super::{Bus, DRIVER, DRIVER_PATH, RESTART};
use bus_load::clock::Deadline;
use bus_wire::{MessageBuilder, MessageType};
use std::collections::{BTreeMap, HashMap};
use std::io::{ErrorKind, Write};
use std::time::Duration;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    ReloadConfig,
    /// With this argument.
    Upgrade(String),
    GetId,
}

/// The connection and its books.
pub struct Asker {
    raw: Raw,
    serial: u32,
    open: HashMap<u32, Request>,
    /// The answers by the name of the error, or "" for results.
    pub outcomes: BTreeMap<String, u64>,
    /// The generations that upgrades ended in, in the order in which they were told.
    pub generations: Vec<u32>,
}

impl Asker {
    pub fn ready(bus: &Bus) -> Asker {
        Asker {
            raw: Raw::ready(bus),
            serial: 100,
            open: HashMap::new(),
            outcomes: BTreeMap::new(),
            generations: Vec::new(),
        }
    }

    /// Asks for all of this, in one write.
    pub fn ask(&mut self, requests: &[Request]) {
        let mut bytes = Vec::new();
        for request in requests {
            self.serial += 1;
            self.open.insert(self.serial, request.clone());
            let (interface, member) = match request {
                Request::ReloadConfig => (DRIVER, "ReloadConfig"),
                Request::Upgrade(_) => (RESTART, "Upgrade"),
                Request::GetId => (DRIVER, "GetId"),
            };
            let call = MessageBuilder::method_call(DRIVER_PATH, member);
            let mut call = call.destination(DRIVER).interface(interface).serial(self.serial);
            if let Request::Upgrade(binary) = request {
                call = call.body(|body| {
                    body.str(binary);
                });
            }
            call.build_into(&mut bytes).unwrap();
        }
        self.raw
            .stream
            .write_all(&bytes)
            .expect("the bus takes the calls");
    }

    /// Calls that have no answer yet.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Waits until every call has its answer.
    pub fn wait_for_answers(&mut self, patience: Duration) {
        let deadline = Deadline::after(patience);
        while !self.open.is_empty() {
            assert!(
                !deadline.passed(),
                "no answer within {patience:?}: {:?}",
                self.some_open()
            );
            self.hear(deadline);
        }
    }

    /// Every call has had its answer, and none has another one: what the bus says until it has answered once more, and for
    /// a while after that.
    pub fn finish(mut self, patience: Duration) -> BTreeMap<String, u64> {
        self.wait_for_answers(patience);
        let asked = u64::from(self.serial - 100);
        std::thread::sleep(Duration::from_millis(200));
        self.ask(&[Request::GetId]);
        self.wait_for_answers(patience);
        let answered: u64 = self.outcomes.values().sum();
        assert_eq!(answered, asked + 1);
        self.outcomes
    }

    /// The requests without an answer, shortened.
    fn some_open(&self) -> Vec<String> {
        let open = self.open.values().take(5);
        open.map(|request| format!("{request:?}").chars().take(120).collect())
            .collect()
    }

    /// Hears at most one message.
    pub fn hear(&mut self, deadline: Deadline) {
        let left = deadline.left().max(Duration::from_micros(1));
        self.raw.stream.set_read_timeout(Some(left)).unwrap();
        let message = match self.raw.try_message() {
            Ok(message) => message.expect("whoever only asked was disconnected"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
            Err(error) => panic!("{error}"),
        };
        let Some(serial) = message.reply_serial() else {
            return;
        };
        let request = self.open.remove(&serial.get());
        let request = request.unwrap_or_else(|| panic!("one more answer to {serial:?}: {message:?}"));
        let is_error = message.message_type() == MessageType::Error;
        if let (Request::Upgrade(_), false) = (&request, is_error) {
            self.generations.push(message.body().read_u32().unwrap());
        }
        let name = message.error_name().unwrap_or_default();
        *self.outcomes.entry(name.to_owned()).or_default() += 1;
    }
}
