//! The properties of the bus's object (specification, "Message Bus Properties" and
//! "org.freedesktop.DBus.Properties").

use bus_wire::BodyWriter;

use super::method::Interface;
use super::{Call, Fault};
use crate::broker::{Broker, LastRestart, STATE_VERSION};

/// A property. All are read-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Property {
    Features,
    Interfaces,
    Generation,
    Recoveries,
    KeeperPid,
    WorkerPid,
    StateVersion,
    LastRestart,
}

impl Property {
    pub(super) const ALL: [Self; 8] = [
        Self::Features,
        Self::Interfaces,
        Self::Generation,
        Self::Recoveries,
        Self::KeeperPid,
        Self::WorkerPid,
        Self::StateVersion,
        Self::LastRestart,
    ];

    pub(super) fn interface(self) -> Interface {
        match self {
            Self::Features | Self::Interfaces => Interface::Bus,
            Self::Generation
            | Self::Recoveries
            | Self::KeeperPid
            | Self::WorkerPid
            | Self::StateVersion
            | Self::LastRestart => Interface::Restart,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Features => "Features",
            Self::Interfaces => "Interfaces",
            Self::Generation => "Generation",
            Self::Recoveries => "Recoveries",
            Self::KeeperPid => "KeeperPID",
            Self::WorkerPid => "WorkerPID",
            Self::StateVersion => "StateVersion",
            Self::LastRestart => "LastRestart",
        }
    }

    pub(super) fn signature(self) -> &'static str {
        match self {
            Self::Features | Self::Interfaces => "as",
            Self::Generation | Self::Recoveries | Self::KeeperPid | Self::WorkerPid | Self::StateVersion => {
                "u"
            }
            Self::LastRestart => "(stuuu)",
        }
    }

    /// Whether it stays as it is for the life of the bus. Of those that do not, nothing tells but another look.
    pub(super) fn is_constant(self) -> bool {
        match self {
            Self::Features | Self::Interfaces | Self::KeeperPid => true,
            Self::Generation
            | Self::Recoveries
            | Self::WorkerPid
            | Self::StateVersion
            | Self::LastRestart => false,
        }
    }

    fn value(self, broker: &Broker) -> Value {
        let restart = broker.restart();
        match self {
            Self::Features => Value::Texts(&FEATURES),
            Self::Interfaces => Value::Texts(&INTERFACES),
            Self::Generation => Value::Number(restart.generation),
            Self::Recoveries => Value::Number(restart.recoveries),
            Self::KeeperPid => Value::Number(broker.identity().keeper_pid),
            Self::WorkerPid => Value::Number(restart.worker_pid),
            Self::StateVersion => Value::Number(STATE_VERSION.into()),
            Self::LastRestart => Value::Restart(restart.last.clone()),
        }
    }
}

/// What a property is at the moment.
#[derive(Debug)]
enum Value {
    Texts(&'static [&'static str]),
    Number(u32),
    Restart(LastRestart),
}

impl Value {
    /// As a variant of the property's signature.
    fn write(&self, property: Property, w: &mut BodyWriter) {
        w.variant(property.signature(), |w| match self {
            Self::Texts(texts) => {
                w.str_array(texts.iter().copied());
            }
            Self::Number(number) => {
                w.u32(*number);
            }
            Self::Restart(last) => {
                w.structure(|w| {
                    w.str(&last.cause).u64(u64::from(last.pause));
                    w.u32(last.carried).u32(last.dropped).u32(last.quarantined);
                });
            }
        });
    }
}

/// "abstract features provided by the message bus"
const FEATURES: [&str; 2] = ["ActivatableServicesChanged", "HeaderFiltering"];

/// "The standard org.freedesktop.DBus and org.freedesktop.DBus.Properties interfaces are not included", nor are Peer
/// and Introspectable.
const INTERFACES: [&str; 4] = [
    Interface::Monitoring.name(),
    Interface::Stats.name(),
    Interface::Restart.name(),
    Interface::Policy.name(),
];

pub(super) fn get(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let mut body = call.message.body();
    let property = find(body.read_str()?, body.read_str()?)?;
    may_read(broker, call, property.interface())?;
    let value = property.value(broker);
    broker.send_driver_reply(call.caller, call.message, |w| value.write(property, w));
    Ok(())
}

pub(super) fn get_all(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let interface = find_interface(call.message.body().read_str()?)?;
    may_read(broker, call, interface)?;
    let properties = Property::ALL
        .into_iter()
        .filter(|property| property.interface() == interface);
    let values: Vec<_> = properties
        .map(|property| (property, property.value(broker)))
        .collect();
    broker.send_driver_reply(call.caller, call.message, |w| {
        w.array("{sv}", |w| {
            for (property, value) in &values {
                w.dict_entry(|w| {
                    w.str(property.name());
                    value.write(*property, w);
                });
            }
        });
    });
    Ok(())
}

pub(super) fn set(_: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let mut body = call.message.body();
    let (interface, name) = (body.read_str()?, body.read_str()?);
    find(interface, name)?;
    let text = format!("Property '{interface}.{name}' cannot be set");
    Err(Fault::new("org.freedesktop.DBus.Error.PropertyReadOnly", text))
}

fn find_interface(name: &str) -> Result<Interface, Fault> {
    Interface::from_name(name).ok_or_else(|| {
        let text = format!("Interface \"{name}\" not found");
        Fault::new("org.freedesktop.DBus.Error.UnknownInterface", text)
    })
}

fn find(interface: &str, name: &str) -> Result<Property, Fault> {
    let known = find_interface(interface)?;
    let mut properties = Property::ALL
        .into_iter()
        .filter(|property| property.interface() == known);
    properties
        .find(|property| property.name() == name)
        .ok_or_else(|| {
            let text = format!("Property \"{interface}.{name}\" not found");
            Fault::new("org.freedesktop.DBus.Error.UnknownProperty", text)
        })
}

/// What tells of the bus's own life is for local peers.
fn may_read(broker: &Broker, call: Call<'_>, interface: Interface) -> Result<(), Fault> {
    match interface {
        Interface::Restart | Interface::Policy => call.must_be_local(broker),
        Interface::Bus
        | Interface::Properties
        | Interface::Introspectable
        | Interface::Monitoring
        | Interface::Stats
        | Interface::Peer => Ok(()),
    }
}
