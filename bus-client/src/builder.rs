//! How a connection is made.

use std::sync::Arc;
use std::time::Duration;

use bus_wire::{AddressList, ObjectPath, WellKnownName};

use crate::driver::{self, Entry};
use crate::error::Error;
use crate::object::Interface;
use crate::session::{Config, Decision, LinkError, Refusal, Role};
use crate::shared::Handle;
use crate::{Connection, Message, State};

/// What became of the link, for a handler.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Link<'a> {
    /// It was lost.
    Lost(&'a LinkError),
    /// An attempt has failed: the so-manieth since the last good link.
    Retry(u32, &'a LinkError),
    /// It is there again, and what is wanted of the bus was asked for again.
    Back {
        /// Whether the bus is the one from before.
        same_bus: bool,
        /// What it refused.
        failed: &'a [Refusal],
    },
}

pub(crate) type Handler = Box<dyn FnMut(Link<'_>) -> Decision + Send>;
pub(crate) type Filter = Box<dyn FnMut(&Message) -> bool + Send>;

/// A connection to be made.
#[must_use = "nothing happens before it connects"]
pub struct Builder {
    entry: Result<Entry, Error>,
    config: Config,
    timeout: Option<Duration>,
    handler: Option<Handler>,
    filter: Option<Filter>,
    names: Vec<String>,
    objects: Vec<(String, Arc<dyn Interface>)>,
}

/// A call without another timeout has this one.
const TIMEOUT: Duration = Duration::from_secs(25);

impl Builder {
    pub(crate) fn new(addresses: Result<AddressList, Error>) -> Self {
        Self {
            entry: addresses.map(Entry::Addresses),
            config: Config {
                uid: Some(nix::unistd::geteuid().as_raw()),
                cookies: true,
                ..Config::default()
            },
            timeout: Some(TIMEOUT),
            handler: None,
            filter: None,
            names: Vec::new(),
            objects: Vec::new(),
        }
    }

    pub(crate) fn accepted(socket: driver::Socket, role: Role) -> Self {
        let mut builder = Self::new(Err(Error::Address("none".into())));
        builder.entry = Ok(Entry::Accepted(socket));
        builder.config.role = role;
        builder
    }

    pub(crate) fn without_bus(mut self) -> Self {
        self.config.role = Role::Peer;
        self
    }

    /// Tells of all that becomes of the link, and decides what is done about it. It runs on the driver.
    pub fn on_link(mut self, handler: impl FnMut(Link<'_>) -> Decision + Send + 'static) -> Self {
        self.handler = Some(Box::new(handler));
        self
    }

    /// Sees each call to our objects, and each signal that a stream asks for, before they do. True: it is taken, and nobody else
    /// gets it, nor an answer. It runs on the driver.
    pub fn filter(mut self, filter: impl FnMut(&Message) -> bool + Send + 'static) -> Self {
        self.filter = Some(Box::new(filter));
        self
    }

    /// A name to be owned from the beginning, as long as there is the connection. Connecting does not wait for the bus's answer; what
    /// is no valid name makes it fail with [`Error::Name`].
    pub fn name(mut self, name: &str) -> Self {
        self.names.push(name.to_owned());
        self
    }

    /// An object to be offered from the beginning, as long as there is the connection: before the bus knows any name of ours. What is
    /// no valid path makes connecting fail with [`Error::Name`].
    pub fn object(mut self, path: &str, interface: Arc<dyn Interface>) -> Self {
        self.objects.push((path.to_owned(), interface));
        self
    }

    /// How long a call waits for its reply, if it does not say so itself; `None`: for ever. 25 s if this is not set.
    pub fn timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// Where there is no bus at the beginning, wait for it, for as long as that takes, rather than fail.
    pub fn wait_for_bus(mut self) -> Self {
        self.config.waits_for_bus = true;
        self
    }

    /// For how long after another bus has come calls to names that had owners wait for them to have owners again; zero: not at
    /// all. 5 s if this is not set.
    pub fn settle(mut self, window: Duration) -> Self {
        self.config.settle = window;
        self
    }

    /// Authenticate as nobody: with the mechanism ANONYMOUS (specification, "Authentication Mechanisms").
    pub fn anonymous(mut self) -> Self {
        self.config.uid = None;
        self
    }

    /// How the session behaves, in all details.
    pub fn configure(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Connects. The driver is a task of this tokio runtime.
    ///
    /// # Errors
    /// [`Error::Address`]: there is none, or it cannot be read. [`Error::Connect`]: there is no bus, or it does not let us in.
    /// [`Error::Name`]: a name, or the path of an object, is not valid.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time.
    pub async fn connect(self) -> Result<Connection, Error> {
        let connection = self.start(driver::spawn_task)?;
        let shared = connection.1.shared().clone();
        std::future::poll_fn(|context| shared.poll_first(context)).await?;
        Ok(connection.0)
    }

    /// Connects, and waits for it. The driver is a thread of its own: handlers run, and the bus is regained, while nobody calls.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); and where there can be no thread.
    pub fn connect_thread(self) -> Result<Connection, Error> {
        let connection = self.start(driver::spawn_thread)?;
        let shared = connection.1.shared().clone();
        let first = std::future::poll_fn(|context| shared.poll_first(context));
        crate::wait::park_on(first)?;
        Ok(connection.0)
    }

    fn start(self, spawn: fn(driver::Start) -> Result<Handle, Error>) -> Result<(Connection, Handle), Error> {
        for name in &self.names {
            WellKnownName::new(name)?;
        }
        for (path, _) in &self.objects {
            ObjectPath::new(path)?;
        }
        let mut config = self.config;
        config.asks = self.handler.is_some();
        config.seed = driver::seed();
        let handle = spawn(driver::Start {
            entry: self.entry?,
            config,
            timeout: self.timeout,
            handler: self.handler,
            filter: self.filter,
            objects: self.objects,
            names: self.names,
        })?;
        debug_assert_ne!(handle.shared().state(), State::Parked);
        Ok((Connection::new(handle.clone()), handle))
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
