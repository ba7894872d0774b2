//! `bus upgrade`: another binary takes over, and the clients stay.

use crate::connection::{self, Connection};
use crate::status::{LastRestart, milliseconds};
use crate::{Global, output, running};
use anyhow::{Context, bail};
use bus_load::CallError;
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

/// What became of one upgrade.
pub(crate) struct Upgraded {
    pub(crate) generation: u32,
    pub(crate) last: Option<LastRestart>,
}

/// Upgrades one bus.
pub(crate) fn upgrade(bus: &mut Connection, binary: &str) -> anyhow::Result<Upgraded> {
    let generation = match bus.upgrade(binary) {
        Ok(generation) => generation,
        Err(CallError::Reply { name, message }) => bail!(explain(&name, &message)),
        Err(CallError::Broken(error)) => return Err(error.context("the bus did not answer")),
    };
    let last = bus.restart()?.as_ref().and_then(LastRestart::of);
    Ok(Upgraded { generation, last })
}

/// What an error of `Upgrade` means to the one who asked.
fn explain(name: &str, message: &str) -> String {
    match name {
        "org.busdaemon.Error.UpgradeRefused" => format!("refused, the bus is untouched: {message}"),
        "org.busdaemon.Error.UpgradeRolledBack" => format!("the old binary went on: {message}"),
        "org.busdaemon.Error.UpgradeInProgress" => "another upgrade is under way".to_owned(),
        "org.freedesktop.DBus.Error.UnknownInterface" | "org.freedesktop.DBus.Error.UnknownMethod" => {
            "this bus cannot be upgraded in place: it has no org.busdaemon.Restart1".to_owned()
        }
        "org.freedesktop.DBus.Error.AccessDenied" => format!("not allowed: {message}"),
        _ => format!("{name}: {message}"),
    }
}

/// The path as the daemon is to see it, whose working directory is another.
fn absolute(binary: Option<&Path>) -> anyhow::Result<String> {
    let Some(binary) = binary else {
        return Ok(String::new());
    };
    let path = std::path::absolute(binary).with_context(|| format!("{}", binary.display()))?;
    path.into_os_string()
        .into_string()
        .ok()
        .context("the path of the binary is not UTF-8")
}

fn show(address: &str, upgraded: &Upgraded, as_json: bool) {
    let last = upgraded.last.as_ref();
    if as_json {
        let line = json!({
            "address": address,
            "generation": upgraded.generation,
            "pause_us": last.map(|last| last.pause_us),
            "carried": last.map(|last| last.carried),
            "in_doubt": last.map(|last| last.in_doubt),
        });
        output::line(&line.to_string());
        return;
    }
    let detail = last.map_or_else(String::new, |last| {
        format!(
            ": a pause of {}, {} connections carried",
            milliseconds(last.pause_us),
            last.carried
        )
    });
    output::line(&format!("{address}: generation {}{detail}", upgraded.generation));
}

/// `bus upgrade [--binary PATH]`
pub(crate) fn run(global: &Global, binary: Option<&Path>) -> anyhow::Result<ExitCode> {
    let mut bus = Connection::open(&connection::address(global)?)?;
    let address = bus.address.clone();
    let upgraded = upgrade(&mut bus, &absolute(binary)?).with_context(|| address.clone())?;
    show(&address, &upgraded, global.json);
    Ok(ExitCode::SUCCESS)
}

/// `bus upgrade --all [--binary PATH]`
pub(crate) fn run_all(as_json: bool, binary: Option<&Path>) -> anyhow::Result<ExitCode> {
    let binary = absolute(binary)?;
    let found = running::buses()?;
    for pid in &found.unreadable {
        output::complain(&format!(
            "process {pid} looks like a bus, and is not yours to look into"
        ));
    }
    let mut failed = !found.unreadable.is_empty();
    for bus in &found.buses {
        let upgraded = Connection::open(&bus.address).and_then(|mut bus| upgrade(&mut bus, &binary));
        match upgraded {
            Ok(upgraded) => show(&bus.address, &upgraded, as_json),
            Err(error) => {
                output::complain(&format!("{} (process {}): {error:#}", bus.address, bus.pid));
                failed = true;
            }
        }
    }
    if found.buses.is_empty() && !as_json {
        output::line("no running bus of this kind was found");
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_binary_is_made_absolute() {
        assert_eq!(absolute(None).unwrap(), "");
        let there = absolute(Some(Path::new("target/bus"))).unwrap();
        assert!(
            there.starts_with('/') && there.ends_with("/target/bus"),
            "{there}"
        );
    }

    #[test]
    fn errors_say_what_became_of_the_bus() {
        let refused = explain("org.busdaemon.Error.UpgradeRefused", "not a bus daemon");
        assert_eq!(refused, "refused, the bus is untouched: not a bus daemon");
        assert_eq!(explain("a.b.C", "d"), "a.b.C: d");
    }
}
