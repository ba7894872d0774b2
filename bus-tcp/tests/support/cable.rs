//! Two network namespaces and a cable between them. Needs root, and `ip` and `ss` (iproute2).

#![allow(dead_code, reason = "not every program needs all of it")]

use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// Two namespaces, `near` and `far`, with a cable from 10.77.N.1 to 10.77.N.2.
pub struct Cable {
    pub near: String,
    pub far: String,
    pub subnet: u32,
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
    pub fn new() -> Option<Self> {
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

    pub fn enter(name: &str) {
        let file = File::open(format!("/run/netns/{name}")).unwrap();
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
    }

    pub fn near(&self, command: &str) {
        ip(&format!("-n {} {command}", self.near));
    }

    pub fn far(&self, command: &str) {
        ip(&format!("-n {} {command}", self.far));
    }

    pub fn mac(&self) -> String {
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
