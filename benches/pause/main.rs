//! How long an upgrade in place keeps the clients of a bus waiting, beside what the machine needs for the bare minimum.
//!
//! See `docs/performance.md`, "The pause of an upgrade".

mod bus;
mod client;
mod clock;
mod floor;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use bus::Bus;
use client::Client;
use report::{Line, Series};

/// Measures the pause of upgrades in place.
#[derive(Debug, Parser)]
struct Options {
    /// The daemon, which is upgraded to itself; by default the one beside this program
    #[arg(long)]
    bus: Option<PathBuf>,
    /// Upgrades for each number of connections
    #[arg(long, default_value_t = 15)]
    upgrades: usize,
    /// Numbers of connections
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1000])]
    connections: Vec<usize>,
    /// SIGKILLs of the worker for each number of connections
    #[arg(long, default_value_t = 15)]
    kills: usize,
    /// Also 9,000 connections
    #[arg(long)]
    large: bool,
}

fn main() -> ExitCode {
    // Images of the floor measurement must be as small and quick as can be: no command line parser.
    match floor::image() {
        Some(Ok(())) => return ExitCode::SUCCESS,
        Some(Err(error)) => return fail(&error),
        None => {}
    }
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("pause: {error:#}");
    ExitCode::FAILURE
}

fn run(options: Options) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let program = match options.bus {
        Some(program) => std::path::absolute(program)?,
        None => std::env::current_exe()?.with_file_name("bus-daemon"),
    };
    ensure!(
        program.exists(),
        "{} does not exist: run cargo build --release first, or give --bus",
        program.display()
    );
    let mut sizes = options.connections;
    if options.large {
        sizes.push(9000);
    }
    report::head();
    let mut recovered = Vec::new();
    for size in sizes {
        let floor = floor::measure(size, options.upgrades)?;
        let (pauses, recoveries) = measure(&program, size, options.upgrades, options.kills)
            .with_context(|| format!("with {size} connections"))?;
        report::line(&Line { size, floor, pauses });
        if options.kills > 0 {
            let floor = floor::respawn(size, options.kills)?;
            recovered.push((size, floor, recoveries));
        }
    }
    report::recoveries(&recovered);
    Ok(())
}

/// What was measured of one bus.
pub(crate) struct Pauses {
    /// As the daemon tells, in nanoseconds: from the last act of the old worker to the first of the new one.
    told: Series,
    /// The longest time for which a client waited for the answer to a call, around each upgrade.
    seen: Series,
}

fn measure(
    program: &std::path::Path,
    size: usize,
    upgrades: usize,
    kills: usize,
) -> Result<(Pauses, Pauses)> {
    let bus = Bus::start(program)?;
    let mut clients = Vec::with_capacity(size);
    for number in 0..size {
        let mut client = Client::connect(&bus.path)?;
        client.settle(number)?;
        clients.push(client);
    }
    let mut caller = clients.pop().context("at least one connection is needed")?;
    let mut pinger = match clients.pop() {
        Some(client) => client,
        None => Client::connect(&bus.path)?,
    };

    let longest = Arc::new(AtomicU64::new(0));
    let is_over = Arc::new(AtomicBool::new(false));
    let pings = std::thread::spawn({
        let (longest, is_over) = (longest.clone(), is_over.clone());
        move || -> Result<()> {
            while !is_over.load(Ordering::Relaxed) {
                let began = clock::now()?;
                pinger.ping()?;
                longest.fetch_max(clock::now()? - began, Ordering::Relaxed);
                // The daemon is to be idle for most of the time, as it is in life.
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
            Ok(())
        }
    });
    let mut pauses = Pauses {
        told: Series::default(),
        seen: Series::default(),
    };
    for number in 0..upgrades {
        std::thread::sleep(std::time::Duration::from_millis(30));
        longest.store(0, Ordering::Relaxed);
        let generation = caller.upgrade().context("Upgrade")?;
        ensure!(
            generation as usize == number + 2,
            "the bus is at generation {generation} after {} upgrades",
            number + 1
        );
        caller.ping()?;
        std::thread::sleep(std::time::Duration::from_millis(20));
        let restart = caller.last_restart()?;
        ensure!(
            restart.carried as usize == size.max(2) && restart.dropped == 0,
            "{} connections were carried over and {} lost",
            restart.carried,
            restart.dropped
        );
        pauses.told.add(restart.pause * 1000);
        pauses.seen.add(longest.load(Ordering::Relaxed));
    }
    let mut recoveries = Pauses {
        told: Series::default(),
        seen: Series::default(),
    };
    for _ in 0..kills {
        std::thread::sleep(std::time::Duration::from_millis(30));
        longest.store(0, Ordering::Relaxed);
        bus.kill_worker()?;
        caller.ping()?;
        std::thread::sleep(std::time::Duration::from_millis(20));
        let restart = caller.last_restart()?;
        ensure!(
            restart.carried as usize == size.max(2) && restart.dropped == 0,
            "{} connections were carried over a death and {} lost",
            restart.carried,
            restart.dropped
        );
        recoveries.told.add(restart.pause * 1000);
        recoveries.seen.add(longest.load(Ordering::Relaxed));
    }
    is_over.store(true, Ordering::Relaxed);
    pings
        .join()
        .ok()
        .context("the thread that pings has panicked")??;
    Ok((pauses, recoveries))
}
