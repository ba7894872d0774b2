//! Damage in the store to what a peer was sent already: a checkpoint meets it, and no read does.

use std::io::Read;
use std::os::unix::fs::FileExt;

use super::{Rig, recover};
use crate::journal::Journal;

const SLOW: usize = 0;
const OTHER: usize = 1;
const SENDER: usize = 2;

impl Rig {
    /// Signals to both receivers, who do not read.
    fn broadcast(&mut self, count: usize) {
        for _ in 0..count {
            self.clients[SENDER].signal(1_500);
            self.write_all(SENDER);
        }
    }
}

#[test]
fn damage_to_what_was_sent_costs_no_checkpoint_and_nobody_else() {
    let mut rig = Rig::new(false);
    for index in [SLOW, OTHER, SENDER] {
        rig.connect();
        if index != SENDER {
            rig.clients[index].call("AddMatch", |w| {
                w.str("type='signal',interface='org.example.Signals'");
            });
        }
        rig.write_all(index);
    }
    rig.broadcast(800);
    rig.worker.first_checkpoint().unwrap();
    let (broker, journal) = rig.worker.parts();
    let stored = journal.stored(broker);
    let of_slow = rig.worker.broker().peer_ids().next().unwrap().to_u64();
    let backlog = stored
        .backlogs
        .iter()
        .find(|backlog| backlog.owner == of_slow)
        .unwrap();
    // In the middle of its first page.
    let damaged = backlog.head_page + 2_048;
    assert!(backlog.head_page != backlog.tail_page && backlog.head_at < 1_024);
    while rig
        .worker
        .broker()
        .send_queue(rig.worker.broker().peer_ids().next().unwrap())
        .unwrap()
        .sent()
        < backlog.start + 400_000
    {
        let _ = rig.clients[SLOW].stream.read(&mut [0; 100_000]);
        rig.worker.turns();
    }
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/self/fd/{}", stored.number))
        .unwrap();
    file.write_all_at(&[0xff; 64], damaged).unwrap();

    // A worker that goes on after a death has its checkpoints, too.
    let mut journal = Journal::reopen(rig.remains).unwrap();
    let mut recovered = recover::replay(&mut journal, -1, None).unwrap();
    assert!(recovered.in_doubt.is_empty());
    journal
        .checkpoint(&mut recovered.broker, recovered.generation)
        .unwrap();
    drop(journal);
    // Nor has the live one fewer of them, and what waits for the other is whole.
    for _ in 0..5 {
        rig.broadcast(50);
        rig.worker.first_checkpoint().unwrap();
        rig.worker.turns();
    }
    let other = rig.worker.broker().peer_ids().nth(OTHER).unwrap();
    let (broker, journal) = rig.worker.parts();
    let output = journal.output_of(other, broker.send_queue(other).unwrap());
    assert_eq!(output.len() as u64, broker.send_queue(other).unwrap().len());
}

#[test]
fn who_is_gone_keeps_no_memory_behind_damage() {
    let mut rig = Rig::new(false);
    for index in [SLOW, OTHER, SENDER] {
        rig.connect();
        if index == SLOW {
            rig.clients[index].call("AddMatch", |w| {
                w.str("type='signal',interface='org.example.Signals'");
            });
        }
        rig.write_all(index);
    }
    rig.worker.first_checkpoint().unwrap();
    let used = |rig: &mut Rig| {
        rig.worker.first_checkpoint().unwrap();
        let journal = rig.worker.journal();
        while journal.has_chores() {
            journal.do_chores();
        }
        journal.used()
    };
    let before = used(&mut rig);
    rig.broadcast(800);
    let most = used(&mut rig);
    assert!(most > before + 1_000_000, "{before}, {most}");
    let (broker, journal) = rig.worker.parts();
    let stored = journal.stored(broker);
    let backlog = stored.backlogs.first().unwrap();
    assert_ne!(backlog.head_page, backlog.tail_page);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/self/fd/{}", stored.number))
        .unwrap();
    file.write_all_at(&[0xff; 16], backlog.head_page).unwrap();
    let slow = rig.clients.remove(SLOW);
    drop(slow);
    rig.worker.turns();
    assert_eq!(rig.worker.broker().peer_ids().count(), 2);
    // It is gone at the first checkpoint, found out after that, and counted again after the next.
    let mut after = used(&mut rig);
    for _ in 0..4 {
        after = used(&mut rig);
    }
    assert!(after < before + 200_000, "{before}, {most}, {after}");
}
