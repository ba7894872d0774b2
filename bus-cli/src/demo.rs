//! `bus demo`: a real bus under real load, upgraded in place and killed over and over, with every message counted.

use crate::connection::Connection;
use crate::output::{self, Live};
use crate::status::{LastRestart, milliseconds};
use crate::upgrade::upgrade;
use anyhow::{Context, ensure};
use bus_load::clock::{self, Deadline};
use bus_load::{
    Hook, Load, LoadPlan, PeerPlan, Report, Script, echo_service, implementations, peers, watchers,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Scripted clients of each implementation.
const SCRIPTS_EACH: usize = 3;
/// The id of libdbus's echo service.
const ECHO: &str = "echo";

/// Options of the demonstration.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// How many upgrades
    #[arg(long, default_value_t = 25)]
    upgrades: u32,
    /// How many times its worker is killed with SIGKILL
    #[arg(long, default_value_t = 25)]
    kills: u32,
    /// Over how many seconds
    #[arg(long, default_value_t = 20, value_name = "SECONDS")]
    duration: u64,
}

/// The subcommand. It succeeds only if nobody was disconnected and nothing was lost, doubled or reordered.
pub(crate) fn run(options: &Options, as_json: bool) -> anyhow::Result<ExitCode> {
    let bus = PrivateBus::start()?;
    let outcome = demonstrate(&bus, options, as_json);
    if !matches!(outcome, Ok(true)) {
        bus.show_log();
    }
    Ok(if outcome? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn demonstrate(bus: &PrivateBus, options: &Options, as_json: bool) -> anyhow::Result<bool> {
    let mut load = attach(&bus.address, as_json)?;
    let mut connection = Connection::open(&bus.address)?;
    let mut shown = Shown {
        live: Live::new(),
        silent: as_json,
        options,
        done: Done::default(),
    };
    let began = clock::now();
    let rounds = options.upgrades.max(options.kills).max(1);
    for round in 1..=rounds {
        // Both spread evenly over the rounds.
        if due(options.upgrades, round, rounds) {
            // The clients are caught in the middle of everything.
            load.hold(&Hook::ALL).context("before the upgrade")?;
            let number = shown.done.upgrades.len() + 1;
            let upgraded = upgrade(&mut connection, "").with_context(|| format!("upgrade {number}"))?;
            ensure!(
                upgraded.generation as usize == number + 1,
                "upgrade {number}: generation {}",
                upgraded.generation
            );
            shown
                .done
                .upgrades
                .extend(upgraded.last.map(|last| last.pause_us));
            load.release(&Hook::ALL).context("after the upgrade")?;
        }
        let end = began + Duration::from_secs(options.duration) * round / rounds;
        shown.until(
            end.checked_sub(Duration::from_secs(options.duration) / rounds / 2)
                .unwrap_or(end),
            &mut load,
        );
        if due(options.kills, round, rounds) {
            load.hold(&Hook::ALL).context("before the kill")?;
            let pause = kill_worker(&mut connection)
                .with_context(|| format!("kill {}", shown.done.kills.len() + 1))?;
            shown.done.kills.push(pause);
            load.release(&Hook::ALL).context("after the kill")?;
        }
        shown.until(end, &mut load);
        shown.round(round == rounds, &mut load);
    }
    shown.live.end();
    let report = load.finish()?;
    show(&report, &shown.done, as_json);
    Ok(report.is_clean())
}

/// Whether the next of `count` things that are spread over `rounds` is due in this round.
fn due(count: u32, round: u32, rounds: u32) -> bool {
    count * round / rounds > count * (round - 1) / rounds
}

/// Kills the process that routes the messages, and waits for the next to be there. Returns the pause in microseconds.
fn kill_worker(connection: &mut Connection) -> anyhow::Result<u64> {
    let number = |connection: &mut Connection, name: &str| {
        let properties = connection
            .restart()?
            .context("the bus does not tell about itself")?;
        properties
            .get(name)
            .and_then(|value| value.as_i64())
            .with_context(|| format!("no {name}"))
    };
    let (worker, recoveries) = (
        number(connection, "WorkerPID")?,
        number(connection, "Recoveries")?,
    );
    kill(Pid::from_raw(worker.try_into()?), Signal::SIGKILL).context("kill")?;
    let deadline = Deadline::after(Duration::from_secs(30));
    while number(connection, "Recoveries")? == recoveries {
        ensure!(!deadline.passed(), "the worker was not replaced");
        std::thread::sleep(Duration::from_millis(1));
    }
    let properties = connection.restart()?.unwrap_or_default();
    Ok(LastRestart::of(&properties).map_or(0, |last| last.pause_us))
}

/// The pauses so far, in microseconds.
#[derive(Default)]
struct Done {
    upgrades: Vec<u64>,
    kills: Vec<u64>,
}

/// What is shown while it runs.
struct Shown<'a> {
    live: Live,
    silent: bool,
    options: &'a Options,
    done: Done,
}

impl Shown<'_> {
    /// Waits; on a terminal, with live figures.
    fn until(&mut self, end: Instant, load: &mut Load) {
        loop {
            let left = end.saturating_duration_since(clock::now());
            if !self.silent && self.live.overwrites() {
                let text = self.text(load);
                self.live.show(&text);
            }
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(200)));
        }
    }

    /// Where lines do not overwrite each other, one now and then.
    fn round(&mut self, last: bool, load: &mut Load) {
        if !self.silent && !self.live.overwrites() && (last || self.done.upgrades.len().is_multiple_of(5)) {
            let text = self.text(load);
            self.live.show(&text);
        }
    }

    fn text(&self, load: &mut Load) -> String {
        let figures = load.progress();
        let (upgrades, kills) = (self.done.upgrades.len(), self.done.kills.len());
        format!(
            "upgrade {upgrades}/{}, kill {kills}/{}: {} clients, {} messages, {} short visits, {} disconnected",
            self.options.upgrades,
            self.options.kills,
            figures.raw + figures.peers,
            figures.messages,
            figures.visits,
            figures.disconnected
        )
    }
}

/// Attaches our own connections and whichever programs this machine has.
fn attach(address: &str, as_json: bool) -> anyhow::Result<Load> {
    let echo = peers::locate("dbus-test-tool");
    let mut plan = LoadPlan::default();
    plan.call_also
        .extend(echo.iter().map(|_| format!("org.busdaemon.Load.{ECHO}")));
    let mut load = Load::start(address, plan)?;

    let scripts = implementations(|modules| Ok(peers::locate_python(modules)))?;
    let mut ids = Vec::new();
    for (implementation, _) in &scripts {
        let id = implementation.replace('-', "").to_lowercase();
        ids.extend((0..SCRIPTS_EACH).map(|index| (format!("{id}{index}"), (*implementation).to_owned())));
    }
    for plan in PeerPlan::ring(&ids, Duration::from_millis(40)) {
        let python = scripts
            .iter()
            .find(|(implementation, _)| *implementation == plan.implementation);
        let (_, python) = python.context("a script without an interpreter")?;
        load.attach(Box::new(Script::start(python, address, plan)?))?;
    }
    let emitters: Vec<String> = ids.into_iter().map(|(id, _)| id).collect();
    for program in watchers(address, &emitters, |program| Ok(peers::locate(program)))? {
        load.attach(Box::new(program))?;
    }
    if let Some(path) = echo {
        load.attach(Box::new(echo_service(path, address, ECHO)?))?;
    }
    load.invite_visitors();
    load.go()?;
    if !as_json {
        let found = load.implementations();
        let of = |(name, count): (&String, &u32)| format!("{count} of {name}");
        let found: Vec<String> = found.iter().map(of).collect();
        let others = if found.is_empty() {
            "none of other implementations".to_owned()
        } else {
            found.join(", ")
        };
        output::line(&format!("bus at {address}"));
        output::line(&format!(
            "clients: {} raw connections, {others}",
            load.progress().raw
        ));
    }
    Ok(load)
}

/// The median and the longest.
fn summary(pauses: &[u64]) -> (u64, u64) {
    let mut sorted = pauses.to_vec();
    sorted.sort_unstable();
    (
        sorted.get(sorted.len() / 2).copied().unwrap_or_default(),
        sorted.last().copied().unwrap_or_default(),
    )
}

fn show(report: &Report, done: &Done, as_json: bool) {
    if as_json {
        let pause = |pauses: &[u64]| {
            let (median, longest) = summary(pauses);
            json!({ "count": pauses.len(), "median_us": median, "longest_us": longest })
        };
        let total = report.total();
        let line = json!({
            "upgrades": pause(&done.upgrades), "kills": pause(&done.kills),
            "clients": total.clients, "sent": total.sent, "received": total.received, "lost": total.lost,
            "doubled": total.doubled, "reordered": total.reordered, "disconnected": total.disconnected,
            "descriptors": report.fds_passed, "descriptors_leaked": report.fds_leaked,
            "visits": report.visits, "errors": report.errors, "clean": report.is_clean(),
        });
        output::line(&line.to_string());
        return;
    }
    output::line(&format!("\n{report}"));
    for (what, pauses) in [
        ("upgraded in place", &done.upgrades),
        ("worker killed", &done.kills),
    ] {
        let (median, longest) = summary(pauses);
        output::line(&format!(
            "{what} {} times; pause: median {}, longest {}",
            pauses.len(),
            milliseconds(median),
            milliseconds(longest)
        ));
    }
    output::line(if report.is_clean() {
        "no client was disconnected; no message was lost, doubled or reordered"
    } else {
        "FAILED: see the errors above"
    });
}

/// A bus of our own: this same binary, on a socket in a directory that goes when it does.
struct PrivateBus {
    child: Child,
    directory: tempfile::TempDir,
    address: String,
}

impl PrivateBus {
    fn start() -> anyhow::Result<PrivateBus> {
        let directory = tempfile::Builder::new().prefix("bus-demo-").tempdir()?;
        let log = File::create(directory.path().join("log"))?;
        let mut child = Command::new(std::env::current_exe().context("the path of this binary")?)
            .arg("daemon")
            .arg(format!(
                "--address=unix:path={}",
                directory.path().join("bus").display()
            ))
            .args(["--nofork", "--print-address"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("cannot start the daemon")?;
        let mut address = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut address)?;
        }
        let bus = PrivateBus {
            child,
            directory,
            address: address.trim().to_owned(),
        };
        if bus.address.is_empty() {
            bus.show_log();
        }
        ensure!(!bus.address.is_empty(), "the daemon did not start");
        Ok(bus)
    }

    /// The last lines of what the daemon had to say.
    fn show_log(&self) {
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(20)..] {
            output::complain(&format!("the daemon: {line}"));
        }
    }
}

impl Drop for PrivateBus {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let deadline = Deadline::after(Duration::from_secs(5));
        while matches!(self.child.try_wait(), Ok(None)) && !deadline.passed() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
