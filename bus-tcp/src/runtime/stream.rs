//! A session as a program sees it: a stream.

use super::engine::{Ended, Engine};
use super::events::{Counters, Event, Stats};
use crate::moment::Moment;
use crate::resume::SessionId;
use crate::session::Ending;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A byte stream that outlives its connections. Reading and writing just wait while there is none.
///
/// `shutdown` ends this side's stream, and returns when the other side has all of it. A session that is dropped before that
/// is over at once, for both sides; what was not acknowledged may be lost.
///
/// A program that exits as soon as it has read the last byte takes its last acknowledgements along, and the other side learns of
/// the end when the window is over. Wait until [`Watch::event`] gives None.
///
/// Errors of reading and writing are [`SessionLost`] inside an [`io::Error`] of kind `ConnectionAborted`: nothing but the end of
/// the session is an error.
#[derive(Debug)]
pub struct Session {
    handle: Arc<Handle>,
}

/// Tells what happens to a session.
#[derive(Clone, Debug)]
pub struct Watch {
    engine: Arc<Engine>,
    id: SessionId,
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct Handle {
    watch: Watch,
    peer: Option<Arc<str>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.watch.engine.lock().drop_handle(self.watch.id);
    }
}

/// The session is over, and not all that was written is known to have arrived.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SessionLost {
    /// How it ended. None: it was saved, or its listener is gone.
    pub ending: Option<Ending>,
}

impl fmt::Display for SessionLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ending {
            Some(Ending {
                reason,
                by,
                taken: Some(taken),
                produced,
            }) => {
                write!(
                    f,
                    "session lost: {reason:?} (by {by:?}), {taken} of {produced} bytes were taken"
                )
            }
            Some(Ending {
                reason,
                by,
                taken: None,
                ..
            }) => {
                write!(
                    f,
                    "session lost: {reason:?} (by {by:?}), nobody knows what was taken"
                )
            }
            None => f.write_str("session moved elsewhere"),
        }
    }
}

impl std::error::Error for SessionLost {}

impl From<Ended> for io::Error {
    fn from(ended: Ended) -> Self {
        Self::new(io::ErrorKind::ConnectionAborted, SessionLost { ending: ended.0 })
    }
}

impl Session {
    pub(super) fn new(engine: Arc<Engine>, id: SessionId, peer: Option<Arc<str>>) -> Self {
        let counters = engine.lock().counters(id);
        Self {
            handle: Arc::new(Handle {
                watch: Watch { engine, id, counters },
                peer,
            }),
        }
    }

    fn watch_ref(&self) -> &Watch {
        &self.handle.watch
    }

    /// Who is at the other end, as the listener's door knows it: [`Who`](crate::carrier::Who). None at a client.
    #[must_use]
    pub fn peer(&self) -> Option<&str> {
        self.handle.peer.as_deref()
    }

    /// Its name. None: a client that has not been welcomed.
    #[must_use]
    pub fn id(&self) -> Option<SessionId> {
        self.watch_ref()
            .engine
            .lock()
            .core
            .session(self.watch_ref().id)?
            .id()
    }

    /// Something that tells what happens, and keeps nothing alive.
    #[must_use]
    pub fn watch(&self) -> Watch {
        self.watch_ref().clone()
    }

    /// Its numbers.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.watch_ref().stats()
    }

    /// Until when a client may act on what the session stands for: see
    /// [`session::Session::valid_until`](crate::session::Session::valid_until).
    #[must_use]
    pub fn valid_until(&self) -> Option<Moment> {
        let state = self.watch_ref().engine.lock();
        state
            .core
            .session(self.watch_ref().id)
            .and_then(crate::session::Session::valid_until)
    }

    /// Whether a client's place may be somebody else's by now.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        let state = self.watch_ref().engine.lock();
        let now = super::clock::now();
        state
            .core
            .session(self.watch_ref().id)
            .is_none_or(|session| session.is_fenced(now))
    }

    /// All that was read up to this offset is safe with the program: for listeners whose
    /// [`manual_commit`](super::ListenOptions::manual_commit) is set.
    pub fn commit(&self, upto: u64) {
        self.watch_ref().engine.lock().commit(self.watch_ref().id, upto);
    }

    /// Tries to connect now, because the network has changed.
    pub fn connect_now(&self) {
        let mut state = self.watch_ref().engine.lock();
        if let super::core::Core::Client(session) = &mut state.core {
            session.connect_now(super::clock::now());
        }
        state.carry_on();
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.watch_ref().engine
    }
}

impl Watch {
    /// The next thing that happens. None after the last.
    pub async fn event(&self) -> Option<Event> {
        poll_fn(|cx| self.engine.lock().poll_event(self.id, cx)).await
    }

    /// Its numbers.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.engine.lock().stats(self.id, self.counters.stats())
    }
}

impl AsyncRead for Session {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Watch { engine, id, .. } = self.watch_ref();
        Poll::Ready(Ok(ready!(engine.lock().poll_read(*id, cx, buf))?))
    }
}

impl AsyncWrite for Session {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Watch { engine, id, .. } = self.watch_ref();
        Poll::Ready(Ok(ready!(engine.lock().poll_write(*id, cx, bytes))?))
    }

    /// What was written is kept until the other side has it: there is nothing to wait for.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Watch { engine, id, .. } = self.watch_ref();
        Poll::Ready(Ok(ready!(engine.lock().poll_close(*id, cx))?))
    }
}
