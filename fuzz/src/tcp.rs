//! What the fuzz targets of `bus-tcp` check. `bus-tcp/tests/corpus.rs` replays the corpus through the same functions.

use bus_tcp::Moment;
use bus_tcp::frame::{Decoder, Frame, FrameError, Piece, data_header};
use bus_tcp::host::{Host, HostAction, HostConfig};
use bus_tcp::limits::{MAX_CONTROL, MAX_FRAME, Terms};
use bus_tcp::resume::{Binding, Nonce, Secret, SessionId};
use bus_tcp::session::{Action, CarrierId, Grant, Session, Transmit, Wish};
use bytes::Bytes;
use std::time::Duration;

/// Any bytes, cut anywhere, are the same frames, and each frame is written as it was read. First byte: where they are cut.
pub fn tcp_frames(data: &[u8]) {
    let Some((step, data)) = data.split_first() else {
        return;
    };
    let whole = decode(data, data.len().max(1));
    let pieces = decode(data, usize::from(*step).max(1));
    assert_eq!(joined(whole.0.clone()), joined(pieces.0));
    assert_eq!(whole.1, pieces.1);
    let mut offset_of = None;
    for piece in whole.0 {
        match piece {
            Piece::Frame(frame) => {
                let bytes = frame.to_vec();
                assert!(bytes.len() <= MAX_CONTROL);
                assert!(
                    find(data, &bytes),
                    "{frame:?} is written in another way than it was read"
                );
                offset_of = None;
            }
            Piece::Data { offset, bytes } => {
                assert!(!bytes.is_empty() && bytes.len() < MAX_FRAME);
                if let Some(next) = offset_of {
                    assert!(offset == next || find(data, &offset.to_be_bytes()));
                }
                offset_of = offset.checked_add(bytes.len() as u64);
                let _ = data_header(offset, bytes.len());
            }
        }
    }
}

fn decode(data: &[u8], step: usize) -> (Vec<Piece>, Option<FrameError>) {
    let (mut decoder, mut pieces) = (Decoder::default(), Vec::new());
    for chunk in data.chunks(step) {
        let mut input = Bytes::copy_from_slice(chunk);
        loop {
            match decoder.next(&mut input) {
                Ok(Some(piece)) => pieces.push(piece),
                Ok(None) => break,
                Err(error) => return (pieces, Some(error)),
            }
        }
    }
    (pieces, None)
}

/// The same with pieces of one frame put together.
fn joined(pieces: Vec<Piece>) -> Vec<(Option<Frame>, Option<u64>, Vec<u8>)> {
    let mut all: Vec<(Option<Frame>, Option<u64>, Vec<u8>)> = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Frame(frame) => all.push((Some(frame), None, Vec::new())),
            Piece::Data { offset, bytes } => match all.last_mut() {
                Some((None, Some(start), before))
                    if start.checked_add(before.len() as u64) == Some(offset) =>
                {
                    before.extend_from_slice(&bytes);
                }
                _ => all.push((None, Some(offset), bytes.to_vec())),
            },
        }
    }
    all
}

fn find(data: &[u8], bytes: &[u8]) -> bool {
    data.windows(bytes.len()).any(|window| window == bytes)
}

/// A client, a host and what is between them, led by the input: two bytes for each thing that happens. As long as nobody has
/// put bytes of his own on a carrier, every byte comes once and in order and no rule is broken.
pub fn tcp_session(data: &[u8]) {
    let mut play = Play::new();
    for operation in data.chunks_exact(2).take(2000) {
        play.step(operation[0], u64::from(operation[1]));
        play.drain();
    }
    play.check();
}

struct Play {
    now: Moment,
    client: Session,
    host: Host,
    id: Option<SessionId>,
    sessions: u8,
    carrier: u64,
    /// Carriers that the host may still hear of, with what is on the way.
    wires: Vec<(CarrierId, Vec<u8>, Vec<u8>)>,
    near: Counted,
    far: Counted,
    hostile: bool,
}

#[derive(Default)]
struct Counted {
    said: u64,
    taken: u64,
    committed: u64,
    acked: u64,
}

impl Play {
    fn new() -> Self {
        let now = Moment::from_micros(1_000_000);
        let wish = Wish {
            terms: Terms::DEFAULT,
            incarnation: 1,
        };
        Self {
            now,
            client: Session::client(now, wish, 3),
            host: Host::new(HostConfig::new(1), 4),
            id: None,
            sessions: 0,
            carrier: 0,
            wires: Vec::new(),
            near: Counted::default(),
            far: Counted::default(),
            hostile: false,
        }
    }

    fn step(&mut self, what: u8, much: u64) {
        match what % 16 {
            0 => self.near.said += much * much,
            1 => self.far.said += much * much,
            2 => self.client.produced(self.near.said),
            3 => {
                if let Some(id) = self.id {
                    self.host.produced(id, self.far.said);
                }
            }
            4 => {
                self.near.committed = self.near.taken;
                self.client.committed(self.now, self.near.committed);
            }
            5 => {
                if let Some(id) = self.id {
                    self.far.committed = self.far.taken;
                    self.host.committed(self.now, id, self.far.committed);
                }
            }
            6 => self.pass(Duration::from_millis(much)),
            7 => self.pass(Duration::from_millis(much * 200)),
            8 => self.plug(much),
            9 => self.lose(much),
            10 => self.transmit(much),
            11 | 12 => self.arrive(much),
            13 => self.restart(much),
            14 => self.forge(much),
            _ => match much % 4 {
                0 => self.client.finish(),
                1 => {
                    if let Some(id) = self.id {
                        self.host.finish(id);
                    }
                }
                2 => self.client.detach(Duration::from_millis(much)),
                _ => self.client.connect_now(self.now),
            },
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.client.tick(self.now);
        self.host.tick(self.now);
        for deadline in [self.client.deadline(), self.host.deadline()]
            .into_iter()
            .flatten()
        {
            assert!(
                deadline > self.now,
                "a deadline that is over when its time has been told"
            );
        }
    }

    fn plug(&mut self, much: u64) {
        if self.wires.len() > 4 {
            return;
        }
        self.carrier += 1;
        let carrier = CarrierId(self.carrier);
        let secret = [self.carrier as u8; 32];
        if much & 1 == 0 {
            self.host
                .accepted(self.now, carrier, "peer".into(), Binding(secret));
            self.client.attach(self.now, carrier, Some(Binding(secret)));
        } else {
            self.host
                .accepted_plain(self.now, carrier, "peer".into(), Nonce(secret));
            self.client.attach(self.now, carrier, None);
        }
        self.wires.push((carrier, Vec::new(), Vec::new()));
    }

    fn lose(&mut self, much: u64) {
        if self.wires.is_empty() {
            return self.client.connect_failed(self.now);
        }
        let at = much as usize / 4 % self.wires.len();
        let carrier = self.wires[at].0;
        if much & 1 == 0 {
            self.client.carrier_lost(self.now, carrier);
        }
        if much & 2 == 0 {
            self.host.carrier_lost(self.now, carrier);
            self.wires.remove(at);
        }
    }

    fn transmit(&mut self, much: u64) {
        for (carrier, up, down) in &mut self.wires {
            for _ in 0..=much % 8 {
                if let Some(transmit) = self.client.transmit(self.now, *carrier) {
                    put(transmit, up, &self.near);
                }
                if let Some(transmit) = self.host.transmit(self.now, *carrier) {
                    put(transmit, down, &self.far);
                }
            }
        }
    }

    fn arrive(&mut self, much: u64) {
        if self.wires.is_empty() {
            return;
        }
        let at = much as usize % self.wires.len();
        let (carrier, up, down) = &mut self.wires[at];
        let part = |way: &mut Vec<u8>| {
            let count = if much & 8 == 0 {
                way.len()
            } else {
                way.len() * (much as usize & 7) / 8
            };
            Bytes::from(way.drain(..count).collect::<Vec<_>>())
        };
        let (up, down) = (part(up), part(down));
        self.host.received(self.now, *carrier, up);
        self.client.received(self.now, *carrier, down);
    }

    fn restart(&mut self, much: u64) {
        self.drain();
        if much & 1 == 0 {
            self.near.taken = self.near.committed;
            self.client = Session::restore(&self.client.save(), self.now, much)
                .unwrap_or_else(|error| panic!("{error}"));
            for (carrier, _, _) in &self.wires {
                self.client.carrier_lost(self.now, *carrier);
            }
        } else {
            self.far.taken = self.far.committed;
            self.host = Host::restore(&self.host.save(), HostConfig::new(1), self.now, much)
                .unwrap_or_else(|error| panic!("{error}"));
            for (carrier, _, _) in std::mem::take(&mut self.wires) {
                self.client.carrier_lost(self.now, carrier);
            }
        }
    }

    /// Somebody changes what is on the way.
    fn forge(&mut self, much: u64) {
        self.hostile = true;
        if let Some((_, up, down)) = self.wires.last_mut() {
            let way = if much & 1 == 0 { up } else { down };
            match way.get_mut(much as usize / 2) {
                Some(byte) => *byte ^= 1 << (much % 8),
                None => way.extend([(much / 2 % 16) as u8, 0, 0, 8, 0, 0, 0, 0, 0, 0, much as u8, 0]),
            }
        }
    }

    fn drain(&mut self) {
        while let Some(action) = self.client.action() {
            match action {
                Action::Deliver { offset, bytes } => take(&mut self.near, offset, &bytes, 1, self.hostile),
                Action::Acked { upto } => self.near.ack(upto),
                Action::Ended(ending) => self.ended(&ending),
                Action::Close { carrier, .. } => {
                    self.client.carrier_lost(self.now, carrier);
                }
                _ => {}
            }
        }
        while let Some(action) = self.host.action() {
            match action {
                HostAction::AskNew { carrier, .. } => {
                    self.sessions = self.sessions.wrapping_add(1);
                    let grant = Grant {
                        session: SessionId([self.sessions; 16]),
                        secret: Secret([self.sessions; 32]),
                    };
                    self.host.grant(self.now, carrier, grant);
                    // Of several sessions that were asked for the client has the last.
                    self.id = Some(grant.session);
                    self.far = Counted::default();
                }
                HostAction::AskResume { carrier, .. } => self.host.grant_resume(self.now, carrier),
                HostAction::Session { session, action } if Some(session) == self.id => match action {
                    Action::Deliver { offset, bytes } => take(&mut self.far, offset, &bytes, 0, self.hostile),
                    Action::Acked { upto } => self.far.ack(upto),
                    _ => {}
                },
                _ => {}
            }
        }
    }

    fn ended(&self, ending: &bus_tcp::session::Ending) {
        use bus_tcp::frame::Reason;
        if let (false, Reason::Violation(_) | Reason::RolledBack) = (self.hostile, ending.reason) {
            panic!("nobody did anything wrong, and the session ended: {ending:?}");
        }
    }

    fn check(&self) {
        let (acked, sent, _) = self.client.acked_sent_and_produced();
        assert!(acked <= sent);
        let (received, committed) = self.client.received_and_committed();
        assert!(committed <= received);
    }
}

impl Counted {
    fn ack(&mut self, upto: u64) {
        assert!(upto >= self.acked);
        self.acked = upto;
    }
}

fn byte(salt: u64, offset: u64) -> u8 {
    (offset.wrapping_mul(31) ^ (salt << 7)) as u8
}

fn put(transmit: Transmit, way: &mut Vec<u8>, counted: &Counted) {
    match transmit {
        Transmit::Control(bytes) => way.extend(bytes),
        Transmit::Data {
            header,
            offset,
            length,
        } => {
            assert!(offset >= counted.acked, "bytes that were forgotten are sent");
            way.extend(header);
            way.extend((offset..offset + length as u64).map(|offset| byte(0, offset)));
        }
    }
}

fn take(counted: &mut Counted, offset: u64, bytes: &[u8], _: u64, hostile: bool) {
    assert_eq!(offset, counted.taken, "a gap or a repetition");
    for got in bytes {
        assert!(hostile || *got == byte(0, counted.taken));
        counted.taken += 1;
    }
}
