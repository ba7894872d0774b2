//! What a session costs in memory, counted by the allocator: live at most 48 KiB (here with both ends in one process), parked at
//! its host at most 4 KiB and what is not acknowledged.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub,
    unsafe_code
)]

mod support;

use bus_tcp::Event;
use bus_tcp::limits::Terms;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use support::{Rig, pattern, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

static LIVE: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: passes everything on to the system's allocator; counting changes nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SESSIONS: usize = 100;
const UNACKED: usize = 1000;
/// Bytes that went each way on a live session, three times.
const MUCH: usize = 50_000;

fn each(since: usize) -> usize {
    LIVE.load(Relaxed).saturating_sub(since) / SESSIONS
}

#[tokio::test]
async fn a_session_costs_48_kib_live_and_4_kib_parked() {
    let rig = Rig::tls().await;
    // One first, so that what is shared is there.
    let _first = rig.session(rig.address, Terms::DEFAULT).await;
    let empty = LIVE.load(Relaxed);
    let mut sessions = Vec::with_capacity(SESSIONS);
    let mut buf = vec![0; MUCH];
    for _ in 0..SESSIONS {
        let (mut client, mut host) = rig.session(rig.address, Terms::DEFAULT).await;
        for _ in 0..3 {
            client.write_all(&pattern(0, MUCH)).await.unwrap();
            host.read_exact(&mut buf).await.unwrap();
            host.write_all(&pattern(0, MUCH)).await.unwrap();
            client.read_exact(&mut buf).await.unwrap();
        }
        sessions.push((client, host));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let live = each(empty);
    drop(sessions);
    tokio::time::sleep(Duration::from_millis(500)).await;

    let empty = LIVE.load(Relaxed);
    let mut hosts = Vec::with_capacity(SESSIONS);
    for _ in 0..SESSIONS {
        let (client, host) = rig.session(rig.address, Terms::DEFAULT).await;
        // The client leaves, and says nothing: what is left is the host's.
        client.save().unwrap();
        hosts.push(host);
    }
    for host in &mut hosts {
        wait_for(host, |event| matches!(event, Event::Parked { .. })).await;
        host.write_all(&pattern(0, UNACKED)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let parked = each(empty);
    eprintln!(
        "live, both ends together: {live} bytes; parked, at the host: {parked} bytes, of these {UNACKED} not acknowledged"
    );
    assert!(live <= 48 * 1024, "{live} bytes");
    assert!((UNACKED..=4 * 1024 + UNACKED).contains(&parked), "{parked} bytes");
}
