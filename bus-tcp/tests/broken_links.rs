//! A session over a relay that fails in all ways: every byte once and in order, counted. Times are a tenth of the usual ones;
//! the campaigns (`--ignored`) take the real ones.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub
)]

mod support;

use bus_tcp::frame::Reason;
use bus_tcp::limits::Terms;
use bus_tcp::runtime::SessionLost;
use bus_tcp::{Event, Listener, Session, connect_saved};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use support::proxy::Proxy;
use support::{Rig, byte, converse, hear, options, pattern, python_client, say, terms, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// SplitMix64.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 11
}

async fn random_cuts(cuts: u64, tls: bool) {
    let rig = if tls { Rig::tls().await } else { Rig::plain().await };
    let proxy = Proxy::to(rig.address).await;
    let mut seed = cuts;
    *proxy.faults.lasts.lock().unwrap() = Box::new(move || (random(&mut seed) % 40_000) as i64);
    let faults = proxy.faults.clone();
    let (client, host) = if tls {
        rig.session(proxy.address, terms()).await
    } else {
        rig.plain_session(proxy.address, terms()).await
    };
    let (watch, far_watch) = (client.watch(), host.watch());
    // Until there were so many cuts, both sides talk.
    let ((mut near_read, mut near_write), (mut far_read, mut far_write)) = (split(client), split(host));
    let enough = || faults.cuts.load(SeqCst) >= cuts;
    let talk = async |to: &mut tokio::io::WriteHalf<Session>| {
        let mut at = 0;
        while !enough() {
            to.write_all(&pattern(at, 5_000)).await.unwrap();
            at += 5_000;
            tokio::time::sleep(ms(1)).await;
        }
        to.shutdown().await.unwrap();
        at
    };
    let listen = async |from: &mut tokio::io::ReadHalf<Session>| {
        let mut buf = vec![0; 30_000];
        let mut at = 0;
        loop {
            let count = from.read(&mut buf).await.unwrap();
            if count == 0 {
                return at;
            }
            for got in &buf[..count] {
                assert_eq!(*got, byte(at));
                at += 1;
            }
        }
    };
    let (said, answered, heard, read) = tokio::join!(
        talk(&mut near_write),
        talk(&mut far_write),
        listen(&mut far_read),
        listen(&mut near_read)
    );
    assert_eq!((said, answered), (heard, read));
    let (near, far) = (watch.stats(), far_watch.stats());
    eprintln!(
        "{} cuts, {said} and {answered} bytes; {near:?}",
        faults.cuts.load(SeqCst)
    );
    assert_eq!(
        (near.received, far.received),
        (answered, said),
        "a byte counts once"
    );
    assert!(near.resumptions > cuts / 10, "{near:?}");
}

#[tokio::test]
async fn a_hundred_cuts_at_any_byte_of_tls() {
    random_cuts(100, true).await;
}

#[tokio::test]
async fn a_hundred_cuts_at_any_byte_without_encryption() {
    random_cuts(100, false).await;
}

#[tokio::test]
#[ignore = "minutes"]
async fn a_thousand_cuts_at_any_byte() {
    random_cuts(1000, true).await;
}

/// Nothing gets through, in these directions, for so long; nobody is told.
async fn silence(up: bool, down: bool, long: Duration, terms: Terms) {
    let rig = Rig::tls().await;
    let proxy = Proxy::to(rig.address).await;
    let (client, host) = rig.session(proxy.address, terms).await;
    let watch = client.watch();
    let faults = proxy.faults.clone();
    let talk = tokio::spawn(converse(client, host, 400_000, ms(20)));
    tokio::time::sleep(ms(200)).await;
    faults.up_silent.store(up, SeqCst);
    faults.down_silent.store(down, SeqCst);
    tokio::time::sleep(long).await;
    faults.up_silent.store(false, SeqCst);
    faults.down_silent.store(false, SeqCst);
    // What was lost of TLS's bytes is lost for that connection.
    tokio::time::timeout(Duration::from_secs(60), talk)
        .await
        .unwrap()
        .unwrap();
    assert!(watch.stats().resumptions > 0);
}

#[tokio::test]
async fn a_link_that_is_silent_in_one_direction_is_left() {
    tokio::join!(
        silence(true, false, ms(2500), terms()),
        silence(false, true, ms(2500), terms())
    );
}

#[tokio::test]
async fn outages_of_a_tenth_of_1_5_15_and_50_seconds() {
    for long in [100, 500, 1500, 5000] {
        silence(true, true, ms(long), terms()).await;
    }
}

/// A link of so many bytes a second, of which each connection lives so long.
async fn slow_link(rate: u64, lives: Duration, count: u64, terms: Terms) {
    let rig = Rig::tls().await;
    let proxy = Proxy::to(rig.address).await;
    proxy.faults.rate.store(rate, SeqCst);
    let dial = rig.dial(proxy.address, &terms).with_records_of(4096).unwrap();
    let client = bus_tcp::connect(dial, terms).unwrap();
    let host = rig.listener.accept().await.unwrap();
    let watch = client.watch();
    let talk = tokio::spawn(converse(client, host, count, Duration::ZERO));
    while !talk.is_finished() {
        tokio::time::sleep(lives).await;
        proxy.cut();
    }
    talk.await.unwrap();
    assert!(watch.stats().resumptions >= 3, "{:?}", watch.stats());
}

#[tokio::test]
async fn a_link_of_64_kbit_that_lives_half_a_second_at_a_time_makes_progress() {
    // Ten times as fast, and as short.
    slow_link(80_000, ms(500), 150_000, terms()).await;
}

#[tokio::test]
#[ignore = "the real times: a minute"]
async fn a_link_of_64_kbit_that_lives_five_seconds_at_a_time_makes_progress() {
    slow_link(8_000, ms(5000), 100_000, Terms::DEFAULT).await;
}

#[tokio::test]
async fn a_flipped_bit_is_a_broken_link_and_nothing_more() {
    let rig = Rig::tls().await;
    let proxy = Proxy::to(rig.address).await;
    for after in [3000, 9000, 70_000] {
        let (client, host) = rig.session(proxy.address, terms()).await;
        let watch = client.watch();
        proxy.faults.flip_after.store(after, SeqCst);
        converse(client, host, 100_000, Duration::ZERO).await;
        assert_eq!(watch.stats().resumptions, 1);
    }
}

/// Counted, not timed: what waits for what, from the first byte of a new connection to RESUMED. The fourth flight is the host's
/// answer; with that of TCP these are three round trips.
#[tokio::test]
async fn a_resumption_waits_for_three_round_trips() {
    let rig = Rig::tls().await;
    let proxy = Proxy::to(rig.address).await;
    let (client, _host) = rig.session(proxy.address, terms()).await;
    // So long that what one side sends at once stays together.
    proxy.faults.delay.store(25, SeqCst);
    for _ in 0..5 {
        proxy.cut();
        wait_for(&client, |event| matches!(event, Event::Parked { .. })).await;
        wait_for(&client, |event| matches!(event, Event::Resumed { .. })).await;
        assert_eq!(proxy.faults.flights.load(SeqCst), 4);
    }
}

/// Median time from a cut to the resumption, at 25 ms one way.
#[tokio::test]
#[ignore = "measures: wants the machine for itself"]
async fn a_resumption_takes_three_round_trips() {
    let rig = Rig::tls().await;
    let proxy = Proxy::to(rig.address).await;
    proxy.faults.delay.store(25, SeqCst);
    let (client, _host) = rig.session(proxy.address, Terms::DEFAULT).await;
    wait_for(&client, |event| *event == Event::Opened).await;
    let mut times = Vec::new();
    for _ in 0..15 {
        tokio::time::sleep(ms(60)).await;
        let before = proxy.faults.connections.load(SeqCst);
        proxy.cut();
        wait_for(&client, |event| matches!(event, Event::Parked { .. })).await;
        // The backoff is not part of it: the attempt begins when the client is told to try now.
        let began = Instant::now();
        client.connect_now();
        wait_for(&client, |event| matches!(event, Event::Resumed { .. })).await;
        times.push(began.elapsed());
        assert!(proxy.faults.connections.load(SeqCst) > before);
    }
    times.sort();
    eprintln!("resumptions at 50 ms: {times:?}");
    assert!(times[7] >= ms(150), "less than three round trips: {times:?}");
    assert!(times[7] < ms(170), "{times:?}");
}

#[tokio::test]
async fn a_host_that_is_restarted_with_saved_state_goes_on() {
    let rig = Rig::tls().await;
    let proxy = Proxy::to(rig.address).await;
    let (client, host) = rig.session(proxy.address, terms()).await;
    let (client_read, client_write) = split(client);
    let said = tokio::spawn(say(client_write, 600_000, 10_000, ms(5)));
    let heard = tokio::spawn(hear(client_read, 3_000_000));
    let mut host = host;
    let (mut read, mut wrote) = (0_u64, 0_u64);
    let Rig {
        mut listener,
        host_key,
        client_key,
        ..
    } = rig;
    for _ in 0..5 {
        let mut buf = vec![0; 20_000];
        let until = Instant::now() + ms(100);
        while Instant::now() < until {
            if wrote < 2_500_000 {
                host.write_all(&pattern(wrote, 500)).await.unwrap();
                wrote += 500;
            }
            let count = tokio::time::timeout(ms(20), host.read(&mut buf)).await;
            for got in &buf[..count.map_or(0, Result::unwrap)] {
                assert_eq!(*got, byte(read));
                read += 1;
            }
        }
        // This process is the next one, too: all that it keeps are these bytes.
        let saved = listener.save().unwrap();
        drop(host);
        listener = Listener::restore(&saved, options()).unwrap();
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let identities = bus_tcp::tls::Identities::default().pin(client_key.pin(), "robot");
        let door =
            bus_tcp::tls::TlsDoor::raw_key(bus_tcp::tls::provider(), socket, &host_key, identities).unwrap();
        listener.open(door);
        proxy.retarget(address);
        proxy.cut();
        host = listener.accept().await.unwrap();
        assert_eq!(host.peer(), Some("robot"));
    }
    host.write_all(&pattern(wrote, (3_000_000 - wrote) as usize))
        .await
        .unwrap();
    let (mut host_read, mut host_write) = split(host);
    let rest = tokio::spawn(async move {
        let mut buf = vec![0; 20_000];
        loop {
            let count = host_read.read(&mut buf).await.unwrap();
            if count == 0 {
                return read;
            }
            for got in &buf[..count] {
                assert_eq!(*got, byte(read));
                read += 1;
            }
        }
    });
    host_write.shutdown().await.unwrap();
    said.await.unwrap();
    heard.await.unwrap();
    assert_eq!(rest.await.unwrap(), 600_000);
}

#[tokio::test]
async fn a_client_that_is_restarted_with_saved_state_goes_on() {
    let rig = Rig::plain().await;
    let (mut client, host) = rig.plain_session(rig.address, terms()).await;
    let (host_read, host_write) = split(host);
    let said = tokio::spawn(say(host_write, 200_000, 3_000, ms(3)));
    let heard = tokio::spawn(hear(host_read, 50_000));
    let mut at = 0;
    let mut buf = vec![0; 5_000];
    for part in 0..5 {
        for piece in 0..10 {
            client
                .write_all(&pattern(part * 10_000 + piece * 1000, 1000))
                .await
                .unwrap();
            let count = client.read(&mut buf).await.unwrap();
            for got in &buf[..count] {
                assert_eq!(*got, byte(at));
                at += 1;
            }
        }
        let saved = client.save().unwrap();
        client = connect_saved(support::dial_plain(rig.address), &saved).unwrap();
    }
    let (mut client_read, mut client_write) = split(client);
    let rest = async {
        loop {
            let count = client_read.read(&mut buf).await.unwrap();
            if count == 0 {
                return at;
            }
            for got in &buf[..count] {
                assert_eq!(*got, byte(at));
                at += 1;
            }
        }
    };
    let (_, all) = tokio::join!(async { client_write.shutdown().await.unwrap() }, rest);
    assert_eq!(all, 200_000);
    said.await.unwrap();
    heard.await.unwrap();
}

#[tokio::test]
async fn a_client_that_comes_too_late_learns_what_was_taken() {
    let rig = Rig::tls().await;
    let proxy = Proxy::to(rig.address).await;
    let short = Terms {
        window: ms(300),
        dead_after: ms(300),
        heartbeat: ms(100),
        ..terms()
    };
    let (mut client, mut host) = rig.session(proxy.address, short).await;
    client.write_all(&pattern(0, 5_000)).await.unwrap();
    let mut buf = vec![0; 3_000];
    host.read_exact(&mut buf).await.unwrap();
    proxy.faults.closed.store(true, SeqCst);
    proxy.cut();
    client.write_all(&pattern(5_000, 4_000)).await.unwrap();
    wait_for(&client, |event| *event == Event::Fenced).await;
    assert!(client.is_fenced());
    let lost = wait_for(&host, |event| matches!(event, Event::Lost(_))).await;
    let Event::Lost(ending) = lost else { unreachable!() };
    assert_eq!(ending.reason, Reason::Expired);
    let rest = host.read(&mut buf).await;
    assert!(rest.is_err(), "what the client hears was not taken is not read");
    proxy.faults.closed.store(false, SeqCst);
    let error = client.read(&mut buf).await.unwrap_err();
    let lost = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<SessionLost>())
        .unwrap();
    let ending = lost.ending.unwrap();
    assert_eq!(
        (ending.reason, ending.taken, ending.produced),
        (Reason::Expired, Some(3_000), 9_000)
    );
    assert!(client.write(&[0]).await.is_err());
}

#[tokio::test]
async fn a_session_that_is_dropped_is_over_for_the_other_side() {
    let rig = Rig::tls().await;
    let (client, mut host) = rig.session(rig.address, terms()).await;
    drop(client);
    let error = host.read(&mut [0; 10]).await.unwrap_err();
    assert!(error.to_string().contains("Dropped"), "{error}");
    let (mut client, host) = rig.session(rig.address, terms()).await;
    drop(host);
    assert!(
        client
            .read(&mut [0; 10])
            .await
            .unwrap_err()
            .to_string()
            .contains("Dropped")
    );
}

/// Whoever is dropped without a connection says so on the next: nobody waits for a window, here of an hour.
#[tokio::test]
async fn a_session_that_is_dropped_while_its_link_is_cut_is_over_when_it_is_back() {
    let terms = Terms {
        window: Duration::from_secs(3600),
        ..terms()
    };
    let rig = Rig::tls().await;
    let proxy = Proxy::to(rig.address).await;
    for host_leaves in [false, true] {
        let (client, host) = rig.session(proxy.address, terms).await;
        proxy.faults.closed.store(true, SeqCst);
        proxy.cut();
        wait_for(&client, |event| matches!(event, Event::Parked { .. })).await;
        wait_for(&host, |event| matches!(event, Event::Parked { .. })).await;
        let (leaves, mut stays) = if host_leaves {
            (host, client)
        } else {
            (client, host)
        };
        drop(leaves);
        tokio::time::sleep(ms(300)).await;
        proxy.faults.closed.store(false, SeqCst);
        let read = tokio::time::timeout(Duration::from_secs(20), stays.read(&mut [0; 10])).await;
        let error = read.expect("the end").unwrap_err();
        assert!(error.to_string().contains("Dropped"), "{error}");
    }
}

/// The same for a client that does not know yet whether it has a session.
#[tokio::test]
async fn a_client_that_is_dropped_before_it_is_welcomed_leaves_no_session() {
    let terms = Terms {
        window: Duration::from_secs(3600),
        ..terms()
    };
    let rig = Rig::tls().await;
    let proxy = Proxy::to(rig.address).await;
    proxy.faults.delay.store(50, SeqCst);
    let client = bus_tcp::connect(rig.dial(proxy.address, &terms), terms).unwrap();
    let mut host = rig.listener.accept().await.unwrap();
    assert_eq!(client.id(), None, "the answer is on its way");
    drop(client);
    let read = tokio::time::timeout(Duration::from_secs(20), host.read(&mut [0; 10])).await;
    let error = read.expect("the end").unwrap_err();
    assert!(error.to_string().contains("Dropped"), "{error}");
}

#[tokio::test]
async fn what_is_not_committed_is_not_acknowledged() {
    let listener = Listener::new(bus_tcp::ListenOptions {
        manual_commit: true,
        ..options()
    })
    .unwrap();
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    listener.open(bus_tcp::carrier::PlainDoor::trusted(socket, "robot"));
    let mut client = bus_tcp::connect(support::dial_plain(address), terms()).unwrap();
    let mut host = listener.accept().await.unwrap();
    client.write_all(&pattern(0, 5_000)).await.unwrap();
    let mut buf = vec![0; 5_000];
    host.read_exact(&mut buf).await.unwrap();
    tokio::time::sleep(ms(200)).await;
    assert_eq!(client.stats().unacked, 5_000);
    host.commit(3_000);
    tokio::time::sleep(ms(200)).await;
    assert_eq!(client.stats().unacked, 2_000);
    host.commit(5_000);
    client.shutdown().await.unwrap();
}

/// The client in Python, written from the document alone, over a link that is cut all the time.
#[tokio::test]
async fn a_client_written_from_the_document_alone_loses_nothing() {
    let rig = Rig::plain().await;
    let proxy = Proxy::to(rig.address).await;
    let mut seed = 5;
    *proxy.faults.lasts.lock().unwrap() = Box::new(move || (random(&mut seed) % 60_000) as i64);
    let Some(child) = python_client(proxy.address.port(), 400_000, 10) else {
        return;
    };
    let host = rig.listener.accept().await.unwrap();
    let watch = host.watch();
    let (read, write) = split(host);
    tokio::join!(hear(read, 400_000), say(write, 300_000, 4_000, ms(2)));
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let words: Vec<_> = text.split_whitespace().collect();
    let digest: [u8; 32] = sha2::Digest::finalize(sha2::Digest::chain_update(
        <sha2::Sha256 as sha2::Digest>::new(),
        pattern(0, 300_000),
    ))
    .into();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((words[0], words[1]), ("300000", hex.as_str()));
    assert!(words[2].parse::<u64>().unwrap() > 3, "{text}");
    assert!(watch.stats().resumptions > 3);
}

/// Bytes on the wire beyond the stream's: 12 for each DATA frame and 22 for its TLS record; ACK, PING and PONG apart.
#[tokio::test]
async fn a_data_frame_costs_34_bytes_on_the_wire() {
    const FRAMES: u64 = 200;
    let rig = Rig::tls().await;
    let proxy = Proxy::to(rig.address).await;
    let (mut client, mut host) = rig.session(proxy.address, Terms::DEFAULT).await;
    client.write_all(&[byte(0)]).await.unwrap();
    host.read_exact(&mut [0]).await.unwrap();
    tokio::time::sleep(ms(100)).await;
    let before = proxy.faults.bytes.load(SeqCst);
    let payload = FRAMES * bus_tcp::limits::MAX_DATA as u64;
    let began = Instant::now();
    let read = async {
        let mut left = payload;
        let mut buf = vec![0; 60_000];
        while left > 0 {
            left -= host.read(&mut buf).await.unwrap() as u64;
        }
    };
    let bytes = pattern(1, payload as usize);
    let ((), written) = tokio::join!(read, client.write_all(&bytes));
    written.unwrap();
    tokio::time::sleep(ms(100)).await;
    let overhead = proxy.faults.bytes.load(SeqCst) - before - payload;
    // At most one frame more for each time that credit or the replay was short, an ACK of 20 bytes for 64 KiB or 25 ms.
    let acks = payload / (64 * 1024) + 1 + began.elapsed().as_millis() as u64 / 25;
    let most = (FRAMES + acks) * 34 + acks * 42 + 4 * 34;
    eprintln!(
        "{overhead} bytes of overhead for {FRAMES} frames: {:.1} each",
        overhead as f64 / FRAMES as f64
    );
    assert!(overhead <= most, "{overhead} > {most}");
}
