//! The client's end.

use super::clock;
use super::core::{Core, OURS};
use super::engine::{BUDGET, Engine, random};
use super::line;
use super::stream::Session;
use super::timer::Timer;
use crate::carrier::Dial;
use crate::limits::Terms;
use crate::replay::SavedReplay;
use crate::saved::{Kind, SavedError, decode, encode};
use crate::session::{self, SavedSession, Wish};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// How long one attempt to connect may take, handshake and all.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A session over whatever `dial` connects to. Returns at once: bytes that are written go when there is a connection, and it
/// is tried for ever, until the session is dropped.
///
/// # Errors
/// The system has no timer, or this is called outside a tokio runtime.
pub fn connect(dial: impl Dial, terms: Terms) -> io::Result<Session> {
    let wish = Wish {
        terms,
        incarnation: u64::from_be_bytes(random()),
    };
    let session = session::Session::client(clock::now(), wish, u64::from_be_bytes(random()));
    let engine = Engine::new(Core::Client(Box::new(session)), false, BUDGET);
    start(engine, dial)
}

/// Goes on with a session that another process has saved.
///
/// # Errors
/// These bytes are no saved session, or as [`connect`].
pub fn connect_saved(dial: impl Dial, saved: &[u8]) -> io::Result<Session> {
    let invalid =
        |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    let (saved, replay): (SavedSession, SavedReplay) =
        decode(Kind::Client, saved).map_err(|error| invalid(&error))?;
    let session = session::Session::restore(&saved, clock::now(), u64::from_be_bytes(random()))
        .map_err(|error| invalid(&error))?;
    let engine = Engine::new(Core::Client(Box::new(session)), false, BUDGET);
    engine.lock().restore_stream(OURS, &replay);
    start(engine, dial)
}

impl Session {
    /// Takes the session out of this process, to go on with it in another: from here on nothing is sent or read. Bytes that
    /// came and were not read will come again there. Only a client's; a listener saves all of its own.
    ///
    /// # Errors
    /// It is a listener's, or too large.
    pub fn save(self) -> Result<Vec<u8>, SavedError> {
        let mut state = self.engine().lock();
        state.stop();
        let Core::Client(session) = &state.core else {
            return Err(SavedError::Kind);
        };
        encode(Kind::Client, &(session.save(), state.saved_stream(OURS)))
    }
}

fn start(engine: Arc<Engine>, dial: impl Dial) -> io::Result<Session> {
    let timer = Timer::new()?;
    tokio::spawn(tick(engine.clone(), timer));
    tokio::spawn(keep_connecting(engine.clone(), dial));
    Ok(Session::new(engine, OURS, None))
}

/// Tells the state machine when its time has come.
pub(super) async fn tick(engine: Arc<Engine>, mut timer: Timer) {
    let failed = poll_fn(|cx| {
        loop {
            let mut state = engine.lock();
            if state.stopped {
                return Poll::Ready(Ok(()));
            }
            let Some(at) = state.poll_timer(cx) else {
                return Poll::Pending;
            };
            drop(state);
            match timer.poll(cx, at) {
                Poll::Ready(Ok(())) => {}
                other @ (Poll::Ready(Err(_)) | Poll::Pending) => return other,
            }
        }
    });
    if let Err(error) = failed.await {
        tracing::error!(%error, "no timer any more");
        engine.lock().stop();
    }
}

async fn keep_connecting(engine: Arc<Engine>, mut dial: impl Dial) {
    loop {
        let asked = poll_fn(|cx| {
            let mut state = engine.lock();
            if state.stopped {
                Poll::Ready(None)
            } else {
                state.poll_dial(cx).map(Some)
            }
        });
        let Some(hint) = asked.await else { return };
        match tokio::time::timeout(CONNECT_TIMEOUT, dial.dial(hint.as_deref())).await {
            Ok(Ok(io)) => {
                let binding = io.binding();
                let carrier = engine.lock().attach(None, binding);
                tokio::spawn(line::carry(engine.clone(), carrier, io));
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "no connection");
                engine.lock().connect_failed();
            }
            Err(_) => engine.lock().connect_failed(),
        }
    }
}
