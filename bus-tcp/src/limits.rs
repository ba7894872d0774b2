//! What one side may ask of the other, and of this host: sizes, times, numbers.

use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Largest frame, its header included: exactly what one TLS record holds.
pub const MAX_FRAME: usize = 16 * 1024;
/// Type and length before each frame.
pub const HEADER: usize = 4;
/// All that DATA puts before its bytes.
pub const DATA_HEADER: usize = HEADER + 8;
/// Most bytes of the stream in one DATA frame.
pub const MAX_DATA: usize = MAX_FRAME - DATA_HEADER;
/// Largest frame of any other known type.
pub const MAX_CONTROL: usize = 1024;
/// An acknowledgement is sent when so much is committed and not acknowledged...
pub const ACK_BYTES: u64 = 64 * 1024;
/// ...or so long after the first such byte.
pub const ACK_DELAY: Duration = Duration::from_millis(25);
/// How long a carrier may take from its start to WELCOME or RESUMED.
pub const OPENING: Duration = Duration::from_secs(10);
/// Bytes that a peer may send before it is authenticated, with a raw public key...
pub const BYTES_BEFORE_RAW_KEY: usize = 4 * 1024;
/// ...and with a certificate and its chain.
pub const BYTES_BEFORE_CERTIFICATE: usize = 16 * 1024;
/// Sessions of one identity at one host.
pub const SESSIONS_PER_IDENTITY: usize = 1024;
/// Tombstones that a host keeps.
pub const TOMBSTONES: usize = 4096;
/// How long a host keeps each.
pub const TOMBSTONE_AGE: Duration = Duration::from_secs(3600);
/// A client waits between attempts at most this long, as a first bound...
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// ...that doubles up to this.
pub const BACKOFF_LAST: Duration = Duration::from_secs(5);
/// The longest time that a peer can make this side wait before it tries again.
pub const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// The longest address in RETRY.
pub const MAX_ADDRESS: usize = 255;
/// The longest that any session outlives its carrier.
pub const LONGEST_WINDOW: Duration = Duration::from_secs(24 * 3600);

/// The times and sizes of one session: asked for in HELLO, fixed by WELCOME. Durations are whole milliseconds on the
/// wire.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Terms {
    /// How often the client asks whether the other side is there.
    pub heartbeat: Duration,
    /// Silence after which a carrier is given up.
    pub dead_after: Duration,
    /// How long a session outlives its carrier, on top of `dead_after`.
    pub window: Duration,
    /// Bytes that whoever says this takes beyond what it has committed. Each side has its own.
    pub credit: u32,
}

impl Terms {
    /// For machines in one house: 5 s, 15 s, 60 s.
    pub const DEFAULT: Self = Self::seconds(5, 15, 60);
    /// For a robot, whose operator waits: 1 s, 3 s, 10 s.
    pub const ROBOT: Self = Self::seconds(1, 3, 10);
    /// For a link that is paid by the byte: 60 s, 180 s, 3,600 s.
    pub const METERED: Self = Self::seconds(60, 180, 3600);

    const fn seconds(heartbeat: u64, dead_after: u64, window: u64) -> Self {
        Self {
            heartbeat: Duration::from_secs(heartbeat),
            dead_after: Duration::from_secs(dead_after),
            window: Duration::from_secs(window),
            credit: 1024 * 1024,
        }
    }

    /// These with all times divided: tests have no minutes to wait.
    #[must_use]
    pub fn divided(self, by: u32) -> Self {
        Self {
            heartbeat: self.heartbeat / by,
            dead_after: self.dead_after / by,
            window: self.window / by,
            ..self
        }
    }

    /// Whether a session could live under these: a heartbeat, time to miss one, room for a byte.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.heartbeat >= Duration::from_millis(1)
            && self.dead_after > self.heartbeat
            && self.window <= LONGEST_WINDOW
            && self.credit > 0
    }
}

/// What a listener grants of what a client asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bounds {
    /// Heartbeats.
    pub heartbeat: RangeInclusive<Duration>,
    /// Silence; never less than two heartbeats.
    pub dead_after: RangeInclusive<Duration>,
    /// Windows.
    pub window: RangeInclusive<Duration>,
    /// What this host takes beyond what is committed.
    pub credit: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100)..=Duration::from_secs(300),
            dead_after: Duration::from_millis(200)..=Duration::from_secs(900),
            window: Duration::ZERO..=LONGEST_WINDOW,
            credit: Terms::DEFAULT.credit,
        }
    }
}

impl Bounds {
    /// What holds for a client that asks for `wish`. The credit is this host's.
    #[must_use]
    pub fn grant(&self, wish: &Terms) -> Terms {
        let within =
            |range: &RangeInclusive<Duration>, wish: Duration| wish.clamp(*range.start(), *range.end());
        let heartbeat = within(&self.heartbeat, wish.heartbeat);
        Terms {
            heartbeat,
            dead_after: within(&self.dead_after, wish.dead_after).max(heartbeat * 2),
            window: within(&self.window, wish.window).min(LONGEST_WINDOW),
            credit: self.credit,
        }
    }
}

/// Bytes that wait to be acknowledged by all peers of a host together. Whoever holds such bytes charges them here.
#[derive(Debug)]
pub struct Budget {
    cap: u64,
    used: u64,
}

impl Budget {
    /// At most `cap` bytes.
    #[must_use]
    pub const fn new(cap: u64) -> Self {
        Self { cap, used: 0 }
    }

    /// Takes `bytes`, if there is room for them.
    #[must_use]
    pub const fn charge(&mut self, bytes: u64) -> bool {
        let fits = bytes <= self.cap.saturating_sub(self.used);
        if fits {
            self.used += bytes;
        }
        fits
    }

    /// Gives back what was charged.
    pub const fn refund(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.used);
        self.used = self.used.saturating_sub(bytes);
    }

    /// How much is charged.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.used
    }
}
