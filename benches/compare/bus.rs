//! The buses under comparison: how each is started, and stopped.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;

use crate::cpu;
use crate::policy::allow_everything;

/// What to compare: a name for the table, and how it is started.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) name: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// A program with dbus-daemon's command line.
    Daemon(PathBuf),
    /// dbus-broker itself, for which this program plays the launcher.
    Broker(PathBuf),
    Relay,
}

/// A bus that runs, until this is dropped.
pub(crate) struct Bus {
    pub(crate) path: String,
    child: Child,
    /// The connection over which dbus-broker is controlled; it stops when this closes.
    _controller: Option<UnixStream>,
    /// Its socket, its configuration and what it said on stderr.
    home: tempfile::TempDir,
}

impl Candidate {
    pub(crate) fn relay() -> Candidate {
        Candidate {
            name: "relay".to_owned(),
            kind: Kind::Relay,
        }
    }

    /// Whether it is the relay, which looks at nothing.
    pub(crate) fn is_relay(&self) -> bool {
        matches!(self.kind, Kind::Relay)
    }

    /// dbus-daemon and dbus-broker, if this machine has them.
    pub(crate) fn installed() -> Vec<Candidate> {
        let daemon = Path::new("/usr/bin/dbus-daemon");
        let broker = Path::new("/usr/bin/dbus-broker");
        let mut found = Vec::new();
        if daemon.exists() {
            found.push(Candidate {
                name: "dbus-daemon".to_owned(),
                kind: Kind::Daemon(daemon.to_owned()),
            });
        }
        if broker.exists() {
            found.push(Candidate {
                name: "dbus-broker".to_owned(),
                kind: Kind::Broker(broker.to_owned()),
            });
        }
        found
    }

    /// Starts it, with everything it starts in turn on the given CPU; the caller goes on on another.
    pub(crate) fn start(&self, bus_cpu: usize, client_cpu: usize) -> Result<Bus> {
        let home = tempfile::tempdir()?;
        cpu::pin(bus_cpu)?;
        let started = match &self.kind {
            Kind::Daemon(program) => start_daemon(program, home),
            Kind::Broker(program) => start_broker(program, home),
            Kind::Relay => start_relay(home),
        };
        cpu::pin(client_cpu)?;
        started.with_context(|| format!("{} did not start", self.name))
    }
}

impl FromStr for Candidate {
    type Err = anyhow::Error;

    /// `NAME=PROGRAM`; a program called dbus-broker is started as one.
    fn from_str(text: &str) -> Result<Candidate> {
        let (name, program) = text.split_once('=').context("expected NAME=PROGRAM")?;
        let program = std::path::absolute(program)?;
        ensure!(program.exists(), "{} does not exist", program.display());
        let kind = match program.file_name() {
            Some(file) if file == "dbus-broker" => Kind::Broker(program),
            _ => Kind::Daemon(program),
        };
        Ok(Candidate {
            name: name.to_owned(),
            kind,
        })
    }
}

impl Bus {
    /// CPU time used so far, in nanoseconds.
    pub(crate) fn cpu(&self) -> Result<u64> {
        cpu::used(self.pid())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        // It may be gone already; there is nobody to tell.
        let _ = kill(self.pid(), Signal::SIGTERM);
        for _ in 0..200 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start_daemon(program: &Path, home: tempfile::TempDir) -> Result<Bus> {
    let socket = home.path().join("bus");
    let config = home.path().join("bus.conf");
    let mut limits = String::new();
    for (name, value) in [
        ("max_incoming_bytes", 1_000_000_000),
        ("max_outgoing_bytes", 1_000_000_000),
        ("max_message_size", 134_217_728),
        ("max_completed_connections", 100_000),
        ("max_incomplete_connections", 10_000),
        ("max_connections_per_user", 100_000),
        ("max_names_per_connection", 50_000),
        ("max_match_rules_per_connection", 50_000),
        ("max_replies_per_connection", 50_000),
    ] {
        limits.push_str(&format!("<limit name=\"{name}\">{value}</limit>"));
    }
    std::fs::write(
        &config,
        format!(
            "<busconfig><type>session</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/>\
             <allow eavesdrop=\"true\"/><allow own=\"*\"/></policy>{limits}</busconfig>",
            socket.display()
        ),
    )?;
    let mut child = Command::new(program)
        .arg(format!("--config-file={}", config.display()))
        .args(["--nofork", "--print-address=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(home.path().join("stderr"))?)
        .spawn()?;
    let stdout = child.stdout.take().context("no stdout")?;
    let mut address = String::new();
    BufReader::new(stdout).read_line(&mut address)?;
    let bus = Bus {
        path: socket.display().to_string(),
        child,
        _controller: None,
        home,
    };
    if !address.starts_with("unix:") {
        let said = std::fs::read_to_string(bus.home.path().join("stderr")).unwrap_or_default();
        bail!("it printed no address, but {address:?}, and said {said:?}");
    }
    Ok(bus)
}

fn start_relay(home: tempfile::TempDir) -> Result<Bus> {
    let path = home.path().join("bus").display().to_string();
    let child = Command::new(std::env::current_exe()?)
        .args(["--serve-relay", &path])
        .stdin(Stdio::null())
        .spawn()?;
    let bus = Bus {
        path,
        child,
        _controller: None,
        home,
    };
    let deadline = cpu::now()? + 5_000_000_000;
    while UnixStream::connect(&bus.path).is_err() {
        ensure!(cpu::now()? < deadline, "nobody listens at {}", bus.path);
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(bus)
}

/// dbus-broker is given its listening socket, with the policy for it, over a connection to its controller.
fn start_broker(program: &Path, home: tempfile::TempDir) -> Result<Bus> {
    let path = home.path().join("bus").display().to_string();
    let listener = UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    let (mut controller, theirs) = UnixStream::pair()?;
    let child = Command::new(program)
        .args([
            "--controller",
            "0",
            "--machine-id",
            "0123456789abcdef0123456789abcdef",
        ])
        .args(["--max-bytes", "8000000000", "--max-fds", "100000"])
        .args(["--max-matches", "10000000", "--max-objects", "10000000"])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    let bus = Bus {
        path,
        child,
        _controller: Some(controller.try_clone()?),
        home,
    };

    controller.set_read_timeout(Some(Duration::from_secs(5)))?;
    controller.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n")?;
    let call = allow_everything();
    let fds = [listener.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let sent = sendmsg::<()>(
        controller.as_raw_fd(),
        &[IoSlice::new(&call)],
        &rights,
        MsgFlags::empty(),
        None,
    )?;
    ensure!(sent == call.len(), "the controller's socket took only a part");
    // DATA, OK and AGREE_UNIX_FD, then the reply to AddListener, whose second byte is its type.
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = controller.read(&mut buffer).context("no answer to AddListener")?;
        ensure!(read > 0, "it closed the controller's connection");
        answer.extend_from_slice(&buffer[..read]);
        let agreed = b"AGREE_UNIX_FD\r\n";
        if let Some(at) = answer.windows(agreed.len()).position(|part| part == agreed) {
            match answer.get(at + agreed.len() + 1) {
                Some(2) => return Ok(bus),
                Some(_) => bail!("AddListener: {}", String::from_utf8_lossy(&answer)),
                None => {}
            }
        }
    }
}
