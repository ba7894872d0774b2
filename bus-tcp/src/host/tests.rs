#![allow(clippy::wildcard_enum_match_arm)]

use super::*;
use crate::frame::{FIRST_SKIPPED, Hello, MAGIC, Preamble, Resume};
use crate::limits::{TOMBSTONES, Terms};
use crate::resume::{Mac, Secret};
use std::time::Duration;

const NOW: Moment = Moment::from_micros(5_000_000);

fn hello(incarnation: u64) -> Frame {
    Frame::Hello(Hello {
        preamble: Preamble::OURS,
        wish: Terms::DEFAULT,
        incarnation,
    })
}

/// A host and its answers, as frames.
struct Rig {
    host: Host,
    log: Vec<HostAction>,
    grant: bool,
}

impl Rig {
    fn new(config: HostConfig) -> Self {
        Self {
            host: Host::new(config, 1),
            log: Vec::new(),
            grant: true,
        }
    }

    fn drain(&mut self, now: Moment) {
        while let Some(action) = self.host.action() {
            match &action {
                HostAction::AskNew { carrier, .. } if self.grant => {
                    let grant = Grant {
                        session: id(carrier.0),
                        secret: Secret([7; 32]),
                    };
                    self.host.grant(now, *carrier, grant);
                }
                HostAction::AskResume { carrier, .. } if self.grant => self.host.grant_resume(now, *carrier),
                _ => {}
            }
            self.log.push(action);
        }
    }

    /// `who` comes on `carrier` and says `frame`; what is answered.
    fn say(&mut self, now: Moment, who: &str, carrier: u64, frame: &Frame) -> Vec<Frame> {
        self.host
            .accepted(now, CarrierId(carrier), who.into(), binding(carrier));
        self.say_more(now, carrier, &frame.to_vec())
    }

    fn say_more(&mut self, now: Moment, carrier: u64, bytes: &[u8]) -> Vec<Frame> {
        self.host
            .received(now, CarrierId(carrier), Bytes::copy_from_slice(bytes));
        self.drain(now);
        let mut frames = Vec::new();
        while let Some(transmit) = self.host.transmit(now, CarrierId(carrier)) {
            let Transmit::Control(bytes) = transmit else {
                panic!("data: {transmit:?}")
            };
            frames.push(Frame::read(bytes[0], &bytes[4..]).unwrap());
        }
        self.drain(now);
        frames
    }

    fn troubles(&self) -> Vec<&Trouble> {
        let mut troubles = Vec::new();
        for action in &self.log {
            if let HostAction::Trouble { trouble, .. } = action {
                troubles.push(trouble);
            }
        }
        troubles
    }
}

fn id(number: u64) -> SessionId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    SessionId(id)
}

fn binding(carrier: u64) -> Binding {
    let mut binding = [3; 32];
    binding[..8].copy_from_slice(&carrier.to_be_bytes());
    Binding(binding)
}

fn resume(session: u64, carrier: u64, attempt: u64, received: u64) -> Frame {
    let mut resume = Resume {
        preamble: Preamble::OURS,
        session: id(session),
        attempt,
        received,
        mac: Mac([0; 32]),
    };
    Secret([7; 32]).sign_resume(&binding(carrier), &mut resume);
    Frame::Resume(Box::new(resume))
}

const UNKNOWN: Frame = Frame::Gone {
    reason: Reason::Unknown,
    offset: 0,
};

#[test]
fn stolen_replayed_and_unknown_sessions_are_refused_alike() {
    let mut rig = Rig::new(HostConfig::new(1));
    rig.say(NOW, "alice", 1, &hello(0));
    // Another identity that knows everything, the secret included.
    assert_eq!(rig.say(NOW, "mallory", 2, &resume(1, 2, 1, 0)), [UNKNOWN]);
    assert_eq!(rig.say(NOW, "mallory", 3, &resume(99, 3, 1, 0)), [UNKNOWN]);
    // The owner's own RESUME, captured on carrier 4 and replayed on another.
    let captured = resume(1, 4, 1, 0);
    assert_eq!(rig.say(NOW, "alice", 5, &captured), []);
    assert!(matches!(
        rig.say(NOW, "alice", 4, &captured)[..],
        [Frame::Resumed(_), ..]
    ));
    // And where the exporter is the same because it is the same carrier: older.
    let again = rig.say(NOW, "alice", 6, &resume(1, 6, 1, 0));
    assert_eq!(
        again,
        [Frame::Retry {
            after: Duration::ZERO,
            address: String::new()
        }]
    );
    assert!(rig.host.session(id(1)).unwrap().is_live());
    assert_eq!(
        rig.troubles(),
        [
            &Trouble::Unknown,
            &Trouble::Unknown,
            &Trouble::BadMac,
            &Trouble::OlderAttempt
        ]
    );
}

#[test]
fn only_its_owner_learns_of_a_session_that_is_over() {
    let mut rig = Rig::new(HostConfig::new(1));
    rig.say(NOW, "alice", 1, &hello(0));
    rig.host.abort(id(1), Reason::Overflow);
    rig.drain(NOW);
    assert_eq!(rig.say(NOW, "mallory", 2, &resume(1, 2, 1, 0)), [UNKNOWN]);
    let mut forged = resume(1, 3, 1, 0);
    if let Frame::Resume(resume) = &mut forged {
        resume.mac.0[0] ^= 1;
    }
    assert_eq!(rig.say(NOW, "alice", 3, &forged), [UNKNOWN]);
    let overflow = Frame::Gone {
        reason: Reason::Overflow,
        offset: 0,
    };
    assert_eq!(rig.say(NOW, "alice", 4, &resume(1, 4, 1, 0)), [overflow]);
    // An hour later nobody does.
    let later = NOW + Duration::from_secs(3600);
    rig.host.tick(later);
    assert_eq!(
        (rig.say(later, "alice", 5, &resume(1, 5, 1, 0)), rig.host.graves()),
        (vec![UNKNOWN], 0)
    );
}

#[test]
fn what_is_kept_is_bounded() {
    let mut rig = Rig::new(HostConfig {
        sessions_per_identity: 2,
        greetings: 3,
        ..HostConfig::new(1)
    });
    for carrier in 0..TOMBSTONES as u64 + 50 {
        assert_eq!(rig.say(NOW, "alice", carrier, &hello(0)).len(), 1);
        rig.host.abort(id(carrier), Reason::Refused);
        rig.drain(NOW);
        while rig.host.transmit(NOW, CarrierId(carrier)).is_some() {}
    }
    assert_eq!(rig.host.graves(), TOMBSTONES);
    assert_eq!(rig.say(NOW, "alice", 10_000, &resume(0, 10_000, 1, 0)), [UNKNOWN]);
    rig.log.clear();

    for carrier in 20_000..20_002 {
        assert!(matches!(
            rig.say(NOW, "bob", carrier, &hello(0))[..],
            [Frame::Welcome(_)]
        ));
    }
    assert!(matches!(
        rig.say(NOW, "bob", 20_003, &hello(0))[..],
        [Frame::Retry { .. }]
    ));
    for carrier in 0..5 {
        rig.host
            .accepted(NOW, CarrierId(30_000 + carrier), "carol".into(), binding(carrier));
    }
    rig.drain(NOW);
    assert_eq!(rig.host.greetings(), 3);
    assert_eq!(
        rig.troubles(),
        [
            &Trouble::TooManySessions,
            &Trouble::TooManyGreetings,
            &Trouble::TooManyGreetings
        ]
    );
}

#[test]
fn strangers_have_ten_seconds_and_one_control_frame() {
    let mut rig = Rig::new(HostConfig::new(1));
    for (carrier, bytes) in [
        (1, &[4, 0, 0, 16][..]),
        (2, &[1, 0, 4, 0]),
        (3, &[3, 0, 0x3f, 0xfc]),
        (4, b"GET / HTTP/1.1\r\n"),
        (5, &[FIRST_SKIPPED, 0, 0x3f, 0xfd]),
    ] {
        rig.host
            .accepted(NOW, CarrierId(carrier), "x".into(), binding(carrier));
        let mut long = bytes.to_vec();
        long.resize(2000, 0);
        assert!(rig.say_more(NOW, carrier, &long).is_empty());
        assert!(
            rig.log.contains(&HostAction::Close {
                carrier: CarrierId(carrier),
                flush: false
            }),
            "{carrier}"
        );
    }
    rig.host.accepted(NOW, CarrierId(9), "slow".into(), binding(9));
    rig.say_more(NOW, 9, &hello(0).to_vec()[..10]);
    assert_eq!(rig.host.deadline(), Some(NOW + OPENING));
    rig.host.tick(NOW + OPENING);
    rig.drain(NOW);
    assert!(rig.log.contains(&HostAction::Close {
        carrier: CarrierId(9),
        flush: false
    }));
    assert_eq!(rig.host.greetings(), 0);
}

#[test]
fn nothing_leaves_before_it_is_granted_and_versions_must_meet() {
    let mut rig = Rig::new(HostConfig::new(1));
    rig.grant = false;
    assert!(rig.say(NOW, "alice", 1, &hello(0)).is_empty());
    rig.host.grant(
        NOW,
        CarrierId(1),
        Grant {
            session: id(1),
            secret: Secret([7; 32]),
        },
    );
    assert!(matches!(rig.say_more(NOW, 1, &[])[..], [Frame::Welcome(_)]));
    assert!(rig.say(NOW, "alice", 2, &resume(1, 2, 1, 0)).is_empty());
    assert!(rig.log.contains(&HostAction::Close {
        carrier: CarrierId(1),
        flush: false
    }));
    rig.host.refuse(NOW, CarrierId(2));
    assert_eq!(
        rig.say_more(NOW, 2, &[]),
        [Frame::Gone {
            reason: Reason::Refused,
            offset: 0
        }]
    );
    let newer = Hello {
        preamble: Preamble {
            oldest: 2,
            newest: 9,
            features: 0,
        },
        wish: Terms::DEFAULT,
        incarnation: 0,
    };
    let answer = rig.say(NOW, "alice", 3, &Frame::Hello(newer));
    assert_eq!(
        answer,
        [Frame::Gone {
            reason: Reason::Violation(crate::frame::Rule::Version),
            offset: 0
        }]
    );
    assert_eq!(MAGIC, *b"BUSS");
}

#[test]
fn identities_that_are_removed_lose_their_sessions_at_once() {
    let mut rig = Rig::new(HostConfig::new(1));
    rig.say(NOW, "alice", 1, &hello(0));
    rig.say(NOW, "bob", 2, &hello(0));
    rig.host.expel(|who| &**who == "bob");
    assert_eq!(
        rig.say_more(NOW, 1, &[]),
        [Frame::Gone {
            reason: Reason::Refused,
            offset: 0
        }]
    );
    assert!(rig.host.session(id(2)).unwrap().is_live());
    assert_eq!(rig.host.sessions().count(), 1);
}
