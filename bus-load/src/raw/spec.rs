//! What one raw connection does.

use std::time::Duration;

/// The behaviour of one connection, as data.
#[derive(Debug, Default, Clone)]
pub(crate) struct Spec {
    /// Unique within the load; also the start of the names of its streams.
    pub(crate) id: String,
    /// The names that it requests.
    pub(crate) names: Vec<String>,
    /// The match rules that it adds, or monitors with.
    pub(crate) rules: Vec<String>,
    /// It becomes a monitor.
    pub(crate) monitor: bool,
    /// The streams of signals of which it must get every number.
    pub(crate) subscribes: Vec<String>,
    pub(crate) calls: Vec<Target>,
    pub(crate) emits: Option<Emission>,
    /// It ends itself after this many calls to each target.
    pub(crate) call_limit: Option<u64>,
    pub(crate) tag: Tag,
}

/// Whom a connection calls, and how.
#[derive(Debug, Default, Clone)]
pub(crate) struct Target {
    pub(crate) destination: String,
    pub(crate) interval: Duration,
    /// How many calls may be unanswered at a time.
    pub(crate) window: u32,
    /// Bytes that go along with each call.
    pub(crate) payload: usize,
    /// One in so many calls, and its reply, carries a descriptor whose content is its number. 0: none does.
    pub(crate) fd_every: u64,
    /// Calls are made one by one, on command.
    pub(crate) on_command: bool,
}

/// The signals that a connection emits.
#[derive(Debug, Default, Clone)]
pub(crate) struct Emission {
    pub(crate) stream: String,
    pub(crate) interval: Duration,
    /// To this name alone.
    pub(crate) destination: Option<String>,
    /// Bytes that go along with each signal.
    pub(crate) payload: usize,
    /// One in so many carries a descriptor whose content is its number. 0: none does.
    pub(crate) fd_every: u64,
}

/// The part that a connection plays in a [`crate::Hook`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    #[default]
    None,
    /// Sends the large message.
    Large,
    /// Connects with its handshake held half-way.
    Handshake,
    /// Stops reading.
    StoppedReader,
    /// Floods the stopped reader.
    Flooder,
    /// Keeps replies back.
    Keeper,
    /// Comes, calls and goes.
    Churner,
    /// Queues for the one name.
    Queued,
}
