//! The driver: it does what the session asks for, with a socket, a clock and whoever waits.
//!
//! [`Engine`] is the same for both kinds of driver, which differ in how they wait: `task` is a task of tokio's, `thread` a thread
//! with `poll`.

mod dial;
mod keyring;
mod lanes;
mod socket;
mod task;
mod tasks;
mod thread;
mod watch;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bus_wire::{AddressList, Fd};

pub(crate) use dial::{Dialled, unix_address};
pub(crate) use socket::Socket;
pub(crate) use task::spawn_task;
pub(crate) use thread::spawn_thread;

use crate::builder::{Filter, Handler, Link};
use crate::clock::Clock;
use crate::error::Error;
use crate::object::{Cancellation, Incoming, Interface, Target};
use crate::session::{
    Action, CallId, CallOptions, Command, Config, Decision, Event, LinkError, LinkEvent, Missed, NameFlags,
    NameId, Outcome, Outgoing, Session, State,
};
use crate::shared::{Handle, Parcel, Queues, Request, Shared, Slot, lock};
use crate::stream::Signal;
use crate::wait::Driving;
use crate::{Message, NameState};
use tasks::Tasks;
use watch::Watch;

/// Where a connection goes.
pub(crate) enum Entry {
    Addresses(AddressList),
    /// It is there.
    Accepted(Socket),
}

/// What a driver begins with.
pub(crate) struct Start {
    pub(crate) entry: Entry,
    pub(crate) config: Config,
    pub(crate) timeout: Option<Duration>,
    pub(crate) handler: Option<Handler>,
    pub(crate) filter: Option<Filter>,
    pub(crate) objects: Vec<(String, Arc<dyn Interface>)>,
    pub(crate) names: Vec<String>,
}

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    use std::io::Read;
    let mut bytes = [0; N];
    // Where this fails there are no devices at all; what is drawn is then only not the same as in other processes.
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    if read.is_err() {
        let process = u64::from(std::process::id()).to_le_bytes();
        bytes.iter_mut().zip(process).for_each(|(byte, of)| *byte = of);
    }
    bytes
}

pub(crate) fn seed() -> u64 {
    u64::from_le_bytes(random())
}

/// So much is read at a time.
const CHUNK: usize = 64 * 1024;
thread_local! {
    /// What is read goes through here: one for all connections whose drivers run on a thread.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// So often in one turn, so that what is to be written has its turn too.
const READS: usize = 8;
/// So many slices go into one write.
const SLICES: usize = 64;

/// The session, and the system's side of it.
pub(crate) struct Engine {
    session: Session,
    shared: Arc<Shared>,
    clock: Clock,
    addresses: Option<AddressList>,
    accepted: Option<Socket>,
    socket: Option<Socket>,
    watch: Option<Watch>,
    handler: Option<Handler>,
    filter: Option<Filter>,
    slots: BTreeMap<CallId, Arc<Slot>>,
    queues: Queues,
    tasks: Tasks,
    /// Of the calls that came over the present link.
    cancellation: Arc<Cancellation>,
    /// Descriptors that the session knows by their numbers.
    fds: BTreeMap<i32, OwnedFd>,
    requests: VecDeque<Request>,
    actions: Vec<Action>,
    next_call: u64,
    /// What the application wanted from the beginning, and keeps as long as there is the driver.
    names: Vec<NameId>,
    down_since: Option<Duration>,
    /// Counts the sockets.
    generation: u64,
    /// The last attempt to connect.
    attempt: u64,
    /// There was more to be read than one turn takes.
    has_more: bool,
    is_over: bool,
}

/// What an engine waits for.
pub(crate) struct Interest {
    pub(crate) write: bool,
    /// At the latest.
    pub(crate) deadline: Option<Duration>,
}

impl Engine {
    pub(crate) fn new(start: Start, shared: Arc<Shared>) -> Self {
        let (addresses, accepted) = match start.entry {
            Entry::Addresses(addresses) => (Some(addresses), None),
            Entry::Accepted(socket) => (None, Some(socket)),
        };
        let mut engine = Self {
            session: Session::new(start.config),
            tasks: Tasks::new(shared.clone()),
            shared,
            clock: Clock::new(),
            addresses,
            accepted,
            socket: None,
            watch: None,
            handler: start.handler,
            filter: start.filter,
            slots: BTreeMap::new(),
            queues: Queues::default(),
            cancellation: Arc::default(),
            fds: BTreeMap::new(),
            requests: VecDeque::new(),
            actions: Vec::new(),
            next_call: 0,
            names: Vec::new(),
            down_since: None,
            generation: 0,
            attempt: 0,
            has_more: false,
            is_over: false,
        };
        for (path, interface) in start.objects {
            let id = engine.shared.next_id();
            lock(&engine.shared.objects).add(&path, id, interface);
        }
        for name in start.names {
            let handle = NameId(engine.shared.next_id());
            engine.names.push(handle);
            let (name, flags) = (name.into(), NameFlags::default());
            engine.command(Command::OwnName { handle, name, flags });
        }
        engine.tell(Event::Start);
        engine
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// Another where the socket is another, even if it has the same number.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(Socket::as_fd)
    }

    pub(crate) fn interest(&self) -> Interest {
        Interest {
            write: self.session.wants_write(),
            deadline: self.session.deadline(),
        }
    }

    /// One turn: what was asked for, what has come, what is due, what handlers have to say; and then what goes out.
    pub(crate) fn turn(&mut self, readable: bool) {
        let _driving = Driving::begin();
        self.take_requests();
        if readable || std::mem::take(&mut self.has_more) {
            self.read();
        }
        let now = self.clock.now();
        if self.session.deadline().is_some_and(|deadline| deadline <= now) {
            self.tell(Event::Time);
        }
        self.tasks.run();
        // What handlers have asked for goes out at once.
        self.take_requests();
        self.write();
    }

    fn take_requests(&mut self) {
        let mut requests = std::mem::take(&mut self.requests);
        self.shared.take(&mut requests);
        for request in requests.drain(..) {
            self.request(request);
        }
        self.requests = requests;
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Call(slot, parcel, options) => {
                let by = slot.by;
                let call = self.open(slot);
                if let (Some(task), Some(to)) = (by, &parcel.destination) {
                    self.tasks.waits(task, call, to);
                }
                self.send(call, parcel, options);
            }
            Request::Detached(parcel, options) => {
                let call = self.call_id();
                self.send(call, parcel, options);
            }
            Request::Abandon(slot) => {
                let call = CallId(slot.id.load(Ordering::Relaxed));
                if self.slots.remove(&call).is_some() {
                    self.tasks.waits_no_more(call);
                    self.command(Command::Abandon(call));
                }
            }
            Request::WaitForNames(slot, names, timeout) => {
                let call = self.open(slot);
                self.command(Command::WaitForNames { call, names, timeout });
            }
            Request::Subscribe(stream, rule, queue) => {
                self.queues.streams.insert(stream, queue);
                self.command(Command::Subscribe { stream, rule });
            }
            Request::Unsubscribe(stream) => {
                self.queues.streams.remove(&stream);
                self.command(Command::Unsubscribe(stream));
            }
            Request::OwnName(handle, name, flags, queue) => {
                self.queues.names.insert(handle, queue);
                self.command(Command::OwnName { handle, name, flags });
            }
            Request::DropName(handle) => {
                self.queues.names.remove(&handle);
                self.command(Command::DropName(handle));
            }
            Request::Watch(watch, name, queue) => {
                self.queues.watches.insert(watch, queue);
                self.command(Command::Watch { watch, name });
            }
            Request::Unwatch(watch) => {
                self.queues.watches.remove(&watch);
                self.command(Command::Unwatch(watch));
            }
            Request::Reply(link, parcel) => {
                let message = self.outgoing(parcel);
                self.command(Command::Reply { link, message });
            }
            Request::Dialled(attempt, dialled) => self.dialled(attempt, dialled),
            Request::Cookie(attempt, cookie) => {
                let random = random();
                self.tell(Event::Cookie {
                    attempt,
                    cookie,
                    random,
                });
            }
            Request::SocketAppeared => self.tell(Event::SocketAppeared),
            Request::Reconnect => self.command(Command::Reconnect),
            Request::Close => {
                self.write();
                self.command(Command::Close);
            }
        }
    }

    fn call_id(&mut self) -> CallId {
        self.next_call += 1;
        CallId(self.next_call)
    }

    fn open(&mut self, slot: Arc<Slot>) -> CallId {
        let call = self.call_id();
        slot.id.store(call.0, Ordering::Relaxed);
        self.slots.insert(call, slot);
        call
    }

    fn send(&mut self, call: CallId, parcel: Parcel, options: CallOptions) {
        let message = self.outgoing(parcel);
        self.command(Command::Send {
            call,
            message,
            options,
        });
    }

    /// The session knows descriptors by number.
    fn outgoing(&mut self, parcel: Parcel) -> Outgoing {
        let fds = parcel.fds.into_iter().map(|fd| {
            let number = fd.as_raw_fd();
            self.fds.insert(number, fd);
            Fd(number)
        });
        Outgoing {
            bytes: parcel.bytes,
            destination: parcel.destination,
            epoch: parcel.epoch,
            fds: fds.collect(),
        }
    }

    /// They are somebody else's now.
    fn take_fds(&mut self, fds: Vec<Fd>) -> Vec<OwnedFd> {
        fds.iter().filter_map(|fd| self.fds.remove(&fd.0)).collect()
    }

    fn command(&mut self, command: Command) {
        self.tell(Event::Command(command));
    }

    fn tell(&mut self, event: Event) {
        let mut actions = std::mem::take(&mut self.actions);
        self.session.handle(self.clock.now(), event, &mut actions);
        // An action may lead to an event, whose actions come after those that are there.
        while !actions.is_empty() {
            for action in std::mem::take(&mut actions) {
                if let Some(event) = self.act(action) {
                    self.session.handle(self.clock.now(), event, &mut actions);
                }
            }
        }
        self.actions = actions;
    }

    /// Does it. What comes of it at once is an event.
    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Dial { attempt } => return self.dial(attempt),
            Action::Cookie { attempt, challenge } => {
                keyring::look_up(challenge, attempt, self.shared.clone());
            }
            Action::HangUp => {
                self.socket = None;
                std::mem::take(&mut self.cancellation).cancel();
            }
            Action::Ended { call, outcome } => self.ended(call, outcome),
            Action::Signal {
                streams,
                message,
                fds,
                epoch,
            } => {
                let fds = self.take_fds(fds);
                let message = Message::new(message, fds, epoch);
                if self.is_taken(&message) {
                    return None;
                }
                for queue in streams
                    .iter()
                    .filter_map(|stream| self.queues.streams.get(stream))
                {
                    let message = message.clone();
                    let length = message.length();
                    queue.push(Signal { message }, length);
                }
            }
            Action::Ready(_) => {}
            Action::Missed { stream, missed } => {
                if let Some(queue) = self.queues.streams.get(&stream) {
                    queue.note(missed, merge_missed);
                }
            }
            Action::StreamEnded(stream) => {
                if let Some(queue) = self.queues.streams.remove(&stream) {
                    queue.end();
                }
            }
            Action::Incoming {
                message,
                fds,
                link,
                epoch,
            } => {
                let fds = self.take_fds(fds);
                self.incoming(Message::new(message, fds, epoch), link);
            }
            Action::NameState { handle, state } => self.name_state(handle, state),
            Action::OwnerChanged { watch, change } => {
                if let Some(queue) = self.queues.watches.get(&watch) {
                    queue.push_latest(change, 1);
                }
            }
            Action::State(state) => self.state(state),
            Action::Link(event) => return self.link(&event),
            Action::Closed(error) => self.closed(error),
            Action::CloseFds(fds) => drop(self.take_fds(fds)),
        }
        None
    }

    fn ended(&mut self, call: CallId, outcome: Outcome) {
        let end = match outcome {
            Outcome::Reply { message, fds } => {
                let fds = self.take_fds(fds);
                Ok(Some(Message::new(message, fds, self.session.epoch())))
            }
            Outcome::Done => Ok(None),
            Outcome::Failed { cause, fate } => Err(Error::local(cause, fate, &self.shared)),
        };
        if let Some(slot) = self.slots.remove(&call) {
            if slot.by.is_some() {
                self.tasks.waits_no_more(call);
            }
            slot.end(end);
        }
    }

    fn name_state(&mut self, handle: NameId, state: NameState) {
        if let Some(queue) = self.queues.names.get(&handle) {
            queue.push_latest(state, 1);
        } else if self.names.contains(&handle) && state != NameState::Owned {
            tracing::warn!(?state, "a name of this connection's is not to be had");
        }
    }

    fn state(&mut self, state: State) {
        self.shared.set_state(state, self.session.unique_name());
        if state == State::Up {
            self.watch = None;
            self.shared.set_first(Ok(()));
            if let Some(since) = self.down_since.take() {
                let outage = self.clock.now().saturating_sub(since);
                tracing::debug!(?outage, "the bus is back");
            }
        }
    }

    /// Tells the handler, whose decision is an event.
    fn link(&mut self, event: &LinkEvent) -> Option<Event> {
        if let LinkEvent::Lost(error) = event {
            // The one line of an outage.
            tracing::warn!(%error, "the bus is gone; this connection waits for it");
            self.down_since = Some(self.clock.now());
        }
        if !matches!(event, LinkEvent::Back { .. }) && self.watch.as_ref().is_none_or(Watch::is_blind) {
            let addresses = self.addresses.as_ref();
            self.watch = addresses.and_then(|addresses| Watch::new(addresses, &self.shared));
        }
        let handler = self.handler.as_mut()?;
        let link = match event {
            LinkEvent::Lost(error) => Link::Lost(error),
            LinkEvent::Retry(attempts, error) => Link::Retry(*attempts, error),
            LinkEvent::Back { same_bus, failed } => Link::Back {
                same_bus: *same_bus,
                failed,
            },
        };
        let decision = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| handler(link)));
        Some(Event::Decided(decision.unwrap_or_else(|_| {
            tracing::error!("the handler of this connection's link has panicked");
            Decision::Replay
        })))
    }

    fn closed(&mut self, error: Option<LinkError>) {
        self.is_over = true;
        self.shared.set_first(Err(error.unwrap_or(LinkError::Asked)));
        self.queues.end();
        self.tasks.clear();
        self.watch = None;
        for request in self.shared.end() {
            if let Request::Call(slot, ..) | Request::WaitForNames(slot, ..) = request {
                let (cause, fate) = (crate::Cause::Closed, crate::Fate::NotSent);
                slot.end(Err(Error::local(cause, fate, &self.shared)));
            }
        }
    }

    /// Whether the application's filter has taken it.
    fn is_taken(&mut self, message: &Message) -> bool {
        let Some(filter) = &mut self.filter else {
            return false;
        };
        let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| filter(message)));
        taken.unwrap_or_else(|_| {
            tracing::error!("the filter of this connection has panicked");
            false
        })
    }

    fn incoming(&mut self, message: Message, link: u64) {
        if self.is_taken(&message) {
            return;
        }
        let target = lock(&self.shared.objects).find(&message, machine_id);
        match target {
            Target::Interface(interface) => {
                let call = Incoming {
                    message,
                    handle: Handle::new(self.shared.clone()),
                    cancelled: self.cancellation.clone(),
                };
                self.tasks.spawn(interface, call, link);
            }
            Target::Here(reply) => {
                if let Some(parcel) = reply.into_parcel(&message) {
                    let _ = self.shared.push(Request::Reply(link, parcel));
                }
            }
        }
    }

    fn dial(&mut self, attempt: u64) -> Option<Event> {
        self.attempt = attempt;
        self.socket = None;
        if let Some(socket) = self.accepted.take() {
            self.dialled(attempt, Ok((socket, None)));
            return None;
        }
        let addresses = self.addresses.clone()?;
        match dial::at_once(&addresses) {
            Some(dialled) => {
                let _ = self.shared.push(Request::Dialled(attempt, dialled));
            }
            None => dial::elsewhere(addresses, attempt, self.shared.clone()),
        }
        None
    }

    fn dialled(&mut self, attempt: u64, dialled: Dialled) {
        match dialled {
            Ok((socket, guid)) => {
                if attempt != self.attempt || self.socket.is_some() {
                    return;
                }
                let fds = socket.passes_fds();
                self.socket = Some(socket);
                self.generation += 1;
                self.tell(Event::Connected { attempt, fds, guid });
                // It may have been given up meanwhile.
                if !self.session.is_linked() {
                    self.socket = None;
                }
            }
            Err(error) => self.tell(Event::DialFailed { attempt, error }),
        }
    }

    /// Up to the end: a short read is none, as the kernel also ends one before the next descriptors.
    fn read(&mut self) {
        for _ in 0..READS {
            let Some(socket) = &self.socket else { return };
            let read = BUFFER.with_borrow_mut(|buffer| {
                buffer.resize(CHUNK, 0);
                let (count, fds) = socket.read(buffer)?.unzip();
                let bytes = count.map(|count| bytes::Bytes::copy_from_slice(&buffer[..count]));
                io::Result::Ok(bytes.zip(fds))
            });
            match read {
                Ok(Some((bytes, _))) if bytes.is_empty() => {
                    return self.tell(Event::Lost(LinkError::Ended));
                }
                Ok(Some((bytes, fds))) => {
                    let fds = fds.into_iter().map(|fd| {
                        let number = fd.as_raw_fd();
                        self.fds.insert(number, fd);
                        Fd(number)
                    });
                    let fds = fds.collect();
                    self.tell(Event::Received { bytes, fds });
                }
                Ok(None) => return,
                Err(error) => return self.tell(Event::Lost(LinkError::os("read", &error))),
            }
        }
        // There is more: the next turn takes it.
        self.has_more = true;
        self.shared.wake();
    }

    fn write(&mut self) {
        while self.session.wants_write() {
            let Some(socket) = &self.socket else { return };
            let mut slices = Vec::new();
            let fds = self.session.next_write(&mut slices, SLICES);
            let fds: Vec<BorrowedFd<'_>> = fds
                .iter()
                .filter_map(|fd| self.fds.get(&fd.0).map(std::os::fd::AsFd::as_fd))
                .collect();
            match socket.write(&slices, &fds) {
                Ok(Some(count)) => self.tell(Event::Sent { bytes: count as u64 }),
                Ok(None) => return,
                // What the bus had to say before it went is read first.
                Err(error) => {
                    self.read();
                    if self.socket.is_some() {
                        self.tell(Event::Lost(LinkError::os("write", &error)));
                    }
                    return;
                }
            }
        }
    }
}

/// A runtime may go down with the driver in it: nobody is left waiting.
impl Drop for Engine {
    fn drop(&mut self) {
        if !self.is_over {
            self.command(Command::Close);
        }
    }
}

/// Notes of the same kind in a row are one.
fn merge_missed(last: &mut Missed, note: &Missed) -> bool {
    match (last, note) {
        (Missed::Outage { same_bus: last }, Missed::Outage { same_bus }) => {
            *last &= same_bus;
            true
        }
        (Missed::Lagged { count: last }, Missed::Lagged { count }) => {
            *last += count;
            true
        }
        (last, note) => last == note,
    }
}

fn machine_id() -> Option<String> {
    let read = |path| std::fs::read_to_string(path).ok();
    let id = read("/etc/machine-id").or_else(|| read("/var/lib/dbus/machine-id"))?;
    Some(id.trim().to_owned())
}
