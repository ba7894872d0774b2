//! One user's flood of broadcasts, and another user's reader that is slower than the flood: the reader stays, and gets all
//! of it; the flooder is slowed down; somebody else is served meanwhile as if nothing were.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub,
    reason = "a test measures by the clock"
)]

mod support;

use bus_wire::{Framer, MessageBuilder, MessageType, limits};
use bytes::Bytes;
use nix::unistd::geteuid;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use support::Bus;
use support::process::Work;
use support::raw::call;

const READER: u32 = 2001;
const FLOODER: u32 = 2002;
const OTHER: u32 = 2003;
/// Bytes that may wait for a peer, and bytes of a broadcast.
const LIMIT: u64 = 8_000_000;
const LENGTH: usize = 50_000;
/// How long the flood lasts.
const FLOOD: Duration = Duration::from_secs(8);
/// Bytes in a second that the reader reads: a little more than it must.
const RATE: u64 = 5_000_000;

/// A connection of another user than the one who runs the test. Only this thread is that user, from now on.
fn connect_as(bus: &Bus, uid: u32) -> (UnixStream, Framer) {
    become_user(uid);
    let mut stream = UnixStream::connect(bus.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let identity: String = uid
        .to_string()
        .bytes()
        .map(|digit| format!("{digit:02x}"))
        .collect();
    stream
        .write_all(format!("\0AUTH EXTERNAL {identity}\r\nBEGIN\r\n").as_bytes())
        .unwrap();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).unwrap();
    }
    stream.write_all(&call("Hello", |_| ())).unwrap();
    (stream, Framer::new(limits::MAX_MESSAGE))
}

#[expect(unsafe_code, reason = "setresuid of one thread: what libc has is of all")]
fn become_user(uid: u32) {
    // SAFETY: the system call has no memory to do with.
    let result = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, uid, uid, uid) };
    assert_eq!(result, 0);
}

/// Reads until a message of this type has come, which is returned as its number if it is a signal of the flood.
fn next_number(stream: &mut UnixStream, framer: &mut Framer, chunk: &mut [u8]) -> Option<Vec<u64>> {
    let length = match stream.read(chunk) {
        Ok(length) => length,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
        Err(error) => panic!("the reader gets nothing any more: {error}"),
    };
    if length == 0 {
        return None;
    }
    framer.push(Bytes::copy_from_slice(&chunk[..length]), []);
    let mut numbers = Vec::new();
    while let Some(framed) = framer.next().unwrap() {
        if framed.message.message_type() == MessageType::Signal && framed.message.member() == Some("Flood") {
            numbers.push(framed.message.body().read_u64().unwrap());
        }
    }
    Some(numbers)
}

/// Reads at its rate, until this number has come. How many came.
fn read_slowly(bus: &Bus, begun: std::sync::mpsc::Sender<()>, last: std::sync::mpsc::Receiver<u64>) -> u64 {
    let (mut stream, mut framer) = connect_as(bus, READER);
    let rule = call("AddMatch", |body| {
        body.str("member='Flood'");
    });
    stream.write_all(&rule).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    begun.send(()).unwrap();
    let mut chunk = vec![0; 50_000];
    let (mut expected, mut end) = (0, None);
    let start = Instant::now();
    let mut taken: u64 = 0;
    loop {
        let numbers = next_number(&mut stream, &mut framer, &mut chunk);
        let numbers = numbers.unwrap_or_else(|| panic!("the reader is disconnected after {expected}"));
        for number in numbers {
            assert_eq!(number, expected, "each number once, and in order");
            expected += 1;
            taken += LENGTH as u64;
        }
        end = end.or_else(|| last.try_recv().ok());
        if end == Some(expected) {
            return expected;
        }
        let due = start + Duration::from_millis(taken * 1000 / RATE);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// Broadcasts as fast as the bus reads. How many that were.
fn flood(bus: &Bus) -> u64 {
    let (mut stream, _framer) = connect_as(bus, FLOODER);
    let text = vec![7; LENGTH];
    let start = Instant::now();
    let mut number = 0;
    while start.elapsed() < FLOOD {
        let signal = MessageBuilder::signal("/", "org.busdaemon.Fair1", "Flood").serial(7_u32);
        let signal = signal.body(|w| {
            w.u64(number).byte_slice(&text);
        });
        stream.write_all(&signal.build().unwrap()).unwrap();
        number += 1;
    }
    number
}

/// The longest that a new connection of somebody else took until it had its name.
fn come_and_go(bus: &Bus) -> Duration {
    let start = Instant::now();
    let mut longest = Duration::ZERO;
    while start.elapsed() < FLOOD - Duration::from_secs(1) {
        let before = Instant::now();
        let (mut stream, mut framer) = connect_as(bus, OTHER);
        let mut chunk = [0; 4096];
        loop {
            let length = stream.read(&mut chunk).unwrap();
            assert!(length > 0);
            framer.push(Bytes::copy_from_slice(&chunk[..length]), []);
            if framer.next().unwrap().is_some() {
                break;
            }
        }
        longest = longest.max(before.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    longest
}

fn bus_for_all() -> Bus {
    let bus = Bus::start_with(&format!(
        "<limit name='max_outgoing_bytes'>{LIMIT}</limit><policy context='mandatory'><allow user='*'/></policy>"
    ));
    for path in [bus.socket().parent().unwrap(), &bus.socket()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    bus
}

/// Broadcasts more than its share at once, and one more message, which waits for most of a second; and leaves.
fn leave_while_a_message_waits(bus: &Bus) {
    let (mut stream, _framer) = connect_as(bus, FLOODER);
    for length in [4_000_000, 3_500_000, 10] {
        let text = vec![7; length];
        let signal = MessageBuilder::signal("/", "org.busdaemon.Fair1", "Flood").serial(7_u32);
        let signal = signal.body(|w| {
            w.byte_slice(&text);
        });
        stream.write_all(&signal.build().unwrap()).unwrap();
    }
}

/// The kernel tells of an end again and again.
#[test]
fn who_leaves_while_its_message_waits_costs_nothing_meanwhile() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can be several users");
        return;
    }
    let bus = bus_for_all();
    let reader = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut stream, framer) = connect_as(&bus, READER);
            let rule = call("AddMatch", |body| {
                body.str("member='Flood'");
            });
            stream.write_all(&rule).unwrap();
            std::thread::sleep(Duration::from_millis(300));
            (stream, framer)
        });
        let reader = reader.join().unwrap();
        scope.spawn(|| leave_while_a_message_waits(&bus)).join().unwrap();
        reader
    });
    let open = bus.descriptors().len();
    let before = Work::of(&bus);
    std::thread::sleep(Duration::from_millis(400));
    let done = Work::of(&bus).since(before);
    eprintln!("while the end waited: {done:?}");
    assert!(done.cpu_ticks <= 10, "{done:?} in 400 ms");
    support::wait_until("its message has come to its turn, and its end", || {
        bus.descriptors().len() < open
    });
    drop(reader);
}

/// Connections of a process that is gone, each with a message that would wait for seconds, are not kept for that long.
#[test]
fn connections_that_wait_for_long_go_with_their_process() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can be several users");
        return;
    }
    let bus = bus_for_all();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut stream, framer) = connect_as(&bus, READER);
            let rule = call("AddMatch", |body| {
                body.str("member='Flood'");
            });
            stream.write_all(&rule).unwrap();
            std::thread::sleep(Duration::from_millis(300));
            (stream, framer)
        });
        let _reader = reader.join().unwrap();
        let open = bus.descriptors().len();
        scope
            .spawn(|| {
                let text = vec![7; 1_000_000];
                let signal = |text: &[u8]| {
                    let signal = MessageBuilder::signal("/", "org.busdaemon.Fair1", "Flood").serial(7_u32);
                    let signal = signal.body(|w| {
                        w.byte_slice(text);
                    });
                    signal.build().unwrap()
                };
                let (mut stream, _framer) = connect_as(&bus, FLOODER);
                let mut others: Vec<_> = (0..12).map(|_| connect_as(&bus, FLOODER)).collect();
                // Up to the share, and 0.8 s ahead.
                for _ in 0..7 {
                    stream.write_all(&signal(&text)).unwrap();
                }
                // Each of these reserves a quarter of a second more, so that the last would wait for almost four.
                for (stream, _) in &mut others {
                    stream
                        .set_write_timeout(Some(Duration::from_millis(200)))
                        .unwrap();
                    let _ = stream.write_all(&signal(&text));
                }
            })
            .join()
            .unwrap();
        let start = Instant::now();
        support::wait_until("they are gone", || bus.descriptors().len() <= open);
        let took = start.elapsed();
        eprintln!("gone after {took:?}");
        assert!(took < Duration::from_millis(1800), "{took:?}");
    });
}

#[test]
fn a_slow_reader_of_another_user_outlives_a_flood_of_broadcasts() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can be several users");
        return;
    }
    let bus = bus_for_all();
    let (begun, is_begun) = std::sync::mpsc::channel();
    let (tell, last) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_slowly(&bus, begun, last));
        is_begun.recv().unwrap();
        let other = scope.spawn(|| come_and_go(&bus));
        let flooder = scope.spawn(|| flood(&bus));
        let sent = flooder.join().unwrap();
        tell.send(sent).unwrap();
        let longest = other.join().unwrap();
        let read = reader.join().unwrap();
        eprintln!("{read} of {sent} arrived; a new connection waited {longest:?} at most");
        assert_eq!(read, sent);
        // Half of the limit at once, and then at the pace of a reader that is just live.
        let most = (LIMIT / 2 + FLOOD.as_secs() * (6 << 20)) / LENGTH as u64;
        assert!(sent < most && sent > 200, "{sent}");
    });
}
