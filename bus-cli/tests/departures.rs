//! An idle bus notices everything by itself: whoever leaves it, in whichever way, is gone at once, and what it said before
//! has been heard.
//!
//! The observer never sends, so that nothing else wakes the bus; all numbers are checked.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::clock::{self, Deadline};
use bus_load::{Handshake, fds, peers};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::collections::BTreeMap;
use std::io::{IoSlice, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use support::observer::{INTERFACE, Observer, PATH, number_of, said};
use support::process::{self, Work, pin_to_one_cpu, worker_pid};
use support::random::Random;
use support::raw::{Raw, call};
use support::{AT_ONCE, Bus, SOON, faulty};

/// One at a time: they measure, and count descriptors.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The ways to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// Connects, writes the handshake, Hello and a signal in one, and closes.
    AllInOne,
    /// The same by an unmodified program: `dbus-send`.
    DbusSend,
    /// A signal, and the end.
    Close,
    /// A signal of 300 kB, and the end.
    LargeMessage,
    /// A signal with a descriptor, and the end.
    WithDescriptor,
    /// A signal, and then it sends no more, but would go on to read.
    ShutWrite,
    /// It reads no more, says so, sends a signal, and ends.
    ShutReadAndClose,
    /// A signal, and the end with unread input in its own socket, so that the bus sees a reset.
    UnreadInput,
    /// Half a signal, and the end.
    HalfMessage,
    /// A process is killed that has the connection.
    Killed,
    /// The end in the middle of the handshake.
    MidHandshake,
    /// The end without a byte.
    NoByte,
}

impl Way {
    const ALL: [Way; 12] = [
        Way::AllInOne,
        Way::DbusSend,
        Way::Close,
        Way::LargeMessage,
        Way::WithDescriptor,
        Way::ShutWrite,
        Way::ShutReadAndClose,
        Way::UnreadInput,
        Way::HalfMessage,
        Way::Killed,
        Way::MidHandshake,
        Way::NoByte,
    ];

    /// Says something before it leaves, all of it.
    fn speaks(self) -> bool {
        !matches!(
            self,
            Way::HalfMessage | Way::Killed | Way::MidHandshake | Way::NoByte
        )
    }

    /// Has been greeted before it leaves.
    fn is_greeted_before(self) -> bool {
        !matches!(
            self,
            Way::AllInOne | Way::DbusSend | Way::MidHandshake | Way::NoByte
        )
    }

    /// Is greeted at some time, so that others are told that it came and left.
    fn is_announced(self) -> bool {
        !matches!(self, Way::MidHandshake | Way::NoByte)
    }

    /// Can be gone through while nobody reads at the other end.
    fn needs_no_answer(self) -> bool {
        !matches!(self, Way::DbusSend | Way::LargeMessage)
    }
}

/// Somebody who is about to leave, or has just left.
struct Leaver {
    way: Way,
    /// The number of what it says.
    number: u64,
    /// The number in its unique name, where that is known.
    who: Option<u64>,
    socket: Option<UnixStream>,
    child: Option<Child>,
}

/// The bus before somebody came.
#[derive(Clone, Copy)]
struct Before {
    descriptors: usize,
    /// What it had done, if it is to be seen that it does something.
    work: Option<Work>,
}

impl Before {
    fn of(bus: &Bus) -> Before {
        Before {
            descriptors: fds::open_count(bus.pid()).unwrap(),
            work: None,
        }
    }

    /// The bus has woken up since, and holds no more than before.
    fn is_over(&self, bus: &Bus) -> bool {
        self.work
            .is_none_or(|work| Work::of(bus).since(work).wake_ups > 0)
            && fds::open_count(bus.pid()).unwrap() <= self.descriptors
    }
}

struct Rig {
    bus: Bus,
    dbus_send: Option<PathBuf>,
    observer: Observer,
    random: Random,
    newest: u64,
    /// How many of each way, and the longest time after which one was noticed.
    noticed: BTreeMap<Way, (u32, Duration)>,
    late: Vec<String>,
}

impl Rig {
    fn start() -> Rig {
        Rig::of(Bus::start())
    }

    fn of(bus: Bus) -> Rig {
        Rig {
            observer: Observer::start(&bus),
            dbus_send: peers::find("dbus-send").unwrap(),
            random: Random::from_environment("BUS_DEPARTURES_SEED"),
            bus,
            newest: 0,
            noticed: BTreeMap::new(),
            late: Vec::new(),
        }
    }

    fn ways(&self) -> impl Iterator<Item = Way> + use<> {
        let has_program = self.dbus_send.is_some();
        let ways = Way::ALL.into_iter();
        ways.filter(move |way| *way != Way::DbusSend || has_program)
    }

    /// Brings somebody as far as it comes before it leaves.
    fn prepare(&mut self, way: Way) -> Leaver {
        self.newest += 1;
        let mut leaver = Leaver {
            way,
            number: self.newest,
            who: None,
            socket: None,
            child: None,
        };
        if !way.is_greeted_before() {
            return leaver;
        }
        let mut raw = Raw::ready(&self.bus);
        let who = number_of(&raw.unique);
        let came = Deadline::after(SOON);
        assert!(self.observer.listen_until(came, |observer| observer.is_here(who)));
        leaver.who = Some(who);
        if way == Way::UnreadInput {
            raw.send(&call("GetId", |_| ()));
            let mut readable = [PollFd::new(raw.stream.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut readable, PollTimeout::from(20_000u16)), Ok(1));
        }
        if way == Way::Killed {
            let socket = OwnedFd::from(raw.stream);
            let mut command = Command::new("cat");
            command.stdin(Stdio::from(socket)).stdout(Stdio::null());
            leaver.child = Some(command.spawn().unwrap());
        } else {
            leaver.socket = Some(raw.stream);
        }
        leaver
    }

    /// It leaves.
    fn leave(&mut self, leaver: &mut Leaver) {
        let whole = said(leaver.number, 0, false);
        let mut socket = leaver.socket.take();
        let mut send = |bytes: &[u8]| socket.as_mut().unwrap().write_all(bytes).unwrap();
        match leaver.way {
            Way::AllInOne => {
                let mut all = Handshake::start().0;
                all.extend(call("Hello", |_| ()));
                all.extend(whole);
                let mut socket = UnixStream::connect(self.bus.socket()).unwrap();
                assert_eq!(socket.write(&all).unwrap(), all.len());
            }
            Way::DbusSend => {
                let mut command = Command::new(self.dbus_send.as_ref().unwrap());
                command.arg(format!("--bus={}", self.bus.address));
                command.args(["--type=signal", PATH, &format!("{INTERFACE}.Said")]);
                support::run(command.arg(format!("uint64:{}", leaver.number)));
            }
            Way::Close | Way::UnreadInput => send(&whole),
            Way::LargeMessage => send(&said(leaver.number, 300_000, false)),
            Way::WithDescriptor => {
                let fd = fds::numbered(leaver.number).unwrap();
                let bytes = said(leaver.number, 0, true);
                let (parts, rights) = ([IoSlice::new(&bytes)], [fd.as_raw_fd()]);
                let control = [ControlMessage::ScmRights(&rights)];
                let to = socket.as_ref().unwrap().as_raw_fd();
                let sent = sendmsg::<()>(to, &parts, &control, MsgFlags::empty(), None);
                assert_eq!(sent, Ok(bytes.len()));
            }
            Way::ShutWrite => {
                send(&whole);
                socket.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
                // It stays open on this side.
                leaver.socket = socket.take();
            }
            Way::ShutReadAndClose => {
                socket.as_ref().unwrap().shutdown(Shutdown::Read).unwrap();
                socket.as_mut().unwrap().write_all(&whole).unwrap();
            }
            Way::HalfMessage => {
                let length = 1 + self.random.below(whole.len() as u64 - 1) as usize;
                send(&whole[..length]);
            }
            Way::Killed => {
                let child = leaver.child.as_mut().unwrap();
                child.kill().unwrap();
                child.wait().unwrap();
            }
            Way::MidHandshake => {
                let all = Handshake::start().0;
                let length = 1 + self.random.below(all.len() as u64 - 1) as usize;
                let mut socket = UnixStream::connect(self.bus.socket()).unwrap();
                socket.write_all(&all[..length]).unwrap();
            }
            Way::NoByte => drop(UnixStream::connect(self.bus.socket()).unwrap()),
        }
    }

    /// Those who have left are noticed at once: what each said was heard, it is announced as gone, and the bus holds no
    /// more descriptors than `before`.
    fn judge(&mut self, leavers: &[Leaver], since: Instant, before: Before) {
        let deadline = Deadline::after(AT_ONCE.saturating_sub(clock::now() - since));
        let all_heard =
            |observer: &Observer| leavers.iter().all(|leaver| missing(observer, leaver).is_none());
        let mut is_noticed = self.observer.listen_until(deadline, all_heard);
        // Those who were never greeted are announced to nobody: the bus has woken up and holds nothing of them.
        while is_noticed && !before.is_over(&self.bus) {
            is_noticed = !deadline.passed();
            std::thread::sleep(Duration::from_micros(200));
        }
        let took = clock::now() - since;
        for leaver in leavers {
            let (count, longest) = self.noticed.entry(leaver.way).or_default();
            match missing(&self.observer, leaver) {
                None if is_noticed || leaver.way.is_announced() => {
                    *count += 1;
                    *longest = took.max(*longest);
                }
                what => {
                    let what = what.unwrap_or("its descriptor");
                    self.late
                        .push(format!("{:?} {}: {what}", leaver.way, leaver.number));
                }
            }
        }
        if !is_noticed && self.late.is_empty() {
            self.late
                .push(format!("{:?}: descriptors are still held", leavers[0].way));
        }
        // What is noticed late counts once, and not as a descriptor of those who come after.
        let settled = Deadline::after(AT_ONCE);
        while !is_noticed && !before.is_over(&self.bus) && !settled.passed() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// One comes, and leaves an idle bus.
    fn one(&mut self, way: Way) {
        let mut before = Before::of(&self.bus);
        let mut leaver = self.prepare(way);
        // Sometimes the bus is just falling asleep.
        let pause = self.random.duration(Duration::ZERO..Duration::from_millis(3));
        std::thread::sleep(pause);
        if !way.is_announced() {
            std::thread::sleep(Duration::from_millis(3));
            before.work = Some(Work::of(&self.bus));
        }
        self.leave(&mut leaver);
        self.judge(&[leaver], clock::now(), before);
    }

    /// Many come, and leave one right after the other.
    fn many(&mut self, ways: &[Way], stopped: Option<u32>) {
        let before = Before::of(&self.bus);
        let mut leavers: Vec<Leaver> = ways.iter().map(|way| self.prepare(*way)).collect();
        std::thread::sleep(Duration::from_millis(3));
        if let Some(worker) = stopped {
            process::stop(worker);
        }
        for leaver in &mut leavers {
            self.leave(leaver);
        }
        if let Some(worker) = stopped {
            process::resume(worker);
        }
        self.judge(&leavers, clock::now(), before);
    }

    /// Nobody was late, and nobody is still here.
    fn finish(self) {
        let total: u32 = self.noticed.values().map(|(count, _)| count).sum();
        for (way, (count, longest)) in &self.noticed {
            eprintln!("{way:?}: {count} noticed, the last after {longest:.2?}");
        }
        let (late, all) = (self.late.len(), self.newest);
        let some = &self.late[..late.min(12)];
        assert!(
            self.late.is_empty(),
            "{late} of {all} not noticed within {AT_ONCE:?}: {some:#?}"
        );
        assert_eq!(u64::from(total), all);
        assert!(self.observer.here().is_empty(), "{:?}", self.observer.here());
        let kept = process::quarantine_files(&self.bus);
        assert!(kept.is_empty(), "{kept:?}");
    }
}

/// What has not been heard of somebody who left, if anything.
fn missing(observer: &Observer, leaver: &Leaver) -> Option<&'static str> {
    let mut who = leaver.who;
    if leaver.way.speaks() {
        let Some(said) = observer.said(leaver.number) else {
            return Some("what it said");
        };
        assert!(who.is_none_or(|who| who == said.by), "{said:?}");
        let descriptor = (leaver.way == Way::WithDescriptor).then_some(leaver.number);
        assert_eq!(said.descriptor, descriptor, "{:?}", leaver.way);
        who = Some(said.by);
    }
    who.filter(|who| !observer.is_gone(*who)).map(|_| "its departure")
}

fn each_way(rounds: u32, bus: Bus) {
    let _alone = alone();
    let mut rig = Rig::of(bus);
    for _ in 0..rounds {
        for way in rig.ways() {
            rig.one(way);
        }
    }
    rig.finish();
}

fn on_one_cpu(rounds: u32) {
    let _alone = alone();
    pin_to_one_cpu();
    let mut rig = Rig::start();
    for _ in 0..rounds {
        for way in rig.ways() {
            rig.one(way);
        }
    }
    rig.finish();
}

fn while_the_worker_is_stopped(rounds: u32) {
    let _alone = alone();
    let mut rig = Rig::start();
    let worker = worker_pid(&mut rig.bus.caller());
    let ways: Vec<Way> = rig.ways().filter(|way| way.needs_no_answer()).collect();
    for round in 0..rounds {
        // All together, and each of them alone.
        if round % 2 == 0 {
            rig.many(&[ways.as_slice(); 2].concat(), Some(worker));
        }
        for way in &ways {
            rig.many(&[*way], Some(worker));
        }
    }
    rig.finish();
}

fn many_at_once(rounds: u32) {
    let _alone = alone();
    let mut rig = Rig::start();
    for _ in 0..rounds {
        let ways: Vec<Way> = rig.ways().filter(|way| way.needs_no_answer()).collect();
        let fifty: Vec<Way> = (0..50).map(|_| *rig.random.pick(&ways)).collect();
        rig.many(&fifty, None);
    }
    rig.finish();
}

#[test]
fn each_way_to_leave_is_noticed_at_once() {
    each_way(50, Bus::start());
}

#[test]
fn each_way_to_leave_is_noticed_at_once_where_the_runtime_has_other_tasks() {
    let directory = tempfile::tempdir().unwrap();
    each_way(15, Bus::start_binary(&faulty(directory.path(), "shared-runtime")));
}

#[test]
fn each_way_to_leave_is_noticed_at_once_on_one_cpu() {
    on_one_cpu(10);
}

#[test]
fn who_leaves_while_the_worker_is_stopped_is_noticed_when_it_goes_on() {
    while_the_worker_is_stopped(5);
}

#[test]
fn many_who_leave_at_once_are_all_noticed_at_once() {
    many_at_once(2);
}

/// `cargo test --release -p bus-cli --test departures -- --ignored`
#[test]
#[ignore = "takes minutes"]
fn a_thousand_departures_each_way_are_noticed_at_once() {
    each_way(1000, Bus::start());
}

#[test]
#[ignore = "takes minutes"]
fn a_thousand_departures_each_way_are_noticed_at_once_on_one_cpu() {
    on_one_cpu(1000);
}

#[test]
#[ignore = "takes a minute"]
fn a_thousand_who_leave_while_the_worker_is_stopped_are_noticed() {
    while_the_worker_is_stopped(100);
}

#[test]
#[ignore = "takes a minute"]
fn a_thousand_who_leave_fifty_at_a_time_are_noticed_at_once() {
    many_at_once(20);
}
