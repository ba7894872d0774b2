//! Frames: what is written on a carrier. `docs/tcp-protocol.md` has the layout; all numbers are big endian.

mod decoder;
mod fields;

pub use decoder::{Decoder, Piece};

use crate::limits::{DATA_HEADER, MAX_ADDRESS, Terms};
use crate::resume::{Mac, Nonce, Secret, SessionId};
use fields::{Put, Take};
use std::time::Duration;

/// What the first frame of each side begins with.
pub const MAGIC: [u8; 4] = *b"BUSS";
/// The only version there is.
pub const VERSION: u8 = 1;
/// Frames of types from here on are skipped by those who do not know them.
pub const FIRST_SKIPPED: u8 = 0x80;

/// Which versions the sender speaks, and what it can do beyond them. In the first frame of each side.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Preamble {
    /// Oldest version.
    pub oldest: u8,
    /// Newest version. An answer names one version twice.
    pub newest: u8,
    /// Bits without a meaning yet; an answer has only bits of the question.
    pub features: u32,
}

impl Preamble {
    /// What this code speaks.
    pub const OURS: Self = Self {
        oldest: VERSION,
        newest: VERSION,
        features: 0,
    };

    /// Whether there is a version that both speak.
    #[must_use]
    pub const fn understood(&self) -> bool {
        self.oldest <= VERSION && VERSION <= self.newest
    }
}

/// Asks for a new session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hello {
    /// Versions.
    pub preamble: Preamble,
    /// What the client would like, and the credit that it gives.
    pub wish: Terms,
    /// Another one for each run of the client that has forgotten its sessions.
    pub incarnation: u64,
}

/// Grants a session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Welcome {
    /// The version that holds.
    pub preamble: Preamble,
    /// Its name.
    pub session: SessionId,
    /// What proves that a later carrier belongs to it.
    pub secret: Secret,
    /// What holds, and the credit that the host gives.
    pub terms: Terms,
    /// Another one for each run of the host that has forgotten its sessions.
    pub incarnation: u64,
}

/// Asks to go on with a session on this carrier.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Resume {
    /// Versions.
    pub preamble: Preamble,
    /// Which session.
    pub session: SessionId,
    /// Greater than in every RESUME before.
    pub attempt: u64,
    /// How many bytes of the host's stream the client has.
    pub received: u64,
    /// HMAC over the carrier's binding and all fields above.
    pub mac: Mac,
}

/// Goes on with a session on this carrier.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Resumed {
    /// The version that holds.
    pub preamble: Preamble,
    /// How many bytes of the client's stream the host has.
    pub received: u64,
    /// As in WELCOME.
    pub incarnation: u64,
    /// HMAC over the carrier's binding and all fields above.
    pub mac: Mac,
}

/// Why a session is over, on the wire.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Reason {
    /// No such session, or not this peer's: nobody can tell which.
    Unknown,
    /// The client stayed away for longer than the window.
    Expired,
    /// Both sides said BYE.
    Ended,
    /// One side lost bytes that it had acknowledged.
    RolledBack,
    /// Too many bytes wait to be acknowledged.
    Overflow,
    /// The identity may no longer use this host.
    Refused,
    /// The other side dropped the session without an end.
    Dropped,
    /// The other side broke a rule.
    Violation(Rule),
}

/// The rules that a peer can break inside an authenticated stream.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Rule {
    /// Frames are of a known type, and as long as their type allows.
    Frame,
    /// The versions overlap, and an answer is within the question.
    Version,
    /// A frame comes where it has a meaning.
    Place,
    /// Acknowledgements and credit do not go back, nor beyond what was sent.
    Ack,
    /// Nobody sends more than the other side gave credit for.
    Credit,
    /// A stream ends once, and where it said.
    Bye,
    /// Terms leave room to live.
    Terms,
}

/// One frame, DATA excepted: its bytes are handed on as they come, see [`Piece`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Frame {
    /// HELLO
    Hello(Hello),
    /// WELCOME
    Welcome(Box<Welcome>),
    /// ACK: so much is committed, and so much may be sent.
    Ack {
        /// Offset behind the last byte that is committed.
        offset: u64,
        /// Offset behind the last byte that may be sent.
        credit: u64,
    },
    /// PING
    Ping(u64),
    /// PONG, with the number of the PING
    Pong(u64),
    /// RESUME
    Resume(Box<Resume>),
    /// RESUMED
    Resumed(Box<Resumed>),
    /// GONE
    Gone {
        /// Why.
        reason: Reason,
        /// How many bytes of the other side's stream were taken in all.
        offset: u64,
    },
    /// RETRY: not now, or not here.
    Retry {
        /// When to come again.
        after: Duration,
        /// Where to; empty: here.
        address: String,
    },
    /// DETACH: this carrier is about to end, as planned; come again after so long.
    Detach {
        /// When to come again.
        after: Duration,
    },
    /// BYE: the sender's stream ends here.
    Bye {
        /// Offset behind its last byte.
        offset: u64,
        /// The other side's BYE has come, and all before it is committed.
        confirmed: bool,
    },
    /// CHALLENGE: first frame of a host on a carrier without TLS.
    Challenge {
        /// Versions.
        preamble: Preamble,
        /// What MACs are bound to on this carrier.
        nonce: Nonce,
    },
}

/// What is wrong with bytes that should have been a frame. The peer is at fault.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FrameError {
    /// A type below 0x80 that nobody knows.
    #[error("the peer sent a frame of unknown type {0:#04x}")]
    UnknownType(u8),
    /// A length that the type does not allow.
    #[error("the peer sent a frame of type {kind:#04x} with {length} bytes")]
    Length {
        /// Type of the frame.
        kind: u8,
        /// Length that it announced.
        length: usize,
    },
    /// A first frame without the magic.
    #[error("the peer does not speak this protocol")]
    Magic,
    /// A field with a value that has no meaning.
    #[error("the peer sent a frame of type {0:#04x} with a field out of range")]
    Field(u8),
}

pub(crate) const HELLO: u8 = 0x01;
pub(crate) const WELCOME: u8 = 0x02;
pub(crate) const DATA: u8 = 0x03;
pub(crate) const ACK: u8 = 0x04;
pub(crate) const PING: u8 = 0x05;
pub(crate) const PONG: u8 = 0x06;
pub(crate) const RESUME: u8 = 0x07;
pub(crate) const RESUMED: u8 = 0x08;
pub(crate) const GONE: u8 = 0x09;
pub(crate) const RETRY: u8 = 0x0a;
pub(crate) const DETACH: u8 = 0x0b;
pub(crate) const BYE: u8 = 0x0c;
pub(crate) const CHALLENGE: u8 = 0x0d;

/// What stands before `length` bytes of the stream that begin at `offset`.
///
/// # Panics
/// If `length` is not from 1 to [`MAX_DATA`](crate::limits::MAX_DATA).
#[must_use]
pub fn data_header(offset: u64, length: usize) -> [u8; DATA_HEADER] {
    assert!(
        (1..=crate::limits::MAX_DATA).contains(&length),
        "a DATA frame has room for {length} bytes"
    );
    let mut header = [0; DATA_HEADER];
    #[allow(clippy::cast_possible_truncation)] // At most MAX_DATA and eight.
    header[..4].copy_from_slice(&((u32::from(DATA) << 24) | (length as u32 + 8)).to_be_bytes());
    header[4..].copy_from_slice(&offset.to_be_bytes());
    header
}

impl Frame {
    /// Appends the frame to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([0; 4]);
        let kind = self.write_body(out);
        let length = out.len() - start - 4;
        debug_assert!(length <= crate::limits::MAX_CONTROL - 4);
        #[allow(clippy::cast_possible_truncation)] // All are short.
        out[start..start + 4].copy_from_slice(&((u32::from(kind) << 24) | length as u32).to_be_bytes());
    }

    /// The frame by itself.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        self.write(&mut out);
        out
    }

    fn write_body(&self, out: &mut Vec<u8>) -> u8 {
        match self {
            Self::Hello(hello) => {
                out.preamble(&hello.preamble)
                    .terms(&hello.wish)
                    .u64(hello.incarnation);
                HELLO
            }
            Self::Welcome(welcome) => {
                out.preamble(&welcome.preamble)
                    .put(&welcome.session.0)
                    .put(&welcome.secret.0);
                out.terms(&welcome.terms).u64(welcome.incarnation);
                WELCOME
            }
            Self::Ack { offset, credit } => {
                out.u64(*offset).u64(*credit);
                ACK
            }
            Self::Ping(number) => {
                out.u64(*number);
                PING
            }
            Self::Pong(number) => {
                out.u64(*number);
                PONG
            }
            Self::Resume(resume) => {
                out.put(&resume.signed()).put(&resume.mac.0);
                RESUME
            }
            Self::Resumed(resumed) => {
                out.put(&resumed.signed()).put(&resumed.mac.0);
                RESUMED
            }
            Self::Gone { reason, offset } => {
                out.put(&reason.code()).u64(*offset);
                GONE
            }
            Self::Retry { after, address } => {
                out.millis(*after)
                    .put(&address.as_bytes()[..address.len().min(MAX_ADDRESS)]);
                RETRY
            }
            Self::Detach { after } => {
                out.millis(*after);
                DETACH
            }
            Self::Bye { offset, confirmed } => {
                out.u64(*offset).put(&[u8::from(*confirmed)]);
                BYE
            }
            Self::Challenge { preamble, nonce } => {
                out.preamble(preamble).put(&nonce.0);
                CHALLENGE
            }
        }
    }

    /// Reads the body of a frame of a known type.
    pub(crate) fn read(kind: u8, body: &[u8]) -> Result<Self, FrameError> {
        let mut take = Take::new(kind, body);
        let frame = match kind {
            HELLO => Self::Hello(Hello {
                preamble: take.preamble()?,
                wish: take.terms()?,
                incarnation: take.u64()?,
            }),
            WELCOME => Self::Welcome(Box::new(Welcome {
                preamble: take.preamble()?,
                session: SessionId(take.array()?),
                secret: Secret(take.array()?),
                terms: take.terms()?,
                incarnation: take.u64()?,
            })),
            ACK => Self::Ack {
                offset: take.u64()?,
                credit: take.u64()?,
            },
            PING => Self::Ping(take.u64()?),
            PONG => Self::Pong(take.u64()?),
            RESUME => Self::Resume(Box::new(Resume {
                preamble: take.preamble()?,
                session: SessionId(take.array()?),
                attempt: take.u64()?,
                received: take.u64()?,
                mac: Mac(take.array()?),
            })),
            RESUMED => Self::Resumed(Box::new(Resumed {
                preamble: take.preamble()?,
                received: take.u64()?,
                incarnation: take.u64()?,
                mac: Mac(take.array()?),
            })),
            GONE => Self::Gone {
                reason: take.reason()?,
                offset: take.u64()?,
            },
            RETRY => Self::Retry {
                after: take.millis()?,
                address: take.text(MAX_ADDRESS)?,
            },
            DETACH => Self::Detach {
                after: take.millis()?,
            },
            BYE => Self::Bye {
                offset: take.u64()?,
                confirmed: take.bool()?,
            },
            CHALLENGE => Self::Challenge {
                preamble: take.preamble()?,
                nonce: Nonce(take.array()?),
            },
            unknown => return Err(FrameError::UnknownType(unknown)),
        };
        take.end()?;
        Ok(frame)
    }
}

impl Resume {
    /// What the MAC is over, on the wire as well.
    #[must_use]
    pub fn signed(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(80);
        out.preamble(&self.preamble)
            .put(&self.session.0)
            .u64(self.attempt)
            .u64(self.received);
        out
    }
}

impl Resumed {
    /// What the MAC is over, on the wire as well.
    #[must_use]
    pub fn signed(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.preamble(&self.preamble)
            .u64(self.received)
            .u64(self.incarnation);
        out
    }
}

impl Reason {
    const fn code(self) -> [u8; 2] {
        match self {
            Self::Unknown => [1, 0],
            Self::Expired => [2, 0],
            Self::Ended => [3, 0],
            Self::RolledBack => [4, 0],
            Self::Overflow => [5, 0],
            Self::Refused => [6, 0],
            Self::Dropped => [7, 0],
            Self::Violation(rule) => [8, rule.code()],
        }
    }

    const fn from_code(code: [u8; 2]) -> Option<Self> {
        Some(match code {
            [1, 0] => Self::Unknown,
            [2, 0] => Self::Expired,
            [3, 0] => Self::Ended,
            [4, 0] => Self::RolledBack,
            [5, 0] => Self::Overflow,
            [6, 0] => Self::Refused,
            [7, 0] => Self::Dropped,
            [8, rule] => match Rule::from_code(rule) {
                Some(rule) => Self::Violation(rule),
                None => return None,
            },
            _ => return None,
        })
    }
}

impl Rule {
    const fn code(self) -> u8 {
        match self {
            Self::Frame => 1,
            Self::Version => 2,
            Self::Place => 3,
            Self::Ack => 4,
            Self::Credit => 5,
            Self::Bye => 6,
            Self::Terms => 7,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Frame,
            2 => Self::Version,
            3 => Self::Place,
            4 => Self::Ack,
            5 => Self::Credit,
            6 => Self::Bye,
            7 => Self::Terms,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests;
