//! Names: who has which, asking for one, giving it back.

use bus_wire::{BusName, UniqueName};

use super::method::NAME;
use super::{Call, Fault, Named, named};
use crate::broker::{Broker, NameFlags, Peer};

/// "Before an application is able to send messages to other applications it must send the Hello message."
/// The reply comes before the signals.
pub(super) fn hello(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    if broker.peer(call.caller).is_some_and(|peer| peer.unique.is_some()) {
        return Err(Fault::failed("Already handled an Hello message"));
    }
    broker.hello(call.caller, call.message);
    Ok(())
}

pub(super) fn request_name(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let mut body = call.message.body();
    let name = body.read_str()?;
    let flags = NameFlags::from_bits(body.read_u32()?);
    if name.starts_with(':') {
        return Err(Fault::invalid_args(format!(
            "Cannot acquire a service starting with ':' such as \"{name}\""
        )));
    }
    if BusName::new(name).is_err() {
        return Err(Fault::invalid_args(format!(
            "Requested bus name \"{name}\" is not valid"
        )));
    }
    if name == NAME {
        return Err(Fault::invalid_args(format!(
            "The name \"{NAME}\" is the bus's own"
        )));
    }
    broker
        .check_ownership(call.caller, name)
        .map_err(Fault::access_denied)?;
    let reply = broker
        .request_name(call.caller, name, flags)
        .map_err(|refusal| Fault::limits_exceeded(refusal.to_string()))?;
    broker.send_driver_reply(call.caller, call.message, |w| {
        w.u32(reply as u32);
    });
    Ok(())
}

pub(super) fn release_name(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let name = call.message.body().read_str()?;
    if name.starts_with(':') {
        return Err(Fault::invalid_args(format!(
            "Cannot release a service starting with ':' such as \"{name}\""
        )));
    }
    if BusName::new(name).is_err() {
        return Err(Fault::invalid_args(format!(
            "Given bus name \"{name}\" is not valid"
        )));
    }
    if name == NAME {
        return Err(Fault::invalid_args(format!(
            "Cannot release \"{NAME}\": the name is the bus's own"
        )));
    }
    let reply = broker.release_name(call.caller, name);
    broker.send_driver_reply(call.caller, call.message, |w| {
        w.u32(reply as u32);
    });
    Ok(())
}

pub(super) fn name_has_owner(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let name = call.message.body().read_str()?;
    let has_owner = named(broker, name, "owner").is_ok();
    broker.send_driver_reply(call.caller, call.message, |w| {
        w.bool(has_owner);
    });
    Ok(())
}

/// The bus itself, then peers in the order in which they came, then well-known names in alphabetical order.
pub(super) fn list_names(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    broker.answer_with(call.caller, call.message, |broker, w| {
        let unique = broker.active_peers().map(Peer::unique_name);
        w.str_array([NAME].into_iter().chain(unique).chain(broker.names().listed()));
    });
    Ok(())
}

/// The bus itself, then what the service files name.
pub(super) fn list_activatable_names(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let mut all: Vec<String> = vec![NAME.to_owned()];
    all.extend(
        broker
            .config()
            .services
            .iter()
            .map(|service| service.name.clone()),
    );
    reply_with_names(broker, call, &all)
}

pub(super) fn get_name_owner(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let name = call.message.body().read_str()?;
    let owner = match named(broker, name, "owner")? {
        Named::Driver => NAME.to_owned(),
        Named::Peer(peer) => peer.unique_name().to_owned(),
    };
    broker.send_driver_reply(call.caller, call.message, |w| {
        w.str(&owner);
    });
    Ok(())
}

/// The primary owner is the first of the queue, as in the reference implementation.
pub(super) fn list_queued_owners(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let name = call.message.body().read_str()?;
    let queue: Vec<String> = match named(broker, name, "owners")? {
        Named::Driver => vec![NAME.to_owned()],
        Named::Peer(owner) => match broker.names().queue(name) {
            None => vec![owner.unique_name().to_owned()],
            Some(queue) => {
                let peers = queue.filter_map(|owner| broker.peer(owner.peer));
                peers.map(|peer| peer.unique_name().to_owned()).collect()
            }
        },
    };
    reply_with_names(broker, call, &queue)
}

/// `DBUS_START_REPLY_ALREADY_RUNNING`
const ALREADY_RUNNING: u32 = 2;

pub(super) fn start_service_by_name(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let name = call.message.body().read_str()?;
    if named(broker, name, "owner").is_ok() {
        broker.send_driver_reply(call.caller, call.message, |w| {
            w.u32(ALREADY_RUNNING);
        });
        return Ok(());
    }
    let is_activatable = UniqueName::new(name).is_err()
        && broker
            .config()
            .services
            .binary_search_by(|service| service.name.as_str().cmp(name))
            .is_ok();
    if is_activatable {
        return Err(Fault::failed(format!(
            "The service {name} is not running, and this bus cannot start services yet"
        )));
    }
    Err(Fault::new(
        "org.freedesktop.DBus.Error.ServiceUnknown",
        format!("The name {name} was not provided by any .service files"),
    ))
}

fn reply_with_names(broker: &mut Broker, call: Call<'_>, names: &[String]) -> Result<(), Fault> {
    broker.send_driver_reply(call.caller, call.message, |w| {
        w.str_array(names.iter().map(String::as_str));
    });
    Ok(())
}
