//! A relay in between that delays, slows down, goes silent in one direction, flips bits, and cuts at any byte.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub struct Faults {
    /// Milliseconds one way.
    pub delay: AtomicU64,
    /// Bytes in a second; 0: as many as there are.
    pub rate: AtomicU64,
    pub up_silent: AtomicBool,
    pub down_silent: AtomicBool,
    /// Nobody is let in.
    pub closed: AtomicBool,
    /// The byte that comes when so many have passed upwards is flipped. Negative: none.
    pub flip_after: AtomicI64,
    /// How many bytes the next connection lasts, in both directions together. Negative: for ever.
    pub lasts: Mutex<Box<dyn FnMut() -> i64 + Send>>,
    pub connections: AtomicU64,
    /// Times that the newest connection's bytes changed their direction, the first counted: 1 is upwards, 2 down.
    pub flights: AtomicU64,
    pub cuts: AtomicU64,
    pub bytes: AtomicU64,
    target: Mutex<SocketAddr>,
    cut: watch::Sender<u64>,
}

pub struct Proxy {
    pub address: SocketAddr,
    pub faults: Arc<Faults>,
}

impl Proxy {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let faults = Arc::new(Faults {
            delay: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            up_silent: AtomicBool::new(false),
            down_silent: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            flip_after: AtomicI64::new(-1),
            lasts: Mutex::new(Box::new(|| -1)),
            connections: AtomicU64::new(0),
            flights: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            target: Mutex::new(target),
            cut: watch::channel(0).0,
        });
        let shared = faults.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if shared.closed.load(SeqCst) {
                    let _ = near.set_zero_linger();
                    continue;
                }
                let target = *shared.target.lock().unwrap();
                tokio::spawn(relay(near, target, shared.clone()));
            }
        });
        Self { address, faults }
    }

    /// From now on connections go there.
    pub fn retarget(&self, target: SocketAddr) {
        *self.faults.target.lock().unwrap() = target;
    }

    /// All connections end now, with RST.
    pub fn cut(&self) {
        self.faults.cut.send_modify(|cuts| *cuts += 1);
    }
}

async fn relay(near: TcpStream, target: SocketAddr, faults: Arc<Faults>) {
    let delay = Duration::from_millis(faults.delay.load(SeqCst));
    // The three-way handshake takes a round trip as well.
    tokio::time::sleep(delay * 2).await;
    let Ok(far) = TcpStream::connect(target).await else {
        return;
    };
    faults.connections.fetch_add(1, SeqCst);
    faults.flights.store(0, SeqCst);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    let lasts = (faults.lasts.lock().unwrap())();
    let left = Arc::new(AtomicI64::new(if lasts < 0 { i64::MAX } else { lasts }));
    let mut cut = faults.cut.subscribe();
    cut.mark_unchanged();
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let up = pass(near_read, far_write, true, faults.clone(), left.clone());
    let down = pass(far_read, near_write, false, faults.clone(), left);
    let (mut up, mut down) = (tokio::spawn(up), tokio::spawn(down));
    tokio::select! {
        _ = &mut up => {}
        _ = &mut down => {}
        _ = cut.changed() => { faults.cuts.fetch_add(1, SeqCst); }
    }
    up.abort();
    down.abort();
}

/// One direction. When it is over both sockets are dropped, with what is unread: RST.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    up: bool,
    faults: Arc<Faults>,
    left: Arc<AtomicI64>,
) {
    let (queue, mut delayed) = tokio::sync::mpsc::unbounded_channel::<(tokio::time::Instant, Vec<u8>)>();
    let late = Duration::from_millis(faults.delay.load(SeqCst));
    let shared = faults.clone();
    let writer = async move {
        while let Some((at, mut bytes)) = delayed.recv().await {
            tokio::time::sleep_until(at).await;
            let keep = left.fetch_sub(bytes.len() as i64, SeqCst);
            let over = keep < bytes.len() as i64;
            bytes.truncate(keep.max(0) as usize);
            let silent = if up {
                &shared.up_silent
            } else {
                &shared.down_silent
            };
            if !silent.load(SeqCst) && to.write_all(&bytes).await.is_err() {
                return;
            }
            shared.bytes.fetch_add(bytes.len() as u64, SeqCst);
            // Odd numbers are flights upwards.
            if (shared.flights.load(SeqCst) % 2 == 1) != up {
                shared.flights.fetch_add(1, SeqCst);
            }
            if over {
                shared.cuts.fetch_add(1, SeqCst);
                return;
            }
        }
    };
    let reader = async move {
        let mut buf = vec![0; 16_384];
        loop {
            let rate = faults.rate.load(SeqCst);
            let most = if rate == 0 {
                buf.len()
            } else {
                (rate / 50).max(1) as usize
            };
            let Ok(count) = from.read(&mut buf[..most]).await else {
                return;
            };
            if count == 0 {
                return;
            }
            let mut bytes = buf[..count].to_vec();
            if up {
                let at = faults.flip_after.fetch_sub(count as i64, SeqCst);
                if (0..count as i64).contains(&at) {
                    bytes[at as usize] ^= 4;
                }
            }
            // Now, and not when it was read: the clock of the delay is the network's.
            let at = tokio::time::Instant::now() + late;
            if queue.send((at, bytes)).is_err() {
                return;
            }
            if let Some(micros) = (1_000_000 * count as u64).checked_div(rate) {
                tokio::time::sleep(Duration::from_micros(micros)).await;
            }
        }
    };
    tokio::select! {
        () = writer => {}
        () = async { reader.await; tokio::time::sleep(Duration::from_millis(50) + late).await } => {}
    }
}
