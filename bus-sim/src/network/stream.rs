//! What one end has to say, and has heard: each byte follows from its place.

use bus_tcp::replay::{Replay, SavedReplay};
use bus_tcp::session::Transmit;

/// One end's two streams.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    /// Tells streams of different sessions and directions apart.
    salt: u64,
    peer_salt: u64,
    pub(super) replay: Replay,
    /// Bytes that came, and were right.
    pub(super) taken: u64,
}

/// The same, written down.
#[derive(Clone, Debug)]
pub(super) struct SavedStream {
    salt: u64,
    peer_salt: u64,
    replay: SavedReplay,
    pub(super) taken: u64,
}

impl Stream {
    pub(super) fn new(salt: u64, peer_salt: u64) -> Self {
        Self {
            salt,
            peer_salt,
            replay: Replay::new(0),
            taken: 0,
        }
    }

    pub(super) fn save(&self) -> SavedStream {
        let Self {
            salt,
            peer_salt,
            replay,
            taken,
        } = self;
        SavedStream {
            salt: *salt,
            peer_salt: *peer_salt,
            replay: replay.save(),
            taken: *taken,
        }
    }

    pub(super) fn restore(saved: &SavedStream) -> Self {
        let SavedStream {
            salt,
            peer_salt,
            replay,
            taken,
        } = saved;
        Self {
            salt: *salt,
            peer_salt: *peer_salt,
            replay: Replay::restore(replay),
            taken: *taken,
        }
    }

    pub(super) fn say(&mut self, count: u64) {
        let end = self.replay.end();
        let bytes: Vec<u8> = (end..end + count).map(|offset| byte(self.salt, offset)).collect();
        self.replay.append(&bytes);
    }

    /// Takes bytes that came.
    pub(super) fn take(&mut self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        if offset != self.taken {
            return Err(format!(
                "{} bytes had come, and the next are from {offset} on",
                self.taken
            ));
        }
        for (place, got) in (offset..).zip(bytes) {
            if *got != byte(self.peer_salt, place) {
                return Err(format!("byte {place} is another than was sent"));
            }
        }
        self.taken += bytes.len() as u64;
        Ok(())
    }

    /// The bytes to put on a wire.
    pub(super) fn bytes(&self, transmit: Transmit) -> Result<Vec<u8>, String> {
        match transmit {
            Transmit::Control(bytes) => Ok(bytes),
            Transmit::Data {
                header,
                offset,
                length,
            } => {
                let mut out = header.to_vec();
                let end = offset + length as u64;
                let mut at = offset;
                while at < end {
                    let run = self.replay.run(at);
                    if at < self.replay.start() || run.is_empty() {
                        return Err(format!(
                            "bytes from {at} on are to be sent; there are those from {} to {}",
                            self.replay.start(),
                            self.replay.end()
                        ));
                    }
                    let run = &run[..run.len().min((end - at) as usize)];
                    out.extend_from_slice(run);
                    at += run.len() as u64;
                }
                Ok(out)
            }
        }
    }
}

fn byte(salt: u64, offset: u64) -> u8 {
    ((offset ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}
