//! Handlers at work. They start in the order in which their calls came, and go on as they can, on the driver.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use crate::Message;
use crate::object::{BoxFuture, Incoming, Interface, Reply};
use crate::shared::{Request, Shared, lock};

/// So many calls are worked on at a time; more are refused.
const MOST: usize = 10_000;

pub(super) struct Tasks {
    shared: Arc<Shared>,
    running: BTreeMap<u64, Task>,
    ready: Arc<Mutex<Vec<u64>>>,
    next: u64,
}

struct Task {
    future: BoxFuture<Reply>,
    waker: Waker,
    call: Message,
    link: u64,
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
            ready: Arc::default(),
            next: 0,
        }
    }

    /// Starts a handler, which runs as far as it can at once.
    pub(super) fn spawn(&mut self, interface: Arc<dyn Interface>, call: Incoming, link: u64) {
        let message = call.message.clone();
        if self.running.len() >= MOST {
            let reply = Reply::error(
                "org.freedesktop.DBus.Error.LimitsExceeded",
                "too many calls at a time",
            );
            return self.reply(&message, link, reply);
        }
        let started = catch_unwind(AssertUnwindSafe(|| interface.dispatch(call)));
        let Ok(future) = started else {
            return self.reply(&message, link, panicked());
        };
        let id = self.next;
        self.next += 1;
        let waker = Waker::from(Arc::new(Ready {
            task: id,
            ready: self.ready.clone(),
            shared: self.shared.clone(),
        }));
        let call = message;
        let task = Task {
            future,
            waker,
            call,
            link,
        };
        self.running.insert(id, task);
        self.poll(id);
    }

    /// Goes on with those that can.
    pub(super) fn run(&mut self) {
        let ready = std::mem::take(&mut *lock(&self.ready));
        for id in ready {
            self.poll(id);
        }
    }

    fn poll(&mut self, id: u64) {
        let Some(task) = self.running.get_mut(&id) else {
            return;
        };
        let waker = task.waker.clone();
        let mut context = Context::from_waker(&waker);
        let polled = catch_unwind(AssertUnwindSafe(|| task.future.as_mut().poll(&mut context)));
        let reply = match polled {
            Ok(Poll::Pending) => return,
            Ok(Poll::Ready(reply)) => reply,
            Err(_) => panicked(),
        };
        if let Some(task) = self.running.remove(&id) {
            self.reply(&task.call, task.link, reply);
        }
    }

    fn reply(&self, call: &Message, link: u64, reply: Reply) {
        if let Some(parcel) = reply.into_parcel(call) {
            let _ = self.shared.push(Request::Reply(link, parcel));
        }
    }

    pub(super) fn clear(&mut self) {
        self.running.clear();
    }
}

fn panicked() -> Reply {
    tracing::error!("a handler has panicked");
    Reply::error("org.freedesktop.DBus.Error.Failed", "the handler has panicked")
}
