//! Where buses are.

use bus_wire::{Address, AddressList};

use crate::Error;

pub(crate) fn parse(text: &str) -> Result<AddressList, Error> {
    let list: AddressList = text
        .parse()
        .map_err(|error| Error::Address(format!("{error}").into()))?;
    Ok(list)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The session's.
pub(crate) fn session() -> Result<AddressList, Error> {
    if let Some(address) = variable("DBUS_SESSION_BUS_ADDRESS") {
        return parse(&address);
    }
    let Some(directory) = variable("XDG_RUNTIME_DIR") else {
        return Err(Error::Address(
            "neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set".into(),
        ));
    };
    unix(&format!("{directory}/bus"))
}

/// The system's.
pub(crate) fn system() -> Result<AddressList, Error> {
    match variable("DBUS_SYSTEM_BUS_ADDRESS") {
        Some(address) => parse(&address),
        None => unix("/var/run/dbus/system_bus_socket"),
    }
}

fn unix(path: &str) -> Result<AddressList, Error> {
    let address = Address::new("unix").and_then(|address| address.with("path", path));
    let address = address.map_err(|error| Error::Address(format!("{error}").into()))?;
    AddressList::new(vec![address]).ok_or_else(|| Error::Address("empty".into()))
}
