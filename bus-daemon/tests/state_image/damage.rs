//! Damage that the checksums find: it costs at most the peers whose records it hit.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

use bus_daemon::broker::Broker;
use bus_daemon::handoff::codec;
use bus_daemon::handoff::container::{IfUnknown, Reader, Writer};
use bus_daemon::handoff::image::{ImageError, Restored};
use bus_wire::Fd;

use crate::image::{
    self, BODY, CONTAINER_HEADER, GLOBAL, MANIFEST, PEER, Place, decode_peer, number, peer_records, places,
    save, worker,
};
use crate::rich::{ALONE, rich};

/// Chosen anew each time, and printed; `BUS_IMAGE_SEED` repeats a run.
pub fn seed() -> u64 {
    let seed = match std::env::var("BUS_IMAGE_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => std::hash::RandomState::new().build_hasher().finish(),
    };
    eprintln!("BUS_IMAGE_SEED={seed}");
    seed | 1
}

/// xorshift64
pub fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn load(bytes: &[u8]) -> Result<Restored, ImageError> {
    let restored = image::load(bytes)?;
    restored.broker.check_invariants().unwrap();
    let worker = &restored.worker;
    let newest = restored.broker.peer_ids().map(|peer| peer.generation).max();
    assert!(newest.is_none_or(|newest| newest <= worker.generation));
    for peer in restored.broker.peer_ids() {
        let has_output = restored
            .broker
            .send_queue(peer)
            .is_some_and(|queue| !queue.is_empty());
        let is_blocked = worker.blocked.contains(&peer.to_u64());
        assert!(has_output || !is_blocked, "{peer:?} waits with nothing");
    }
    Ok(restored)
}

#[test]
fn saved_again_it_is_the_same() {
    let rich = rich();
    let bytes = save(&rich.bus.broker);
    let restored = load(&bytes).unwrap();
    assert_eq!(
        (restored.dropped.as_slice(), restored.damage.as_slice()),
        (&[][..], &[][..])
    );
    assert_eq!(restored.worker, worker(&rich.bus.broker));
    assert!(restored.broker.save() == rich.bus.broker.save());
    assert!(save(&restored.broker) == bytes);
    // Two peers share the bodies, of which one has sent a part.
    assert_eq!(
        places(&bytes).iter().filter(|place| place.kind == BODY).count(),
        2
    );
    // Three messages have descriptors, and every peer has a socket but one.
    let owned = rich.bus.broker.owned_fds();
    assert_eq!(owned.len(), 5 + rich.roles.len() - 1);
    assert_eq!(restored.manifest, numbered(&owned));
}

/// The manifest of these handles.
fn numbered(handles: &[Fd]) -> Vec<(Fd, i32)> {
    handles.iter().map(|handle| (*handle, number(*handle))).collect()
}

/// What is left without the records at some places, if the image is otherwise whole.
struct Oracle {
    bytes: Vec<u8>,
    places: Vec<Place>,
    manifest: Vec<(Fd, i32)>,
    lost: HashMap<usize, Vec<Vec<u8>>>,
}

impl Oracle {
    fn new() -> Self {
        let broker = rich().bus.broker;
        let bytes = save(&broker);
        let places = places(&bytes);
        Self {
            bytes,
            places,
            manifest: numbered(&broker.owned_fds()),
            lost: HashMap::new(),
        }
    }

    /// The records of the peers that a bus restored without the record at `place` has.
    fn without(&mut self, place: usize) -> &Vec<Vec<u8>> {
        self.lost.entry(place).or_insert_with(|| {
            let broker = load(&self.bytes).unwrap().broker;
            let mut state = broker.save();
            match self.places[place].kind {
                PEER => {
                    let lost = decode_peer(&self.bytes, &self.places[place]).id();
                    state.peers.retain(|peer| peer.id() != lost);
                }
                BODY => {
                    let bodies = self.places[..place].iter().filter(|place| place.kind == BODY);
                    state.shared[bodies.count()].0.clear();
                }
                _ => {}
            }
            peer_records(&Broker::restore(state).unwrap().0)
        })
    }

    fn place_of(&self, byte: usize) -> Option<usize> {
        self.places.iter().position(|place| place.span.contains(&byte))
    }
}

#[test]
fn a_flipped_bit_costs_at_most_the_peers_concerned() {
    let mut oracle = Oracle::new();
    let mut seed = seed();
    for byte in 0..oracle.bytes.len() {
        let mut damaged = oracle.bytes.clone();
        let bit = next(&mut seed) % 8;
        damaged[byte] ^= 1 << bit;
        let outcome = load(&damaged);
        let at = format!("byte {byte} bit {bit}");
        let place = oracle.place_of(byte);
        let kind = place.map(|place| oracle.places[place].kind);
        if kind == Some(GLOBAL) {
            assert_eq!(outcome.unwrap_err(), ImageError::NoGlobal, "{at}");
            continue;
        }
        let restored = outcome.unwrap_or_else(|error| panic!("{at}: {error}"));
        let is_record = place.is_some() || byte < CONTAINER_HEADER;
        assert_eq!(
            !restored.damage.is_empty(),
            is_record,
            "{at}: {:?}",
            restored.damage
        );
        let expected = oracle.without(place.unwrap_or(0));
        assert!(peer_records(&restored.broker) == *expected, "{at}");
        if kind != Some(MANIFEST) {
            assert_eq!(restored.manifest, oracle.manifest, "{at}");
        }
        match kind {
            Some(PEER) => assert_eq!(restored.dropped.len(), 1, "{at}"),
            Some(BODY) => assert!(restored.dropped.len() <= 2, "{at}"),
            // Nobody is lost here: it is for the runtime to do without the numbers.
            Some(MANIFEST) => {
                assert_eq!((restored.dropped.len(), restored.manifest.len()), (0, 0), "{at}");
            }
            _ => assert_eq!(restored.dropped, [], "{at}"),
        }
    }
}

/// More descriptors than one record of the manifest holds: damage to one of them costs no other their numbers.
#[test]
fn a_damaged_part_of_the_manifest_costs_the_numbers_in_it() {
    let mut bus = crate::bus::Bus::new(crate::bus::config(), false);
    for _ in 0..600 {
        bus.connect();
    }
    let bytes = save(&bus.broker);
    let whole = numbered(&bus.broker.owned_fds());
    let parts: Vec<Place> = places(&bytes)
        .into_iter()
        .filter(|place| place.kind == MANIFEST)
        .collect();
    assert_eq!((parts.len(), whole.len()), (3, 600));
    for (lost, part) in parts.iter().enumerate() {
        let mut damaged = bytes.clone();
        damaged[part.span.end - 1] ^= 1;
        let restored = load(&damaged).unwrap();
        assert_eq!((restored.dropped.len(), restored.damage.len()), (0, 1));
        assert_eq!(restored.broker.peer_ids().count(), 600);
        let left: Vec<_> = whole
            .chunks(256)
            .enumerate()
            .filter(|(part, _)| *part != lost)
            .flat_map(|(_, entries)| entries.to_vec())
            .collect();
        assert_eq!(restored.manifest, left);
    }
}

#[test]
fn handles_without_a_number_are_left_out_of_the_manifest() {
    let broker = rich().bus.broker;
    let even = |handle: Fd| (handle.0 % 2 == 0).then_some(number(handle));
    let bytes = bus_daemon::handoff::image::save(&broker, &worker(&broker), even).unwrap();
    let expected: Vec<_> = numbered(&broker.owned_fds())
        .into_iter()
        .filter(|(handle, _)| handle.0 % 2 == 0)
        .collect();
    assert!(!expected.is_empty());
    assert_eq!(load(&bytes).unwrap().manifest, expected);
}

#[test]
fn whoever_has_nothing_to_do_with_a_lost_peer_is_untouched() {
    let rich = rich();
    let bytes = save(&rich.bus.broker);
    let before = peer_records(&rich.bus.broker);
    let places: Vec<Place> = places(&bytes)
        .into_iter()
        .filter(|place| place.kind == PEER)
        .collect();
    assert_eq!(places.len(), rich.roles.len());
    for (lost, place) in places.iter().enumerate() {
        let mut damaged = bytes.clone();
        damaged[place.span.end - 1] ^= 1;
        let restored = load(&damaged).unwrap();
        let lost_peer = decode_peer(&bytes, place).id();
        assert_eq!(
            restored.dropped.iter().map(|one| one.peer).collect::<Vec<_>>(),
            [lost_peer]
        );
        for (index, role) in rich.roles.iter().enumerate().filter(|(index, _)| *index != lost) {
            let peer = decode_peer(&bytes, &places[index]).id();
            let mut shared = bus_daemon::broker::SharedBodies::new();
            let record = restored.broker.save_peer(peer, &mut shared).unwrap();
            if ALONE.contains(role) {
                assert!(
                    codec::encode(&record).unwrap() == before[index],
                    "{role} without {}",
                    rich.roles[lost]
                );
            }
        }
    }
}

#[test]
fn a_cut_costs_what_is_behind_it() {
    let mut oracle = Oracle::new();
    let whole = oracle.without(0).len();
    let bytes = oracle.bytes.clone();
    let global = oracle
        .places
        .iter()
        .find(|place| place.kind == GLOBAL)
        .unwrap()
        .span
        .end;
    for cut in 0..bytes.len() {
        let outcome = load(&bytes[..cut]);
        if cut < global {
            assert!(outcome.is_err(), "cut at {cut}");
            continue;
        }
        let restored = outcome.unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        assert!(!restored.damage.is_empty(), "cut at {cut}");
        let peers = oracle.places.iter().filter(|place| place.kind == PEER);
        let (left, lost): (Vec<_>, Vec<_>) = peers.partition(|place| place.span.end <= cut);
        let bodies = oracle
            .places
            .iter()
            .filter(|place| place.kind == BODY && place.span.end <= cut);
        // Two wait for the bodies, which come last.
        let starved = if bodies.count() == 2 { 0 } else { 2 };
        assert!(restored.dropped.len() <= lost.len() + starved, "cut at {cut}");
        assert_eq!(restored.dropped.len() + restored.broker.peer_ids().count(), whole);
        assert!(left.len() <= restored.broker.peer_ids().count() + starved);
    }
}

#[test]
fn several_damaged_places_cost_no_more_than_each() {
    let oracle = Oracle::new();
    let global = oracle
        .places
        .iter()
        .find(|place| place.kind == GLOBAL)
        .unwrap()
        .clone();
    let mut seed = seed();
    for _ in 0..300 {
        let mut damaged = oracle.bytes.clone();
        let mut hit = std::collections::BTreeSet::new();
        for _ in 0..1 + next(&mut seed) % 6 {
            let byte = (next(&mut seed) % damaged.len() as u64) as usize;
            let long = 1 + (next(&mut seed) % 40) as usize;
            for at in byte..damaged.len().min(byte + long) {
                if !global.span.contains(&at) && at >= CONTAINER_HEADER {
                    damaged[at] = next(&mut seed) as u8;
                    hit.extend(oracle.place_of(at));
                }
            }
        }
        let restored = load(&damaged).unwrap();
        let bodies = hit.iter().any(|place| oracle.places[*place].kind == BODY);
        let peers = hit
            .iter()
            .filter(|place| oracle.places[**place].kind == PEER)
            .count();
        assert!(restored.dropped.len() <= peers + if bodies { 2 } else { 0 });
    }
}

/// An image as a later build would write it, with a record of a type that this one does not know.
fn with_unknown(if_unknown: IfUnknown, kind: u16) -> Vec<u8> {
    let bytes = save(&rich().bus.broker);
    let mut extra = Writer::new(u32::from_le_bytes(bytes[12..16].try_into().unwrap()));
    extra.record(kind, 7, if_unknown, &"something new").unwrap();
    let extra = extra.finish();
    let record = &extra[CONTAINER_HEADER..places(&extra)[0].span.end.next_multiple_of(8)];
    let end = places(&bytes).last().unwrap().span.start;
    let mut longer = [&bytes[..end], record, &bytes[end..]].concat();
    let count = longer.len() - 8;
    longer[count] += 1;
    crate::fuzz::repair(&mut longer);
    assert!(Reader::new(&longer).unwrap().all(|record| record.is_ok()));
    longer
}

#[test]
fn unknown_records_are_passed_over_or_refused_as_they_say() {
    for kind in [99, PEER] {
        let error = image::load(&with_unknown(IfUnknown::Refuse, kind)).unwrap_err();
        assert_eq!(error, ImageError::Unknown { kind, version: 7 });
        let restored = load(&with_unknown(IfUnknown::Skip, kind)).unwrap();
        assert_eq!(
            (restored.dropped.as_slice(), restored.damage.as_slice()),
            (&[][..], &[][..])
        );
    }
}
