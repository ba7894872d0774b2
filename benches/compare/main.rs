//! Measures what a message costs several buses, side by side: CPU microseconds of the bus's processes per operation.
//!
//! All buses of a case run at once and are measured in turns, round after round, so that what the machine does meanwhile
//! meets them alike; compared are the medians over the rounds of the ratios within a round. `docs/performance.md` has the
//! method.
#![allow(clippy::print_stdout, reason = "the table is what this program is for")]

mod bus;
mod case;
mod client;
mod cpu;
mod fds;
mod load;
mod message;
mod policy;
mod relay;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use bus::{Bus, Candidate};
use case::Case;
use load::Running;
use report::{Measured, Report};

/// Compares message buses: CPU microseconds per operation.
#[derive(Parser)]
struct Arguments {
    /// A bus to measure: a name, and a program with dbus-daemon's command line
    #[arg(long = "bus", value_name = "NAME=PROGRAM")]
    buses: Vec<Candidate>,
    /// Leave out the dbus-daemon and the dbus-broker that are installed
    #[arg(long)]
    only: bool,
    /// Leave out the relay, too: ratios are to the last `--bus`
    #[arg(long, requires = "only")]
    no_relay: bool,
    /// Rounds of each case
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Only cases whose name contains this
    #[arg(long = "case", value_name = "TEXT")]
    cases: Vec<String>,
    /// Divide the operations of each measurement by this
    #[arg(long, default_value_t = 1)]
    quick: usize,
    /// Idle connections in the case that has them, as far as the limit of open files allows
    #[arg(long, default_value_t = 5_000)]
    idle: usize,
    /// The CPU on which the buses run
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// The CPU on which the clients run; the buses' own, unless said
    #[arg(long)]
    client_cpu: Option<usize>,
    /// Write every measurement there as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[arg(long, hide = true, value_name = "PATH")]
    serve_relay: Option<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    if let Some(path) = &arguments.serve_relay {
        return relay::serve(path);
    }
    ensure!(
        arguments.rounds > 0 && arguments.quick > 0,
        "at least one round, of at least all operations"
    );
    let candidates = candidates(&arguments);
    ensure!(!candidates.is_empty(), "there is no bus to measure");
    let mut report = Report::new(
        candidates
            .iter()
            .map(|candidate| candidate.name.clone())
            .collect(),
    );
    println!("{}", report.heading());
    // All buses are up at once, and all of their clients are in this process.
    let room = (usize::try_from(most)?.saturating_sub(1_000)) / candidates.len();
    for case in case::all(arguments.idle.min(room)) {
        if arguments.cases.is_empty() || arguments.cases.iter().any(|text| case.name.contains(text)) {
            let measured = measure(&case, &candidates, &arguments).with_context(|| case.name.clone())?;
            println!("{}", report.add(measured));
        }
    }
    if let Some(file) = &arguments.json {
        std::fs::write(file, report.json()?).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

fn candidates(arguments: &Arguments) -> Vec<Candidate> {
    let mut candidates = arguments.buses.clone();
    if !arguments.only {
        candidates.extend(Candidate::installed());
    }
    if !arguments.no_relay {
        candidates.push(Candidate::relay());
    }
    candidates
}

fn measure(case: &Case, candidates: &[Candidate], arguments: &Arguments) -> Result<Measured> {
    let operations = (case.operations / arguments.quick).max(1);
    let client_cpu = arguments.client_cpu.unwrap_or(arguments.cpu);
    let mut running = Vec::new();
    for candidate in candidates {
        let bus = candidate.start(arguments.cpu, client_cpu)?;
        let load = Running::set_up(&case.load, &bus, !candidate.is_relay())
            .and_then(|mut load| load.run(operations).map(|()| load))
            .with_context(|| candidate.name.clone())?;
        running.push((bus, load));
    }
    let mut rounds = Vec::new();
    for round in 0..arguments.rounds {
        let mut costs = vec![0.0; running.len()];
        for turn in 0..running.len() {
            let number = (round + turn) % running.len();
            let (bus, load) = &mut running[number];
            let before = settled(bus)?;
            load.run(operations)
                .with_context(|| candidates[number].name.clone())?;
            costs[number] = (settled(bus)? - before) as f64 / 1e3 / operations as f64;
        }
        rounds.push(costs);
    }
    Ok(Measured {
        name: case.name.clone(),
        unit: case.unit,
        operations,
        rounds,
    })
}

/// The CPU time of a bus once it has come to rest.
fn settled(bus: &Bus) -> Result<u64> {
    let mut last = bus.cpu()?;
    loop {
        std::thread::sleep(Duration::from_millis(2));
        let now = bus.cpu()?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
}
