//! What things cost, counted.

use std::time::Instant;

use super::super::{BacklogV1, Medium, Memfd, Store};
use super::{Dice, SALT, new_store, read_all, settle};

/// A checkpoint with that many bodies of `len` bytes for that many peers: system calls, and bytes written.
fn checkpoint(bodies: usize, len: usize, peers: usize) -> (u64, u64) {
    let (memory, mut store) = new_store();
    let all: Vec<Vec<u8>> = (0..bodies).map(|index| vec![index as u8; len]).collect();
    let mut backlogs: Vec<BacklogV1> = (0..peers as u64).map(|peer| BacklogV1::empty(peer, 0)).collect();
    store.begin_checkpoint();
    for backlog in &mut backlogs {
        for body in &all {
            store
                .append_body(backlog, body.as_ptr() as usize + len, body)
                .unwrap();
        }
    }
    store.flush().unwrap();
    store.committed();
    assert_eq!(memory.reads.get(), 0, "a checkpoint reads");
    (memory.writes.get(), memory.written.get())
}

#[test]
fn bodies_are_written_once_and_deliveries_cost_24_bytes() {
    // All but the last block of a run are written with their padding, so bodies of 256 bytes show the sum.
    let (bodies, len, peers) = (100_000, 256, 40);
    let (writes, written) = checkpoint(bodies, len, peers);
    let per_delivery = (written - (bodies * len) as u64) as f64 / (bodies * peers) as f64;
    assert!(
        (24.0..=25.0).contains(&per_delivery),
        "{per_delivery} bytes per delivery"
    );
    let runs = written.div_ceil(64 * 1024);
    assert!(
        writes <= runs + runs / 8 + 2 * peers as u64,
        "{writes} calls for {runs} runs"
    );
}

#[test]
fn a_checkpoint_costs_what_is_new() {
    for (len, peers) in [(200, 1), (200, 40), (2000, 10), (60_000, 40)] {
        let (few, few_bytes) = checkpoint(1000, len, peers);
        let (many, many_bytes) = checkpoint(8000, len, peers);
        // The first page of a peer has nothing before it that names it: 16 bytes less.
        let most_bytes = 8 * few_bytes + 8 * 16 * peers as u64;
        assert!(
            many <= 8 * few && many_bytes <= most_bytes,
            "{few} to {many} calls, {few_bytes} to {many_bytes} bytes"
        );
        let most = |bytes: u64| bytes / 32_768 + 2 * peers as u64 + 1;
        assert!(
            few <= most(few_bytes) && many <= most(many_bytes),
            "{few}, {many} calls"
        );
    }
}

#[test]
fn what_is_stored_is_not_written_again() {
    let (memory, mut store) = new_store();
    let mut backlogs: Vec<BacklogV1> = (0..100).map(|peer| BacklogV1::empty(peer, 0)).collect();
    let body = vec![7; 60_000];
    for round in 0..50 {
        memory.reset_counts();
        store.begin_checkpoint();
        for backlog in &mut backlogs {
            let key = body.as_ptr() as usize + body.len();
            store.append_body(backlog, key, &body).unwrap();
        }
        store.flush().unwrap();
        store.committed();
        assert!(
            memory.writes.get() <= 201 && memory.written.get() <= 60_000 + 100 * 48,
            "round {round}: {} calls, {} bytes",
            memory.writes.get(),
            memory.written.get()
        );
    }
}

#[test]
fn draining_reads_runs_of_blocks_and_each_page_once() {
    let (memory, mut store) = new_store();
    let mut dice = Dice(1);
    let mut backlog = BacklogV1::empty(1, 0);
    let bodies: Vec<Vec<u8>> = (0..17_000)
        .map(|index| dice.bytes(if index % 2 == 0 { 200 } else { 900 }))
        .collect();
    for body in &bodies {
        let key = body.as_ptr() as usize + body.len();
        store.append_body(&mut backlog, key, body).unwrap();
    }
    store.flush().unwrap();
    store.committed();
    memory.reset_counts();
    let expected: Vec<u8> = bodies.concat();
    let mut got = Vec::new();
    let mut buffer = vec![0; 256 * 1024];
    while !backlog.is_empty() {
        let filled = store.read(&backlog, backlog.start, &mut buffer).unwrap();
        got.extend_from_slice(&buffer[..filled]);
        let upto = backlog.start + filled as u64;
        store.advance(&mut backlog, upto).unwrap();
    }
    assert!(got == expected);
    let pages = 17_000_u64.div_ceil(170);
    let reads = expected.len() as u64 / (256 * 1024) + 1;
    let runs = expected.len() as u64 * 12 / 10 / (64 * 1024);
    // A read ends in some page, which the next begins with.
    let most = 2 * pages + 4 * reads + 2 * runs;
    assert!(
        memory.reads.get() <= most,
        "{} reads, {most} expected",
        memory.reads.get()
    );
}

#[test]
fn a_limit_refuses_and_leaves_the_backlog_as_it_was() {
    let (_, mut store) = new_store();
    store.set_limit(1 << 20);
    let mut backlog = BacklogV1::empty(1, 0);
    let body = vec![1; 50_000];
    let mut appended = 0;
    loop {
        let before = backlog;
        store.begin_checkpoint();
        if store.append_body(&mut backlog, 1 << 40, &body).is_err() {
            assert_eq!(backlog, before);
            break;
        }
        appended += 1;
    }
    assert!((15..=20).contains(&appended), "{appended}");
    assert!(store.held() <= 1 << 20);
    assert_eq!(
        read_all(&mut store, &backlog, 70_000).unwrap().len(),
        appended * 50_000
    );
    let end = backlog.end;
    store.advance(&mut backlog, end).unwrap();
    settle(&mut store);
    store.set_limit(2 << 20);
    store.append_body(&mut backlog, 1, &body).unwrap();
}

#[test]
fn a_memfd_gives_its_memory_back() {
    let medium = Memfd::create(c"bus-store-test").unwrap();
    let mut store = Store::create(medium, SALT);
    let body = vec![9; 60_000];
    let mut backlog = BacklogV1::empty(1, 0);
    for _ in 0..500 {
        store.begin_checkpoint();
        store.append_body(&mut backlog, 1 << 40, &body).unwrap();
    }
    store.flush().unwrap();
    store.committed();
    let allocated = medium.allocated().unwrap();
    assert!((30_000_000..=store.held()).contains(&allocated), "{allocated}");
    let committed = backlog;
    let mut store = Store::reopen(Memfd::reopen(medium.fd()), SALT).unwrap();
    store.begin_rebuild([committed]);
    store.end_naming();
    while store.step(100).unwrap() {}
    store.committed();
    while store.step(100).unwrap() {}
    let all = read_all(&mut store, &backlog, 100_000).unwrap();
    assert!(all.len() == 500 * 60_000 && all.iter().all(|byte| *byte == 9));
    let end = backlog.end;
    store.advance(&mut backlog, end).unwrap();
    store.committed();
    while store.step(100).unwrap() {}
    assert!(store.medium().allocated().unwrap() <= 1 << 20);
    assert!(nix::unistd::close(medium.fd()).is_ok());
}

#[test]
fn nothing_idle_is_kept_once_it_is_to_be_returned() {
    let (memory, mut store) = new_store();
    let mut dice = Dice(11);
    let mut backlogs: Vec<BacklogV1> = (0..40).map(|peer| BacklogV1::empty(peer, 0)).collect();
    let bodies: Vec<Vec<u8>> = (0..400).map(|n| vec![n as u8; 1 + dice.below(20_000)]).collect();
    store.begin_checkpoint();
    for (index, backlog) in backlogs.iter_mut().enumerate() {
        for body in bodies.iter().skip(index % 3) {
            let key = body.as_ptr() as usize + body.len();
            store.append_body(backlog, key, body).unwrap();
        }
    }
    settle(&mut store);
    let before = store.used();
    assert!(before >= bodies.iter().map(|body| body.len() as u64).sum());
    for backlog in &mut backlogs {
        let upto = backlog.start + (backlog.end - backlog.start) / 10 * 9;
        store.advance(backlog, upto).unwrap();
    }
    // What a commit frees does not count any more, though it is still there.
    assert!(store.used() < before / 4 && store.held() >= before);
    settle(&mut store);
    let kept = store.held();
    store.return_idle();
    settle(&mut store);
    assert!(store.held() < kept && store.held() == memory.frames().len() as u64 * 4096);
    // Beside what is used there are only the rests of pages.
    assert!(
        store.held() <= store.used() + store.used() / 2,
        "{} of {}",
        store.used(),
        store.held()
    );
    for backlog in &mut backlogs {
        let upto = backlog.end;
        assert!(!read_all(&mut store, backlog, 50_000).unwrap().is_empty());
        store.advance(backlog, upto).unwrap();
    }
    settle(&mut store);
    store.return_idle();
    settle(&mut store);
    assert_eq!((store.used(), store.held(), memory.frames().len()), (0, 0, 0));
}

#[test]
#[ignore = "measures; run it alone, with --release"]
#[expect(clippy::disallowed_methods, clippy::print_stdout, reason = "measures")]
fn nanoseconds() {
    for (len, peers) in [(200, 40), (2000, 40), (60_000, 10)] {
        let bodies = 100_000_000 / len / 5;
        let all: Vec<Vec<u8>> = (0..bodies).map(|index| vec![index as u8; len]).collect();
        let medium = Memfd::create(c"bus-store-measure").unwrap();
        let mut store = Store::create(medium, SALT);
        let mut backlogs: Vec<BacklogV1> = (0..peers).map(|peer| BacklogV1::empty(peer, 0)).collect();
        let per = |start: Instant, count: usize| start.elapsed().as_nanos() as f64 / count as f64;
        let start = Instant::now();
        let references: Vec<_> = all
            .iter()
            .map(|body| store.put_body(body.as_ptr() as usize + len, body).unwrap())
            .collect();
        let put = per(start, bodies);
        let start = Instant::now();
        for backlog in &mut backlogs {
            for reference in &references {
                store.append_reference(backlog, *reference, 0).unwrap();
            }
        }
        let deliveries = bodies * backlogs.len();
        let append = per(start, deliveries);
        store.flush().unwrap();
        store.committed();
        let start = Instant::now();
        let mut successor = Store::reopen(medium, SALT).unwrap();
        successor.begin_rebuild(backlogs.iter().copied());
        successor.end_naming();
        while successor.step(10_000).unwrap() {}
        let count = per(start, deliveries);
        let mut buffer = vec![0; 256 * 1024];
        let start = Instant::now();
        for backlog in &mut backlogs {
            while !backlog.is_empty() {
                let filled = store.read(backlog, backlog.start, &mut buffer).unwrap();
                let upto = backlog.start + filled as u64;
                store.advance(backlog, upto).unwrap();
            }
        }
        let drain = per(start, deliveries);
        let start = Instant::now();
        store.committed();
        while store.step(10_000).unwrap() {}
        let free = per(start, deliveries);
        println!(
            "{len} bytes, {peers} peers, {bodies} bodies: put {put:.0} ns per body; per delivery: append {append:.1}, \
             count after reopen {count:.1}, drain {drain:.0}, free {free:.2}"
        );
        let _ = nix::unistd::close(medium.fd());
    }
}
