//! The whole load of the tests: hundreds of raw connections, and clients of five implementations.

use super::Bus;
use super::zbus_peer::ZbusPeer;
use bus_load::{Load, LoadPlan, PeerPlan, Script, echo_service, implementations, peers, watchers};
use std::time::Duration;

/// Scripted clients of each implementation.
const EACH: usize = 4;

/// The whole load, attached and under way.
pub fn attach(bus: &Bus) -> Load {
    let echo = peers::find("dbus-test-tool").unwrap();
    let mut plan = LoadPlan::default();
    plan.call_also
        .extend(echo.iter().map(|_| "org.busdaemon.Load.echo".to_owned()));
    assert_eq!(plan.connections(), 200);
    eprintln!("BUS_LOAD_SEED={}", plan.seed);
    let mut load = Load::start(&bus.address, plan).unwrap();

    let scripts = implementations(peers::find_python).unwrap();
    let kinds = scripts
        .iter()
        .map(|(implementation, _)| *implementation)
        .chain(["zbus"]);
    let ids: Vec<(String, String)> = kinds
        .flat_map(|kind| {
            (0..EACH).map(move |index| (format!("{}{index}", kind.replace('-', "")), kind.to_owned()))
        })
        .collect();
    for plan in PeerPlan::ring(&ids, Duration::from_millis(40)) {
        match scripts
            .iter()
            .find(|(implementation, _)| *implementation == plan.implementation)
        {
            Some((_, python)) => load
                .attach(Box::new(Script::start(python, &bus.address, plan).unwrap()))
                .unwrap(),
            None => load
                .attach(Box::new(ZbusPeer::start(&bus.address, plan)))
                .unwrap(),
        }
    }
    let emitters: Vec<String> = ids.into_iter().map(|(id, _)| id).collect();
    for program in watchers(&bus.address, &emitters, peers::find).unwrap() {
        load.attach(Box::new(program)).unwrap();
    }
    if let Some(path) = echo {
        load.attach(Box::new(echo_service(path, &bus.address, "echo").unwrap()))
            .unwrap();
    }
    let real: u32 = load.implementations().values().sum();
    assert!(scripts.len() < 3 || real >= 20, "only {real} real clients");
    load.invite_visitors();
    load.go().unwrap();
    load
}
