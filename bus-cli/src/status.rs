//! `bus status`: what a bus is doing and what it has survived.

use crate::connection::{self, Connection};
use crate::{Global, output};
use serde_json::{Map, Value, json};
use std::process::ExitCode;

/// The properties of the bus, in the order in which they are shown.
const PROPERTIES: [(&str, &str); 5] = [
    ("Generation", "generation"),
    ("Recoveries", "recoveries"),
    ("KeeperPID", "keeper pid"),
    ("WorkerPID", "worker pid"),
    ("StateVersion", "state version"),
];
/// Statistics that are shown without `--json`.
const STATS: [(&str, &str); 4] = [
    ("ActiveConnections", "connections"),
    ("IncompleteConnections", "connecting"),
    ("BusNames", "names"),
    ("MatchRules", "match rules"),
];

/// Bytes that are held, by kind, and what the cap of memory has led to.
const MEMORY: [(&str, &str); 9] = [
    ("org.busdaemon.QueuedBytes", "queued for peers"),
    ("org.busdaemon.StoreBytes", "stored of that"),
    ("org.busdaemon.JournalExtentBytes", "large messages"),
    ("org.busdaemon.InputBytes", "partial input"),
    ("org.busdaemon.StateBytes", "rules, names, calls"),
    ("org.busdaemon.EnvironmentBytes", "environment"),
    ("org.busdaemon.RefusedForMemory", "refused for memory"),
    ("org.busdaemon.HeldBackForMemory", "held back for memory"),
    ("org.busdaemon.DismissedForMemory", "dropped for memory"),
];

/// What `LastRestart` says.
pub(crate) struct LastRestart {
    pub(crate) cause: String,
    pub(crate) pause_us: u64,
    pub(crate) carried: u64,
    pub(crate) in_doubt: u64,
    pub(crate) quarantined: u64,
}

impl LastRestart {
    /// From the properties of the bus: `(stuuu)`.
    pub(crate) fn of(properties: &Map<String, Value>) -> Option<LastRestart> {
        let [cause, pause, carried, in_doubt, quarantined] = &properties.get("LastRestart")?.as_array()?[..]
        else {
            return None;
        };
        Some(LastRestart {
            cause: cause.as_str()?.to_owned(),
            pause_us: pause.as_u64()?,
            carried: carried.as_u64()?,
            in_doubt: in_doubt.as_u64()?,
            quarantined: quarantined.as_u64()?,
        })
    }

    fn text(&self) -> String {
        if self.cause.is_empty() {
            return "none since the start".to_owned();
        }
        let LastRestart {
            cause,
            pause_us,
            carried,
            in_doubt,
            quarantined,
        } = self;
        format!(
            "{cause}: a pause of {}, {carried} connections carried, {in_doubt} dropped as in doubt, \
             {quarantined} messages quarantined",
            milliseconds(*pause_us)
        )
    }
}

/// Microseconds as milliseconds.
pub(crate) fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:02} ms", microseconds / 1000, microseconds % 1000 / 10)
}

/// What is held, and what may be.
fn memory_of(stats: &Map<String, Value>) -> Option<String> {
    let number = |key: &str| stats.get(key)?.as_u64();
    let held = number("org.busdaemon.MemoryHeld")?;
    let cap = number("org.busdaemon.MemoryCap")?;
    Some(format!("{} of {}", bytes(held), bytes(cap)))
}

/// Bytes as a person reads them.
fn bytes(number: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB"];
    let unit = (number.max(1).ilog2() / 10).min(3);
    if unit == 0 {
        return format!("{number} B");
    }
    let tenths = (u128::from(number) * 10) >> (10 * unit);
    format!("{}.{} {}", tenths / 10, tenths % 10, units[unit as usize])
}

/// The subcommand.
pub(crate) fn run(global: &Global) -> anyhow::Result<ExitCode> {
    let mut bus = Connection::open(&connection::address(global)?)?;
    let id = bus.id()?;
    let restart = bus.restart()?;
    let stats = bus.stats()?;
    if global.json {
        let status = json!({ "address": bus.address, "id": id, "restart": restart, "stats": stats });
        output::line(&status.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![("address", bus.address.clone()), ("id", id)];
    match &restart {
        Some(properties) => {
            let shown = PROPERTIES
                .iter()
                .filter_map(|(key, name)| Some((*name, properties.get(*key)?.to_string())));
            rows.extend(shown);
            rows.extend(LastRestart::of(properties).map(|last| ("last restart", last.text())));
        }
        None => rows.push(("last restart", "this bus cannot be replaced in place".to_owned())),
    }
    let stats = stats.unwrap_or_default();
    rows.extend(
        STATS
            .iter()
            .filter_map(|(key, name)| Some((*name, stats.get(*key)?.to_string()))),
    );
    rows.extend(memory_of(&stats).map(|held| ("memory held", held)));
    rows.extend(MEMORY.iter().filter_map(|(key, name)| {
        let number = stats.get(*key)?.as_u64()?;
        let is_count = key.ends_with("ForMemory");
        Some((
            *name,
            if is_count {
                number.to_string()
            } else {
                bytes(number)
            },
        ))
    }));
    output::table(&rows);
    Ok(ExitCode::SUCCESS)
}
