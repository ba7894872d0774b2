//! A program that knows nothing of bus-wire derives its types with what bus-client exports.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use bus_client::{BoxFuture, Decode, Encode, Incoming, Interface, Reply, Type, Value};
use support::Bus;

// What expansions must not stumble over.
#[allow(dead_code)]
type Result = ();
#[allow(dead_code)]
type Option = ();
#[allow(dead_code)]
type String = ();

#[derive(Debug, Clone, PartialEq, Type, Encode, Decode)]
struct Place {
    name: std::string::String,
    at: (i32, i32),
}

#[derive(Debug, Clone, PartialEq, Type, Encode, Decode)]
#[bus(dict, rename_all = "PascalCase")]
struct Door {
    angle: f64,
    opened_by: std::option::Option<std::string::String>,
    #[bus(rest)]
    rest: BTreeMap<std::string::String, Value>,
}

struct Doors;

impl Interface for Doors {
    fn name(&self) -> &str {
        "com.example.Doors"
    }

    fn dispatch(self: Arc<Self>, call: Incoming) -> BoxFuture<Reply> {
        let reply = match call.decode::<(Place, Door)>() {
            Ok((place, door)) => Reply::new(&(door, place)),
            Err(error) => Reply::error("com.example.Error", &error.to_string()),
        };
        Box::pin(std::future::ready(reply))
    }
}

#[test]
fn derived_types_go_over_a_bus_and_come_back() {
    let Some(bus) = Bus::start() else { return };
    let service = bus
        .builder()
        .object("/doors", Arc::new(Doors))
        .connect_thread()
        .unwrap();
    let client = bus.builder().connect_thread().unwrap();
    let place = Place {
        name: "porch".to_owned(),
        at: (-7, 9),
    };
    let rest = BTreeMap::from([("Colour".to_owned(), Value::from(5_u32))]);
    let door = Door {
        angle: 12.5,
        opened_by: None,
        rest,
    };
    let to = service.unique_name().unwrap();
    let back: (Door, Place) = client
        .call(&to, "/doors", "com.example.Doors.Turn", &(&place, &door))
        .wait()
        .unwrap();
    assert_eq!(back, (door, place));
    // A door is an a{sv} to whoever knows of no door.
    let back: (BTreeMap<std::string::String, Value>, Place) = client
        .call(&to, "/doors", "com.example.Doors.Turn", &(&back.1, &back.0))
        .wait()
        .unwrap();
    let keys: Vec<_> = back.0.keys().map(|key| &**key).collect();
    assert_eq!(keys, ["Angle", "Colour"]);
}
