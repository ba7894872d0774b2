//! Random work, failures and deaths, compared with the model.

use std::rc::Rc;

use super::model::Bus;
use super::{BacklogV1, Dice, SALT, Store, new_store, read_all};

fn with_seed(seed: u64, test: impl FnOnce()) {
    struct Tell(u64);
    impl Drop for Tell {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("the seed was {}", self.0);
            }
        }
    }
    let _tell = Tell(seed);
    test();
}

#[test]
fn random_work_is_as_in_the_model() {
    for seed in 0..60 {
        with_seed(seed, || {
            let mut bus = Bus::new(seed);
            for round in 0..80 {
                bus.act().unwrap();
                if round % 20 == 19 {
                    bus.check();
                    bus.check_counts();
                }
            }
            bus.check_nothing_leaks();
        });
    }
}

#[test]
fn a_death_at_any_write_leaves_what_was_committed() {
    let mut deaths = 0;
    for seed in 100..102 {
        let mut bus = Bus::new(seed);
        (0..12).for_each(|_| bus.act().unwrap());
        for die_at in 0..bus.memory.changes() {
            with_seed(seed * 1_000_000 + die_at, || {
                let mut bus = Bus::new(seed);
                bus.memory.die_at.set(Some(die_at));
                while bus.act().is_ok() {}
                assert!(bus.memory.is_dead.get());
                deaths += 1;
                bus.recover();
                bus.check();
                // The successor works on while it counts, and dies as well.
                bus.memory.die_at.set(Some(die_at % 7));
                (0..6).take_while(|_| bus.act().is_ok()).count();
                bus.recover();
                bus.check();
                for _ in 0..6 {
                    bus.act().unwrap();
                }
                bus.check();
                bus.check_counts();
                bus.check_nothing_leaks();
                bus.act().unwrap();
                bus.check();
            });
        }
    }
    assert!(deaths > 60, "only {deaths} deaths");
}

#[test]
fn a_write_that_fails_changes_nothing() {
    for seed in 200..202 {
        let mut bus = Bus::new(seed);
        (0..20).for_each(|_| bus.act().unwrap());
        for fail_at in 0..bus.memory.changes() {
            with_seed(seed * 1_000_000 + fail_at, || {
                let mut bus = Bus::new(seed);
                bus.memory.fail_at.set(Some(fail_at));
                while bus.act().is_ok() {}
                bus.check();
                bus.check_counts();
                for _ in 0..4 {
                    bus.act().unwrap();
                }
                bus.check();
                bus.recover();
                bus.check();
                bus.check_counts();
                bus.check_nothing_leaks();
            });
        }
    }
}

#[test]
fn what_is_dropped_while_a_sweep_is_under_way_waits_for_the_next_commit() {
    let (memory, mut store) = new_store();
    let mut dice = Dice(11);
    let mut backlog = BacklogV1::empty(1, 0);
    let mut append = |store: &mut super::TestStore, backlog: &mut BacklogV1| {
        store.begin_checkpoint();
        let bodies: Vec<Vec<u8>> = (0..3000).map(|_| dice.bytes(700)).collect();
        for body in &bodies {
            let end = body.as_ptr() as usize + body.len();
            store.append_body(backlog, end, body).unwrap();
        }
        store.flush().unwrap();
        bodies.concat()
    };
    let bytes = append(&mut store, &mut backlog);
    store.committed();
    let memory = Rc::new(memory.survivor());
    let mut store = Store::reopen(memory.clone(), SALT).unwrap();
    store.begin_rebuild([backlog]);
    store.end_naming();
    while store.step(100).unwrap() {}
    store.committed();
    // The sweep is about to begin, and is under way.
    let mut live = backlog;
    store.advance(&mut live, 500_000).unwrap();
    assert!(store.step(100).unwrap());
    store.advance(&mut live, 1_500_000).unwrap();
    while store.step(100).unwrap() {}
    append(&mut store, &mut BacklogV1::empty(2, 0));
    let mut store = Store::reopen(Rc::new(memory.survivor()), SALT).unwrap();
    store.begin_rebuild([backlog]);
    store.end_naming();
    assert!(read_all(&mut store, &backlog, 9000).unwrap() == bytes);
}
