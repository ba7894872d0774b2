//! Somebody who has seen what went over the wires, and opens carriers of its own.

use crate::random::Random;
use bus_tcp::frame::{Frame, Preamble, Resume, data_header};
use bus_tcp::resume::{Binding, Mac, Secret, SessionId};

/// What it knows: the beginnings of other carriers.
#[derive(Debug, Default)]
pub(super) struct Attacker {
    captured: Vec<Vec<u8>>,
}

impl Attacker {
    pub(super) fn capture(&mut self, bytes: &[u8], random: &mut Random) {
        if self.captured.len() < 30 {
            self.captured.push(bytes.to_vec());
        } else if random.percent(10) {
            let at = random.index(self.captured.len());
            self.captured[at] = bytes.to_vec();
        }
    }

    /// What it says on a carrier of its own. `session` it has learned somewhere, its secret not.
    pub(super) fn speech(&self, session: Option<SessionId>, random: &mut Random) -> Vec<u8> {
        let mut speech = match random.below(5) {
            0 => random.pick(&self.captured).cloned().unwrap_or_default(),
            1 => {
                let mut bytes = random.pick(&self.captured).cloned().unwrap_or_default();
                let at = random.index(bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
                bytes
            }
            2 => forged(session.unwrap_or(SessionId([0; 16])), random).to_vec(),
            3 => {
                let mut bytes = data_header(random.next(), 1).to_vec();
                bytes.push(0);
                bytes
            }
            _ => Vec::new(),
        };
        for _ in 0..random.below(40) {
            speech.push(random.next() as u8);
        }
        speech
    }
}

fn forged(session: SessionId, random: &mut Random) -> Frame {
    let mut resume = Resume {
        preamble: Preamble::OURS,
        session,
        attempt: u64::MAX - random.below(5),
        received: random.next() >> random.below(64),
        mac: Mac([0; 32]),
    };
    Secret([random.next() as u8; 32]).sign_resume(&Binding([random.next() as u8; 32]), &mut resume);
    Frame::Resume(Box::new(resume))
}
