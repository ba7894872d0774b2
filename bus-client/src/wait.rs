//! Waiting for a future without a runtime.

use std::cell::Cell;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

thread_local! {
    /// A driver runs on this thread at the moment: whoever waits here would wait for himself.
    static DRIVES: Cell<bool> = const { Cell::new(false) };
}

thread_local! {
    /// The handler that runs on this thread at the moment: of which connection, and its number.
    static HANDLER: Cell<Option<(usize, u64)>> = const { Cell::new(None) };
}

/// While it exists, this thread runs a handler.
pub(crate) struct Handling(Option<(usize, u64)>);

impl Handling {
    pub(crate) fn begin(connection: usize, task: u64) -> Self {
        Self(HANDLER.replace(Some((connection, task))))
    }

    /// The handler of this connection that runs.
    pub(crate) fn of(connection: usize) -> Option<u64> {
        HANDLER
            .get()
            .filter(|(of, _)| *of == connection)
            .map(|(_, task)| task)
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        HANDLER.set(self.0);
    }
}

/// While it exists, this thread is a driver's.
pub(crate) struct Driving(bool);

impl Driving {
    pub(crate) fn begin() -> Self {
        Self(DRIVES.replace(true))
    }
}

impl Drop for Driving {
    fn drop(&mut self) {
        DRIVES.set(self.0);
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits on this thread; `None` where that would be for ever, as the driver that is waited for runs on it. `is_task`: that driver
/// is a task.
pub(crate) fn wait<T>(is_task: bool, future: impl Future<Output = T>) -> Option<T> {
    if DRIVES.get() {
        return None;
    }
    if !is_task {
        return Some(park_on(future));
    }
    match tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        // The driver may be a task of this very thread.
        Ok(tokio::runtime::RuntimeFlavor::CurrentThread) => None,
        // Other tasks, the driver among them, go on elsewhere meanwhile.
        Ok(_) => Some(tokio::task::block_in_place(|| park_on(future))),
        Err(_) => Some(park_on(future)),
    }
}

pub(crate) fn park_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
