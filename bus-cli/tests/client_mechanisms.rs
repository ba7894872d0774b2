//! Real clients authenticate with each mechanism over each transport that they have: the table in docs/configuration.md.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::peers::{find, find_python};
use std::process::Command;
use support::listening::Listening;

const TRANSPORTS: [&str; 3] = ["unix", "tcp", "nonce-tcp"];
const MECHANISMS: [&str; 3] = ["EXTERNAL", "DBUS_COOKIE_SHA1", "ANONYMOUS"];

/// A bus with one transport and one mechanism.
fn bus(transport: &str, mechanism: &str) -> Listening {
    let listen = match transport {
        "unix" => "unix:path=D/bus",
        "tcp" => "tcp:host=127.0.0.1,port=0",
        _ => "nonce-tcp:host=127.0.0.1,port=0",
    };
    let anonymous = if mechanism == "ANONYMOUS" {
        "<allow_anonymous/>"
    } else {
        ""
    };
    Listening::start(&format!(
        "<listen>{listen}</listen><auth>{mechanism}</auth>{anonymous}"
    ))
}

/// Which ways work, in the words of the table.
fn ways(mut works: impl FnMut(&Listening, &str) -> bool) -> Vec<String> {
    let mut cells = Vec::new();
    for transport in TRANSPORTS {
        let good = MECHANISMS.into_iter().filter(|mechanism| {
            let bus = bus(transport, mechanism);
            let address = bus.addresses[0].to_string();
            works(&bus, &address)
        });
        let good: Vec<&str> = good.collect();
        let cell = if good.is_empty() {
            "-".to_owned()
        } else {
            good.join(", ")
        };
        cells.push(cell);
    }
    cells
}

/// A program succeeds, and prints something.
fn succeeds(bus: &Listening, command: &mut Command) -> bool {
    command.env("HOME", bus.directory.path());
    let output = command.output().unwrap();
    output.status.success() && !output.stdout.is_empty()
}

const ALL: [&str; 3] = [
    "EXTERNAL, DBUS_COOKIE_SHA1, ANONYMOUS",
    "DBUS_COOKIE_SHA1, ANONYMOUS",
    "DBUS_COOKIE_SHA1, ANONYMOUS",
];

#[test]
fn libdbus() {
    let Some(send) = find("dbus-send").unwrap() else {
        return;
    };
    let found = ways(|bus, address| {
        let mut command = Command::new(&send);
        let bus_option = format!("--bus={address}");
        command.args([&bus_option, "--print-reply", "--dest=org.freedesktop.DBus", "/"]);
        succeeds(bus, command.arg("org.freedesktop.DBus.GetId"))
    });
    assert_eq!(found, ALL);
}

#[test]
fn dbus_python() {
    let Some(python) = find_python(&["dbus"]).unwrap() else {
        return;
    };
    let script = "import dbus.bus, sys\nprint(dbus.bus.BusConnection(sys.argv[1]).get_unique_name())";
    let found = ways(|bus, address| succeeds(bus, Command::new(&python).args(["-c", script, address])));
    assert_eq!(found, ALL);
}

#[test]
fn gdbus() {
    let Some(gdbus) = find("gdbus").unwrap() else {
        return;
    };
    let found = ways(|bus, address| {
        let mut command = Command::new(&gdbus);
        command.args(["call", "--address", address, "--dest", "org.freedesktop.DBus"]);
        command.args(["--object-path", "/", "--method", "org.freedesktop.DBus.GetId"]);
        succeeds(bus, &mut command)
    });
    assert_eq!(found, ALL);
}

#[test]
fn sd_bus() {
    let Some(busctl) = find("busctl").unwrap() else {
        return;
    };
    let found = ways(|bus, address| {
        let mut command = Command::new(&busctl);
        command.args([
            &format!("--address={address}"),
            "--timeout=5",
            "call",
            "org.freedesktop.DBus",
            "/",
        ]);
        succeeds(bus, command.args(["org.freedesktop.DBus", "GetId"]))
    });
    assert_eq!(found, ["EXTERNAL", "-", "-"]);
}

#[test]
fn zbus_client() {
    use zbus::conn::{AuthMechanism, Builder};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let found = ways(|_, address| {
        let mechanisms = [AuthMechanism::External, AuthMechanism::Anonymous];
        mechanisms.into_iter().any(|mechanism| {
            runtime.block_on(async {
                let connected = Builder::address(address).auth_mechanism(mechanism).build();
                let Ok(Ok(connection)) =
                    tokio::time::timeout(std::time::Duration::from_secs(5), connected).await
                else {
                    return false;
                };
                connection.unique_name().is_some()
            })
        })
    });
    assert_eq!(found, ["EXTERNAL, ANONYMOUS", "ANONYMOUS", "ANONYMOUS"]);
}

#[test]
fn own_client() {
    // It looks for keyrings where the user database says, which is not where this bus has one.
    let found = ways(|_, address| {
        let builder = bus_client::Connection::address(address);
        let Ok(client) = builder.connect_thread() else {
            return false;
        };
        client.unique_name().is_some()
    });
    assert_eq!(found, ["EXTERNAL, ANONYMOUS", "ANONYMOUS", "ANONYMOUS"]);
}
