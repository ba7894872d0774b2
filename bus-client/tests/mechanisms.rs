//! Each way to authenticate, over each way to the bus: a dbus-daemon that offers this one mechanism only.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bus_client::{Builder, Connection, Error, LinkError};
use support::Bus;

const DRIVER: &str = "org.freedesktop.DBus";

/// A bus with one mechanism, and how it is connected to.
struct Way {
    transport: &'static str,
    mechanism: &'static str,
}

/// A program that carries bytes between its standard input and output and a unix socket.
const RELAY: &str = r#"#!/usr/bin/env python3
import os, select, socket, sys
bus = socket.socket(socket.AF_UNIX)
bus.connect(sys.argv[1])
while True:
    for one in select.select([0, bus], [], [])[0]:
        data = os.read(0, 65536) if one == 0 else bus.recv(65536)
        if not data:
            sys.exit(0)
        bus.sendall(data) if one == 0 else os.write(1, data)
"#;

impl Way {
    fn start(&self) -> Option<Bus> {
        let listen = match self.transport {
            "tcp" => "tcp:host=127.0.0.1,port=0,family=ipv4",
            "nonce-tcp" => "nonce-tcp:host=127.0.0.1,port=0,family=ipv4",
            _ => "unix:path=DIRECTORY/bus",
        };
        let mut options = format!("<auth>{}</auth>", self.mechanism);
        if self.mechanism == "ANONYMOUS" {
            options += "<allow_anonymous/>";
        }
        Bus::start_with(listen, &options)
    }

    fn builder(&self, bus: &Bus) -> Builder {
        if self.transport != "unixexec" {
            return Connection::address(bus.listens());
        }
        let relay = bus.directory.path().join("relay");
        if !relay.exists() {
            std::fs::write(&relay, RELAY).unwrap();
            std::fs::set_permissions(&relay, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let socket = bus.directory.path().join("bus");
        let address = format!("unixexec:path={},argv1={}", relay.display(), socket.display());
        Connection::address(&address)
    }

    /// Whom the bus takes us for, over one bus and, where its address stays, the next.
    fn check(&self) {
        let Some(mut bus) = self.start() else { return };
        let way = format!("{} over {}", self.mechanism, self.transport);
        let client = self.builder(&bus).connect_thread();
        let client = client.unwrap_or_else(|error| panic!("{way}: {error}"));
        self.look(&client);
        // The next one's file for the nonce has another name.
        if self.transport != "nonce-tcp" {
            bus.kill();
            bus.start_again();
            self.look(&client);
        }
    }

    fn look(&self, client: &Connection) {
        let id = client.call::<String>(DRIVER, "/", "org.freedesktop.DBus.GetId", &());
        // The last bus may have got it, and have gone with it.
        assert_eq!(id.idempotent().wait().unwrap().len(), 32);
        let name = client.unique_name().unwrap();
        let uid = client.credentials(&name).wait().unwrap().uid;
        let own = nix::unistd::geteuid().as_raw();
        // Over TCP the kernel says nothing about us, so this is what the mechanism has proved.
        match (self.mechanism, self.transport) {
            ("DBUS_COOKIE_SHA1" | "EXTERNAL", _) => assert_eq!(uid, Some(own)),
            (_, "tcp" | "nonce-tcp") => assert_eq!(uid, None),
            (_, _) => {}
        }
    }
}

fn check(transport: &'static str, mechanisms: &[&'static str]) {
    for mechanism in mechanisms {
        Way { transport, mechanism }.check();
    }
}

/// Runs a test where the home directory of this user is one of its own.
fn at_home(test: &str, run: impl FnOnce(&Path)) {
    let home = tempfile::tempdir().unwrap();
    let users = home.path().join("passwd");
    let text = format!("root:x:0:0:root:{}:/bin/sh\n", home.path().display());
    std::fs::write(&users, text).unwrap();
    // Some go by the one, some by the other.
    let script = format!(
        "export HOME={} && mount --bind {} /etc/passwd",
        home.path().display(),
        users.display()
    );
    if support::inside(test, &script) {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
            .unwrap()
            .unwrap();
        assert!(user.dir.join("passwd").exists(), "{user:?}");
        run(&user.dir);
    }
}

#[test]
fn external_anonymous_and_cookies_over_unix_sockets() {
    at_home("external_anonymous_and_cookies_over_unix_sockets", |_| {
        check("unix", &["EXTERNAL", "ANONYMOUS", "DBUS_COOKIE_SHA1"]);
    });
}

#[test]
fn external_anonymous_and_cookies_through_a_program() {
    at_home("external_anonymous_and_cookies_through_a_program", |_| {
        check("unixexec", &["EXTERNAL", "ANONYMOUS", "DBUS_COOKIE_SHA1"]);
    });
}

#[test]
fn anonymous_and_cookies_over_tcp() {
    at_home("anonymous_and_cookies_over_tcp", |_| {
        check("tcp", &["ANONYMOUS", "DBUS_COOKIE_SHA1"]);
    });
}

#[test]
fn anonymous_and_cookies_over_tcp_with_a_nonce() {
    at_home("anonymous_and_cookies_over_tcp_with_a_nonce", |_| {
        check("nonce-tcp", &["ANONYMOUS", "DBUS_COOKIE_SHA1"]);
    });
}

#[test]
fn with_a_task_too() {
    at_home("with_a_task_too", |_| {
        let way = Way {
            transport: "tcp",
            mechanism: "DBUS_COOKIE_SHA1",
        };
        let Some(bus) = way.start() else { return };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let client = runtime.block_on(way.builder(&bus).connect()).unwrap();
        runtime.block_on(async {
            let id = client.call::<String>(DRIVER, "/", "org.freedesktop.DBus.GetId", &());
            assert_eq!(id.await.unwrap().len(), 32);
        });
    });
}

#[test]
fn whom_the_bus_does_not_know_it_does_not_let_in() {
    at_home("whom_the_bus_does_not_know_it_does_not_let_in", |home| {
        // The kernel proves nothing over TCP.
        let way = Way {
            transport: "tcp",
            mechanism: "EXTERNAL",
        };
        let Some(bus) = way.start() else { return };
        let error = way.builder(&bus).connect_thread().unwrap_err();
        assert!(matches!(error, Error::Connect(LinkError::Auth(_))), "{error:?}");
        drop(bus);
        // Somebody else could have written what is in the keyring; the bus has read its own file before.
        let way = Way {
            transport: "tcp",
            mechanism: "DBUS_COOKIE_SHA1",
        };
        let Some(bus) = way.start() else { return };
        way.look(&way.builder(&bus).connect_thread().unwrap());
        let keyrings = home.join(".dbus-keyrings");
        let file = std::fs::read_dir(&keyrings).unwrap().flatten();
        let file = file
            .map(|entry| entry.path())
            .find(|path| path.is_file())
            .unwrap();
        let mode = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o644);
        let error = way.builder(&bus).connect_thread().unwrap_err();
        assert!(matches!(error, Error::Connect(LinkError::Auth(_))), "{error:?}");
        mode(0o600);
        way.look(&way.builder(&bus).connect_thread().unwrap());
    });
}
