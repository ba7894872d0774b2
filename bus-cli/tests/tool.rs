//! The `bus` tool itself: what it prints and how it exits.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::peers::find;
use serde_json::Value;
use std::process::Command;
use support::{Bus, binary, run};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn status_tells_what_the_bus_is_and_has_survived() {
    let bus = Bus::start();
    let shown = bus.tool(&["status"]);
    let table = text(&shown.stdout);
    let table: Vec<_> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let table = table.join("\n");
    assert!(shown.status.success(), "{table}");
    for line in [
        "generation 1",
        &format!("keeper pid {}", bus.pid()),
        "last restart none",
    ] {
        assert!(table.contains(line), "{table}");
    }
    let upgraded = bus.tool(&["upgrade", "--json"]);
    let line: Value = serde_json::from_slice(&upgraded.stdout).unwrap();
    assert_eq!(line["generation"], 2, "{line}");
    let status: Value = serde_json::from_slice(&bus.tool(&["--json", "status"]).stdout).unwrap();
    assert_eq!(status["restart"]["Generation"], 2, "{status}");
    assert_eq!(status["restart"]["LastRestart"][0], "upgrade", "{status}");
    assert_eq!(status["restart"]["KeeperPID"], bus.pid(), "{status}");
}

#[test]
fn an_upgrade_that_is_refused_is_a_failure_with_the_reason() {
    let bus = Bus::start();
    let refused = bus.tool(&["upgrade", "--binary", "/bin/true"]);
    let error = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{error}");
    assert!(error.contains("refused, the bus is untouched"), "{error}");
    assert!(bus.tool(&["status"]).status.success());
}

/// In a process namespace of its own, so that no bus of this machine but these two is found.
#[test]
fn every_running_bus_of_the_machine_is_upgraded() {
    const SCRIPT: &str = r#"
        pids=
        for name in one two; do
            "$0" daemon --address="unix:path=$1/$name" --nofork --print-address >"$1/$name.address" 2>"$1/$name.log" &
            pids="$pids $!"
            while [ ! -s "$1/$name.address" ]; do sleep 0.01; done
        done
        "$0" upgrade --all --json
        "$0" --address "unix:path=$1/one" --json status
        kill $pids
        wait
    "#;
    let Some(unshare) = find("unshare").unwrap() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(unshare);
    command.args(["--map-root-user", "--pid", "--fork", "--mount-proc"]);
    if !command.arg("true").output().unwrap().status.success() {
        eprintln!("skipped: this machine allows no process namespace");
        return;
    }
    let mut command = Command::new(command.get_program());
    command.args([
        "--map-root-user",
        "--pid",
        "--fork",
        "--mount-proc",
        "sh",
        "-c",
        SCRIPT,
    ]);
    let shown = run(command.arg(binary()).arg(directory.path()));
    let lines: Vec<Value> = shown
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3, "{shown}");
    for (line, name) in lines.iter().zip(["one", "two"]) {
        assert!(
            line["address"].as_str().unwrap().ends_with(name) && line["generation"] == 2,
            "{shown}"
        );
    }
    assert_eq!(lines[2]["restart"]["Generation"], 2, "{shown}");
}

#[test]
fn no_bus_is_a_failure_and_nonsense_is_a_usage_error() {
    for (arguments, code) in [
        (&["--address", "unix:path=/nonexistent/bus", "status"][..], 1),
        (&["--address", "nonsense", "status"], 1),
        (&["--session", "--system", "status"], 2),
        (&["frobnicate"], 2),
        (&["upgrade", "--all", "--system"], 2),
    ] {
        let output = Command::new(binary()).args(arguments).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn the_demonstration_finds_nothing_wrong() {
    let output = Command::new(binary())
        .args(["demo", "--upgrades", "3", "--kills", "2", "--duration", "2"])
        .output()
        .unwrap();
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{shown}{}", text(&output.stderr));
    assert!(
        shown.contains("upgrade 3/3, kill 2/2") && shown.contains("no client was disconnected"),
        "{shown}"
    );
}
