//! What receivers that do not read cost: memory, CPU time of each delivery, a bystander's waits, and the pauses of kills and
//! upgrades. `cargo test --release -p bus-cli --test stalled -- --ignored --nocapture`
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::bystander::Bystander;
use support::scene::{Fault, Scene};
use support::stalled::{Memory, Role, Sender, Stalled, stat};
use support::{Bus, wait_until};

/// What each receiver has waiting, just under the usual limit of 127 MiB.
const EACH: u64 = 126 << 20;
/// Bytes that the bus puts before the body of one of [`Sender`]'s messages: 152 at most.
const HEADER: u64 = 152;

/// What is measured.
#[derive(Debug, Clone, Copy)]
struct Case {
    role: Role,
    count: usize,
    /// Bytes of a message beside its header.
    length: usize,
    /// Bytes for each receiver.
    each: u64,
    /// All of them read all the time.
    is_read: bool,
}

impl Case {
    fn messages(self) -> u64 {
        self.each / (self.length as u64 + HEADER)
    }

    fn deliveries(self) -> u64 {
        self.messages() * self.count as u64
    }

    /// Bytes of all bodies, each counted as often as it was sent.
    fn bodies(self) -> u64 {
        let is_shared = self.role != Role::Addressee;
        let sent = if is_shared {
            self.messages()
        } else {
            self.deliveries()
        };
        sent * (self.length as u64 + HEADER)
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
struct Figures {
    /// Nanoseconds of CPU time of keeper and worker for a delivery.
    cpu: f64,
    /// Bytes of memory for a delivery, beside the bodies.
    memory: f64,
}

/// Nanoseconds that keeper and worker have run, as the scheduler counts them.
fn cpu(bus: &Bus) -> u64 {
    let processes = [Some(bus.pid()), bus.worker()];
    let tasks = processes
        .into_iter()
        .flatten()
        .flat_map(|process| std::fs::read_dir(format!("/proc/{process}/task")).unwrap());
    tasks
        .map(|task| {
            let text = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
            text.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        })
        .sum()
}

/// The machine's load: whose waits are measured shares it with others.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap();
    text.split_whitespace().next().unwrap().to_owned()
}

fn is_open(stream: &UnixStream) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap();
    !fds[0].revents().unwrap().contains(PollFlags::POLLHUP)
}

/// Takes all that comes, and checks nothing.
fn swallow(stream: &UnixStream, is_over: &AtomicBool) {
    let mut chunk = vec![0; 1 << 20];
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    while !is_over.load(Ordering::Relaxed) {
        let _ = (&mut &*stream).read(&mut chunk);
    }
}

fn send_all(case: Case, bus: &Bus, receivers: &[Stalled]) {
    let mut sender = Sender::start(bus);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if case.is_read {
            for one in receivers {
                let (stream, is_over) = (one.stream(), &is_over);
                scope.spawn(move || swallow(&stream, is_over));
            }
        }
        for _ in 0..case.messages() {
            match case.role {
                Role::Addressee => {
                    for one in receivers {
                        sender.send_unnoted(Some(&one.unique), case.length);
                    }
                }
                Role::Subscriber | Role::Monitor => sender.send_unnoted(None, case.length),
            }
        }
        sender.settle();
        is_over.store(true, Ordering::Relaxed);
    });
}

/// The pauses of three upgrades and three kills beside those of the idle bus, and that nobody is lost.
fn pauses(scene: &mut Scene, idle: [u64; 2], receivers: &[Stalled]) {
    for (fault, idle) in [Fault::Upgrade, Fault::Kill].into_iter().zip(idle) {
        let mut pauses = [0; 3].map(|_| scene.pause(fault));
        pauses.sort_unstable();
        let verdict = verdict(pauses[1] <= 2 * idle + 2000);
        let memory = Memory::of(&scene.bus).total() >> 20;
        eprintln!("    {fault:?}: {pauses:?} us, idle {idle} us {verdict}; {memory} MB afterwards");
    }
    // What is in no books cannot be checked: so it is only looked whether there is an end.
    for one in receivers {
        assert!(is_open(&one.stream()), "somebody was disconnected");
    }
}

fn verdict(is_right: bool) -> &'static str {
    if is_right {
        "(as it should be)"
    } else {
        "(TOO MUCH)"
    }
}

fn measure(case: Case) -> Figures {
    let mut scene = Scene::over(Bus::start());
    let idle = [Fault::Upgrade, Fault::Kill].map(|fault| {
        let mut pauses = [0; 3].map(|_| scene.pause(fault));
        pauses.sort_unstable();
        pauses[1]
    });
    let receivers: Vec<Stalled> = (0..case.count)
        .map(|_| Stalled::start(&scene.bus, case.role))
        .collect();
    let bystander = Bystander::start(&scene.bus, Duration::from_millis(1));
    let begun = bus_load::clock::now();
    let (before, memory) = (cpu(&scene.bus), Memory::of(&scene.bus).total());
    send_all(case, &scene.bus, &receivers);
    let took = bus_load::clock::now() - begun;
    let deliveries = case.deliveries() as f64;
    let spent = (cpu(&scene.bus) - before) as f64 / deliveries;
    let (load, waits) = (load(), bystander.finish());
    let grown = Memory::of(&scene.bus).total() - memory;
    let figures = Figures {
        cpu: spent,
        memory: (grown as f64 - case.bodies() as f64) / deliveries,
    };
    let kind = if case.is_read { "reading" } else { "stalled" };
    eprintln!(
        "{} {kind} {:?}, {} MiB each in messages of {}: {took:.2?}, CPU {spent:.0} ns a delivery; load {load}, bystander {waits}",
        case.count,
        case.role,
        case.each >> 20,
        case.length,
    );
    if !case.is_read {
        eprintln!(
            "    memory: {} MB, of which bodies {} MB; {:.1} B a delivery beside them",
            grown >> 20,
            case.bodies() >> 20,
            figures.memory
        );
        pauses(&mut scene, idle, &receivers);
    }
    drop(receivers);
    wait_until("the receivers are gone", || {
        stat(&mut scene.control, "ActiveConnections") <= 2
    });
    std::thread::sleep(Duration::from_millis(2500));
    eprintln!("    when they are gone: {:?}", Memory::of(&scene.bus));
    figures
}

/// With `BUS_STALLED_CASE`, as in `12 Addressee 60000`, only that one.
/// The same receivers, reading (a part of the bytes, since that takes longer) and stalled.
fn compare(case: Case, most: f64) {
    let name = format!("{} {:?} {}", case.count, case.role, case.length);
    if std::env::var("BUS_STALLED_CASE").is_ok_and(|wanted| wanted != name) {
        return;
    }
    let reading = Case {
        each: case.each / 4,
        is_read: true,
        ..case
    };
    let reading = measure(reading);
    let stalled = measure(case);
    let ratio = stalled.cpu / reading.cpu;
    eprintln!("  = CPU {ratio:.2} of none stalled {}\n", verdict(ratio <= most));
}

#[test]
#[ignore = "measures, for minutes"]
fn measures_receivers_that_do_not_read() {
    for role in [Role::Subscriber, Role::Monitor, Role::Addressee] {
        for length in [60_000, 2_000, 200] {
            // What is for one alone is in memory once for each of them.
            let count = if role == Role::Addressee { 12 } else { 40 };
            let case = Case {
                role,
                count,
                length,
                // One sender's share of a queue is half of it.
                each: if role == Role::Addressee { EACH / 2 } else { EACH },
                is_read: false,
            };
            compare(case, 1.15);
            compare(Case { count: 1, ..case }, 2.0);
        }
    }
}
