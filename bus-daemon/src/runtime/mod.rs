//! The thin shell around the broker: sockets, clock, system questions, on a current-thread tokio runtime.

pub(crate) mod clock;
mod links;
pub(crate) mod logging;
mod poll;
mod system;
mod worker;

use std::convert::Infallible;
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
}

/// The life of a worker process; its exit code.
pub(crate) fn run(record: &KeeperV1, journal: Journal, beginning: Beginning) -> i32 {
    let Err(reason) =
        prepare(record, journal, beginning).and_then(|(worker, start)| serve(record, worker, start));
    tracing::error!("the worker cannot serve: {reason}");
    worker_exit::UNABLE
}

fn prepare(record: &KeeperV1, journal: Journal, beginning: Beginning) -> Result<(Worker, Start), String> {
    if let Beginning::Clean(config) = beginning {
        let broker = Broker::new(identity(record)?, Arc::new(*config), clock::boottime());
        return Ok((Worker::new(broker, journal, record.clone(), None), Start::Clean));
    }
    #[cfg(feature = "test-hooks")]
    crate::fault::point("restore");
    let bytes = crate::handoff::memfd::read(record.image)
        .map_err(|error| format!("cannot read the state: {error}"))?;
    let restored = image::load(&bytes).map_err(|error| error.to_string())?;
    for damage in &restored.damage {
        tracing::error!("the state is damaged: {damage}");
    }
    for dropped in &restored.dropped {
        tracing::error!("peer {} cannot be carried over: {}", dropped.peer.index, dropped.reason);
    }
    let stopped_at = clock::Nanos(restored.worker.stopped_at);
    let mut worker = Worker::new(restored.broker, journal, record.clone(), Some(restored.worker));
    worker.drop_links(&restored.dropped);
    let pause = clock::monotonic().micros_since(stopped_at);
    let start = match beginning {
        Beginning::RolledBack { reason } => Start::RolledBack { reason, pause },
        Beginning::Clean(_) | Beginning::Upgraded => Start::Upgraded { pause },
    };
    Ok((worker, start))
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
    let guid = |text: &str| text.parse::<Guid>().map_err(|error| format!("guid {text}: {error}"));
    let mut seed = [0; 8];
    crate::keeper::random_bytes(&mut seed);
    Ok(Identity {
        guid: guid(&record.guid)?,
        listener_guids: record.listeners.iter().map(|one| guid(&one.guid)).collect::<Result<_, _>>()?,
        machine_id: record.machine_id.clone(),
        keeper_pid: nix::unistd::getppid().as_raw().cast_unsigned(),
        own_uid: nix::unistd::geteuid().as_raw(),
        hash_seed: u64::from_ne_bytes(seed),
    })
}

/// The configuration as a start with the same command line would find it.
fn load_config(record: &KeeperV1) -> Result<Config, String> {
    let arguments = record.arguments().into_iter().filter_map(|argument| argument.into_string().ok());
    match options::parse(arguments).map_err(|error| error.to_string())? {
        Command::Run(options) => crate::config::load::load(&options).map_err(|error| error.to_string()),
        Command::Help | Command::Version | Command::Introspect => {
            Err("the command line asks for no bus".into())
        }
    }
}
