//! Names, match rules and open calls in checkpoints: the cost follows what changed, and peers that have many of them are
//! recovered and carried over as fast as others.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use super::{Rig, random, state};
use crate::broker::Broker;
use crate::handoff::image::{self, WorkerState};
use crate::journal::{Journal, Written};

impl Rig {
    /// A client that has said Hello, and its index.
    fn greeted(&mut self) -> usize {
        self.connect();
        let index = self.clients.len() - 1;
        self.exchange(index);
        index
    }

    /// Has everything that a client wants to write written, and its answers read.
    fn exchange(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let mut written = 0;
        let mut idle = 0;
        while idle < 2 {
            let rest = &client.waiting[written..];
            let mut is_idle = rest.is_empty();
            if !rest.is_empty() {
                match client.stream.write(rest) {
                    Ok(len) => written += len,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            self.worker.turns();
            while client.stream.read(&mut [0; 1 << 16]).is_ok_and(|len| len > 0) {
                is_idle = false;
            }
            idle = if is_idle { idle + 1 } else { 0 };
        }
        client.waiting.clear();
    }

    fn checkpoint(&mut self) -> Written {
        Written::take();
        self.worker.first_checkpoint().unwrap();
        Written::take()
    }

    /// As if this were a worker that goes on after a death: what it writes then.
    fn written_after_a_death(&self) -> Written {
        let mut journal = Journal::reopen(self.remains).unwrap();
        let loaded = journal.load().unwrap().unwrap();
        let (mut broker, dropped) = Broker::restore_checkpoint(loaded.checkpoint).unwrap();
        assert_eq!(dropped, []);
        assert_eq!(broker.changed_entries(), 0);
        let mut changed = Vec::new();
        broker.take_changed_entries(usize::MAX, &mut changed);
        assert_eq!(changed, []);
        assert!(state(&broker) == state(self.worker.broker()));
        Written::take()
    }
}

/// Time that this thread has computed: others use the machine, too.
fn clock() -> Duration {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    nix::time::clock_gettime(clock).unwrap().into()
}

fn long_rule(number: usize) -> String {
    let rule = format!("type='signal',path='/org/example/{number}',arg0='");
    let rest = 1_000 - rule.len();
    rule + &"x".repeat(rest) + "'"
}

/// Each of a client's names, rules and open calls.
fn add(rig: &mut Rig, client: usize, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let client = &mut rig.clients[client];
        client.call("RequestName", |w| {
            w.str(&format!("org.example.Name{number}")).u32(4);
        });
        client.call("AddMatch", |w| {
            w.str(&long_rule(number));
        });
        // To one that never answers.
        client.send("org.example.Silent", "Ask", 10);
    }
    rig.exchange(client);
}

#[test]
fn a_checkpoint_costs_what_has_changed_however_much_has_not() {
    let mut written = Vec::new();
    for scale in [1, 8] {
        let mut rig = Rig::new(false);
        let silent = rig.greeted();
        rig.clients[silent].call("RequestName", |w| {
            w.str("org.example.Silent").u32(4);
        });
        rig.exchange(silent);
        let holder = rig.greeted();
        add(&mut rig, holder, 0..100 * scale);
        rig.checkpoint();
        // Nothing but the bus and the worker, whatever there is.
        let idle = rig.checkpoint();
        assert_eq!((idle.peers, idle.entries), (2, 0));
        add(&mut rig, holder, 10_000..10_010);
        let ten = rig.checkpoint();
        assert_eq!(ten.entries, 30);
        add(&mut rig, holder, 20_000..20_080);
        let eighty = rig.checkpoint();
        assert_eq!(eighty.entries, 240);
        written.push((idle, ten, eighty));
        // One that is gone is taken away; what came and went is never written.
        for _ in 0..50 {
            let client = &mut rig.clients[holder];
            client.call("AddMatch", |w| {
                w.str(&long_rule(30_000));
            });
            client.call("RemoveMatch", |w| {
                w.str(&long_rule(30_000));
            });
            client.call("RequestName", |w| {
                w.str("org.example.Shortly").u32(4);
            });
            client.call("ReleaseName", |w| {
                w.str("org.example.Shortly");
            });
        }
        rig.clients[holder].call("ReleaseName", |w| {
            w.str("org.example.Name3");
        });
        rig.clients[holder].call("RemoveMatch", |w| {
            w.str(&long_rule(5));
        });
        rig.exchange(holder);
        assert_eq!(rig.checkpoint().entries, 2);
        assert_eq!(rig.written_after_a_death().entries, 0);
        assert!(state(&rig.replay().broker) == state(rig.worker.broker()));
        // All of them go at once.
        let all = 3 * (100 * scale + 90) - 2;
        drop(rig.clients.remove(holder));
        rig.worker.turns();
        assert_eq!(rig.checkpoint().entries, all);
        assert!(state(&rig.replay().broker) == state(rig.worker.broker()));
    }
    let [(idle, ten, eighty), (idle_8, ten_8, eighty_8)] = written[..] else {
        panic!("two scales");
    };
    let is_near =
        |a: Written, b: Written| a.peers == b.peers && a.bytes.abs_diff(b.bytes) < 64 + 2 * a.entries;
    assert!(is_near(idle, idle_8), "{idle:?} {idle_8:?}");
    assert!(is_near(ten, ten_8), "{ten:?} {ten_8:?}");
    assert!(is_near(eighty, eighty_8), "{eighty:?} {eighty_8:?}");
}

#[test]
fn names_rules_and_calls_come_and_go_and_a_replay_gives_what_the_worker_had() {
    let mut random = random();
    let mut rig = Rig::new(false);
    for _ in 0..4 {
        rig.greeted();
    }
    for round in 0..60 {
        for _ in 0..1 + random.below(60) {
            let (who, number) = (random.below(4), random.below(40));
            let client = &mut rig.clients[who];
            match random.below(9) {
                0..3 => client.call("RequestName", |w| {
                    w.str(&format!("org.example.Name{number}"))
                        .u32(random.below(8) as u32);
                }),
                3 => client.call("ReleaseName", |w| {
                    w.str(&format!("org.example.Name{number}"));
                }),
                4..6 => client.call("AddMatch", |w| {
                    let eavesdrop = if number % 3 == 0 { "eavesdrop='true'," } else { "" };
                    w.str(&format!("{eavesdrop}member='M{}'", number % 7));
                }),
                6 => client.call("RemoveMatch", |w| {
                    let eavesdrop = if number % 3 == 0 { "eavesdrop='true'," } else { "" };
                    w.str(&format!("{eavesdrop}member='M{}'", number % 7));
                }),
                _ => client.send(&format!("org.example.Name{number}"), "Ask", 10),
            }
        }
        for who in 0..4 {
            rig.exchange(who);
        }
        match random.below(3) {
            0 => drop(rig.checkpoint()),
            1 if round % 10 == 9 => {
                drop(rig.clients.remove(random.below(4)));
                rig.worker.turns();
                rig.greeted();
            }
            _ => {}
        }
        let recovered = rig.replay();
        assert!(recovered.in_doubt.is_empty(), "round {round}");
        assert!(
            state(&recovered.broker) == state(rig.worker.broker()),
            "round {round}: the state that the journal gives is another"
        );
    }
}

/// Damage to one entry costs those whose it is, all of them, and nobody else.
#[test]
fn a_damaged_entry_costs_the_peers_that_it_belongs_to() {
    let mut rig = Rig::new(false);
    let [owner, waiter, caller, bystander] = [(); 4].map(|()| rig.greeted());
    for (client, name) in [(owner, "A"), (waiter, "A"), (bystander, "B")] {
        rig.clients[client].call("RequestName", |w| {
            w.str(&format!("org.example.{name}")).u32(0);
        });
        rig.exchange(client);
    }
    for client in [bystander, waiter] {
        rig.clients[client].call("AddMatch", |w| {
            w.str(&long_rule(client));
        });
        rig.exchange(client);
    }
    for name in ["B", "A"] {
        rig.clients[caller].send(&format!("org.example.{name}"), "Ask", 10);
    }
    rig.exchange(caller);
    rig.checkpoint();
    // In the order in which they came: table, slot, and who is lost.
    let cases: [(usize, usize, &[usize]); 6] = [
        (1, 0, &[owner, waiter]),
        (1, 1, &[bystander]),
        (2, 0, &[bystander]),
        (2, 1, &[waiter]),
        (3, 0, &[caller, bystander]),
        (3, 1, &[owner, caller]),
    ];
    for (table, slot, lost) in cases {
        // Every field of the version that counts, the second, since each entry was written once.
        for byte in 80 * slot + 40..80 * slot + 80 {
            // Whose an entry is stands in it, and these fields are empty.
            let flip = rig.remains.flip(1, 4 * byte + table, 0x10);
            let recovered = rig.replay();
            let in_doubt: BTreeSet<usize> = recovered
                .in_doubt
                .iter()
                .map(|one| one.peer.generation as usize - 1)
                .collect();
            assert_eq!(in_doubt, lost.iter().copied().collect(), "{flip:?}");
            assert!(!recovered.is_damaged);
            recovered.broker.check_invariants().unwrap();
            rig.remains.undo(&flip);
        }
    }
    assert!(state(&rig.replay().broker) == state(rig.worker.broker()));
}

#[test]
fn who_was_lost_in_a_recovery_is_not_lost_again_in_the_next() {
    // Of the first peer's entry (its length, and whose it is), and of its name's.
    for (table, byte) in [(0, 80 * 16 + 72), (0, 80 * 16 + 56), (1, 50)] {
        let mut rig = Rig::new(false);
        for name in ["A", "B"] {
            let client = rig.greeted();
            rig.clients[client].call("RequestName", |w| {
                w.str(&format!("org.example.{name}")).u32(4);
            });
            rig.exchange(client);
        }
        rig.checkpoint();
        rig.remains.flip(1, 4 * byte + table, 0x10);
        for lost in [1, 0, 0] {
            let mut journal = Journal::reopen(rig.remains).unwrap();
            let mut recovered = crate::runtime::recover::replay(&mut journal, -1, None).unwrap();
            assert_eq!(
                recovered.in_doubt.len(),
                lost,
                "{table}, {byte}: {:?}",
                recovered.in_doubt
            );
            assert_eq!(recovered.broker.peer_ids().count(), 1);
            journal
                .checkpoint(&mut recovered.broker, recovered.generation)
                .unwrap();
        }
    }
}

/// Prints times; run it in a release build.
#[test]
#[ignore = "measures"]
fn one_peer_with_very_many_names_or_rules() {
    let count = 49_000;
    for what in ["names", "rules"] {
        let mut rig = Rig::new(false);
        let holder = rig.greeted();
        for from in (0..count).step_by(1_000) {
            for number in from..from + 1_000 {
                let client = &mut rig.clients[holder];
                match what {
                    "names" => client.call("RequestName", |w| {
                        w.str(&format!("org.example.Name{number}")).u32(4);
                    }),
                    _ => client.call("AddMatch", |w| {
                        w.str(&long_rule(number));
                    }),
                }
            }
            rig.exchange(holder);
        }
        let at = clock();
        let written = rig.checkpoint();
        eprintln!("{what}: a checkpoint {:?}, {written:?}", clock() - at);
        let at = clock();
        let mut journal = Journal::reopen(rig.remains).unwrap();
        let loaded = journal.load().unwrap().unwrap();
        let read = clock() - at;
        let (broker, dropped) = Broker::restore_checkpoint(loaded.checkpoint).unwrap();
        eprintln!("{what}: load {read:?}, restored after {:?}", clock() - at);
        assert_eq!(dropped, []);
        assert_eq!(broker.changed_entries(), 0);
        let at = clock();
        let saved = image::save(&broker, &WorkerState::default(), |_| None).unwrap();
        eprintln!(
            "{what}: image of {} bytes saved in {:?}",
            saved.len(),
            clock() - at
        );
        let at = clock();
        let mut restored = image::load(&saved, crate::runtime::now()).unwrap();
        eprintln!("{what}: loaded in {:?}", clock() - at);
        assert_eq!(restored.broker.changed_entries(), count);
        let at = clock();
        let mut journal = Journal::create().unwrap();
        journal.checkpoint(&mut restored.broker, 1).unwrap();
        eprintln!("{what}: first checkpoint in {:?}", clock() - at);
        let at = clock();
        drop(rig.clients.remove(holder));
        rig.worker.turns();
        eprintln!("{what}: all gone in {:?}", clock() - at);
        let at = clock();
        let written = rig.checkpoint();
        eprintln!("{what}: a checkpoint {:?}, {written:?}", clock() - at);
    }
}
