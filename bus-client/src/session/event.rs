//! What a session is told, and what it asks for.

use std::time::Duration;

use bus_wire::sasl::cookie::{Cookie, CookieChallenge};
use bus_wire::{Fd, Guid, MatchRule, Message};
use bytes::Bytes;

use super::fault::{Cause, Fate, LinkError};

/// A call, signal or reply that was handed to the session. Chosen by the driver, rising, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// A stream of signals. Chosen by the driver, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// A handle on a name of our own. Chosen by the driver, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameId(pub u64);

/// A watch on who owns a name. Chosen by the driver, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub u64);

/// Something has happened. The time comes beside it.
#[derive(Debug)]
pub enum Event {
    /// The session begins.
    Start,
    /// A handle asks for something.
    Command(Command),
    /// The handler's answer to [`Action::Link`], where one [is asked](super::Config::asks).
    Decided(Decision),
    /// The link that [`Action::Dial`] asked for is there, and nothing was written to it.
    Connected {
        /// Of the action.
        attempt: u64,
        /// Whether the transport passes file descriptors.
        fds: bool,
        /// What the address says that the bus's GUID is; looked at for the first link only.
        guid: Option<Guid>,
    },
    /// There is no link to be had.
    DialFailed {
        /// Of the action.
        attempt: u64,
        /// Why.
        error: LinkError,
    },
    /// Bytes came over the link, and file descriptors with them, which are the session's from now on: it hands each out
    /// again, in an action, exactly once.
    Received {
        /// Not empty.
        bytes: Bytes,
        /// In order.
        fds: Vec<Fd>,
    },
    /// So many bytes of [`Session::next_write`](super::Session::next_write) were taken by the link.
    Sent {
        /// Not zero, not more than are queued.
        bytes: u64,
    },
    /// The link is gone.
    Lost(LinkError),
    /// Time has passed: [`Session::deadline`](super::Session::deadline) has come.
    Time,
    /// The cookie that [`Action::Cookie`] asked for.
    Cookie {
        /// Of the action.
        attempt: u64,
        /// `None` where it is not there, or cannot be trusted.
        cookie: Option<Cookie>,
        /// Bytes that nobody can guess.
        random: [u8; 16],
    },
    /// The socket's path was made anew: it is worth while to try at once.
    SocketAppeared,
}

/// A message to be sent, with its serial still to be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// A whole valid message; the session writes its serial, and nothing else.
    pub bytes: Vec<u8>,
    /// Its DESTINATION.
    pub destination: Option<Box<str>>,
    /// In which epoch a unique destination was learnt, where that is known.
    pub epoch: Option<u64>,
    /// Its file descriptors; the session hands each out in [`Action::CloseFds`].
    pub fds: Vec<Fd>,
}

/// How a call is to be treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallOptions {
    /// Whether a reply is to be waited for. Otherwise the call has ended when it was written.
    pub expects_reply: bool,
    /// For how long, through outages too. `None`: for ever.
    pub timeout: Option<Duration>,
    /// It may be sent again where it is not known whether it ran.
    pub idempotent: bool,
    /// What becomes of it where there is no bus.
    pub while_down: WhileDown,
}

/// What becomes of a call that is made while there is no bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WhileDown {
    /// It waits for the bus, until its deadline.
    #[default]
    Wait,
    /// It fails at once, with [`Fate::NotSent`].
    FailFast,
    /// For the signal `PropertiesChanged` of the specification's: it ends at once, and when the bus is back one such signal of
    /// each interface of an object names all properties that have changed, without values. All else fails at once.
    Invalidate,
}

/// What a handle asks for.
#[derive(Debug)]
pub enum Command {
    /// Send this. Ends in exactly one [`Action::Ended`], unless it is abandoned.
    Send {
        /// Its number, greater than all before.
        call: CallId,
        /// What to send.
        message: Outgoing,
        /// How.
        options: CallOptions,
    },
    /// Nobody waits for that call any more. If it was not sent it will not be; no action tells of its end.
    Abandon(CallId),
    /// Answer a call that came in. Dropped where the link it came over is gone.
    Reply {
        /// Of [`Action::Incoming`].
        link: u64,
        /// What to send.
        message: Outgoing,
    },
    /// Signals that match the rule go to this stream, until it is dropped.
    Subscribe {
        /// Its number.
        stream: StreamId,
        /// The rule; its type is `signal`.
        rule: Box<MatchRule>,
    },
    /// The stream is gone.
    Unsubscribe(StreamId),
    /// Own a name, until the handle is dropped.
    OwnName {
        /// The handle.
        handle: NameId,
        /// A valid well-known name.
        name: Box<str>,
        /// Flags of RequestName.
        flags: NameFlags,
    },
    /// The handle is gone.
    DropName(NameId),
    /// Tell who owns a name, now and whenever that changes.
    Watch {
        /// The watch.
        watch: WatchId,
        /// A valid bus name.
        name: Box<str>,
    },
    /// The watch is gone.
    Unwatch(WatchId),
    /// End this call when all of these names have an owner.
    WaitForNames {
        /// Its number, greater than all before.
        call: CallId,
        /// Valid well-known names.
        names: Vec<Box<str>>,
        /// For how long. `None`: for ever.
        timeout: Option<Duration>,
    },
    /// Drop the link, if there is one, and try at once to have another.
    Reconnect,
    /// The end: nothing is to be sent any more.
    Close,
}

/// How a name is asked for (specification, "org.freedesktop.DBus.RequestName"). Always with DO_NOT_QUEUE unless `queue`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NameFlags {
    /// ALLOW_REPLACEMENT.
    pub allow_replacement: bool,
    /// REPLACE_EXISTING; the first time only: in replay it would take the name from whoever has replaced us.
    pub replace_existing: bool,
    /// Wait in the name's queue.
    pub queue: bool,
}

/// What a [`LinkEvent`] is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Decision {
    /// Connect again, at once or when the backoff says, and replay what is in the ledger.
    #[default]
    Replay,
    /// The same, but replay nothing: streams and names stay silent until the next link that replays.
    Bare,
    /// As [`Replay`](Self::Replay), but try only after so long.
    Wait(Duration),
    /// Close the connection.
    GiveUp,
}

/// What became of the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// It was lost.
    Lost(LinkError),
    /// An attempt has failed, since the last link the so-manieth.
    Retry(u32, LinkError),
    /// There is one again, and the replay is over.
    Back {
        /// Whether it is the bus from before.
        same_bus: bool,
        /// What it refused of the replay.
        failed: Vec<Refusal>,
    },
}

/// Something that the bus refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the bus refused {what}: {name}: {text}")]
pub struct Refusal {
    /// A match rule's text, or a name.
    pub what: Box<str>,
    /// The name of the error.
    pub name: Box<str>,
    /// What the bus says about it.
    pub text: Box<str>,
}

/// Whether the bus can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// There is no link; another is tried for.
    Down,
    /// All is as it should be.
    Up,
    /// The link's session is being resumed by the transport: what is sent waits.
    Parked,
    /// For good.
    Closed,
}

/// How a call ended.
#[derive(Debug)]
pub enum Outcome {
    /// With this reply: a return or an error.
    Reply {
        /// The reply.
        message: Message,
        /// Its descriptors, which are the receiver's.
        fds: Vec<Fd>,
    },
    /// It needed no reply, and was written; or what it waited for has come.
    Done,
    /// It failed here.
    Failed {
        /// Why.
        cause: Cause,
        /// What became of it.
        fate: Fate,
    },
}

/// What a stream was not given.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Missed {
    /// All that was sent while there was no link.
    Outage {
        /// Whether the bus is the one from before.
        same_bus: bool,
    },
    /// So many signals: the stream was not read fast enough.
    Lagged {
        /// How many.
        count: u64,
    },
    /// All from now on: the rule names a unique name of a bus that is gone. The stream ends.
    Epoch,
    /// All until the next replay, which tries again: the bus does not take the rule.
    Refused(Refusal),
}

/// How it stands with a name that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameState {
    /// The bus was not asked yet, or has not answered; or there is no bus.
    Pending,
    /// It is ours.
    Owned,
    /// It is another's; we are in its queue.
    Queued,
    /// It is another's.
    Taken,
    /// It was ours and is another's now.
    Lost,
    /// The bus does not let us have it.
    Refused(Refusal),
}

/// A change of a name's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerChange {
    /// The unique name before.
    pub old: Option<Box<str>>,
    /// The unique name now.
    pub new: Option<Box<str>>,
    /// How it is known.
    pub how: Known,
    /// The epoch in which the new owner has its unique name.
    pub epoch: u64,
}

/// How a change of owner is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Known {
    /// It is the state in which the watch found it.
    First,
    /// The bus said so.
    Told,
    /// It must have happened while there was no link.
    Inferred,
}

/// What the driver is to do, in order.
#[derive(Debug)]
pub enum Action {
    /// Connect, and answer with [`Event::Connected`] or [`Event::DialFailed`]. Whatever came of an earlier attempt is void.
    Dial {
        /// Counts all attempts.
        attempt: u64,
    },
    /// Look a cookie up in the user's keyring, and answer with [`Event::Cookie`].
    Cookie {
        /// Of the link that it is for.
        attempt: u64,
        /// Which cookie.
        challenge: CookieChallenge,
    },
    /// Close the link.
    HangUp,
    /// A call has ended.
    Ended {
        /// Which.
        call: CallId,
        /// How.
        outcome: Outcome,
    },
    /// A signal for these streams, which is never empty.
    Signal {
        /// In no order.
        streams: Vec<StreamId>,
        /// The signal.
        message: Message,
        /// Its descriptors, which are the receivers'.
        fds: Vec<Fd>,
        /// In which epoch it was sent.
        epoch: u64,
    },
    /// The bus has taken the stream's rule: nothing is missed from now on.
    Ready(StreamId),
    /// The stream missed something.
    Missed {
        /// Which.
        stream: StreamId,
        /// What.
        missed: Missed,
    },
    /// The stream has ended; no command is needed.
    StreamEnded(StreamId),
    /// A call to one of our objects; to be answered by [`Command::Reply`].
    Incoming {
        /// The call.
        message: Message,
        /// Its descriptors, which are the receiver's.
        fds: Vec<Fd>,
        /// Over which link it came.
        link: u64,
        /// In which epoch its sender has its unique name.
        epoch: u64,
    },
    /// It stands so with a name of ours.
    NameState {
        /// Which handle.
        handle: NameId,
        /// How.
        state: NameState,
    },
    /// A watched name has another owner.
    OwnerChanged {
        /// Which watch.
        watch: WatchId,
        /// The change.
        change: OwnerChange,
    },
    /// The state of the connection is another.
    State(State),
    /// To be told to the handler; where one [is asked](super::Config::asks), to be answered with [`Event::Decided`].
    Link(LinkEvent),
    /// The connection is closed for good; the error says why, unless that was asked for.
    Closed(Option<LinkError>),
    /// Close these.
    CloseFds(Vec<Fd>),
}
