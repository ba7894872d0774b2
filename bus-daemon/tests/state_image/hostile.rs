//! Images whose checksums fit and whose contents make no sense: they end in an error, or in a bus that is whole.

use bus_daemon::broker::BrokerState;
use bus_daemon::handoff::codec;
use bus_daemon::handoff::container::{IfUnknown, Writer};

use crate::damage::{next, seed};
use crate::fuzz::{repair, survives};
use crate::image::{self, PEER, RECORD_HEADER, places, save};
use crate::rich::rich;

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
