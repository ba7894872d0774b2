//! `bus keygen` and `bus carry`, with a host and clients of bus-tcp.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use bus_tcp::carrier::{CommandDial, UnixDoor};
use bus_tcp::limits::Terms;
use bus_tcp::tls::{Key, KeyError, provider};
use bus_tcp::{Event, ListenOptions, Listener, connect};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn bus(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bus"))
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn a_key_is_its_owners_alone_and_other_programs_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let file = path.to_str().unwrap();
    let made = bus(&["keygen", file]);
    assert!(made.status.success(), "{made:?}");
    let pin = String::from_utf8(made.stdout).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let key = Key::read(&provider(), &path).unwrap();
    assert_eq!(pin.trim(), key.pin().to_string());
    let public = std::fs::read_to_string(dir.path().join("key.pub")).unwrap();
    assert!(
        public.starts_with(&pin) && public.contains("BEGIN PUBLIC KEY"),
        "{public}"
    );

    // A second time nothing is overwritten.
    assert_eq!(bus(&["keygen", file]).status.code(), Some(1));
    assert_eq!(Key::read(&provider(), &path).unwrap().pin(), key.pin());

    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    assert!(matches!(
        Key::read(&provider(), &path),
        Err(KeyError::Exposed { mode: 0o640, .. })
    ));
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();

    let openssl = |arguments: &[&str]| Command::new("openssl").args(arguments).output();
    let public_file = format!("{file}.pub");
    let from_private = match openssl(&["pkey", "-in", file, "-pubout", "-outform", "DER"]) {
        Ok(output) => output,
        Err(_) if std::env::var("BUS_TEST_PEERS").as_deref() != Ok("require") => {
            eprintln!("skipped: openssl not found");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let from_public = openssl(&[
        "pkey",
        "-pubin",
        "-in",
        &public_file,
        "-pubout",
        "-outform",
        "DER",
    ])
    .unwrap();
    assert!(
        from_private.status.success() && from_public.status.success(),
        "{from_private:?} {from_public:?}"
    );
    assert_eq!(from_private.stdout, key.spki());
    assert_eq!(from_public.stdout, key.spki());
}

#[tokio::test]
async fn a_session_over_a_command_outlives_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = Listener::new(ListenOptions::default()).unwrap();
    listener.open(UnixDoor(tokio::net::UnixListener::bind(&path).unwrap()));
    let terms = Terms::DEFAULT.divided(10);
    let pids = dir.path().join("pids");
    // As ssh does: a shell runs the command.
    let script = format!(
        "echo $$ >> {}; exec {} carry --connect {}",
        pids.display(),
        env!("CARGO_BIN_EXE_bus"),
        path.display()
    );
    let mut client = connect(CommandDial::trusted("sh", ["-c", &script]), terms).unwrap();
    let mut host = listener.accept().await.unwrap();
    assert_eq!(
        host.peer(),
        Some(format!("uid:{}", nix::unistd::getuid()).as_str())
    );
    let watch = client.watch();
    let mut buf = [0; 4];
    for round in 0_u32..5 {
        client.write_all(&round.to_be_bytes()).await.unwrap();
        host.read_exact(&mut buf).await.unwrap();
        assert_eq!(u32::from_be_bytes(buf), round);
        let started = std::fs::read_to_string(&pids).unwrap();
        let last = started.lines().last().unwrap().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(last), nix::sys::signal::SIGKILL).unwrap();
        let resumed = async { while !matches!(watch.event().await.unwrap(), Event::Resumed { .. }) {} };
        host.write_all(&round.to_le_bytes()).await.unwrap();
        tokio::time::timeout(Duration::from_secs(20), resumed)
            .await
            .unwrap();
        client.read_exact(&mut buf).await.unwrap();
        assert_eq!(u32::from_le_bytes(buf), round);
    }
    client.shutdown().await.unwrap();
}

#[test]
fn carry_without_a_listener_says_so() {
    let failed = bus(&["carry", "--connect", "/nonexistent/socket"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(
        String::from_utf8(failed.stderr)
            .unwrap()
            .contains("/nonexistent/socket")
    );
}
