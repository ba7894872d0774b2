//! Two hosts: network namespaces and a cable between them, which is pulled. Times are a tenth of the usual ones; `--ignored` takes
//! the real ones.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub
)]

#[path = "support/cable.rs"]
mod cable;
mod support;

use bus_tcp::limits::Terms;
use bus_tcp::runtime::Stats;
use cable::Cable;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use support::{Rig, hear, over, say};
use tokio::io::split;

/// Both sides talk, checked byte by byte, while `trouble` does something to the cable. The client's numbers afterwards.
fn talk(cable: &Cable, terms: Terms, count: u64, pace: Duration, trouble: impl FnOnce(&Cable)) -> Stats {
    let (told, ready) = mpsc::channel();
    let far = cable.far.clone();
    let address = format!("10.77.{}.2:0", cable.subnet);
    let host = thread::spawn(move || {
        Cable::enter(&far);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let rig = Rig::tls_on(&address).await;
            told.send((rig.address, rig.host_key.clone(), rig.client_key.clone()))
                .unwrap();
            let session = rig.listener.accept().await.unwrap();
            let watch = session.watch();
            let (read, write) = split(session);
            tokio::join!(say(write, count, 5_000, pace), hear(read, count));
            over(&watch).await;
        });
    });
    let (address, host_key, client_key) = ready.recv().unwrap();
    let near = cable.near.clone();
    let (done, finished) = mpsc::channel();
    let client = thread::spawn(move || {
        Cable::enter(&near);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let dial = bus_tcp::tls::TlsDial::raw_key(
                bus_tcp::tls::provider(),
                address.to_string(),
                &client_key,
                vec![host_key.pin()],
                &terms,
            );
            let session = bus_tcp::connect(dial.unwrap(), terms).unwrap();
            let watch = session.watch();
            let (read, write) = split(session);
            tokio::join!(say(write, count, 5_000, pace), hear(read, count));
            over(&watch).await;
            done.send(watch.stats()).unwrap();
        });
    });
    thread::sleep(Duration::from_millis(300));
    trouble(cable);
    let stats = finished.recv_timeout(Duration::from_secs(180)).unwrap();
    client.join().unwrap();
    host.join().unwrap();
    stats
}

fn down(terms: Terms, long: Duration, resumes: bool) {
    let Some(cable) = Cable::new() else { return };
    let stats = talk(&cable, terms, 400_000, Duration::from_millis(15), |cable| {
        cable.near("link set v0 down");
        thread::sleep(long);
        cable.near("link set v0 up");
    });
    eprintln!("link down for {long:?}: {stats:?}");
    assert_eq!((stats.received, stats.unacked), (400_000, 0));
    assert!(!resumes || stats.resumptions > 0, "{stats:?}");
}

#[test]
fn the_cable_is_pulled_for_a_tenth_of_1_5_15_and_50_seconds() {
    for (long, resumes) in [(100, false), (500, false), (1500, false), (5000, true)] {
        down(Terms::DEFAULT.divided(10), Duration::from_millis(long), resumes);
    }
}

#[test]
#[ignore = "the real times: two minutes"]
fn the_cable_is_pulled_for_1_5_15_and_50_seconds() {
    for (long, resumes) in [(1, false), (5, false), (15, false), (50, true)] {
        down(Terms::DEFAULT, Duration::from_secs(long), resumes);
    }
}

/// All sockets of one host or the other are killed, three times.
fn sockets_are_killed(terms: Terms, pace: Duration, apart: Duration) {
    let Some(cable) = Cable::new() else { return };
    let stats = talk(&cable, terms, 400_000, pace, |cable| {
        for end in [&cable.near, &cable.far, &cable.near] {
            let killed = Command::new("ip")
                .args(["netns", "exec", end, "ss", "-K", "state", "established"])
                .output();
            assert!(killed.unwrap().status.success());
            thread::sleep(apart);
        }
    });
    eprintln!("{stats:?}");
    assert_eq!(stats.received, 400_000);
    assert!(stats.resumptions > 0, "{stats:?}");
}

#[test]
fn sockets_that_are_killed_are_replaced() {
    let (pace, apart) = (Duration::from_millis(15), Duration::from_millis(400));
    sockets_are_killed(Terms::DEFAULT.divided(10), pace, apart);
}

#[test]
#[ignore = "the real times: some seconds"]
fn sockets_that_are_killed_are_replaced_at_real_times() {
    let (pace, apart) = (Duration::from_millis(250), Duration::from_millis(5000));
    sockets_are_killed(Terms::DEFAULT, pace, apart);
}

/// The near host has another address from now on.
fn the_address_changes_to_another(terms: Terms, pace: Duration) {
    let Some(cable) = Cable::new() else { return };
    let subnet = cable.subnet;
    let stats = talk(&cable, terms, 400_000, pace, |cable| {
        cable.near(&format!("addr del 10.77.{subnet}.1/24 dev v0"));
        cable.near(&format!("addr add 10.77.{subnet}.99/24 dev v0"));
    });
    eprintln!("{stats:?}");
    assert_eq!(stats.received, 400_000);
    assert!(stats.resumptions > 0, "{stats:?}");
}

#[test]
fn the_address_changes() {
    the_address_changes_to_another(Terms::DEFAULT.divided(10), Duration::from_millis(15));
}

#[test]
#[ignore = "the real times: half a minute"]
fn the_address_changes_at_real_times() {
    the_address_changes_to_another(Terms::DEFAULT, Duration::from_millis(250));
}

/// What one side sends does not arrive for so long, and it is not told.
fn one_direction_is_dropped_for(terms: Terms, long: Duration) {
    let Some(cable) = Cable::new() else { return };
    let subnet = cable.subnet;
    let began = Instant::now();
    let stats = talk(&cable, terms, 400_000, Duration::from_millis(15), |cable| {
        // What the host sends goes to a card that is not there.
        cable.far(&format!(
            "neigh replace 10.77.{subnet}.1 lladdr 02:00:00:00:00:99 dev v0 nud permanent"
        ));
        thread::sleep(long);
        let mac = cable.mac();
        cable.far(&format!(
            "neigh replace 10.77.{subnet}.1 lladdr {mac} dev v0 nud reachable"
        ));
    });
    eprintln!("{:?}: {stats:?}", began.elapsed());
    assert_eq!(stats.received, 400_000);
    assert!(stats.resumptions > 0, "{stats:?}");
}

#[test]
fn one_direction_is_dropped() {
    one_direction_is_dropped_for(Terms::DEFAULT.divided(10), Duration::from_secs(3));
}

#[test]
#[ignore = "the real times: half a minute"]
fn one_direction_is_dropped_for_30_seconds() {
    one_direction_is_dropped_for(Terms::DEFAULT, Duration::from_secs(30));
}
