//! The configuration, and the environment of services that are yet to be started.

use super::{Call, Fault};
use crate::broker::{Broker, LIMITS_EXCEEDED, MOST_ENVIRONMENT, MachineId, System, expects_reply};

/// "adds to or modifies that environment when activating services"
pub(super) fn update(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let mut variables = Vec::new();
    let mut bytes = 0;
    call.message.body().read_array(|element| {
        element.read_dict_entry(|entry| {
            let (name, value) = (entry.read_str()?, entry.read_str()?);
            bytes += (name.len() + value.len()) as u64;
            // What is too much in any case is not even copied.
            if bytes <= MOST_ENVIRONMENT {
                variables.push((name.to_owned(), value.to_owned()));
            }
            Ok(())
        })
    })?;
    let too_large = || {
        Fault::limits_exceeded(format!(
            "The environment of activated services would be larger than the {MOST_ENVIRONMENT} bytes that it may be"
        ))
    };
    if bytes > MOST_ENVIRONMENT {
        return Err(too_large());
    }
    if let Some((name, _)) = variables
        .iter()
        .find(|(name, _)| name.is_empty() || name.contains('='))
    {
        return Err(Fault::invalid_args(format!(
            "\"{name}\" cannot be the name of an environment variable"
        )));
    }
    let updated = broker.update_activation_environment(variables);
    updated.map_err(|_| too_large())?;
    broker.send_driver_reply(call.caller, call.message, |_| ());
    Ok(())
}

/// Answered when the configuration is loaded, or refused.
pub(super) fn reload_config(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let serial = if expects_reply(call.message) {
        call.message.serial().get()
    } else {
        0
    };
    if broker.call_reload(call.caller, serial) {
        return Ok(());
    }
    Err(Fault::new(
        LIMITS_EXCEEDED,
        "The maximum number of pending replies per connection has been reached",
    ))
}

/// "The machine ID is intended to be the same for all processes on the same system" (specification,
/// "org.freedesktop.DBus.Peer"): where there is none, none is made up.
pub(super) fn machine_id(broker: &mut Broker, call: Call<'_>, system: &mut dyn System) -> Result<(), Fault> {
    let known = broker.identity().machine_id.clone();
    let id = if known.is_empty() {
        system.machine_id()
    } else {
        MachineId::Found(known)
    };
    match id {
        MachineId::Found(id) => {
            broker.send_driver_reply(call.caller, call.message, |w| {
                w.str(&id);
            });
            Ok(())
        }
        MachineId::Missing => Err(Fault::new(
            "org.freedesktop.DBus.Error.FileNotFound",
            "This machine has no id: there is neither /etc/machine-id nor /var/lib/dbus/machine-id",
        )),
        MachineId::Invalid => Err(Fault::new(
            "org.freedesktop.DBus.Error.InvalidFileContent",
            "This machine has no id: /etc/machine-id (or /var/lib/dbus/machine-id) is not 32 hex digits",
        )),
    }
}
