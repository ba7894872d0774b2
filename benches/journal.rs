//! Checkpoint and recovery: what they cost with so many peers that have changed since the last one, and so many that have
//! not.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::cell::RefCell;

use bus_daemon::JournaledBus;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

criterion_group!(benches, checkpoint, recovery);
criterion_main!(benches);

/// Peers that are there, and how many of them change: the first row with eight times as many unchanged, and with eight
/// times as many changed.
const SIZES: [(u32, usize); 4] = [(500, 50), (4000, 50), (4000, 400), (4000, 4000)];

fn name((peers, changed): (u32, usize)) -> BenchmarkId {
    BenchmarkId::new(format!("of {peers} peers changed"), changed)
}

/// One element is a changed peer: with 500 peers and with 4,000 it costs the same.
fn checkpoint(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checkpoint");
    for size in SIZES {
        let (peers, changed) = size;
        let bus = RefCell::new(JournaledBus::new(peers));
        group.throughput(Throughput::Elements(changed as u64));
        group.bench_function(name(size), |bencher| {
            bencher.iter_batched(
                || bus.borrow_mut().change(changed),
                |()| bus.borrow_mut().checkpoint(),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// One element is a peer; a changed one has sent a call since the checkpoint, and read the answer.
fn recovery(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("recovery");
    group.sample_size(20);
    for size in SIZES {
        let (peers, changed) = size;
        let mut bus = JournaledBus::new(peers);
        bus.change(changed);
        group.throughput(Throughput::Elements(u64::from(peers)));
        group.bench_function(name(size), |bencher| {
            bencher.iter(|| assert_eq!(bus.recover(), peers as usize, "somebody is lost"));
        });
    }
    group.finish();
}
