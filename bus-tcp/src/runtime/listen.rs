//! The host's end.

use super::clock;
use super::connect::tick;
use super::core::Core;
use super::engine::{BUDGET, Engine, random};
use super::gate::Gate;
use super::line;
use super::stream::Session;
use super::timer::Timer;
use crate::carrier::{Accepted, Door};
use crate::frame::Reason;
use crate::host::{Host, HostConfig, SavedHost};
use crate::limits::{Bounds, OPENING};
use crate::replay::SavedReplay;
use crate::resume::SessionId;
use crate::saved::{Kind, SavedError, decode, encode};
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::AbortHandle;

/// What a listener grants.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Times and credit.
    pub bounds: Bounds,
    /// Bytes that all sessions together keep until they are acknowledged.
    pub budget: u64,
    /// Bytes are acknowledged when the program says so with [`Session::commit`], not when it has read them.
    pub manual_commit: bool,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            bounds: Bounds::default(),
            budget: BUDGET,
            manual_commit: false,
        }
    }
}

/// Hosts sessions.
#[derive(Debug)]
pub struct Listener {
    engine: Arc<Engine>,
    gate: Arc<Mutex<Gate>>,
    doors: Mutex<Vec<AbortHandle>>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.engine.lock().stop();
        let doors = std::mem::take(&mut *self.doors.lock().unwrap_or_else(PoisonError::into_inner));
        doors.iter().for_each(AbortHandle::abort);
    }
}

impl Listener {
    /// A host that nobody can reach yet: [`open`](Self::open) a door.
    ///
    /// # Errors
    /// The system has no timer, or this is called outside a tokio runtime.
    pub fn new(options: ListenOptions) -> io::Result<Self> {
        let mut config = HostConfig::new(u64::from_be_bytes(random()));
        config.bounds = options.bounds;
        let host = Host::new(config, u64::from_be_bytes(random()));
        Self::start(host, options.manual_commit, options.budget)
    }

    /// Goes on with the sessions that another process has saved. Each comes out of [`accept`](Self::accept) once more.
    ///
    /// # Errors
    /// These bytes are no saved listener, or as [`new`](Self::new).
    pub fn restore(saved: &[u8], options: ListenOptions) -> io::Result<Self> {
        let invalid =
            |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
        let (host, streams): (SavedHost, Vec<(SessionId, SavedReplay)>) =
            decode(Kind::Listener, saved).map_err(|error| invalid(&error))?;
        let mut config = HostConfig::new(0);
        config.bounds = options.bounds;
        let host = Host::restore(&host, config, clock::now(), u64::from_be_bytes(random()))
            .map_err(|error| invalid(&error))?;
        let listener = Self::start(host, options.manual_commit, options.budget)?;
        for (id, replay) in &streams {
            listener.engine.lock().restore_stream(*id, replay);
        }
        Ok(listener)
    }

    fn start(host: Host, manual_commit: bool, budget: u64) -> io::Result<Self> {
        let engine = Engine::new(Core::Host(Box::new(host)), manual_commit, budget);
        tokio::spawn(tick(engine.clone(), Timer::new()?));
        Ok(Self {
            engine,
            gate: Arc::new(Mutex::new(Gate::new(clock::now()))),
            doors: Mutex::default(),
        })
    }

    /// Lets in whoever comes through `door` and may. As many doors as there are ways to come: each with its own idea of who is
    /// who. The task ends with the listener, or when it is aborted: sessions go on, and come in through another.
    pub fn open(&self, door: impl Door) -> AbortHandle {
        let (engine, gate) = (self.engine.clone(), self.gate.clone());
        let task = tokio::spawn(accept_all(engine, gate, Arc::new(door))).abort_handle();
        self.doors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(task.clone());
        task
    }

    /// The next session, new or restored. None after [`save`](Self::save).
    pub async fn accept(&self) -> Option<Session> {
        let id = poll_fn(|cx| self.engine.lock().poll_opened(cx)).await?;
        let state = self.engine.lock();
        let Core::Host(host) = &state.core else {
            return None;
        };
        let peer = host.owner(id).cloned();
        drop(state);
        Some(Session::new(self.engine.clone(), id, peer))
    }

    /// Takes all sessions out of this process, to go on with them in another: from here on nothing is sent or read.
    ///
    /// # Errors
    /// They are too large.
    pub fn save(self) -> Result<Vec<u8>, SavedError> {
        let mut state = self.engine.lock();
        state.stop();
        let Core::Host(host) = &state.core else {
            return Err(SavedError::Kind);
        };
        let streams: Vec<_> = host
            .sessions()
            .filter_map(|(session, _)| session.id())
            .map(|id| (id, state.saved_stream(id)))
            .collect();
        encode(Kind::Listener, &(host.save(), streams))
    }

    /// Ends all sessions of identities that are not welcome any more, at once.
    pub fn expel(&self, welcome: impl FnMut(&Arc<str>) -> bool) {
        let mut state = self.engine.lock();
        if let Core::Host(host) = &mut state.core {
            host.expel(welcome);
        }
        state.carry_on();
    }

    /// Ends one session.
    pub fn end(&self, session: &Session, reason: Reason) {
        let mut state = self.engine.lock();
        if let Some(id) = session.id() {
            state.abort(id, reason);
        }
        state.carry_on();
    }

    /// Log lines about whoever was turned away, and how often somebody was.
    #[must_use]
    pub fn logged_and_counted(&self) -> (u64, u64) {
        self.engine.lock().troubles.logged_and_counted()
    }
}

async fn accept_all(engine: Arc<Engine>, gate: Arc<Mutex<Gate>>, door: Arc<impl Door>) {
    loop {
        if engine.lock().stopped {
            return;
        }
        match door.accept().await {
            Ok(accepted) => {
                let from = accepted.from();
                let lock = || gate.lock().unwrap_or_else(PoisonError::into_inner);
                if !lock().enter(from) {
                    let who = from.to_string();
                    engine.lock().troubles.turned_away(
                        clock::now(),
                        Some(&who),
                        &"too many handshakes at once",
                    );
                    continue;
                }
                tokio::spawn(admit(engine.clone(), gate.clone(), door.clone(), accepted));
            }
            Err(error) => {
                // Descriptors or memory are short: whoever waits is let in later.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One connection, from its first byte to its last.
async fn admit<D: Door>(engine: Arc<Engine>, gate: Arc<Mutex<Gate>>, door: Arc<D>, accepted: D::Accepted) {
    let from = accepted.from();
    let lock = || gate.lock().unwrap_or_else(PoisonError::into_inner);
    let admitted = tokio::time::timeout(OPENING, async {
        let ready = door.hear(accepted).await?;
        wait_for_turn(&gate, from).await;
        door.admit(ready).await
    });
    let admitted = admitted
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    lock().leave(from);
    match admitted {
        Ok((io, who)) => {
            lock().welcome(clock::now(), from);
            let binding = io.binding();
            let carrier = engine.lock().attach(Some(who), binding);
            line::carry(engine, carrier, io).await;
        }
        Err(error) => {
            let who = from.to_string();
            engine
                .lock()
                .troubles
                .turned_away(clock::now(), Some(&who), &error);
        }
    }
}

async fn wait_for_turn(gate: &Mutex<Gate>, from: IpAddr) {
    loop {
        let turn = gate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .compute(clock::now(), from);
        match turn {
            Ok(()) => return,
            Err(wait) => tokio::time::sleep(wait).await,
        }
    }
}
