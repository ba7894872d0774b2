//! A bus of the reference implementation, and a service that counts.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bus_client::{BoxFuture, Builder, Connection, Incoming, Interface, Reply};

pub const COUNTER: &str = "com.example.Counter";

mod broker;
pub mod load;

/// Which implementation of a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Daemon,
    /// dbus-broker, for which this program plays the launcher.
    Broker,
}

/// A dbus-daemon in a directory of its own, which can be killed and started again at the same address.
pub struct Bus {
    kind: Kind,
    child: Child,
    /// Over which dbus-broker is controlled; it stops when this closes.
    controller: Option<UnixStream>,
    pub directory: tempfile::TempDir,
    /// Where it listens, as it says itself, without its GUID.
    listens: String,
    /// What its configuration has besides.
    options: String,
}

impl Bus {
    /// `None`, and a line about it, where there is no dbus-daemon.
    pub fn start() -> Option<Bus> {
        Self::start_with("unix:path=DIRECTORY/bus", "")
    }

    /// That listens there (`DIRECTORY` is its own), with these lines in its configuration.
    pub fn start_with(listen: &str, options: &str) -> Option<Bus> {
        let directory = tempfile::tempdir().unwrap();
        match spawn(directory.path(), listen, options) {
            Some((child, listens)) => Some(Bus {
                kind: Kind::Daemon,
                child,
                controller: None,
                directory,
                listens,
                options: options.to_owned(),
            }),
            None => {
                assert!(
                    std::env::var("BUS_TEST_PEERS").as_deref() != Ok("require"),
                    "dbus-daemon not found"
                );
                eprintln!("skipped: dbus-daemon not found");
                None
            }
        }
    }

    /// A dbus-broker. `None`, and a line about it, where there is none.
    pub fn start_broker() -> Option<Bus> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus");
        let Some((child, controller)) = broker::start(&path) else {
            assert!(
                std::env::var("BUS_TEST_PEERS").as_deref() != Ok("require"),
                "dbus-broker not found"
            );
            eprintln!("skipped: dbus-broker not found");
            return None;
        };
        Some(Bus {
            kind: Kind::Broker,
            child,
            controller: Some(controller),
            listens: format!("unix:path={}", path.display()),
            directory,
            options: String::new(),
        })
    }

    /// As the bus says it.
    pub fn listens(&self) -> &str {
        &self.listens
    }

    pub fn address(&self) -> String {
        format!("unix:path={}", self.directory.path().join("bus").display())
    }

    pub fn builder(&self) -> Builder {
        Connection::address(&self.address())
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn start_again(&mut self) {
        let listens = self.listens.clone();
        self.listen_again(&listens);
    }

    /// At another path of its directory than the one where it is looked for.
    pub fn start_again_at(&mut self, name: &str) {
        let path = self.directory.path().join(name);
        self.listen_again(&format!("unix:path={}", path.display()));
    }

    fn listen_again(&mut self, listen: &str) {
        if self.kind == Kind::Broker {
            let path = self.directory.path().join("bus");
            let (child, controller) = broker::start(&path).unwrap();
            self.child = child;
            self.controller = Some(controller);
            return;
        }
        (self.child, _) = spawn(self.directory.path(), listen, &self.options).unwrap();
    }

    /// A file that describes a service which this bus, and each that is started after it, starts when it is called.
    pub fn describe(&self, service: &str, program: &Path) {
        let text = format!("[D-BUS Service]\nName={service}\nExec={}\n", program.display());
        let file = self
            .directory
            .path()
            .join("services")
            .join(format!("{service}.service"));
        std::fs::write(file, text).unwrap();
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As `--session`, but with nothing of this machine's.
const CONFIG: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>LISTEN</listen>
  OPTIONS
  <servicedir>DIRECTORY/services</servicedir>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
  <limit name="max_incoming_bytes">1000000000</limit>
  <limit name="max_incoming_unix_fds">250000000</limit>
  <limit name="max_outgoing_bytes">1000000000</limit>
  <limit name="max_outgoing_unix_fds">250000000</limit>
  <limit name="max_message_size">1000000000</limit>
  <limit name="max_completed_connections">100000</limit>
  <limit name="max_incomplete_connections">10000</limit>
  <limit name="max_connections_per_user">100000</limit>
  <limit name="max_names_per_connection">50000</limit>
  <limit name="max_match_rules_per_connection">50000</limit>
  <limit name="max_replies_per_connection">50000</limit>
</busconfig>
"#;

/// The bus, and where it says that it listens.
fn spawn(directory: &Path, listen: &str, options: &str) -> Option<(Child, String)> {
    let config = directory.join("bus.conf");
    let text = CONFIG
        .replace("LISTEN", listen)
        .replace("OPTIONS", options)
        .replace("DIRECTORY", &directory.display().to_string());
    std::fs::create_dir_all(directory.join("services")).unwrap();
    std::fs::write(&config, text).unwrap();
    let mut child = Command::new("dbus-daemon")
        .args(["--nofork", "--nopidfile", "--print-address"])
        .arg(format!("--config-file={}", config.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut address = String::new();
    BufReader::new(child.stdout.take()?)
        .read_line(&mut address)
        .ok()?;
    let listens = address.trim_end().rsplit_once(",guid=");
    let (listens, _) = listens.unwrap_or_else(|| panic!("dbus-daemon has not started: {address:?}"));
    Some((child, listens.to_owned()))
}

/// Runs a test of this program again in a user namespace of its own, as its root, after a script. True: this is that run. False:
/// the run is over, and was good; or is not possible here, which a line says.
pub fn inside(test: &str, script: &str) -> bool {
    const INSIDE: &str = "BUS_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
        command
    };
    if !unshare(script).status().is_ok_and(|status| status.success()) {
        let is_required = std::env::var("BUS_TEST_PEERS").as_deref() == Ok("require");
        assert!(!is_required, "no user namespace is to be had");
        eprintln!("skipped: unshare not found, or not permitted");
        return false;
    }
    let output = unshare(&format!("{script} && exec \"$0\" \"$@\""))
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--include-ignored", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    eprintln!("{text}");
    assert!(output.status.success() && text.contains("1 passed"));
    false
}

/// Built along with the tests, in the directory beside theirs.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().unwrap().parent().unwrap();
    let program = profile.join("examples").join(name);
    let is_there = program.exists();
    assert!(
        is_there,
        "{program:?} is not built: `cargo build -p bus-client --examples` does that"
    );
    program
}

/// Counts how often each numbered call ran.
#[derive(Default)]
pub struct Counter {
    pub runs: Mutex<HashMap<u64, u32>>,
    pub total: AtomicU64,
}

impl Interface for Counter {
    fn name(&self) -> &str {
        COUNTER
    }

    fn dispatch(self: Arc<Self>, call: Incoming) -> BoxFuture<Reply> {
        let reply = match (call.member(), call.decode::<u64>()) {
            (Some("Run"), Ok(id)) => {
                *self.runs.lock().unwrap().entry(id).or_default() += 1;
                self.total.fetch_add(1, Ordering::Relaxed);
                Reply::new(&id)
            }
            _ => Reply::unknown_method(call.message()),
        };
        Box::pin(std::future::ready(reply))
    }
}

impl Counter {
    pub fn runs(&self, id: u64) -> u32 {
        self.runs.lock().unwrap().get(&id).copied().unwrap_or_default()
    }
}

/// CPU time of this process so far.
pub fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let time =
        |value: nix::sys::time::TimeVal| Duration::new(value.tv_sec() as u64, value.tv_usec() as u32 * 1000);
    time(usage.user_time()) + time(usage.system_time())
}

/// The status of each thread of this process.
fn statuses() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok())
        .collect()
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value.map(str::trim)
}

/// How often the threads of this process have given up the processor by themselves: have waited, and were woken.
pub fn wake_ups() -> u64 {
    let count = |status: &String| field(status, "voluntary_ctxt_switches:")?.parse::<u64>().ok();
    statuses().iter().filter_map(count).sum()
}

/// How many threads of this process have that name.
pub fn threads(name: &str) -> usize {
    let statuses = statuses();
    let named = statuses
        .iter()
        .filter(|status| field(status, "Name:") == Some(name));
    named.count()
}
