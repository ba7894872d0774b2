//! Whoever should not get in does not, and costs those who are in little.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub
)]

mod support;

use bus_tcp::carrier::{Dial, PlainDoor};
use bus_tcp::frame::{Frame, Hello, Preamble, Reason, data_header};
use bus_tcp::limits::Terms;
use bus_tcp::tls::{Certificates, Identities, Key, Pin, TlsDial, TlsDoor, Trust, provider};
use bus_tcp::{Event, Listener, connect};
use std::time::{Duration, Instant};
use support::proxy::Proxy;
use support::{Rig, converse, new_key, options, pin_of_nobody, terms, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

async fn dials(dial: &mut impl Dial) -> Result<(), String> {
    // A client's own handshake is complete before the host has judged its key: what it says next is not answered.
    let carrier = dial.dial(None).await.map_err(|error| error.to_string())?;
    let (mut read, mut write) = tokio::io::split(carrier);
    let hello = Hello {
        preamble: Preamble::OURS,
        wish: terms(),
        incarnation: 1,
    };
    write
        .write_all(&Frame::Hello(hello).to_vec())
        .await
        .map_err(|error| error.to_string())?;
    let mut kind = [0];
    read.read_exact(&mut kind)
        .await
        .map_err(|error| error.to_string())?;
    assert_eq!(kind, [2], "WELCOME");
    Ok(())
}

#[tokio::test]
async fn wrong_keys_are_refused_at_both_ends() {
    let rig = Rig::tls().await;
    let terms = terms();
    let address = rig.address.to_string();
    let dial = |key: &Key, pin: Pin| TlsDial::raw_key(provider(), &*address, key, vec![pin], &terms).unwrap();
    dials(&mut dial(&rig.client_key, rig.host_key.pin()))
        .await
        .unwrap();
    let stranger = dials(&mut dial(&new_key(), rig.host_key.pin()))
        .await
        .unwrap_err();
    eprintln!("an unmapped identity: {stranger}");
    let impostor = dials(&mut dial(&rig.client_key, pin_of_nobody()))
        .await
        .unwrap_err();
    eprintln!("a wrong host: {impostor}");
    let until = Instant::now() + Duration::from_secs(10);
    while rig.listener.logged_and_counted().1 < 2 {
        assert!(Instant::now() < until, "not noticed");
        tokio::time::sleep(ms(10)).await;
    }
}

fn certified(
    names: &[&str],
    uri: Option<&str>,
    ca: Option<(&rcgen::Certificate, &rcgen::Issuer<'_, rcgen::KeyPair>)>,
) -> (Key, Certificates, rcgen::KeyPair) {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut parameters =
        rcgen::CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
            .unwrap();
    if let Some(uri) = uri {
        parameters
            .subject_alt_names
            .push(rcgen::SanType::URI(uri.try_into().unwrap()));
    }
    let certificate = match ca {
        Some((_, issuer)) => parameters.signed_by(&pair, issuer).unwrap(),
        None => parameters.self_signed(&pair).unwrap(),
    };
    let key = Key::from_pem(&provider(), &pair.serialize_pem()).unwrap();
    (key, Certificates::from_pem(&certificate.pem()).unwrap(), pair)
}

#[tokio::test]
async fn raw_keys_and_certificates_come_in_by_the_same_listener() {
    let ca_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut ca_parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca_parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = ca_parameters.self_signed(&ca_key).unwrap();
    let authorities = Certificates::from_pem(&ca.pem()).unwrap();
    let issuer = rcgen::Issuer::new(ca_parameters, ca_key);
    let signed = Some((&ca, &issuer));
    let (host_key, host_chain, _) = certified(&["127.0.0.1"], None, signed);
    let (good_key, good_chain, _) = certified(&[], Some("urn:robot:7"), signed);
    let (other_key, other_chain, _) = certified(&[], Some("urn:robot:77"), signed);
    // It names itself, and nobody vouches for it.
    let (liar_key, liar_chain, _) = certified(&[], Some("urn:robot:7"), None);
    let (pinned_key, pinned_chain, _) = certified(&["whoever"], None, None);
    let raw_key = new_key();

    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let identities = Identities::default()
        .pin(raw_key.pin(), "raw")
        .pin(pinned_key.pin(), "pinned")
        .san("urn:robot:7", "robot-7");
    let door = TlsDoor::raw_key(provider(), socket, &host_key, identities)
        .unwrap()
        .with_certificates(provider(), &host_key, host_chain, &authorities)
        .unwrap();
    let listener = Listener::new(options()).unwrap();
    listener.open(door);
    let trust = || Trust::Authorities(authorities.clone());
    let certificate = |key: &Key, chain: &Certificates, trust| {
        TlsDial::certificate(provider(), &*address, key, chain.clone(), trust, &terms()).unwrap()
    };
    for (dial, who) in [
        (
            TlsDial::raw_key(provider(), &*address, &raw_key, vec![host_key.pin()], &terms()).unwrap(),
            "raw",
        ),
        (certificate(&good_key, &good_chain, trust()), "robot-7"),
        (
            certificate(
                &pinned_key,
                &pinned_chain,
                Trust::Pins(vec![pin_of_nobody(), host_key.pin()]),
            ),
            "pinned",
        ),
    ] {
        let client = connect(dial, terms()).unwrap();
        let host = tokio::time::timeout(Duration::from_secs(10), listener.accept())
            .await
            .expect(who)
            .unwrap();
        assert_eq!(host.peer(), Some(who));
        converse(client, host, 20_000, Duration::ZERO).await;
    }
    for (mut dial, what) in [
        (certificate(&other_key, &other_chain, trust()), "another URI"),
        (
            certificate(&liar_key, &liar_chain, trust()),
            "nobody vouches for it",
        ),
        (
            certificate(&good_key, &good_chain, Trust::Pins(vec![pin_of_nobody()])),
            "another host",
        ),
        (
            certificate(&good_key, &good_chain, Trust::Authorities(good_chain.clone())),
            "another authority",
        ),
    ] {
        let refused = dials(&mut dial).await.expect_err(what);
        eprintln!("{what}: {refused}");
    }
}

#[tokio::test]
async fn a_key_is_replaced_under_a_session_and_an_identity_that_goes_takes_it_along() {
    let (host_key, old_key, new) = (new_key(), new_key(), new_key());
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let both = Identities::default()
        .pin(old_key.pin(), "robot")
        .pin(new.pin(), "robot");
    let door = TlsDoor::raw_key(provider(), socket, &host_key, both).unwrap();
    let identities = door.identities();
    let listener = Listener::new(options()).unwrap();
    listener.open(door);
    let dial = |key: &Key| {
        TlsDial::raw_key(
            provider(),
            &*address,
            key,
            vec![pin_of_nobody(), host_key.pin()],
            &terms(),
        )
        .unwrap()
    };
    let mut client = connect(dial(&old_key), terms()).unwrap();
    let mut host = listener.accept().await.unwrap();
    client.write_all(b"before").await.unwrap();
    host.read_exact(&mut [0; 6]).await.unwrap();
    let saved = client.save().unwrap();
    let mut client = bus_tcp::connect_saved(dial(&new), &saved).unwrap();
    client.write_all(b"after").await.unwrap();
    host.read_exact(&mut [0; 5]).await.unwrap();

    TlsDoor::replace(&identities, Identities::default().pin(old_key.pin(), "robot"));
    listener.expel(|_| false);
    let lost = wait_for(&client, |event| matches!(event, Event::Lost(_))).await;
    let Event::Lost(ending) = lost else { unreachable!() };
    assert_eq!(ending.reason, Reason::Refused);
    assert!(dials(&mut dial(&new)).await.is_err());
}

/// What a stranger says to a listener with TLS, and how long it is listened to.
async fn speak(address: std::net::SocketAddr, bytes: &[u8]) -> Duration {
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    began.elapsed()
}

#[tokio::test]
async fn strangers_are_heard_for_four_kilobytes_and_ten_seconds() {
    let rig = Rig::tls().await;
    // Not TLS; TLS 1.2 and older; a hello that never ends.
    assert!(speak(rig.address, b"GET / HTTP/1.1\r\n\r\n").await < Duration::from_secs(2));
    let mut endless = vec![22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xf0];
    endless.resize(20_000, 0);
    assert!(
        speak(rig.address, &endless).await < Duration::from_secs(2),
        "more than 4 KiB"
    );
    let slow = speak(rig.address, &[22, 3, 1]).await;
    assert!(
        slow > Duration::from_secs(9) && slow < Duration::from_secs(12),
        "{slow:?}"
    );
}

#[tokio::test]
async fn a_listener_with_tls_speaks_neither_without_it_nor_an_older_one() {
    let rig = Rig::tls().await;
    let hello = Hello {
        preamble: Preamble::OURS,
        wish: terms(),
        incarnation: 1,
    };
    assert!(speak(rig.address, &Frame::Hello(hello).to_vec()).await < Duration::from_secs(2));
    for arguments in [&["-tls1_2"][..], &["-tls1_3"], &["-tls1_3", "-alpn", "h2"]] {
        let mut command = tokio::process::Command::new("openssl");
        command
            .args(["s_client", "-connect", &rig.address.to_string()])
            .args(arguments);
        let output = match command.stdin(std::process::Stdio::null()).output().await {
            Ok(output) => output,
            Err(_) if std::env::var("BUS_TEST_PEERS").as_deref() != Ok("require") => {
                eprintln!("skipped: openssl not found");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(
            text.contains("alert") || text.contains("no peer certificate"),
            "{arguments:?}: {text}"
        );
        assert!(!text.contains("New, TLSv1.2"), "{text}");
    }
}

/// Someone who has a key, and breaks the protocol.
#[tokio::test]
async fn a_peer_that_breaks_a_rule_is_told_which() {
    let rig = Rig::tls().await;
    let absurd = |offset, credit| Frame::Ack { offset, credit }.to_vec();
    let mut oversized = data_header(0, 1).to_vec();
    oversized[1..4].copy_from_slice(&[0xff, 0xff, 0xff]);
    let mut far = data_header(0, 16_000).to_vec();
    far.resize(16_012, 0);
    let far = far.repeat(20);
    for (bytes, code) in [
        (absurd(u64::MAX, u64::MAX), 4),
        (absurd(1, 1 << 40), 4),
        (absurd(0, 0), 4),
        (oversized, 1),
        (vec![0x7f, 0, 0, 0], 1),
        (
            Frame::Bye {
                offset: 9,
                confirmed: true,
            }
            .to_vec(),
            6,
        ),
        (Frame::Pong(3).to_vec(), 3),
        (far[..16_012].to_vec(), 0),
    ] {
        let carrier = rig.dial(rig.address, &terms()).dial(None).await.unwrap();
        let (mut read, mut write) = tokio::io::split(carrier);
        let hello = Hello {
            preamble: Preamble::OURS,
            wish: terms(),
            incarnation: 1,
        };
        write.write_all(&Frame::Hello(hello).to_vec()).await.unwrap();
        let mut welcome = [0; 86];
        read.read_exact(&mut welcome).await.unwrap();
        write.write_all(&bytes).await.unwrap();
        if code == 0 {
            continue;
        }
        let mut gone = [0; 14];
        read.read_exact(&mut gone).await.unwrap();
        assert_eq!((gone[0], gone[4], gone[5]), (9, 8, code), "{bytes:x?}: {gone:x?}");
        assert_eq!(read.read(&mut gone).await.unwrap_or(0), 0, "and closed");
    }
}

async fn latencies(
    client: &mut bus_tcp::Session,
    host: &mut bus_tcp::Session,
    count: usize,
) -> Vec<Duration> {
    let mut times = Vec::new();
    let mut buf = [0; 64];
    for _ in 0..count {
        let began = Instant::now();
        client.write_all(&[7; 64]).await.unwrap();
        host.read_exact(&mut buf).await.unwrap();
        host.write_all(&buf).await.unwrap();
        client.read_exact(&mut buf).await.unwrap();
        times.push(began.elapsed());
        tokio::time::sleep(ms(1)).await;
    }
    times.sort();
    times
}

/// What a client with an unknown key says first.
async fn client_hello() -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let dial = TlsDial::raw_key(provider(), address, &new_key(), vec![pin_of_nobody()], &terms());
    let mut dial = dial.unwrap();
    tokio::spawn(async move { drop(dial.dial(None).await) });
    let mut stream = listener.accept().await.unwrap().0;
    let mut hello = vec![0; 5];
    stream.read_exact(&mut hello).await.unwrap();
    hello.resize(5 + usize::from(u16::from_be_bytes([hello[3], hello[4]])), 0);
    stream.read_exact(&mut hello[5..]).await.unwrap();
    hello
}

/// A connection from one of many addresses.
async fn from_somewhere(number: usize, to: std::net::SocketAddr) -> Option<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    let [high, low] = u16::try_from(number % 60_000).unwrap().to_be_bytes();
    socket
        .bind(std::net::SocketAddr::from(([127, 1, high, low.max(1)], 0)))
        .unwrap();
    socket.connect(to).await.ok()
}

/// So many silent connections, and hellos, from so many addresses. `bound`: how many times as long an answer may take meanwhile.
async fn flood(silent: usize, hellos_a_second: usize, addresses: usize, bound: Option<u32>) {
    let began = Instant::now();
    let rig = Rig::tls().await;
    let (mut client, mut host) = rig.session(rig.address, Terms::DEFAULT).await;
    let before = latencies(&mut client, &mut host, 1000).await;
    let mut quiet = Vec::new();
    for number in 0..silent {
        quiet.push(from_somewhere(number % addresses, rig.address).await);
    }
    let (address, hello) = (rig.address, client_hello().await);
    let flooder = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut ticks = tokio::time::interval(ms(10));
            for number in 0..3 * hellos_a_second {
                if number % (hellos_a_second / 100) == 0 {
                    ticks.tick().await;
                }
                let hello = hello.clone();
                tokio::spawn(async move {
                    let Some(mut stream) = from_somewhere(number % addresses, address).await else {
                        return;
                    };
                    let _ = stream.write_all(&hello).await;
                    tokio::time::sleep(ms(500)).await;
                });
            }
        });
    });
    let during = latencies(&mut client, &mut host, 1000).await;
    // Whoever had a session is let in meanwhile.
    let newcomer =
        tokio::time::timeout(Duration::from_secs(5), rig.session(rig.address, Terms::DEFAULT)).await;
    drop(newcomer.expect("a session in the middle of a flood"));
    flooder.join().unwrap();
    let p99 = |times: &[Duration]| times[times.len() * 99 / 100];
    let (logged, counted) = rig.listener.logged_and_counted();
    eprintln!(
        "p99 before {:?}, during {:?}; {counted} turned away, {logged} logged",
        p99(&before),
        p99(&during)
    );
    assert!(
        counted > silent as u64 / 2 && logged <= (began.elapsed().as_secs() + 1) * addresses.min(1025) as u64,
        "{counted} turned away, {logged} logged"
    );
    assert_eq!(client.stats().resumptions, 0);
    assert!(bound.is_none_or(|bound| p99(&during) <= p99(&before) * bound));
}

#[tokio::test]
async fn a_flood_of_strangers_is_logged_once_a_second_and_disturbs_nobody() {
    flood(500, 200, 5, None).await;
}

/// On a runtime of two threads: on a single one each handshake that is computed comes before whatever the sessions have to say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: needs 12,000 descriptors, and the machine for itself"]
async fn ten_thousand_silent_connections_and_a_thousand_hellos_a_second() {
    flood(10_000, 1000, 10_000, Some(2)).await;
}

/// An answer from somebody else on a carrier without TLS is a broken carrier.
#[tokio::test]
async fn a_captive_portal_is_a_broken_link() {
    let rig = Rig::tls().await;
    let portal = Rig::tls().await;
    let proxy = Proxy::to(rig.address).await;
    let (mut client, mut host) = rig.session(proxy.address, terms()).await;
    proxy.retarget(portal.address);
    proxy.cut();
    client.write_all(b"through").await.unwrap();
    tokio::time::sleep(ms(500)).await;
    assert!(!client.stats().live);
    proxy.retarget(rig.address);
    let mut buf = [0; 7];
    host.read_exact(&mut buf).await.unwrap();
    assert_eq!(&buf, b"through");
    assert!(client.stats().resumptions > 0);
}

#[tokio::test]
async fn a_session_is_of_no_use_to_another_identity() {
    // The same secret and session, from saved state that was stolen: another user of the same listener.
    let listener = Listener::new(options()).unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    listener.open(PlainDoor::trusted(socket, "alice"));
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mallory = other.local_addr().unwrap();
    listener.open(PlainDoor::trusted(other, "mallory"));
    let mut client = connect(support::dial_plain(address), terms()).unwrap();
    let _host = listener.accept().await.unwrap();
    client.write_all(b"x").await.unwrap();
    wait_for(&client, |event| *event == Event::Opened).await;
    let saved = client.save().unwrap();
    let thief = bus_tcp::connect_saved(support::dial_plain(mallory), &saved).unwrap();
    let Event::Lost(ending) = wait_for(&thief, |event| matches!(event, Event::Lost(_))).await else {
        unreachable!()
    };
    assert_eq!((ending.reason, ending.taken), (Reason::Unknown, None));
    let owner = bus_tcp::connect_saved(support::dial_plain(address), &saved).unwrap();
    wait_for(&owner, |event| matches!(event, Event::Resumed { .. })).await;
}
