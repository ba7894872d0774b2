//! Descriptors for readers that take none, on real sockets.

use std::io::{IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use bus_wire::MessageBuilder;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::{Client, Rig};

const SENDER: usize = 0;
const STALLED: usize = 1;
const READER: usize = 2;
/// So many may be in flight in all.
const MOST: u64 = 64;
/// Nobody's user.
const NOBODY: u32 = 4_000_000;

/// Three clients, greeted, of which the first sends.
fn rig() -> Rig {
    let mut rig = Rig::new(true);
    rig.worker.in_flight().set_most(MOST, NOBODY);
    for index in [SENDER, STALLED, READER] {
        rig.connect();
        rig.write_all(index);
        take(&mut rig.clients[index]);
    }
    rig
}

/// One message with so many descriptors.
fn pass(rig: &mut Rig, to: usize, count: usize) {
    let client = &mut rig.clients[SENDER];
    client.serial += 1;
    let destination = format!(":1.{to}");
    let message = MessageBuilder::signal("/org/example", "org.example.Passed", "Passed")
        .destination(&destination)
        .serial(client.serial)
        .unix_fds(count as u32)
        .build()
        .unwrap();
    let fds: Vec<RawFd> = vec![client.stream.as_raw_fd(); count];
    let control = [ControlMessage::ScmRights(&fds)];
    let bytes = [IoSlice::new(&message)];
    let sent = sendmsg::<()>(fds[0], &bytes, &control, MsgFlags::empty(), None).unwrap();
    assert_eq!(sent, message.len());
    rig.worker.turns();
}

/// Reads all there is: the descriptors among it, which are closed.
fn take(client: &mut Client) -> usize {
    let mut taken = 0;
    let mut chunk = vec![0; 65_536];
    loop {
        let mut space = nix::cmsg_space!([RawFd; 253]);
        let mut bytes = [IoSliceMut::new(&mut chunk)];
        let socket = client.stream.as_raw_fd();
        let Ok(received) = recvmsg::<()>(socket, &mut bytes, Some(&mut space), MsgFlags::empty()) else {
            return taken;
        };
        for message in received.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(fds) = message {
                taken += fds.len();
                fds.into_iter().for_each(|fd| nix::unistd::close(fd).unwrap());
            }
        }
        if received.bytes == 0 {
            return taken;
        }
    }
}

#[test]
fn readers_that_take_nothing_keep_no_descriptor_from_others_and_lose_none() {
    let mut rig = rig();
    for _ in 0..30 {
        pass(&mut rig, STALLED, 3);
    }
    let stalled = rig.worker.in_flight().total();
    assert!((3..=MOST / 2).contains(&stalled), "{stalled} are in flight");
    for _ in 0..50 {
        pass(&mut rig, READER, 16);
        assert_eq!(take(&mut rig.clients[READER]), 16);
        assert!(rig.worker.in_flight().total() <= MOST);
    }
    // It reads again, and says nothing: that is the last event there is. The waits end by time.
    let mut taken = take(&mut rig.clients[STALLED]);
    assert_eq!(taken as u64, stalled);
    let begin = crate::runtime::now().0;
    while taken < 90 {
        let waited = crate::runtime::now().0 - begin;
        assert!(waited < 20_000, "{taken} of 90 have come");
        let due = rig.worker.next_tick().expect("something is to be tried again");
        let left = due.0.saturating_sub(crate::runtime::now().0);
        assert!(left <= 400, "tried again after {left} ms");
        std::thread::sleep(Duration::from_millis(left + 1));
        rig.worker.turns();
        taken += take(&mut rig.clients[STALLED]);
    }
    assert_eq!(taken, 90);
    rig.worker.ask_all_what_is_unread();
    assert_eq!(rig.worker.in_flight().total(), 0);
    rig.worker.turns();
    rig.worker.tick();
    assert_eq!(
        rig.worker.retries_at(),
        None,
        "nothing waits, and nothing is tried again"
    );
}

#[test]
fn who_sends_something_is_passed_what_waits_at_once() {
    let mut rig = rig();
    for _ in 0..30 {
        pass(&mut rig, STALLED, 3);
    }
    let first = take(&mut rig.clients[STALLED]);
    rig.clients[STALLED].call("GetId", |_| {});
    rig.write_all(STALLED);
    assert!(first > 0 && take(&mut rig.clients[STALLED]) > 0);
}

#[test]
fn what_a_peer_keeps_that_was_disconnected_counts_until_it_closes_its_end() {
    let mut rig = rig();
    for _ in 0..3 {
        pass(&mut rig, STALLED, 3);
    }
    assert_eq!(rig.worker.in_flight().total(), 9);
    // What is no message ends a connection.
    rig.clients[STALLED].stream.write_all(&[0; 64]).unwrap();
    rig.worker.turns();
    assert_eq!(rig.worker.broker().peer_ids().count(), 2);
    rig.worker.ask_all_what_is_unread();
    assert_eq!(rig.worker.in_flight().total(), 9);
    pass(&mut rig, READER, 2);
    assert_eq!(take(&mut rig.clients[READER]), 2);
    // All that was sent before is there, and then the end.
    assert_eq!(take(&mut rig.clients[STALLED]), 9);
    rig.worker.turns();
    rig.worker.ask_all_what_is_unread();
    assert_eq!(rig.worker.in_flight().total(), 0);
}

#[test]
fn a_peer_that_is_gone_counts_for_nothing() {
    let mut rig = rig();
    for _ in 0..3 {
        pass(&mut rig, STALLED, 3);
    }
    assert_eq!(rig.worker.in_flight().total(), 9);
    drop(rig.clients.remove(STALLED));
    rig.worker.turns();
    assert_eq!(rig.worker.in_flight().total(), 0);
}
