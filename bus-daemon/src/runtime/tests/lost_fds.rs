//! Descriptors that the kernel had to drop, and a worker that died before it could disconnect their sender.

use std::io::Write;

use super::Rig;
use crate::broker::PeerId;
use crate::journal::Journal;

/// A rig with one client that has said Hello; its peer.
fn rig() -> (Rig, PeerId) {
    let mut rig = Rig::new(true);
    rig.connect();
    let hello = rig.clients[0].waiting.split_off(0);
    rig.clients[0].stream.write_all(&hello).unwrap();
    rig.worker.turns();
    let peer = rig.worker.broker().peer_ids().next().unwrap();
    (rig, peer)
}

/// Whether a replay gives a bus that has the peer. The second worker after this one finds the same.
fn is_here_after_replay(rig: &Rig, peer: PeerId) -> bool {
    let mut there = [false; 2];
    for there in &mut there {
        let recovered = rig.replay();
        assert!(!recovered.is_damaged && recovered.in_doubt.is_empty());
        *there = recovered.broker.peer_ids().any(|here| here == peer);
    }
    assert_eq!(there[0], there[1]);
    there[0]
}

#[test]
fn a_read_that_was_under_way_and_lost_descriptors_ends_its_peer() {
    for lost_fds in [false, true] {
        let (mut rig, peer) = rig();
        rig.clients[0].call("GetId", |_| {});
        let call = rig.clients[0].waiting.split_off(0);
        rig.clients[0].stream.write_all(&call).unwrap();
        let taken = rig.worker.broker().taken(peer);
        let socket = rig.worker.broker().socket(peer).unwrap();
        let journal: &mut Journal = rig.worker.journal();
        let number = journal.number(socket).unwrap();
        journal.die_receiving(number, peer, taken, lost_fds);
        assert_eq!(is_here_after_replay(&rig, peer), !lost_fds);
    }
}

#[test]
fn a_read_that_is_in_the_log_and_lost_descriptors_ends_its_peer() {
    let (mut rig, peer) = rig();
    let taken = rig.worker.broker().taken(peer);
    assert!(is_here_after_replay(&rig, peer));
    rig.worker.journal().pretend_received_without_fds(peer, taken, 8);
    assert!(!is_here_after_replay(&rig, peer));
}
