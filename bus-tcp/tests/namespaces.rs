//! Two hosts: network namespaces and a cable between them, which is pulled. Needs root, and `ip` and `ss` (iproute2).
//! Times are a tenth of the usual ones; `--ignored` takes the real ones.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub
)]

mod support;

use bus_tcp::limits::Terms;
use bus_tcp::runtime::Stats;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use support::{Rig, hear, over, say};
use tokio::io::split;

/// Two namespaces, `near` and `far`, with a cable from 10.77.N.1 to 10.77.N.2.
struct Cable {
    near: String,
    far: String,
    subnet: u32,
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Cable {
    /// None: this machine has no namespaces for us.
    fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let possible = nix::unistd::geteuid().is_root()
            && Command::new("ip")
                .args(["netns", "list"])
                .output()
                .is_ok_and(|output| output.status.success());
        if !possible {
            assert!(
                std::env::var("BUS_TEST_PEERS").as_deref() != Ok("require")
                    || !nix::unistd::geteuid().is_root(),
                "ip is missing"
            );
            eprintln!("skipped: ip not found, or not root");
            return None;
        }
        let subnet = NEXT.fetch_add(1, SeqCst);
        let name = |end: &str| format!("bt{}-{subnet}{end}", std::process::id());
        let cable = Self {
            near: name("n"),
            far: name("f"),
            subnet,
        };
        for end in [&cable.near, &cable.far] {
            ip(&format!("netns add {end}"));
            ip(&format!("-n {end} link set lo up"));
        }
        ip(&format!(
            "-n {} link add v0 type veth peer name v0 netns {}",
            cable.near, cable.far
        ));
        for (end, last) in [(&cable.near, 1), (&cable.far, 2)] {
            ip(&format!("-n {end} addr add 10.77.{subnet}.{last}/24 dev v0"));
            ip(&format!("-n {end} link set v0 up"));
        }
        Some(cable)
    }

    fn enter(name: &str) {
        let file = File::open(format!("/run/netns/{name}")).unwrap();
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
    }

    fn near(&self, command: &str) {
        ip(&format!("-n {} {command}", self.near));
    }

    fn far(&self, command: &str) {
        ip(&format!("-n {} {command}", self.far));
    }

    fn mac(&self) -> String {
        let output = Command::new("ip")
            .args(["-n", &self.near, "-br", "link", "show", "v0"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout)
            .unwrap()
            .split_whitespace()
            .nth(2)
            .unwrap()
            .to_owned()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for end in [&self.near, &self.far] {
            let _ = Command::new("ip").args(["netns", "del", end]).status();
        }
    }
}

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

#[test]
fn sockets_are_killed() {
    let Some(cable) = Cable::new() else { return };
    let stats = talk(
        &cable,
        Terms::DEFAULT.divided(10),
        400_000,
        Duration::from_millis(15),
        |cable| {
            for end in [&cable.near, &cable.far, &cable.near] {
                let killed = Command::new("ip")
                    .args(["netns", "exec", end, "ss", "-K", "state", "established"])
                    .output();
                assert!(killed.unwrap().status.success());
                thread::sleep(Duration::from_millis(400));
            }
        },
    );
    eprintln!("{stats:?}");
    assert_eq!(stats.received, 400_000);
    assert!(stats.resumptions > 0, "{stats:?}");
}

#[test]
fn the_address_changes() {
    let Some(cable) = Cable::new() else { return };
    let subnet = cable.subnet;
    let stats = talk(
        &cable,
        Terms::DEFAULT.divided(10),
        400_000,
        Duration::from_millis(15),
        |cable| {
            cable.near(&format!("addr del 10.77.{subnet}.1/24 dev v0"));
            cable.near(&format!("addr add 10.77.{subnet}.99/24 dev v0"));
        },
    );
    eprintln!("{stats:?}");
    assert_eq!(stats.received, 400_000);
    assert!(stats.resumptions > 0, "{stats:?}");
}

#[test]
fn one_direction_is_dropped() {
    let Some(cable) = Cable::new() else { return };
    let subnet = cable.subnet;
    let began = Instant::now();
    let stats = talk(
        &cable,
        Terms::DEFAULT.divided(10),
        400_000,
        Duration::from_millis(15),
        |cable| {
            // What the host sends goes to a card that is not there.
            cable.far(&format!(
                "neigh replace 10.77.{subnet}.1 lladdr 02:00:00:00:00:99 dev v0 nud permanent"
            ));
            thread::sleep(Duration::from_secs(3));
            let mac = cable.mac();
            cable.far(&format!(
                "neigh replace 10.77.{subnet}.1 lladdr {mac} dev v0 nud reachable"
            ));
        },
    );
    eprintln!("{:?}: {stats:?}", began.elapsed());
    assert_eq!(stats.received, 400_000);
    assert!(stats.resumptions > 0, "{stats:?}");
}
