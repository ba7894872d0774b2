//! The whole load, from the first connection to the report.

use crate::caller::{CallError, Caller};
use crate::clock::Deadline;
use crate::peers;
use crate::plan::{Hook, LoadPlan};
use crate::raw::{Command, Condition, Engine, QUEUED_NAME, Shared, name_of};
use crate::real::{Attached, Peer, Visitors};
use crate::report::Report;
use anyhow::{Context, bail, ensure};
use nix::sys::eventfd::EventFd;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long anything that should happen may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at whether it has.
const POLL: Duration = Duration::from_millis(1);

/// A load that is attached to a bus.
pub struct Load {
    address: String,
    plan: LoadPlan,
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    engine: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    peers: Vec<Attached>,
    visitors: Option<Visitors>,
    control: Caller,
    held: Vec<Hook>,
    /// The queue of the one name, as it was at the start.
    queue: Vec<String>,
}

/// Live figures of a running load.
#[derive(Debug, Default, Clone)]
pub struct Progress {
    /// Raw connections.
    pub raw: u64,
    /// Attached peers of other implementations.
    pub peers: u64,
    /// Messages sent and received.
    pub messages: u64,
    /// Connections that came, called and went.
    pub visits: u64,
    /// Clients that were disconnected.
    pub disconnected: u64,
}

impl Load {
    /// Connects the raw part of the load and waits until every name and rule of it is in place. Nothing is sent
    /// before [`Load::go`].
    pub fn start(address: &str, plan: LoadPlan) -> anyhow::Result<Load> {
        let (commands, received) = channel();
        let (wake, shared) = (Engine::wake()?, Arc::new(Shared::default()));
        let engine = Engine::new(address, plan.clone(), received, wake.clone(), shared.clone())?;
        let engine = std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(move || engine.run())?;
        let mut load = Load {
            address: address.to_owned(),
            plan,
            commands,
            wake,
            engine: Some(engine),
            shared,
            peers: Vec::new(),
            visitors: None,
            control: Caller::connect(address)?,
            held: Vec::new(),
            queue: Vec::new(),
        };
        load.until(&Condition::Ready)?;
        if load.plan.queued_owners > 0 {
            load.queue = load.control.list("ListQueuedOwners", Some(QUEUED_NAME))?;
            ensure!(
                load.queue.len() == load.plan.queued_owners as usize,
                "the queue is {:?}",
                load.queue
            );
        }
        Ok(load)
    }

    /// Adds a client of another implementation; before [`Load::go`].
    pub fn attach(&mut self, peer: Box<dyn Peer>) -> anyhow::Result<()> {
        self.peers.push(Attached::new(peer)?);
        Ok(())
    }

    /// Also runs `gdbus call`, `busctl call` and `dbus-send` in turns, as far as they are installed.
    pub fn invite_visitors(&mut self) {
        self.visitors = Some(Visitors::start(&self.address, peers::locate));
    }

    /// Everybody starts to send.
    pub fn go(&mut self) -> anyhow::Result<()> {
        let deadline = Deadline::after(PATIENCE);
        for name in &self.plan.call_also {
            loop {
                match self.control.ask("GetNameOwner", name) {
                    Ok(_) => break,
                    Err(CallError::Reply { .. }) if !deadline.passed() => std::thread::sleep(POLL),
                    Err(error) => return Err(error).with_context(|| format!("{name} should have an owner")),
                }
            }
        }
        self.peers.iter_mut().for_each(Attached::count_fds);
        self.peers.iter_mut().for_each(|peer| peer.command("go"));
        self.command(Command::Running(true))
    }

    /// Brings clients into the middle of something, and returns when they are there.
    pub fn hold(&mut self, hooks: &[Hook]) -> anyhow::Result<()> {
        for &hook in hooks.iter().filter(|hook| !self.held.contains(hook)) {
            self.command(Command::Hold(hook))?;
        }
        hooks
            .iter()
            .try_for_each(|hook| self.until(&Condition::Held(*hook)))?;
        self.held.extend_from_slice(hooks);
        Ok(())
    }

    /// Lets them go on, and returns when they have completed it.
    pub fn release(&mut self, hooks: &[Hook]) -> anyhow::Result<()> {
        for &hook in hooks {
            self.command(Command::Release(hook))?;
        }
        self.held.retain(|hook| !hooks.contains(hook));
        hooks
            .iter()
            .try_for_each(|hook| self.until(&Condition::Released(*hook)))
    }

    /// Figures for a live display.
    pub fn progress(&mut self) -> Progress {
        let peer_messages: u64 = self.peers.iter_mut().map(Attached::traffic).sum();
        let lost = self
            .peers
            .iter()
            .filter(|peer| peer.account().disconnected.is_some())
            .count() as u64;
        let visitors = self
            .visitors
            .as_ref()
            .map_or(0, |visitors| visitors.visits.load(Ordering::Relaxed));
        Progress {
            raw: self.shared.connections.load(Ordering::Relaxed),
            peers: self.peers.len() as u64,
            messages: self.shared.messages.load(Ordering::Relaxed) + peer_messages,
            visits: self.shared.visits.load(Ordering::Relaxed) + visitors,
            disconnected: self.shared.disconnected.load(Ordering::Relaxed) + lost,
        }
    }

    /// How many attached peers there are of each implementation.
    pub fn implementations(&self) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for peer in &self.peers {
            *counts.entry(peer.account().implementation.clone()).or_default() += 1;
        }
        counts
    }

    /// Stops sending, waits for everything under way, compares the books, and disconnects.
    ///
    /// # Errors
    /// Only what keeps the load from giving a report at all; all else is in the report.
    pub fn finish(mut self) -> anyhow::Result<Report> {
        let mut problems = Vec::new();
        let mut note = |what: &str, result: anyhow::Result<()>| {
            if let Err(error) = result {
                problems.push(format!("{what}: {error:#}"));
            }
        };
        let held = self.held.clone();
        note("release", self.release(&held));
        let visitors = self.visitors.take().map(Visitors::stop).unwrap_or_default();

        // Senders stop and have their answers; then what the bus still holds for anybody comes out.
        self.command(Command::Running(false))?;
        note("stopping", tell(&mut self.peers, "stop", "stopped", false));
        note("stopping", self.until(&Condition::Quiet));
        // Twice: what the first sign of life brought may have been answered.
        for _ in 0..2 {
            self.command(Command::Barrier)?;
            note("draining", self.until(&Condition::Quiet));
        }
        note("draining", tell(&mut self.peers, "drain", "drained", false));
        note("reporting", tell(&mut self.peers, "report", "end", false));

        // Now it is known how much was sent in all, and those that only watch are waited for.
        let mut accounts = self.ask(Command::Accounts)?;
        accounts.extend(self.peers.iter().map(|peer| peer.account().clone()));
        let signals = |(stream, _): &&(String, u64)| !stream.contains('>');
        let sent: BTreeMap<String, u64> = accounts
            .iter()
            .flat_map(|account| &account.sent)
            .filter(signals)
            .cloned()
            .collect();
        note("the monitor", self.until(&Condition::Monitored(sent.clone())));
        self.peers.iter_mut().for_each(|peer| peer.expect(&sent));
        note("draining", tell(&mut self.peers, "drain", "drained", true));
        note("reporting", tell(&mut self.peers, "report", "end", true));

        self.peers.iter_mut().for_each(Attached::compare_fds);
        note("names", self.check_names());
        note("queue", self.check_queue());
        let mut accounts = self.ask(Command::Finish)?;
        accounts.extend(visitors);
        accounts.extend(self.peers.drain(..).map(|peer| peer.account().clone()));
        let visits = self.progress().visits;
        if let Some(engine) = self.engine.take() {
            let _ = engine.join();
        }
        let mut report = Report::from_accounts(&accounts);
        report.visits = visits;
        report.errors.extend(problems);
        Ok(report)
    }

    /// Every client still has the unique name that it was given, and the names that it asked for.
    fn check_names(&mut self) -> anyhow::Result<()> {
        let mut wrong = Vec::new();
        for (id, unique, names) in self.ask(Command::Names)? {
            let Some(unique) = unique else { continue };
            let has_owner = self.control.call_bus("NameHasOwner", |body| {
                body.str(&unique);
            })?;
            if !has_owner.body().read_bool()? {
                wrong.push(format!("{id} is no longer {unique}"));
            }
            for name in names
                .iter()
                .filter(|name| *name != QUEUED_NAME && !name.contains("churn"))
            {
                let owner = self.control.ask("GetNameOwner", name)?;
                if owner != unique {
                    wrong.push(format!("{name} is owned by {owner}, not by {unique}"));
                }
            }
        }
        for peer in self.peers.iter_mut() {
            let Some(unique) = peer.account().unique.clone() else {
                continue;
            };
            let name = name_of(&peer.account().id);
            match self.control.ask("GetNameOwner", &name) {
                Ok(owner) if owner == unique => {}
                other => peer.note(format!("{name} is owned by {other:?}, not by {unique}")),
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("; "));
        Ok(())
    }

    /// The queue is as it was, and the owners follow each other in its order as the first give the name back.
    fn check_queue(&mut self) -> anyhow::Result<()> {
        if self.queue.is_empty() {
            return Ok(());
        }
        let queue = self.control.list("ListQueuedOwners", Some(QUEUED_NAME))?;
        ensure!(
            queue == self.queue,
            "the queue was {:?} and is {queue:?}",
            self.queue
        );
        let ids: BTreeMap<String, String> = self
            .ask(Command::Names)?
            .into_iter()
            .filter_map(|(id, unique, _)| Some((unique?, id)))
            .collect();
        for unique in queue {
            let owner = self.control.ask("GetNameOwner", QUEUED_NAME)?;
            ensure!(owner == unique, "the owner should be {unique} and is {owner}");
            let id = ids
                .get(&unique)
                .with_context(|| format!("{unique} is nobody's name"))?
                .clone();
            self.command(Command::ReleaseName {
                id,
                name: QUEUED_NAME.to_owned(),
            })?;
            self.until(&Condition::Quiet)?;
        }
        match self.control.ask("GetNameOwner", QUEUED_NAME) {
            Err(CallError::Reply { .. }) => Ok(()),
            other => bail!("everybody has given the name back, and its owner is {other:?}"),
        }
    }

    fn command(&self, command: Command) -> anyhow::Result<()> {
        self.commands
            .send(command)
            .ok()
            .context("the load's thread is gone")?;
        self.wake.write(1)?;
        Ok(())
    }

    fn ask<T>(&self, question: impl FnOnce(Sender<T>) -> Command) -> anyhow::Result<T> {
        let (sender, answer) = channel();
        self.command(question(sender))?;
        answer
            .recv_timeout(PATIENCE)
            .context("the load's thread does not answer")
    }

    fn until(&self, condition: &Condition) -> anyhow::Result<()> {
        let deadline = Deadline::after(PATIENCE);
        while let Some(why) = self.ask(|reply| Command::Check(condition.clone(), reply))? {
            ensure!(!deadline.passed(), "{why}, after {PATIENCE:?}");
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

/// Gives a command to the peers that watch, or to those that do not, and waits for the answer of each.
fn tell(peers: &mut [Attached], command: &str, answer: &str, watchers: bool) -> anyhow::Result<()> {
    let mut asked: Vec<&mut Attached> = peers
        .iter_mut()
        .filter(|peer| peer.watches() == watchers && peer.account().disconnected.is_none())
        .collect();
    asked.iter_mut().for_each(|peer| peer.command(command));
    let deadline = Deadline::after(PATIENCE);
    let silent: Vec<String> = asked
        .iter_mut()
        .filter_map(|peer| peer.wait(answer, deadline).err())
        .map(|e| format!("{e:#}"))
        .collect();
    ensure!(silent.is_empty(), "{}", silent.join("; "));
    Ok(())
}
