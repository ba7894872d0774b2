//! A call: made when it is awaited, with what was said about it before.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bus_wire::{DecodeOwned, MessageType};

use crate::error::Remote;
use crate::session::{CallOptions, WhileDown};
use crate::shared::{Handle, Parcel, Request, Slot};
use crate::wait::wait;
use crate::{Error, Message};

/// A call that is made when it is awaited, or waited for.
///
/// Its arguments are encoded already. Dropped before that, it is not made; dropped while it waits for the bus, it is not sent;
/// dropped later, its reply is thrown away.
///
/// It ends with the reply, or with an [`Error`]:
///
/// - `Remote`: with an error's name, from whoever was called or from the bus; it ran, or was refused there;
/// - `Local`: it failed on this side or on the way; [`Error::fate`] says whether it may have run;
/// - `Decode`: it ran, and the reply is of another type than `R`;
/// - `Encode`, `Name`: the arguments, or a name or path, cannot be sent; it was not made;
/// - `WouldDeadlock`, `Forked`: it was not made.
#[must_use = "a call is made when it is awaited, waited for, or detached"]
pub struct Call<R> {
    what: What<R>,
    options: CallOptions,
    read: fn(Option<Message>) -> Result<R, Error>,
}

enum What<R> {
    Ready(Result<R, Error>),
    Message(Handle, Parcel),
    Names(Handle, Vec<Box<str>>),
}

impl<R> Call<R> {
    pub(crate) fn message(
        handle: Handle,
        parcel: Parcel,
        expects_reply: bool,
        read: fn(Option<Message>) -> Result<R, Error>,
    ) -> Self {
        let options = CallOptions {
            expects_reply,
            timeout: handle.shared().timeout,
            idempotent: false,
            while_down: WhileDown::Wait,
        };
        Self {
            what: What::Message(handle, parcel),
            options,
            read,
        }
    }

    pub(crate) fn names(
        handle: Handle,
        names: Vec<Box<str>>,
        read: fn(Option<Message>) -> Result<R, Error>,
    ) -> Self {
        Self {
            what: What::Names(handle, names),
            options: no_options(),
            read,
        }
    }

    /// A call whose end is known: for mocks.
    pub fn ready(result: Result<R, Error>) -> Self {
        Self {
            what: What::Ready(result),
            options: no_options(),
            read: |_| Err(Error::WouldDeadlock),
        }
    }

    /// It fails if there is no reply after so long: through outages, and while it waits for the bus. 25 s, if neither this nor
    /// [`Builder::timeout`](crate::Builder::timeout) says anything else; the error is
    /// [`Cause::Deadline`](crate::Cause), its fate whether it was sent by then.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout);
        self
    }

    /// It waits as long as it takes: for calls that ask a human.
    pub fn no_timeout(mut self) -> Self {
        self.options.timeout = None;
        self
    }

    /// It does no harm to run it twice: where the link is lost and it is not known whether it ran, it is sent again.
    pub fn idempotent(mut self) -> Self {
        self.options.idempotent = true;
        self
    }

    /// What becomes of it while there is no bus.
    pub fn while_down(mut self, while_down: WhileDown) -> Self {
        self.options.while_down = while_down;
        self
    }

    /// Waits for the end on this thread.
    ///
    /// # Errors
    /// As awaiting it; and [`Error::WouldDeadlock`] where the driver could not run meanwhile.
    pub fn wait(self) -> Result<R, Error> {
        let is_task = match self.what {
            What::Ready(result) => return result,
            What::Message(ref handle, _) | What::Names(ref handle, _) => handle.shared().is_task,
        };
        wait(is_task, self.into_future()).unwrap_or(Err(Error::WouldDeadlock))
    }

    /// Makes the call, and does not wait for it.
    ///
    /// # Errors
    /// The connection is closed, or another process's.
    pub fn detach(self) -> Result<(), Error> {
        match self.what {
            What::Ready(result) => result.map(|_| ()),
            What::Names(..) => Ok(()),
            What::Message(handle, parcel) => handle.shared().push(Request::Detached(parcel, self.options)),
        }
    }
}

fn no_options() -> CallOptions {
    CallOptions {
        expects_reply: true,
        timeout: None,
        idempotent: true,
        while_down: WhileDown::Wait,
    }
}

impl<R> fmt::Debug for Call<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<R> IntoFuture for Call<R> {
    type Output = Result<R, Error>;
    type IntoFuture = CallFuture<R>;

    fn into_future(self) -> CallFuture<R> {
        let state = match self.what {
            What::Ready(result) => CallState::Ended(result),
            What::Message(handle, parcel) => begin(handle, |slot| Request::Call(slot, parcel, self.options)),
            What::Names(handle, names) => {
                let timeout = self.options.timeout;
                begin(handle, |slot| Request::WaitForNames(slot, names, timeout))
            }
        };
        CallFuture {
            state,
            read: self.read,
        }
    }
}

fn begin<R>(handle: Handle, request: impl FnOnce(Arc<Slot>) -> Request) -> CallState<R> {
    let slot = Arc::new(Slot::new(handle.shared()));
    match handle.shared().push(request(slot.clone())) {
        Ok(()) => CallState::Open(handle, slot),
        Err(error) => CallState::Ended(Err(error)),
    }
}

/// A call that is being made.
#[must_use = "futures do nothing unless polled"]
pub struct CallFuture<R> {
    state: CallState<R>,
    read: fn(Option<Message>) -> Result<R, Error>,
}

enum CallState<R> {
    Open(Handle, Arc<Slot>),
    Ended(Result<R, Error>),
    Over,
}

impl<R> fmt::Debug for CallFuture<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallFuture").finish_non_exhaustive()
    }
}

/// Nothing in it is pinned.
impl<R> Unpin for CallFuture<R> {}

impl<R> Future for CallFuture<R> {
    type Output = Result<R, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let CallState::Open(_, slot) = &self.state {
            let Poll::Ready(end) = slot.poll(context) else {
                return Poll::Pending;
            };
            self.state = CallState::Ended(end.and_then(self.read));
        }
        match std::mem::replace(&mut self.state, CallState::Over) {
            CallState::Ended(result) => Poll::Ready(result),
            CallState::Open(..) | CallState::Over => Poll::Pending,
        }
    }
}

impl<R> Drop for CallFuture<R> {
    fn drop(&mut self) {
        if let CallState::Open(handle, slot) = &self.state {
            let _ = handle.shared().push(Request::Abandon(slot.clone()));
        }
    }
}

/// The reply's body.
pub(crate) fn read_reply<R: DecodeOwned>(message: Option<Message>) -> Result<R, Error> {
    Ok(read_message(message)?.decode()?)
}

/// The reply.
pub(crate) fn read_message(message: Option<Message>) -> Result<Message, Error> {
    let Some(message) = message else {
        return Err(Error::WouldDeadlock);
    };
    if message.message_type() == MessageType::Error {
        return Err(Error::Remote(Remote::new(message)));
    }
    Ok(message)
}

/// There is no reply.
pub(crate) fn read_nothing(message: Option<Message>) -> Result<(), Error> {
    match message {
        Some(message) => read_message(Some(message)).map(|_| ()),
        None => Ok(()),
    }
}
