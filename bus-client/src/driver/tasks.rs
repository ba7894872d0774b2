//! Handlers at work. They start in the order in which their calls came, and go on as they can, on the driver.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use super::lanes::{Doubt, LaneId, Lanes, Turn};
use crate::Message;
use crate::object::{BoxFuture, Incoming, Interface, Reply, WOULD_DEADLOCK};
use crate::session::CallId;
use crate::shared::{Request, Shared, lock};
use crate::wait::Handling;

/// So many calls are worked on at a time, or wait for that; more are refused.
const MOST: usize = 10_000;

/// So often in one turn are those looked at that have become ready in it.
const ROUNDS: usize = 64;

pub(super) struct Tasks {
    shared: Arc<Shared>,
    running: BTreeMap<u64, Task>,
    lanes: Lanes,
    ready: Arc<Mutex<Vec<u64>>>,
    next: u64,
}

struct Task {
    work: Work,
    waker: Waker,
}

enum Work {
    Handler {
        future: BoxFuture<Reply>,
        call: Message,
        link: u64,
        /// Of a serial interface.
        lane: Option<LaneId>,
    },
    /// Whether a call to a serial interface waits for itself.
    Doubt(Doubt),
}

/// What has come of a turn of a task.
enum Ended {
    Handler(Reply),
    Doubt(bool),
}

struct Ready {
    task: u64,
    ready: Arc<Mutex<Vec<u64>>>,
    shared: Arc<Shared>,
}

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        let mut ready = lock(&self.ready);
        if !ready.contains(&self.task) {
            ready.push(self.task);
        }
        drop(ready);
        self.shared.wake();
    }
}

impl Tasks {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            running: BTreeMap::new(),
            lanes: Lanes::default(),
            ready: Arc::default(),
            next: 0,
        }
    }

    /// Starts a handler, which runs as far as it can at once; or has its call wait for its turn.
    pub(super) fn spawn(&mut self, interface: Arc<dyn Interface>, call: Incoming, link: u64) {
        if self.running.len() + self.lanes.waiting() >= MOST {
            let reply = Reply::error(
                "org.freedesktop.DBus.Error.LimitsExceeded",
                "too many calls at a time",
            );
            return self.reply(&call.message, link, reply);
        }
        if !interface.is_serial() {
            let id = self.start(interface, call, link, None);
            return self.poll(id);
        }
        match self.lanes.come(&interface, call, link) {
            Turn::Now(lane, call) => {
                let id = self.start(interface, call, link, Some(lane));
                self.poll(id);
            }
            Turn::Never(call) => self.reply(&call.message, link, would_deadlock()),
            Turn::Later(doubt) => {
                if let Some(doubt) = doubt {
                    let id = self.next_id();
                    self.add(id, Work::Doubt(doubt));
                    self.poll(id);
                }
            }
        }
    }

    fn next_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Calls the handler, whose future is to be polled.
    fn start(
        &mut self,
        interface: Arc<dyn Interface>,
        call: Incoming,
        link: u64,
        lane: Option<LaneId>,
    ) -> u64 {
        let message = call.message.clone();
        let id = self.next_id();
        if let Some(lane) = lane {
            self.lanes.begin(lane, interface.clone(), id);
        }
        let handling = Handling::begin(self.shared.number(), id);
        let started = catch_unwind(AssertUnwindSafe(|| interface.dispatch(call)));
        drop(handling);
        let future = started.unwrap_or_else(|_| Box::pin(std::future::ready(panicked())));
        let work = Work::Handler {
            future,
            call: message,
            link,
            lane,
        };
        self.add(id, work);
        id
    }

    fn add(&mut self, id: u64, work: Work) {
        let waker = Waker::from(Arc::new(Ready {
            task: id,
            ready: self.ready.clone(),
            shared: self.shared.clone(),
        }));
        self.running.insert(id, Task { work, waker });
    }

    /// Goes on with those that can. What one turn does not take, the next one does.
    pub(super) fn run(&mut self) {
        for _ in 0..ROUNDS {
            let ready = std::mem::take(&mut *lock(&self.ready));
            if ready.is_empty() {
                return;
            }
            for id in ready {
                self.poll(id);
            }
        }
        self.shared.wake();
    }

    fn poll(&mut self, id: u64) {
        let Some(task) = self.running.get_mut(&id) else {
            return;
        };
        let waker = task.waker.clone();
        let mut context = Context::from_waker(&waker);
        let handling = Handling::begin(self.shared.number(), id);
        let polled = match &mut task.work {
            Work::Handler { future, .. } => {
                let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
                polled
                    .unwrap_or_else(|_| Poll::Ready(panicked()))
                    .map(Ended::Handler)
            }
            Work::Doubt(doubt) => doubt.is_caller.as_mut().poll(&mut context).map(Ended::Doubt),
        };
        drop(handling);
        let Poll::Ready(ended) = polled else { return };
        let Some(task) = self.running.remove(&id) else {
            return;
        };
        match (task.work, ended) {
            (
                Work::Handler {
                    call,
                    link,
                    lane,
                    future,
                },
                Ended::Handler(reply),
            ) => {
                // What it holds goes before the next one starts.
                drop(future);
                self.reply(&call, link, reply);
                if let Some(lane) = lane {
                    self.next_of(lane);
                }
            }
            (Work::Doubt(doubt), Ended::Doubt(true)) => {
                if let Some(waiting) = self.lanes.refuse(doubt.lane, doubt.waiting) {
                    self.reply(&waiting.call.message, waiting.link, would_deadlock());
                }
            }
            (_, _) => {}
        }
    }

    /// The turn of the next call of a serial interface. It is not polled here: any number of them may end at once.
    fn next_of(&mut self, lane: LaneId) {
        if let Some((interface, waiting)) = self.lanes.end(lane) {
            let id = self.start(interface, waiting.call, waiting.link, Some(lane));
            lock(&self.ready).push(id);
            self.shared.wake();
        }
    }

    fn reply(&self, call: &Message, link: u64, reply: Reply) {
        if let Some(parcel) = reply.into_parcel(call) {
            let _ = self.shared.push(Request::Reply(link, parcel));
        }
    }

    /// A handler has made a call.
    pub(super) fn waits(&mut self, task: u64, call: CallId, to: &str) {
        self.lanes.waits(task, call, to);
    }

    /// That call has ended.
    pub(super) fn waits_no_more(&mut self, call: CallId) {
        self.lanes.waits_no_more(call);
    }

    pub(super) fn clear(&mut self) {
        self.running.clear();
        self.lanes = Lanes::default();
    }
}

fn panicked() -> Reply {
    tracing::error!("a handler has panicked");
    Reply::error("org.freedesktop.DBus.Error.Failed", "the handler has panicked")
}

fn would_deadlock() -> Reply {
    Reply::error(
        WOULD_DEADLOCK,
        "the interface runs one call at a time, and the running one waits for the caller",
    )
}
