//! Callers who know what became of each of their calls, and who compare that with what ran.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bus_client::{Builder, Call, Connection, Error, Fate, WhileDown};

use super::Counter;

/// How many callers there are.
const CALLERS: usize = 8;

/// How often each numbered call ran, as whoever runs them has written it down.
pub trait Runs: Send + Sync {
    fn of(&self, id: u64) -> u32;
    fn total(&self) -> u64;
    /// The number of each that ran, and how often.
    fn all(&self) -> HashMap<u64, u32>;
}

impl Runs for Counter {
    fn of(&self, id: u64) -> u32 {
        self.runs(id)
    }

    fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    fn all(&self) -> HashMap<u64, u32> {
        self.runs.lock().unwrap().clone()
    }
}

/// What became of the calls of one caller.
#[derive(Debug, Default, Clone, Copy)]
pub struct Fates {
    pub answered: u64,
    pub not_sent: u64,
    pub unknown: u64,
    pub unknown_ran: u64,
}

pub struct Load {
    /// Whom the calls are for: a name, or nothing where there is no bus.
    to: &'static str,
    runs: Arc<dyn Runs>,
    next: AtomicU64,
    is_over: AtomicBool,
    not_sent: Mutex<Vec<u64>>,
}

impl Load {
    pub fn new(to: &'static str, runs: Arc<dyn Runs>) -> Arc<Self> {
        Arc::new(Self {
            to,
            runs,
            next: AtomicU64::new(1),
            is_over: AtomicBool::new(false),
            not_sent: Mutex::default(),
        })
    }

    /// How many calls ran.
    pub fn total(&self) -> u64 {
        self.runs.total()
    }

    /// The callers make no more calls.
    pub fn end_soon(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn begin(&self, connection: &Connection) -> (u64, Call<u64>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let call = connection.call(self.to, "/counter", "com.example.Counter.Run", &id);
        // Some would rather fail than wait.
        let while_down = if id.is_multiple_of(3) {
            WhileDown::FailFast
        } else {
            WhileDown::Wait
        };
        (id, call.while_down(while_down))
    }

    fn end(&self, id: u64, result: Result<u64, Error>, fates: &mut Fates) {
        let runs = self.runs.of(id);
        match result {
            Ok(answer) => {
                assert_eq!((answer, runs), (id, 1), "call {id}");
                fates.answered += 1;
            }
            Err(error) => match error.fate() {
                Some(Fate::NotSent) => {
                    assert_eq!(runs, 0, "call {id} was not sent, and ran: {error}");
                    self.not_sent.lock().unwrap().push(id);
                    fates.not_sent += 1;
                }
                Some(_) => {
                    assert!(runs <= 1, "call {id} ran {runs} times");
                    fates.unknown += 1;
                    fates.unknown_ran += u64::from(runs);
                }
                None => panic!("call {id}: {error}"),
            },
        }
    }

    /// What has become of all calls, when nothing runs any more: later than when each of them ended.
    fn check(&self, all: Fates, kills: u32) {
        let runs = self.runs.all();
        let ran = runs.len() as u64;
        eprintln!("{kills} kills: {all:?}, {ran} ran");
        assert!(all.answered > u64::from(kills) * 10, "{all:?}");
        assert!(all.unknown > 0 && all.not_sent > 0, "{all:?}");
        let twice: Vec<_> = runs.iter().filter(|(_, runs)| **runs > 1).collect();
        assert!(twice.is_empty(), "ran more than once: {twice:?}");
        let not_sent = self.not_sent.lock().unwrap();
        let ran_late: Vec<_> = not_sent.iter().filter(|id| runs.contains_key(id)).collect();
        assert!(
            ran_late.is_empty(),
            "were not sent, and ran afterwards: {ran_late:?}"
        );
        assert!(
            (all.answered..=all.answered + all.unknown).contains(&ran),
            "{ran}"
        );
    }
}

/// Who drives the client's connection.
#[derive(Debug, Clone, Copy)]
pub enum Driver {
    Thread,
    Task,
}

/// Calls from a client of this driver while `trouble` does something to whom they are for.
pub fn under_load(
    driver: Driver,
    builder: Builder,
    load: &Arc<Load>,
    kills: u32,
    trouble: impl FnOnce(&Connection),
) {
    let all: Vec<Fates> = match driver {
        Driver::Thread => {
            let client = builder.connect_thread().unwrap();
            let callers: Vec<_> = (0..CALLERS)
                .map(|_| {
                    let (load, client) = (load.clone(), client.clone());
                    std::thread::spawn(move || call(&load, &client))
                })
                .collect();
            trouble(&client);
            callers.into_iter().map(|caller| caller.join().unwrap()).collect()
        }
        Driver::Task => {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
            let client = runtime.block_on(builder.connect()).unwrap();
            let callers: Vec<_> = (0..CALLERS)
                .map(|_| runtime.spawn(call_in_a_task(load.clone(), client.clone())))
                .collect();
            trouble(&client);
            let ends = callers
                .into_iter()
                .map(|caller| runtime.block_on(caller).unwrap());
            ends.collect()
        }
    };
    let sum = all.into_iter().fold(Fates::default(), |sum, one| Fates {
        answered: sum.answered + one.answered,
        not_sent: sum.not_sent + one.not_sent,
        unknown: sum.unknown + one.unknown,
        unknown_ran: sum.unknown_ran + one.unknown_ran,
    });
    load.check(sum, kills);
}

fn call(load: &Load, client: &Connection) -> Fates {
    let mut fates = Fates::default();
    while !load.is_over() {
        let (id, call) = load.begin(client);
        let result = call.wait();
        if result.is_err() {
            std::thread::sleep(Duration::from_millis(2));
        }
        load.end(id, result, &mut fates);
    }
    fates
}

async fn call_in_a_task(load: Arc<Load>, client: Connection) -> Fates {
    let mut fates = Fates::default();
    while !load.is_over() {
        let (id, call) = load.begin(&client);
        let result = call.await;
        if result.is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        load.end(id, result, &mut fates);
    }
    fates
}
