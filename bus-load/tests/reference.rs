//! The load itself is right: on the reference implementation's bus, which loses nothing, it finds nothing wrong.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use bus_load::{Hook, Load, LoadPlan, PeerPlan, Script, echo_service, implementations, peers, watchers};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const CONFIG: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:tmpdir=/tmp</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
</policy></busconfig>"#;

struct Bus {
    child: Child,
    address: String,
}

impl Bus {
    fn start() -> Option<Bus> {
        let program = peers::find("dbus-daemon").unwrap()?;
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let config = std::env::temp_dir().join(format!("bus-load-{}-{number}.conf", std::process::id()));
        std::fs::write(&config, CONFIG).unwrap();
        let mut child = Command::new(program)
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut address)
            .unwrap();
        std::fs::remove_file(config).unwrap();
        Some(Bus {
            child,
            address: address.trim().to_owned(),
        })
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn the_reference_bus_is_found_clean() {
    let Some(bus) = Bus::start() else { return };
    let mut plan = LoadPlan::small();
    if let Some(path) = peers::find("dbus-test-tool").unwrap() {
        plan.call_also.push("org.busdaemon.Load.echo".to_owned());
        let _ = path;
    }
    eprintln!("BUS_LOAD_SEED={}", plan.seed);
    let mut load = Load::start(&bus.address, plan).unwrap();

    let scripts = implementations(peers::find_python).unwrap();
    let ids: Vec<_> = scripts
        .iter()
        .map(|(name, _)| (format!("{}0", name.replace('-', "")), (*name).to_owned()))
        .collect();
    for (plan, (_, python)) in PeerPlan::ring(&ids, Duration::from_millis(20))
        .into_iter()
        .zip(&scripts)
    {
        load.attach(Box::new(Script::start(python, &bus.address, plan).unwrap()))
            .unwrap();
    }
    let emitters: Vec<String> = ids.into_iter().map(|(id, _)| id).collect();
    for program in watchers(&bus.address, &emitters, peers::find).unwrap() {
        load.attach(Box::new(program)).unwrap();
    }
    if let Some(path) = peers::find("dbus-test-tool").unwrap() {
        load.attach(Box::new(echo_service(path, &bus.address, "echo").unwrap()))
            .unwrap();
    }
    load.invite_visitors();
    load.go().unwrap();
    for _ in 0..5 {
        load.hold(&Hook::ALL).unwrap();
        load.release(&Hook::ALL).unwrap();
    }
    let report = load.finish().unwrap();
    eprintln!("{report}");
    assert!(report.is_clean(), "{report}");
    assert!(report.total().received > 100 && report.fds_passed > 0, "{report}");
}

#[test]
fn a_bus_that_dies_is_noticed() {
    let Some(bus) = Bus::start() else { return };
    let mut load = Load::start(&bus.address, LoadPlan::small()).unwrap();
    load.go().unwrap();
    load.hold(&[Hook::PendingReplies]).unwrap();
    drop(bus);
    let report = load.finish().unwrap();
    assert!(!report.is_clean(), "{report}");
    assert!(
        report.total().disconnected >= u64::from(LoadPlan::small().connections()) - 1,
        "{report}"
    );
    assert!(report.total().lost > 0, "{report}");
}
