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

/// Behind the configuration of [`Bus::start_with`]: its lines are 6 to 8.
const POLICY: &str = "\n<policy context='default'><allow user='*'/>\n<deny own='a.b'/>\n\
                      <deny send_destination='a.b' send_interface='a.b'/></policy>";

#[test]
fn who_may_do_what_is_told_by_files_and_by_a_bus() {
    let bus = Bus::start_with(POLICY);
    let path = bus.directory.path().join("bus.conf");
    let path = path.to_str().unwrap();
    let config = format!("--config-file={path}");
    for by_files in [true, false] {
        let explain = |arguments: &[&str]| {
            let mut all = vec!["policy", "explain"];
            all.extend(arguments);
            if by_files {
                all.push(&config);
            }
            let done = bus.tool(&all);
            (done.status.code().unwrap(), text(&done.stdout))
        };
        let (code, said) = explain(&["--own", "a.b", "--sender", "0"]);
        assert_eq!(code, 3, "{said}");
        let lines: Vec<&str> = said.lines().collect();
        let rule = r#"<policy context="default"> <deny own="a.b"/>"#;
        assert_eq!(lines[..2], ["denied", &format!("* {path}:7: {rule}")]);
        assert_eq!(lines.len(), 3);
        let (code, said) = explain(&["--own", "a.c", "--sender", "0:0"]);
        assert_eq!((code, said.lines().next()), (0, Some("allowed")));
        let (code, _) = explain(&["--destination", "a.b", "--interface", "a.b", "--sender", "root"]);
        assert_eq!(code, 3);
        let (code, said) = explain(&["--connect", "nobody", "--json"]);
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!((code, &said["allowed"]), (0, &Value::Bool(true)));
        assert_eq!(said["rules"][0]["line"], 6);
        // It cannot be asked, or it is no question.
        assert_eq!(explain(&["--own", "a.b", "--sender", "no.such.name"]).0, 1);
        assert_eq!(explain(&[]).0, 2);
        assert_eq!(explain(&["--own", "a.b", "--connect", "root"]).0, 2);
    }
}

#[test]
fn rules_that_are_not_meant_so_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let bus = Bus::start();
    let lint = |rules: &str, strict: &[&str]| {
        let file = directory.path().join("p.conf");
        let config = format!("<busconfig>\n<policy context=\"default\">{rules}</policy></busconfig>");
        std::fs::write(&file, config).unwrap();
        let mut all = vec!["policy", "lint", file.to_str().unwrap()];
        all.extend(strict);
        let done = bus.tool(&all);
        (done.status.code().unwrap(), text(&done.stdout))
    };
    assert_eq!(lint("<allow own=\"a.b\"/>", &["--strict"]), (0, String::new()));
    let unknown = "<allow user=\"nobody.has.this.name\"/>";
    let (code, said) = lint(unknown, &[]);
    assert!(
        code == 0 && said.contains("p.conf:2: warning: there is no user"),
        "{said}"
    );
    assert_eq!(lint(unknown, &["--strict"]).0, 1);
    let (code, said) = lint("<deny receive_sender=\"*\" min_fds=\"1\"/>", &[]);
    assert!(
        code == 1 && said.contains("p.conf:2: error: it throws away"),
        "{said}"
    );
}
