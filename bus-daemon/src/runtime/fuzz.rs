//! For the fuzz target of the journal: a small bus whose journal is damaged and replayed, again and again.

use std::sync::{Arc, Mutex, OnceLock};

use bus_wire::{Fd, MessageBuilder};

use super::recover;
use super::system::Kernel;
use crate::broker::{
    Attested, Broker, Credentials, Event, Fds, Identity, ListenerIdentity, Millis, PeerId, Transport,
};
use crate::config::{Config, Limits, Simple};
use crate::handoff::image::{self, WorkerState};
use crate::journal::{Flip, Journal, RareEvent, Remains};

/// The journal's memory, and the state and the output that it gives as long as nothing is damaged.
struct Whole {
    remains: Remains,
    state: Vec<u8>,
    output: Vec<(PeerId, Vec<u8>)>,
}

// SAFETY: it is used under the lock only.
#[expect(unsafe_code, reason = "the memory is shared on purpose")]
unsafe impl Send for Whole {}

/// Damages journal and store as `data` says (5 bytes each: region, place, bits), and replays. Nothing may panic, hang or
/// break the broker's invariants, and damage to the store alone costs those only to whom the damaged bytes were to be
/// sent; afterwards the damage is undone.
#[cfg_attr(
    not(feature = "test-hooks"),
    allow(unreachable_pub, reason = "for the fuzz target")
)]
pub fn journal(data: &[u8]) {
    static WHOLE: OnceLock<Mutex<Whole>> = OnceLock::new();
    let whole = WHOLE.get_or_init(|| Mutex::new(build()));
    let Ok(whole) = whole.lock() else { return };
    let flips: Vec<Flip> = data
        .as_chunks::<5>()
        .0
        .iter()
        .take(64)
        .map(|[region, a, b, c, bits]| {
            whole
                .remains
                .flip(*region, u32::from_le_bytes([*a, *b, *c, 0]) as usize, *bits)
        })
        .collect();
    let is_journal_whole = flips.iter().all(Flip::is_in_store);
    let outcome = Journal::reopen(whole.remains)
        .map_err(|error| error.to_string())
        .and_then(|mut journal| Ok((recover::replay(&mut journal, -1, None)?, journal)));
    match outcome {
        Ok((recovered, mut journal)) => {
            assert_eq!(recovered.broker.check_invariants(), Ok(()));
            if is_journal_whole {
                assert!(saved(&recovered.broker).is_some_and(|state| state == whole.state));
            }
            let output = output(&recovered.broker, &mut journal);
            count(&mut journal);
            if is_journal_whole {
                compare(&output, &whole, flips.is_empty());
            }
        }
        Err(error) => assert!(!is_journal_whole, "undamaged, and not readable: {error}"),
    }
    for flip in flips.iter().rev() {
        whole.remains.undo(flip);
    }
}

/// What waits for each peer; where it is damaged, why it cannot be read.
fn output(broker: &Broker, journal: &mut Journal) -> Vec<(PeerId, Result<Vec<u8>, String>)> {
    let peers = broker.peer_ids();
    let queues = peers.filter_map(|peer| Some((peer, broker.send_queue(peer)?)));
    queues
        .map(|(peer, queue)| (peer, journal.try_output_of(peer, queue)))
        .collect()
}

/// Each peer is there, and gets what waits for it, or nothing where that is damaged.
fn compare(output: &[(PeerId, Result<Vec<u8>, String>)], whole: &Whole, is_whole: bool) {
    assert_eq!(output.len(), whole.output.len());
    for ((peer, found), (other, expected)) in output.iter().zip(&whole.output) {
        assert_eq!(peer, other);
        match found {
            Ok(found) => assert!(found == expected, "peer {} gets other bytes", peer.index),
            Err(error) => assert!(!is_whole, "undamaged, and not readable: {error}"),
        }
    }
}

/// References to what the store holds are counted, in a number of steps that ends.
fn count(journal: &mut Journal) {
    for _ in 0..10_000 {
        if !journal.has_chores() {
            return;
        }
        journal.do_chores();
    }
    panic!("the store has work without end");
}

/// A bus with a few peers, names, rules and open calls, partly in a checkpoint and partly in the log.
fn build() -> Whole {
    let Ok(mut journal) = Journal::create() else {
        panic!("no memory for a journal")
    };
    let guid = bus_wire::Guid::from_bytes([7; 16]);
    let identity = Identity {
        guid,
        listeners: vec![ListenerIdentity {
            guid,
            transport: Transport::Unix,
            nonce: None,
        }],
        machine_id: guid.to_string(),
        keeper_pid: 1,
        own_uid: 0,
        hash_seed: 5,
    };
    let config = Config {
        policy: Arc::new(Simple::OPEN.into()),
        limits: Limits::session(),
        ..Config::default()
    };
    let mut broker = Broker::new(identity, Arc::new(config), Millis(0));
    if let Err(error) = journal.checkpoint(&mut broker, 0) {
        panic!("{error}");
    }
    for index in 0..6 {
        let peer = PeerId {
            index: 100 + index,
            generation: index + 1,
        };
        let credentials = Credentials {
            uid: Some(0),
            gid: Some(0),
            pid: Some(1),
        };
        let attested = Attested {
            credentials,
            ..Attested::default()
        };
        // The number of no descriptor: it is never looked at.
        let Some(socket) = journal.assign(1 << 20) else {
            panic!("no handle for a socket")
        };
        journal.note(
            Some(peer),
            &RareEvent::Accepted {
                listener: 0,
                socket,
                attested: attested.clone(),
            },
        );
        broker.handle(
            Event::Accepted {
                peer,
                listener: 0,
                socket,
                attested,
            },
            &mut Kernel {
                journal: &mut journal,
            },
        );
        let mut input = b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n".to_vec();
        let calls = [
            ("Hello", None),
            ("RequestName", Some("org.example.Name")),
            ("AddMatch", Some("member='M'")),
        ];
        for (serial, (member, argument)) in (1u32..).zip(calls) {
            let call = MessageBuilder::method_call("/org/freedesktop/DBus", member)
                .destination("org.freedesktop.DBus")
                .serial(serial)
                .body(|w| {
                    if let Some(argument) = argument {
                        w.str(argument);
                    }
                    if member == "RequestName" {
                        w.u32(0);
                    }
                });
            if call.build_into(&mut input).is_err() {
                panic!("a call cannot be built");
            }
        }
        let call = MessageBuilder::method_call("/a", "Open")
            .destination("org.example.Name")
            .serial(9u32);
        if call.build_into(&mut input).is_err() {
            panic!("a call cannot be built");
        }
        // For all who are there, so that they share the body.
        let signal = MessageBuilder::signal("/a", "org.example.I", "M")
            .serial(10u32)
            .body(|w| {
                w.str(&"s".repeat(700));
            });
        if signal.build_into(&mut input).is_err() {
            panic!("a signal cannot be built");
        }
        input.extend_from_slice(b"l\x01\0\x01half a message");
        let data = journal.pretend_received(peer, 0, &input);
        broker.handle(
            Event::Received {
                peer,
                upto: input.len() as u64,
                data,
                fds: Fds::new(),
            },
            &mut Kernel {
                journal: &mut journal,
            },
        );
        let queued = broker.send_queue(peer).map_or(0, |queue| queue.len() / 2);
        journal.pretend_sent(peer, queued);
        broker.handle(
            Event::Sent { peer, upto: queued },
            &mut Kernel {
                journal: &mut journal,
            },
        );
        broker.actions().clear();
        if index == 3
            && let Err(error) = journal.checkpoint(&mut broker, 4)
        {
            panic!("{error}");
        }
    }
    let Some(state) = saved(&broker) else {
        panic!("the state cannot be saved")
    };
    let output = output(&broker, &mut journal).into_iter();
    let output = output
        .filter_map(|(peer, output)| Some((peer, output.ok()?)))
        .collect();
    Whole {
        remains: journal.remains(),
        state,
        output,
    }
}

/// The state as an image; handles stand for themselves.
fn saved(broker: &Broker) -> Option<Vec<u8>> {
    image::save(broker, &WorkerState::default(), |handle: Fd| Some(handle.0)).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_fuzzing_is_survived() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/journal");
        let files: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(!files.is_empty());
        for file in files {
            super::journal(&std::fs::read(file).unwrap());
        }
        super::journal(&[]);
    }

    #[test]
    fn some_damage() {
        super::journal(&[]);
        let mut number = 1_u64;
        for _ in 0..300 {
            let mut data = [0; 40];
            for byte in &mut data {
                number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (number >> 40) as u8;
            }
            super::journal(&data);
        }
        super::journal(&[]);
    }
}
