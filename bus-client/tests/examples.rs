//! The examples, on a bus that is killed under them.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use support::{Bus, example};

#[test]
fn caller_and_service_outlive_the_bus() {
    let Some(mut bus) = Bus::start() else { return };
    let mut service = Command::new(example("service"))
        .arg(bus.address())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut caller = Command::new(example("caller"))
        .args([&bus.address(), "60"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(caller.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert_eq!(first, "call 0: 1");
    bus.kill();
    std::thread::sleep(Duration::from_millis(200));
    bus.start_again();
    let lines: Vec<String> = lines.map(Result::unwrap).collect();
    let status = caller.wait().unwrap();
    service.kill().unwrap();
    service.wait().unwrap();
    assert!(status.success(), "{lines:?}");
    let count = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!(count("the bus is gone"), 1, "{lines:?}");
    assert_eq!(count("the bus is back, the same: false"), 1, "{lines:?}");
    assert_eq!(count("call "), 59, "{lines:?}");
    // All that is said to have been counted was: the last sum tells, but for what may have been counted besides.
    let answered = lines
        .iter()
        .filter(|line| {
            line.starts_with("call ")
                && line.contains(": ")
                && !line.contains(" may ")
                && !line.contains(" not ")
        })
        .count() as u64
        + 1;
    let sum: u64 = lines.last().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    let doubtful = lines.iter().filter(|line| line.contains(" may ")).count() as u64;
    assert!(
        sum >= answered && sum <= answered + doubtful,
        "{sum}, {answered} answered, {doubtful} in doubt: {lines:?}"
    );
}

/// `unix:runtime=yes` is `bus` in `XDG_RUNTIME_DIR` (specification, "Unix Domain Sockets").
#[test]
fn the_address_of_the_runtime_directory() {
    let Some(bus) = Bus::start() else { return };
    let start = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(example(program));
        command.arg("unix:runtime=yes").args(arguments);
        command.env("XDG_RUNTIME_DIR", bus.directory.path());
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut service = start("service", &[]);
    let caller = start("caller", &["5"]).wait_with_output().unwrap();
    service.kill().unwrap();
    service.wait().unwrap();
    let text = String::from_utf8(caller.stdout).unwrap();
    assert!(caller.status.success(), "{text}");
    assert_eq!(text.lines().next(), Some("call 0: 1"), "{text}");
}
