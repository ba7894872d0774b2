//! Every kind of unix address that the daemon can listen on, and what it prints of it.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use bus_load::Caller;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

#[track_caller]
fn check(directory: &Path, address: &str, printed: &str) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bus"))
        .args([
            "daemon",
            "--session",
            "--nofork",
            "--print-address",
            "--address",
            address,
        ])
        .env("XDG_RUNTIME_DIR", directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The whole line comes in one read.
    let mut buffer = [0; 4096];
    let len = child.stdout.as_mut().unwrap().read(&mut buffer).unwrap();
    let line = std::str::from_utf8(&buffer[..len]).unwrap().to_owned();
    let answer = line.strip_suffix('\n').map(|line| {
        let mut caller = Caller::connect(line).unwrap();
        caller.ask("GetNameOwner", "org.freedesktop.DBus").unwrap()
    });
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(
        answer.as_deref(),
        Some("org.freedesktop.DBus"),
        "{address}: {line:?}"
    );
    assert!(
        line.starts_with(printed) && line.contains(",guid="),
        "{address}: {line}"
    );
}

#[test]
fn each_kind_of_unix_address() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let check = |address: &str, printed: &str| check(directory.path(), address, printed);
    check(
        &format!("unix:path={path}/here"),
        &format!("unix:path={path}/here,"),
    );
    check(&format!("unix:dir={path}"), &format!("unix:path={path}/dbus-"));
    check(&format!("unix:tmpdir={path}"), &format!("unix:path={path}/dbus-"));
    check("unix:runtime=yes", &format!("unix:path={path}/bus,"));
    let name = format!("bus-test-{}", std::process::id());
    check(
        &format!("unix:abstract={name}"),
        &format!("unix:abstract={name},"),
    );
}
