//! Images that earlier builds wrote. Every build must read them, and find in them what was there.
//!
//! A golden file is written once, by the build that begins a version of the format, and never again:
//! `cargo test -p bus-daemon --test state_image -- --ignored write_golden`

use std::path::PathBuf;

use bus_daemon::broker::{Broker, Millis, PeerId};
use bus_daemon::handoff::container;
use bus_daemon::handoff::form::Form;
use bus_daemon::handoff::image::{self, Restored, WorkerState};
use bus_daemon::handoff::stored::{BacklogV1, InputV1, LAYOUT, StandIn, Stored};
use bus_wire::Fd;

use crate::image::{NOW, load, number, worker};
use crate::rich::{rich, ruled};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

#[test]
#[ignore = "writes the golden file of a new version of the format; never for one that was released"]
fn write_golden_image() {
    let broker = ruled().broker;
    std::fs::write(path("image-v5.bin"), save_with(&broker, stored(&broker))).unwrap();
}

/// As if bytes waited for some of the peers in a store, and others were in the middle of large messages.
fn stored(broker: &Broker) -> Stored {
    let peers = broker.peer_ids().filter_map(|peer| {
        let queue = broker.send_queue(peer)?;
        queue
            .fds()
            .next()
            .is_none()
            .then(|| BacklogV1::without_pages(peer.to_u64(), queue.sent(), queue.sent() + 1000))
    });
    let inputs = broker
        .peer_ids()
        .filter(|peer| peer.index % 3 == 1)
        .map(|peer| InputV1::made_up(peer.to_u64(), 100_000 + u64::from(peer.index)));
    Stored {
        number: 77,
        salt: 0x1234_5678,
        layout: LAYOUT,
        backlogs: peers.collect(),
        inputs: inputs.collect(),
    }
}

fn save_with(broker: &Broker, stored: Stored) -> Vec<u8> {
    let worker = WorkerState {
        stored: Some(stored),
        ..worker(broker)
    };
    image::save(broker, &worker, |handle| Some(number(handle))).unwrap()
}

/// Whole but for these peers, and as it was when it was first read.
fn check(version: u16, lost: &[u32]) -> Restored {
    let bytes = std::fs::read(path(&format!("image-v{version}.bin"))).unwrap();
    let restored = load(&bytes).unwrap();
    assert_eq!(restored.version, version);
    let dropped: Vec<u32> = restored.dropped.iter().map(|one| one.peer.index).collect();
    assert_eq!((dropped.as_slice(), restored.damage.as_slice()), (lost, &[][..]));
    restored.broker.check_invariants().unwrap();
    let state = restored.broker.save();
    insta::with_settings!({ snapshot_path => "../golden", prepend_module_to_snapshot => false }, {
        let text = format!("{:#?}\n{:?}\n{state:#?}", restored.worker, restored.manifest);
        insta::assert_snapshot!(format!("image-v{version}"), text);
    });
    restored
}

#[test]
fn version_1_is_read() {
    // Two peers have received descriptors whose numbers are the indexes of others. On a real bus of version 1 an index was
    // the number of a descriptor, and no two were the same; see `broker/restore/tests.rs`, where this is put right.
    let restored = check(1, &[3, 4]);
    // A handle was the number, and the socket's was the index.
    assert!(
        restored
            .manifest
            .iter()
            .all(|(handle, number)| handle.0 == *number)
    );
    for peer in restored.broker.peer_ids() {
        let socket = Fd(peer.index as i32);
        assert_eq!(restored.broker.socket(peer), Some(socket));
        assert!(restored.manifest.contains(&(socket, socket.0)));
    }
    // Somebody waits for a reading, which is to come as if it had just been asked for.
    assert_eq!(restored.broker.next_deadline(), Some(Millis(NOW.0 + 250)));
}

#[test]
fn version_2_is_read() {
    let restored = check(2, &[]);
    let numbers = restored.broker.owned_fds().into_iter();
    assert_eq!(
        restored.manifest,
        numbers.map(|fd| (fd, number(fd))).collect::<Vec<_>>()
    );
    // Nothing was stored elsewhere.
    assert_eq!(restored.worker.stored, None);
    // Whose is what waits was not saved.
    let mut expected = rich().bus.broker.save();
    expected.shares = restored.broker.save_shares();
    assert!(restored.broker.save() == expected);
}

#[test]
fn version_3_is_read() {
    let restored = check(3, &[]);
    let stored = restored.worker.stored.as_ref().unwrap();
    assert!(!stored.backlogs.is_empty());
    let offsets: Vec<_> = stored
        .backlogs
        .iter()
        .map(|backlog| (PeerId::from_u64(backlog.owner()), backlog.end()))
        .collect();
    assert_eq!(restored.broker.stored_offsets(), offsets);
    assert!(stored.inputs.is_empty());
}

#[test]
fn version_4_is_read() {
    let restored = check(4, &[]);
    // It is what is saved today but for records that a reader may pass over, and saved again it is the same.
    let bytes = std::fs::read(path("image-v4.bin")).unwrap();
    let stored = restored.worker.stored.as_ref().unwrap();
    let with_both = |input: &&InputV1| {
        stored
            .backlogs
            .iter()
            .any(|backlog| backlog.owner() == input.owner())
    };
    assert!(stored.inputs.iter().any(|input| with_both(&input)));
    assert!(stored.inputs.iter().any(|input| !with_both(&input)));
    assert!(stored.backlogs.len() > stored.inputs.len());
    let form = Form::new(4, Some(LAYOUT)).unwrap();
    assert_eq!(container::difference(&save_again(&restored, form), &bytes), None);
}

fn save_again(restored: &Restored, form: Form) -> Vec<u8> {
    let number = |handle| Some(number(handle));
    image::save_as(form, &restored.broker, &restored.worker, number, &mut StandIn).unwrap()
}

#[test]
fn version_5_is_read() {
    let restored = check(5, &[]);
    let bytes = std::fs::read(path("image-v5.bin")).unwrap();
    assert_eq!(
        container::difference(&save_again(&restored, Form::OWN), &bytes),
        None
    );
    // The policy is as it was, file, line and all.
    assert!(restored.broker.save_in_force() == ruled().broker.save_in_force());
    let at_console = restored.broker.save_in_force().at_console;
    assert!(!at_console.is_empty());
    // Versions before it have no place for that.
    let form = Form::new(4, Some(LAYOUT)).unwrap();
    let number = |handle| Some(number(handle));
    let refused = image::save_as(form, &restored.broker, &restored.worker, number, &mut StandIn);
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("a policy that allows some things"),
        "the refusal does not say why"
    );
}
