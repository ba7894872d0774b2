//! What comes over time: signals, the state of names and of the connection.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bus_wire::DecodeOwned;
use futures_core::Stream;

use crate::session::{
    Known, Missed, NameFlags, NameId, NameState, OwnerChange, Popped, State, StreamId, WatchId,
};
use crate::shared::{Handle, Queue, Request};
use crate::wait::wait;
use crate::{Error, Message};

/// What a stream of signals yields.
#[derive(Debug, Clone)]
pub enum Event<T> {
    /// A signal.
    Signal(T),
    /// Some are missing here.
    Missed(Missed),
}

/// A signal, and its arguments.
#[derive(Debug, Clone)]
pub struct Signal {
    pub(crate) message: Message,
}

impl Signal {
    /// The whole message.
    pub fn message(&self) -> &Message {
        &self.message
    }
}

impl std::ops::Deref for Signal {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

/// A stream of signals whose arguments are a `T`, or of whole messages. Others that match the rule are left out.
///
/// It goes on over the loss of the bus, with a note where signals are missing. While there is no bus it is silent.
pub struct Signals<T = Signal> {
    handle: Handle,
    id: StreamId,
    queue: Arc<Queue<Signal, Missed>>,
    is_lossy: bool,
    read: fn(Signal) -> Option<T>,
    of: PhantomData<fn() -> T>,
}

impl<T> Signals<T> {
    pub(crate) fn new(
        handle: Handle,
        id: StreamId,
        queue: Arc<Queue<Signal, Missed>>,
        read: fn(Signal) -> Option<T>,
    ) -> Self {
        Self {
            handle,
            id,
            queue,
            is_lossy: false,
            read,
            of: PhantomData,
        }
    }

    /// Without notes of what is missing.
    #[must_use]
    pub fn lossy(mut self) -> Self {
        self.is_lossy = true;
        self
    }

    /// The next event; `None` when the stream has ended: with the connection, or with the bus whose unique name its rule has.
    pub async fn next(&self) -> Option<Event<T>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    /// The next event, waited for on this thread.
    ///
    /// # Errors
    /// [`Error::WouldDeadlock`] where the driver could not run meanwhile.
    pub fn wait_next(&self) -> Result<Option<Event<T>>, Error> {
        wait(self.handle.shared().is_task, self.next()).ok_or(Error::WouldDeadlock)
    }

    /// The next event, if it is there.
    pub fn try_next(&self) -> Option<Event<T>> {
        loop {
            let popped = self.queue.try_pop();
            if matches!(popped, Popped::Empty | Popped::Ended) {
                return None;
            }
            if let Some(event) = self.event(popped) {
                return Some(event);
            }
        }
    }

    /// Ends it. The rule is removed from the bus, if nobody else has it.
    pub fn close(self) {}

    fn poll(&self, context: &mut Context<'_>) -> Poll<Option<Event<T>>> {
        loop {
            match self.queue.poll_pop(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Popped::Ended) => return Poll::Ready(None),
                Poll::Ready(popped) => {
                    if let Some(event) = self.event(popped) {
                        return Poll::Ready(Some(event));
                    }
                }
            }
        }
    }

    fn event(&self, popped: Popped<Signal, Missed>) -> Option<Event<T>> {
        match popped {
            Popped::Item(signal) => (self.read)(signal).map(Event::Signal),
            Popped::Note(_) | Popped::Lagged(_) if self.is_lossy => None,
            Popped::Note(missed) => Some(Event::Missed(missed)),
            Popped::Lagged(count) => Some(Event::Missed(Missed::Lagged { count })),
            Popped::Empty | Popped::Ended => None,
        }
    }
}

/// The arguments of a signal.
pub(crate) fn read_signal<T: DecodeOwned>(signal: Signal) -> Option<T> {
    signal.message.decode().ok()
}

impl<T> fmt::Debug for Signals<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signals").field(&self.id.0).finish()
    }
}

impl<T> Stream for Signals<T> {
    type Item = Event<T>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event<T>>> {
        self.poll(context)
    }
}

impl<T> Drop for Signals<T> {
    fn drop(&mut self) {
        let _ = self.handle.shared().push(Request::Unsubscribe(self.id));
    }
}

/// The next item of a queue without notes.
pub(crate) fn poll_queue<T>(queue: &Queue<T, ()>, context: &mut Context<'_>) -> Poll<Option<T>> {
    loop {
        match queue.poll_pop(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Popped::Item(item)) => return Poll::Ready(Some(item)),
            Poll::Ready(Popped::Ended) => return Poll::Ready(None),
            Poll::Ready(Popped::Note(()) | Popped::Lagged(_) | Popped::Empty) => {}
        }
    }
}

macro_rules! queue_stream {
    ($name:ident, $item:ty, $convert:expr) => {
        impl $name {
            /// The next one; `None` when the connection is closed.
            pub async fn next(&self) -> Option<$item> {
                std::future::poll_fn(|context| poll_queue(&self.queue, context))
                    .await
                    .map($convert)
            }

            /// The next one, waited for on this thread.
            ///
            /// # Errors
            /// [`Error::WouldDeadlock`] where the driver could not run meanwhile.
            pub fn wait_next(&self) -> Result<Option<$item>, Error> {
                wait(self.is_task, self.next()).ok_or(Error::WouldDeadlock)
            }
        }

        impl Stream for $name {
            type Item = $item;

            fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<$item>> {
                poll_queue(&self.queue, context).map(|item| item.map($convert))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}

/// The states of a connection, from the present one on.
pub struct States {
    queue: Arc<Queue<State, ()>>,
    is_task: bool,
}

impl States {
    pub(crate) fn new(queue: Arc<Queue<State, ()>>, is_task: bool) -> Self {
        Self { queue, is_task }
    }
}

queue_stream!(States, State, |state| state);

/// A change of a name's owner, as a [`NameWatch`] tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameChange {
    /// The owner's unique name before.
    pub old: Option<Box<str>>,
    /// The owner's unique name now.
    pub new: Option<Box<str>>,
    /// How it is known.
    pub how: Known,
    /// In which epoch the new owner has its unique name.
    pub epoch: u64,
}

fn name_change(change: OwnerChange) -> NameChange {
    let OwnerChange { old, new, how, epoch } = change;
    NameChange { old, new, how, epoch }
}

/// Who owns a name: the present owner first, and then each change; those in a time without a bus by comparison. Dropped, it is
/// watched no more.
pub struct NameWatch {
    pub(crate) handle: Handle,
    pub(crate) id: WatchId,
    pub(crate) queue: Arc<Queue<OwnerChange, ()>>,
    pub(crate) is_task: bool,
}

queue_stream!(NameWatch, NameChange, name_change);

impl Drop for NameWatch {
    fn drop(&mut self) {
        let _ = self.handle.shared().push(Request::Unwatch(self.id));
    }
}

/// A name that is to be asked for (specification, "org.freedesktop.DBus.RequestName"). It ends with the handle and the first state
/// that the bus tells; while there is no bus it waits, for as long as that takes.
#[derive(Debug)]
#[must_use = "a name is asked for when this is awaited, or waited for"]
pub struct OwnName {
    pub(crate) handle: Handle,
    pub(crate) name: Result<Box<str>, Error>,
    pub(crate) flags: NameFlags,
}

impl OwnName {
    /// Wait in line where it is another's (without DO_NOT_QUEUE).
    pub fn queue(mut self) -> Self {
        self.flags.queue = true;
        self
    }

    /// Take it from whoever has it and lets it be taken (REPLACE_EXISTING). Only now: after an outage it is not taken from those who
    /// have it then.
    pub fn replace(mut self) -> Self {
        self.flags.replace_existing = true;
        self
    }

    /// Others may take it from us (ALLOW_REPLACEMENT).
    pub fn allow_replacement(mut self) -> Self {
        self.flags.allow_replacement = true;
        self
    }

    /// The handle, without waiting for what the bus says.
    ///
    /// # Errors
    /// It is no valid name, or the connection is closed.
    pub fn start(self) -> Result<Name, Error> {
        let name = self.name?;
        let id = NameId(self.handle.shared().next_id());
        let queue = Arc::new(Queue::new(64, 64));
        let request = Request::OwnName(id, name.clone(), self.flags, queue.clone());
        self.handle.shared().push(request)?;
        Ok(Name {
            is_task: self.handle.shared().is_task,
            handle: self.handle,
            id,
            name,
            queue,
        })
    }

    /// Waits on this thread.
    ///
    /// # Errors
    /// [`Error::Name`]: it is no valid name. The connection is closed. [`Error::WouldDeadlock`] where the driver could not run
    /// meanwhile.
    pub fn wait(self) -> Result<(Name, NameState), Error> {
        wait(self.handle.shared().is_task, self.ask()).unwrap_or(Err(Error::WouldDeadlock))
    }

    async fn ask(self) -> Result<(Name, NameState), Error> {
        let shared = self.handle.shared().clone();
        let name = self.start()?;
        loop {
            match name.next().await {
                Some(NameState::Pending) => {}
                Some(state) => return Ok((name, state)),
                None => {
                    return Err(Error::local(crate::Cause::Closed, crate::Fate::NotSent, &shared));
                }
            }
        }
    }
}

impl IntoFuture for OwnName {
    type Output = Result<(Name, NameState), Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.ask())
    }
}

/// A name of our own, and a stream of its states. When it is dropped the name is released (specification,
/// "org.freedesktop.DBus.ReleaseName"). Of those that nobody reads the last 64 stay.
pub struct Name {
    handle: Handle,
    id: NameId,
    name: Box<str>,
    queue: Arc<Queue<NameState, ()>>,
    is_task: bool,
}

queue_stream!(Name, NameState, |state| state);

impl Name {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// Gives it back.
    pub fn release(self) {}
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = self.handle.shared().push(Request::DropName(self.id));
    }
}
