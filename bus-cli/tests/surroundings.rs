//! Machines and shells that are not as one would like them.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::{CallError, peers};
use bus_wire::MessageBuilder;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use support::raw::Raw;
use support::{Bus, binary, generation, recoveries, restart_property, upgrade, wait_until};

/// A message that does not fit where the journal keeps small ones.
fn send_large(bus: &Bus) {
    let mut raw = Raw::ready(bus);
    let large = MessageBuilder::signal("/", "a.b", "Large").body(|body| {
        body.str(&"x".repeat(3_000_000));
    });
    raw.send(&large.serial(1u32).build().unwrap());
    raw.expect_service();
}

#[test]
fn limits_of_a_shell_are_raised_where_they_can_be() {
    if peers::find("prlimit").unwrap().is_none() {
        return;
    }
    for limit in [
        "--fsize=1048576:",
        "--fsize=0:",
        "--cpu=1:",
        "--nofile=64:",
        "--core=0",
        "--stack=1048576",
        "--memlock=0",
    ] {
        eprintln!("{limit}");
        let mut bus = Bus::start_under(&["prlimit", limit]);
        send_large(&bus);
        kill(Pid::from_raw(bus.worker().unwrap() as i32), Signal::SIGKILL).unwrap();
        send_large(&bus);
        assert!(bus.is_alive(), "{limit}");
    }
}

#[test]
fn a_limit_that_is_too_small_is_told() {
    if peers::find("prlimit").unwrap().is_none() || peers::find("setpriv").unwrap().is_none() {
        return;
    }
    let mut command = Command::new("prlimit");
    command.arg("--fsize=1048576");
    if nix::unistd::geteuid().is_root() {
        // Root may raise it, unless it has no capability to.
        command.args(["setpriv", "--bounding-set=-sys_resource"]);
    }
    command.arg(binary());
    command.args([
        "daemon",
        "--nofork",
        "--print-address",
        "--address=unix:tmpdir=/tmp",
    ]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        output.stdout.is_empty() && said.contains("RLIMIT_FSIZE, ulimit -f) is 1048576 bytes"),
        "{said}"
    );
}

/// A container or an early boot: the bus starts, is replaced and recovers.
#[test]
fn without_proc() {
    const HIDE: [&str; 6] = [
        "unshare",
        "-m",
        "sh",
        "-c",
        "mount -t tmpfs none /proc && exec \"$@\"",
        "sh",
    ];
    let can_hide = |command: &mut Command| command.status().is_ok_and(|status| status.success());
    if !can_hide(Command::new(HIDE[0]).args(&HIDE[1..]).arg("true")) {
        peers::find("unshare").unwrap();
        eprintln!("skipped: this machine allows no mount namespace");
        return;
    }
    let mut bus = Bus::start_under(&HIDE);
    let mut caller = bus.caller();
    // The interpreter of a script opens it by its descriptor, which needs /proc: that is said, and the bus stays as it is.
    let script = bus.directory.path().join("script");
    std::fs::write(
        &script,
        format!("#!/bin/sh\nexec '{}' \"$@\"\n", binary().display()),
    )
    .unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    match upgrade(&mut caller, script.to_str().unwrap()) {
        Err(CallError::Reply { name, message }) => {
            assert_eq!(name, "org.busdaemon.Error.UpgradeRefused", "{message}");
            let is_clear = message.contains(script.to_str().unwrap()) && message.contains("/dev/fd/");
            assert!(is_clear, "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(generation(&mut caller), 1);
    let worker = |caller: &mut _| {
        let reply = restart_property(caller, "WorkerPID");
        reply.body().read_variant(|value| value.read_u32()).unwrap()
    };
    for round in 1..=2 {
        kill(Pid::from_raw(worker(&mut caller) as i32), Signal::SIGKILL).unwrap();
        wait_until("the worker is replaced", || recoveries(&mut caller) == round);
        upgrade(&mut caller, "").unwrap();
        assert_eq!(generation(&mut caller), round + 1);
        send_large(&bus);
    }
    assert!(bus.is_alive());
}
