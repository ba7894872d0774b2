//! The cap of memory: a flood costs who sends it and who does not read, nobody else, and leaves nothing behind.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::Caller;
use bus_load::clock::Deadline;
use bus_wire::{MessageBuilder, MessageType};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use support::bystander::Bystander;
use support::process::{Work, strike};
use support::raw::{Raw, call};
use support::stalled::{Memory, Sender, stat};
use support::{Bus, DRIVER, DRIVER_PATH, recoveries, wait_until};

const MIB: u64 = 1 << 20;
const CAP: u64 = 48 * MIB;
/// Bytes of the body of a message in a flood.
const LENGTH: usize = 60_000;

/// One at a time: they measure memory, and some need much of it.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bus_with_cap() -> Bus {
    Bus::start_in(&[("BUS_MEMORY_CAP", &CAP.to_string())])
}

fn key(name: &str) -> String {
    format!("org.busdaemon.{name}")
}

/// A connection that hears the numbered messages of one sender, and reads none of them.
fn subscriber(bus: &Bus, of: &str) -> Raw {
    let mut raw = Raw::ready(bus);
    raw.send(&call("AddMatch", |body| {
        body.str(&format!("type='signal',sender='{of}',member='Numbered'"));
    }));
    let answer = raw.message().unwrap();
    assert_eq!(answer.message_type(), MessageType::MethodReturn);
    raw
}

/// A subscriber that reads all the time, and checks every number.
struct Reader {
    heard: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Reader {
    fn start(bus: &Bus, of: &str) -> Reader {
        let mut raw = subscriber(bus, of);
        let heard = Arc::<AtomicU64>::default();
        let count = heard.clone();
        let thread = std::thread::spawn(move || {
            while let Ok(Some(message)) = raw.try_message() {
                let next = count.load(Ordering::Relaxed) + 1;
                assert_eq!(message.body().read_u64(), Ok(next), "lost, doubled or reordered");
                count.store(next, Ordering::Relaxed);
            }
        });
        Reader { heard, thread }
    }

    /// It hears so many messages, and is still there.
    fn expect(&self, count: u64) {
        wait_until("the live reader has everything", || {
            self.heard.load(Ordering::Relaxed) == count || self.thread.is_finished()
        });
        assert_eq!(self.heard.load(Ordering::Relaxed), count, "it was disconnected");
    }
}

/// Sends numbered signals, as fast as it is read.
struct Flooder {
    raw: Raw,
    sent: u64,
}

impl Flooder {
    fn start(bus: &Bus) -> Flooder {
        Flooder {
            raw: Raw::ready(bus),
            sent: 0,
        }
    }

    /// To the one of this name, or to everybody.
    fn send(&mut self, to: Option<&str>) {
        self.sent += 1;
        let mut signal =
            MessageBuilder::signal("/", "org.busdaemon.Flood1", "Numbered").serial(self.sent as u32);
        if let Some(to) = to {
            signal = signal.destination(to);
        }
        let signal = signal.body(|body| {
            body.u64(self.sent).byte_slice(&vec![7; LENGTH]);
        });
        self.raw.send(&signal.build().unwrap());
    }

    /// Waits until the bus has dealt with all that was sent.
    fn settle(&mut self) {
        let question = MessageBuilder::method_call(DRIVER_PATH, "GetId").destination(DRIVER);
        self.raw.send(&question.serial(4_000_000_u32).build().unwrap());
        loop {
            let message = self.raw.message().expect("the flooder stays connected");
            if message
                .reply_serial()
                .is_some_and(|serial| serial.get() == 4_000_000)
            {
                return;
            }
        }
    }
}

/// Watches how much memory the daemon takes, until it is asked.
struct Gauge {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Gauge {
    fn start(bus: Arc<Bus>) -> Gauge {
        let is_over = Arc::<AtomicBool>::default();
        let over = is_over.clone();
        let thread = std::thread::spawn(move || {
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                most = most.max(resident(&bus));
                std::thread::sleep(Duration::from_millis(10));
            }
            most
        });
        Gauge { is_over, thread }
    }

    fn most(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Bytes that the daemon's processes have in memory, with the programs themselves, and shared memory once.
fn resident(bus: &Bus) -> u64 {
    let mut pages = 0;
    for process in [Some(bus.pid()), bus.worker()].into_iter().flatten() {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let kib = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map_or(0, |line| line.trim().trim_end_matches(" kB").parse().unwrap())
        };
        pages += kib("VmRSS:") - kib("RssShmem:");
    }
    pages * 1024 + Memory::of(bus).files
}

/// What the daemon takes when it has been quiet for a while, after some traffic.
fn at_rest(bus: &Bus) -> u64 {
    let bystander = Bystander::start(bus, Duration::from_millis(1));
    wait_until("some traffic", || bystander.answered() > 200);
    bystander.finish();
    std::thread::sleep(Duration::from_millis(2500));
    resident(bus)
}

/// Nobody sends anything meanwhile: what is measured wakes nobody.
fn expect_returned(bus: &Bus, before: u64) {
    let deadline = Deadline::after(Duration::from_secs(15));
    let is_returned = || resident(bus) <= before + before / 10;
    while !is_returned() && !deadline.passed() {
        std::thread::sleep(Duration::from_millis(50));
    }
    let (now, memory) = (resident(bus), Memory::of(bus));
    eprintln!("{before} bytes before, {now} afterwards, {memory:?}");
    assert!(is_returned(), "{before} before, now {now}, {memory:?}");
}

#[test]
fn unicast_that_waits_is_refused_at_the_cap_and_costs_its_sender_only() {
    let _alone = alone();
    let bus = Arc::new(bus_with_cap());
    let mut control = bus.caller();
    let before = at_rest(&bus);
    let bystander = Bystander::start(&bus, Duration::from_millis(2));
    let gauge = Gauge::start(bus.clone());
    let receivers: Vec<Raw> = (0..3).map(|_| Raw::ready(&bus)).collect();
    let mut flooder = Flooder::start(&bus);
    // More than there is room for; it is read on and on.
    const SENT: u64 = 1000;
    for n in 0..SENT as usize {
        flooder.send(Some(&receivers[n % 3].unique));
    }
    flooder.settle();
    let held = stat(&mut control, &key("MemoryHeld"));
    let refused = stat(&mut control, &key("RefusedForMemory"));
    assert!((CAP / 2..CAP).contains(&held), "{held}");
    assert!((100..500).contains(&refused), "{refused}");
    assert!(stat(&mut control, &key("HeldBackForMemory")) > 0);
    assert_eq!(stat(&mut control, &key("DismissedForMemory")), 0);
    assert_eq!(stat(&mut control, &key("MemoryCap")), CAP);
    // The others are not refused.
    let mut other = Raw::ready(&bus);
    let question = MessageBuilder::method_call("/", "Ping").destination(&receivers[0].unique);
    let question = question.interface("org.freedesktop.DBus.Peer").serial(5_u32);
    other.send(&question.build().unwrap());
    other.expect_service();
    // Whoever did not read, reads now: what was not refused is there, in order.
    let (mut got, mut last) = (0, [0_u64; 3]);
    for (receiver, last) in receivers.into_iter().zip(&mut last) {
        let mut receiver = receiver;
        receiver
            .stream
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        while let Ok(Some(message)) = receiver.try_message() {
            if message.message_type() == MessageType::Signal {
                let number = message.body().read_u64().unwrap();
                assert!(number > *last, "doubled or reordered");
                (*last, got) = (number, got + 1);
            }
        }
    }
    assert_eq!(got + refused, SENT);
    let most = gauge.most();
    assert!(most < before + CAP + CAP / 2, "{most}");
    eprintln!("{} and at most {most} bytes", bystander.finish());
    drop(flooder);
    expect_returned(&bus, before);
}

#[test]
fn broadcasts_beyond_the_cap_cost_who_does_not_read_them() {
    let _alone = alone();
    let bus = Arc::new(bus_with_cap());
    let mut control = bus.caller();
    let before = at_rest(&bus);
    let bystander = Bystander::start(&bus, Duration::from_millis(2));
    let gauge = Gauge::start(bus.clone());
    let mut flooder = Flooder::start(&bus);
    let name = flooder.raw.unique.clone();
    let live = Reader::start(&bus, &name);
    let stalled: Vec<Raw> = (0..4).map(|_| subscriber(&bus, &name)).collect();
    let deadline = Deadline::after(Duration::from_secs(60));
    let mut kills = 0;
    while stat(&mut control, &key("DismissedForMemory")) < 4 {
        assert!(!deadline.passed(), "whoever does not read stays");
        for _ in 0..20 {
            flooder.send(None);
        }
        // A death at the worst of times changes nothing.
        if kills < 3 && stat(&mut control, &key("MemoryHeld")) > CAP / 8 * 7 {
            kills += 1;
            assert!(strike(bus.worker().unwrap(), Signal::SIGKILL));
            wait_until("the bus has recovered", || recoveries(&mut control) >= kills);
        }
    }
    assert_eq!(kills, 3);
    live.expect(flooder.sent);
    for receiver in stalled {
        receiver.expect_end();
    }
    let most = gauge.most();
    assert!(most < before + CAP + CAP / 2, "{most}");
    eprintln!(
        "{} messages, {}, at most {most} bytes",
        flooder.sent,
        bystander.finish()
    );
    drop(flooder);
    live.thread.join().ok();
    expect_returned(&bus, before);
}

#[test]
fn memory_goes_back_after_the_last_event_on_an_idle_bus_and_then_nothing_happens() {
    let _alone = alone();
    let bus = Bus::start();
    let before = at_rest(&bus);
    let mut sender = Sender::start(&bus);
    let receivers: Vec<Raw> = (0..20).map(|_| Raw::ready(&bus)).collect();
    for n in 0..2000 {
        // Small ones, copied, and large ones, in memory of their own.
        sender.send_unnoted(Some(&receivers[n % 20].unique), [300, 3000, 90_000][n % 3]);
    }
    sender.settle();
    let held = resident(&bus);
    assert!(held > before + 40 * MIB, "{held}");
    drop(sender);
    // The last one goes.
    drop(receivers);
    expect_returned(&bus, before);
    std::thread::sleep(Duration::from_millis(2500));
    let work = Work::of(&bus);
    std::thread::sleep(Duration::from_secs(2));
    let since = Work::of(&bus).since(work);
    assert!(since.wake_ups <= 1, "{since:?}");
}

/// Whether the bus has hung up. Nothing is read.
fn has_ended(receiver: &Raw) -> bool {
    let mut fds = [PollFd::new(receiver.stream.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap();
    fds[0].revents().unwrap().contains(PollFlags::POLLHUP)
}

#[test]
fn who_does_not_read_goes_though_nothing_else_happens() {
    let _alone = alone();
    let bus = bus_with_cap();
    let before = at_rest(&bus);
    let mut flooder = Flooder::start(&bus);
    let name = flooder.raw.unique.clone();
    let stalled: Vec<Raw> = (0..4).map(|_| subscriber(&bus, &name)).collect();
    // A little more than may be held, and then nobody says a word.
    while resident(&bus) < before + CAP + 4 * MIB {
        flooder.send(None);
    }
    wait_until("all of them are disconnected", || stalled.iter().all(has_ended));
    expect_returned(&bus, before);
    flooder.raw.expect_service();
}

/// A control group of this test's own, which may use so much memory.
struct Group(PathBuf);

impl Group {
    /// `None` where there can be none.
    fn create(limit: u64) -> Option<Group> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let name = format!("bus-test-{}", std::process::id());
        for line in groups.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
            let (root, file) = match controllers {
                "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                "" => ("/sys/fs/cgroup", "memory.max"),
                _ => continue,
            };
            let directory = Path::new(root).join(path).join(&name);
            if std::fs::create_dir(&directory).is_err() {
                continue;
            }
            let group = Group(directory);
            if std::fs::write(group.0.join(file), limit.to_string()).is_ok() {
                return Some(group);
            }
        }
        None
    }

    /// Sets its limit, or takes it away.
    fn limit(&self, limit: Option<u64>) {
        let limits = [("memory.limit_in_bytes", "-1"), ("memory.max", "max")];
        let is_set = limits.iter().any(|(file, none)| {
            let text = limit.map_or((*none).to_owned(), |limit| limit.to_string());
            let file = self.0.join(file);
            file.exists() && std::fs::write(file, text).is_ok()
        });
        assert!(is_set, "the limit of a group can be changed");
    }

    /// A shell's script that executes its arguments in it.
    fn entrance(&self) -> String {
        format!(
            "echo $$ > '{}' && exec \"$@\"",
            self.0.join("cgroup.procs").display()
        )
    }

    /// Bytes that are charged to it.
    fn usage(&self) -> u64 {
        let files = ["memory.usage_in_bytes", "memory.current"];
        let texts = files.map(|file| std::fs::read_to_string(self.0.join(file)));
        let usage = texts.iter().flatten().find_map(|text| text.trim().parse().ok());
        usage.expect("a group tells what is charged to it")
    }

    /// Bytes that were charged to it at most.
    fn peak(&self) -> u64 {
        let files = ["memory.max_usage_in_bytes", "memory.peak"];
        let texts = files.map(|file| std::fs::read_to_string(self.0.join(file)));
        let peak = texts.iter().flatten().find_map(|text| text.trim().parse().ok());
        peak.unwrap_or(0)
    }

    /// How often the kernel killed somebody in it.
    fn kills(&self) -> u64 {
        let texts =
            ["memory.oom_control", "memory.events"].map(|file| std::fs::read_to_string(self.0.join(file)));
        let mut lines = texts.iter().flatten().flat_map(|text| text.lines());
        let line = lines.find_map(|line| line.strip_prefix("oom_kill "));
        line.map_or(0, |count| count.trim().parse().unwrap())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Everything at once: broadcasts that nobody reads, unicast, halves of large messages, match rules.
fn shed_load(mut bus: Bus, control: &mut Caller) {
    let bystander = Bystander::start(&bus, Duration::from_millis(2));
    let mut flooders: Vec<Flooder> = (0..3).map(|_| Flooder::start(&bus)).collect();
    let names: Vec<String> = flooders.iter().map(|one| one.raw.unique.clone()).collect();
    let stalled: Vec<Raw> = (0..30).map(|n| subscriber(&bus, &names[n % 3])).collect();
    let addressee = Raw::ready(&bus);
    let large = MessageBuilder::signal("/", "a.b", "Large")
        .serial(1_u32)
        .destination(&addressee.unique)
        .body(|body| {
            body.byte_slice(&vec![1; 30 << 20]);
        });
    let large = large.build().unwrap();
    let is_over = AtomicBool::new(false);
    let waves = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for number in 0..20 {
            let (bus, large, is_over, waves) = (&bus, &large, &is_over, &waves);
            // Most never finish; all come back again and again.
            let length = large.len() - if number % 5 == 0 { 0 } else { 1000 };
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    send_slowly(bus, &large[..length], Duration::from_secs(number % 3));
                    waves.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        flood_for(Duration::from_secs(12), &mut flooders, &addressee.unique);
        is_over.store(true, Ordering::Relaxed);
    });
    let counts =
        ["RefusedForMemory", "HeldBackForMemory", "DismissedForMemory"].map(|name| stat(control, &key(name)));
    eprintln!(
        "refused, held back, dismissed {counts:?}; {} messages sent, {} large ones begun; {}",
        flooders.iter().map(|one| one.sent).sum::<u64>(),
        waves.into_inner(),
        bystander.finish()
    );
    // Whoever is held back long enough, or goes, sends nothing that could be refused.
    let [refused, held_back, dismissed] = counts;
    assert!(held_back > 0 && refused + dismissed > 0, "{counts:?}");
    assert_eq!(recoveries(control), 0, "a worker was killed");
    assert!(bus.is_alive());
    drop(stalled);
}

/// As much as the bus takes within two seconds, and then nothing for a while, or until it hangs up.
fn send_slowly(bus: &Bus, bytes: &[u8], pause: Duration) {
    let mut raw = Raw::ready(bus);
    let patience = Some(Duration::from_secs(2));
    raw.stream.set_write_timeout(patience).unwrap();
    let _ = raw.stream.write_all(bytes);
    std::thread::sleep(pause);
}

/// Signals for everybody and for one in turn.
fn flood_for(time: Duration, flooders: &mut [Flooder], addressee: &str) {
    let deadline = Deadline::after(time);
    while !deadline.passed() {
        for flooder in &mut *flooders {
            for n in 0..10 {
                flooder.send((n % 2 == 0).then_some(addressee));
            }
        }
    }
}

/// A bus in a control group of 400 MiB, where one can be made.
fn bus_in_a_group() -> Option<(Group, Bus)> {
    let Some(group) = Group::create(400 * MIB) else {
        eprintln!("skipped: no control group can be made");
        return None;
    };
    let enter = group.entrance();
    let bus = Bus::start_under(&["sh", "-c", &enter, "sh"]);
    Some((group, bus))
}

#[test]
fn in_a_control_group_the_bus_sheds_load_instead_of_being_killed() {
    let _alone = alone();
    let Some((group, bus)) = bus_in_a_group() else {
        return;
    };
    let mut control = bus.caller();
    let cap = stat(&mut control, &key("MemoryCap"));
    assert!(cap <= 100 * MIB, "{cap}");
    shed_load(bus, &mut control);
    let peak = group.peak();
    eprintln!("at most {} MiB in the group", peak / MIB);
    assert!(peak < 300 * MIB, "{peak}");
    assert_eq!(group.kills(), 0);
}

#[test]
fn a_limit_that_a_control_group_is_given_later_is_heeded() {
    let _alone = alone();
    let Some(group) = Group::create(400 * MIB) else {
        eprintln!("skipped: no control group can be made");
        return;
    };
    group.limit(None);
    let enter = group.entrance();
    let bus = Bus::start_under(&["sh", "-c", &enter, "sh"]);
    let mut control = bus.caller();
    let cap = |control: &mut Caller| stat(control, &key("MemoryCap"));
    let before = cap(&mut control);
    if before <= 100 * MIB {
        eprintln!("skipped: this machine has no more memory than the group");
        return;
    }
    let bystander = Bystander::start(&bus, Duration::from_millis(1));
    for limit in [400, 800] {
        group.limit(Some(limit * MIB));
        let deadline = Deadline::after(Duration::from_secs(30));
        while cap(&mut control) != (limit / 4 * MIB).min(before) {
            assert!(!deadline.passed(), "the cap is {}", cap(&mut control));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    bystander.finish();
    assert_eq!(recoveries(&mut control), 0, "a worker was killed");
}

/// Somebody else in the group takes most of it: the bus may hold what is left, and gives way before the kernel kills.
#[test]
fn where_others_fill_the_control_group_the_bus_holds_less() {
    let _alone = alone();
    let Some((group, bus)) = bus_in_a_group() else {
        return;
    };
    // `tail` keeps a line that has no end, until the pipe is closed.
    let mut eater = std::process::Command::new("sh")
        .args(["-c", &group.entrance(), "sh", "tail", "-n", "1"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut pipe = eater.stdin.take().unwrap();
    let eaten = vec![b'x'; 1 << 20];
    for _ in 0..280 {
        pipe.write_all(&eaten).unwrap();
    }
    wait_until("most is taken", || group.usage() > 280 * MIB);
    let mut control = bus.caller();
    let bystander = Bystander::start(&bus, Duration::from_millis(2));
    let mut flooder = Flooder::start(&bus);
    let stalled: Vec<Raw> = (0..4).map(|_| Raw::ready(&bus)).collect();
    let mut most = 0;
    let deadline = Deadline::after(Duration::from_secs(5));
    while !deadline.passed() {
        for receiver in &stalled {
            flooder.send(Some(&receiver.unique));
        }
        most = most.max(stat(&mut control, &key("MemoryHeld")));
    }
    eprintln!(
        "{} messages sent, {} MiB held at most, {} MiB in the group; {}",
        flooder.sent,
        most / MIB,
        group.peak() / MIB,
        bystander.finish()
    );
    // A quarter of the group would be a hundred.
    assert!((30 * MIB..90 * MIB).contains(&most), "{most}");
    assert!(stat(&mut control, &key("RefusedForMemory")) > 0);
    assert_eq!(recoveries(&mut control), 0, "a worker was killed");
    assert_eq!(group.kills(), 0);
    drop(pipe);
    eater.wait().unwrap();
}

#[test]
fn in_a_small_address_space_the_bus_sheds_load_too() {
    let _alone = alone();
    if bus_load::peers::find("prlimit").unwrap().is_none() {
        return;
    }
    for limit in [512, 800] {
        let bus = Bus::start_under(&["prlimit", &format!("--as={}", limit * MIB)]);
        let mut control = bus.caller();
        let cap = stat(&mut control, &key("MemoryCap"));
        assert_eq!(cap, limit / 4 * MIB);
        shed_load(bus, &mut control);
    }
}

#[test]
fn the_status_tells_what_is_held() {
    let _alone = alone();
    let bus = bus_with_cap();
    let output = bus.tool(&["status"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .trim()
            .to_owned()
    };
    assert!(value("memory held").ends_with(" of 48.0 MiB"), "{text}");
    assert_eq!(value("environment"), "0 B");
    assert_eq!(value("dropped for memory"), "0");
}
