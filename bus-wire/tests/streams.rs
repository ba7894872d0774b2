//! However a stream is cut, the same messages come out; however a queue is drained, the same bytes.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::io::IoSlice;

use bus_wire::limits::LARGE_MESSAGE;
use bus_wire::{
    Fd, Framed, Framer, LargeMessage, Message, MessageBuilder, MessageError, MessageType, NextCall,
    NextWithFds, SendQueue, TailPiece,
};
use bytes::Bytes;
use proptest::prelude::*;

const MAX: usize = 1 << 21;

fn message(serial: u32, body: usize, fds: u32) -> Vec<u8> {
    MessageBuilder::signal("/a", "a.b", "C")
        .serial(serial)
        .unix_fds(fds)
        .body(|writer| {
            writer.byte_slice(&vec![serial as u8; body]);
        })
        .build()
        .unwrap()
}

fn drain(framer: &mut Framer) -> Result<Vec<Framed>, MessageError> {
    let mut messages = Vec::new();
    while let Some(framed) = framer.next()? {
        messages.push(framed);
    }
    Ok(messages)
}

/// Serials and fds, as a caller sees them.
fn summary(messages: &[Framed]) -> Vec<(u32, usize, Vec<i32>)> {
    messages
        .iter()
        .map(|framed| {
            let fds = framed.fds.iter().map(|fd| fd.0).collect();
            (framed.message.serial().get(), framed.message.bytes().len(), fds)
        })
        .collect()
}

#[derive(Debug, Clone)]
struct Stream {
    bytes: Vec<u8>,
    /// Where messages begin, and how many fds each has.
    starts: Vec<(usize, u32)>,
}

fn stream(sizes: &[(usize, u32)]) -> Stream {
    let mut stream = Stream {
        bytes: Vec::new(),
        starts: Vec::new(),
    };
    for (index, &(body, fds)) in sizes.iter().enumerate() {
        stream.starts.push((stream.bytes.len(), fds));
        stream.bytes.extend(message(index as u32 + 1, body, fds));
    }
    stream
}

/// The fds that the kernel hands out with a read of `range`: those whose message's first byte is in it.
fn fds_in(stream: &Stream, range: std::ops::Range<usize>) -> Vec<Fd> {
    let mut number = 100;
    let mut found = Vec::new();
    for &(start, fds) in &stream.starts {
        for _ in 0..fds {
            if range.contains(&start) {
                found.push(Fd(number));
            }
            number += 1;
        }
    }
    found
}

fn sizes() -> impl Strategy<Value = Vec<(usize, u32)>> {
    let body = prop_oneof![8 => 0usize..300, 1 => Just(5000usize), 1 => Just(70_000usize)];
    proptest::collection::vec((body, prop_oneof![3 => Just(0u32), 1 => 0u32..4]), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_cuts_give_the_same_messages(
        sizes in sizes(),
        cuts in proptest::collection::vec(1usize..400, 1..40),
        saves in any::<u64>(),
        large_by_prefix in any::<bool>(),
    ) {
        let stream = stream(&sizes);
        let mut whole = Framer::new(MAX);
        whole.push(stream.bytes.clone().into(), fds_in(&stream, 0..stream.bytes.len()));
        let expected = drain(&mut whole).unwrap();
        prop_assert_eq!(expected.len(), sizes.len());
        prop_assert_eq!((whole.partial_bytes(), whole.pending_fds()), (0, 0));

        let mut framer = Framer::new(MAX);
        let mut messages = Vec::new();
        let mut at = 0;
        for (step, cut) in cuts.iter().cycle().enumerate() {
            if at == stream.bytes.len() {
                break;
            }
            // Large cuts now and then, or large messages would take long.
            let cut = if step % 7 == 0 { cut * 50 } else { *cut };
            let mut end = (at + cut).min(stream.bytes.len());
            if let (Some(LargeMessage { have, total }), true) = (framer.large(), large_by_prefix) {
                // Into a contiguous extent, in steps.
                let start = at - have;
                end = end.min(start + total);
                prop_assert_eq!(framer.partial(), &stream.bytes[start..at]);
                framer.push_large(Bytes::copy_from_slice(&stream.bytes[start..end]), fds_in(&stream, at..end));
            } else {
                framer.push(Bytes::copy_from_slice(&stream.bytes[at..end]), fds_in(&stream, at..end));
            }
            at = end;
            // Saved and restored before or after it is drained, or not at all.
            let save = saves >> (step % 32 * 2) & 3;
            if save == 1 {
                framer = Framer::restore(framer.save(), MAX);
            }
            messages.extend(drain(&mut framer).unwrap());
            if save == 2 {
                framer = Framer::restore(framer.save(), MAX);
                prop_assert!(framer.next().unwrap().is_none());
            }
        }
        prop_assert_eq!(summary(&messages), summary(&expected));
        prop_assert_eq!((framer.partial_bytes(), framer.pending_fds()), (0, 0));
    }

    #[test]
    fn any_drain_gives_the_same_bytes(
        // Length, shared or copied, with how many fds.
        pieces in proptest::collection::vec((0usize..3000, any::<bool>(), prop_oneof![3 => Just(0u8), 1 => 1u8..4]), 1..30),
        steps in proptest::collection::vec((1u64..5000, 1usize..8, any::<bool>()), 1..30),
        // After which piece, or step, what waits is moved elsewhere.
        moves in any::<u32>(),
    ) {
        let mut queue = SendQueue::new();
        let mut elsewhere = Vec::new();
        let mut expected = Vec::new();
        let mut expected_fds = Vec::new();
        let mut number = 0;
        for (index, &(length, shared, fds)) in pieces.iter().enumerate() {
            let bytes = vec![index as u8; length];
            let carried: Vec<Fd> = (0..fds).map(|_| { number += 1; Fd(number) }).collect();
            if !bytes.is_empty() {
                expected_fds.extend(carried.iter().map(|fd| (expected.len() as u64, *fd)));
                queue.begin_fds(carried.into());
            }
            if shared { queue.push_shared(bytes.clone().into()) } else { queue.push(&bytes) }
            expected.extend(bytes);
            if moves >> (index % 32) & 1 == 1 && index % 3 == 0 {
                move_tail(&mut queue, &mut elsewhere);
            }
        }
        prop_assert_eq!(queue.len(), expected.len() as u64);
        prop_assert_eq!(queue.end(), expected.len() as u64);
        prop_assert_eq!(queue.queued_fds(), expected_fds.len());

        let mut out = Vec::new();
        let mut out_fds = Vec::new();
        for (step, &(take, max_iov, save)) in steps.iter().cycle().enumerate() {
            if queue.is_empty() {
                break;
            }
            if moves >> (step % 32) & 1 == 1 && step % 5 == 0 {
                move_tail(&mut queue, &mut elsewhere);
            }
            let at = queue.sent();
            let mut iov: Vec<IoSlice<'_>> = Vec::new();
            let fds = match queue.next_stored_write() {
                None => queue.next_write(&mut iov, max_iov).to_vec(),
                Some((most, fds)) => {
                    prop_assert!(at + most <= queue.stored());
                    iov.push(IoSlice::new(&elsewhere[at as usize..(at + most) as usize]));
                    fds.to_vec()
                }
            };
            let length: u64 = iov.iter().map(|slice| slice.len() as u64).sum();
            prop_assert!(length > 0 && iov.len() <= max_iov);
            // Fds only before the first byte of a write, and no others within it.
            let within: Vec<_> = expected_fds.iter().filter(|(start, _)| (at..at + length).contains(start)).collect();
            prop_assert!(within.iter().all(|(start, _)| *start == at));
            prop_assert_eq!(within.iter().map(|(_, fd)| *fd).collect::<Vec<_>>(), fds.clone());
            let sent = take.min(length);
            let mut bytes = iov.iter().flat_map(|slice| slice.iter().copied());
            out.extend(bytes.by_ref().take(sent as usize));
            drop(bytes);
            out_fds.extend(fds.iter().map(|fd| (at, *fd)));
            prop_assert_eq!(queue.advance(sent).to_vec(), fds);
            prop_assert_eq!(queue.sent(), at + sent);
            if save {
                let state = queue.save();
                queue = SendQueue::restore(state.clone());
                prop_assert_eq!(&queue.save().fds, &state.fds);
                prop_assert_eq!(queue.sent(), at + sent);
            }
        }
        prop_assert_eq!(out, expected);
        prop_assert_eq!(out_fds, expected_fds);
        prop_assert_eq!(queue.queued_fds(), 0);
    }

    #[test]
    fn a_restored_queue_never_panics(
        sent in any::<u32>(),
        pieces in proptest::collection::vec(0usize..2000, 0..5),
        fds in proptest::collection::vec(0u64..8000, 0..5),
        stored in prop_oneof![Just(0), 0u64..3000],
    ) {
        let mut queue = SendQueue::restore(bus_wire::SendQueueState {
            sent: sent.into(),
            stored: u64::from(sent) + stored,
            pieces: pieces.iter().map(|&length| bus_wire::PieceState::Shared(vec![1; length].into())).collect(),
            fds: fds.iter().map(|&at| (u64::from(sent) + at - 100.min(at), vec![Fd(1)])).collect(),
        });
        while !queue.is_empty() {
            let mut iov = Vec::new();
            let length = match queue.next_stored_write() {
                Some((most, _)) => most,
                None => {
                    queue.next_write(&mut iov, 64);
                    iov.iter().map(|slice: &IoSlice<'_>| slice.len() as u64).sum()
                }
            };
            prop_assert!(length > 0);
            queue.advance(length);
        }
    }
}

/// Descriptors twice at one place, of bytes that are elsewhere: they go with one write, and none is empty.
#[test]
fn descriptors_twice_at_one_place() {
    let mut queue = SendQueue::restore(bus_wire::SendQueueState {
        sent: 0,
        stored: 1,
        pieces: Vec::new(),
        fds: vec![(0, vec![Fd(1)]), (0, vec![Fd(2)])],
    });
    assert_eq!(queue.next_stored_write(), Some((1, &[Fd(1), Fd(2)][..])));
    assert_eq!(queue.advance(1).to_vec(), [Fd(1), Fd(2)]);
    assert!(queue.is_empty());
}

/// Moves the tail behind the bytes that are elsewhere already; those that were sent before leave a gap.
fn move_tail(queue: &mut SendQueue, elsewhere: &mut Vec<u8>) {
    elsewhere.resize(queue.stored() as usize, 0);
    for piece in queue.tail() {
        elsewhere.extend_from_slice(match piece {
            TailPiece::Inline(bytes) => bytes,
            TailPiece::Shared { bytes, sent } => &bytes[sent..],
        });
    }
    queue.set_stored();
    assert!(queue.is_tail_empty());
    assert_eq!(queue.stored(), elsewhere.len() as u64);
}

/// Where the next message with descriptors goes is told once it is whole, however often, and of no other message.
#[test]
fn where_descriptors_go_next_is_told_before_they_are_taken() {
    let reply = MessageBuilder::method_return(7_u32)
        .destination(":1.5")
        .serial(1_u32);
    let reply = reply.unix_fds(2).build().unwrap();
    let expected = [
        Some(NextWithFds {
            message_type: MessageType::MethodReturn,
            destination: Some(":1.5"),
        }),
        None,
        Some(NextWithFds {
            message_type: MessageType::Signal,
            destination: None,
        }),
        None,
    ];
    let stream = [reply, message(2, 9, 0), message(3, 2 * LARGE_MESSAGE, 1)].concat();
    let first = stream.len() - message(2, 9, 0).len() - message(3, 2 * LARGE_MESSAGE, 1).len();
    for cut in [
        0,
        1,
        16,
        first - 1,
        first,
        first + 1,
        stream.len() - 1,
        stream.len(),
    ] {
        let mut framer = Framer::new(MAX);
        // Each with bytes of its message.
        let with_first = match cut {
            0 => 0,
            cut if cut == stream.len() => 3,
            _ => 2,
        };
        let fds = [Fd(1), Fd(2), Fd(3)];
        framer.push(
            Bytes::copy_from_slice(&stream[..cut]),
            fds[..with_first].iter().copied(),
        );
        assert_eq!(framer.next_with_fds().is_some(), cut >= first, "{cut}");
        framer.push(
            Bytes::copy_from_slice(&stream[cut..]),
            fds[with_first..].iter().copied(),
        );
        for (number, expected) in expected.into_iter().enumerate() {
            assert_eq!(framer.next_with_fds(), expected, "{cut} {number}");
            assert_eq!(framer.next_with_fds(), expected, "{cut} {number}");
            let framed = framer.next().unwrap();
            assert_eq!(framed.is_some(), number < 3, "{cut} {number}");
        }
    }
}

/// To look at what comes next takes nothing, wherever its bytes were cut, and whatever follows.
#[test]
fn what_is_called_next_is_told_before_it_is_taken() {
    let call = |path: &str, member: &str, body: usize| {
        let call = MessageBuilder::method_call(path, member)
            .destination("a.b")
            .serial(1_u32);
        let call = call.body(|w| {
            w.byte_slice(&vec![1; body]);
        });
        Bytes::from(call.build().unwrap())
    };
    let long = format!("/{}", "a".repeat(LARGE_MESSAGE));
    let calls = [
        ("Do", call("/a", "Do", 3)),
        ("Large", call("/a", "Large", 2 * LARGE_MESSAGE)),
        ("", call(&long, "Long", 0)),
    ];
    for (member, bytes) in calls {
        let stream = [&bytes, &message(2, 9, 0)[..]].concat();
        for cut in [
            0,
            1,
            15,
            16,
            17,
            40,
            bytes.len() - 1,
            bytes.len(),
            bytes.len() + 3,
        ] {
            let mut framer = Framer::new(MAX);
            framer.push(Bytes::copy_from_slice(&stream[..cut]), []);
            assert_eq!(framer.next_call().is_some(), cut >= bytes.len(), "{member} {cut}");
            if cut < bytes.len() {
                assert!(framer.next().unwrap().is_none());
            }
            framer.push(Bytes::copy_from_slice(&stream[cut..]), []);
            let expected = match member {
                "" => NextCall::Long,
                member => NextCall::Named {
                    destination: Some("a.b"),
                    member,
                },
            };
            for _ in 0..2 {
                assert_eq!(framer.next_call(), Some(expected), "{member} {cut}");
            }
            let serials = summary(&drain(&mut framer).unwrap());
            assert_eq!(serials.len(), 2, "{member} {cut}");
            assert_eq!(framer.next_call(), None);
        }
    }
    let mut framer = Framer::new(MAX);
    framer.push(message(1, 9, 0).into(), []);
    assert_eq!(framer.next_call(), None);
    // One whose header is not valid is for `next` to refuse.
    let mut bytes = call("/a", "Do", 3).to_vec();
    bytes[20] = 0;
    framer = Framer::new(MAX);
    framer.push(bytes.into(), []);
    assert_eq!(framer.next_call(), None);
    assert!(framer.next().is_err());
}

#[test]
fn a_whole_message_is_not_copied() {
    let bytes = Bytes::from([message(1, 10, 0), message(2, 10, 0)].concat());
    let mut framer = Framer::new(MAX);
    framer.push(bytes.clone(), []);
    let messages = drain(&mut framer).unwrap();
    assert_eq!(messages[0].message.bytes().as_ptr(), bytes.as_ptr());
    assert_eq!(framer.partial_bytes(), 0);
}

#[test]
fn a_large_message_is_announced_and_taken_by_reference() {
    let bytes = Bytes::from(message(1, 2 * LARGE_MESSAGE, 0));
    let mut framer = Framer::new(MAX);
    framer.push(bytes.slice(..10), []);
    assert!(framer.next().unwrap().is_none());
    assert_eq!(framer.large(), None);
    framer.push(bytes.slice(10..100), []);
    assert!(framer.next().unwrap().is_none());
    assert_eq!(
        framer.large(),
        Some(LargeMessage {
            have: 100,
            total: bytes.len()
        })
    );
    framer.push_large(bytes.slice(..5000), []);
    assert!(framer.next().unwrap().is_none());
    assert_eq!(
        framer.large(),
        Some(LargeMessage {
            have: 5000,
            total: bytes.len()
        })
    );
    framer.push_large(bytes.clone(), []);
    let framed = framer.next().unwrap().unwrap();
    assert_eq!(framed.message.bytes().as_ptr(), bytes.as_ptr());
    assert_eq!(framer.large(), None);
    let small = Bytes::from(message(1, 1000, 0));
    framer.push(small.slice(..100), []);
    assert!(framer.next().unwrap().is_none());
    assert_eq!((framer.large(), framer.partial_bytes()), (None, 100));
}

#[test]
fn a_large_message_goes_on_after_a_restart() {
    let bytes = Bytes::from(message(1, 100_000, 0));
    let mut framer = Framer::new(MAX);
    framer.push(bytes.slice(..1000), []);
    assert!(framer.next().unwrap().is_none());
    let mut restored = Framer::restore(framer.save(), MAX);
    assert_eq!(restored.large(), framer.large());
    assert_eq!(restored.partial(), framer.partial());
    // A longer beginning replaces what was saved.
    restored.push_large(bytes.clone(), []);
    let framed = restored.next().unwrap().unwrap();
    assert_eq!(framed.message.bytes(), &bytes);
    assert_eq!(restored.partial_bytes(), 0);
}

/// A signal with a body of this type that is this long or somewhat longer.
fn large_message(signature: &str, length: usize) -> Vec<u8> {
    let text = "größer 大きい 𐍈 ".repeat(length / 25);
    let message = MessageBuilder::signal("/a", "a.b", "C").serial(1u32);
    let numbers = 0..length as u32 / 8;
    let message = match signature {
        "s" => message.body(|body| {
            body.str(&text);
        }),
        "o" => message.body(|body| {
            body.object_path(&"/some/path".repeat(length / 10));
        }),
        "av" => message.body(|body| {
            body.array("v", |body| {
                for number in numbers {
                    body.variant("u", |body| {
                        body.u32(number);
                    });
                }
            });
        }),
        "a(ysas)" => message.body(|body| {
            body.array("(ysas)", |body| {
                for number in numbers.step_by(100) {
                    body.structure(|body| {
                        body.u8(number as u8).str(&text[..number as usize % 8]);
                        body.array("s", |body| {
                            for _ in 0..50 {
                                body.str("0123456789");
                            }
                        });
                    });
                }
            });
        }),
        _ => message.body(|body| {
            body.byte_slice(&vec![7; length]);
        }),
    };
    message.build().unwrap()
}

/// Takes the stream of one message, valid or not, in pieces: the verdict comes with the last of them, and is that which
/// the message gets as a whole, whatever is saved, restored and caught up with in between.
#[derive(Debug, Clone)]
struct Route {
    cuts: Vec<usize>,
    /// For each piece: by prefix or not; saved and restored or not; caught up by so many steps.
    ways: Vec<(bool, bool, u8)>,
}

fn route() -> impl Strategy<Value = Route> {
    let cut = prop_oneof![1usize..300, 1usize..100_000];
    (
        proptest::collection::vec(cut, 1..12),
        proptest::collection::vec(any::<(bool, bool, u8)>(), 1..12),
    )
        .prop_map(|(cuts, ways)| Route { cuts, ways })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_large_message_gets_its_verdict_at_its_end(
        signature in proptest::sample::select(vec!["s", "o", "av", "a(ysas)", "ay"]),
        length in 100_000usize..200_000,
        faults in proptest::collection::vec((any::<u32>(), any::<u8>()), 0..2),
        route in route(),
    ) {
        let mut bytes = large_message(signature, length);
        for (at, byte) in faults {
            // The header is left alone; so is the length of the body.
            let at = 200 + at as usize % (bytes.len() - 200);
            bytes[at] = byte;
        }
        let bytes = Bytes::from(bytes);
        let expected = Message::parse(bytes.clone()).map(|message| format!("{message:?}"));
        let mut framer = Framer::new(MAX);
        let mut at = 0;
        let mut ways = route.ways.iter().cycle();
        let mut small = 0;
        let result = loop {
            for cut in &route.cuts {
                let (by_prefix, is_restored, steps) = *ways.next().unwrap();
                // Some steps of any size, and then larger ones, so that it comes to an end.
                small += 1;
                let cut = if small > 40 { cut.max(&30_000) } else { cut };
                let end = (at + cut).min(bytes.len());
                if by_prefix && framer.large().is_some() {
                    framer.push_large(bytes.slice(..end), []);
                } else {
                    framer.push(bytes.slice(at..end), []);
                }
                at = end;
                if at == bytes.len() {
                    break;
                }
                prop_assert!(framer.next().unwrap().is_none());
                if is_restored {
                    framer = Framer::restore(framer.save(), MAX);
                }
                for _ in 0..steps % 4 {
                    framer.catch_up(10_000);
                }
            }
            if at == bytes.len() {
                break framer.next();
            }
        };
        let result = result.map(|framed| format!("{:?}", framed.unwrap().message));
        prop_assert_eq!(result, expected);
        prop_assert!(!framer.catch_up(10_000));
    }
}

/// The bytes that were there before it was restored are validated in as many steps as it takes, and no others.
#[test]
fn a_restored_framer_catches_up_in_steps() {
    let bytes = Bytes::from(large_message("av", 1_000_000));
    let half = bytes.len() / 2;
    let mut framer = Framer::new(MAX);
    framer.push(bytes.slice(..half), []);
    assert!(framer.next().unwrap().is_none());
    assert!(!framer.catch_up(1), "what has arrived is validated");

    let mut framer = Framer::restore(framer.save(), MAX);
    let steps = |framer: &mut Framer| (1..).find(|_| !framer.catch_up(10_000)).unwrap();
    assert_eq!(steps(&mut framer.clone()), half.div_ceil(10_000));
    // What comes in the meantime is no part of what was missed.
    framer.push_large(bytes.slice(..half + 100_000), []);
    assert!(framer.next().unwrap().is_none());
    assert_eq!(steps(&mut framer), half.div_ceil(10_000));
    framer.push_large(bytes.slice(..half + 200_000), []);
    assert!(framer.next().unwrap().is_none());
    assert!(!framer.catch_up(1));
    framer.push_large(bytes.clone(), []);
    assert_eq!(framer.next().unwrap().unwrap().message.bytes(), &bytes);
}

#[test]
fn a_message_over_the_limit_is_refused_by_its_header() {
    let bytes = Bytes::from(message(1, 2000, 0));
    let mut framer = Framer::new(1000);
    framer.push(bytes.slice(..16), []);
    let error = MessageError::TooLong {
        length: bytes.len(),
        limit: 1000,
    };
    assert_eq!(framer.next().unwrap_err(), error);
    assert_eq!(framer.next().unwrap_err(), error, "for ever");
    let mut framer = Framer::new(1000);
    framer.set_max_message_size(usize::MAX);
    framer.push(bytes, []);
    assert_eq!(drain(&mut framer).unwrap().len(), 1);
}

/// A claim of 128 MiB takes no memory before the bytes are there.
#[test]
fn a_claimed_length_costs_nothing() {
    let mut bytes = message(1, 0, 0);
    bytes[4..8].copy_from_slice(&((1u32 << 27) - 1000).to_le_bytes());
    let mut framer = Framer::new(usize::MAX);
    framer.push(bytes.clone().into(), []);
    assert!(framer.next().unwrap().is_none());
    assert_eq!(framer.partial_bytes(), bytes.len());
}

#[test]
fn fds_that_are_claimed_must_have_arrived() {
    let mut framer = Framer::new(MAX);
    framer.push(message(1, 0, 2).into(), [Fd(5)]);
    assert_eq!(
        framer.next().unwrap_err(),
        MessageError::MissingFds {
            claimed: 2,
            arrived: 1
        }
    );
    assert_eq!(framer.take_fds(), [Fd(5)]);
    assert_eq!(framer.pending_fds(), 0);
}

/// What came with one read: bytes of the stream from where the last read ended, and descriptors.
type Piece<'a> = (usize, &'a [i32]);

/// Pushes pieces of a stream of messages that claim so many descriptors each; tells which each got, and which were
/// surplus.
#[track_caller]
fn check_fds(claims: &[u32], pieces: &[Piece<'_>], expected: &[&[i32]], dropped: &[i32]) {
    for is_restored in [false, true] {
        let sizes: Vec<_> = claims.iter().map(|claimed| (1000, *claimed)).collect();
        let bytes = stream(&sizes).bytes;
        let mut framer = Framer::new(MAX);
        let (mut got, mut surplus, mut at) = (Vec::new(), Vec::new(), 0);
        for (length, fds) in pieces {
            let piece = Bytes::copy_from_slice(&bytes[at..at + length]);
            framer.push(piece, fds.iter().copied().map(Fd));
            at += length;
            for framed in drain(&mut framer).unwrap() {
                got.push(framed.fds.iter().map(|fd| fd.0).collect::<Vec<_>>());
            }
            surplus.extend(framer.take_surplus().iter().map(|fd| fd.0));
            if is_restored {
                framer = Framer::restore(framer.save(), MAX);
            }
        }
        assert_eq!(at, bytes.len());
        assert_eq!(
            (got, surplus),
            (
                expected.iter().map(|fds| fds.to_vec()).collect(),
                dropped.to_vec()
            )
        );
        assert_eq!(framer.pending_fds(), 0);
    }
}

#[test]
fn surplus_fds_never_reach_a_later_message() {
    let (none, one, two) = (
        message(1, 1000, 0).len(),
        message(1, 1000, 1).len(),
        message(1, 1000, 2).len(),
    );
    // In the same read as their message.
    check_fds(&[0, 1], &[(none, &[1, 2]), (one, &[3])], &[&[], &[3]], &[1, 2]);
    check_fds(&[1, 1], &[(one, &[1, 2]), (one, &[3])], &[&[1], &[3]], &[2]);
    // Again with each piece of it.
    check_fds(
        &[1, 1],
        &[(500, &[1]), (100, &[2]), (one - 600, &[3]), (one, &[4])],
        &[&[1], &[4]],
        &[2, 3],
    );
    check_fds(
        &[1, 1],
        &[(1, &[1]), (1, &[2]), (one - 2, &[3]), (one, &[4])],
        &[&[1], &[4]],
        &[2, 3],
    );
    check_fds(
        &[0, 1],
        &[(500, &[1]), (none - 500, &[]), (one, &[2])],
        &[&[], &[2]],
        &[1],
    );
    // The last piece brings the beginning of the next message, whose they may be; earlier ones cannot be.
    check_fds(
        &[1, 1],
        &[(500, &[1]), (one, &[2]), (one - 500, &[])],
        &[&[1], &[2]],
        &[],
    );
    check_fds(
        &[1, 1],
        &[(500, &[1, 2]), (one, &[3]), (one - 500, &[])],
        &[&[1], &[3]],
        &[2],
    );
    check_fds(
        &[1, 1],
        &[(500, &[1]), (one, &[2]), (one - 500, &[3])],
        &[&[1], &[2]],
        &[3],
    );
    // Several messages in one read.
    check_fds(
        &[1, 0, 1],
        &[(one + none, &[1, 2]), (one, &[3])],
        &[&[1], &[], &[3]],
        &[2],
    );
    check_fds(
        &[1, 1],
        &[(500, &[1, 2]), (2 * one - 500, &[3])],
        &[&[1], &[3]],
        &[2],
    );
    check_fds(&[0, 1], &[(none + one, &[1])], &[&[], &[1]], &[]);
    check_fds(&[0, 1], &[(none + 10, &[1]), (one - 10, &[])], &[&[], &[1]], &[]);
    // In as many sends as its sender likes, as long as it claims them all.
    check_fds(
        &[2, 1],
        &[(500, &[1]), (two - 500, &[2]), (one, &[3])],
        &[&[1, 2], &[3]],
        &[],
    );
    check_fds(
        &[2, 1],
        &[(1, &[1]), (1, &[2]), (two - 2, &[]), (one, &[3])],
        &[&[1, 2], &[3]],
        &[],
    );
}

#[test]
fn surplus_fds_are_none_that_a_later_message_may_claim() {
    let bytes = stream(&[(1000, 1), (1000, 1)]).bytes;
    let mut framer = Framer::new(MAX);
    framer.push(Bytes::copy_from_slice(&bytes[..500]), [Fd(1), Fd(2)]);
    assert!(framer.next().unwrap().is_none());
    assert!(framer.take_surplus().is_empty());
    framer.push(Bytes::copy_from_slice(&bytes[500..]), []);
    assert_eq!(framer.next().unwrap().unwrap().fds.as_slice(), [Fd(1)]);
    assert_eq!(
        framer.next().unwrap_err(),
        MessageError::MissingFds {
            claimed: 1,
            arrived: 0
        }
    );
    assert_eq!(framer.take_fds(), [Fd(2)]);
}

#[test]
fn small_messages_are_one_slice() {
    let mut queue = SendQueue::new();
    for _ in 0..64 {
        queue.push(&[1; 100]);
        queue.push_shared(Bytes::from_static(&[2; 50]));
    }
    let mut iov = Vec::new();
    assert!(queue.next_write(&mut iov, 64).is_empty());
    assert_eq!(iov.len(), 1);
    assert_eq!(iov[0].len(), 64 * 150);
    queue.advance(64 * 150);
    assert_eq!(format!("{:?}", queue.save().pieces), "[]");
}

#[test]
fn large_bodies_are_not_copied() {
    let body = Bytes::from(vec![7; 100_000]);
    let mut queue = SendQueue::new();
    queue.push(&[1; 100]);
    queue.push_shared(body.clone());
    queue.push(&[1; 100]);
    let mut iov = Vec::new();
    queue.next_write(&mut iov, 64);
    assert_eq!(
        iov.iter().map(|slice| slice.len()).collect::<Vec<_>>(),
        [100, 100_000, 100]
    );
    assert_eq!(iov[1].as_ptr(), body.as_ptr());
}

#[test]
fn a_cleared_queue_keeps_its_place() {
    let mut queue = SendQueue::new();
    queue.push(&[1; 100]);
    queue.begin_fds([Fd(3), Fd(4)].into_iter().collect());
    queue.push(&[1; 100]);
    queue.advance(30);
    assert_eq!((queue.sent(), queue.end(), queue.len()), (30, 200, 170));
    assert_eq!(queue.clear(), [Fd(3), Fd(4)]);
    assert_eq!((queue.sent(), queue.end(), queue.queued_fds()), (30, 30, 0));
    queue.push(&[2]);
    assert_eq!(queue.end(), 31);
}
