//! Clients of other implementations: unmodified programs and libraries, attached as child processes.

mod program;
mod script;
mod visitors;

use crate::account::Account;
use crate::clock::Deadline;
use crate::fds;
use crate::raw::name_of;
use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::time::Duration;

pub use program::{Program, echo_service, watchers};
pub use script::{Script, implementations};
pub(crate) use visitors::Visitors;

/// What one long-lived client of another implementation does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPlan {
    /// Unique within the load.
    pub id: String,
    /// The implementation, as the report names it.
    pub implementation: String,
    /// The names that it calls `Echo` of.
    pub calls: Vec<String>,
    /// The streams that it subscribes to.
    pub subscribes: Vec<String>,
    /// Between two calls to one name, and between two signals.
    pub interval: Duration,
}

impl PeerPlan {
    /// The well-known name under which it serves.
    pub fn name(&self) -> String {
        name_of(&self.id)
    }

    /// The stream of the signals that it emits.
    pub fn stream(&self) -> String {
        format!("tick:{}", self.id)
    }

    /// A ring: everybody calls the next one and a raw connection, and subscribes to the next one's signals and to
    /// those of a raw connection. `ids` are the ids with their implementations.
    pub fn ring(ids: &[(String, String)], interval: Duration) -> Vec<PeerPlan> {
        let plan = |(index, (id, implementation)): (usize, &(String, String))| {
            let next = &ids[(index + 1) % ids.len()].0;
            PeerPlan {
                id: id.clone(),
                implementation: implementation.clone(),
                calls: vec![name_of(next), name_of("p0a")],
                subscribes: vec![format!("tick:{next}"), "tick:b0".to_owned()],
                interval,
            }
        };
        ids.iter().enumerate().map(plan).collect()
    }

    /// The plan as the arguments that the scripts take.
    pub fn arguments(&self, address: &str) -> Vec<String> {
        let mut arguments = vec![
            format!("address={address}"),
            format!("id={}", self.id),
            format!("name={}", self.name()),
            format!("emit={}", self.stream()),
            format!("interval={}", self.interval.as_millis()),
        ];
        arguments.extend(self.calls.iter().map(|name| format!("call={name}")));
        arguments.extend(self.subscribes.iter().map(|stream| format!("subscribe={stream}")));
        arguments
    }
}

/// A long-lived client outside the raw load. It is told `go`, `stop`, `drain` and `report`, one line each, and says
/// `ready UNIQUE-NAME`, `stopped`, `drained`, and the lines of [`Account::line`] followed by `end`.
pub trait Peer: Send {
    /// Its id and its implementation.
    fn who(&self) -> (String, String);
    /// Gives it a command.
    fn command(&mut self, command: &str) -> anyhow::Result<()>;
    /// Its next line, or None if none comes in time. An error: it is gone.
    fn line(&mut self, timeout: Duration) -> anyhow::Result<Option<String>>;
    /// The process that it is, if it is one of its own.
    fn process(&self) -> Option<u32> {
        None
    }
    /// It only watches: it is drained after all others have reported, and has been told what to expect.
    fn watches(&self) -> bool {
        false
    }
    /// A watcher says `drained` once it has seen these streams up to these numbers; others need not be told.
    fn expect(&mut self, _sent: &BTreeMap<String, u64>) {}
}

/// A [`Peer`] and its books.
pub(crate) struct Attached {
    peer: Box<dyn Peer>,
    account: Account,
    traffic: u64,
    fds_at_start: Option<usize>,
}

impl Attached {
    /// Waits until the peer is connected, named and subscribed.
    pub(crate) fn new(peer: Box<dyn Peer>) -> anyhow::Result<Attached> {
        let (id, implementation) = peer.who();
        let account = Account {
            id,
            implementation,
            ..Account::default()
        };
        let mut attached = Attached {
            peer,
            account,
            traffic: 0,
            fds_at_start: None,
        };
        let unique = attached.wait("ready", Deadline::after(Duration::from_secs(30)))?;
        attached.account.unique = Some(unique).filter(|unique| !unique.is_empty());
        Ok(attached)
    }

    /// Counts the descriptors that it has open, before it sends anything.
    pub(crate) fn count_fds(&mut self) {
        self.fds_at_start = self.peer.process().and_then(|pid| fds::open_count(pid).ok());
    }

    /// Notes the descriptors that it has open, now that nothing is under way, and had not before.
    pub(crate) fn compare_fds(&mut self) {
        let now = self.peer.process().and_then(|pid| fds::open_count(pid).ok());
        if let (Some(before), Some(now)) = (self.fds_at_start, now) {
            self.account.fds_left = now.saturating_sub(before) as u64;
        }
    }

    pub(crate) fn command(&mut self, command: &str) {
        if self.account.disconnected.is_none()
            && let Err(error) = self.peer.command(command)
        {
            self.account.disconnected = Some(format!("{error:#}"));
        }
    }

    /// Reads lines until one starts with `word`, and gives the rest of it.
    pub(crate) fn wait(&mut self, word: &str, deadline: Deadline) -> anyhow::Result<String> {
        loop {
            let line = match self.peer.line(deadline.left()) {
                Ok(Some(line)) => line,
                Ok(None) => bail!("{} did not say {word:?} in time", self.account.id),
                Err(error) => {
                    let reason = self
                        .account
                        .disconnected
                        .get_or_insert_with(|| format!("{error:#}"));
                    bail!("{}: {reason}", self.account.id);
                }
            };
            if let Some(rest) = line.strip_prefix(word) {
                return Ok(rest.trim().to_owned());
            }
            self.take(&line)?;
        }
    }

    fn take(&mut self, line: &str) -> anyhow::Result<()> {
        match line.strip_prefix("progress ") {
            Some(count) => self.traffic = count.parse().context("progress")?,
            None => self.account.line(line)?,
        }
        Ok(())
    }

    /// Takes what it has said so far, without waiting. Messages sent and received, as it last said.
    pub(crate) fn traffic(&mut self) -> u64 {
        while self.account.disconnected.is_none() {
            match self.peer.line(Duration::ZERO) {
                Ok(Some(line)) => {
                    let _ = self.take(&line);
                }
                Ok(None) => break,
                Err(error) => self.account.disconnected = Some(format!("{error:#}")),
            }
        }
        self.traffic
    }

    pub(crate) fn watches(&self) -> bool {
        self.peer.watches()
    }

    pub(crate) fn expect(&mut self, sent: &BTreeMap<String, u64>) {
        self.peer.expect(sent);
    }

    pub(crate) fn note(&mut self, error: String) {
        self.account.errors.push(error);
    }

    /// Its books.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }
}
