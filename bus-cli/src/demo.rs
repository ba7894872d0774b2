//! `bus demo`: a real bus under real load, upgraded in place over and over, with every message counted.

use crate::connection::Connection;
use crate::output::{self, Live};
use crate::status::milliseconds;
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
use std::time::Duration;

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
    let mut live = Live::new();
    let began = clock::now();
    let mut pauses = Vec::new();
    for index in 1..=options.upgrades {
        // The clients are caught in the middle of everything.
        load.hold(&Hook::ALL).context("before the upgrade")?;
        let upgraded = upgrade(&mut connection, "").with_context(|| format!("upgrade {index}"))?;
        ensure!(
            upgraded.generation == index + 1,
            "upgrade {index} led to generation {}",
            upgraded.generation
        );
        pauses.extend(upgraded.last.map(|last| last.pause_us));
        load.release(&Hook::ALL).context("after the upgrade")?;
        let next = began + Duration::from_secs(options.duration) * index / options.upgrades.max(1);
        let shown = live.overwrites() || index.is_multiple_of(5) || index == options.upgrades;
        loop {
            if shown && !as_json {
                live.show(&progress(&mut load, index, options.upgrades, &pauses));
            }
            let left = next.saturating_duration_since(clock::now());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(if live.overwrites() {
                left.min(Duration::from_millis(200))
            } else {
                left
            });
        }
    }
    live.end();
    let report = load.finish()?;
    show(&report, &pauses, as_json);
    Ok(report.is_clean())
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

fn progress(load: &mut Load, done: u32, all: u32, pauses: &[u64]) -> String {
    let figures = load.progress();
    let pause = pauses
        .last()
        .map_or_else(String::new, |pause| format!(" (pause {})", milliseconds(*pause)));
    format!(
        "upgrade {done}/{all}{pause}: {} clients, {} messages, {} short visits, {} disconnected",
        figures.raw + figures.peers,
        figures.messages,
        figures.visits,
        figures.disconnected
    )
}

fn show(report: &Report, pauses: &[u64], as_json: bool) {
    let mut sorted = pauses.to_vec();
    sorted.sort_unstable();
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    let longest = sorted.last().copied().unwrap_or_default();
    if as_json {
        let total = report.total();
        let line = json!({
            "upgrades": pauses.len(), "pause_us": { "median": median, "longest": longest },
            "clients": total.clients, "sent": total.sent, "received": total.received, "lost": total.lost,
            "doubled": total.doubled, "reordered": total.reordered, "disconnected": total.disconnected,
            "descriptors": report.fds_passed, "descriptors_leaked": report.fds_leaked,
            "visits": report.visits, "errors": report.errors, "clean": report.is_clean(),
        });
        output::line(&line.to_string());
        return;
    }
    output::line(&format!("\n{report}"));
    output::line(&format!(
        "upgrades in place: {}; pause: median {}, longest {}",
        pauses.len(),
        milliseconds(median),
        milliseconds(longest)
    ));
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
