//! Cuts the bytes of a carrier into frames, however they come.

use super::{DATA, FIRST_SKIPPED, Frame, FrameError};
use crate::limits::{DATA_HEADER, HEADER, MAX_CONTROL, MAX_FRAME};
use bytes::{Buf, Bytes};

/// What the decoder found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Piece {
    /// A whole frame.
    Frame(Frame),
    /// Bytes of a DATA frame: as many of them as have come. What follows comes as further pieces.
    Data {
        /// Where in the sender's stream they stand.
        offset: u64,
        /// At least one byte, a view of the input.
        bytes: Bytes,
    },
}

/// Cuts frames off a carrier's input. A frame of any type but DATA is kept until it is whole, in at most
/// [`MAX_CONTROL`] bytes; DATA is passed on as it comes.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
}

/// ```text
///            header complete                  all bytes of it seen
/// Header ──┬─────────────────▶ Control ──┬──────────────────────────▶ Header
///          ├─────────────────▶ Offset ─▶ Data ───────────────────────▶
///          └─────────────────▶ Skipped ──────────────────────────────▶
/// ```
#[derive(Debug)]
enum State {
    /// The first four bytes, and those that have come of them.
    Header { bytes: [u8; HEADER], have: usize },
    /// A frame that is read when it is whole.
    Control { kind: u8, length: usize, body: Vec<u8> },
    /// The offset of a DATA frame with so many bytes behind it.
    Offset {
        bytes: [u8; 8],
        have: usize,
        length: usize,
    },
    /// Bytes of the stream that are still to come.
    Data { offset: u64, left: usize },
    /// Bytes that nobody understands, and need not.
    Skipped { left: usize },
}

impl Default for State {
    fn default() -> Self {
        Self::Header {
            bytes: [0; HEADER],
            have: 0,
        }
    }
}

impl Decoder {
    /// The next piece of `input`, which loses what was taken; None if more input is needed.
    ///
    /// # Errors
    /// The peer sent what is no frame. The decoder is of no use afterwards.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<Piece>, FrameError> {
        while !input.is_empty() {
            if let Some(piece) = self.step(input)? {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// Whether all input so far ended with a whole frame.
    #[must_use]
    pub const fn at_boundary(&self) -> bool {
        matches!(self.state, State::Header { have: 0, .. })
    }

    fn step(&mut self, input: &mut Bytes) -> Result<Option<Piece>, FrameError> {
        let mut piece = None;
        let next = match &mut self.state {
            State::Header { bytes, have } => fill(bytes, have, input).then(|| begin(*bytes)).transpose()?,
            State::Control { kind, length, body } => {
                let taken = input.split_to((*length - body.len()).min(input.len()));
                body.extend_from_slice(&taken);
                if body.len() < *length {
                    None
                } else {
                    piece = Some(Piece::Frame(Frame::read(*kind, body)?));
                    Some(State::default())
                }
            }
            State::Offset { bytes, have, length } => fill(bytes, have, input)
                .then(|| place(u64::from_be_bytes(*bytes), *length))
                .transpose()?,
            State::Data { offset, left } => {
                let bytes = input.split_to((*left).min(input.len()));
                let at = *offset;
                *offset += bytes.len() as u64;
                *left -= bytes.len();
                let whole = *left == 0;
                piece = Some(Piece::Data { offset: at, bytes });
                whole.then(State::default)
            }
            State::Skipped { left } => {
                let skipped = (*left).min(input.len());
                input.advance(skipped);
                *left -= skipped;
                (*left == 0).then(State::default)
            }
        };
        if let Some(next) = next {
            self.state = next;
        }
        Ok(piece)
    }
}

/// Takes what is missing in `bytes` from the input; true if nothing is missing any more.
fn fill<const N: usize>(bytes: &mut [u8; N], have: &mut usize, input: &mut Bytes) -> bool {
    let take = (N - *have).min(input.len());
    input.copy_to_slice(&mut bytes[*have..*have + take]);
    *have += take;
    *have == N
}

/// Where the bytes of a DATA frame stand. Whether that makes sense the session says; there is no place behind the last offset.
fn place(offset: u64, length: usize) -> Result<State, FrameError> {
    match offset.checked_add(length as u64) {
        Some(_) => Ok(State::Data { offset, left: length }),
        None => Err(FrameError::Field(DATA)),
    }
}

/// What follows a header. No length is believed before it is compared.
fn begin([kind, high, middle, low]: [u8; HEADER]) -> Result<State, FrameError> {
    let length = u32::from_be_bytes([0, high, middle, low]) as usize;
    let bad = Err(FrameError::Length { kind, length });
    if kind == DATA {
        return match length.checked_sub(8) {
            Some(data) if data > 0 && DATA_HEADER + data <= MAX_FRAME => Ok(State::Offset {
                bytes: [0; 8],
                have: 0,
                length: data,
            }),
            _ => bad,
        };
    }
    if kind >= FIRST_SKIPPED {
        return match length {
            0 => Ok(State::default()),
            1.. if HEADER + length <= MAX_FRAME => Ok(State::Skipped { left: length }),
            _ => bad,
        };
    }
    if kind == 0 || kind > super::CHALLENGE {
        return Err(FrameError::UnknownType(kind));
    }
    // No known frame is empty, so a body always follows.
    if length == 0 || HEADER + length > MAX_CONTROL {
        return bad;
    }
    Ok(State::Control {
        kind,
        length,
        body: Vec::new(),
    })
}
