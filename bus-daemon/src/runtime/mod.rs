//! The thin shell around the broker: sockets, clock, system questions, on a current-thread tokio runtime.

pub(crate) mod clock;
mod complaints;
#[cfg(feature = "test-hooks")]
pub(crate) mod fuzz;
mod links;
mod poll;
mod recover;
mod system;
#[cfg(test)]
mod tests;
mod watchdog;
mod worker;

use std::convert::Infallible;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use bus_wire::Guid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::broker::{Broker, Identity, Start};
use crate::config::Config;
use crate::config::options::{self, Command};
use crate::handoff::image;
use crate::journal::Journal;
use crate::keeper::{KeeperV1, worker_exit};
use poll::EpollSet;
use worker::Worker;

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
        /// When its death was noticed.
        died_at: clock::Nanos,
        /// The number of an event that killed it more than once.
        skip: Option<u64>,
        /// Only save the state, for the binary before this one, and exit.
        convert: bool,
    },
}

/// The life of a worker process; its exit code. `kept` is what it and the keeper have open for themselves: where it is
/// given, whatever is open besides was left by another worker.
pub(crate) fn run(record: &KeeperV1, journal: Journal, beginning: Beginning, kept: Option<&[RawFd]>) -> i32 {
    watchdog::start(journal.applying());
    let Err(reason) =
        prepare(record, journal, beginning, kept).and_then(|(worker, start)| serve(record, worker, start));
    tracing::error!("the worker cannot serve: {reason}");
    worker_exit::UNABLE
}

fn prepare(
    record: &KeeperV1,
    journal: Journal,
    beginning: Beginning,
    kept: Option<&[RawFd]>,
) -> Result<(Worker, Start), String> {
    match beginning {
        Beginning::Clean(config) => {
            let broker = Broker::new(identity(record)?, Arc::new(*config), clock::boottime());
            recover::sweep(&broker, kept, &record.listeners);
            let mut worker = Worker::new(broker, journal, record.clone(), None);
            worker.first_checkpoint()?;
            Ok((worker, Start::Clean))
        }
        Beginning::Upgraded => {
            let (worker, pause) = restore(record, journal, kept)?;
            Ok((worker, Start::Upgraded { pause }))
        }
        Beginning::RolledBack { reason } => {
            let (worker, pause) = restore(record, journal, kept)?;
            Ok((worker, Start::RolledBack { reason, pause }))
        }
        Beginning::Recovered {
            died_at,
            skip,
            convert,
        } => {
            let (mut worker, start) = recover(record, journal, died_at, skip, kept.unwrap_or_default())?;
            if convert {
                worker.dismiss_all();
                worker.hand_over();
            }
            Ok((worker, start))
        }
    }
}

/// Goes on where the worker of the binary before this one stopped. Also the pause, in microseconds.
fn restore(record: &KeeperV1, journal: Journal, kept: Option<&[RawFd]>) -> Result<(Worker, u32), String> {
    #[cfg(feature = "test-hooks")]
    crate::fault::in_restore(&record.executable());
    let bytes = crate::handoff::memfd::read(record.image)
        .map_err(|error| format!("cannot read the state: {error}"))?;
    let restored = image::load(&bytes).map_err(|error| error.to_string())?;
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
    // Those of dropped peers are closed below, with their links.
    let dropped = restored.dropped.iter().flat_map(|one| {
        let fds = one.fds.iter().map(|fd| fd.0);
        fds.chain([one.peer.index.cast_signed()])
    });
    let kept: Option<Vec<RawFd>> = kept.map(|kept| kept.iter().copied().chain(dropped).collect());
    recover::sweep(&restored.broker, kept.as_deref(), &record.listeners);
    let stopped_at = clock::Nanos(restored.worker.stopped_at);
    let mut worker = Worker::new(restored.broker, journal, record.clone(), Some(restored.worker));
    worker.drop_links(&restored.dropped);
    let pause = clock::monotonic().micros_since(stopped_at);
    Ok((worker, pause))
}

/// Goes on where a worker died.
fn recover(
    record: &KeeperV1,
    mut journal: Journal,
    died_at: clock::Nanos,
    skip: Option<u64>,
    kept: &[RawFd],
) -> Result<(Worker, Start), String> {
    let mut recovered = recover::replay(&mut journal, record.image, skip)?;
    let accepted = recovered.reconcile(kept, &record.listeners, &journal);
    let quarantined = recovered.quarantined.len() as u32;
    let mut worker = Worker::recovered(recovered, journal, record.clone(), &accepted);
    if skip.is_some() {
        // What is left out now must not be met again.
        worker.first_checkpoint()?;
    }
    let pause = clock::monotonic().micros_since(died_at);
    Ok((worker, Start::Recovered { pause, quarantined }))
}

fn serve(record: &KeeperV1, mut worker: Worker, start: Start) -> Result<Infallible, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    runtime.block_on(async move {
        worker.register().map_err(|error| format!("epoll: {error}"))?;
        #[expect(unsafe_code, reason = "the set is known by its number")]
        // SAFETY: the epoll set stays open for the life of the process.
        let epoll = unsafe { AsyncFd::register_with_interest(EpollSet(record.epoll), Interest::READABLE) }
            .map_err(|error| format!("epoll: {error}"))?;
        worker.begin(start);
        loop {
            worker.turn();
            let due = worker.next_tick();
            let wait = async {
                match due {
                    None => std::future::pending().await,
                    Some(due) => {
                        let left = due.0.saturating_sub(clock::boottime().0);
                        tokio::time::sleep(Duration::from_millis(left)).await;
                    }
                }
            };
            tokio::select! {
                biased;
                ready = epoll.readable() => match ready {
                    // Cleared before the set is looked at: whatever comes later makes it ready again.
                    Ok(mut guard) => guard.clear_ready(),
                    Err(error) => return Err(format!("epoll: {error}")),
                },
                () = wait => worker.tick(),
            }
        }
    })
}

fn identity(record: &KeeperV1) -> Result<Identity, String> {
    let guid = |text: &str| {
        text.parse::<Guid>()
            .map_err(|error| format!("guid {text}: {error}"))
    };
    let mut seed = [0; 8];
    crate::keeper::random_bytes(&mut seed);
    Ok(Identity {
        guid: guid(&record.guid)?,
        listener_guids: record
            .listeners
            .iter()
            .map(|one| guid(&one.guid))
            .collect::<Result<_, _>>()?,
        machine_id: record.machine_id.clone(),
        keeper_pid: nix::unistd::getppid().as_raw().cast_unsigned(),
        own_uid: nix::unistd::geteuid().as_raw(),
        hash_seed: u64::from_ne_bytes(seed),
    })
}

/// The configuration as a start with the same command line would find it.
pub(crate) fn load_config(record: &KeeperV1) -> Result<Config, String> {
    let arguments = record
        .arguments()
        .into_iter()
        .filter_map(|argument| argument.into_string().ok());
    match options::parse(arguments).map_err(|error| error.to_string())? {
        Command::Run(options) => crate::config::load::load(&options).map_err(|error| error.to_string()),
        Command::Help | Command::Version | Command::Introspect => {
            Err("the command line asks for no bus".into())
        }
    }
}
