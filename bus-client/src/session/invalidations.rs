//! Properties that have changed while nobody could be told: of each interface of an object, one signal that names them all.

use std::collections::{BTreeMap, BTreeSet};

use bus_wire::{Message, MessageBuilder, MessageType, Serial, Value};
use bytes::Bytes;

/// The interface whose signal `PropertiesChanged` is (specification, "org.freedesktop.DBus.Properties").
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const CHANGED: &str = "PropertiesChanged";

/// What is to be told when the bus is back.
#[derive(Debug, Default)]
pub(super) struct Invalidations {
    /// The names of properties, by path and interface.
    changed: BTreeMap<Of, BTreeSet<Box<str>>>,
    bytes: usize,
}

/// The path of an object, and one of its interfaces.
type Of = (Box<str>, Box<str>);

/// Properties of one interface that have changed, whatever to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Invalidation {
    of: Of,
    names: BTreeSet<Box<str>>,
}

impl Invalidation {
    /// Of a signal to all; `None` where it is another.
    pub(super) fn of(signal: &Bytes) -> Option<Self> {
        let message = Message::parse(signal.clone()).ok()?;
        let is_it = message.message_type() == MessageType::Signal
            && message.destination().is_none()
            && message.interface() == Some(PROPERTIES)
            && message.member() == Some(CHANGED);
        if !is_it {
            return None;
        }
        let path = message.path()?.into();
        let (interface, values, names): (&str, BTreeMap<&str, Value>, Vec<&str>) = message.decode().ok()?;
        let names = values.into_keys().chain(names).map(Box::from).collect();
        Some(Self {
            of: (path, interface.into()),
            names,
        })
    }

    /// As a signal: no values, which are others by now perhaps, but the names, so that whoever wants them asks.
    pub(super) fn signal(&self, serial: Serial) -> Option<Vec<u8>> {
        let (path, interface) = &self.of;
        let names: Vec<&str> = self.names.iter().map(|name| &**name).collect();
        let values = BTreeMap::<&str, Value>::new();
        MessageBuilder::signal(path, PROPERTIES, CHANGED)
            .serial(serial)
            .encode(&(&**interface, values, names))
            .ok()
    }
}

impl Invalidations {
    /// It is to be told, with what is known already. False: there is no room for more than `most_bytes` of names.
    pub(super) fn add(&mut self, new: Invalidation, most_bytes: usize) -> bool {
        let known = self.changed.get(&new.of);
        // An entry costs more than its text.
        let mut more: usize = new
            .names
            .iter()
            .filter(|name| known.is_none_or(|known| !known.contains(*name)))
            .map(|name| name.len() + ENTRY)
            .sum();
        if known.is_none() {
            more += new.of.0.len() + new.of.1.len() + ENTRY;
        }
        if self.bytes + more > most_bytes {
            return false;
        }
        self.bytes += more;
        self.changed.entry(new.of).or_default().extend(new.names);
        true
    }

    /// The next that is to be told.
    pub(super) fn take(&mut self) -> Option<Invalidation> {
        let (of, names) = self.changed.pop_first()?;
        if self.changed.is_empty() {
            self.bytes = 0;
        } else {
            let texts: usize = names.iter().map(|name| name.len() + ENTRY).sum();
            self.bytes -= texts + of.0.len() + of.1.len() + ENTRY;
        }
        Some(Invalidation { of, names })
    }

    /// Of how many interfaces.
    pub(super) fn count(&self) -> usize {
        self.changed.len()
    }
}

/// What an entry of a set is charged besides its text, in bytes.
const ENTRY: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(path: &str, values: &[&str], names: &[&str]) -> Bytes {
        let values: BTreeMap<&str, Value> = values.iter().map(|name| (*name, Value::from(7_u32))).collect();
        let names = names.to_vec();
        let signal = MessageBuilder::signal(path, PROPERTIES, CHANGED).serial(1_u32);
        signal
            .encode(&("com.example.Door", values, names))
            .unwrap()
            .into()
    }

    fn told(invalidation: &Invalidation) -> (String, Vec<String>) {
        let serial = Serial::FIRST;
        let message = Message::parse(invalidation.signal(serial).unwrap().into()).unwrap();
        let body: (String, BTreeMap<String, Value>, Vec<String>) = message.decode().unwrap();
        assert!(body.0 == "com.example.Door" && body.1.is_empty());
        (message.path().unwrap().to_owned(), body.2)
    }

    #[test]
    fn many_changes_of_an_interface_are_one() {
        let mut all = Invalidations::default();
        for (path, values, names) in [
            ("/a", &["Angle", "Open"][..], &[][..]),
            ("/b", &["Angle"], &["Colour"]),
            ("/a", &["Angle"], &["Locked"]),
        ] {
            assert!(all.add(Invalidation::of(&signal(path, values, names)).unwrap(), 10_000));
        }
        assert_eq!(all.count(), 2);
        let (a, b) = (all.take().unwrap(), all.take().unwrap());
        assert_eq!(
            told(&a),
            (
                "/a".into(),
                ["Angle", "Locked", "Open"].map(String::from).to_vec()
            )
        );
        assert_eq!(
            told(&b),
            ("/b".into(), ["Angle", "Colour"].map(String::from).to_vec())
        );
        assert!(all.take().is_none() && all.bytes == 0);
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let mut all = Invalidations::default();
        let mut taken = 0;
        while all.add(
            Invalidation::of(&signal(&format!("/p{taken}"), &["Angle"], &[])).unwrap(),
            10_000,
        ) {
            taken += 1;
        }
        assert!((30..100).contains(&taken), "{taken}");
        // What is known already takes no room.
        assert!(all.add(Invalidation::of(&signal("/p0", &["Angle"], &[])).unwrap(), 10_000));
        assert_eq!(std::iter::from_fn(|| all.take()).count(), taken);
        assert_eq!(all.bytes, 0);
    }

    #[test]
    fn another_signal_is_none() {
        let other = MessageBuilder::signal("/a", "com.example.Door", CHANGED).serial(1_u32);
        assert_eq!(Invalidation::of(&other.encode(&()).unwrap().into()), None);
        let to_one = MessageBuilder::signal("/a", PROPERTIES, CHANGED).destination(":1.1");
        let values = BTreeMap::<&str, Value>::new();
        let body = ("a.b", values, Vec::<&str>::new());
        assert_eq!(
            Invalidation::of(&to_one.serial(1_u32).encode(&body).unwrap().into()),
            None
        );
        let odd = MessageBuilder::signal("/a", PROPERTIES, CHANGED).serial(1_u32);
        assert_eq!(Invalidation::of(&odd.encode(&"a.b").unwrap().into()), None);
    }
}
