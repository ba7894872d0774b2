use super::*;
use crate::limits::{HEADER, MAX_CONTROL, MAX_DATA, MAX_FRAME};
use bytes::Bytes;

fn samples() -> Vec<Frame> {
    let preamble = Preamble {
        oldest: 1,
        newest: 3,
        features: 0x8000_0001,
    };
    let terms = Terms::DEFAULT;
    vec![
        Frame::Hello(Hello {
            preamble,
            wish: terms,
            incarnation: u64::MAX,
        }),
        Frame::Welcome(Box::new(Welcome {
            preamble,
            session: SessionId([7; 16]),
            secret: Secret([9; 32]),
            terms,
            incarnation: 3,
        })),
        Frame::Ack {
            offset: 1,
            credit: u64::MAX,
        },
        Frame::Ping(4),
        Frame::Pong(5),
        Frame::Resume(Box::new(Resume {
            preamble,
            session: SessionId([1; 16]),
            attempt: 6,
            received: 7,
            mac: Mac([8; 32]),
        })),
        Frame::Resumed(Box::new(Resumed {
            preamble,
            received: 9,
            incarnation: 1,
            mac: Mac([10; 32]),
        })),
        Frame::Gone {
            reason: Reason::Violation(Rule::Ack),
            offset: 11,
        },
        Frame::Gone {
            reason: Reason::Expired,
            offset: 0,
        },
        Frame::Retry {
            after: Duration::from_millis(250),
            address: "bus-tcp:host=b".into(),
        },
        Frame::Detach {
            after: Duration::from_millis(12),
        },
        Frame::Bye {
            offset: 13,
            confirmed: true,
        },
        Frame::Challenge {
            preamble,
            nonce: Nonce([14; 32]),
        },
    ]
}

fn decode_in(bytes: &[u8], step: usize) -> Vec<Piece> {
    let mut decoder = Decoder::default();
    let mut pieces = Vec::new();
    for chunk in bytes.chunks(step) {
        let mut input = Bytes::copy_from_slice(chunk);
        while let Some(piece) = decoder.next(&mut input).unwrap() {
            pieces.push(piece);
        }
    }
    assert!(decoder.at_boundary());
    pieces
}

#[test]
fn every_frame_is_read_as_written_however_it_is_cut() {
    let frames = samples();
    let mut bytes = Vec::new();
    for frame in &frames {
        frame.write(&mut bytes);
    }
    let wanted: Vec<_> = frames.into_iter().map(Piece::Frame).collect();
    for step in [1, 2, 3, 5, 7, 64, bytes.len()] {
        assert_eq!(decode_in(&bytes, step), wanted, "cut every {step} bytes");
    }
}

#[test]
fn data_is_passed_on_as_it_comes_with_offsets_that_go_on() {
    let payload: Vec<u8> = (0..=255).cycle().take(MAX_DATA).collect();
    let mut bytes = data_header(u64::MAX - MAX_DATA as u64, MAX_DATA).to_vec();
    bytes.extend(&payload);
    assert_eq!(bytes.len(), MAX_FRAME);
    for step in [1, 11, 12, 13, 1000, MAX_FRAME] {
        let mut at = u64::MAX - MAX_DATA as u64;
        let mut seen = Vec::new();
        for piece in decode_in(&bytes, step) {
            let Piece::Data { offset, bytes } = piece else {
                panic!("not data: {piece:?}")
            };
            assert_eq!(offset, at);
            at += bytes.len() as u64;
            seen.extend_from_slice(&bytes);
        }
        assert!(seen == payload);
    }
}

#[test]
fn unknown_frames_from_0x80_on_are_skipped() {
    let mut bytes = vec![0x80, 0, 0, 0, 0xff, 0, 0, 3, 1, 2, 3];
    Frame::Ping(1).write(&mut bytes);
    bytes.extend([0xc0, 0, 0x3f, 0xfc]);
    bytes.extend([5; MAX_FRAME - HEADER]);
    for step in [1, 4, 9, bytes.len()] {
        assert_eq!(decode_in(&bytes, step), [Piece::Frame(Frame::Ping(1))]);
    }
}

#[test]
fn what_is_no_frame_is_an_error_before_its_body_comes() {
    let kinds = |kind: u8, length: usize| {
        let mut header = u32::try_from(length).unwrap().to_be_bytes();
        header[0] = kind;
        let mut input = Bytes::copy_from_slice(&header);
        Decoder::default().next(&mut input)
    };
    for kind in 0..=0x7f {
        let known = (HELLO..=CHALLENGE).contains(&kind);
        if !known {
            assert_eq!(kinds(kind, 8), Err(FrameError::UnknownType(kind)));
        }
    }
    let length = |kind, length| Err(FrameError::Length { kind, length });
    assert_eq!(kinds(DATA, 8), length(DATA, 8));
    assert_eq!(kinds(DATA, MAX_DATA + 9), length(DATA, MAX_DATA + 9));
    assert_eq!(kinds(DATA, 0xff_ffff), length(DATA, 0xff_ffff));
    assert_eq!(kinds(0x80, MAX_FRAME), length(0x80, MAX_FRAME));
    assert_eq!(kinds(PING, 0), length(PING, 0));
    assert_eq!(kinds(RETRY, MAX_CONTROL), length(RETRY, MAX_CONTROL));
}

#[test]
fn bodies_are_exactly_as_long_as_their_fields() {
    for frame in samples() {
        let bytes = frame.to_vec();
        assert!(bytes.len() <= MAX_CONTROL);
        let (kind, body) = (bytes[0], &bytes[4..]);
        assert_eq!(Frame::read(kind, body), Ok(frame.clone()));
        if kind == RETRY {
            continue;
        }
        let mut longer = body.to_vec();
        longer.push(0);
        assert_eq!(
            Frame::read(kind, &longer),
            Err(FrameError::Length {
                kind,
                length: longer.len()
            })
        );
        let shorter = &body[..body.len() - 1];
        assert_eq!(
            Frame::read(kind, shorter),
            Err(FrameError::Length {
                kind,
                length: shorter.len()
            })
        );
    }
}

#[test]
fn fields_without_a_meaning_are_refused() {
    assert_eq!(Frame::read(GONE, &[0; 10]), Err(FrameError::Field(GONE)));
    assert_eq!(
        Frame::read(GONE, &[8, 99, 0, 0, 0, 0, 0, 0, 0, 0]),
        Err(FrameError::Field(GONE))
    );
    assert_eq!(
        Frame::read(BYE, &[0, 0, 0, 0, 0, 0, 0, 0, 2]),
        Err(FrameError::Field(BYE))
    );
    assert_eq!(
        Frame::read(RETRY, &[0, 0, 0, 0, 0xff]),
        Err(FrameError::Field(RETRY))
    );
    let mut hello = samples()[0].to_vec();
    hello[4] = b'X';
    assert_eq!(Frame::read(HELLO, &hello[4..]), Err(FrameError::Magic));
}
