//! Every error of a transport means: parked, and resumed. Each errno at each place, each alert of TLS, a stopped process.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub
)]

mod support;

use bus_tcp::carrier::{BoxCarrier, Carrier, Dial, Dialing};
use bus_tcp::limits::Terms;
use bus_tcp::resume::Binding;
use bus_tcp::{Event, connect};
use nix::errno::Errno;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use support::proxy::Proxy;
use support::{Rig, hear, python_client, say, terms, wait_for};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, split};
use tokio::net::TcpListener;

const ERRNOS: [Errno; 30] = [
    Errno::EPERM,
    Errno::EINTR,
    Errno::EIO,
    Errno::ENXIO,
    Errno::EBADF,
    Errno::ENOMEM,
    Errno::EACCES,
    Errno::EINVAL,
    Errno::ENFILE,
    Errno::EMFILE,
    Errno::ENOSPC,
    Errno::EPIPE,
    Errno::EPROTO,
    Errno::EOPNOTSUPP,
    Errno::EADDRINUSE,
    Errno::EADDRNOTAVAIL,
    Errno::ENETDOWN,
    Errno::ENETUNREACH,
    Errno::ENETRESET,
    Errno::ECONNABORTED,
    Errno::ECONNRESET,
    Errno::ENOBUFS,
    Errno::EISCONN,
    Errno::ENOTCONN,
    Errno::ESHUTDOWN,
    Errno::ETIMEDOUT,
    Errno::ECONNREFUSED,
    Errno::EHOSTDOWN,
    Errno::EHOSTUNREACH,
    Errno::ENODEV,
];

/// Where the next error strikes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Connect,
    Read,
    Write,
}

type Plan = Arc<Mutex<VecDeque<(Place, Errno)>>>;

struct FaultyDial<D>(D, Plan);

struct Faulty {
    io: BoxCarrier,
    plan: Plan,
    /// After the handshake of the session, so that each error meets a session that lives.
    reads: u32,
    writes: u32,
}

fn strike(plan: &Plan, place: Place) -> Option<io::Error> {
    let mut plan = plan.lock().unwrap();
    let (_, errno) = plan.front().copied().filter(|(next, _)| *next == place)?;
    plan.pop_front();
    Some(io::Error::from_raw_os_error(errno as i32))
}

impl<D: Dial> Dial for FaultyDial<D> {
    fn dial<'a>(&'a mut self, hint: Option<&'a str>) -> Dialing<'a> {
        if let Some(error) = strike(&self.1, Place::Connect) {
            return Box::pin(async move { Err(error) });
        }
        let plan = self.1.clone();
        let dialing = self.0.dial(hint);
        Box::pin(async move {
            Ok(Box::new(Faulty {
                io: dialing.await?,
                plan,
                reads: 0,
                writes: 0,
            }) as BoxCarrier)
        })
    }
}

impl Carrier for Faulty {
    fn binding(&self) -> Option<Binding> {
        self.io.binding()
    }
}

impl AsyncRead for Faulty {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.reads += 1;
        if self.reads > 4
            && let Some(error) = strike(&self.plan, Place::Read)
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Faulty {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writes += 1;
        if self.writes > 2
            && let Some(error) = strike(&self.plan, Place::Write)
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn every_errno_at_every_place_is_a_resumption() {
    let rig = Rig::plain().await;
    let plan: Plan = Plan::default();
    let client = connect(
        FaultyDial(support::dial_plain(rig.address), plan.clone()),
        terms(),
    )
    .unwrap();
    let host = rig.listener.accept().await.unwrap();
    wait_for(&client, |event| *event == Event::Opened).await;
    for errno in ERRNOS {
        for place in [Place::Read, Place::Connect, Place::Write] {
            plan.lock().unwrap().push_back((place, errno));
        }
    }
    let watch = client.watch();
    let ((near_read, near_write), (far_read, far_write)) = (split(client), split(host));
    let talk = async {
        tokio::join!(
            say(near_write, 2_500_000, 1_000, Duration::from_millis(10)),
            say(far_write, 2_500_000, 1_000, Duration::from_millis(10)),
            hear(near_read, 2_500_000),
            hear(far_read, 2_500_000)
        );
    };
    tokio::time::timeout(Duration::from_secs(120), talk)
        .await
        .unwrap();
    assert!(
        plan.lock().unwrap().is_empty(),
        "not all were met: {:?}",
        plan.lock().unwrap()
    );
    assert!(
        watch.stats().resumptions >= ERRNOS.len() as u64,
        "{:?}",
        watch.stats()
    );
}

#[tokio::test]
async fn every_alert_is_a_broken_link() {
    let rig = Rig::tls().await;
    let proxy = Proxy::to(rig.address).await;
    let alerts = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut client, mut host) = rig.session(proxy.address, terms()).await;
    wait_for(&client, |event| *event == Event::Opened).await;
    proxy.retarget(alerts.local_addr().unwrap());
    proxy.cut();
    client.write_all(b"x").await.unwrap();
    // All that are assigned, and some that are not; fatal, and as a warning.
    for code in 0..=121_u8 {
        let next = async {
            loop {
                tokio::select! {
                    accepted = alerts.accept() => return accepted.unwrap().0,
                    () = tokio::time::sleep(Duration::from_millis(2)) => client.connect_now(),
                }
            }
        };
        let mut stream = tokio::time::timeout(Duration::from_secs(10), next).await.unwrap();
        let mut hello = [0; 100];
        stream.read_exact(&mut hello).await.unwrap();
        stream
            .write_all(&[21, 3, 3, 0, 2, 2 - (code & 1), code])
            .await
            .unwrap();
    }
    proxy.retarget(rig.address);
    drop(alerts);
    wait_for(&client, |event| matches!(event, Event::Resumed { .. })).await;
    let mut got = [0];
    host.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"x");
}

/// A process that stands still for so long; its window is `window`.
async fn stopped(long: Duration, window: u64) {
    let rig = Rig::plain().await;
    let Some(child) = python_client(rig.address.port(), 300_000, window) else {
        return;
    };
    let host = rig.listener.accept().await.unwrap();
    let watch = host.watch();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    let (read, write) = split(host);
    let talk = tokio::spawn(async {
        tokio::join!(
            say(write, 100_000, 1_000, Duration::from_millis(10)),
            hear(read, 300_000)
        )
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
    tokio::time::sleep(long).await;
    nix::sys::signal::kill(pid, nix::sys::signal::SIGCONT).unwrap();
    tokio::time::timeout(Duration::from_secs(60), talk)
        .await
        .unwrap()
        .unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("100000 "));
    assert!(watch.stats().resumptions > 0, "{:?}", watch.stats());
}

#[tokio::test]
async fn a_stopped_process_is_parked_and_goes_on() {
    stopped(Duration::from_secs(3), 10).await;
}

#[tokio::test]
#[ignore = "the real time: half a minute"]
async fn a_process_that_is_stopped_for_30_seconds_goes_on() {
    stopped(Duration::from_secs(30), 60).await;
}

#[tokio::test]
async fn a_host_that_slept_hears_what_came_before_it_judges() {
    // The host's runtime does nothing for longer than any silence allowed: what came meanwhile is read first.
    let rig = Rig::tls().await;
    let terms = Terms {
        heartbeat: Duration::from_millis(100),
        dead_after: Duration::from_millis(400),
        ..terms()
    };
    let (mut client, mut host) = rig.session(rig.address, terms).await;
    client.write_all(b"a").await.unwrap();
    host.read_exact(&mut [0]).await.unwrap();
    std::thread::sleep(Duration::from_secs(1));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(client.stats().resumptions, 0, "both ends were still there");
    client.write_all(b"b").await.unwrap();
    host.read_exact(&mut [0]).await.unwrap();
}
