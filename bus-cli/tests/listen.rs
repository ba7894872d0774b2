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

/// A process that does not outlive the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `<listen>` in a directory comes to: the addresses printed, without guids and with D for the directory; or what
/// is said instead.
fn outcome(directory: &Path, addresses: &[&str]) -> String {
    let path = directory.to_str().unwrap();
    let file = directory.join("bus.conf");
    let listen: String = addresses
        .iter()
        .map(|address| format!("<listen>{}</listen>", address.replace("D/", &format!("{path}/"))))
        .collect();
    let policy = "<policy context='default'><allow send_destination='*' eavesdrop='true'/>\
                  <allow eavesdrop='true'/><allow own='*'/></policy>";
    std::fs::write(&file, format!("<busconfig>{listen}{policy}</busconfig>")).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_bus"))
        .args(["daemon", "--nofork", "--print-address", "--config-file"])
        .arg(&file)
        .env_remove("XDG_RUNTIME_DIR")
        .env_remove("LISTEN_FDS")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Ended(child);
    let child = &mut child.0;
    let mut buffer = [0; 4096];
    let len = child.stdout.as_mut().unwrap().read(&mut buffer).unwrap();
    let line = std::str::from_utf8(&buffer[..len]).unwrap().trim_end().to_owned();
    for address in line.split(';').filter(|address| !address.is_empty()) {
        let mut caller = Caller::connect(address).unwrap();
        caller.ask("GetNameOwner", "org.freedesktop.DBus").unwrap();
    }
    let text = if line.is_empty() {
        let mut text = String::new();
        child.stderr.as_mut().unwrap().read_to_string(&mut text).unwrap();
        assert!(!child.wait().unwrap().success());
        text.trim_end().to_owned()
    } else {
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        assert!(child.wait().unwrap().success());
        let addresses = line
            .split(';')
            .map(|address| address.split(",guid=").next().unwrap());
        addresses.collect::<Vec<_>>().join(";")
    };
    text.replace(&format!("{path}/"), "D/")
}

/// As dbus_server_listen() does.
#[test]
fn the_first_of_a_list_that_works_is_the_only_one() {
    let directory = tempfile::tempdir().unwrap();
    let outcome = |addresses: &[&str]| outcome(directory.path(), addresses);
    let good = "unix:path=D/good";
    assert_eq!(outcome(&["unix:path=D/good;unix:path=D/other"]), good);
    for unusable in [
        "unix:runtime=yes",
        "unix:path=D/no/such/directory",
        "unix:tmpdir=/no/such/directory",
        "systemd:",
        "unixexec:path=/bin/true",
        &format!("unix:path=/tmp/{}", "x".repeat(200)),
        &format!("unix:abstract={}", "x".repeat(200)),
    ] {
        assert_eq!(outcome(&[&format!("{unusable};{good}")]), good, "{unusable}");
    }
    // Elements are listeners of their own.
    assert_eq!(
        outcome(&["unix:runtime=yes;unix:path=D/a", "unix:path=D/b"]),
        "unix:path=D/a;unix:path=D/b"
    );
    // What is wrong with an address is not made good by another one.
    for wrong in ["unix:bogus=1", "unix:runtime=no", "unix:path=D/a,tmpdir=/tmp"] {
        let said = outcome(&[&format!("{wrong};{good}")]);
        assert!(said.starts_with("bus-daemon: D/bus.conf:1: "), "{said}");
    }
    let said = outcome(&["unix:runtime=yes;unix:path=D/no/such"]);
    assert_eq!(
        said,
        "bus-daemon: cannot listen on \"unix:runtime=yes\": XDG_RUNTIME_DIR is not set; cannot listen on \
         \"unix:path=D/no/such\": No such file or directory (os error 2)"
    );
}

#[test]
fn a_socket_is_replaced_and_no_other_file() {
    use std::os::unix::fs::FileTypeExt;
    use std::os::unix::net::{UnixDatagram, UnixListener};
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let outcome = |name: &str| outcome(directory.path(), &[&format!("unix:path=D/{name}")]);
    let live = UnixListener::bind(file("live")).unwrap();
    drop(UnixListener::bind(file("stale")).unwrap());
    drop(UnixListener::bind(file("target")).unwrap());
    std::os::unix::fs::symlink(file("target"), file("link")).unwrap();
    let datagram = UnixDatagram::bind(file("datagram")).unwrap();
    for name in ["live", "stale", "link", "datagram"] {
        assert_eq!(outcome(name), format!("unix:path=D/{name}"));
    }
    drop((live, datagram));
    assert!(
        std::fs::symlink_metadata(file("target"))
            .unwrap()
            .file_type()
            .is_socket()
    );

    std::fs::write(file("file"), "precious").unwrap();
    std::fs::create_dir(file("directory")).unwrap();
    std::os::unix::fs::symlink(file("nowhere"), file("dangling")).unwrap();
    for name in ["file", "directory", "dangling"] {
        let said = outcome(name);
        assert!(said.contains("Address already in use"), "{name}: {said}");
    }
    assert_eq!(std::fs::read_to_string(file("file")).unwrap(), "precious");
    assert!(file("directory").is_dir() && file("dangling").is_symlink());
}

#[test]
fn nobody_finds_half_a_bus() {
    let directory = tempfile::tempdir().unwrap();
    let said = outcome(directory.path(), &["unix:path=D/one", "unix:path=D/no/such"]);
    assert!(said.contains("D/no/such"), "{said}");
    assert!(!directory.path().join("one").exists());
}

/// As sd_listen_fds(3) has it: blocking sockets from descriptor 3 on. They serve, and still do after an upgrade.
#[test]
fn sockets_of_the_service_manager() {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixListener;
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let sockets = ["one", "two"].map(|name| UnixListener::bind(path(name)).unwrap());
    for socket in &sockets {
        nix::fcntl::fcntl(socket, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    }
    let [one, two] = sockets.each_ref().map(AsRawFd::as_raw_fd);
    let script = format!(
        "exec 71<&{one} 72<&{two} 3<&71 4<&72 71<&- 72<&-\n\
         LISTEN_PID=$$ LISTEN_FDS=2 exec \"$@\""
    );
    let child = Command::new("bash")
        .args([
            "-c",
            &script,
            "bash",
            env!("CARGO_BIN_EXE_bus"),
            "daemon",
            "--session",
        ])
        .args(["--nofork", "--print-address", "--address=systemd:"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Ended(child);
    let mut buffer = [0; 4096];
    let len = child.0.stdout.as_mut().unwrap().read(&mut buffer).unwrap();
    let line = std::str::from_utf8(&buffer[..len]).unwrap().trim_end().to_owned();
    drop(sockets);
    assert_eq!(line.split(';').count(), 2, "{line}");
    for generation in 2..4 {
        for address in line.split(';') {
            let mut caller = Caller::connect(address).unwrap();
            caller.ask("GetNameOwner", "org.freedesktop.DBus").unwrap();
        }
        let mut caller = Caller::connect(line.split(';').next().unwrap()).unwrap();
        caller.set_timeout(std::time::Duration::from_secs(60));
        let reply = caller
            .call(
                "org.freedesktop.DBus",
                "/org/freedesktop/DBus",
                "org.busdaemon.Restart1",
                "Upgrade",
                |body| {
                    body.str("");
                },
            )
            .unwrap();
        assert_eq!(reply.body().read_u32().unwrap(), generation);
    }
    assert!(path("one").exists() && path("two").exists());
}
