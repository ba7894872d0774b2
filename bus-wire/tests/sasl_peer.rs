//! The client's side of authentication, with the reference implementation on the other side.

#![cfg(unix)]
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bus_wire::sasl::cookie::cookies;
use bus_wire::{
    Address, ClientMechanism, Message, MessageBuilder, SaslClient, SaslClientConfig, SaslClientDone,
    SaslClientError, SaslClientEvent, message_length,
};

/// A bus with its files in a directory of its own, that offers these mechanisms.
struct Bus {
    child: Child,
    address: Address,
    home: tempfile::TempDir,
}

impl Bus {
    /// `None` where there is no `dbus-daemon`, and there need not be one.
    fn start(mechanisms: &str) -> Option<Self> {
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join("config");
        let text = format!(
            "<!DOCTYPE busconfig PUBLIC '-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN' \
             'http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd'>\
             <busconfig><listen>unix:path={}</listen>{mechanisms}<allow_anonymous/>\
             <policy context='default'><allow send_destination='*'/><allow receive_sender='*'/><allow own='*'/></policy></busconfig>",
            home.path().join("bus").display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--print-address"])
            .env("HOME", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) if std::env::var_os("BUS_TEST_PEERS").is_some_and(|value| value == "require") => {
                panic!("dbus-daemon: {error}")
            }
            Err(_) => {
                eprintln!("skipped: dbus-daemon not found");
                return None;
            }
        };
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().parse().unwrap();
        Some(Self { child, address, home })
    }

    fn authenticate(
        &self,
        mechanisms: &[ClientMechanism],
        pipeline: bool,
    ) -> Result<SaslClientDone, SaslClientError> {
        let path = self.address.get_str("path").unwrap();
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut client = SaslClient::new(SaslClientConfig {
            mechanisms: mechanisms.to_vec(),
            fds: true,
            pipeline,
        });
        let mut output = Vec::new();
        client.start(&mut output)?;
        if client.is_pipelined() {
            output.extend(hello());
        }
        let mut input = Vec::new();
        loop {
            stream.write_all(&output).unwrap();
            output.clear();
            let mut buffer = [0; 512];
            let length = stream.read(&mut buffer).unwrap();
            assert!(length > 0, "the bus has closed the connection");
            input.extend_from_slice(&buffer[..length]);
            let step = client.feed(&input, &mut output)?;
            input.drain(..step.consumed);
            match step.event {
                Some(SaslClientEvent::Cookie(challenge)) => {
                    let directory = self.home.path().join(".dbus-keyrings");
                    let file = std::fs::read(directory.join(challenge.context.as_str())).unwrap();
                    let cookie = cookies(&file).find(|cookie| cookie.id == challenge.id);
                    client.cookie(cookie.as_ref(), [0x5a; 16], &mut output)?;
                }
                Some(SaslClientEvent::Done(done)) => {
                    if !client.is_pipelined() {
                        output.extend(hello());
                    }
                    stream.write_all(&output).unwrap();
                    check_hello(stream, input);
                    return Ok(done);
                }
                Some(_) | None => {}
            }
        }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hello() -> Vec<u8> {
    MessageBuilder::method_call("/org/freedesktop/DBus", "Hello")
        .destination("org.freedesktop.DBus")
        .interface("org.freedesktop.DBus")
        .serial(1u32)
        .build()
        .unwrap()
}

/// The bus speaks to who has authenticated.
fn check_hello(mut stream: UnixStream, mut input: Vec<u8>) {
    let mut buffer = [0; 512];
    loop {
        let length = message_length(&input).unwrap();
        if let Some(length) = length
            && input.len() >= length
        {
            input.truncate(length);
            let reply = Message::parse(input.into()).unwrap();
            assert!(reply.decode::<&str>().unwrap().starts_with(':'), "{reply:?}");
            return;
        }
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "the bus has closed the connection");
        input.extend_from_slice(&buffer[..length]);
    }
}

fn user() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn uid(path: &Path) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(path).unwrap())
}

#[test]
fn external() {
    let Some(bus) = Bus::start("<auth>EXTERNAL</auth>") else {
        return;
    };
    let uid = uid(bus.home.path());
    for (mechanism, pipeline) in [
        (ClientMechanism::External(Some(uid)), false),
        (ClientMechanism::External(Some(uid)), true),
        (ClientMechanism::External(None), false),
        (ClientMechanism::External(None), true),
    ] {
        let done = bus
            .authenticate(std::slice::from_ref(&mechanism), pipeline)
            .unwrap();
        assert_eq!((done.mechanism, done.fds), (mechanism, true));
        assert_eq!(Some(done.guid), bus.address.guid());
    }
}

#[test]
fn cookie() {
    let Some(bus) = Bus::start("<auth>DBUS_COOKIE_SHA1</auth>") else {
        return;
    };
    let cookie = ClientMechanism::Cookie(user());
    let all = [
        ClientMechanism::External(None),
        cookie.clone(),
        ClientMechanism::Anonymous(String::new()),
    ];
    let done = bus.authenticate(&all, true).unwrap();
    assert_eq!(done.mechanism, cookie);
    let stranger = ClientMechanism::Cookie("no such user".to_owned());
    let error = bus.authenticate(&[stranger], false).unwrap_err();
    assert_eq!(
        error,
        SaslClientError::Rejected {
            offered: "DBUS_COOKIE_SHA1".to_owned()
        }
    );
}

#[test]
fn anonymous() {
    let Some(bus) = Bus::start("<auth>ANONYMOUS</auth>") else {
        return;
    };
    for pipeline in [false, true] {
        let anonymous = ClientMechanism::Anonymous("bus-wire".to_owned());
        let done = bus
            .authenticate(std::slice::from_ref(&anonymous), pipeline)
            .unwrap();
        assert_eq!(done.mechanism, anonymous);
    }
}
