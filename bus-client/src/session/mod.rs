//! The session: a client's logical life, over as many links as it takes.
//!
//! [`Session::handle`] is a pure function of what it is told: the time and the seed of its random numbers come from outside, and
//! nothing here reads a clock, a socket or a thread. Bytes come in as [`Event::Received`]; what is to be written is at
//! [`Session::next_write`]; all else that is to be done is an [`Action`].
//!
//! The parts: `calls` (each call ends exactly once, and its fate is known), `ledger` (match rules, counted), `own_names`, `names`
//! (who owns what), `requests` (what the session itself asks of the bus), `epoch`, `settle`, `backoff`, and `link` (the bytes of
//! one link). What happens is in `connect` (links come and go), `submit` (calls on their way out), `incoming` (messages),
//! `replay` (what is asked of the bus).

mod auth;
mod backoff;
mod calls;
mod connect;
mod epoch;
mod event;
mod fault;
mod inbox;
mod incoming;
mod invalidations;
mod ledger;
mod link;
mod matching;
mod names;
mod own_names;
mod replay;
mod requests;
mod settle;
mod submit;

use std::io::IoSlice;
use std::time::Duration;

use bus_wire::{Fd, Guid, SaslConfig};

pub use auth::AuthError;
pub use backoff::BackoffConfig;
pub use event::{
    Action, CallId, CallOptions, Command, Decision, Event, Known, LinkEvent, Missed, NameFlags, NameId,
    NameState, Outcome, Outgoing, OwnerChange, Refusal, State, StreamId, WatchId, WhileDown,
};
pub use fault::{AddressFault, Cause, Fate, LinkError};
pub use inbox::{Inbox, Popped};

use backoff::Backoff;
use calls::Calls;
use epoch::Epochs;
use invalidations::Invalidations;
use ledger::Ledger;
use link::Link;
use names::Names;
use own_names::OwnNames;
use requests::Requests;
use settle::Settle;

/// How a session behaves. Times are lengths.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which side of what it is.
    pub role: Role,
    /// Who we say that we are; `None`: nobody (ANONYMOUS).
    pub uid: Option<u32>,
    /// Whether cookies are there to prove it (DBUS_COOKIE_SHA1), where the kernel does not: whether [`Action::Cookie`] is done.
    pub cookies: bool,
    /// Of all its random numbers.
    pub seed: u64,
    /// A handler decides what [`Action::Link`] leads to.
    pub asks: bool,
    /// Where there is no bus at the beginning, wait for it.
    pub waits_for_bus: bool,
    /// How long the bus may be silent while a link is set up.
    pub patience: Duration,
    /// For how long after another bus has come calls wait for those whom they are for; zero: not at all.
    pub settle: Duration,
    /// When attempts are made.
    pub backoff: BackoffConfig,
    /// How many calls may wait.
    pub held: usize,
    /// How many bytes of them.
    pub held_bytes: usize,
    /// How many questions to the bus may be open; a bus refuses more than so many open calls of one client (128 by default).
    pub window: usize,
    /// So many bytes in the link are enough; other calls wait.
    pub in_link: u64,
    /// The longest message that is accepted, in bytes.
    pub max_message: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            role: Role::Bus,
            uid: None,
            cookies: false,
            seed: 0,
            asks: false,
            waits_for_bus: false,
            patience: Duration::from_secs(30),
            settle: Duration::from_secs(5),
            backoff: BackoffConfig::default(),
            held: 10_000,
            held_bytes: 16 << 20,
            window: 64,
            in_link: 1 << 20,
            max_message: bus_wire::limits::MAX_MESSAGE,
        }
    }
}

/// Which side of what a session is.
#[derive(Debug, Clone)]
pub enum Role {
    /// A client of a bus.
    Bus,
    /// A peer that connects to another, without a bus.
    Peer,
    /// A peer that was connected to. Its link is the only one: when it is lost, the session is closed.
    Accepted {
        /// What the other is offered.
        sasl: SaslConfig,
        /// Who the kernel says it is.
        uid: Option<u32>,
    },
}

/// So many descriptors may wait for their message.
pub const MAX_WAITING_FDS: usize = 253;

/// The pure core of a connection.
#[derive(Debug)]
pub struct Session {
    config: Config,
    now: Duration,
    phase: Phase,
    state: State,
    /// Links were up before.
    was_up: bool,
    /// Of the bus of the last link that was up.
    up_guid: Option<Guid>,
    /// Counts the attempts to connect.
    attempt: u64,
    /// Counts the links that were up.
    link: u64,
    unique_name: Option<Box<str>>,
    backoff: Backoff,
    epochs: Epochs,
    calls: Calls,
    ledger: Ledger,
    names: Names,
    own_names: OwnNames,
    requests: Requests,
    settle: Settle,
    invalidations: Invalidations,
    actions: Vec<Action>,
}

/// Where the session is with its links.
///
/// ```text
///            Connected                lost
///  Dialing ------------> Linked ---------------+
///   ^  \_____failed________________________    |
///   |                                      v   v
///   +---- Waiting <---- decision ------- (Asking) ---- gives up ----> Closed
/// ```
#[derive(Debug)]
enum Phase {
    /// [`Event::Start`] has not come.
    New,
    /// A link is being made.
    Dialing {
        /// By when.
        until: Duration,
        bare: bool,
    },
    Linked(Box<Link>),
    /// The handler is asked what to do.
    Asking(LinkError),
    /// The next attempt is made then.
    Waiting {
        until: Duration,
        bare: bool,
    },
    Closed,
}

/// How much a session holds: for tests, and for whoever looks for a leak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Census {
    /// Calls that have not ended.
    pub calls: usize,
    /// Calls that wait for something.
    pub held: usize,
    /// Bytes of these.
    pub held_bytes: usize,
    /// Match rules.
    pub rules: usize,
    /// Streams of signals.
    pub streams: usize,
    /// Names whose owners are of interest.
    pub watched: usize,
    /// Watches, and calls that wait for names.
    pub watches: usize,
    /// Names of our own.
    pub own_names: usize,
    /// Questions to the bus.
    pub requests: usize,
    /// Bytes in the link that are not written.
    pub output: u64,
    /// Bytes of a message that has not come completely.
    pub input: usize,
    /// Names remembered because of the settle window.
    pub settling: usize,
    /// Interfaces whose properties have changed while nobody could be told.
    pub invalidations: usize,
}

impl Session {
    /// A session that has not begun: [`Event::Start`] does that.
    pub fn new(config: Config) -> Self {
        let backoff = Backoff::new(config.backoff, config.seed);
        Self {
            config,
            now: Duration::ZERO,
            phase: Phase::New,
            state: State::Down,
            was_up: false,
            up_guid: None,
            attempt: 0,
            link: 0,
            unique_name: None,
            backoff,
            epochs: Epochs::default(),
            calls: Calls::default(),
            ledger: Ledger::default(),
            names: Names::default(),
            own_names: OwnNames::default(),
            requests: Requests::default(),
            settle: Settle::default(),
            invalidations: Invalidations::default(),
            actions: Vec::new(),
        }
    }

    /// Something happened at `now`, which counts from any moment and never goes back. What is to be done about it is added to
    /// `actions`, in order.
    pub fn handle(&mut self, now: Duration, event: Event, actions: &mut Vec<Action>) {
        self.now = self.now.max(now);
        std::mem::swap(&mut self.actions, actions);
        match event {
            Event::Start => self.start(),
            Event::Command(command) => self.command(command),
            Event::Decided(decision) => self.decided(decision),
            Event::Connected { attempt, fds, guid } => self.connected(attempt, fds, guid),
            Event::DialFailed { attempt, error } => self.dial_failed(attempt, error),
            Event::Received { bytes, fds } => self.received(bytes, fds),
            Event::Sent { bytes } => self.sent(bytes),
            Event::Lost(error) => self.lose(error),
            Event::Time => self.time(),
            Event::Cookie {
                attempt,
                cookie,
                random,
            } => self.cookie(attempt, cookie.as_ref(), random),
            Event::SocketAppeared => self.socket_appeared(),
        }
        self.pump();
        std::mem::swap(&mut self.actions, actions);
    }

    /// When [`Event::Time`] is to come, at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        let phase = match &self.phase {
            Phase::Dialing { until, .. } | Phase::Waiting { until, .. } => Some(*until),
            Phase::Linked(link) => link.patience,
            Phase::New | Phase::Asking(_) | Phase::Closed => None,
        };
        [phase, self.calls.next_deadline(), self.settle.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether there is something to be written.
    pub fn wants_write(&self) -> bool {
        matches!(&self.phase, Phase::Linked(link) if !link.output().is_empty())
    }

    /// The slices of the next write, at most `most`, and the descriptors that go with its first byte.
    pub fn next_write<'a>(&'a self, slices: &mut impl Extend<IoSlice<'a>>, most: usize) -> &'a [Fd] {
        match &self.phase {
            Phase::Linked(link) => link.output().next_write(slices, most),
            Phase::New | Phase::Dialing { .. } | Phase::Asking(_) | Phase::Waiting { .. } | Phase::Closed => {
                &[]
            }
        }
    }

    /// Whether there is a link, however far it has come.
    pub fn is_linked(&self) -> bool {
        matches!(self.phase, Phase::Linked(_))
    }

    /// Whether it can be used.
    pub fn state(&self) -> State {
        self.state
    }

    /// Our unique name on the bus, or the last one that we had.
    pub fn unique_name(&self) -> Option<&str> {
        self.unique_name.as_deref()
    }

    /// Counts the buses that were met: the first is 1.
    pub fn epoch(&self) -> u64 {
        self.epochs.number()
    }

    /// How many attempts to connect were made since the last good link.
    pub fn attempts(&self) -> u32 {
        self.backoff.attempts()
    }

    /// How much it holds.
    pub fn census(&self) -> Census {
        let (calls, held, held_bytes) = self.calls.count();
        let (rules, streams) = self.ledger.count();
        let (watched, watches, waits) = self.names.count();
        let (remembered, settling) = self.settle.count();
        let (output, input) = match &self.phase {
            Phase::Linked(link) => (link.output().len(), link.framer.partial_bytes()),
            Phase::New | Phase::Dialing { .. } | Phase::Asking(_) | Phase::Waiting { .. } | Phase::Closed => {
                (0, 0)
            }
        };
        Census {
            calls,
            held,
            held_bytes,
            rules,
            streams,
            watched,
            watches: watches + waits,
            own_names: self.own_names.count().0,
            requests: self.requests.count(),
            output,
            input,
            settling: remembered + settling,
            invalidations: self.invalidations.count(),
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Send {
                call,
                message,
                options,
            } => self.submit(call, message, options),
            Command::Abandon(call) => self.abandon(call),
            Command::Reply { link, message } => self.reply(link, message),
            Command::Subscribe { stream, rule } => self.subscribe(stream, *rule),
            Command::Unsubscribe(stream) => self.unsubscribe(stream),
            Command::OwnName { handle, name, flags } => self.own_name(handle, &name, flags),
            Command::DropName(handle) => self.drop_name(handle),
            Command::Watch { watch, name } => self.watch(watch, &name),
            Command::Unwatch(watch) => self.unwatch(watch),
            Command::WaitForNames { call, names, timeout } => self.wait_for_names(call, names, timeout),
            Command::Reconnect => self.reconnect(),
            Command::Close => self.close(None),
        }
    }

    fn time(&mut self) {
        while let Some(call) = self.calls.due(self.now) {
            self.overdue(call);
        }
        if self.settle.deadline().is_some_and(|until| until <= self.now) {
            self.end_settling(false);
        }
        match &self.phase {
            Phase::Dialing { until, .. } if *until <= self.now => {
                self.dial_failed(self.attempt, LinkError::Silent);
            }
            Phase::Waiting { until, bare } if *until <= self.now => {
                let bare = *bare;
                self.dial(bare);
            }
            Phase::Linked(link) if link.patience.is_some_and(|until| until <= self.now) => {
                self.lose(LinkError::Silent);
            }
            Phase::New
            | Phase::Dialing { .. }
            | Phase::Linked(_)
            | Phase::Asking(_)
            | Phase::Waiting { .. }
            | Phase::Closed => {}
        }
    }

    /// What can go out now, goes.
    fn pump(&mut self) {
        self.ask();
        self.send_invalidations();
        self.send_held();
    }

    fn close_fds(&mut self, fds: Vec<Fd>) {
        if !fds.is_empty() {
            self.actions.push(Action::CloseFds(fds));
        }
    }

    fn set_state(&mut self, state: State) {
        if self.state != state {
            self.state = state;
            self.actions.push(Action::State(state));
        }
    }

    fn has_bus(&self) -> bool {
        matches!(self.config.role, Role::Bus)
    }
}
