//! One raw connection: what it has sent, what it waits for, what came.

mod receive;

use super::spec::{Spec, Tag, Target};
use crate::account::Account;
use crate::link::Link;
use crate::tally::Tally;
use crate::{INTERFACE, PATH, fds};
use bus_wire::{BodyWriter, MessageBuilder};
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::time::Instant;

const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";
/// A broadcaster asks the bus for a sign of life after this many signals, and waits for it.
const SIGNALS_PER_BARRIER: u64 = 16;
/// Errors kept in words.
const MAX_ERRORS: usize = 20;

/// What the reply to a serial answers.
enum Pending {
    Hello,
    Setup(String),
    Call { target: usize, number: u64 },
    Barrier,
}

struct CallState {
    stream: String,
    sent: u64,
    outstanding: u32,
    due: Instant,
    replies: Tally,
}

/// The descriptor of message `number`, if one in `every` has one (0: none has).
fn descriptors(every: u64, number: u64) -> std::io::Result<Vec<OwnedFd>> {
    let carries = every != 0 && number.is_multiple_of(every);
    carries.then(|| fds::numbered(number)).into_iter().collect()
}

/// A raw connection and its books.
pub(crate) struct Client {
    pub(crate) spec: Spec,
    pub(crate) link: Link,
    pub(crate) unique: Option<String>,
    pub(crate) closed: Option<String>,
    /// Replies are kept back while this is set.
    pub(crate) keeping: bool,
    /// Nothing is read while this is unset.
    pub(crate) reading: bool,
    /// The socket may have unread input.
    pub(crate) readable: bool,
    pub(crate) running: bool,
    kept: Vec<(Vec<u8>, Vec<OwnedFd>)>,
    serial: u32,
    pending: HashMap<u32, Pending>,
    calls: Vec<CallState>,
    emitted: u64,
    emit_due: Instant,
    barriers: u32,
    got: HashMap<String, Tally>,
    senders: HashMap<String, String>,
    acquired: HashSet<String>,
    fds_sent: u64,
    fds_received: u64,
    fds_copied: u64,
    errors: Vec<String>,
    /// Messages sent and received since this was last taken.
    pub(crate) traffic: u64,
}

impl Client {
    /// Connects, and queues everything up to the last match rule.
    pub(crate) fn connect(
        address: &str,
        spec: Spec,
        hold_handshake: Option<usize>,
        now: Instant,
    ) -> anyhow::Result<Client> {
        let link = Link::connect(address, hold_handshake)?;
        link.set_nonblocking()?;
        let calls = spec.calls.iter().map(|target| CallState {
            stream: format!("{}>{}", spec.id, target.destination),
            sent: 0,
            outstanding: 0,
            due: now,
            replies: Tally::default(),
        });
        let mut client = Client {
            calls: calls.collect(),
            got: spec
                .subscribes
                .iter()
                .map(|stream| (stream.clone(), Tally::default()))
                .collect(),
            spec,
            link,
            unique: None,
            closed: None,
            keeping: false,
            reading: true,
            readable: true,
            running: false,
            kept: Vec::new(),
            serial: 0,
            pending: HashMap::new(),
            emitted: 0,
            emit_due: now,
            barriers: 0,
            senders: HashMap::new(),
            acquired: HashSet::new(),
            fds_sent: 0,
            fds_received: 0,
            fds_copied: 0,
            errors: Vec::new(),
            traffic: 0,
        };
        client.setup()?;
        Ok(client)
    }

    fn setup(&mut self) -> anyhow::Result<()> {
        self.call_bus(BUS, "Hello", Pending::Hello, |_| ())?;
        for name in self.spec.names.clone() {
            self.call_bus(
                BUS,
                "RequestName",
                Pending::Setup(format!("RequestName {name}")),
                |body| {
                    body.str(&name);
                    body.u32(0);
                },
            )?;
        }
        let rules = self.spec.rules.clone();
        if self.spec.monitor {
            let interface = "org.freedesktop.DBus.Monitoring";
            self.call_bus(
                interface,
                "BecomeMonitor",
                Pending::Setup("BecomeMonitor".to_owned()),
                |body| {
                    body.str_array(rules.iter().map(String::as_str));
                    body.u32(0);
                },
            )?;
        } else {
            for rule in rules {
                let what = Pending::Setup(format!("AddMatch {rule}"));
                self.call_bus(BUS, "AddMatch", what, |body| {
                    body.str(&rule);
                })?;
            }
        }
        Ok(())
    }

    fn next_serial(&mut self) -> u32 {
        self.serial += 1;
        self.serial
    }

    fn call_bus(
        &mut self,
        interface: &str,
        member: &str,
        pending: Pending,
        body: impl FnOnce(&mut BodyWriter),
    ) -> anyhow::Result<()> {
        let serial = self.next_serial();
        let builder = MessageBuilder::method_call(BUS_PATH, member);
        let bytes = builder
            .interface(interface)
            .destination(BUS)
            .serial(serial)
            .body(body)
            .build()?;
        self.pending.insert(serial, pending);
        self.link.queue(bytes, Vec::new());
        Ok(())
    }

    /// Asks the bus for a sign of life: when it comes, everything before it has come too.
    pub(crate) fn barrier(&mut self) {
        if self.spec.monitor || self.closed.is_some() {
            return;
        }
        self.barriers += 1;
        if let Err(error) = self.call_bus(BUS, "GetId", Pending::Barrier, |_| ()) {
            self.fail(&error);
        }
    }

    /// Gives a name back.
    pub(crate) fn release_name(&mut self, name: &str) {
        self.acquired.remove(name);
        let what = Pending::Setup(format!("ReleaseName {name}"));
        let called = self.call_bus(BUS, "ReleaseName", what, |body| {
            body.str(name);
        });
        if let Err(error) = called {
            self.fail(&error);
        }
    }

    /// Sends what is due.
    pub(crate) fn tick(&mut self, now: Instant) {
        if !self.running || self.closed.is_some() || self.unique.is_none() {
            return;
        }
        for index in 0..self.calls.len() {
            let (target, state) = (&self.spec.calls[index], &self.calls[index]);
            let limited = self.spec.call_limit.is_some_and(|limit| state.sent >= limit);
            if !target.on_command && !limited && state.outstanding < target.window && state.due <= now {
                // What could not be sent in time is not made up for.
                self.calls[index].due = now + target.interval;
                self.call(index, None);
            }
        }
        if let Some(emission) = &self.spec.emits {
            let waiting = self.barriers > 0 && self.emitted.is_multiple_of(SIGNALS_PER_BARRIER);
            if self.emit_due <= now && !waiting {
                self.emit_due = now + emission.interval;
                if let Err(error) = self.emit() {
                    self.fail(&error);
                }
            }
        }
    }

    /// Calls a target once, the message held after `hold` bytes where that is given.
    pub(crate) fn call(&mut self, index: usize, hold: Option<usize>) {
        if let Err(error) = self.try_call(index, hold) {
            self.fail(&error);
        }
    }

    fn try_call(&mut self, index: usize, hold: Option<usize>) -> anyhow::Result<()> {
        let serial = self.next_serial();
        let state = &mut self.calls[index];
        let Target {
            destination,
            payload,
            fd_every,
            ..
        } = &self.spec.calls[index];
        let number = state.sent + 1;
        let descriptors = descriptors(*fd_every, number)?;
        let bytes = MessageBuilder::method_call(PATH, "Echo")
            .interface(INTERFACE)
            .destination(destination)
            .serial(serial)
            .unix_fds(descriptors.len() as u32)
            .body(|body| {
                body.str(&state.stream);
                body.u64(number);
                if *payload > 0 {
                    body.byte_slice(&vec![number as u8; *payload]);
                }
                if !descriptors.is_empty() {
                    body.unix_fd_index(0);
                }
            })
            .build()?;
        self.pending.insert(
            serial,
            Pending::Call {
                target: index,
                number,
            },
        );
        state.sent = number;
        state.outstanding += 1;
        self.fds_sent += descriptors.len() as u64;
        self.traffic += 1;
        match hold {
            Some(hold) => self.link.queue_held(bytes, hold),
            None => self.link.queue(bytes, descriptors),
        }
        Ok(())
    }

    fn emit(&mut self) -> anyhow::Result<()> {
        let serial = self.next_serial();
        let Some(emission) = &self.spec.emits else {
            return Ok(());
        };
        let number = self.emitted + 1;
        let descriptors = descriptors(emission.fd_every, number)?;
        let mut builder = MessageBuilder::signal(PATH, INTERFACE, "Tick")
            .serial(serial)
            .unix_fds(descriptors.len() as u32);
        if let Some(destination) = &emission.destination {
            builder = builder.destination(destination);
        }
        let bytes = builder
            .body(|body| {
                body.str(&emission.stream);
                body.u64(number);
                if emission.payload > 0 {
                    body.byte_slice(&vec![number as u8; emission.payload]);
                }
                if !descriptors.is_empty() {
                    body.unix_fd_index(0);
                }
            })
            .build()?;
        if emission.destination.is_some() {
            self.fds_sent += descriptors.len() as u64;
        }
        self.link.queue(bytes, descriptors);
        self.emitted = number;
        self.traffic += 1;
        if number.is_multiple_of(SIGNALS_PER_BARRIER) {
            self.barrier();
        }
        Ok(())
    }

    /// Writes what the socket takes.
    pub(crate) fn flush(&mut self) {
        if self.closed.is_none()
            && self.link.has_output()
            && let Err(errno) = self.link.flush()
        {
            // What the bus has already sent is still read; the end of the stream then closes the client.
            self.readable = true;
            self.reading = true;
            self.error(format!("writing failed: {errno}"));
        }
    }

    /// Sends the replies that were kept back, and keeps none from now on.
    pub(crate) fn let_go(&mut self) {
        self.keeping = false;
        for (reply, descriptors) in std::mem::take(&mut self.kept) {
            self.link.queue(reply, descriptors);
        }
    }

    pub(crate) fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Hello, names and rules are all answered.
    pub(crate) fn is_ready(&self) -> bool {
        self.unique.is_some()
            && !self
                .pending
                .values()
                .any(|p| matches!(p, Pending::Hello | Pending::Setup(_)))
    }

    /// Nothing that it sent awaits an answer.
    pub(crate) fn is_quiet(&self) -> bool {
        self.closed.is_some() || (self.pending.is_empty() && !self.link.has_output())
    }

    /// A churner has made its calls and has its answers.
    pub(crate) fn is_finished(&self) -> bool {
        let limit = self.spec.call_limit.unwrap_or(u64::MAX);
        self.is_ready() && self.is_quiet() && self.calls.iter().all(|state| state.sent >= limit)
    }

    pub(crate) fn emitted(&self) -> u64 {
        self.emitted
    }

    /// The lowest of the last numbers of all streams it subscribes to, per stream.
    pub(crate) fn last_of(&self, stream: &str) -> u64 {
        self.got.get(stream).map_or(0, Tally::last)
    }

    fn close(&mut self, reason: String) {
        self.closed.get_or_insert(reason);
        self.link.shut_down();
    }

    pub(crate) fn fail(&mut self, error: &anyhow::Error) {
        self.close(format!("{error:#}"));
    }

    fn error(&mut self, text: String) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(text);
        }
    }

    pub(crate) fn account(&self) -> Account {
        let mut account = Account {
            id: self.spec.id.clone(),
            implementation: "raw".to_owned(),
            unique: self.unique.clone(),
            fds_sent: self.fds_sent,
            fds_received: self.fds_received,
            fds_copied: self.fds_copied,
            fds_left: self.link.unclaimed_fds() as u64,
            disconnected: self.closed.clone(),
            errors: self.errors.clone(),
            ..Account::default()
        };
        for state in &self.calls {
            account.sent.push((state.stream.clone(), state.sent));
            account
                .replies
                .push((state.stream.clone(), state.replies.counts()));
        }
        if let Some(emission) = &self.spec.emits {
            account.sent.push((emission.stream.clone(), self.emitted));
        }
        account.got.extend(
            self.got
                .iter()
                .map(|(stream, tally)| (stream.clone(), tally.counts())),
        );
        if !self.is_ready() && self.closed.is_none() && self.spec.tag != Tag::Handshake {
            account.errors.push("its setup was never answered".to_owned());
        }
        account
    }
}
