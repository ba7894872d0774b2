//! What handles and their driver share: a queue of requests, and the places where answers are put.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bus_wire::MatchRule;
use bus_wire::sasl::cookie::Cookie;

use crate::driver::Dialled;
use crate::object::Tree;
use crate::session::{
    CallOptions, Inbox, LinkError, Missed, NameFlags, NameId, NameState, OwnerChange, Popped, State,
    StreamId, WatchId,
};
use crate::stream::{Signal, States};
use crate::wait::Handling;
use crate::{Error, Message};

/// Of one connection.
pub(crate) struct Shared {
    requests: Mutex<Requests>,
    /// Wakes the driver.
    wake: Box<dyn Fn() + Send + Sync>,
    /// The driver is a task of a runtime's.
    pub(crate) is_task: bool,
    /// The process that the driver is in.
    process: u32,
    handles: AtomicUsize,
    next: AtomicU64,
    standing: Mutex<Standing>,
    pub(crate) objects: Mutex<Tree>,
    pub(crate) timeout: Option<Duration>,
    /// Of the first link: how it ended.
    pub(crate) first: OnceLock<Result<(), LinkError>>,
}

#[derive(Default)]
struct Requests {
    queue: VecDeque<Request>,
    /// The driver was woken and has not looked yet.
    is_woken: bool,
    is_over: bool,
}

/// How the connection stands, for whoever asks.
struct Standing {
    state: State,
    unique_name: Option<Box<str>>,
    watchers: Vec<Arc<Queue<State, ()>>>,
    first: Vec<Waker>,
}

/// A message to be sent, with descriptors that are open still.
pub(crate) struct Parcel {
    pub(crate) bytes: Vec<u8>,
    pub(crate) destination: Option<Box<str>>,
    pub(crate) epoch: Option<u64>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// What a handle wants of the driver.
pub(crate) enum Request {
    Call(Arc<Slot>, Parcel, CallOptions),
    /// Nobody waits for it.
    Detached(Parcel, CallOptions),
    Abandon(Arc<Slot>),
    WaitForNames(Arc<Slot>, Vec<Box<str>>, Option<Duration>),
    Subscribe(StreamId, Box<MatchRule>, Arc<Queue<Signal, Missed>>),
    Unsubscribe(StreamId),
    OwnName(NameId, Box<str>, NameFlags, Arc<Queue<NameState, ()>>),
    DropName(NameId),
    Watch(WatchId, Box<str>, Arc<Queue<OwnerChange, ()>>),
    Unwatch(WatchId),
    Reply(u64, Parcel),
    Dialled(u64, Dialled),
    /// What came of looking a cookie up.
    Cookie(u64, Option<Cookie>),
    /// The bus's socket was made anew, or its directory is gone.
    SocketAppeared,
    Reconnect,
    Close,
}

impl Shared {
    pub(crate) fn new(timeout: Option<Duration>, is_task: bool, wake: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            requests: Mutex::default(),
            wake,
            is_task,
            process: std::process::id(),
            handles: AtomicUsize::new(0),
            next: AtomicU64::new(1),
            standing: Mutex::new(Standing {
                state: State::Down,
                unique_name: None,
                watchers: Vec::new(),
                first: Vec::new(),
            }),
            objects: Mutex::default(),
            timeout,
            first: OnceLock::new(),
        }
    }

    /// Tells it from all others that there are.
    pub(crate) fn number(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }

    /// Tells the driver.
    ///
    /// # Errors
    /// It is another process's, or has ended.
    pub(crate) fn push(self: &Arc<Self>, request: Request) -> Result<(), Error> {
        if std::process::id() != self.process {
            return Err(Error::Forked);
        }
        let mut requests = lock(&self.requests);
        if requests.is_over {
            drop(requests);
            let (cause, fate) = (crate::Cause::Closed, crate::Fate::NotSent);
            return Err(Error::local(cause, fate, self));
        }
        requests.queue.push_back(request);
        let is_first = !std::mem::replace(&mut requests.is_woken, true);
        drop(requests);
        if is_first {
            (self.wake)();
        }
        Ok(())
    }

    /// Wakes the driver, to have a look at handlers.
    pub(crate) fn wake(&self) {
        let is_first = !std::mem::replace(&mut lock(&self.requests).is_woken, true);
        if is_first {
            (self.wake)();
        }
    }

    /// All that was asked for since the last time. To be put back, empty, for its memory.
    pub(crate) fn take(&self, into: &mut VecDeque<Request>) {
        let mut requests = lock(&self.requests);
        requests.is_woken = false;
        std::mem::swap(&mut requests.queue, into);
    }

    /// The driver ends: nothing is taken any more. What was asked for last.
    pub(crate) fn end(&self) -> VecDeque<Request> {
        let mut requests = lock(&self.requests);
        requests.is_over = true;
        std::mem::take(&mut requests.queue)
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn state(&self) -> State {
        lock(&self.standing).state
    }

    pub(crate) fn unique_name(&self) -> Option<Box<str>> {
        lock(&self.standing).unique_name.clone()
    }

    /// The driver has another state.
    pub(crate) fn set_state(&self, state: State, unique_name: Option<&str>) {
        let mut standing = lock(&self.standing);
        standing.state = state;
        standing.unique_name = unique_name.map(Into::into);
        standing.watchers.retain(|watcher| Arc::strong_count(watcher) > 1);
        for watcher in &standing.watchers {
            watcher.push_latest(state, 0);
            if state == State::Closed {
                watcher.end();
            }
        }
    }

    /// The first link is there, or never will be.
    pub(crate) fn set_first(&self, result: Result<(), LinkError>) {
        if self.first.set(result).is_ok() {
            let wakers = std::mem::take(&mut lock(&self.standing).first);
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    pub(crate) fn poll_first(&self, context: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let mut standing = lock(&self.standing);
        if let Some(result) = self.first.get() {
            return Poll::Ready(result.clone());
        }
        standing.first.push(context.waker().clone());
        Poll::Pending
    }

    pub(crate) fn states(&self) -> States {
        let queue = Arc::new(Queue::new(64, 64));
        let mut standing = lock(&self.standing);
        queue.push(standing.state, 0);
        if standing.state == State::Closed {
            queue.end();
        }
        standing.watchers.push(queue.clone());
        States::new(queue, self.is_task)
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// What keeps a connection open. With the last of them it is closed.
#[derive(Debug)]
pub(crate) struct Handle(Arc<Shared>);

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        shared.handles.fetch_add(1, Ordering::Relaxed);
        Self(shared)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        Self::new(self.0.clone())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.0.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _ = self.0.push(Request::Close);
        }
    }
}

/// Where the end of a call is put.
#[derive(Default)]
pub(crate) struct Slot {
    state: Mutex<SlotState>,
    /// The driver's number for it, once it has one.
    pub(crate) id: AtomicU64,
    /// The handler of the same connection that made the call.
    pub(crate) by: Option<u64>,
}

#[derive(Default)]
struct SlotState {
    end: Option<Result<Option<Message>, Error>>,
    waker: Option<Waker>,
}

impl Slot {
    /// Of a call over this connection that is made now.
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self {
            by: Handling::of(shared.number()),
            ..Self::default()
        }
    }

    /// The call has ended: with a reply, or without one that was needed, or in failure.
    pub(crate) fn end(&self, end: Result<Option<Message>, Error>) {
        let mut state = lock(&self.state);
        state.end = Some(end);
        if let Some(waker) = state.waker.take() {
            drop(state);
            waker.wake();
        }
    }

    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<Result<Option<Message>, Error>> {
        let mut state = lock(&self.state);
        if let Some(end) = state.end.take() {
            return Poll::Ready(end);
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// What waits for one reader.
pub(crate) struct Queue<T, N> {
    state: Mutex<(Inbox<T, N>, Option<Waker>)>,
}

impl<T, N> std::fmt::Debug for Queue<T, N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl<T, N> Queue<T, N> {
    pub(crate) fn new(most: usize, most_bytes: usize) -> Self {
        Self {
            state: Mutex::new((Inbox::new(most, most_bytes), None)),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Inbox<T, N>)) {
        let mut state = lock(&self.state);
        change(&mut state.0);
        if let Some(waker) = state.1.take() {
            drop(state);
            waker.wake();
        }
    }

    pub(crate) fn push(&self, item: T, bytes: usize) {
        self.change(|inbox| {
            // What has no room is counted.
            let _ = inbox.push(item, bytes);
        });
    }

    /// Where nobody reads, the last ones stay.
    pub(crate) fn push_latest(&self, item: T, bytes: usize) {
        self.change(|inbox| inbox.push_latest(item, bytes));
    }

    pub(crate) fn note(&self, note: N, merge: impl FnOnce(&mut N, &N) -> bool) {
        self.change(|inbox| inbox.note(note, merge));
    }

    pub(crate) fn end(&self) {
        self.change(Inbox::end);
    }

    pub(crate) fn try_pop(&self) -> Popped<T, N> {
        lock(&self.state).0.pop()
    }

    pub(crate) fn poll_pop(&self, context: &mut Context<'_>) -> Poll<Popped<T, N>> {
        let mut state = lock(&self.state);
        let popped = state.0.pop();
        if matches!(popped, Popped::Empty) {
            state.1 = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(popped)
    }
}

/// Nothing that can panic is done under a lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The queues of the driver's, by number.
#[derive(Default)]
pub(crate) struct Queues {
    pub(crate) streams: BTreeMap<StreamId, Arc<Queue<Signal, Missed>>>,
    pub(crate) names: BTreeMap<NameId, Arc<Queue<NameState, ()>>>,
    pub(crate) watches: BTreeMap<WatchId, Arc<Queue<OwnerChange, ()>>>,
}

impl Queues {
    pub(crate) fn end(&mut self) {
        self.streams.values().for_each(|queue| queue.end());
        self.names.values().for_each(|queue| queue.end());
        self.watches.values().for_each(|queue| queue.end());
    }
}
