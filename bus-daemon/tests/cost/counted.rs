//! Callgrind: it runs this program once more, and dumps what it has counted after each operation.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::rig::Size;

/// Instructions of each operation, in their order.
pub type Counts = Vec<u64>;

/// `None`: callgrind is not there, which is said.
pub fn count(size: Size) -> Option<Counts> {
    count_in("measured", "cost::rig::measured_operation", size)
}

/// Of what is done in calls of `function` by the test `test`, which is left out unless it is asked for.
pub fn count_in(test: &str, function: &str, size: Size) -> Option<Counts> {
    if !is_installed() {
        assert!(
            std::env::var("BUS_TEST_PEERS").as_deref() != Ok("require"),
            "valgrind not found"
        );
        eprintln!("skipped: valgrind not found");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let name = function.rsplit("::").next().unwrap();
    let output = Command::new("valgrind")
        // Of two options with the same pattern callgrind heeds one.
        .arg("--tool=callgrind")
        .arg(format!("--toggle-collect=*{name}*"))
        .arg(format!("--dump-after={function}*"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", test, "--test-threads=1"])
        .envs(size.environment())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(dumps(&out))
}

fn is_installed() -> bool {
    let version = Command::new("valgrind").arg("--version").output();
    version.is_ok_and(|output| output.status.success())
}

/// The totals of `out.1`, `out.2` and so on, in order.
fn dumps(out: &Path) -> Counts {
    let total = |number: u32| {
        let file = out.with_extension(number.to_string());
        let text = std::fs::read_to_string(file).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("totals: "));
        Some(line.expect("a dump has a total").trim().parse().unwrap())
    };
    (1..).map_while(total).collect()
}
