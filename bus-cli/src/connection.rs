//! A connection to the bus that the command line names.

use crate::Global;
use crate::value;
use anyhow::Context;
use bus_load::{CallError, Caller};
use serde_json::{Map, Value};
use std::time::Duration;

const BUS: &str = "org.freedesktop.DBus";
const PATH: &str = "/org/freedesktop/DBus";
/// The interface of a bus that tells why.
const POLICY: &str = "org.busdaemon.Policy1";
/// The interface of a bus that is upgraded in place.
const RESTART: &str = "org.busdaemon.Restart1";

/// The address that the options name: `--address`, `--session`, `--system`, or else the session's if there is one and
/// the system's if not.
pub(crate) fn address(global: &Global) -> anyhow::Result<String> {
    let environment = |variable: &str| std::env::var(variable).ok().filter(|value| !value.is_empty());
    let session = || {
        environment("DBUS_SESSION_BUS_ADDRESS").or_else(|| {
            let socket = format!("{}/bus", environment("XDG_RUNTIME_DIR")?);
            std::path::Path::new(&socket)
                .exists()
                .then(|| format!("unix:path={socket}"))
        })
    };
    let system = || {
        environment("DBUS_SYSTEM_BUS_ADDRESS")
            .unwrap_or_else(|| "unix:path=/var/run/dbus/system_bus_socket".to_owned())
    };
    match global {
        Global {
            address: Some(address),
            ..
        } => Ok(address.clone()),
        Global { system: true, .. } => Ok(system()),
        Global { session: true, .. } => session()
            .context("there is no session bus: neither $DBUS_SESSION_BUS_ADDRESS nor $XDG_RUNTIME_DIR/bus"),
        _ => Ok(session().unwrap_or_else(system)),
    }
}

/// A connection to a bus.
pub(crate) struct Connection {
    /// Where it is.
    pub(crate) address: String,
    caller: Caller,
}

impl Connection {
    pub(crate) fn open(address: &str) -> anyhow::Result<Connection> {
        let caller = Caller::connect(address).map_err(anyhow::Error::from)?;
        Ok(Connection {
            address: address.to_owned(),
            caller,
        })
    }

    /// The bus's id.
    pub(crate) fn id(&mut self) -> Result<String, CallError> {
        let reply = self.caller.call_bus("GetId", |_| ())?;
        Ok(reply.body().read_str().map_err(anyhow::Error::from)?.to_owned())
    }

    /// The properties of [`RESTART`]; None if the bus does not have that interface.
    pub(crate) fn restart(&mut self) -> Result<Option<Map<String, Value>>, CallError> {
        let called = self
            .caller
            .call(BUS, PATH, "org.freedesktop.DBus.Properties", "GetAll", |body| {
                body.str(RESTART);
            });
        match called {
            Ok(reply) => {
                let properties = object(value::first(&reply)?);
                Ok(properties.filter(|properties| properties.contains_key("Generation")))
            }
            Err(CallError::Reply { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The bus's statistics; None if it does not give them.
    pub(crate) fn stats(&mut self) -> Result<Option<Map<String, Value>>, CallError> {
        match self
            .caller
            .call(BUS, PATH, "org.freedesktop.DBus.Debug.Stats", "GetStats", |_| ())
        {
            Ok(reply) => Ok(object(value::first(&reply)?)),
            Err(CallError::Reply { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the bus says of its policy: whether something is allowed, and an array of rules.
    pub(crate) fn explain(&mut self, query: &[(&str, String)]) -> Result<Vec<Value>, CallError> {
        let reply = self.caller.call(BUS, PATH, POLICY, "Explain", |body| {
            body.array("{sv}", |entries| {
                for (key, text) in query {
                    entries.dict_entry(|entry| {
                        entry.str(key).variant("s", |value| {
                            value.str(text);
                        });
                    });
                }
            });
        })?;
        value::all(&reply)
    }

    /// Upgrades the bus in place to the binary at this path, or to the one it was started from if it is empty. Returns
    /// the new generation.
    pub(crate) fn upgrade(&mut self, binary: &str) -> Result<u32, CallError> {
        self.caller.set_timeout(Duration::from_secs(300));
        let reply = self.caller.call(BUS, PATH, RESTART, "Upgrade", |body| {
            body.str(binary);
        })?;
        Ok(reply.body().read_u32().map_err(anyhow::Error::from)?)
    }
}

fn object(value: Value) -> Option<Map<String, Value>> {
    if let Value::Object(object) = value {
        Some(object)
    } else {
        None
    }
}
