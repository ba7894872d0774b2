//! Any bytes as a saved state.

use bus_daemon::broker::{
    Attested, Broker, Credentials, ErrandOutcome, Event, Fds, Millis, PeerId, Start, System,
};
use bus_daemon::handoff::image;
use bus_wire::Fd;
use bytes::Bytes;

const CONTAINER_HEADER: usize = 48;
const RECORD_HEADER: usize = 24;

/// The bytes as they are, and with checksums that fit.
pub fn state_image(data: &[u8]) {
    survives(data);
    let mut repaired = data.to_vec();
    repair(&mut repaired);
    survives(&repaired);
}

/// Gives every question an answer.
struct Anything;

impl System for Anything {
    fn peer_pidfd(&mut self, _: Fd) -> Option<Fd> {
        None
    }

    fn duplicate(&mut self, _: Fd) -> Option<Fd> {
        None
    }
}

/// Loads an image; if that can be done, the bus must be whole, be saved as it is, and go on without a panic.
pub fn survives(bytes: &[u8]) -> bool {
    let now = Millis(50_000);
    let Ok(restored) = image::load(bytes, now) else {
        return false;
    };
    let mut broker = restored.broker;
    broker.check_invariants().expect("whole");
    let worker = restored.worker;
    let number = |handle: Fd| Some(handle.0);
    let again = image::save(&broker, &worker, number).expect("whole");
    let second = image::load(&again, now).expect("whole");
    assert_eq!(
        (second.dropped.as_slice(), second.damage.as_slice()),
        (&[][..], &[][..])
    );
    assert!(image::save(&second.broker, &second.worker, number).expect("whole") == again);
    live(&mut broker);
    true
}

/// Everything happens to every peer.
fn live(broker: &mut Broker) {
    let mut step = |event| {
        broker.handle(event, &mut Anything);
        broker.actions().clear();
        broker.check_invariants().expect("whole");
    };
    step(Event::Serving {
        worker_pid: 9,
        start: Start::Upgraded { pause: 1 },
    });
    let newcomer = PeerId {
        index: 500,
        generation: 1,
    };
    let credentials = Credentials {
        uid: Some(1000),
        gid: None,
        pid: None,
    };
    step(Event::Accepted {
        peer: newcomer,
        listener: 0,
        socket: Fd(i32::MAX),
        attested: Attested {
            credentials,
            ..Attested::default()
        },
    });
    let hello = bus_wire::MessageBuilder::method_call("/org/freedesktop/DBus", "Hello")
        .interface("org.freedesktop.DBus")
        .destination("org.freedesktop.DBus")
        .serial(1u32)
        .build()
        .expect("whole");
    let ids: Vec<PeerId> = broker.peer_ids().collect();
    let taken: Vec<(PeerId, u64)> = ids.iter().map(|peer| (*peer, broker.taken(*peer))).collect();
    let mut step = |event| {
        broker.handle(event, &mut Anything);
        broker.actions().clear();
        broker.check_invariants().expect("whole");
    };
    let auth = b"\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n";
    step(Event::Received {
        peer: newcomer,
        upto: auth.len() as u64,
        data: Bytes::from_static(auth),
        fds: Fds::new(),
    });
    for errand in 0..4 {
        step(Event::ErrandEnded {
            errand,
            outcome: ErrandOutcome::Trial(Err(String::new())),
            payload: None,
        });
    }
    for peer in &ids {
        step(Event::Detached { peer: *peer });
    }
    for (peer, taken) in taken {
        let upto = if peer == newcomer {
            auth.len() as u64
        } else {
            taken
        };
        step(Event::Received {
            peer,
            upto: upto + hello.len() as u64,
            data: hello.clone().into(),
            fds: Fds::new(),
        });
    }
    for peer in &ids {
        let (sent, end) = broker
            .send_queue(*peer)
            .map_or((0, 0), |queue| (queue.sent(), queue.end()));
        for upto in [sent + (end - sent) / 2, sent, end, end] {
            broker.handle(Event::Sent { peer: *peer, upto }, &mut Anything);
            broker.check_invariants().expect("whole");
        }
    }
    for now in [Millis(5_000), Millis(u64::MAX / 2)] {
        broker.handle(Event::Tick { now }, &mut Anything);
        broker.check_invariants().expect("whole");
    }
    for peer in &ids {
        broker.handle(
            Event::Closed {
                peer: *peer,
                reason: "end of file",
            },
            &mut Anything,
        );
        broker.check_invariants().expect("whole");
    }
    assert_eq!(broker.peer_ids().count(), 0);
}

/// Makes all checksums fit again, after lengths and bodies were changed in place.
pub fn repair(bytes: &mut [u8]) {
    let Some(salt) = bytes
        .get(12..16)
        .map(|salt| u32::from_le_bytes(salt.try_into().expect("four bytes")))
    else {
        return;
    };
    for copy in [0, CONTAINER_HEADER / 2] {
        let Some(header) = bytes.get_mut(copy..copy + CONTAINER_HEADER / 2) else {
            return;
        };
        let crc = crc32c::crc32c(&header[..16]);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
    }
    let mut at = CONTAINER_HEADER;
    while let Some(header) = bytes.get(at..at + RECORD_HEADER) {
        let length = u32::from_le_bytes(header[12..16].try_into().expect("four bytes")) as usize;
        let header_crc = crc32c::crc32c_append(salt, &header[..16]);
        let body = at + RECORD_HEADER;
        let Some(end) = body.checked_add(length).filter(|end| *end <= bytes.len()) else {
            return;
        };
        let body_crc = crc32c::crc32c(&bytes[body..end]);
        bytes[at + 16..at + 20].copy_from_slice(&header_crc.to_le_bytes());
        bytes[at + 20..at + 24].copy_from_slice(&body_crc.to_le_bytes());
        at = end.next_multiple_of(8);
    }
}
