//! Upgrades and recoveries: the broker replaced in the middle of everything, and held against the one that it replaces.

use std::collections::BTreeMap;

use bus_daemon::broker::{Action, Broker, Event, PeerId};
use bus_daemon::handoff::stored::BacklogV1;

use crate::bus::{Answer, Bus, Ends, Fresh, Replay, Twin, fresh};
use crate::checkpoint::{Checkpoint, Source};
use crate::model::{Check, wrong};
use crate::random::Random;
use crate::store::Store;

impl Bus {
    /// An upgrade: saved, restored, and the restored one goes on. The old one goes along for `events` more, and must do
    /// the same byte by byte.
    pub(crate) fn upgrade(&mut self, events: u64, random: &mut Random) -> Check {
        // As the daemon does, so that all that waits is in the store; an image with the rest of it is good, too.
        if random.percent(50) {
            self.take_checkpoint(random)?;
        }
        let image = Self::image(&self.broker, self.store.backlogs().collect())?;
        let (mut restored, backlogs) = Self::load(&image)?;
        restored.set_config_source(self.broker.config_source());
        self.check_same(&restored, &self.store, "restored")?;
        if Self::image(&restored, backlogs.clone())? != image {
            return wrong("what was restored is saved as something else");
        }
        if let Some(spoilt) = self.spoil_image(&backlogs)? {
            restored = spoilt;
        }
        let store = self.store.clone();
        self.store.restore(backlogs.into_iter());
        let old = std::mem::replace(&mut self.broker, restored);
        self.add_twin(old, store, events, "the one before the upgrade");
        let model = &self.model;
        self.saboteur
            .spoil(&mut self.broker, |method| model.victim(method));
        self.checkpoint = Checkpoint::default();
        self.take_checkpoint(random)
    }

    /// A broker that was restored with other ends of what is stored, if there is somebody who spoils them.
    fn spoil_image(&mut self, backlogs: &[BacklogV1]) -> Check<Option<Broker>> {
        let ends = self.broker.stored_offsets();
        let mut spoil = |backlog: &BacklogV1| {
            // What was sent already may be forgotten.
            let waits = (PeerId::from_u64(backlog.owner()), backlog.end());
            if ends.contains(&waits) {
                self.saboteur.spoil_image(*backlog)
            } else {
                Some(*backlog)
            }
        };
        let spoilt: Vec<BacklogV1> = backlogs.iter().filter_map(&mut spoil).collect();
        if spoilt == backlogs {
            return Ok(None);
        }
        let (mut broker, _) = Self::load(&Self::image(&self.broker, spoilt)?)?;
        broker.set_config_source(self.broker.config_source());
        Ok(Some(broker))
    }

    /// Some of the next checkpoint.
    pub(crate) fn write_ahead(&mut self, random: &mut Random) -> Check {
        let source = Source {
            broker: &mut self.broker,
            store: &mut self.store,
            saboteur: &mut self.saboteur,
            random,
        };
        self.checkpoint.write_ahead(source)
    }

    /// A checkpoint; the events before it are forgotten.
    pub(crate) fn take_checkpoint(&mut self, random: &mut Random) -> Check {
        let source = Source {
            broker: &mut self.broker,
            store: &mut self.store,
            saboteur: &mut self.saboteur,
            random,
        };
        self.checkpoint.take(source)?;
        self.journal.clear();
        let restored = self.checkpoint.restore()?;
        self.check_same(&restored, &self.store, "restored from a checkpoint")
    }

    /// Who wrote a checkpoint that is not complete has died: of the store, only what the last complete one knows counts.
    pub(crate) fn forget_uncommitted(&mut self) {
        self.checkpoint.forget_ahead();
        self.store.restore(self.checkpoint.backlogs());
    }

    /// Another broker that is in the same state, with the store that it knows.
    fn check_same(&self, other: &Broker, store: &Store, what: &str) -> Check {
        if let Err(broken) = other.check_invariants() {
            return wrong(format!("{what}, an invariant does not hold: {broken}"));
        }
        // Which queues share one body is no part of the state: peer by peer, each with its own bodies.
        let parts = |broker: &Broker| (broker.save_bus(), broker.save_config(), broker.save_names());
        if parts(other) != parts(&self.broker) {
            let (theirs, ours) = (other.save_global(), self.broker.save_global());
            return wrong(format!("{what}, the state is another:\n{theirs:?}\n{ours:?}"));
        }
        if other.save_shares().peers != self.broker.save_shares().peers {
            let (theirs, ours) = (other.save_shares(), self.broker.save_shares());
            return wrong(format!("{what}, what waits is others':\n{theirs:?}\n{ours:?}"));
        }
        if other.owned_fds() != self.broker.owned_fds() || other.open_errands() != self.broker.open_errands()
        {
            return wrong(format!("{what}, there are other descriptors or errands"));
        }
        if !other.peer_ids().eq(self.broker.peer_ids()) {
            return wrong(format!("{what}, there are other peers"));
        }
        let ends = |broker: &Broker| -> Ends {
            let queue = |id| Some((id, broker.send_queue(id)?.end()));
            broker.peer_ids().filter_map(queue).collect()
        };
        if ends(other) != ends(&self.broker) || other.next_deadline() != self.broker.next_deadline() {
            return wrong(format!("{what}, the queues or the deadlines are others"));
        }
        for id in self.broker.peer_ids() {
            self.check_same_peer(other, store, id, what)?;
            if other.may_read(id) != self.broker.may_read(id)
                || other.taken(id) != self.broker.taken(id)
                || other.large_message(id) != self.broker.large_message(id)
            {
                return wrong(format!("{what}, {id:?} is read in another way"));
            }
        }
        Ok(())
    }

    /// Which part of its output is kept where is no part of a peer's state.
    fn check_same_peer(&self, other: &Broker, store: &Store, id: PeerId, what: &str) -> Check {
        let record = |broker: &Broker| {
            let (mut record, _) = broker.save_at(id.index)?;
            record.take_output();
            Some(record)
        };
        let (theirs, ours) = (record(other), record(&self.broker));
        if theirs != ours {
            return wrong(format!("{what}, a peer is another:\n{theirs:?}\n{ours:?}"));
        }
        let output = |broker: &Broker, store: &Store| -> Check<Option<Vec<u8>>> {
            let queue = broker.send_queue(id);
            queue.map(|queue| store.output_of(id, queue)).transpose()
        };
        let (theirs, ours) = (output(other, store)?, output(&self.broker, &self.store)?);
        if theirs != ours {
            return wrong(format!(
                "{what}, other bytes wait for {id:?}:\n{theirs:?}\n{ours:?}"
            ));
        }
        Ok(())
    }

    /// Has the twins do what the broker in use did.
    pub(crate) fn follow(
        &mut self,
        event: &Event,
        answers: &[Answer],
        actions: &[Action],
        queued: &BTreeMap<PeerId, Fresh>,
    ) -> Check {
        for twin in &mut self.twins {
            let mut system = Replay::new(answers);
            twin.broker.set_step(self.step);
            twin.broker.handle(event.clone(), &mut system);
            let their_actions: Vec<Action> = twin.broker.actions().drain(..).map(without_end).collect();
            let what = twin.what;
            if !system.is_same() {
                return wrong(format!("{what} asks other things of the system than {answers:?}"));
            }
            if their_actions != actions {
                return wrong(format!(
                    "{what} asks for {their_actions:?}, and not for {actions:?}"
                ));
            }
            let theirs = fresh(&twin.broker, &mut twin.ends);
            if theirs != *queued {
                return wrong(format!("{what} queues {theirs:?}, and not {queued:?}"));
            }
            twin.left = twin.left.saturating_sub(1);
        }
        let (over, going_on): (Vec<Twin>, Vec<Twin>) = std::mem::take(&mut self.twins)
            .into_iter()
            .partition(|twin| twin.left == 0);
        self.twins = going_on;
        for twin in over {
            self.check_same(&twin.broker, &twin.store, twin.what)?;
        }
        Ok(())
    }

    /// Crash recovery: the last checkpoint and all events since, replayed. The result must be the broker in use, and
    /// takes its place; what it asked for in its last event is returned.
    pub(crate) fn recover(&mut self, events: u64) -> Check<Vec<Action>> {
        let (recovered, actions) = self.replay()?;
        let store = self.store.clone();
        self.forget_uncommitted();
        let dead = std::mem::replace(&mut self.broker, recovered);
        self.check_same(&dead, &store, "the one that died")?;
        self.add_twin(dead, store, events, "the one before the crash");
        Ok(actions)
    }

    /// The last checkpoint with all events since. What was asked for in the last of them is returned, too.
    pub(crate) fn replay(&self) -> Check<(Broker, Vec<Action>)> {
        let mut broker = self.checkpoint.restore()?;
        let mut actions = Vec::new();
        broker.set_step(self.step);
        for (index, (event, answers)) in self.journal.iter().enumerate() {
            let mut system = Replay::new(answers);
            broker.handle(event.clone(), &mut system);
            if index <= self.last {
                actions.clear();
            }
            let asked = broker.actions().drain(..);
            let asked = asked.filter(|action| !matches!(action, Action::ScheduleStep(_)));
            actions.extend(asked.map(without_end));
            if !system.is_same() {
                return wrong(format!(
                    "in replay, other things are asked of the system in {event:?}"
                ));
            }
        }
        Ok((broker, actions))
    }

    fn add_twin(&mut self, broker: Broker, store: Store, events: u64, what: &'static str) {
        if events > 0 {
            self.twins.push(Twin {
                broker,
                store,
                ends: self.ends.clone(),
                left: events,
                what,
            });
        }
    }
}

/// How a link ended is for the log alone, and not known after a restart where that takes more than a step.
pub(crate) fn without_end(mut action: Action) -> Action {
    if let Action::Close {
        reason,
        is_fault: false,
        ..
    } = &mut action
    {
        *reason = "its link ended".into();
    }
    action
}
