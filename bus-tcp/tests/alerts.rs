//! Every alert of TLS inside an established session, encrypted as its connection is, to either end: parked at once, and resumed.
//! Those in the middle of a handshake are in `transport_errors.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub
)]

#[path = "support/middleman.rs"]
mod middleman;
mod support;

use bus_tcp::limits::Terms;
use bus_tcp::tls::{Identities, Key, TlsDial, TlsDoor, provider};
use bus_tcp::{Event, Listener, Session, connect};
use middleman::{Hears, Middleman, Order};
use std::time::{Duration, Instant};
use support::proxy::Proxy;
use support::{options, pattern, terms, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Alerts that are no errors, and are said as a warning (RFC 8446, section 6.1).
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

/// Both sides say so many bytes of their streams, and hear the other's.
async fn exchange(client: &mut Session, host: &mut Session, from: u64, count: usize) {
    let bytes = pattern(from, count);
    client.write_all(&bytes).await.unwrap();
    host.write_all(&bytes).await.unwrap();
    heard(client, host, from, count).await;
}

async fn heard(client: &mut Session, host: &mut Session, from: u64, count: usize) {
    let (mut near, mut far) = (vec![0; count], vec![0; count]);
    client.read_exact(&mut near).await.unwrap();
    host.read_exact(&mut far).await.unwrap();
    assert_eq!(near, pattern(from, count));
    assert_eq!(far, pattern(from, count));
}

#[tokio::test]
async fn every_alert_inside_a_session_is_a_resumption_at_either_end() {
    let (host_key, host_pem) = Key::generate(&provider()).unwrap();
    let (client_key, client_pem) = Key::generate(&provider()).unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let identities = Identities::default().pin(client_key.pin(), "robot");
    let listener = Listener::new(options()).unwrap();
    listener.open(TlsDoor::raw_key(provider(), socket, &host_key, identities).unwrap());
    let middle = Middleman::new(address, (&host_key, &host_pem), (&client_key, &client_pem)).await;
    let proxy = Proxy::to(middle.address).await;
    // Silence would be noticed much later than an alert.
    let terms = Terms {
        heartbeat: Duration::from_secs(3),
        dead_after: Duration::from_secs(9),
        ..terms()
    };
    // All that are assigned, many that are not.
    for code in (0..=121).chain([255]) {
        for to in [Hears::Client, Hears::Host] {
            proxy.retarget(middle.address);
            let pins = vec![host_key.pin()];
            let dial = TlsDial::raw_key(provider(), proxy.address.to_string(), &client_key, pins, &terms);
            let mut client = connect(dial.unwrap(), terms).unwrap();
            let mut host = listener.accept().await.unwrap();
            exchange(&mut client, &mut host, 0, 3000).await;
            // Whoever comes back gets past the middleman, who cannot resume: he does not know the secret.
            proxy.retarget(address);
            let (done, until) = oneshot::channel();
            let level = if matches!(code, CLOSE_NOTIFY | USER_CANCELED) {
                1
            } else {
                2
            };
            let order = Order {
                to,
                level,
                code,
                until,
            };
            let began = Instant::now();
            middle.orders.send(order).await.unwrap();
            client.write_all(&pattern(3000, 500)).await.unwrap();
            host.write_all(&pattern(3000, 500)).await.unwrap();
            let hears = match to {
                Hears::Client => &client,
                Hears::Host => &host,
            };
            if code == USER_CANCELED {
                // Means nothing by itself: the next alert is the end (RFC 8446, section 6.1). Here the connection is cut.
                tokio::time::sleep(Duration::from_millis(200)).await;
                assert!(hears.stats().live);
                proxy.cut();
            }
            wait_for(hears, |event| matches!(event, Event::Parked { .. })).await;
            assert!(
                began.elapsed() < Duration::from_secs(2),
                "{code} to {to:?}: {:?}",
                began.elapsed()
            );
            // The other end learns of it by the middleman, who goes.
            drop(done);
            if to == Hears::Host && code != USER_CANCELED {
                wait_for(&client, |event| matches!(event, Event::Parked { .. })).await;
            }
            client.connect_now();
            heard(&mut client, &mut host, 3000, 500).await;
            exchange(&mut client, &mut host, 3500, 1000).await;
            assert_eq!(client.stats().resumptions, 1, "{code} to {to:?}");
        }
    }
}
