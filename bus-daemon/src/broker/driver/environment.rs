//! The configuration, and the environment of services that are yet to be started.

use super::{Call, Fault};
use crate::broker::{Broker, LIMITS_EXCEEDED, expects_reply};

/// "adds to or modifies that environment when activating services"
pub(super) fn update(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let mut variables = Vec::new();
    call.message.body().read_array(|element| {
        element.read_dict_entry(|entry| {
            variables.push((entry.read_str()?.to_owned(), entry.read_str()?.to_owned()));
            Ok(())
        })
    })?;
    if let Some((name, _)) = variables
        .iter()
        .find(|(name, _)| name.is_empty() || name.contains('='))
    {
        return Err(Fault::invalid_args(format!(
            "\"{name}\" cannot be the name of an environment variable"
        )));
    }
    broker.update_activation_environment(variables);
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
