//! Short-lived programs, one after the other: connect, call, leave.

use crate::account::Account;
use crate::raw::name_of;
use crate::{INTERFACE, PATH};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two visits.
const PAUSE: Duration = Duration::from_millis(50);

/// A thread that runs `gdbus call`, `busctl call` and `dbus-send` in turns until it is stopped.
pub(crate) struct Visitors {
    stop: Arc<AtomicBool>,
    pub(crate) visits: Arc<AtomicU64>,
    thread: JoinHandle<Vec<Account>>,
}

impl Visitors {
    /// Starts with those of the programs that are there.
    pub(crate) fn start(address: &str, find: impl Fn(&str) -> Option<PathBuf>) -> Visitors {
        let programs: Vec<(&str, &str, PathBuf)> =
            [("gdbus", "GDBus"), ("busctl", "sd-bus"), ("dbus-send", "libdbus")]
                .into_iter()
                .filter_map(|(program, implementation)| Some((program, implementation, find(program)?)))
                .collect();
        let (stop, visits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = {
            let (stop, visits, address) = (stop.clone(), visits.clone(), address.to_owned());
            std::thread::spawn(move || visit(&programs, &address, &stop, &visits))
        };
        Visitors { stop, visits, thread }
    }

    /// Lets the last one finish. One account per implementation, with an error for each visit that failed.
    pub(crate) fn stop(self) -> Vec<Account> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

fn visit(
    programs: &[(&str, &str, PathBuf)],
    address: &str,
    stop: &AtomicBool,
    visits: &AtomicU64,
) -> Vec<Account> {
    let mut accounts: Vec<Account> = programs
        .iter()
        .map(|(program, implementation, _)| Account {
            id: format!("{program} visits"),
            implementation: format!("{implementation}, short visits"),
            ..Account::default()
        })
        .collect();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) && !programs.is_empty() {
        let which = number as usize % programs.len();
        let (program, _, path) = &programs[which];
        number += 1;
        let stream = format!("{program}-visit-{number}");
        let output = command(program, path, address, &stream)
            .stdin(Stdio::null())
            .output();
        match output {
            Ok(output) if output.status.success() && contains(&output.stdout, &stream) => {}
            Ok(output) => accounts[which].errors.push(format!(
                "visit {number}: {} {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            )),
            Err(error) => accounts[which].errors.push(format!("visit {number}: {error}")),
        }
        accounts[which].sent.push((stream, 1));
        visits.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(PAUSE);
    }
    accounts
}

fn command(program: &str, path: &PathBuf, address: &str, stream: &str) -> Command {
    let (callee, mut command) = (name_of("p0b"), Command::new(path));
    match program {
        "gdbus" => command
            .args([
                "call",
                "--address",
                address,
                "--dest",
                &callee,
                "--object-path",
                PATH,
            ])
            .args(["--method", &format!("{INTERFACE}.Echo"), stream, "uint64 1"]),
        "busctl" => command
            .arg(format!("--address={address}"))
            .args(["call", &callee, PATH, INTERFACE, "Echo", "st", stream, "1"]),
        _ => command
            .arg(format!("--bus={address}"))
            .args(["--print-reply", &format!("--dest={callee}"), PATH])
            .args([
                &format!("{INTERFACE}.Echo"),
                &format!("string:{stream}"),
                "uint64:1",
            ]),
    };
    command
}

fn contains(output: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(output).contains(text)
}
