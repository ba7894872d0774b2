//! Upgrades and recoveries: the broker replaced in the middle of everything, and held against the one that it replaces.

use std::collections::BTreeMap;

use bus_daemon::broker::{Action, Broker, Event, PeerId};

use crate::bus::{Answer, Bus, Ends, Fresh, Replay, Twin, fresh};
use crate::checkpoint::Checkpoint;
use crate::model::{Check, wrong};
use crate::random::Random;

impl Bus {
    /// An upgrade: saved, restored, and the restored one goes on. The old one goes along for `events` more, and must do
    /// the same byte by byte.
    pub(crate) fn upgrade(&mut self, events: u64) -> Check {
        let image = Self::image(&self.broker)?;
        let mut restored = Self::load(&image)?;
        restored.set_config_source(self.broker.config_source());
        self.check_same(&restored, "restored")?;
        if Self::image(&restored)? != image {
            return wrong("what was restored is saved as something else");
        }
        let old = std::mem::replace(&mut self.broker, restored);
        self.add_twin(old, events, "the one before the upgrade");
        let model = &self.model;
        self.saboteur
            .spoil(&mut self.broker, |method| model.victim(method));
        self.checkpoint = Checkpoint::default();
        self.take_checkpoint()
    }

    /// A checkpoint; the events before it are forgotten.
    pub(crate) fn take_checkpoint(&mut self) -> Check {
        self.checkpoint.take(&mut self.broker);
        self.journal.clear();
        let restored = self.checkpoint.restore()?;
        self.check_same(&restored, "restored from a checkpoint")
    }

    /// Another broker that is in the same state.
    fn check_same(&self, other: &Broker, what: &str) -> Check {
        if let Err(broken) = other.check_invariants() {
            return wrong(format!("{what}, an invariant does not hold: {broken}"));
        }
        // Which queues share one body is no part of the state: peer by peer, each with its own bodies.
        let parts = |broker: &Broker| (broker.save_bus(), broker.save_config(), broker.save_names());
        if parts(other) != parts(&self.broker) {
            let (theirs, ours) = (other.save_global(), self.broker.save_global());
            return wrong(format!("{what}, the state is another:\n{theirs:?}\n{ours:?}"));
        }
        if other.owned_fds() != self.broker.owned_fds() || other.open_errands() != self.broker.open_errands()
        {
            return wrong(format!("{what}, there are other descriptors or errands"));
        }
        if !other.peer_ids().eq(self.broker.peer_ids()) {
            return wrong(format!("{what}, there are other peers"));
        }
        for id in self.broker.peer_ids() {
            let (theirs, ours) = (other.save_at(id.index), self.broker.save_at(id.index));
            if theirs != ours {
                return wrong(format!("{what}, a peer is another:\n{theirs:?}\n{ours:?}"));
            }
        }
        let ends = |broker: &Broker| -> Ends {
            let queue = |id| Some((id, broker.send_queue(id)?.end()));
            broker.peer_ids().filter_map(queue).collect()
        };
        if ends(other) != ends(&self.broker) || other.next_deadline() != self.broker.next_deadline() {
            return wrong(format!("{what}, the queues or the deadlines are others"));
        }
        for id in self.broker.peer_ids() {
            if other.may_read(id) != self.broker.may_read(id)
                || other.taken(id) != self.broker.taken(id)
                || other.large_message(id) != self.broker.large_message(id)
            {
                return wrong(format!("{what}, {id:?} is read in another way"));
            }
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
            twin.broker.handle(event.clone(), &mut system);
            let their_actions: Vec<Action> = twin.broker.actions().drain(..).collect();
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
            self.check_same(&twin.broker, twin.what)?;
        }
        Ok(())
    }

    /// Crash recovery: the last checkpoint and all events since, replayed. The result must be the broker in use, and
    /// takes its place; what it asked for in its last event is returned.
    pub(crate) fn recover(&mut self, events: u64) -> Check<Vec<Action>> {
        let (recovered, actions) = self.replay()?;
        self.check_same(&recovered, "recovered")?;
        self.checkpoint.forget_ahead();
        let dead = std::mem::replace(&mut self.broker, recovered);
        self.add_twin(dead, events, "the one before the crash");
        Ok(actions)
    }

    /// The last checkpoint with all events since. What was asked for in the last of them is returned, too.
    pub(crate) fn replay(&self) -> Check<(Broker, Vec<Action>)> {
        let mut broker = self.checkpoint.restore()?;
        let mut actions = Vec::new();
        for (event, answers) in &self.journal {
            let mut system = Replay::new(answers);
            broker.handle(event.clone(), &mut system);
            actions = broker.actions().drain(..).collect();
            if !system.is_same() {
                return wrong(format!(
                    "in replay, other things are asked of the system in {event:?}"
                ));
            }
        }
        Ok((broker, actions))
    }

    fn add_twin(&mut self, broker: Broker, events: u64, what: &'static str) {
        if events > 0 {
            self.twins.push(Twin {
                broker,
                ends: self.ends.clone(),
                left: events,
                what,
            });
        }
    }
}
