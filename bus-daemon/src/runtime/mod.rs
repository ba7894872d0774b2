//! The thin shell around the broker: sockets, clock, system questions, on a current-thread tokio runtime.

mod alarm;
#[cfg(any(test, feature = "bench-hooks"))]
pub(crate) mod bench;
mod complaints;
#[cfg(any(test, feature = "test-hooks"))]
pub(crate) mod fuzz;
mod in_flight;
mod last_word;
mod line;
mod links;
mod poll;
pub(crate) mod process;
mod recover;
mod rotation;
mod system;
#[cfg(test)]
mod tests;
mod wait;
mod watchdog;
mod worker;

use std::convert::Infallible;
use std::os::fd::RawFd;
use std::sync::Arc;

use bus_wire::{Guid, SASL_NONCE};
use bytes::Bytes;

use crate::broker::{Broker, Identity, ListenerIdentity, Millis, Start, Transport};
use crate::config::Config;
use crate::control::{Inbox, worker_exit};
use crate::handoff::form::Form;
use crate::handoff::image;
use crate::handoff::keeper::{KeeperV1, Listener};
use crate::handoff::stored::LAYOUT;
use crate::journal::Journal;
use crate::os::memfd::SharedMapping;
use crate::os::{clock, memory};
use poll::EpollSet;
pub(crate) use system::machine_id;
use wait::Waiting;
use worker::Worker;

/// Why a peer is disconnected whose descriptors the kernel had to drop.
const LOST_FDS: &str = "its file descriptors did not fit into the table of open files";

/// What a worker begins with.
pub(crate) enum Beginning {
    /// No peer at all.
    Clean(Box<Config>),
    /// The state in the keeper's image, written by the binary before this one.
    Upgraded,
    /// The state in the keeper's image, which a newer binary could not serve.
    RolledBack {
        /// Why.
        reason: String,
    },
    /// What a worker that died left in the journal.
    Recovered {
        /// Its death.
        death: Death,
        /// Only save the state in this form, for the binary before this one, and exit.
        convert: Option<Form>,
    },
}

/// What a recovery has to know of a worker's death.
pub(crate) struct Death {
    /// When it was noticed.
    pub(crate) at: clock::Nanos,
    /// The number of a received unit that has killed workers more than once.
    pub(crate) skip: Option<u64>,
    /// Workers in a row, this one the last, that died before they had come to serve.
    pub(crate) cut_short: u32,
}

#[cfg(test)]
impl Death {
    /// One that nothing is known of.
    fn now() -> Self {
        Self {
            at: clock::monotonic(),
            skip: None,
            cut_short: 0,
        }
    }
}

/// What a worker finds open when it begins.
pub(crate) struct Open {
    /// Of that what it and the keeper need for themselves.
    pub(crate) kept: Vec<RawFd>,
    /// A worker before it, in this process image, may have left more.
    pub(crate) has_more: bool,
}

/// The life of a worker process; its exit code.
pub(crate) fn run(
    record: &KeeperV1,
    mut journal: Journal,
    inbox: Inbox,
    beginning: Beginning,
    open: &Open,
) -> i32 {
    journal.set_cap(memory::cap());
    last_word::arrange(inbox, record.control);
    watchdog::start(journal.unit());
    let Err(reason) = prepare(record, journal, inbox, beginning, open)
        .and_then(|(worker, start)| serve(record, worker, start));
    tracing::error!("the worker cannot serve: {reason}");
    worker_exit::UNABLE
}

fn prepare(
    record: &KeeperV1,
    journal: Journal,
    inbox: Inbox,
    beginning: Beginning,
    open: &Open,
) -> Result<(Worker, Start), String> {
    match beginning {
        Beginning::Clean(config) => {
            let broker = Broker::new(identity(record)?, Arc::new(*config), now());
            if open.has_more {
                recover::sweep(&open.kept, &record.listeners);
            }
            let mut worker = Worker::new(broker, journal, record.clone(), inbox, 0);
            worker.first_checkpoint()?;
            Ok((worker, Start::Clean))
        }
        Beginning::Upgraded => {
            let (worker, pause) = restore(record, journal, inbox, open)?;
            Ok((worker, Start::Upgraded { pause }))
        }
        Beginning::RolledBack { reason } => {
            let (worker, pause) = restore(record, journal, inbox, open)?;
            Ok((worker, Start::RolledBack { reason, pause }))
        }
        Beginning::Recovered { death, convert } => {
            let (mut worker, start) = recover(record, journal, inbox, &death, &open.kept)?;
            if let Some(form) = convert {
                worker.dismiss_all();
                worker.hand_over(form);
            }
            Ok((worker, start))
        }
    }
}

/// Goes on where the worker of the binary before this one stopped. Also the pause, in microseconds.
fn restore(
    record: &KeeperV1,
    mut journal: Journal,
    inbox: Inbox,
    open: &Open,
) -> Result<(Worker, u32), String> {
    #[cfg(feature = "test-hooks")]
    crate::fault::in_restore(&record.executable());
    let bytes =
        crate::os::memfd::read(record.image).map_err(|error| format!("cannot read the state: {error}"))?;
    let lent = SharedMapping(Arc::new(bytes));
    let bytes = Bytes::from_owner(lent.clone());
    let mut restored = image::load_lent(&bytes, now()).map_err(|error| error.to_string())?;
    check_nonces(record, &restored.broker)?;
    for damage in &restored.damage {
        tracing::error!("the state is damaged: {damage}");
    }
    for dropped in &restored.dropped {
        tracing::error!(
            "peer {} cannot be carried over: {}",
            dropped.peer.index,
            dropped.reason
        );
    }
    // What a damaged record named is nobody's any more: a store, or sockets.
    if open.has_more || !restored.damage.is_empty() {
        let carried = restored.manifest.iter().map(|(_, number)| *number);
        let carried = carried.chain(restored.worker.stored.iter().map(|stored| stored.number));
        let kept: Vec<RawFd> = open.kept.iter().copied().chain(carried).collect();
        recover::sweep(&kept, &record.listeners);
    }
    let stopped_at = clock::Nanos(restored.worker.stopped_at);
    let mut lost = Vec::new();
    if let Some(stored) = &restored.worker.stored {
        journal.adopt_stored(stored)?;
        lost = journal.resume_inputs(&mut restored.broker, stored);
    }
    journal.end_naming();
    let is_rewritten = restored
        .worker
        .stored
        .as_ref()
        .is_some_and(|stored| stored.layout != LAYOUT);
    let mut worker = Worker::carried(restored, &lost, journal, record.clone(), inbox);
    worker.settle_from(lent);
    if is_rewritten {
        // So nobody has to do it again, and the old store can go.
        worker.first_checkpoint()?;
    }
    let pause = clock::monotonic().micros_since(stopped_at);
    Ok((worker, pause))
}

/// Goes on where a worker died.
fn recover(
    record: &KeeperV1,
    mut journal: Journal,
    inbox: Inbox,
    death: &Death,
    kept: &[RawFd],
) -> Result<(Worker, Start), String> {
    let mut recovered = recover::replay_in_steps(&mut journal, record.image, death.skip, death.cut_short)?;
    check_nonces(record, &recovered.broker)?;
    if !recovered.is_damaged {
        recovered.dismiss_quarantined(&mut journal);
    }
    // So the next one has nothing to replay, if this one is cut short, too.
    let is_progress = death.cut_short > 0 && death.skip.is_none();
    if (recovered.has_ended_errand || is_progress) && !recovered.is_damaged {
        journal.checkpoint(&mut recovered.broker, recovered.generation)?;
    }
    // What the keeper keeps for entries that it takes for unheard is the state's, where the journal has them.
    let heard = inbox.catch_up(journal.heard());
    let kept: Vec<RawFd> = kept.iter().copied().filter(|fd| !heard.contains(fd)).collect();
    let accepted = recovered.reconcile(&kept, &record.listeners, &mut journal);
    let quarantined = recovered.quarantined.len() as u32;
    let is_damaged = recovered.is_damaged;
    let mut worker = Worker::recovered(recovered, journal, record.clone(), inbox, &accepted);
    if death.skip.is_some() || is_damaged {
        // What is left out now, or cannot be read, must not be met again.
        worker.first_checkpoint()?;
    }
    let pause = clock::monotonic().micros_since(death.at);
    Ok((worker, Start::Recovered { pause, quarantined }))
}

fn serve(record: &KeeperV1, mut worker: Worker, start: Start) -> Result<Infallible, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    runtime.block_on(async move {
        worker.register().map_err(|error| format!("epoll: {error}"))?;
        worker.begin(start);
        #[cfg(feature = "test-hooks")]
        crate::fault::share_runtime();
        let mut waiting = Waiting::new(EpollSet(record.epoll));
        loop {
            let waited = waiting.wait_after_turns(&mut worker).await;
            waited.map_err(|error| format!("epoll: {error}"))?;
        }
    })
}

fn identity(record: &KeeperV1) -> Result<Identity, String> {
    let guid = |text: &str| {
        text.parse::<Guid>()
            .map_err(|error| format!("guid {text}: {error}"))
    };
    let mut seed = [0; 8];
    crate::os::random::fill(&mut seed);
    Ok(Identity {
        guid: guid(&record.guid)?,
        listeners: record
            .listeners
            .iter()
            .map(|one| {
                Ok(ListenerIdentity {
                    guid: guid(&one.guid)?,
                    transport: system::transport(one.fd),
                    nonce: nonce(one)?,
                })
            })
            .collect::<Result<_, String>>()?,
        machine_id: record.machine_id.clone(),
        keeper_pid: nix::unistd::getppid().as_raw().cast_unsigned(),
        own_uid: nix::unistd::geteuid().as_raw(),
        hash_seed: u64::from_ne_bytes(seed),
    })
}

/// What clients of a listener have to say first.
fn nonce(listener: &Listener) -> Result<Option<[u8; SASL_NONCE]>, String> {
    let Some(path) = nonce_file(listener) else {
        return Ok(None);
    };
    let bytes = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    let nonce = bytes.try_into();
    nonce.map(Some).map_err(|_| format!("{path} holds no nonce"))
}

/// The file that a listener's clients read first: a socket of the internet has no other.
fn nonce_file(listener: &Listener) -> Option<&str> {
    let path = listener.path.as_deref()?;
    (system::transport(listener.fd) == Transport::Tcp).then_some(path)
}

/// A listener whose clients have to know a nonce must not be open to everybody for damage to the state.
fn check_nonces(record: &KeeperV1, broker: &Broker) -> Result<(), String> {
    let known = &broker.identity().listeners;
    for (index, listener) in record.listeners.iter().enumerate() {
        let is_known = known.get(index).is_some_and(|one| one.nonce.is_some());
        if let Some(path) = nonce_file(listener).filter(|_| !is_known) {
            return Err(format!("the state lacks the nonce that is in {path}"));
        }
    }
    Ok(())
}

/// Now, as the broker counts time.
pub(crate) fn now() -> Millis {
    Millis(clock::monotonic().millis())
}
