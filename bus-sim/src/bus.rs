//! The broker under simulation: what goes in, what came out of it, and everything that is checked about that.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bus_daemon::broker::{
    Action, Broker, Event, Identity, ListenerIdentity, Millis, PeerId, System, Transport,
};
use bus_daemon::config::policy::Policy;
use bus_daemon::config::{BusType, Config, Simple};
use bus_daemon::handoff::image::{self, Restored, WorkerState};
use bus_daemon::handoff::stored::{BacklogV1, Stored};
use bus_wire::{Fd, Guid, Message, message_length};
use bytes::Bytes;

use crate::checkpoint::Checkpoint;
use crate::files::{File, Files};
use crate::model::{BUS_ID, Check, KEEPER_PID, Model, OWN_UID, Paced, Seen, wrong};
use crate::random::Random;
use crate::restart::without_end;
use crate::sabotage::Saboteur;
use crate::store::Store;

/// The daemon's configuration, as far as it varies.
pub(crate) fn config(limits: bus_daemon::config::Limits, eavesdrop_allowed: bool) -> Arc<Config> {
    Arc::new(Config {
        bus_type: BusType::Session,
        policy: Arc::new(Policy::from(Simple {
            eavesdrop_allowed,
            ..Simple::OPEN
        })),
        limits,
        ..Config::default()
    })
}

/// One answer of the system, as the event log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Of this socket.
    Pidfd(Fd, Option<Fd>),
    Duplicate(Fd, Option<Fd>),
}

/// The system that is asked the first time, and notes what it says.
struct Recorder<'a> {
    files: &'a mut Files,
    answers: Vec<Answer>,
    /// What was answered already when the worker before this one died, in the middle of this event.
    known: VecDeque<Answer>,
    random: &'a mut Random,
    /// How often there is no descriptor to be had.
    shortage: u32,
}

impl Recorder<'_> {
    /// The answer that is known already.
    fn known(&mut self) -> Option<Option<Fd>> {
        let answer = self.known.pop_front()?;
        self.answers.push(answer.clone());
        match answer {
            Answer::Pidfd(_, fd) | Answer::Duplicate(_, fd) => Some(fd),
        }
    }
}

impl System for Recorder<'_> {
    fn peer_pidfd(&mut self, socket: Fd) -> Option<Fd> {
        if let Some(fd) = self.known() {
            return fd;
        }
        let fd = (!self.random.permille(self.shortage)).then(|| {
            let file = self.files.create();
            self.files.open(file)
        });
        self.answers.push(Answer::Pidfd(socket, fd));
        fd
    }

    fn duplicate(&mut self, fd: Fd) -> Option<Fd> {
        if let Some(copy) = self.known() {
            return copy;
        }
        let file = self
            .files
            .get(fd)
            .ok()
            .filter(|_| !self.random.permille(self.shortage));
        let copy = file.map(|file| self.files.open(file));
        self.answers.push(Answer::Duplicate(fd, copy));
        copy
    }
}

/// The system in replay: it says what it said.
pub(crate) struct Replay {
    answers: VecDeque<Answer>,
    is_other: bool,
}

impl Replay {
    pub(crate) fn new(answers: &[Answer]) -> Self {
        Self {
            answers: answers.iter().cloned().collect(),
            is_other: false,
        }
    }

    fn next(&mut self, is_asked: impl Fn(&Answer) -> bool) -> Option<Fd> {
        match self.answers.pop_front().filter(is_asked) {
            Some(Answer::Pidfd(_, fd) | Answer::Duplicate(_, fd)) => fd,
            None => {
                self.is_other = true;
                None
            }
        }
    }

    /// Whether all was asked that was asked the first time, and nothing else.
    pub(crate) fn is_same(&self) -> bool {
        !self.is_other && self.answers.is_empty()
    }
}

impl System for Replay {
    fn peer_pidfd(&mut self, socket: Fd) -> Option<Fd> {
        self.next(|answer| matches!(answer, Answer::Pidfd(of, _) if *of == socket))
    }

    fn duplicate(&mut self, fd: Fd) -> Option<Fd> {
        self.next(|answer| matches!(answer, Answer::Duplicate(of, _) if *of == fd))
    }
}

/// What was queued for a peer in one event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Fresh {
    pub(crate) start: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<(u64, Vec<Fd>)>,
}

/// How much of each queue was seen already.
pub(crate) type Ends = BTreeMap<PeerId, u64>;

/// What the queues got since they were last looked at.
pub(crate) fn fresh(broker: &Broker, ends: &mut Ends) -> BTreeMap<PeerId, Fresh> {
    let mut all = BTreeMap::new();
    let mut present = Ends::new();
    for id in broker.peer_ids() {
        let Some(queue) = broker.send_queue(id) else {
            continue;
        };
        let start = ends.get(&id).copied().unwrap_or(0);
        let end = queue.end();
        present.insert(id, end);
        // A queue that was cleared with its link ends before what was seen.
        if end <= start {
            continue;
        }
        // The tail begins there; only what was seen already is moved away.
        let skip = start.saturating_sub(queue.stored()) as usize;
        let fds = if queue.queued_fds() == 0 {
            Vec::new()
        } else {
            queue.save().fds
        };
        let fds = fds.into_iter().filter(|(at, _)| *at >= start).collect();
        let bytes = queue.to_bytes().get(skip..).unwrap_or_default().to_vec();
        all.insert(id, Fresh { start, bytes, fds });
    }
    *ends = present;
    all
}

/// What came of an event and of its steps.
#[derive(Default)]
struct Outcome {
    answers: Vec<Answer>,
    actions: Vec<Action>,
    fresh: BTreeMap<PeerId, Fresh>,
}

impl Outcome {
    fn add(&mut self, answers: Vec<Answer>, actions: Vec<Action>, fresh: BTreeMap<PeerId, Fresh>) {
        self.answers.extend(answers);
        self.actions.extend(actions);
        for (id, more) in fresh {
            let known = self.fresh.entry(id).or_insert_with(|| Fresh {
                start: more.start,
                ..Fresh::default()
            });
            known.bytes.extend(more.bytes);
            known.fds.extend(more.fds);
        }
    }
}

/// An event, and what the system answered in the middle of it.
pub(crate) type Entry = (Event, Vec<Answer>);

/// The broker and its surroundings.
#[derive(Debug)]
pub(crate) struct Bus {
    pub(crate) broker: Broker,
    /// What waits for slow readers.
    pub(crate) store: Store,
    pub(crate) files: Files,
    pub(crate) model: Model,
    pub(crate) saboteur: Saboteur,
    pub(crate) ends: Ends,
    /// What each client is to read: whole messages.
    pub(crate) due: BTreeMap<PeerId, VecDeque<(Bytes, Vec<File>)>>,
    /// Brokers that go on with what the one in use was before, and must do the same.
    pub(crate) twins: Vec<Twin>,
    pub(crate) checkpoint: Checkpoint,
    /// The events since then.
    pub(crate) journal: Vec<Entry>,
    pub(crate) shortage: u32,
    /// In so many of 1000 events the broker dies in the middle of the event, and another one takes it in again.
    pub(crate) deaths_within: u32,
    /// How often it did.
    pub(crate) ends_within: u64,
    /// How long the broker's steps are, in units of work.
    pub(crate) step: u64,
    /// How many there were beyond the events themselves.
    pub(crate) steps: u64,
    /// Where in the journal the last event begins, with its steps.
    pub(crate) last: usize,
}

/// A broker that must do the same as the one in use.
#[derive(Debug)]
pub(crate) struct Twin {
    pub(crate) broker: Broker,
    /// As it was: what the twin knows to be there.
    pub(crate) store: Store,
    pub(crate) ends: Ends,
    /// Events until it is compared for the last time.
    pub(crate) left: u64,
    pub(crate) what: &'static str,
}

impl Bus {
    pub(crate) fn new(config: Arc<Config>, hash_seed: u64, now: u64, saboteur: Saboteur) -> Self {
        let identity = Identity {
            guid: Guid::from_bytes(BUS_ID),
            listeners: vec![ListenerIdentity {
                guid: Guid::from_bytes([0xcd; 16]),
                transport: Transport::Unix,
                nonce: None,
            }],
            machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
            keeper_pid: KEEPER_PID,
            own_uid: OWN_UID,
            hash_seed,
        };
        let model = Model::new(
            config.limits.clone(),
            Simple::of(&config.policy).is_some_and(|simple| simple.eavesdrop_allowed),
            now,
        );
        Self {
            broker: Broker::new(identity, config, Millis(now)),
            store: Store::default(),
            files: Files::default(),
            model,
            saboteur,
            ends: Ends::new(),
            due: BTreeMap::new(),
            twins: Vec::new(),
            checkpoint: Checkpoint::default(),
            journal: Vec::new(),
            shortage: 0,
            deaths_within: 0,
            ends_within: 0,
            step: 512,
            steps: 0,
            last: 0,
        }
    }

    /// One event with the steps that it leaves to do, through the broker, its twins and the model. Returns the actions, in
    /// order.
    pub(crate) fn apply(
        &mut self,
        event: Event,
        random: &mut Random,
        model: impl FnOnce(&mut Model) -> Check,
    ) -> Check<Vec<Action>> {
        let now = if let Event::Tick { now } = event {
            Some(now)
        } else {
            None
        };
        self.last = self.journal.len();
        let mut whole = Outcome::default();
        self.single(event, random, &mut whole)?;
        loop {
            let due = now.filter(|now| self.broker.next_deadline().is_some_and(|due| due <= *now));
            // Messages whose time has come are dealt with when nothing else is due.
            let is_now = |peer: &PeerId| due.is_none() || !self.broker.is_input_waiting(*peer);
            if let Some(peer) = self.next_step(&whole.actions).filter(is_now) {
                if random.percent(5) {
                    self.take_checkpoint(random)?;
                    self.last = 0;
                }
                self.single(Event::Step { peer }, random, &mut whole)?;
                continue;
            }
            match due {
                Some(now) => self.single(Event::Tick { now }, random, &mut whole)?,
                None => break,
            }
        }
        let Outcome {
            answers,
            mut actions,
            mut fresh,
        } = whole;
        // What was queued for whoever is gone by now went with the queue.
        fresh.retain(|id, _| self.broker.send_queue(*id).is_some());
        actions.retain(|action| !matches!(action, Action::ScheduleStep(_)));
        self.check(fresh, &answers, &actions, model)?;
        Ok(actions)
    }

    /// One event or step, through the broker and its twins.
    fn single(&mut self, event: Event, random: &mut Random, whole: &mut Outcome) -> Check {
        let mut answers = self.ask(&event, random, VecDeque::new());
        if random.permille(self.deaths_within) {
            // It dies in the middle of the event, when it has noted some of the answers; what it had from the others is
            // closed with it. Another one goes on.
            let noted = random.index(answers.len() + 1);
            for answer in answers.drain(noted..) {
                if let Answer::Pidfd(_, Some(fd)) | Answer::Duplicate(_, Some(fd)) = answer {
                    self.files.close(fd)?;
                }
            }
            self.broker = self.replay()?.0;
            self.forget_uncommitted();
            self.ends_within += 1;
            answers = self.ask(&event, random, answers.into());
        }
        let actions: Vec<Action> = self.broker.actions().drain(..).map(without_end).collect();
        let fresh = fresh(&self.broker, &mut self.ends);
        self.follow(&event, &answers, &actions, &fresh)?;
        self.steps += u64::from(matches!(event, Event::Step { .. }));
        self.journal.push((event, answers.clone()));
        whole.add(answers, actions, fresh);
        if let Err(what) = self.broker.check_invariants() {
            return wrong(format!("an invariant does not hold: {what}"));
        }
        Ok(())
    }

    /// Whose step comes next, so that all happens in the order in which it would happen at once: what peers give up comes
    /// before what others have sent.
    fn next_step(&self, actions: &[Action]) -> Option<PeerId> {
        let scheduled = actions.iter().filter_map(|action| {
            if let Action::ScheduleStep(peer) = action {
                Some(*peer)
            } else {
                None
            }
        });
        let mut waiting = scheduled.filter(|peer| self.broker.wants_step(*peer));
        let first = waiting.next()?;
        let is_shedding = |peer: &PeerId| !self.broker.is_input_waiting(*peer);
        std::iter::once(first)
            .chain(waiting)
            .find(is_shedding)
            .or(Some(first))
    }

    /// Has the broker take in an event. What the system answered.
    fn ask(&mut self, event: &Event, random: &mut Random, known: VecDeque<Answer>) -> Vec<Answer> {
        let (files, shortage) = (&mut self.files, self.shortage);
        let mut recorder = Recorder {
            files,
            answers: Vec::new(),
            known,
            random,
            shortage,
        };
        self.broker.set_step(self.step);
        self.broker.handle(event.clone(), &mut recorder);
        recorder.answers
    }

    /// Holds what the broker did against the model.
    fn check(
        &mut self,
        fresh: BTreeMap<PeerId, Fresh>,
        answers: &[Answer],
        actions: &[Action],
        model: impl FnOnce(&mut Model) -> Check,
    ) -> Check {
        let mut seen = Seen::default();
        for (id, fresh) in fresh {
            self.read_output(id, &fresh, &mut seen)?;
        }
        for answer in answers {
            match answer {
                Answer::Pidfd(_, fd) => {
                    let file = fd.map(|fd| self.files.get(fd)).transpose()?;
                    seen.pidfds.push_back(file);
                }
                Answer::Duplicate(_, fd) => seen.duplicates.push_back(fd.is_some()),
            }
        }
        seen.gone = actions.iter().filter_map(closed).collect();
        for action in actions {
            match action {
                Action::RunErrand { id, errand } => seen.errands.push_back((*id, errand.clone())),
                Action::HandOver => seen.hand_overs += 1,
                Action::Close { .. }
                | Action::HangUp { .. }
                | Action::ScheduleStep(_)
                | Action::CloseFds(_)
                | Action::StopReading(_)
                | Action::ResumeReading(_)
                | Action::StopAccepting
                | Action::ResumeAccepting
                | Action::Warn { .. } => {}
            }
        }
        for id in &seen.gone {
            // What was sent stays to be read by the client; what was not is gone.
            if let Some(due) = self.due.get_mut(id) {
                due.push_back((Bytes::new(), Vec::new()));
            }
        }
        seen.paced = self.paced();
        self.saboteur.meddle(&mut seen.messages);
        for (id, messages) in &seen.messages {
            let due = messages
                .iter()
                .map(|(message, files)| (message.bytes().clone(), files.clone()));
            self.due.entry(*id).or_default().extend(due);
        }
        self.model.begin(seen);
        model(&mut self.model)?;
        self.model.end()
    }

    /// Whose next message waits, where it begins, and until when.
    fn paced(&self) -> BTreeMap<PeerId, Paced> {
        let waits = |id: PeerId| {
            let until = self.broker.paced_until(id)?.0;
            let (record, _) = self.broker.save_at(id.index)?;
            let at = self.broker.taken(id) - record.input().len() as u64;
            Some((id, Paced { at, until }))
        };
        self.broker.peer_ids().filter_map(waits).collect()
    }

    /// Cuts what was queued into lines and messages.
    fn read_output(&mut self, id: PeerId, fresh: &Fresh, seen: &mut Seen) -> Check {
        let bytes = Bytes::from(fresh.bytes.clone());
        let mut at = 0;
        let mut fds = fresh.fds.iter();
        while at < bytes.len() {
            let rest = bytes.slice(at..);
            if !matches!(rest[0], b'l' | b'B') {
                let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
                    return wrong(format!(
                        "{id:?} is sent something that is neither line nor message"
                    ));
                };
                let line = String::from_utf8_lossy(&rest[..end + 2]).into_owned();
                seen.lines.entry(id).or_default().push_back(line);
                at += end + 2;
                continue;
            }
            let length = match message_length(&rest) {
                Ok(Some(length)) if length <= rest.len() => length,
                other => return wrong(format!("{id:?} is sent part of a message: {other:?}")),
            };
            let message = match Message::parse(rest.slice(..length)) {
                Ok(message) => message,
                Err(error) => return wrong(format!("{id:?} is sent an invalid message: {error}")),
            };
            let mut files = Vec::new();
            if message.unix_fds() > 0 {
                let Some((_, fds)) = fds.next().filter(|(place, _)| *place == fresh.start + at as u64) else {
                    return wrong(format!("{id:?} is sent {message:?} without its descriptors"));
                };
                for fd in fds {
                    files.push(self.files.get(*fd)?);
                }
            }
            seen.messages.entry(id).or_default().push_back((message, files));
            at += length;
        }
        if fds.next().is_some() {
            return wrong(format!("{id:?} is sent descriptors without a message"));
        }
        Ok(())
    }

    /// Every open descriptor is one that the broker knows of. To be called with the actions carried out.
    pub(crate) fn check_files(&self) -> Check {
        let mut owned: Vec<i32> = self.broker.owned_fds().iter().map(|fd| fd.0).collect();
        owned.sort_unstable();
        let open = self.files.numbers();
        if owned != open {
            return wrong(format!(
                "open are the descriptors {open:?}, and the broker knows of {owned:?}"
            ));
        }
        Ok(())
    }

    /// Saved as the daemon saves it.
    pub(crate) fn image(broker: &Broker, backlogs: Vec<BacklogV1>) -> Check<Vec<u8>> {
        let worker = WorkerState {
            stored: Some(Stored {
                backlogs,
                ..Stored::default()
            }),
            ..WorkerState::default()
        };
        image::save(broker, &worker, |handle| Some(handle.0))
            .map_err(|error| format!("the state cannot be saved: {error}").into())
    }

    /// Restored as the daemon restores it; nothing may be lost.
    pub(crate) fn load(image: &[u8]) -> Check<(Broker, Vec<BacklogV1>)> {
        match image::load(image, Millis(0)) {
            Ok(restored) if restored.dropped.is_empty() && restored.damage.is_empty() => {
                let Restored { broker, worker, .. } = restored;
                Ok((broker, worker.stored.map_or(Vec::new(), |stored| stored.backlogs)))
            }
            Ok(restored) => wrong(format!(
                "restoring lost something: {:?}, {:?}",
                restored.dropped, restored.damage
            )),
            Err(error) => wrong(format!("the state cannot be restored: {error}")),
        }
    }
}

pub(crate) fn closed(action: &Action) -> Option<PeerId> {
    match action {
        Action::Close { peer, .. } => Some(*peer),
        Action::HangUp { .. }
        | Action::ScheduleStep(_)
        | Action::CloseFds(_)
        | Action::StopReading(_)
        | Action::ResumeReading(_)
        | Action::StopAccepting
        | Action::ResumeAccepting
        | Action::RunErrand { .. }
        | Action::HandOver
        | Action::Warn { .. } => None,
    }
}
