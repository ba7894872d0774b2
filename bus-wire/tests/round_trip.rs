//! Whatever is written is read back, and whatever bytes arrive, nothing breaks.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use bus_wire::{BodyReader, Endian, Message, stitch_header};
use bytes::Bytes;
use common::{Source, arbitrary_body, build, read_all};
use proptest::prelude::*;

/// What the broker does with every message.
fn forward(message: &Message) -> Message {
    let mut bytes = vec![0xee; 3];
    stitch_header(message, ":1.42", &mut bytes).unwrap();
    bytes.extend_from_slice(message.body_bytes());
    Message::parse(Bytes::from(bytes).slice(3..)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn written_is_read(choices in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut source = Source(&choices);
        let values = arbitrary_body(&mut source);
        let Some(bytes) = build(&mut source, &values) else { return Ok(()) };
        let message = Message::parse(bytes.into()).unwrap();
        prop_assert_eq!(&read_all(&mut message.body()).unwrap(), &values);

        let mut skipping = message.body();
        while skipping.peek().is_some() {
            skipping.skip().unwrap();
        }
        prop_assert_eq!(skipping.position(), message.body_bytes().len());

        let forwarded = forward(&message);
        prop_assert_eq!(forwarded.sender(), Some(":1.42"));
        prop_assert_eq!(forwarded.body_bytes(), message.body_bytes());
        for (ours, theirs) in [
            (forwarded.path(), message.path()),
            (forwarded.interface(), message.interface()),
            (forwarded.member(), message.member()),
            (forwarded.error_name(), message.error_name()),
            (forwarded.destination(), message.destination()),
            (Some(forwarded.signature()), Some(message.signature())),
        ] {
            prop_assert_eq!(ours, theirs);
        }
        prop_assert_eq!(forwarded.serial(), message.serial());
        prop_assert_eq!(forwarded.reply_serial(), message.reply_serial());
    }

    /// What is accepted can be read and forwarded, whatever was done to it.
    #[test]
    fn damaged_is_refused_or_readable(
        choices in proptest::collection::vec(any::<u8>(), 0..300),
        damage in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..4),
    ) {
        let mut source = Source(&choices);
        let values = arbitrary_body(&mut source);
        let Some(mut bytes) = build(&mut source, &values) else { return Ok(()) };
        for (at, byte) in damage {
            let at = at as usize % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(message) = Message::parse(bytes.into()) {
            read_all(&mut message.body()).unwrap();
            forward(&message);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        signature in "[ybnqiuxtdhsogv(){}a]{0,12}",
    ) {
        let _ = Message::parse(bytes.clone().into());
        for endian in [Endian::Little, Endian::Big] {
            let mut reader = BodyReader::new(&bytes, &signature, endian);
            while reader.peek().is_some() && reader.skip().is_ok() {}
            let mut reader = BodyReader::new(&bytes, &signature, endian);
            if let Ok(mut array) = reader.enter_array() {
                while let Ok(Some(_)) = array.next() {}
            }
        }
    }

    /// A plausible header before arbitrary bytes.
    #[test]
    fn arbitrary_fields_never_panic(
        big in any::<bool>(),
        kind in 0u8..6,
        fields in proptest::collection::vec(any::<u8>(), 0..64),
        body in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let number = |value: usize| if big { (value as u32).to_be_bytes() } else { (value as u32).to_le_bytes() };
        let mut bytes = vec![if big { b'B' } else { b'l' }, kind, 0, 1];
        bytes.extend(number(body.len()));
        bytes.extend(number(1));
        bytes.extend(number(fields.len()));
        bytes.extend(&fields);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(&body);
        let _ = Message::parse(bytes.into());
    }
}
