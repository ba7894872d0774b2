//! `org.busdaemon.Restart1`: the bus's own life, and its replacement in place.

use super::{Call, Fault};
use crate::broker::{Broker, expects_reply};

/// Answered by whoever serves next. Only privileged peers come this far.
pub(super) fn upgrade(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let binary = call.message.body().read_str()?;
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
