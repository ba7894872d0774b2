//! Programs that run as they are: monitors, whose output is read, and an echo service.

use super::Peer;
use super::script::lines_of;
use crate::INTERFACE;
use crate::raw::name_of;
use crate::tally::Tally;
use anyhow::{Context, bail};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// How long a watcher may take to print what it has been sent.
const CATCH_UP: Duration = Duration::from_secs(30);

/// A program that was started with its usual options, attached until the end.
pub struct Program {
    id: String,
    implementation: String,
    child: Child,
    lines: Receiver<String>,
    /// The line that says that it is attached contains this; empty: it says nothing.
    attached: &'static str,
    ready: bool,
    streams: BTreeMap<String, Tally>,
    /// A stream whose number is on the next line.
    open: Option<String>,
    expected: BTreeMap<String, u64>,
    said: VecDeque<String>,
}

impl Program {
    /// Starts `command`. It prints the signals of `streams`, and a line with `attached` in it beforehand.
    pub fn start(
        id: &str,
        implementation: &str,
        mut command: Command,
        attached: &'static str,
        streams: &[String],
    ) -> anyhow::Result<Program> {
        // Some say on stderr that they are attached.
        let (output, input) = std::io::pipe()?;
        command
            .stdin(Stdio::null())
            .stdout(input.try_clone()?)
            .stderr(input);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        drop(command);
        let lines = lines_of(output);
        Ok(Program {
            id: id.to_owned(),
            implementation: implementation.to_owned(),
            child,
            lines,
            attached,
            ready: false,
            streams: streams
                .iter()
                .map(|stream| (stream.clone(), Tally::default()))
                .collect(),
            open: None,
            expected: BTreeMap::new(),
            said: VecDeque::new(),
        })
    }

    /// Takes in one line of output. The formats of dbus-monitor, `gdbus monitor` and `busctl monitor --json=short`
    /// all have the stream in quotes and then the number, dbus-monitor's on the next line.
    fn read(&mut self, line: &str) {
        if !self.ready {
            if line.contains(self.attached) {
                self.ready = true;
                self.said.push_back("ready".to_owned());
            }
            return;
        }
        let mut rest = line;
        if let Some(start) = line.find("tick:") {
            let end = line[start..]
                .find(['"', '\''])
                .map_or(line.len(), |length| start + length);
            self.open = Some(line[start..end].to_owned());
            rest = &line[end..];
        }
        let digits = rest.replace("uint64", "");
        let digits: String = digits
            .chars()
            .skip_while(|c| !c.is_ascii_digit())
            .take_while(char::is_ascii_digit)
            .collect();
        if let (Ok(number), Some(stream)) = (digits.parse(), &self.open) {
            if let Some(tally) = self.streams.get_mut(stream) {
                tally.record(number);
            }
            self.open = None;
        }
    }

    fn read_next(&mut self, timeout: Duration) -> anyhow::Result<bool> {
        match self.lines.recv_timeout(timeout) {
            Ok(line) => self.read(&line),
            Err(RecvTimeoutError::Timeout) => return Ok(false),
            Err(RecvTimeoutError::Disconnected) => bail!("it ended with {}", self.child.wait()?),
        }
        Ok(true)
    }

    fn is_behind(&self) -> bool {
        self.streams
            .iter()
            .any(|(stream, tally)| self.expected.get(stream).is_some_and(|n| tally.last() < *n))
    }
}

impl Peer for Program {
    fn who(&self) -> (String, String) {
        (self.id.clone(), self.implementation.clone())
    }

    fn process(&self) -> Option<u32> {
        Some(self.child.id())
    }

    fn command(&mut self, command: &str) -> anyhow::Result<()> {
        match command {
            "stop" => self.said.push_back("stopped".to_owned()),
            "drain" => {
                let deadline = crate::clock::Deadline::after(CATCH_UP);
                while self.is_behind() && !deadline.passed() {
                    self.read_next(deadline.left())?;
                }
                self.said.push_back("drained".to_owned());
            }
            "report" => {
                for (stream, tally) in &self.streams {
                    self.said.push_back(format!("got {stream} {}", tally.counts()));
                }
                self.said.push_back("end".to_owned());
            }
            _ => {}
        }
        Ok(())
    }

    fn line(&mut self, timeout: Duration) -> anyhow::Result<Option<String>> {
        if self.attached.is_empty() && !self.ready {
            self.ready = true;
            return Ok(Some("ready".to_owned()));
        }
        let deadline = crate::clock::Deadline::after(timeout);
        loop {
            if let Some(said) = self.said.pop_front() {
                return Ok(Some(said));
            }
            if !self.read_next(deadline.left())? {
                return Ok(None);
            }
        }
    }

    fn watches(&self) -> bool {
        !self.streams.is_empty()
    }

    fn expect(&mut self, sent: &BTreeMap<String, u64>) {
        self.expected = sent.clone();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Monitors of three implementations and libdbus's echo service, as far as `find` finds them. `emitters` are ids of
/// peers that own their names already; each monitor watches one of them and a raw broadcaster.
pub fn watchers(
    address: &str,
    emitters: &[String],
    mut find: impl FnMut(&str) -> anyhow::Result<Option<PathBuf>>,
) -> anyhow::Result<Vec<Program>> {
    let mut programs = Vec::new();
    let emitter = |index: usize| match emitters {
        [] => "b1".to_owned(),
        _ => emitters[index % emitters.len()].clone(),
    };
    let rule = |id: &str| format!("type='signal',interface='{INTERFACE}',member='Tick',arg0='tick:{id}'");
    for index in 0..2 {
        let (one, two) = (emitter(index), "b0".to_owned());
        let streams = [format!("tick:{one}"), format!("tick:{two}")];
        if let Some(path) = find("dbus-monitor")? {
            let mut command = Command::new(path);
            command.args(["--address", address, &rule(&one), &rule(&two)]);
            let id = format!("dbus-monitor{index}");
            programs.push(Program::start(
                &id,
                "libdbus",
                command,
                "member=NameLost",
                &streams,
            )?);
        }
        if let Some(path) = find("gdbus")? {
            let mut command = Command::new(path);
            command.args(["monitor", "--address", address, "--dest", &name_of(&one)]);
            let id = format!("gdbus-monitor{index}");
            programs.push(Program::start(
                &id,
                "GDBus",
                command,
                "is owned by",
                &streams[..1],
            )?);
        }
        if let Some(path) = find("busctl")? {
            let mut command = Command::new(path);
            command
                .arg(format!("--address={address}"))
                .args(["monitor", "--json=short"]);
            command
                .arg(format!("--match={}", rule(&one)))
                .arg(format!("--match={}", rule(&two)));
            let id = format!("busctl-monitor{index}");
            programs.push(Program::start(&id, "sd-bus", command, "Monitoring", &streams)?);
        }
    }
    Ok(programs)
}

/// libdbus's own echo service, under the name of the peer `id`.
pub fn echo_service(path: PathBuf, address: &str, id: &str) -> anyhow::Result<Program> {
    let mut command = Command::new(path);
    command.args(["echo", "--session", &format!("--name={}", name_of(id))]);
    command.env("DBUS_SESSION_BUS_ADDRESS", address);
    Program::start(id, "libdbus", command, "", &[])
}
