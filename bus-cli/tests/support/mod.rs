//! A bus in a process of its own, and the clients of the tests.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

pub mod asker;
pub mod builds;
pub mod bystander;
pub mod listening;
pub mod load;
pub mod observer;
pub mod process;
pub mod random;
pub mod raw;
pub mod scene;
pub mod speaker;
pub mod stalled;
pub mod zbus_peer;

use bus_load::clock::Deadline;
use bus_load::{CallError, Caller};
use bus_wire::Message;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

pub const DRIVER: &str = "org.freedesktop.DBus";
pub const DRIVER_PATH: &str = "/org/freedesktop/DBus";
pub const RESTART: &str = "org.busdaemon.Restart1";

/// How long anything may take that should happen at once.
pub const SOON: Duration = Duration::from_secs(20);

/// What an idle bus does at once it has done after this long.
pub const AT_ONCE: Duration = Duration::from_millis(100);

/// The binary under test.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_bus"))
}

/// The binary under test, with a fault that is compiled into it for tests.
pub fn faulty(directory: &Path, fault: &str) -> PathBuf {
    faulty_copy(binary(), directory, fault)
}

/// The same with another binary.
pub fn faulty_copy(binary: &Path, directory: &Path, fault: &str) -> PathBuf {
    let path = directory.join("faulty");
    let fault = fault.replace("PATH", path.to_str().unwrap());
    let (binary, directory) = (binary.display(), directory.display());
    let script =
        format!("#!/bin/sh\nBUS_TEST_FAULT={fault} XDG_RUNTIME_DIR='{directory}' exec '{binary}' \"$@\"\n");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A running daemon. Dropped, it is stopped; if the test failed, its log is shown.
pub struct Bus {
    child: Child,
    pub directory: tempfile::TempDir,
    pub address: String,
}

impl Bus {
    /// Starts the binary under test.
    pub fn start() -> Bus {
        Bus::start_binary(binary())
    }

    /// Starts the binary under test with this environment.
    pub fn start_in(environment: &[(&str, &str)]) -> Bus {
        let mut command = Command::new(binary());
        command.arg("daemon").envs(environment.iter().copied());
        Bus::start_command(directory(), command)
    }

    /// Starts the binary under test as a session bus with this in its configuration.
    pub fn start_with(configuration: &str) -> Bus {
        let mut command = Command::new(binary());
        command.arg("daemon");
        Bus::start_configured(command, configuration)
    }

    /// Starts another program with dbus-daemon's command line, with the same configuration as [`start_with`](Self::start_with).
    pub fn start_other(program: &Path, configuration: &str) -> Bus {
        Bus::start_configured(Command::new(program), configuration)
    }

    fn start_configured(mut command: Command, configuration: &str) -> Bus {
        let directory = directory();
        let file = configure(directory.path(), configuration);
        command.arg(format!("--config-file={}", file.display()));
        Bus::start_command(directory, command)
    }

    /// Writes its configuration anew. It was started with one.
    pub fn configure(&self, configuration: &str) {
        configure(self.directory.path(), configuration);
    }

    /// As [`start_with`](Self::start_with), with errands that may take only so long.
    pub fn start_patient(configuration: &str, patience: Duration) -> Bus {
        let mut command = Command::new(binary());
        command
            .arg("daemon")
            .env("BUS_TEST_PATIENCE", patience.as_millis().to_string());
        Bus::start_configured(command, configuration)
    }

    /// As [`start_with`](Self::start_with), with a fault on demand.
    pub fn start_faulty(configuration: &str, fault: &str) -> Bus {
        let mut command = Command::new(binary());
        command.arg("daemon").env("BUS_TEST_FAULT", fault);
        Bus::start_configured(command, configuration)
    }

    /// Starts this binary, which may be a copy of it.
    pub fn start_binary(binary: &Path) -> Bus {
        let mut command = Command::new(binary);
        command.arg("daemon");
        Bus::start_command(directory(), command)
    }

    /// Starts the binary under test by a program that executes its last arguments.
    pub fn start_under(wrapper: &[&str]) -> Bus {
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(binary()).arg("daemon");
        Bus::start_command(directory(), command)
    }

    /// As [`start_with`](Self::start_with), by a shell's script, whose arguments are what is to be executed. The bus's directory
    /// is `$XDG_RUNTIME_DIR` there.
    pub fn start_by_script(script: &str, configuration: &str) -> Bus {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(binary()).arg("daemon");
        Bus::start_configured(command, configuration)
    }

    /// Starts the binary under test with this standard error and environment. [`Bus::log`] is empty.
    pub fn start_with_stderr(stderr: impl Into<Stdio>, environment: &[(&str, &str)]) -> Bus {
        let directory = directory();
        File::create(directory.path().join("log")).unwrap();
        let mut command = Command::new(binary());
        command
            .arg("daemon")
            .envs(environment.iter().copied())
            .stderr(stderr);
        Bus::spawn(directory, command)
    }

    fn start_command(directory: tempfile::TempDir, mut command: Command) -> Bus {
        let log = File::create(directory.path().join("log")).unwrap();
        command.stderr(log);
        Bus::spawn(directory, command)
    }

    fn spawn(directory: tempfile::TempDir, mut command: Command) -> Bus {
        let mut child = command
            .arg(format!(
                "--address=unix:path={}",
                directory.path().join("bus").display()
            ))
            .args(["--nofork", "--print-address"])
            .env("XDG_RUNTIME_DIR", directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        drop(command);
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut address)
            .unwrap();
        let bus = Bus {
            child,
            directory,
            address: address.trim().to_owned(),
        };
        assert!(!bus.address.is_empty(), "the daemon did not start");
        bus
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("bus")
    }

    pub fn caller(&self) -> Caller {
        Caller::connect(&self.address).unwrap()
    }

    /// The daemon's main process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The worker process, if there is one at the moment: neither one that has ended and is not reaped yet, nor a child that
    /// does an errand. Where a worker is about to end by itself, and the next one is there, it may be either.
    pub fn worker(&self) -> Option<u32> {
        let pid = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let mut children = children.split_whitespace().filter_map(|child| child.parse().ok());
        children.find(|child: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
            let is_over = field("State:\t").is_none_or(|state| state.starts_with('Z'));
            let ignored = field("SigIgn:\t").map(|mask| u64::from_str_radix(mask, 16).unwrap());
            // Workers ignore this signal; an errand's child leads a process group of its own too, but not from its first
            // moment.
            let is_worker = ignored.is_some_and(|mask| mask >> (Signal::SIGUSR2 as u32 - 1) & 1 == 1);
            !is_over && is_worker
        })
    }

    /// The file that its main process executes.
    pub fn executable(&self) -> PathBuf {
        std::fs::read_link(format!("/proc/{}/exe", self.pid())).unwrap()
    }

    /// What its main process has open, each as the kernel names it, without the numbers of sockets and pipes. Workers
    /// have the same table.
    pub fn descriptors(&self) -> Vec<String> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        let kind = |link: PathBuf| match link.to_str().unwrap().split_once(":[") {
            Some((kind, _)) => kind.to_owned(),
            None => link.display().to_string(),
        };
        let mut descriptors: Vec<String> = links.map(kind).collect();
        descriptors.sort_unstable();
        descriptors
    }

    /// The arguments of its main process, separated by blanks.
    pub fn command_line(&self) -> String {
        let bytes = std::fs::read(format!("/proc/{}/cmdline", self.pid())).unwrap();
        String::from_utf8(bytes).unwrap().replace('\0', " ")
    }

    /// The daemon's main process has not ended.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Waits until it has logged this.
    pub fn wait_for_log(&self, text: &str) {
        wait_until(&format!("{text:?} in the log"), || self.log().contains(text));
    }

    /// Runs `bus --address ... ARGUMENTS`.
    pub fn tool(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command
            .args(["--address", &self.address])
            .args(arguments)
            .output()
            .unwrap()
    }
}

/// Writes the configuration of a session bus with this in it, in one step, and returns the file's path.
fn configure(directory: &Path, configuration: &str) -> PathBuf {
    let text = format!(
        "<!DOCTYPE busconfig PUBLIC '-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN'\n \
         'http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd'>\n\
         <busconfig><type>session</type><listen>unix:path=/replaced/by/the/command/line</listen>\n\
         <auth>EXTERNAL</auth><policy context='default'><allow send_destination='*' eavesdrop='true'/>\n\
         <allow eavesdrop='true'/><allow own='*'/></policy>{configuration}</busconfig>"
    );
    let (new, file) = (directory.join("bus.conf.new"), directory.join("bus.conf"));
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, &file).unwrap();
    file
}

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("bus-test-").tempdir().unwrap()
}

impl Drop for Bus {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "the daemon's log:\n{}",
                lines[lines.len().saturating_sub(40)..].join("\n")
            );
        }
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let deadline = Deadline::after(Duration::from_secs(5));
        while matches!(self.child.try_wait(), Ok(None)) && !deadline.passed() {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks the bus to upgrade itself in place.
pub fn upgrade(caller: &mut Caller, binary: &str) -> Result<u32, CallError> {
    caller.set_timeout(Duration::from_secs(120));
    let reply = caller.call(DRIVER, DRIVER_PATH, RESTART, "Upgrade", |body| {
        body.str(binary);
    })?;
    Ok(reply.body().read_u32().unwrap())
}

/// A property of the bus's own life.
pub fn restart_property(caller: &mut Caller, name: &str) -> Message {
    caller
        .call(
            DRIVER,
            DRIVER_PATH,
            "org.freedesktop.DBus.Properties",
            "Get",
            |body| {
                body.str(RESTART).str(name);
            },
        )
        .unwrap()
}

pub fn generation(caller: &mut Caller) -> u32 {
    restart_property(caller, "Generation")
        .body()
        .read_variant(|value| value.read_u32())
        .unwrap()
}

/// Deaths of the worker that the bus has survived.
pub fn recoveries(caller: &mut Caller) -> u32 {
    restart_property(caller, "Recoveries")
        .body()
        .read_variant(|value| value.read_u32())
        .unwrap()
}

/// Microseconds of the last pause.
pub fn last_pause(caller: &mut Caller) -> u64 {
    let reply = restart_property(caller, "LastRestart");
    let mut body = reply.body();
    body.read_variant(|value| {
        value.read_struct(|fields| {
            fields.read_str()?;
            fields.read_u64()
        })
    })
    .unwrap()
}

/// Waits, within bounds, until something is so.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Deadline::after(SOON);
    while !is_so() {
        assert!(!deadline.passed(), "still not so after {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a bus has open just after an upgrade, when nothing is under way: nothing that it was started with by chance,
/// and nothing that comes and goes with traffic.
pub fn descriptors_after_upgrade(bus: &Bus, control: &mut Caller) -> Vec<String> {
    // Where the worker is killed on demand, it may be in the middle of this.
    let mut tries = 0;
    while let Err(error) = upgrade(control, "") {
        tries += 1;
        assert!(tries < 20, "{error}");
    }
    settled_descriptors(bus)
}

/// What a bus has open once that has not changed for a while: the state that an upgrade was restored from goes only
/// after its caller has been answered.
fn settled_descriptors(bus: &Bus) -> Vec<String> {
    let mut descriptors = bus.descriptors();
    let mut unchanged = 0;
    let deadline = Deadline::after(SOON);
    while unchanged < 10 && !deadline.passed() {
        std::thread::sleep(Duration::from_millis(5));
        let now = bus.descriptors();
        unchanged = if now == descriptors { unchanged + 1 } else { 0 };
        descriptors = now;
    }
    descriptors
}

/// Upgrades until the daemon has the same descriptors open as after an upgrade before, and returns how many upgrades
/// that took: what traffic had opened may still have been in use at the first.
pub fn check_descriptors(bus: &Bus, control: &mut Caller, before: &[String]) -> u32 {
    let mut now = Vec::new();
    for upgrades in 1..=5 {
        now = descriptors_after_upgrade(bus, control);
        let deadline = Deadline::after(SOON / 5);
        while now != before && !deadline.passed() {
            std::thread::sleep(Duration::from_millis(2));
            now = bus.descriptors();
        }
        if now == before {
            return upgrades;
        }
    }
    panic!("the daemon's descriptors were {before:#?} and are {now:#?}");
}

/// Runs a program to its end, which must be a success, and returns what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (out, error) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{command:?}: {}\n{out}{error}",
        output.status
    );
    out.into_owned()
}

/// A program that goes on until it is dropped, and what it has printed so far.
pub struct Background {
    child: Child,
    printed: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Background {
    pub fn start(command: &mut Command) -> Background {
        let (mut output, input) = std::io::pipe().unwrap();
        command
            .stdin(Stdio::null())
            .stdout(input.try_clone().unwrap())
            .stderr(input);
        let child = command.spawn().unwrap();
        // The pipe ends with the program only if nobody else holds it.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let printed = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let sink = printed.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut chunk) {
                sink.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&chunk[..length]));
            }
        });
        Background { child, printed }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    /// Waits until it has printed this.
    pub fn wait_for(&self, text: &str) {
        wait_until(&format!("{text:?} in {:?}", self.printed()), || {
            self.printed().contains(text)
        });
    }

    /// Waits for its end.
    pub fn end(mut self) -> std::process::ExitStatus {
        let mut status = None;
        wait_until("the program has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
