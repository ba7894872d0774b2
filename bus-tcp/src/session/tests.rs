//! One client and one host, and bytes between them that the test moves.

#![allow(clippy::wildcard_enum_match_arm)]

use super::*;
use crate::frame::{Preamble, Rule, Welcome};
use crate::host::{Host, HostAction, HostConfig};
use crate::limits::{ACK_DELAY, OPENING};
use crate::replay::Replay;
use crate::resume::Nonce;
use bytes::Bytes;
use std::time::Duration;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What a stream at an offset looks like.
fn byte(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

struct End {
    replay: Replay,
    taken: u64,
    commits: bool,
    log: Vec<String>,
}

impl End {
    fn new() -> Self {
        Self {
            replay: Replay::new(0),
            taken: 0,
            commits: true,
            log: Vec::new(),
        }
    }

    /// What has to be said to the session of it.
    fn act(&mut self, action: &Action) -> Option<u64> {
        match action {
            Action::Deliver { offset, bytes } => {
                assert_eq!(*offset, self.taken, "a gap or a repetition");
                for got in bytes {
                    assert_eq!(*got, byte(self.taken));
                    self.taken += 1;
                }
                return self.commits.then_some(self.taken);
            }
            Action::Acked { upto } => self.replay.forget(*upto),
            other => self.log.push(format!("{other:?}")),
        }
        None
    }

    fn bytes(&self, transmit: Transmit, out: &mut Vec<u8>) {
        match transmit {
            Transmit::Control(bytes) => out.extend(bytes),
            Transmit::Data {
                header,
                offset,
                length,
            } => {
                out.extend(header);
                let (mut at, end) = (offset, offset + length as u64);
                while at < end {
                    let run = self.replay.run(at);
                    let run = &run[..run.len().min((end - at) as usize)];
                    assert!(!run.is_empty(), "bytes that were forgotten are asked for");
                    out.extend(run);
                    at += run.len() as u64;
                }
            }
        }
    }
}

struct Pair {
    now: Moment,
    client: Session,
    host: Host,
    id: Option<SessionId>,
    near: End,
    far: End,
    carrier: CarrierId,
    to_host: Vec<u8>,
    to_client: Vec<u8>,
}

const WISH: Wish = Wish {
    terms: Terms::DEFAULT,
    incarnation: 5,
};

impl Pair {
    fn new() -> Self {
        let now = Moment::from_micros(1_000_000);
        Self {
            now,
            client: Session::client(now, WISH, 1),
            host: Host::new(HostConfig::new(9), 2),
            id: None,
            near: End::new(),
            far: End::new(),
            carrier: CarrierId(0),
            to_host: Vec::new(),
            to_client: Vec::new(),
        }
    }

    fn live() -> Self {
        let mut pair = Self::new();
        pair.connect();
        assert!(pair.client.is_live());
        pair
    }

    fn plug(&mut self) {
        self.carrier.0 += 1;
        let nonce = Nonce([self.carrier.0 as u8; 32]);
        self.host
            .accepted_plain(self.now, self.carrier, "uid:1".into(), nonce);
        self.client.attach(self.now, self.carrier, None);
    }

    fn connect(&mut self) {
        self.pass(ms(200));
        self.plug();
        self.run();
    }

    fn cut(&mut self) {
        self.to_host.clear();
        self.to_client.clear();
        self.client.carrier_lost(self.now, self.carrier);
        self.host.carrier_lost(self.now, self.carrier);
        self.drain();
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.client.tick(self.now);
        self.host.tick(self.now);
        self.drain();
    }

    fn say(&mut self, count: u64) {
        let end = self.near.replay.end();
        let bytes: Vec<u8> = (end..end + count).map(byte).collect();
        self.near.replay.append(&bytes);
        self.client.produced(end + count);
    }

    fn answer(&mut self, count: u64) {
        let end = self.far.replay.end();
        let bytes: Vec<u8> = (end..end + count).map(byte).collect();
        self.far.replay.append(&bytes);
        self.host.produced(self.id.unwrap(), end + count);
    }

    fn drain(&mut self) {
        while let Some(action) = self.client.action() {
            if let Some(upto) = self.near.act(&action) {
                self.client.committed(self.now, upto);
            }
        }
        while let Some(action) = self.host.action() {
            match action {
                HostAction::AskNew { carrier, .. } => {
                    let id = SessionId([carrier.0 as u8; 16]);
                    self.id = Some(id);
                    self.host.grant(
                        self.now,
                        carrier,
                        Grant {
                            session: id,
                            secret: Secret([8; 32]),
                        },
                    );
                }
                HostAction::AskResume { carrier, .. } => self.host.grant_resume(self.now, carrier),
                HostAction::Session { session, action } => {
                    if let Some(upto) = self.far.act(&action) {
                        self.host.committed(self.now, session, upto);
                    }
                }
                other => self.far.log.push(format!("{other:?}")),
            }
        }
    }

    /// Moves all bytes until nothing moves any more.
    fn run(&mut self) {
        loop {
            self.drain();
            while let Some(transmit) = self.client.transmit(self.now, self.carrier) {
                self.near.bytes(transmit, &mut self.to_host);
            }
            while let Some(transmit) = self.host.transmit(self.now, self.carrier) {
                self.far.bytes(transmit, &mut self.to_client);
            }
            self.drain();
            if self.to_host.is_empty() && self.to_client.is_empty() {
                return;
            }
            let bytes = Bytes::from(std::mem::take(&mut self.to_host));
            self.host.received(self.now, self.carrier, bytes);
            let bytes = Bytes::from(std::mem::take(&mut self.to_client));
            self.client.received(self.now, self.carrier, bytes);
        }
    }

    /// The peer of the client says something that it should not.
    fn client_hears(&mut self, frame: &Frame) {
        self.client
            .received(self.now, self.carrier, frame.to_vec().into());
        self.drain();
    }

    fn client_ending(&self) -> Reason {
        self.client
            .ending()
            .unwrap_or_else(|| panic!("not ended: {:?}", self.client.phase))
            .reason
    }
}

#[test]
fn bytes_arrive_once_and_in_order_over_a_cut() {
    let mut pair = Pair::live();
    pair.say(50_000);
    pair.answer(70_000);
    pair.run();
    pair.say(40_000);
    // Half of a frame arrives, and counts.
    let transmit = pair.client.transmit(pair.now, pair.carrier).unwrap();
    pair.near.bytes(transmit, &mut pair.to_host);
    let part = Bytes::from(pair.to_host[..1012].to_vec());
    pair.host.received(pair.now, pair.carrier, part);
    pair.cut();
    pair.connect();
    assert_eq!((pair.far.taken, pair.near.taken), (90_000, 70_000));
    let resumed = pair.far.log.iter().any(|line| line.contains("Resumed"));
    assert!(
        resumed && pair.near.log.iter().any(|line| line.contains("Parked")),
        "{:?}",
        pair.near.log
    );
    // 16,372 were sent, 1,000 of them had come.
    assert!(
        pair.near
            .log
            .contains(&"Resumed { again: 15372, fenced: false }".to_owned()),
        "{:?}",
        pair.near.log
    );
}

#[test]
fn an_acknowledgement_waits_for_the_commit_and_for_25_ms() {
    let mut pair = Pair::live();
    pair.far.commits = false;
    pair.say(1000);
    pair.run();
    pair.pass(ms(1000));
    pair.run();
    assert_eq!(
        pair.near.replay.len(),
        1000,
        "nothing is acknowledged that is not committed"
    );
    pair.host.committed(pair.now, pair.id.unwrap(), 1000);
    pair.run();
    assert_eq!(pair.near.replay.len(), 1000);
    pair.pass(ACK_DELAY);
    pair.run();
    assert!(pair.near.replay.is_empty());
}

#[test]
fn a_sender_without_credit_waits_and_does_not_expire() {
    let mut pair = Pair::live();
    pair.far.commits = false;
    pair.say(4_000_000);
    pair.run();
    assert_eq!(pair.far.taken, u64::from(Terms::DEFAULT.credit));
    for _ in 0..100 {
        pair.pass(ms(4000));
        pair.run();
    }
    assert!(pair.client.is_live());
    pair.far.commits = true;
    let taken = pair.far.taken;
    pair.host.committed(pair.now, pair.id.unwrap(), taken);
    for _ in 0..10 {
        pair.pass(ACK_DELAY);
        pair.run();
    }
    assert_eq!(pair.far.taken, 4_000_000);
}

#[test]
fn both_byes_end_a_session_and_a_lost_one_is_said_again() {
    for cut in [false, true] {
        let mut pair = Pair::live();
        pair.say(10);
        pair.answer(20);
        pair.client.finish();
        pair.run();
        assert!(
            pair.far.log.contains(&"Finished { offset: 10 }".to_owned()),
            "{:?}",
            pair.far.log
        );
        pair.answer(30);
        pair.run();
        assert_eq!(pair.near.taken, 50, "the other direction goes on");
        pair.host.finish(pair.id.unwrap());
        if cut {
            while pair.host.transmit(pair.now, pair.carrier).is_some() {}
            pair.cut();
            pair.connect();
        }
        pair.run();
        let ending = pair.client.ending().unwrap();
        assert!(ending.clean(), "{ending:?}");
        assert!(pair.host.session(pair.id.unwrap()).is_none());
    }
}

#[test]
fn silence_parks_and_the_window_ends_a_session_with_what_was_taken() {
    let mut pair = Pair::live();
    pair.say(777);
    pair.run();
    // Nothing passes any more, and nobody is told.
    pair.pass(ms(14_999));
    assert!(pair.client.is_live());
    pair.pass(ms(1));
    // A tick that comes late for its PINGs asks first; then the carrier is given up.
    for _ in 0..6 {
        pair.pass(ms(5000));
    }
    assert!(
        pair.client.parked().is_some() && pair.host.session(pair.id.unwrap()).unwrap().parked().is_some()
    );
    pair.pass(ms(75_000));
    pair.pass(ms(0));
    assert!(pair.host.session(pair.id.unwrap()).is_none());
    assert!(pair.near.log.contains(&"Fenced".to_owned()));
    pair.connect();
    let ending = pair.client.ending().unwrap();
    assert_eq!(
        (ending.reason, ending.taken, ending.produced),
        (Reason::Expired, Some(777), 777)
    );
}

#[test]
fn a_client_is_fenced_before_its_host_lets_go() {
    let mut pair = Pair::live();
    pair.pass(ms(4_000));
    pair.run();
    pair.cut();
    let valid_until = pair.client.valid_until().unwrap();
    while pair.host.session(pair.id.unwrap()).is_some() {
        pair.pass(ms(100));
    }
    assert!(pair.now > valid_until && pair.client.is_fenced(pair.now));
}

#[test]
fn a_resumption_replaces_a_carrier_that_seems_to_live() {
    let mut pair = Pair::live();
    pair.say(100);
    let transmit = pair.client.transmit(pair.now, pair.carrier).unwrap();
    let mut late = Vec::new();
    pair.near.bytes(transmit, &mut late);
    let old = pair.carrier;
    pair.client.carrier_lost(pair.now, old);
    pair.connect();
    assert_eq!(pair.far.taken, 100);
    // What the old one still had, and its end, are heard by nobody.
    pair.host.received(pair.now, old, late.into());
    pair.host.carrier_lost(pair.now, old);
    pair.say(100);
    pair.run();
    assert_eq!(pair.far.taken, 200);
    assert!(pair.client.is_live());
}

#[test]
fn every_broken_rule_ends_the_session_with_its_name() {
    let cases = [
        (
            Frame::Ack {
                offset: 1,
                credit: u64::MAX,
            },
            Rule::Ack,
        ),
        (Frame::Ack { offset: 0, credit: 1 }, Rule::Ack),
        (Frame::Pong(1), Rule::Place),
        (Frame::Ping(1), Rule::Frame),
        (
            Frame::Bye {
                offset: 5,
                confirmed: false,
            },
            Rule::Bye,
        ),
        (
            Frame::Bye {
                offset: 0,
                confirmed: true,
            },
            Rule::Bye,
        ),
        (
            Frame::Challenge {
                preamble: Preamble::OURS,
                nonce: Nonce([0; 32]),
            },
            Rule::Place,
        ),
        (
            Frame::Welcome(Box::new(Welcome {
                preamble: Preamble::OURS,
                session: SessionId([0; 16]),
                secret: Secret([0; 32]),
                terms: Terms::DEFAULT,
                incarnation: 0,
            })),
            Rule::Place,
        ),
    ];
    for (frame, rule) in cases {
        let mut pair = Pair::live();
        if rule == Rule::Frame {
            pair.client
                .received(pair.now, pair.carrier, Bytes::from_static(&[0x7f, 0, 0, 1, 0]));
        } else {
            pair.client_hears(&frame);
        }
        assert_eq!(pair.client_ending(), Reason::Violation(rule), "{frame:?}");
        // The other side is told by whom and why.
        pair.drain();
        pair.run();
        assert!(
            pair.far
                .log
                .iter()
                .any(|line| line.contains(&format!("{rule:?}")) && line.contains("by: Peer")),
            "{frame:?}: {:?}",
            pair.far.log
        );
    }
}

#[test]
fn more_than_the_credit_is_a_violation_and_a_gap_is_not() {
    let mut pair = Pair::live();
    let mut bytes = data_header(1, 1).to_vec();
    bytes.push(0);
    pair.client.received(pair.now, pair.carrier, bytes.into());
    assert!(pair.client.ending().is_none() && pair.client.parked().is_some());

    let mut pair = Pair::live();
    let mut offset = 0;
    while pair.client.ending().is_none() {
        let mut bytes = data_header(offset, 16_000).to_vec();
        bytes.extend((offset..offset + 16_000).map(byte));
        offset += 16_000;
        pair.client.received(pair.now, pair.carrier, bytes.into());
        assert!(offset <= u64::from(Terms::DEFAULT.credit) + 16_000);
    }
    assert_eq!(pair.client_ending(), Reason::Violation(Rule::Credit));
}

#[test]
fn both_ends_go_on_from_saved_state_in_another_process() {
    let mut pair = Pair::live();
    pair.say(30_000);
    pair.answer(30_000);
    pair.run();
    pair.pass(ACK_DELAY);
    pair.run();
    pair.far.commits = false;
    pair.say(5_000);
    pair.run();
    let (taken, now) = (30_000, Moment::from_micros(77));
    assert_eq!(pair.far.taken, 35_000);
    pair.far.taken = taken;
    pair.far.commits = true;
    pair.host = Host::restore(&pair.host.save(), HostConfig::new(10), now, 4).unwrap();
    pair.client = Session::restore(&pair.client.save(), now, 5).unwrap();
    pair.now = now;
    assert!(pair.client.is_fenced(now));
    pair.say(1);
    pair.answer(2);
    pair.connect();
    assert!(pair.client.is_live());
    assert_eq!((pair.far.taken, pair.near.taken), (35_001, 30_002));
    assert!(!pair.client.is_fenced(pair.now));
}

#[test]
fn credit_that_was_given_after_the_state_was_saved_holds() {
    let mut pair = Pair::live();
    pair.answer(30_000);
    pair.run();
    let saved = pair.client.save();
    pair.pass(ACK_DELAY);
    pair.run();
    assert!(pair.far.replay.is_empty(), "the acknowledgement has left");
    pair.client.carrier_lost(pair.now, pair.carrier);
    pair.client = Session::restore(&saved, pair.now, 5).unwrap();
    pair.near.commits = false;
    // All that the host has credit for comes right behind RESUMED.
    pair.answer(2_000_000);
    pair.connect();
    assert!(pair.client.is_live(), "{:?}", pair.client.ending());
    assert_eq!(pair.near.taken, 30_000 + u64::from(Terms::DEFAULT.credit));
}

#[test]
fn offsets_that_went_back_end_the_session_and_say_how_far_it_came() {
    let mut pair = Pair::live();
    let old = pair.host.save();
    pair.say(1000);
    pair.run();
    pair.pass(ACK_DELAY);
    pair.run();
    assert!(pair.near.replay.is_empty());
    pair.host = Host::restore(&old, HostConfig::new(9), pair.now, 3).unwrap();
    pair.far.taken = 0;
    pair.client.carrier_lost(pair.now, pair.carrier);
    pair.connect();
    assert_eq!(pair.client_ending(), Reason::RolledBack);
}

#[test]
fn a_host_that_does_not_answer_is_left_after_ten_seconds() {
    let mut pair = Pair::new();
    pair.pass(ms(0));
    pair.client.attach(pair.now, CarrierId(1), Some(Binding([1; 32])));
    assert!(pair.client.transmit(pair.now, CarrierId(1)).is_some());
    pair.pass(OPENING);
    assert_eq!(pair.client.carrier(), None);
    assert!(
        pair.near.log.last().unwrap().starts_with("Close"),
        "{:?}",
        pair.near.log
    );
}

#[test]
fn a_flood_of_pings_is_one_answer() {
    let mut pair = Pair::live();
    for number in 0..10_000 {
        pair.client
            .received(pair.now, pair.carrier, Frame::Ping(number).to_vec().into());
    }
    let mut out = 0;
    while pair.client.transmit(pair.now, pair.carrier).is_some() {
        out += 1;
    }
    assert_eq!(out, 1);
}

#[test]
fn saved_bytes_are_read_back_and_nothing_else_is() {
    use crate::saved::{Kind, SavedError, decode, encode};
    let mut pair = Pair::live();
    pair.say(30_000);
    pair.run();
    let saved = pair.client.save();
    let bytes = encode(Kind::Session, &saved).unwrap();
    assert_eq!(decode::<SavedSession>(Kind::Session, &bytes).unwrap(), saved);
    assert_eq!(decode::<SavedSession>(Kind::Host, &bytes), Err(SavedError::Kind));
    for at in 6..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        assert!(decode::<SavedSession>(Kind::Session, &bad).is_err(), "byte {at}");
    }
    for length in 0..bytes.len() {
        assert!(decode::<SavedSession>(Kind::Session, &bytes[..length]).is_err());
    }
}
