//! Streams whose every byte is checked, hosts to speak to, and a network that fails on demand.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

pub mod proxy;

use bus_tcp::carrier::{Dial, PlainDial, PlainDoor};
use bus_tcp::limits::{Bounds, Terms};
use bus_tcp::runtime::Watch;
use bus_tcp::tls::{Identities, Key, Pin, TlsDial, TlsDoor, provider};
use bus_tcp::{Event, ListenOptions, Listener, Session, connect};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::TcpListener;

/// The usual terms, ten times as fast.
pub fn terms() -> Terms {
    Terms::DEFAULT.divided(10)
}

pub fn byte(offset: u64) -> u8 {
    (offset.wrapping_mul(7).wrapping_add(offset / 251)) as u8
}

pub fn pattern(start: u64, count: usize) -> Vec<u8> {
    (start..start + count as u64).map(byte).collect()
}

/// The client in Python that says so many bytes and hears all that is said to it, with a window of so many seconds; `None`: no Python, and none is required.
pub fn python_client(port: u16, bytes: u64, window: u64) -> Option<tokio::process::Child> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/plain_client.py");
    let child = tokio::process::Command::new("python3")
        .args([
            "-B",
            script,
            &port.to_string(),
            &bytes.to_string(),
            &window.to_string(),
        ])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    match child {
        Ok(child) => Some(child),
        Err(_) if std::env::var("BUS_TEST_PEERS").as_deref() != Ok("require") => {
            eprintln!("skipped: python3 not found");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Writes `count` bytes of the pattern, `pace` apart in pieces, ends the stream, and waits until all of them arrived.
pub async fn say(mut to: WriteHalf<Session>, count: u64, piece: usize, pace: Duration) {
    let mut at = 0;
    while at < count {
        let length = piece.min((count - at) as usize);
        to.write_all(&pattern(at, length)).await.unwrap();
        at += length as u64;
        if !pace.is_zero() {
            tokio::time::sleep(pace).await;
        }
    }
    to.shutdown().await.unwrap();
}

/// Reads to the end, which has to come after `count` bytes of the pattern.
pub async fn hear(mut from: ReadHalf<Session>, count: u64) {
    let mut buf = vec![0; 50_000];
    let mut at = 0;
    loop {
        let length = from.read(&mut buf).await.unwrap();
        if length == 0 {
            assert_eq!(at, count, "the stream ends early, or late");
            return;
        }
        for got in &buf[..length] {
            assert_eq!(*got, byte(at), "byte {at} of {count}");
            at += 1;
        }
    }
}

/// Waits until both ends know that the session is over: whoever leaves right after the last byte takes acknowledgements along.
pub async fn over(watch: &Watch) {
    let over = async { while watch.event().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(20), over)
        .await
        .expect("the end of the session");
}

/// Both directions at once, over both ends of a session: each byte is checked.
pub async fn converse(client: Session, host: Session, count: u64, pace: Duration) {
    let ((client_read, client_write), (host_read, host_write)) = (split(client), split(host));
    tokio::join!(
        say(client_write, count, 10_000, pace),
        say(host_write, count, 7_000, pace),
        hear(client_read, count),
        hear(host_read, count),
    );
}

/// A host with keys, and what a client needs to reach it.
pub struct Rig {
    pub listener: Listener,
    pub address: SocketAddr,
    pub host_key: Key,
    pub client_key: Key,
}

pub fn options() -> ListenOptions {
    ListenOptions::default()
}

pub fn new_key() -> Key {
    Key::generate(&provider()).unwrap().0
}

impl Rig {
    pub async fn tls() -> Self {
        Self::tls_on("127.0.0.1:0").await
    }

    pub async fn tls_on(address: &str) -> Self {
        let (host_key, client_key) = (new_key(), new_key());
        let socket = TcpListener::bind(address).await.unwrap();
        let address = socket.local_addr().unwrap();
        let identities = Identities::default().pin(client_key.pin(), "robot");
        let listener = Listener::new(options()).unwrap();
        listener.open(TlsDoor::raw_key(provider(), socket, &host_key, identities).unwrap());
        Self {
            listener,
            address,
            host_key,
            client_key,
        }
    }

    pub async fn plain() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let listener = Listener::new(options()).unwrap();
        listener.open(PlainDoor::trusted(socket, "robot"));
        Self {
            listener,
            address,
            host_key: new_key(),
            client_key: new_key(),
        }
    }

    pub fn dial(&self, address: SocketAddr, terms: &Terms) -> TlsDial {
        let pins = vec![self.host_key.pin()];
        TlsDial::raw_key(provider(), address.to_string(), &self.client_key, pins, terms).unwrap()
    }

    /// A session through `address`.
    pub async fn session(&self, address: SocketAddr, terms: Terms) -> (Session, Session) {
        let client = connect(self.dial(address, &terms), terms).unwrap();
        self.both(client).await
    }

    /// The host's end as well, when the client knows of it: if it did not, it would ask for another one.
    async fn both(&self, client: Session) -> (Session, Session) {
        let host = self.listener.accept().await.unwrap();
        while client.id().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (client, host)
    }

    pub async fn plain_session(&self, address: SocketAddr, terms: Terms) -> (Session, Session) {
        let client = connect(PlainDial::trusted(address.to_string(), &terms), terms).unwrap();
        self.both(client).await
    }
}

/// The next event that is one of these.
pub async fn wait_for(session: &Session, wanted: impl Fn(&Event) -> bool) -> Event {
    let watch = session.watch();
    let found = async {
        loop {
            let event = watch.event().await.expect("the session is over");
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), found)
        .await
        .expect("an event")
}

pub fn bounds() -> Bounds {
    Bounds::default()
}

pub fn dial_plain(address: SocketAddr) -> impl Dial {
    PlainDial::trusted(address.to_string(), &terms())
}

pub fn pin_of_nobody() -> Pin {
    Pin([7; 32])
}
