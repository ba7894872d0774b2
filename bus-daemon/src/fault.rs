//! Faults on demand, for tests of what must survive them. Compiled only with the feature `test-hooks`.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use crate::broker::{Broker, Event};

/// What the environment asks for, read once: some of the places are passed with every event.
fn wanted() -> Option<&'static str> {
    static WANTED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("BUS_TEST_FAULT").ok());
    WANTED.as_deref()
}

/// Whether the environment asks for the fault of this name.
fn is_wanted(name: &str) -> bool {
    wanted() == Some(name)
}

/// Ends this process by its own fault if `BUS_TEST_FAULT` is `restore:PATH` of this binary (whoever it is handed on to
/// inherits the environment, and is not meant), or `restore:any`.
pub(crate) fn in_restore(binary: &std::path::Path) {
    if is_wanted("restore:any") || is_wanted(&format!("restore:{}", binary.display())) {
        std::process::abort();
    }
}

/// With `BUS_TEST_FAULT=kill:PLACES`, where PLACES are like `checkpoint=300,recovery=5000`: every other worker is killed,
/// as somebody outside would do it, at one of that many passes through the place, drawn at random; sooner more often
/// than later. The log says where it was.
pub(crate) fn kill_in(place: &'static str) {
    if !wanted().is_some_and(|wanted| wanted.starts_with("kill:")) {
        return;
    }
    static DOOM: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());
    let mut places = DOOM.lock().unwrap_or_else(PoisonError::into_inner);
    let left = places.entry(place).or_insert_with(|| draw(place).unwrap_or(0));
    if *left == 1 {
        tracing::error!("a fault on demand: killed in {place}");
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
    *left = left.saturating_sub(1);
}

/// At which pass through the place this process is to be killed, if at any.
fn draw(place: &str) -> Option<u64> {
    let mut places = wanted()?.strip_prefix("kill:")?.split(',');
    let most: u64 = places.find_map(|entry| entry.strip_prefix(place)?.strip_prefix('=')?.parse().ok())?;
    let mut random = [0; 8];
    crate::os::random::fill(&mut random);
    let random = u64::from_ne_bytes(random);
    let shift = (random >> 1) % u64::from(most.max(2).ilog2());
    let range = (most >> shift).max(1);
    (random & 1 == 1).then_some(1 + (random >> 8) % range)
}

/// With `BUS_TEST_FAULT=at-event`: ends this process at an event that is about to be applied, live or in a replay, as
/// the file `fault-at` in `$XDG_RUNTIME_DIR` says: letters, one for each death (`a` abort, `k` SIGKILL), a blank, and
/// lines of which the event contains one when it is printed. The first event that does is meant from then on, and no
/// other.
fn at_event(event: &Event) {
    if !is_wanted("at-event") {
        return;
    }
    let Some(directory) = std::env::var_os("XDG_RUNTIME_DIR") else {
        return;
    };
    let path = std::path::Path::new(&directory).join("fault-at");
    let Ok(orders) = std::fs::read_to_string(&path) else {
        return;
    };
    let Some((deaths, meant)) = orders.split_once(' ') else {
        return;
    };
    let printed = format!("{event:?}");
    // A replay may give another reason.
    let this = printed.split(", reason").next().unwrap_or_default();
    let mut deaths = deaths.chars();
    let is_meant = meant.lines().any(|line| this.contains(line));
    let Some(death) = deaths.next().filter(|_| is_meant) else {
        return;
    };
    let _ = std::fs::write(&path, format!("{} {this}", deaths.as_str()));
    if death == 'a' {
        std::process::abort();
    }
    let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
}

/// With `BUS_TEST_FAULT=poison`, input with one of these words in it is deadly, as a message would be that meets a
/// fault of the broker: `POISON-ABORT`, `POISON-PANIC`, `POISON-HANG`.
pub(crate) fn poison(event: &Event, broker: &Broker) {
    at_event(event);
    if !is_wanted("poison") {
        return;
    }
    let waiting = if let Event::Step { peer } = event {
        broker.waiting_input(*peer)
    } else {
        None
    };
    let (Event::Received { data, .. } | Event::ReceivedLarge { prefix: data, .. }) = event else {
        return waiting.iter().for_each(|data| deadly(data));
    };
    deadly(data);
}

fn deadly(data: &[u8]) {
    let has = |word: &str| data.windows(word.len()).any(|window| window == word.as_bytes());
    if !has("POISON-") {
        return;
    }
    if has("POISON-ABORT") {
        std::process::abort();
    }
    assert!(!has("POISON-PANIC"), "a panic on demand");
    while has("POISON-HANG") {
        std::hint::spin_loop();
    }
}

/// With `BUS_TEST_FAULT=shared-runtime`, the worker is not alone on its runtime: it has to wait as that does.
pub(crate) fn share_runtime() {
    if is_wanted("shared-runtime") {
        tokio::spawn(std::future::pending::<()>());
    }
}

/// With `BUS_TEST_FAULT=damaged-worker`: damages the worker's own record, the first, in the state that is handed over.
pub(crate) fn damage_worker(image: std::os::fd::RawFd) {
    if !is_wanted("damaged-worker") {
        return;
    }
    let Ok(whole) = crate::os::memfd::read(image) else {
        return;
    };
    let mut bytes = whole.to_vec();
    // In its body.
    if let Some(place) = bytes.windows(4).position(|window| window == b"brec") {
        bytes[place + 26] ^= 0x10;
    }
    let _ = crate::os::memfd::replace(image, &bytes);
}

/// How long an errand may take, from `BUS_TEST_PATIENCE`, in milliseconds.
pub(crate) fn patience() -> Option<crate::os::clock::Nanos> {
    let milliseconds: u64 = std::env::var("BUS_TEST_PATIENCE").ok()?.parse().ok()?;
    Some(crate::os::clock::Nanos(milliseconds * 1_000_000))
}
