//! Images whose checksums fit and whose contents make no sense: they end in an error, or in a bus that is whole.

use bus_daemon::broker::{Broker, BrokerState, Event, Fds, Millis, PeerId, Start, System};
use bus_daemon::handoff::codec;
use bus_daemon::handoff::container::{IfUnknown, Writer};
use bus_daemon::handoff::image;
use bus_wire::Fd;
use bytes::Bytes;

use crate::damage::{next, seed};
use crate::image::{PEER, RECORD_HEADER, places, repair, save};
use crate::rich::rich;

/// Gives every question an answer.
struct Anything;

impl System for Anything {
    fn peer_groups(&mut self, _: PeerId) -> Option<Vec<u32>> {
        None
    }

    fn peer_label(&mut self, _: PeerId) -> Option<Vec<u8>> {
        None
    }

    fn peer_pidfd(&mut self, _: PeerId) -> Option<Fd> {
        None
    }

    fn duplicate(&mut self, _: Fd) -> Option<Fd> {
        None
    }
}

/// Loads an image; if that can be done, the bus must be whole, be saved as it is, and go on without a panic.
fn survives(bytes: &[u8]) -> bool {
    let Ok(restored) = image::load(bytes) else {
        return false;
    };
    let mut broker = restored.broker;
    broker.check_invariants().unwrap();
    let mut worker = restored.worker;
    // It closes the links of those who were dropped.
    worker
        .links
        .retain(|link| broker.send_queue(PeerId::from_u64(link.peer)).is_some());
    let again = image::save(&broker, &worker).unwrap();
    let second = image::load(&again).unwrap();
    assert_eq!(
        (second.dropped.as_slice(), second.damage.as_slice()),
        (&[][..], &[][..])
    );
    assert!(image::save(&second.broker, &second.worker).unwrap() == again);
    live(&mut broker);
    true
}

/// Everything happens to every peer.
fn live(broker: &mut Broker) {
    let mut step = |event| {
        broker.handle(event, &mut Anything);
        broker.actions().clear();
        broker.check_invariants().unwrap();
    };
    step(Event::Serving {
        worker_pid: 9,
        start: Start::Upgraded { pause: 1 },
    });
    let newcomer = PeerId {
        index: 500,
        generation: 1,
    };
    let credentials = bus_daemon::broker::Credentials {
        uid: Some(1000),
        gid: None,
        pid: None,
    };
    step(Event::Accepted {
        peer: newcomer,
        listener: 0,
        credentials,
        can_pass_fds: true,
    });
    let hello = bus_wire::MessageBuilder::method_call("/org/freedesktop/DBus", "Hello")
        .interface("org.freedesktop.DBus")
        .destination("org.freedesktop.DBus")
        .serial(1u32)
        .build()
        .unwrap();
    let ids: Vec<PeerId> = broker.peer_ids().collect();
    let mut step = |event| {
        broker.handle(event, &mut Anything);
        broker.actions().clear();
        broker.check_invariants().unwrap();
    };
    let auth = b"\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n";
    step(Event::Received {
        peer: newcomer,
        data: Bytes::from_static(auth),
        fds: Fds::new(),
    });
    for peer in &ids {
        step(Event::Received {
            peer: *peer,
            data: hello.clone().into(),
            fds: Fds::new(),
        });
    }
    for peer in &ids {
        let waits = broker.send_queue(*peer).map_or(0, |queue| queue.len());
        for bytes in [waits / 2, waits - waits / 2] {
            broker.handle(Event::Drained { peer: *peer, bytes }, &mut Anything);
            broker.check_invariants().unwrap();
        }
    }
    for now in [Millis(5_000), Millis(u64::MAX / 2)] {
        broker.handle(Event::Tick { now }, &mut Anything);
        broker.check_invariants().unwrap();
    }
    for peer in &ids {
        broker.handle(
            Event::Closed {
                peer: *peer,
                reason: "end of file",
            },
            &mut Anything,
        );
        broker.check_invariants().unwrap();
    }
    assert_eq!(broker.peer_ids().count(), 0);
}

#[test]
fn any_change_of_one_byte_under_a_right_checksum() {
    let bytes = save(&rich().bus.broker);
    assert!(survives(&bytes));
    let mut seed = seed();
    let mut survived = 0;
    for at in 16..bytes.len() {
        let mut made_up = bytes.clone();
        made_up[at] ^= [0x01, 0x80, 0xff][(next(&mut seed) % 3) as usize];
        repair(&mut made_up);
        survived += usize::from(image::load(&made_up).is_ok_and(|restored| {
            restored.broker.check_invariants().unwrap();
            true
        }));
    }
    assert!(survived > bytes.len() / 2, "{survived} of {}", bytes.len());
}

#[test]
fn random_changes_under_right_checksums() {
    let bytes = save(&rich().bus.broker);
    let mut seed = seed();
    let mut survived = 0;
    for _ in 0..1_000 {
        let mut made_up = bytes.clone();
        for _ in 0..1 + next(&mut seed) % 3 {
            let at = (next(&mut seed) % bytes.len() as u64) as usize;
            made_up[at] = match next(&mut seed) % 4 {
                0 => 0,
                // The prefixes of longer numbers.
                1 => 251 + (next(&mut seed) % 4) as u8,
                2 => made_up[at].wrapping_add(1),
                _ => next(&mut seed) as u8,
            };
        }
        repair(&mut made_up);
        survived += usize::from(survives(&made_up));
    }
    assert!(survived > 200, "only {survived} were read at all");
}

/// Records of one image in another order, doubled, left out, or from the image of another moment.
#[test]
fn records_at_random() {
    let mut rich = rich();
    let mut images = vec![save(&rich.bus.broker)];
    rich.bus.close(1);
    rich.bus.connect();
    images.push(save(&rich.bus.broker));
    let mut seed = seed();
    let mut survived = 0;
    for _ in 0..500 {
        let frame = &images[(next(&mut seed) % 2) as usize];
        let mut records: Vec<&[u8]> = Vec::new();
        for image in &images {
            for place in places(image)
                .iter()
                .filter(|place| place.kind != crate::image::END)
            {
                let is_own = std::ptr::eq(image, frame) && place.kind != PEER;
                if is_own || !next(&mut seed).is_multiple_of(3) {
                    records.push(&image[place.span.start..place.span.end.next_multiple_of(8)]);
                }
            }
        }
        for at in (1..records.len()).rev() {
            records.swap(at, (next(&mut seed) % (at as u64 + 1)) as usize);
        }
        let mut made_up = [&frame[..crate::image::CONTAINER_HEADER], &records.concat()].concat();
        let end = places(frame).last().unwrap().span.clone();
        made_up.extend_from_slice(&frame[end]);
        repair(&mut made_up);
        survived += usize::from(survives(&made_up));
    }
    assert!(survived > 100, "only {survived} were read at all");
}

#[test]
fn lengths_that_no_memory_holds() {
    let bytes = save(&rich().bus.broker);
    let salt = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
    // A count of 2^63 at the place of each kind's first sequence, and at every place of a short body.
    let huge = [253, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    for place in places(&bytes) {
        let body = &bytes[place.span.start + RECORD_HEADER..place.span.end];
        for at in 0..body.len().min(300) {
            let made_up = [&body[..at], &huge, &body[at + 1..]].concat();
            let mut writer = Writer::new(salt);
            writer
                .record(10, 1, IfUnknown::Refuse, &RawBytes(&made_up))
                .unwrap();
            let mut image = writer.finish();
            image[crate::image::CONTAINER_HEADER + 4..][..2].copy_from_slice(&place.kind.to_le_bytes());
            repair(&mut image);
            let _ = image::load(&image);
            let _ = codec::decode::<BrokerState>(&made_up);
        }
    }
}

/// Bytes that are encoded as themselves.
struct RawBytes<'a>(&'a [u8]);

impl serde::Serialize for RawBytes<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeTuple;
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        for byte in self.0 {
            tuple.serialize_element(byte)?;
        }
        tuple.end()
    }
}
