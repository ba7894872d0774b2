//! Output that is moved to the store ahead of a checkpoint, while more comes.

use std::io::Read;

use super::Rig;

/// More than are written ahead in two turns.
const RECEIVERS: usize = 150;
const SIGNALS: u32 = 200;

/// The serials of signals in a stream that begins with the answers of the authentication.
fn signals(stream: &[u8]) -> Vec<u32> {
    let begin = stream.windows(2).rposition(|two| two == b"\r\n").unwrap() + 2;
    let mut rest = &stream[begin..];
    let mut serials = Vec::new();
    while !rest.is_empty() {
        let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        let len = 16 + word(12).next_multiple_of(8) as usize + word(4) as usize;
        if rest[1] == 4 && rest[..len].windows(8).any(|at| at == b"Happened") {
            serials.push(word(8));
        }
        rest = &rest[len..];
    }
    serials
}

#[test]
fn a_receiver_gets_every_message_once_however_many_wait_and_are_written_ahead() {
    let mut rig = Rig::new(false);
    for index in 0..RECEIVERS {
        rig.connect();
        rig.clients[index].call("AddMatch", |w| {
            w.str("type='signal',interface='org.example.Signals'");
        });
        rig.write_all(index);
    }
    rig.connect();
    rig.write_all(RECEIVERS);
    let first = rig.clients[RECEIVERS].serial + 1;
    for _ in 0..SIGNALS {
        rig.clients[RECEIVERS].signal(1_500);
        rig.write_all(RECEIVERS);
    }
    let expected: Vec<u32> = (first..first + SIGNALS).collect();
    for index in [0, RECEIVERS / 2, RECEIVERS - 1] {
        let mut stream = Vec::new();
        let mut idle = 0;
        while idle < 3 {
            let before = stream.len();
            let mut bytes = vec![0; 1 << 18];
            while let Ok(len) = rig.clients[index].stream.read(&mut bytes)
                && len > 0
            {
                stream.extend_from_slice(&bytes[..len]);
            }
            rig.worker.turns();
            idle = if stream.len() == before { idle + 1 } else { 0 };
        }
        assert_eq!(signals(&stream), expected, "receiver {index}");
    }
}

/// Short messages for many who do not read are many deliveries in little log.
#[cfg(target_arch = "x86_64")]
#[test]
fn no_checkpoint_has_very_many_deliveries_to_take_over() {
    const STALLED: usize = 40;
    const BATCH: usize = 10;
    const MOST: usize = 16_384;
    let mut rig = Rig::new(false);
    for index in 0..STALLED {
        rig.connect();
        rig.clients[index].call("AddMatch", |w| {
            w.str("type='signal',interface='org.example.Signals'");
        });
        rig.write_all(index);
    }
    rig.connect();
    rig.write_all(STALLED);
    let (mut epoch, mut queued, mut longest, mut checkpoints) = (rig.remains.epoch(), 0, 0, 0);
    for _ in 0..1_200 {
        (0..BATCH).for_each(|_| rig.clients[STALLED].signal(100));
        rig.write_all(STALLED);
        let are_waiting = rig.worker.broker().stored_offsets().len() == STALLED;
        queued += BATCH * STALLED;
        if rig.remains.epoch() != epoch {
            (epoch, checkpoints) = (rig.remains.epoch(), checkpoints + 1);
            longest = longest.max(queued * usize::from(are_waiting && checkpoints > 1));
            queued = 0;
        }
    }
    let (recovered, output) = rig.replay_with_output();
    assert!(output == rig.output() && recovered.in_doubt.is_empty());
    assert!(checkpoints > 10, "{checkpoints} checkpoints");
    assert!((1..=MOST + BATCH * STALLED).contains(&longest), "{longest}");
}
