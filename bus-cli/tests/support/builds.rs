//! Binaries of other builds: with the format that the next version might have, and of commits of the past.

use super::binary;
use bus_load::Caller;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The daemon with the feature `next-version`, built beside the binary under test if it is not there yet.
pub fn next() -> &'static Path {
    static NEXT: OnceLock<PathBuf> = OnceLock::new();
    NEXT.get_or_init(|| {
        let (target, mut build) = cargo(&workspace());
        build
            .args(["--package=bus-daemon", "--bin=bus-daemon-next"])
            .arg("--features=test-hooks,next-version")
            .arg(format!("--target-dir={}", target.display()));
        super::run(&mut build);
        profile(&target).join("bus-daemon-next")
    })
}

/// The daemon of this commit, built below `directory`; `None` where there is no history.
pub fn of_commit(commit: &str, directory: &Path) -> Option<PathBuf> {
    let tree = directory.join(commit);
    std::fs::create_dir(&tree).unwrap();
    let packed = Command::new("git")
        .arg("-C")
        .arg(workspace())
        .args(["archive", "--format=tar", commit])
        .output()
        .ok()
        .filter(|output| output.status.success());
    let Some(packed) = packed else {
        eprintln!("skipped: commit {commit} not found");
        return None;
    };
    let archive = directory.join("tree.tar");
    std::fs::write(&archive, packed.stdout).unwrap();
    // As of now: cargo takes what is older than the last build for built, and that was another commit's.
    super::run(Command::new("tar").arg("-xmf").arg(&archive).arg("-C").arg(&tree));
    let (target, mut build) = cargo(&tree);
    let target = target.join("history");
    build
        .args(["--package=bus-daemon", "--bin=bus-daemon"])
        .arg(format!("--target-dir={}", target.display()));
    super::run(&mut build);
    // The next commit is built in the same place.
    let built = directory.join(format!("bus-daemon-{commit}"));
    std::fs::copy(profile(&target).join("bus-daemon"), &built).unwrap();
    Some(built)
}

/// The version of the state of whoever serves.
pub fn state_version(caller: &mut Caller) -> u32 {
    let reply = super::restart_property(caller, "StateVersion");
    reply.body().read_variant(|value| value.read_u32()).unwrap()
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The target directory of the binary under test, and a build with the same profile. What it needs is there: the same
/// was needed for that binary.
fn cargo(tree: &Path) -> (PathBuf, Command) {
    let target = binary().parent().unwrap().parent().unwrap().to_owned();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(tree).args(["build", "--quiet", "--offline"]);
    if binary().parent().unwrap().ends_with("release") {
        cargo.arg("--release");
    }
    (target, cargo)
}

/// Where below a target directory the binaries of that profile are.
fn profile(target: &Path) -> PathBuf {
    target.join(binary().parent().unwrap().file_name().unwrap())
}
