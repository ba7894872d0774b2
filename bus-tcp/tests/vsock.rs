//! A session over AF_VSOCK: this machine to itself, where the kernel has a loopback for it (the module `vsock_loopback`).
#![cfg(feature = "vsock")]
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_tcp::carrier::{Dial, VsockDial, VsockDoor};
use bus_tcp::{Listener, connect};
use std::time::Duration;
use support::{converse, options, terms};

/// This machine, to itself.
const LOCAL: u32 = 1;

/// Only where the kernel has none: `CONFIG_VSOCKETS_LOOPBACK`, which is the module `vsock_loopback` if it is not built in.
fn no_loopback(why: &str) {
    let is_there = std::path::Path::new("/sys/module/vsock_loopback").exists();
    assert!(!is_there, "there is a loopback for vsock: {why}");
    eprintln!("skipped: no loopback for vsock here: {why}");
}

#[tokio::test]
async fn a_session_between_a_machine_and_itself() {
    let port = 40_000 + std::process::id() % 20_000;
    let door = match VsockDoor::trusted(port) {
        Ok(door) => door,
        Err(error) => return eprintln!("skipped: no vsock here: {error}"),
    };
    let listener = Listener::new(options()).unwrap();
    listener.open(door);
    let mut dial = VsockDial { cid: LOCAL, port };
    match tokio::time::timeout(Duration::from_secs(3), dial.dial(None)).await {
        Ok(Ok(carrier)) => drop(carrier),
        Ok(Err(error)) => return no_loopback(&error.to_string()),
        Err(_) => return no_loopback("nobody answers"),
    }
    let client = connect(dial, terms()).unwrap();
    let host = listener.accept().await.unwrap();
    assert_eq!(host.peer(), Some("cid:1"));
    converse(client, host, 100_000, Duration::ZERO).await;
}
