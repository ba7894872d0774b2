//! Messages that are not whole, in checkpoints.

use std::io::Write;

use super::{Rig, state};
use crate::journal::Written;

const PEERS: usize = 100;
/// Less than has an extent from its beginning on.
const HALF: usize = 60_000;
/// Bytes that one turn may write to a checkpoint: those that are written ahead, and the last few peers with them.
const MOST: usize = (1 << 20) + 4 * HALF;

/// Peers each of which has sent so much of a message.
fn halves(rig: &mut Rig) {
    for index in 0..PEERS {
        rig.connect();
        rig.write_all(index);
        let client = &mut rig.clients[index];
        client.send("org.example.Nobody", "Take", HALF + 1_000);
        client.stream.write_all(&client.waiting[..HALF]).unwrap();
        client.waiting.drain(..HALF);
        rig.worker.turns();
    }
}

fn go_on(rig: &mut Rig) {
    for client in &mut rig.clients {
        let byte = client.waiting.remove(0);
        client.stream.write_all(&[byte]).unwrap();
    }
}

/// Bytes of a checkpoint that one turn writes.
fn turn(rig: &mut Rig) -> usize {
    Written::take();
    rig.worker.turn();
    Written::take().bytes
}

#[test]
fn no_turn_writes_the_half_messages_of_all_peers_and_checkpoints_come_though_all_go_on() {
    let mut rig = Rig::new(false);
    halves(&mut rig);
    let mut epoch = rig.remains.epoch();
    let mut checkpoints = 0;
    for round in 0..200 {
        go_on(&mut rig);
        rig.worker.want_checkpoint();
        let written = turn(&mut rig);
        assert!(written <= MOST, "round {round}: {written} bytes in one turn");
        if rig.remains.epoch() != epoch {
            (epoch, checkpoints) = (rig.remains.epoch(), checkpoints + 1);
        }
    }
    assert!(checkpoints >= 5, "{checkpoints} checkpoints");
    assert!(state(&rig.replay().broker) == state(rig.worker.broker()));
}
