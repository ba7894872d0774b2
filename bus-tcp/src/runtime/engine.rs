//! What a client's tasks, or a host's, share: the state machine, and the bytes that it does not have.
//!
//! Each carrier has a task ([`line`](super::line)), there is one for the timer, and a client has one that connects. The
//! [`Session`](super::Session) that a program holds reads and writes here. Nobody waits while the lock is held.

mod actions;

use super::clock;
use super::core::{Core, OURS};
use super::events::{Counters, Event, Events, Stats};
use super::out::Out;
use crate::frame::Reason;
use crate::host::Identity;
use crate::limits::Budget;
use crate::moment::Moment;
use crate::replay::Replay;
use crate::resume::{Binding, Nonce, SessionId};
use crate::session::{CarrierId, Ending, Session, Transmit};
use bytes::{Buf, Bytes};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use tokio::io::ReadBuf;

/// Bytes that a session keeps at most for the other side to acknowledge; then its writer waits.
pub const REPLAY: usize = 1 << 20;
/// The same for all sessions of a host.
pub const BUDGET: u64 = 256 << 20;
/// Bytes that a session's writer is ahead of its carrier at most, so that both take turns. Shorter turns cost throughput: a
/// receiver that is faster falls asleep between them, and waking it is what costs most.
const UNSENT: usize = 512 * 1024;

#[derive(Debug)]
pub(super) struct Engine {
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) core: Core,
    streams: BTreeMap<SessionId, Stream>,
    lines: BTreeMap<CarrierId, Line>,
    next_carrier: u64,
    budget: Budget,
    /// A writer waits for room in the budget, which others have.
    starved: bool,
    manual_commit: bool,
    /// New sessions that nobody has taken; None: a client, or nobody takes any more.
    opened: Option<VecDeque<SessionId>>,
    accept_waker: Option<Waker>,
    dial: Option<Option<String>>,
    dial_waker: Option<Waker>,
    timer_waker: Option<Waker>,
    armed: Option<Moment>,
    /// The state was taken out, or the program is done: all tasks end.
    pub(super) stopped: bool,
    pub(super) troubles: super::troubles::Troubles,
}

/// What a session's owner has of it.
#[derive(Debug, Default)]
struct Stream {
    replay: Replay,
    inbox: VecDeque<Bytes>,
    /// Offset behind the last byte that was read.
    read: u64,
    finished: bool,
    ending: Option<Ending>,
    holder: Holder,
    reader: Option<Waker>,
    writer: Option<Waker>,
    closer: Option<Waker>,
    events: Events,
    counters: Arc<Counters>,
}

/// ```text
/// Program ──dropped after its end──▶ Nobody ◀──told, fenced or ended──┐
///         ──dropped before it──▶ Leaving ─────────────────────────────┘
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Holder {
    /// A program has a handle.
    #[default]
    Program,
    /// None has. What the stream had finished goes on by itself.
    Nobody,
    /// None has, and the other side has to be told that the session is over: as soon as there is a carrier that serves.
    Leaving,
}

#[derive(Debug, Default)]
struct Line {
    waker: Option<Waker>,
    close: Option<bool>,
}

impl Engine {
    pub(super) fn new(core: Core, manual_commit: bool, budget: u64) -> Arc<Self> {
        let host = matches!(core, Core::Host(_));
        let mut state = State {
            core,
            streams: BTreeMap::new(),
            lines: BTreeMap::new(),
            next_carrier: 0,
            budget: Budget::new(budget),
            starved: false,
            manual_commit,
            opened: host.then(VecDeque::new),
            accept_waker: None,
            dial: None,
            dial_waker: None,
            timer_waker: None,
            armed: None,
            stopped: false,
            troubles: super::troubles::Troubles::default(),
        };
        if !host {
            state.streams.insert(OURS, Stream::default());
        }
        Arc::new(Self {
            state: Mutex::new(state),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked held it between two whole steps or not at all; the state machine itself does not panic.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    /// A carrier: a number for it, and the state machine's first word on it.
    pub(super) fn attach(&mut self, who: Option<Identity>, binding: Option<Binding>) -> CarrierId {
        self.next_carrier += 1;
        let carrier = CarrierId(self.next_carrier);
        self.lines.insert(carrier, Line::default());
        self.core
            .attach(clock::now(), carrier, who, binding, Nonce(random()));
        self.carry_on();
        carrier
    }

    pub(super) fn connect_failed(&mut self) {
        if let Core::Client(session) = &mut self.core {
            session.connect_failed(clock::now());
        }
        self.leave_unknown();
        self.carry_on();
        self.stop_if_over();
    }

    /// These came. What there is to be said to them is asked for afterwards, by whoever read them.
    pub(super) fn received(&mut self, carrier: CarrierId, bytes: Bytes) {
        if self.stopped {
            return;
        }
        self.core.received(clock::now(), carrier, bytes);
        self.carry_on();
    }

    pub(super) fn carrier_lost(&mut self, carrier: CarrierId) {
        self.lines.remove(&carrier);
        self.core.carrier_lost(clock::now(), carrier);
        self.leave_unknown();
        self.carry_on();
        self.stop_if_over();
    }

    /// Whether the carrier has to be closed, after what was taken for it is written or at once.
    pub(super) fn closing(&mut self, carrier: CarrierId, cx: &Context<'_>) -> Option<bool> {
        if self.stopped {
            return Some(false);
        }
        match self.lines.get_mut(&carrier) {
            Some(line) => {
                line.waker = Some(cx.waker().clone());
                line.close
            }
            None => Some(false),
        }
    }

    /// Adds to `out` what the carrier can take, up to about `room` bytes.
    pub(super) fn fill(&mut self, carrier: CarrierId, out: &mut Out, room: usize) {
        if self.stopped {
            return;
        }
        let now = clock::now();
        while out.len() < room
            && let Some((id, transmit)) = self.core.transmit(now, carrier)
        {
            match transmit {
                Transmit::Control(bytes) => out.copy(&bytes),
                Transmit::Data {
                    header,
                    offset,
                    length,
                } => {
                    out.copy(&header);
                    if let Some(stream) = self.streams.get_mut(&id) {
                        stream.counters.sent.fetch_add(length as u64, Relaxed);
                        put(&stream.replay, offset, length, out);
                        stream.writer.take().into_iter().for_each(Waker::wake);
                    }
                }
            }
        }
        self.carry_on();
    }

    /// Time has passed. When there is something to do next.
    pub(super) fn poll_timer(&mut self, cx: &Context<'_>) -> Option<Moment> {
        let now = clock::now();
        if self.core.deadline().is_some_and(|at| at <= now) {
            self.core.tick(now);
            self.carry_on();
            if let Core::Client(session) = &self.core
                && let Some(carrier) = session.carrier()
            {
                self.wake_line(carrier);
            }
        }
        self.timer_waker = Some(cx.waker().clone());
        self.armed = self.core.deadline();
        self.armed
    }

    /// Where to connect to, when it is time.
    pub(super) fn poll_dial(&mut self, cx: &Context<'_>) -> Poll<Option<String>> {
        self.dial_waker = Some(cx.waker().clone());
        match self.dial.take() {
            Some(address) => Poll::Ready(address),
            None => Poll::Pending,
        }
    }

    /// A session that is new.
    pub(super) fn poll_opened(&mut self, cx: &Context<'_>) -> Poll<Option<SessionId>> {
        if self.stopped {
            return Poll::Ready(None);
        }
        self.accept_waker = Some(cx.waker().clone());
        match self.opened.as_mut().and_then(VecDeque::pop_front) {
            Some(id) => Poll::Ready(Some(id)),
            None => Poll::Pending,
        }
    }

    /// Reads as much as there is. Nothing is read at the end of the stream.
    pub(super) fn poll_read(
        &mut self,
        id: SessionId,
        cx: &Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), Ended>> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Poll::Ready(Err(Ended(None)));
        };
        let before = stream.read;
        while buf.remaining() > 0
            && let Some(bytes) = stream.inbox.front_mut()
        {
            let taken = buf.remaining().min(bytes.len());
            buf.put_slice(&bytes[..taken]);
            stream.read += taken as u64;
            if taken == bytes.len() {
                stream.inbox.pop_front();
            } else {
                bytes.advance(taken);
            }
        }
        if stream.read > before || buf.remaining() == 0 {
            if stream.inbox.is_empty() {
                stream.inbox = VecDeque::new();
            }
            let upto = stream.read;
            if !self.manual_commit {
                self.commit(id, upto);
            }
            return Poll::Ready(Ok(()));
        }
        if stream.finished || stream.ending.is_some_and(|ending| ending.clean()) {
            return Poll::Ready(Ok(()));
        }
        if self.stopped || stream.ending.is_some() {
            return Poll::Ready(Err(Ended(stream.ending)));
        }
        stream.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(super) fn commit(&mut self, id: SessionId, upto: u64) {
        self.core.committed(clock::now(), id, upto);
        self.carry_on();
        self.wake_if_urgent(id);
    }

    pub(super) fn poll_write(
        &mut self,
        id: SessionId,
        cx: &Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, Ended>> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Poll::Ready(Err(Ended(None)));
        };
        if self.stopped || stream.ending.is_some() {
            return Poll::Ready(Err(Ended(stream.ending)));
        }
        let held = self.core.session(id).map_or(0, waits_to_be_sent);
        let room = REPLAY
            .saturating_sub(stream.replay.len())
            .min(UNSENT.saturating_sub(held))
            .min(bytes.len());
        let full = room == 0 && !bytes.is_empty();
        if full || !self.budget.charge(room as u64) {
            self.starved |= !full;
            stream.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        stream.replay.append(&bytes[..room]);
        let end = stream.replay.end();
        self.core.produced(id, end);
        self.wake_session(id);
        Poll::Ready(Ok(room))
    }

    /// This side's stream ends; ready when the other side has all of it.
    pub(super) fn poll_close(&mut self, id: SessionId, cx: &Context<'_>) -> Poll<Result<(), Ended>> {
        self.core.finish(id);
        self.wake_session(id);
        self.carry_on();
        let acked = self.core.session(id).is_some_and(|session| {
            let (acked, _, produced) = session.acked_sent_and_produced();
            acked == produced
        });
        let Some(stream) = self.streams.get_mut(&id) else {
            return Poll::Ready(Err(Ended(None)));
        };
        match stream.ending {
            Some(ending) if ending.taken == Some(ending.produced) => Poll::Ready(Ok(())),
            Some(ending) => Poll::Ready(Err(Ended(Some(ending)))),
            None if acked => Poll::Ready(Ok(())),
            None if self.stopped => Poll::Ready(Err(Ended(None))),
            None => {
                stream.closer = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    pub(super) fn poll_event(&mut self, id: SessionId, cx: &Context<'_>) -> Poll<Option<Event>> {
        match self.streams.get_mut(&id) {
            Some(stream) => stream.events.poll(cx),
            None => Poll::Ready(None),
        }
    }

    pub(super) fn counters(&self, id: SessionId) -> Arc<Counters> {
        self.streams
            .get(&id)
            .map(|stream| stream.counters.clone())
            .unwrap_or_default()
    }

    /// What holds now, beside what was counted.
    pub(super) fn stats(&self, id: SessionId, counted: Stats) -> Stats {
        let Some(stream) = self.streams.get(&id) else {
            return counted;
        };
        let session = self.core.session(id);
        Stats {
            live: session.is_some_and(Session::is_live),
            parked_for: session.and_then(Session::parked).map(|at| clock::now().since(at)),
            rtt: session.and_then(Session::rtt),
            unacked: stream.replay.len(),
            unread: stream.inbox.iter().map(Bytes::len).sum(),
            ..counted
        }
    }

    /// The program has no use for the session any more. What it had finished goes on by itself.
    pub(super) fn drop_handle(&mut self, id: SessionId) {
        if self.stopped {
            return;
        }
        let session = self.core.session(id);
        let finishing = session.is_some_and(Session::is_finishing);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.holder = if finishing {
                Holder::Nobody
            } else {
                Holder::Leaving
            };
            // Nobody reads any more, so all that comes is read.
            let unread: usize = stream.inbox.drain(..).map(|bytes| bytes.len()).sum();
            stream.read += unread as u64;
            let upto = stream.read;
            self.core.committed(clock::now(), id, upto);
        }
        self.leave(id);
        self.carry_on();
        self.forget(id);
    }

    /// Tells the other side that a session was dropped, if it can be told now. A client that is asking for its session waits for
    /// the answer, and one without a connection for the next, while it has its lease: the host would have to wait for its
    /// window otherwise. A host's client hears it whenever it comes.
    fn leave(&mut self, id: SessionId) {
        if self
            .streams
            .get(&id)
            .is_none_or(|stream| stream.holder != Holder::Leaving)
        {
            return;
        }
        let wait = match &self.core {
            Core::Client(session) => match (session.is_live(), session.carrier()) {
                (true, _) => false,
                (false, Some(_)) => true,
                (false, None) => !session.is_fenced(clock::now()),
            },
            Core::Host(_) => false,
        };
        if !wait {
            self.abort(id, Reason::Dropped);
        }
    }

    /// A client that was dropped before it had a session, and lost the carrier on which it asked for one.
    fn leave_unknown(&mut self) {
        if matches!(&self.core, Core::Client(session) if session.id().is_none()) {
            self.leave(OURS);
        }
    }

    /// Ends a session. The last word on it goes out on its carrier, which is awake from here on.
    pub(super) fn abort(&mut self, id: SessionId, reason: Reason) {
        // Afterwards it has none.
        let carrier = self.core.session(id).and_then(Session::carrier);
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.holder == Holder::Leaving
        {
            stream.holder = Holder::Nobody;
        }
        self.core.abort(id, reason);
        if let Some(carrier) = carrier {
            self.wake_line(carrier);
        }
    }

    /// All tasks end, and all who wait are told.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
        for line in self.lines.values_mut() {
            line.waker.take().into_iter().for_each(Waker::wake);
        }
        for stream in self.streams.values_mut() {
            stream.wake_all();
        }
        let tasks = [
            &mut self.accept_waker,
            &mut self.dial_waker,
            &mut self.timer_waker,
        ];
        tasks.into_iter().filter_map(Option::take).for_each(Waker::wake);
    }

    /// Replay and place of a session, to be saved.
    pub(super) fn saved_stream(&self, id: SessionId) -> crate::replay::SavedReplay {
        self.streams
            .get(&id)
            .map(|stream| stream.replay.save())
            .unwrap_or_default()
    }

    pub(super) fn restore_stream(&mut self, id: SessionId, replay: &crate::replay::SavedReplay) {
        let replay = Replay::restore(replay);
        let read = self
            .core
            .session(id)
            .map_or(0, |session| session.received_and_committed().1);
        let _ = self.budget.charge(replay.len() as u64);
        self.streams.insert(
            id,
            Stream {
                replay,
                read,
                ..Stream::default()
            },
        );
        if let Some(opened) = &mut self.opened {
            opened.push_back(id);
        }
        self.carry_on();
    }
}

impl Stream {
    fn wake_all(&mut self) {
        let waiting = [&mut self.reader, &mut self.writer, &mut self.closer];
        waiting.into_iter().filter_map(Option::take).for_each(Waker::wake);
        self.events.wake();
    }
}

/// The session is over. None: it was taken away with its state, or its listener is gone.
#[derive(Debug)]
pub(super) struct Ended(pub(super) Option<Ending>);

/// Bytes that a carrier that serves has not taken yet. Without one there is nothing to wait for but room.
fn waits_to_be_sent(session: &Session) -> usize {
    let (_, sent, produced) = session.acked_sent_and_produced();
    if session.is_live() {
        usize::try_from(produced.saturating_sub(sent)).unwrap_or(usize::MAX)
    } else {
        0
    }
}

fn put(replay: &Replay, offset: u64, length: usize, out: &mut Out) {
    let end = offset + length as u64;
    let mut at = offset;
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(usize::MAX);
        let before = out.len();
        match replay.shared(at) {
            Some(mut run) => {
                run.truncate(left);
                out.share(run);
            }
            None => {
                let run = replay.run(at);
                out.copy(&run[..run.len().min(left)]);
            }
        }
        // The replay has all that is produced and not acknowledged.
        assert!(out.len() > before, "bytes from {at} on are gone");
        at += (out.len() - before) as u64;
    }
}

/// Secret bytes.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[allow(clippy::expect_used)] // Without randomness nothing here is safe.
    getrandom::fill(&mut bytes).expect("random numbers from the system");
    bytes
}
