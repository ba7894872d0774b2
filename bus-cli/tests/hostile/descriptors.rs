//! Whoever fills the table of descriptors.

use crate::alone;
use crate::foe::{Foe, signal};
use crate::support::bystander::Bystander;
use crate::support::process::{strike, worker_pid};
use crate::support::raw::{Raw, call};
use crate::support::{Bus, RESTART, binary, recoveries, upgrade, wait_until};
use crate::user::{ALICE, Cpu, MALLORY, as_user, may_be_others};
use crate::{public, public_configuration, within};
use bus_load::clock;
use bus_wire::MessageBuilder;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

/// How many files the daemon may have open.
const TABLE: usize = 1024;

struct Scene {
    bus: Bus,
    innocents: Vec<Raw>,
    bystander: Bystander,
}

impl Scene {
    fn start() -> Scene {
        let limit = format!("--nofile={TABLE}");
        let bus = Bus::start_under(&["prlimit", &limit]);
        let mut innocents: Vec<Raw> = (0..8).map(|_| Raw::ready(&bus)).collect();
        for innocent in &mut innocents {
            innocent.send(&call("AddMatch", |body| {
                body.str("interface='org.example.Hostile'");
            }));
            innocent.message().unwrap();
        }
        Scene {
            bystander: Bystander::start(&bus, Duration::from_millis(5)),
            innocents,
            bus,
        }
    }

    /// Fills the queue of a connection that does not read with descriptors, until the bus puts an end to it. How many
    /// descriptors the daemon has open then at most.
    fn fill(&self) -> (usize, Foe) {
        let (mut mallory, stalled) = (self.foe(), self.foe());
        let message = signal(Some(&stalled.unique), 2000, 16);
        let fds: [RawFd; 16] = [mallory.stream.as_raw_fd(); 16];
        let mut most = 0;
        for _ in 0..2 * TABLE / 16 + 400 {
            most = most.max(self.bus.descriptors().len());
            if mallory.send_fds(&message, &fds).is_none() || mallory.settle().is_none() {
                return (most, stalled);
            }
        }
        panic!("the bus took more descriptors than its table has room for: {most}");
    }

    fn foe(&self) -> Foe {
        Foe::connect(&self.bus.socket()).unwrap()
    }

    /// Nobody was disconnected, everybody may still pass descriptors, and whoever comes is let in.
    fn expect_all(mut self) {
        let (one, rest) = self.innocents.split_first_mut().unwrap();
        for innocent in rest {
            assert_eq!(pass(one, innocent), 1);
        }
        Raw::ready(&self.bus).expect_service();
        self.bystander.finish();
        for innocent in self.innocents.drain(..) {
            innocent.expect_service();
        }
    }
}

/// Executes the daemon, or rather a copy that anybody may execute, as a user without privileges and with a small table.
const UNPRIVILEGED: &str = r#"
    chmod 777 "$XDG_RUNTIME_DIR" && cp "$1" "$XDG_RUNTIME_DIR/daemon" && shift &&
    exec setpriv --reuid=12009 --regid=12009 --clear-groups prlimit --nofile=1024 "$XDG_RUNTIME_DIR/daemon" "$@"
"#;

/// Passes a descriptor from one to another. How many arrive.
fn pass(from: &mut Raw, to: &mut Raw) -> usize {
    let message = MessageBuilder::signal("/a", "org.example.Innocent", "S").destination(&to.unique);
    let bytes = message.serial(9u32).unix_fds(1).build().unwrap();
    let fds = [from.stream.as_raw_fd()];
    let control = [nix::sys::socket::ControlMessage::ScmRights(&fds)];
    let io = [std::io::IoSlice::new(&bytes)];
    let socket = from.stream.as_raw_fd();
    nix::sys::socket::sendmsg::<()>(socket, &io, &control, MsgFlags::MSG_NOSIGNAL, None).unwrap();
    let mut space = nix::cmsg_space!([RawFd; 16]);
    let mut chunk = [0; 4096];
    let mut io = [IoSliceMut::new(&mut chunk)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(to.stream.as_raw_fd(), &mut io, Some(&mut space), flags).unwrap();
    assert!(received.bytes > 0, "the receiver was disconnected");
    let mut count = 0;
    for message in received.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(fds) = message {
            count += fds.len();
            for fd in fds {
                nix::unistd::close(fd).unwrap();
            }
        }
    }
    count
}

#[test]
fn whoever_fills_the_table_is_disconnected_and_nobody_else() {
    let _alone = alone();
    let scene = Scene::start();
    let (most, _stalled) = scene.fill();
    eprintln!("{most} of {TABLE} descriptors were open");
    assert!(most < TABLE * 3 / 4, "{most} are open");
    scene.expect_all();
}

#[test]
fn a_signal_with_descriptors_for_many_costs_no_subscriber() {
    let _alone = alone();
    let scene = Scene::start();
    let (_, _stalled) = scene.fill();
    let mut trudy = scene.foe();
    let fds: [RawFd; 16] = [trudy.stream.as_raw_fd(); 16];
    let message = signal(None, 10, 16);
    // Nobody reads any of it.
    let mut sent = 0;
    while trudy.send_fds(&message, &fds).is_some() && trudy.settle().is_some() {
        sent += 1;
        assert!(sent < TABLE, "there is no end");
    }
    eprintln!("{sent} signals with 16 descriptors for 8 subscribers");
    let Scene {
        bus,
        innocents,
        bystander,
    } = scene;
    for innocent in innocents {
        innocent.expect_service();
    }
    bystander.finish();
    Raw::ready(&bus).expect_service();
}

#[test]
fn a_table_that_somebody_fills_stops_neither_a_recovery_nor_an_upgrade() {
    let _alone = alone();
    let scene = Scene::start();
    let mut control = scene.bus.caller();
    let (_, _stalled) = scene.fill();
    assert!(strike(worker_pid(&mut control), Signal::SIGKILL));
    wait_until("the bus has recovered", || recoveries(&mut control) == 1);
    let (_, _stalled_too) = scene.fill();
    assert_eq!(
        upgrade(&mut control, binary().to_str().unwrap()).unwrap(),
        2,
        "{RESTART}"
    );
    let (_, _stalled_again) = scene.fill();
    scene.expect_all();
}

/// The kernel lets no user without privileges have more descriptors in flight than it may have open: those that the bus has
/// passed on and nobody has read are the bus's.
#[test]
fn readers_that_take_no_descriptor_keep_none_from_others() {
    if !may_be_others() {
        return;
    }
    let _alone = alone();
    let bus = public(Bus::start_by_script(UNPRIVILEGED, &public_configuration("")));
    let socket = bus.socket();
    let foes = as_user(MALLORY, Cpu::Last, move || {
        let stalled: Vec<Foe> = (0..30).map(|_| Foe::connect(&socket).unwrap()).collect();
        let mut passed = 0;
        for foe in &stalled {
            let mut sender = Foe::connect(&socket).unwrap();
            let message = signal(Some(&foe.unique), 10, 16);
            let fds: [RawFd; 16] = [sender.stream.as_raw_fd(); 16];
            for _ in 0..60 {
                if sender.send_fds(&message, &fds).is_none() || sender.settle().is_none() {
                    break;
                }
                passed += fds.len();
            }
        }
        (stalled, passed)
    });
    let (stalled, passed) = foes.join().unwrap();
    eprintln!("{passed} descriptors for readers that do not read");
    assert!(passed > 300, "{passed}");
    let bus = std::sync::Arc::new(bus);
    let innocent = as_user(ALICE, Cpu::First, {
        let bus = bus.clone();
        move || {
            let (mut one, mut other) = (Raw::ready(&bus), Raw::ready(&bus));
            for _ in 0..50 {
                let begun = clock::now();
                assert_eq!(pass(&mut one, &mut other), 1);
                let waited = clock::now() - begun;
                assert!(waited <= within(Duration::from_millis(100)), "{waited:?}");
            }
        }
    });
    innocent.join().expect("the innocent can pass descriptors");
    drop(stalled);
}
