//! The thread that drives all raw connections.

use super::client::Client;
use super::roles;
use super::spec::Tag;
use crate::account::Account;
use crate::clock;
use crate::link::Scratch;
use crate::plan::{Hook, LoadPlan};
use anyhow::Context;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};

/// The time between two looks at what is due.
const TICK: Duration = Duration::from_millis(2);
/// Signals that must have been sent to the stopped reader before it counts as one.
const FLOODED: u64 = 64;
/// The token of the wake-up descriptor.
const WAKE: u64 = u64::MAX;

/// What the engine is told and asked.
pub(crate) enum Command {
    /// Start or stop sending.
    Running(bool),
    /// Every connection asks the bus for a sign of life.
    Barrier,
    Hold(Hook),
    Release(Hook),
    /// A connection gives a name back.
    ReleaseName {
        id: String,
        name: String,
    },
    /// Whether something is so; if not, why not.
    Check(Condition, Sender<Option<String>>),
    /// The unique name and the requested names of every connection.
    Names(Sender<Vec<Named>>),
    /// The accounts so far.
    Accounts(Sender<Vec<Account>>),
    /// Close everything and give the accounts.
    Finish(Sender<Vec<Account>>),
}

/// A connection's id, its unique name and the names that it requested.
pub(crate) type Named = (String, Option<String>, Vec<String>);

/// What can be waited for.
#[derive(Debug, Clone)]
pub(crate) enum Condition {
    /// All are connected, named and subscribed.
    Ready,
    /// Nothing awaits an answer.
    Quiet,
    Held(Hook),
    Released(Hook),
    /// The monitor has seen these streams up to these numbers.
    Monitored(BTreeMap<String, u64>),
}

/// Live figures.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) messages: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) disconnected: AtomicU64,
    pub(crate) visits: AtomicU64,
}

pub(crate) struct Engine {
    address: String,
    plan: LoadPlan,
    clients: Vec<Client>,
    /// Accounts of connections that have come and gone.
    gone: Vec<Account>,
    epoll: Epoll,
    wake: Arc<EventFd>,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    running: bool,
    next_token: u64,
    tokens: BTreeMap<u64, usize>,
    handshakes: u64,
    random: u64,
    /// How far the flood was when the reader stopped or resumed.
    flood_mark: u64,
}

impl Engine {
    /// Connects everybody.
    pub(crate) fn new(
        address: &str,
        plan: LoadPlan,
        commands: Receiver<Command>,
        wake: Arc<EventFd>,
        shared: Arc<Shared>,
    ) -> anyhow::Result<Engine> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let mut engine = Engine {
            address: address.to_owned(),
            random: plan.seed | 1,
            clients: Vec::new(),
            gone: Vec::new(),
            epoll,
            wake,
            commands,
            shared,
            running: false,
            next_token: 0,
            tokens: BTreeMap::new(),
            handshakes: 0,
            flood_mark: 0,
            plan,
        };
        for spec in roles::specs(&engine.plan) {
            let client = Client::connect(&engine.address, spec, None, clock::now())?;
            engine.admit(client)?;
        }
        Ok(engine)
    }

    /// A descriptor that wakes the engine when a command is waiting.
    pub(crate) fn wake() -> anyhow::Result<Arc<EventFd>> {
        Ok(Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?))
    }

    fn admit(&mut self, mut client: Client) -> anyhow::Result<()> {
        client.running = self.running;
        client.flush();
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.epoll
            .add(&client.link, EpollEvent::new(flags, self.next_token))
            .context("epoll")?;
        self.tokens.insert(self.next_token, self.clients.len());
        self.next_token += 1;
        self.clients.push(client);
        Ok(())
    }

    /// Runs until it is told to finish, or its owner is gone.
    pub(crate) fn run(mut self) {
        let mut scratch = Scratch::new();
        let mut events = vec![EpollEvent::empty(); 256];
        let mut due = clock::now();
        loop {
            let more = self.receive_all(&mut scratch);
            let now = clock::now();
            if now >= due {
                due = now + TICK;
                self.tick(now);
            }
            if !self.obey() {
                return;
            }
            self.clients.iter_mut().for_each(Client::flush);
            let left = if more {
                Duration::ZERO
            } else {
                due.saturating_duration_since(clock::now())
            };
            let timeout = EpollTimeout::try_from(left).unwrap_or(EpollTimeout::ZERO);
            let count = self.epoll.wait(&mut events, timeout).unwrap_or(0);
            for event in &events[..count] {
                if let Some(&index) = self.tokens.get(&event.data()) {
                    self.clients[index].readable = true;
                } else {
                    let _ = self.wake.read();
                }
            }
        }
    }

    /// Reads from everybody once round. True if somebody may have more.
    fn receive_all(&mut self, scratch: &mut Scratch) -> bool {
        let mut more = false;
        for client in &mut self.clients {
            if client.readable && client.reading {
                more |= !client.receive(scratch);
                client.flush();
            }
        }
        more
    }

    fn tick(&mut self, now: Instant) {
        self.retire();
        let mut traffic = 0;
        for client in &mut self.clients {
            client.tick(now);
            traffic += std::mem::take(&mut client.traffic);
        }
        self.shared.messages.fetch_add(traffic, Ordering::Relaxed);
        self.shared
            .connections
            .store(self.clients.len() as u64, Ordering::Relaxed);
        let disconnected = self
            .clients
            .iter()
            .filter(|client| client.closed.is_some())
            .count();
        self.shared
            .disconnected
            .store(disconnected as u64, Ordering::Relaxed);
    }

    /// Lets the visitors go that are done, and sends the churners back in.
    fn retire(&mut self) {
        let mut index = 0;
        while index < self.clients.len() {
            let client = &self.clients[index];
            let visitor = client.spec.call_limit.is_some() && client.closed.is_none();
            if !visitor || !client.is_finished() || !self.running {
                index += 1;
                continue;
            }
            let tag = client.spec.tag;
            let mut account = client.account();
            account.implementation = "raw, short visits".to_owned();
            let id = account.id.clone();
            self.gone.push(account);
            self.remove(index);
            self.shared.visits.fetch_add(1, Ordering::Relaxed);
            if tag == Tag::Churner
                && let Some((which, visit)) = id.trim_start_matches("churn").split_once('-')
            {
                let (which, visit) = (which.parse().unwrap_or(0), visit.parse::<u64>().unwrap_or(0));
                let spec = roles::churner(&self.plan, which, visit + 1);
                self.connect_or_note(spec, None);
            }
        }
    }

    fn connect_or_note(&mut self, spec: super::spec::Spec, hold: Option<usize>) {
        let id = spec.id.clone();
        let connected = Client::connect(&self.address, spec, hold, clock::now());
        if let Err(error) = connected.and_then(|client| self.admit(client)) {
            let errors = vec![format!("could not connect: {error:#}")];
            self.gone.push(Account {
                id,
                implementation: "raw".to_owned(),
                errors,
                ..Account::default()
            });
        }
    }

    fn remove(&mut self, index: usize) {
        let client = self.clients.remove(index);
        let _ = self.epoll.delete(&client.link);
        self.tokens.retain(|_, at| *at != index);
        self.tokens
            .values_mut()
            .filter(|at| **at > index)
            .for_each(|at| *at -= 1);
    }

    /// Does what it was told. False: the end.
    fn obey(&mut self) -> bool {
        loop {
            let command = match self.commands.try_recv() {
                Ok(command) => command,
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            };
            match command {
                Command::Running(running) => {
                    self.running = running;
                    self.clients
                        .iter_mut()
                        .for_each(|client| client.running = running);
                }
                Command::Barrier => self.clients.iter_mut().for_each(Client::barrier),
                Command::Hold(hook) => self.hold(hook),
                Command::Release(hook) => self.release(hook),
                Command::ReleaseName { id, name } => {
                    let owner = self.clients.iter_mut().find(|client| client.spec.id == id);
                    owner.into_iter().for_each(|client| client.release_name(&name));
                }
                Command::Check(condition, reply) => {
                    let _ = reply.send(self.check(&condition).err());
                }
                Command::Names(reply) => {
                    // A monitor has given its unique name up.
                    let named = self.clients.iter().filter(|client| !client.spec.monitor);
                    let names = |c: &Client| (c.spec.id.clone(), c.unique.clone(), c.spec.names.clone());
                    let _ = reply.send(named.map(names).collect());
                }
                Command::Accounts(reply) => {
                    let _ = reply.send(self.accounts());
                }
                Command::Finish(reply) => {
                    let accounts = self.accounts();
                    self.clients.clear();
                    let _ = reply.send(accounts);
                    return false;
                }
            }
        }
    }

    fn accounts(&self) -> Vec<Account> {
        self.gone
            .iter()
            .cloned()
            .chain(self.clients.iter().map(Client::account))
            .collect()
    }

    /// The connections that play this part, as long as they are connected.
    fn tagged(&mut self, tag: Tag) -> impl Iterator<Item = &mut Client> {
        self.clients
            .iter_mut()
            .filter(move |client| client.spec.tag == tag && client.closed.is_none())
    }

    fn hold(&mut self, hook: Hook) {
        match hook {
            Hook::HalfLargeMessage => {
                let half = self.plan.large_message / 2;
                self.tagged(Tag::Large)
                    .for_each(|client| client.call(0, Some(half)));
            }
            Hook::HalfHandshake => {
                // xorshift64: a different byte every time.
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                let at = (self.random % 45) as usize + 1;
                self.handshakes += 1;
                self.connect_or_note(roles::half_handshake(&self.plan, self.handshakes), Some(at));
            }
            Hook::StoppedReader => {
                self.tagged(Tag::StoppedReader)
                    .for_each(|client| client.reading = false);
                self.flood_mark = self.tagged(Tag::Flooder).map(|client| client.emitted()).sum();
            }
            Hook::PendingReplies => self.tagged(Tag::Keeper).for_each(|client| client.keeping = true),
        }
    }

    fn release(&mut self, hook: Hook) {
        match hook {
            Hook::HalfLargeMessage => self.tagged(Tag::Large).for_each(|client| client.link.release()),
            Hook::HalfHandshake => self
                .tagged(Tag::Handshake)
                .for_each(|client| client.link.release()),
            Hook::StoppedReader => {
                self.flood_mark = self.tagged(Tag::Flooder).map(|client| client.emitted()).sum();
                self.tagged(Tag::StoppedReader)
                    .for_each(|client| client.reading = true);
            }
            Hook::PendingReplies => self.tagged(Tag::Keeper).for_each(Client::let_go),
        }
    }

    fn check(&mut self, condition: &Condition) -> Result<(), String> {
        let so = |yes: bool, why: &str| if yes { Ok(()) } else { Err(why.to_owned()) };
        match condition {
            Condition::Ready => self.all(Client::is_ready, "is not ready"),
            Condition::Quiet => self.all(Client::is_quiet, "awaits an answer"),
            Condition::Held(Hook::HalfLargeMessage) => so(
                self.tagged(Tag::Large).all(|c| c.link.is_held()),
                "half of the large message is not written",
            ),
            Condition::Released(Hook::HalfLargeMessage) => so(
                self.tagged(Tag::Large).all(|c| c.is_quiet()),
                "the large message is not answered",
            ),
            Condition::Held(Hook::HalfHandshake) => so(
                self.tagged(Tag::Handshake).all(|c| c.link.is_held()),
                "the half handshake is not written",
            ),
            Condition::Released(Hook::HalfHandshake) => so(
                self.tagged(Tag::Handshake).next().is_none(),
                "the half handshake is not completed",
            ),
            Condition::Held(Hook::StoppedReader) => {
                let mark = self.flood_mark + FLOODED;
                so(
                    self.tagged(Tag::Flooder).all(|c| c.emitted() >= mark),
                    "too little is sent to the stopped reader",
                )
            }
            Condition::Released(Hook::StoppedReader) => {
                let mark = self.flood_mark;
                let caught_up = self
                    .tagged(Tag::StoppedReader)
                    .all(|c| c.last_of(roles::FLOOD) >= mark);
                so(caught_up, "the stopped reader has not caught up")
            }
            Condition::Held(Hook::PendingReplies) => so(
                self.tagged(Tag::Keeper).all(|c| c.kept() > 0),
                "no reply is kept back",
            ),
            Condition::Released(Hook::PendingReplies) => so(
                self.tagged(Tag::Keeper).all(|c| !c.link.has_output()),
                "the kept replies are not sent",
            ),
            Condition::Monitored(streams) => {
                let behind = |client: &Client| {
                    streams
                        .iter()
                        .find(|(stream, last)| client.last_of(stream) < **last)
                        .map(|(s, _)| s.clone())
                };
                let monitors = self
                    .clients
                    .iter()
                    .filter(|c| c.spec.monitor && c.closed.is_none());
                match monitors.filter_map(behind).next() {
                    None => Ok(()),
                    Some(stream) => Err(format!("the monitor has not seen all of {stream}")),
                }
            }
        }
    }

    fn all(&self, is_so: impl Fn(&Client) -> bool, not_so: &str) -> Result<(), String> {
        match self
            .clients
            .iter()
            .find(|client| client.closed.is_none() && !is_so(client))
        {
            None => Ok(()),
            Some(client) => Err(format!("{} {not_so}", client.spec.id)),
        }
    }
}
