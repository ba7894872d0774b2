//! Configuration files that are none: at a start the message names file and line, and nothing is left behind; at a reload it is
//! the caller's and the log's, what runs stays, and nobody else waits.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::CallError;
use bus_load::clock::Deadline;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;
use support::listening::{Listening, command};

/// What stands in the file besides the rest, what it needs, and what is said of it. D/ is the directory.
struct Bad {
    text: Vec<u8>,
    prepare: fn(&Path),
    said: &'static str,
}

fn bad(text: impl Into<Vec<u8>>, prepare: fn(&Path), said: &'static str) -> Bad {
    Bad {
        text: text.into(),
        prepare,
        said,
    }
}

fn nothing(_: &Path) {}

fn all() -> Vec<Bad> {
    let include = |name: &str| format!("<busconfig>\n<include>{name}</include></busconfig>");
    let deep = "<type>".repeat(10_000) + &"</type>".repeat(10_000);
    let bomb: String = (1..10)
        .map(|level| format!("<!ENTITY a{level} '{}'>", format!("&a{};", level - 1).repeat(10)))
        .collect();
    vec![
        bad(
            include("missing.conf"),
            nothing,
            "D/missing.conf: No such file or directory",
        ),
        bad(
            include("dir"),
            |at| fs::create_dir(at.join("dir")).unwrap(),
            "D/dir: Is a directory",
        ),
        bad(
            include("huge"),
            |at| {
                // Without taking up any room.
                fs::File::create(at.join("huge"))
                    .unwrap()
                    .set_len(100 << 20)
                    .unwrap();
            },
            "D/huge: it is longer than 16777216 bytes",
        ),
        bad(
            include("/dev/zero"),
            nothing,
            "/dev/zero: it is longer than 16777216 bytes",
        ),
        bad(
            include("bus.conf"),
            nothing,
            "D/bus.conf:2: D/bus.conf includes itself",
        ),
        bad(
            include("link.conf"),
            |at| symlink(at.join("bus.conf"), at.join("link.conf")).unwrap(),
            "includes itself",
        ),
        bad(
            format!("<busconfig>{deep}</busconfig>"),
            nothing,
            "D/bus.conf:1: <type> has no element <type>",
        ),
        bad(b"<busconfig>\n\n\0</busconfig>", nothing, "D/bus.conf:3: "),
        bad(
            b"<busconfig>\n<!-- \xfc --></busconfig>",
            nothing,
            "D/bus.conf:2: the file is not UTF-8",
        ),
        bad(
            format!(
                "<!DOCTYPE busconfig [<!ENTITY a0 'x'>{bomb}]>\n<busconfig><type>&a9;</type></busconfig>"
            ),
            nothing,
            "D/bus.conf:",
        ),
        bad(
            "<!DOCTYPE busconfig [\n<!ENTITY x SYSTEM 'file:///etc/passwd'>]>\n<busconfig><type>&x;</type></busconfig>",
            nothing,
            "D/bus.conf:2: entities of other files are not supported",
        ),
        bad(
            "<busconfig>\n<limit name='auth_timeout'>5x</limit></busconfig>",
            nothing,
            "D/bus.conf:2: <limit",
        ),
        bad(
            "<busconfig>\n\n<listen>unix:path=/a</listen>",
            nothing,
            "D/bus.conf:1: ",
        ),
        bad("", nothing, "D/bus.conf:1: "),
    ]
}

fn in_directory(text: &str, directory: &Path) -> String {
    text.replace(&format!("{}/", directory.display()), "D/")
}

#[test]
fn a_bus_does_not_start_with_them() {
    for Bad { text, prepare, said } in all() {
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path());
        let mut command = command(directory.path(), "");
        fs::write(directory.path().join("bus.conf"), &text).unwrap();
        let soon = Deadline::after(Duration::from_secs(10));
        let output = command.output().unwrap();
        assert!(!soon.passed(), "{said}");
        let told = in_directory(&String::from_utf8_lossy(&output.stderr), directory.path());
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(
            told.starts_with("bus-daemon: ") && told.contains(said),
            "{told:?} and not {said:?}"
        );
        assert!(output.stdout.is_empty() && !directory.path().join("bus").exists());
    }
}

#[test]
fn a_bus_that_runs_goes_on_as_it_is() {
    let bus = Listening::start("<listen>unix:path=D/bus</listen>");
    let directory = bus.directory.path();
    let main = directory.join("bus.conf");
    let good = fs::read(&main).unwrap();
    let mut refused = 0;
    for Bad { text, prepare, said } in all() {
        prepare(directory);
        fs::write(&main, &text).unwrap();
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let mut caller = bus.caller();
                caller.set_timeout(Duration::from_secs(20));
                caller.call_bus("ReloadConfig", |_| ())
            });
            let mut bystander = bus.caller();
            while !asked.is_finished() {
                let soon = Deadline::after(Duration::from_millis(500));
                bystander.ask("GetNameOwner", support::DRIVER).unwrap();
                assert!(!soon.passed(), "somebody waited while {said:?} was found out");
            }
            let error = asked.join().unwrap().unwrap_err();
            let CallError::Reply { message: text, .. } = &error else {
                panic!("{error}")
            };
            let told = in_directory(text, directory);
            assert!(told.contains(said), "{told:?} and not {said:?}");
            assert!(in_directory(&bus.log(), directory).contains(said));
        });
        refused += 1;
        for left in ["dir", "huge", "link.conf"] {
            let left = directory.join(left);
            let _ = fs::remove_file(&left);
            let _ = fs::remove_dir(&left);
        }
    }
    assert_eq!(refused, all().len());
    fs::write(&main, good).unwrap();
    bus.caller().call_bus("ReloadConfig", |_| ()).unwrap();
}
