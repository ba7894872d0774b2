//! Images, and where their records are.

use std::ops::Range;

use bus_daemon::broker::{Broker, Millis, PeerId, PeerV2};
use bus_daemon::handoff::codec;
use bus_daemon::handoff::container::Reader;
use bus_daemon::handoff::image::{self, ImageError, Restored, WorkerState};
use bus_wire::Fd;

pub const GLOBAL: u16 = 11;
pub const BODY: u16 = 12;
pub const PEER: u16 = 13;
pub const MANIFEST: u16 = 14;
pub const END: u16 = 0xffff;
pub const RECORD_HEADER: usize = 24;
pub const CONTAINER_HEADER: usize = 48;

/// A record, by where it begins and ends, with header and without padding.
#[derive(Debug, Clone)]
pub struct Place {
    pub kind: u16,
    pub span: Range<usize>,
}

/// When images are loaded; those of version 2 do not care.
pub const NOW: Millis = Millis(50_000);

/// What the worker would say of its links.
pub fn worker(broker: &Broker) -> WorkerState {
    let has_output = |peer: &PeerId| broker.send_queue(*peer).is_some_and(|queue| !queue.is_empty());
    WorkerState {
        stopped_at: 77,
        generation: 1000,
        blocked: broker.peer_ids().filter(has_output).map(PeerId::to_u64).collect(),
        broken: Vec::new(),
        stored: None,
        foreign: Vec::new(),
    }
}

/// The number that a handle stands for.
pub fn number(handle: Fd) -> i32 {
    handle.0 % 1_000 + 3
}

pub fn save(broker: &Broker) -> Vec<u8> {
    image::save(broker, &worker(broker), |handle| Some(number(handle))).unwrap()
}

pub fn load(bytes: &[u8]) -> Result<Restored, ImageError> {
    image::load(bytes, NOW)
}

/// The records of a whole image, its end among them.
pub fn places(bytes: &[u8]) -> Vec<Place> {
    let mut places: Vec<Place> = Reader::new(bytes)
        .unwrap()
        .map(|record| {
            let record = record.unwrap();
            let body = record.body.as_ptr() as usize - bytes.as_ptr() as usize;
            Place {
                kind: record.kind,
                span: body - RECORD_HEADER..body + record.body.len(),
            }
        })
        .collect();
    let end = places.last().unwrap().span.end.next_multiple_of(8);
    places.push(Place {
        kind: END,
        span: end..bytes.len(),
    });
    places
}

/// The encoded records of all peers, in order.
pub fn peer_records(broker: &Broker) -> Vec<Vec<u8>> {
    let state = broker.save();
    state
        .peers
        .iter()
        .map(|peer| codec::encode(peer).unwrap())
        .collect()
}

pub fn decode_peer(bytes: &[u8], place: &Place) -> PeerV2 {
    codec::decode(&bytes[place.span.start + RECORD_HEADER..place.span.end]).unwrap()
}
