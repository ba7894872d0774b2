//! Buses that mean no good: an error that names it, bounded memory, no hang.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub,
    reason = "a process test: nothing else waits for its clock"
)]

#[path = "support/scripted.rs"]
mod scripted;

use std::io::{IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bus_client::{Connection, Error, Event, Fate, LinkError, Rule};
use bus_wire::{MessageBuilder, MessageType};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use scripted::{next_message, welcome};

/// A bus that does this with each connection, in a thread.
struct Bad {
    directory: tempfile::TempDir,
    connections: Arc<AtomicU32>,
}

impl Bad {
    fn new(behave: impl Fn(UnixStream) + Send + Sync + 'static) -> Bad {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("bus")).unwrap();
        let connections = Arc::new(AtomicU32::new(0));
        let count = connections.clone();
        std::thread::spawn(move || {
            let behave = Arc::new(behave);
            for socket in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                let behave = behave.clone();
                std::thread::spawn(move || behave(socket));
            }
        });
        Bad {
            directory,
            connections,
        }
    }

    fn builder(&self) -> bus_client::Builder {
        let address = format!("unix:path={}", self.directory.path().join("bus").display());
        Connection::address(&address).configure(|config| config.patience = Duration::from_secs(2))
    }

    fn connect_error(&self) -> String {
        match self.builder().connect_thread() {
            Err(Error::Connect(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }
}

/// The resident memory of this process, in bytes.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn authentication_without_end() {
    let bus = Bad::new(|mut socket| while socket.write_all(b"DATA 00\r\n").is_ok() {});
    let error = bus.connect_error();
    assert!(error.contains("authentication"), "{error}");
    let bus = Bad::new(|mut socket| while socket.write_all(&[b'x'; 4096]).is_ok() {});
    let error = bus.connect_error();
    assert!(error.contains("line"), "{error}");
    let bus = Bad::new(|mut socket| {
        let _ = socket.write_all(b"REJECTED KERBEROS_V4\r\n");
        std::thread::sleep(Duration::from_secs(5));
    });
    let error = bus.connect_error();
    assert!(error.contains("KERBEROS_V4"), "{error}");
    // One that says nothing at all.
    let bus = Bad::new(|socket| {
        std::thread::sleep(Duration::from_secs(20));
        drop(socket);
    });
    let began = Instant::now();
    let error = bus.connect_error();
    assert!(error.contains("did not answer"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(6));
}

#[test]
fn garbage_is_named_and_the_client_does_not_storm() {
    let bus = Bad::new(|mut socket| {
        welcome(&mut socket);
        let _ = socket.write_all(&[0xff; 64]);
        std::thread::sleep(Duration::from_secs(1));
    });
    let lost = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = lost.clone();
    let client = bus
        .builder()
        .on_link(move |link| {
            if let bus_client::Link::Lost(error) = link {
                seen.lock().unwrap().push(error.clone());
            }
            bus_client::Decision::Replay
        })
        .connect_thread()
        .unwrap();
    let call = client
        .call::<()>("a.b", "/", "C", &())
        .timeout(Duration::from_secs(3));
    let error = call.wait().unwrap_err();
    assert!(error.fate().is_some(), "{error}");
    let lost = lost.lock().unwrap();
    assert!(matches!(lost[0], LinkError::Message(_)), "{lost:?}");
    let connections = bus.connections.load(Ordering::SeqCst);
    assert!((2..40).contains(&connections), "{connections} connections in 3 s");
}

#[test]
fn replies_to_nobody_wrong_serials_and_spoofed_senders() {
    let bus = Bad::new(|mut socket| {
        welcome(&mut socket);
        let mut held = Vec::new();
        let mut serial = 10_u32;
        while let Some(message) = next_message(&mut socket, &mut held) {
            let asked = message.serial().get();
            let mut say = |builder: MessageBuilder<'_>| {
                serial += 1;
                let _ = socket.write_all(&builder.serial(serial).build().unwrap());
            };
            for wrong in 1..50 {
                say(MessageBuilder::method_return(asked + wrong).sender(":1.1"));
            }
            // The answer of one who was not asked.
            say(MessageBuilder::method_return(asked)
                .sender(":1.666")
                .body(|body| {
                    body.str("wrong");
                }));
            // Only the bus says who owns a name.
            let signal =
                MessageBuilder::signal("/", "org.freedesktop.DBus", "NameOwnerChanged").sender(":1.666");
            say(signal.body(|body| {
                body.str("a.b").str("").str(":1.666");
            }));
            if message.message_type() == MessageType::MethodCall {
                say(MessageBuilder::method_return(asked)
                    .sender("org.freedesktop.DBus")
                    .body(|body| {
                        body.str("right");
                    }));
            }
        }
    });
    let client = bus.builder().connect_thread().unwrap();
    for _ in 0..100 {
        let call = client.call::<String>("org.freedesktop.DBus", "/", "org.freedesktop.DBus.GetId", &());
        assert_eq!(call.wait().unwrap(), "right");
    }
    let stream = client.messages(Rule::all().sender("a.b")).unwrap();
    let _ = client
        .call::<String>("org.freedesktop.DBus", "/", "org.freedesktop.DBus.GetId", &())
        .wait();
    while let Some(event) = stream.try_next() {
        assert!(!matches!(event, Event::Signal(_)), "{event:?}");
    }
}

#[test]
fn messages_of_the_greatest_length_and_descriptors_without_number() {
    let bus = Bad::new(|mut socket| {
        welcome(&mut socket);
        let mut held = Vec::new();
        while let Some(message) = next_message(&mut socket, &mut held) {
            if message.member() == Some("Large") {
                // A header that claims 128 MiB, and the beginning of them.
                let reply = MessageBuilder::method_return(message.serial())
                    .sender(":1.1")
                    .serial(99_u32);
                let reply = reply.body(|body| {
                    body.byte_slice(&vec![1; 1 << 20]);
                });
                let mut bytes = reply.build().unwrap();
                bytes[4..8].copy_from_slice(&((1_u32 << 27) - 4096).to_le_bytes());
                let _ = socket.write_all(&bytes);
            } else {
                let file = std::fs::File::open("/dev/null").unwrap();
                let numbers = [file.as_raw_fd(); 200];
                // One byte of a message that never ends, and hundreds of descriptors with it, again and again.
                for byte in [b'l', 2, 0, 1, 0, 1] {
                    let rights = [ControlMessage::ScmRights(&numbers)];
                    let _ = sendmsg::<()>(
                        socket.as_raw_fd(),
                        &[IoSlice::new(&[byte])],
                        &rights,
                        MsgFlags::MSG_NOSIGNAL,
                        None,
                    );
                }
            }
        }
    });
    let client = bus.builder().connect_thread().unwrap();
    let before = resident();
    let call = client
        .call::<()>("a.b", "/", "Large", &())
        .timeout(Duration::from_secs(1));
    let error = call.wait().unwrap_err();
    assert_eq!(error.fate(), Some(Fate::Unknown), "{error}");
    assert!(
        resident() < before + (64 << 20),
        "{} bytes more",
        resident() - before
    );
    client.reconnect().unwrap();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    let call = client
        .call::<()>("a.b", "/", "Many", &())
        .timeout(Duration::from_secs(2));
    let error = call.wait().unwrap_err();
    assert_eq!(error.fate(), Some(Fate::Unknown), "{error}");
    assert!(error.to_string().contains("descriptors"), "{error}");
    let mut rounds = 0;
    while open() > before + 40 {
        rounds += 1;
        assert!(rounds < 500, "{} descriptors are open, {before} were", open());
        std::thread::sleep(Duration::from_millis(10));
    }
}
