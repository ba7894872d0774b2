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
use support::{Background, Bus, binary, generation, recoveries, restart_property, upgrade, wait_until};

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

/// Whoever starts the bus may have ignored the end of children, and that lasts over an exec.
#[test]
fn who_starts_the_bus_ignores_the_end_of_children() {
    let mut bus = Bus::start_under(&["sh", "-c", "trap '' CHLD; exec \"$@\"", "sh"]);
    let mut caller = bus.caller();
    for round in 1..=3 {
        kill(Pid::from_raw(bus.worker().unwrap() as i32), Signal::SIGKILL).unwrap();
        wait_until("the worker is replaced", || recoveries(&mut caller) == round);
        upgrade(&mut caller, "").unwrap();
        assert_eq!(generation(&mut caller), round + 1);
    }
    assert!(bus.is_alive());
}

/// The user may have no more processes when the worker is to be replaced: nobody is lost, and the bus stops when it is told to.
#[test]
fn no_room_for_another_process() {
    const AS_USER: [&str; 4] = ["setpriv", "--reuid=12010", "--regid=12010", "--clear-groups"];
    let is_root = nix::unistd::geteuid().is_root();
    let are_here = ["prlimit", "setpriv"].map(|tool| peers::find(tool).unwrap().is_some());
    if !is_root || are_here.contains(&false) {
        eprintln!("skipped: only root may start a bus of another user");
        return;
    }
    let script = format!(
        "chmod a+rwx \"$XDG_RUNTIME_DIR\" && cp \"$1\" \"$XDG_RUNTIME_DIR/daemon\" && shift && \
         exec {} prlimit --nproc=4 \"$XDG_RUNTIME_DIR/daemon\" \"$@\"",
        AS_USER.join(" ")
    );
    let configuration = "<policy context='default'><allow user='*'/></policy>";
    let mut bus = Bus::start_by_script(&script, configuration);
    // Processes count for their user, whatever their own limits are.
    let fill = || -> Vec<Background> {
        let sleep = || {
            let mut command = Command::new(AS_USER[0]);
            command
                .args(&AS_USER[1..])
                .args(["sh", "-c", "echo here; exec sleep 600"]);
            Background::start(&mut command)
        };
        let all: Vec<Background> = (0..5).map(|_| sleep()).collect();
        all.iter().for_each(|one| one.wait_for("here"));
        all
    };
    let kill_worker = |bus: &Bus, times: usize| {
        kill(Pid::from_raw(bus.worker().unwrap() as i32), Signal::SIGKILL).unwrap();
        wait_until("the keeper says so", || {
            bus.log().matches("cannot start the worker").count() == times
        });
        assert!(bus.worker().is_none());
    };
    let mut caller = bus.caller();
    for round in 1..=2 {
        let peers: Vec<Raw> = (0..20).map(|_| Raw::ready(&bus)).collect();
        let others = fill();
        kill_worker(&bus, round);
        drop(others);
        wait_until("the worker is replaced", || {
            recoveries(&mut caller) == round as u32
        });
        peers.into_iter().for_each(Raw::expect_service);
    }
    let _others = fill();
    kill_worker(&bus, 3);
    kill(Pid::from_raw(bus.pid() as i32), Signal::SIGTERM).unwrap();
    wait_until("the bus stops", || !bus.is_alive());
    assert!(!bus.log().contains("EVERY CONNECTION"), "{}", bus.log());
}
