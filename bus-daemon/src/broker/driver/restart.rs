//! `org.busdaemon.Restart1`: the bus's own life, and its replacement in place.

use super::{Call, Fault};
use crate::broker::{Broker, expects_reply};

/// Answered by whoever serves next. Only privileged peers come this far.
pub(super) fn upgrade(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let binary = call.message.body().read_str()?;
    if let Some(problem) = problem_of(binary) {
        return Err(Fault::invalid_args(format!(
            "The path of the new binary {problem}"
        )));
    }
    let serial = if expects_reply(call.message) {
        call.message.serial().get()
    } else {
        0
    };
    if broker.call_upgrade(call.caller, serial, binary.to_owned()) {
        return Ok(());
    }
    Err(Fault::new(
        "org.busdaemon.Error.UpgradeInProgress",
        "An upgrade is under way already",
    ))
}

/// Bytes of the longest path that the system takes (`PATH_MAX`, without the nul at the end).
const LONGEST_PATH: usize = 4095;

/// What is wrong with a path, if anything; none at all stands for the one that the bus was started from.
fn problem_of(path: &str) -> Option<String> {
    if path.is_empty() {
        None
    } else if path.len() > LONGEST_PATH {
        Some(format!(
            "has {} bytes; {LONGEST_PATH} are the most that a path can have",
            path.len()
        ))
    } else if path.contains('\0') {
        Some("has a nul in it".to_owned())
    } else if !path.starts_with('/') {
        Some(format!("must be absolute, and is \"{path}\""))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::problem_of;

    #[test]
    fn a_path_is_absolute_and_no_longer_than_the_system_takes() {
        for good in ["", "/", "/usr/bin/bus", &format!("/{}", "a".repeat(4094))] {
            assert_eq!(problem_of(good), None, "{good}");
        }
        for bad in ["a", "./a", " /a", "/a\0", &format!("/{}", "a".repeat(4095))] {
            assert!(problem_of(bad).is_some(), "{bad}");
        }
    }
}
