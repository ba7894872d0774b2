//! Unmodified programs of other implementations do their everyday work on the bus, before and after an upgrade in place.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::peers::{find, find_python};
use bus_load::{INTERFACE, Load, LoadPlan, PATH};
use std::process::Command;
use support::{Background, Bus, DRIVER, DRIVER_PATH, run, upgrade};

/// A program of the machine, or the end of the test.
macro_rules! program {
    ($name:expr) => {
        match find($name).unwrap() {
            Some(path) => path,
            None => return,
        }
    };
}

/// A bus with a few services on it: `org.busdaemon.Load.p0a` and others have `Echo`, and `...b0` emits `Tick`.
struct Served {
    load: Load,
    bus: Bus,
}

impl Served {
    fn start() -> Served {
        let bus = Bus::start();
        let mut load = Load::start(&bus.address, LoadPlan::small()).unwrap();
        load.go().unwrap();
        Served { load, bus }
    }

    /// Does the same before and after an upgrade; then nobody may have been harmed.
    fn twice(self, mut work: impl FnMut(&Bus)) {
        work(&self.bus);
        upgrade(&mut self.bus.caller(), "").unwrap();
        work(&self.bus);
        let report = self.load.finish().unwrap();
        assert!(report.is_clean(), "{report}");
    }
}

const CALLEE: &str = "org.busdaemon.Load.p0a";
const EMITTER: &str = "org.busdaemon.Load.b0";

/// Streams for calls from outside the load: each number starts at one.
fn stream(program: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{program}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

#[test]
fn dbus_send() {
    let path = program!("dbus-send");
    Served::start().twice(|bus| {
        let send = |destination: &str, arguments: &[&str]| {
            let mut command = Command::new(&path);
            command
                .arg(format!("--bus={}", bus.address))
                .arg(format!("--dest={destination}"));
            run(command.arg("--print-reply").args(arguments))
        };
        let names = send(DRIVER, &[DRIVER_PATH, "org.freedesktop.DBus.ListNames"]);
        assert!(names.contains(CALLEE), "{names}");
        let stream = stream("dbus-send");
        let text = format!("string:{stream}");
        let reply = send(CALLEE, &[PATH, &format!("{INTERFACE}.Echo"), &text, "uint64:1"]);
        assert!(
            reply.contains("method return") && reply.contains(&stream),
            "{reply}"
        );
        // A signal, which has no reply: success is all there is to see.
        let mut signal = Command::new(&path);
        signal
            .arg(format!("--bus={}", bus.address))
            .args(["--type=signal", "/a", "a.b.C", "int32:7"]);
        run(&mut signal);
        // Nobody there: an error that says so.
        let mut nobody = Command::new(&path);
        nobody
            .arg(format!("--bus={}", bus.address))
            .args(["--dest=no.body", "--print-reply", "/a", "a.b.C"]);
        let output = nobody.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && error.contains("ServiceUnknown"),
            "{error}"
        );
    });
}

#[test]
fn dbus_monitor() {
    let (path, send) = (program!("dbus-monitor"), program!("dbus-send"));
    let served = Served::start();
    let mut command = Command::new(path);
    command.args(["--address", &served.bus.address, "type='signal',interface='a.b'"]);
    let monitor = Background::start(&mut command);
    monitor.wait_for("member=NameLost");
    let mut number = 0;
    served.twice(|bus| {
        number += 1;
        let argument = format!("int32:{number}");
        run(Command::new(&send).arg(format!("--bus={}", bus.address)).args([
            "--type=signal",
            "/a",
            "a.b.C",
            &argument,
        ]));
        monitor.wait_for(&format!("int32 {number}"));
    });
    // The load had gone on all the time, and was not asked for.
    assert!(!monitor.printed().contains("Tick"), "{}", monitor.printed());
}

#[test]
fn dbus_test_tool() {
    let path = program!("dbus-test-tool");
    let served = Served::start();
    let tool = |bus: &Bus, arguments: &[&str]| {
        let mut command = Command::new(&path);
        command
            .env("DBUS_SESSION_BUS_ADDRESS", &bus.address)
            .args(arguments);
        command
    };
    let _echo = Background::start(&mut tool(&served.bus, &["echo", "--session", "--name=test.Echo"]));
    let mut caller = served.bus.caller();
    support::wait_until("the echo service is there", || {
        caller.ask("GetNameOwner", "test.Echo").is_ok()
    });
    served.twice(|bus| {
        let spam = [
            "spam",
            "--session",
            "--dest=test.Echo",
            "--count=500",
            "--queue=20",
        ];
        run(&mut tool(bus, &spam));
    });
}

#[test]
fn gdbus() {
    let path = program!("gdbus");
    let served = Served::start();
    let gdbus = |bus: &Bus, subcommand: &str, arguments: &[&str]| {
        let mut command = Command::new(&path);
        command
            .args([subcommand, "--address", &bus.address])
            .args(arguments);
        command
    };
    let monitor = Background::start(&mut gdbus(&served.bus, "monitor", &["--dest", EMITTER]));
    monitor.wait_for("is owned by");
    let mut round = 0;
    served.twice(|bus| {
        round += 1;
        let stream = stream("gdbus");
        let echo = format!("{INTERFACE}.Echo");
        let call = [
            "--dest",
            CALLEE,
            "--object-path",
            PATH,
            "--method",
            &echo,
            &stream,
            "uint64 1",
        ];
        let reply = run(&mut gdbus(bus, "call", &call));
        assert_eq!(reply, format!("('{stream}', uint64 1)\n"));
        let driver = ["--dest", DRIVER, "--object-path", DRIVER_PATH];
        let xml = run(&mut gdbus(bus, "introspect", &driver));
        assert!(
            xml.contains("interface org.freedesktop.DBus {") && xml.contains("RequestName"),
            "{xml}"
        );
        run(&mut gdbus(
            bus,
            "emit",
            &["--object-path", "/a", "--signal", "a.b.C", "'text'"],
        ));
        monitor.wait_for(&format!("uint64 {}", round * 10));

        // A name that is there already, one that comes while it is waited for, and one that never comes.
        run(&mut gdbus(bus, "wait", &["--timeout", "10", CALLEE]));
        let name = format!("test.Waited{round}");
        let waiting = Background::start(&mut gdbus(bus, "wait", &["--timeout", "10", &name]));
        let mut caller = bus.caller();
        caller
            .call_bus("RequestName", |body| {
                body.str(&name).u32(0);
            })
            .unwrap();
        assert!(waiting.end().success());
        let never = gdbus(bus, "wait", &["--timeout", "1", "test.Never"])
            .output()
            .unwrap();
        assert!(!never.status.success());
    });
}

#[test]
fn busctl() {
    let path = program!("busctl");
    let served = Served::start();
    let busctl = |bus: &Bus, arguments: &[&str]| {
        let mut command = Command::new(&path);
        command.arg(format!("--address={}", bus.address)).args(arguments);
        command
    };
    let rule = format!("--match=type='signal',arg0='tick:b0',interface='{INTERFACE}'");
    let monitor = Background::start(&mut busctl(&served.bus, &["monitor", "--json=short", &rule]));
    let mut round = 0;
    served.twice(|bus| {
        round += 1;
        let list = run(&mut busctl(bus, &["list", "--no-legend"]));
        assert!(list.contains(CALLEE) && list.contains(DRIVER), "{list}");
        let tree = run(&mut busctl(bus, &["tree", DRIVER]));
        assert!(tree.contains(DRIVER_PATH), "{tree}");
        let interface = run(&mut busctl(bus, &["introspect", DRIVER, DRIVER_PATH]));
        assert!(interface.contains(".RequestName"), "{interface}");
        let stream = stream("busctl");
        let reply = run(&mut busctl(
            bus,
            &["call", CALLEE, PATH, INTERFACE, "Echo", "st", &stream, "1"],
        ));
        assert_eq!(reply, format!("st \"{stream}\" 1\n"));
        let status = run(&mut busctl(bus, &["status", CALLEE]));
        assert!(
            status.contains(&format!("PID={}", std::process::id())),
            "{status}"
        );
        let features = run(&mut busctl(
            bus,
            &["get-property", DRIVER, DRIVER_PATH, DRIVER, "Features"],
        ));
        assert!(features.contains("HeaderFiltering"), "{features}");
        monitor.wait_for("\"tick:b0\"");
    });
}

#[test]
fn python3_dbus() {
    let Some(python) = find_python(&["dbus", "gi"]).unwrap() else {
        return;
    };
    const SCRIPT: &str = r#"
import sys, dbus, dbus.bus, dbus.mainloop.glib
from gi.repository import GLib
address, callee, path, interface, emitter, stream = sys.argv[1:]
dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
bus = dbus.bus.BusConnection(address)
service = bus.get_object(callee, path, introspect=False)
assert service.Echo(stream, dbus.UInt64(1), dbus_interface=interface) == (stream, 1)
assert bus.request_name("test.Python") == dbus.bus.REQUEST_NAME_REPLY_PRIMARY_OWNER
assert bus.get_name_owner("test.Python") == bus.get_unique_name()
assert bus.get_unix_user(callee) >= 0
loop, seen = GLib.MainLoop(), []
def tick(stream, number):
    seen.append(int(number))
    if len(seen) == 5:
        loop.quit()
bus.add_signal_receiver(tick, "Tick", interface, bus_name=emitter)
loop.run()
assert seen == list(range(seen[0], seen[0] + 5)), seen
bus.release_name("test.Python")
try:
    bus.get_object("no.body", "/").Anything()
except dbus.DBusException as error:
    assert error.get_dbus_name() == "org.freedesktop.DBus.Error.ServiceUnknown", error
print("done")
"#;
    Served::start().twice(|bus| {
        let mut command = Command::new(&python);
        command.args([
            "-c",
            SCRIPT,
            &bus.address,
            CALLEE,
            PATH,
            INTERFACE,
            EMITTER,
            &stream("python"),
        ]);
        assert_eq!(run(&mut command), "done\n");
    });
}

#[test]
fn zbus_client() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    Served::start().twice(|bus| {
        runtime.block_on(async {
            let connection = zbus::connection::Builder::address(bus.address.as_str())
                .name("test.Zbus")
                .build()
                .await
                .unwrap();
            let stream = stream("zbus");
            let reply = connection
                .call_method(Some(CALLEE), PATH, Some(INTERFACE), "Echo", &(&stream, 1u64))
                .await
                .unwrap();
            assert_eq!(reply.body().deserialize::<(String, u64)>().unwrap(), (stream, 1));
            let owner = connection.call_method(
                Some(DRIVER),
                DRIVER_PATH,
                Some(DRIVER),
                "GetNameOwner",
                &"test.Zbus",
            );
            let owner: String = owner.await.unwrap().body().deserialize().unwrap();
            assert_eq!(Some(owner), connection.unique_name().map(ToString::to_string));
            connection
                .emit_signal(None::<&str>, "/a", "a.b", "C", &"text")
                .await
                .unwrap();
            connection.graceful_shutdown().await;
        });
    });
}
