//! The client's session core against a bus that does anything. See [`session`].

use std::collections::BTreeSet;
use std::time::Duration;

use bus_client::session::{
    Action, CallId, CallOptions, Command, Config, Decision, Event, LinkError, NameFlags, NameId, Outcome,
    Outgoing, Session, StreamId, WatchId, WhileDown,
};
use bus_wire::sasl::cookie::Cookie;
use bus_wire::{Fd, MatchRule, MessageBuilder, Value};
use bytes::Bytes;

const GUIDS: [&str; 2] = [
    "OK 00112233445566778899aabbccddeeff\r\nAGREE_UNIX_FD\r\n",
    "OK ffeeddccbbaa99887766554433221100\r\nAGREE_UNIX_FD\r\n",
];

/// What happens, read from the data; and what must be true of it.
struct Run<'d> {
    data: &'d [u8],
    session: Session,
    now: Duration,
    attempt: Option<u64>,
    is_connected: bool,
    next: u64,
    open: BTreeSet<u64>,
    fds: BTreeSet<i32>,
}

/// A session, with whatever the application wants and whatever the bus says: no panic, each call ends once, each descriptor is
/// handed out once, what waits is bounded, and time that has passed is not asked for again.
pub fn session(data: &[u8]) {
    let mut run = Run {
        data,
        session: Session::new(Config {
            uid: Some(0),
            cookies: true,
            seed: 7,
            asks: data.len().is_multiple_of(2),
            waits_for_bus: true,
            held: 20,
            held_bytes: 4000,
            window: 3,
            ..Config::default()
        }),
        now: Duration::ZERO,
        attempt: None,
        is_connected: false,
        next: 0,
        open: BTreeSet::new(),
        fds: BTreeSet::new(),
    };
    run.tell(Event::Start);
    while let Some(what) = run.byte() {
        run.step(what);
        let census = run.session.census();
        assert!(census.held <= 20 && census.held_bytes <= 4000, "{census:?}");
        assert!(census.invalidations <= 1, "{census:?}");
        // Those that nobody waits for are there until they are written: no message is shorter than 16 bytes.
        let in_link = (census.output as usize).div_ceil(16);
        assert!(census.calls <= run.open.len() + in_link, "{census:?}");
    }
    run.tell(Event::Command(Command::Close));
    assert!(run.open.is_empty(), "calls have not ended: {:?}", run.open);
    assert!(
        run.fds.is_empty(),
        "descriptors were not handed out: {:?}",
        run.fds
    );
}

impl Run<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.data.split_first()?;
        self.data = rest;
        Some(*first)
    }

    fn step(&mut self, what: u8) {
        let argument = self.byte().unwrap_or_default();
        match what % 16 {
            0 | 1 => self.connect(argument),
            2 => self.receive(usize::from(argument), 0),
            3 => self.receive(usize::from(argument), 5),
            4 => self.greet(),
            5 => self.answer(argument),
            6 => self.signal(argument),
            7 => self.write(usize::from(argument) * 4 + 1),
            8 | 9 => self.call(argument),
            10 => self.wish(argument),
            11 => self.unwish(argument),
            12 => self.pass(Duration::from_millis(1 << (argument % 16))),
            13 if self.is_connected => {
                self.is_connected = false;
                self.tell(Event::Lost(LinkError::Ended));
            }
            14 => self.tell(Event::Command(Command::Reconnect)),
            _ => self.tell(Event::SocketAppeared),
        }
    }

    fn connect(&mut self, which: u8) {
        let Some(attempt) = self.attempt.take() else {
            return;
        };
        if which == 255 {
            let error = LinkError::Ended;
            return self.tell(Event::DialFailed { attempt, error });
        }
        self.is_connected = true;
        let (fds, guid) = (true, None);
        self.tell(Event::Connected { attempt, fds, guid });
        if which < 200 {
            self.hear(GUIDS[usize::from(which % 2)].as_bytes().to_vec(), 0);
        }
    }

    /// The next bytes of the data.
    fn receive(&mut self, count: usize, fds: u64) {
        let (bytes, rest) = self.data.split_at(count.min(self.data.len()));
        self.data = rest;
        self.hear(bytes.to_vec(), fds);
    }

    fn hear(&mut self, bytes: Vec<u8>, fds: u64) {
        if bytes.is_empty() || !self.is_connected {
            return;
        }
        let fds: Vec<Fd> = (0..fds)
            .map(|_| {
                self.next += 1;
                Fd(self.next as i32)
            })
            .collect();
        self.fds.extend(fds.iter().map(|fd| fd.0));
        let bytes = Bytes::from(bytes);
        self.tell(Event::Received { bytes, fds });
    }

    fn greet(&mut self) {
        let reply = MessageBuilder::method_return(1_u32)
            .sender("org.freedesktop.DBus")
            .body(|body| {
                body.str(":1.1");
            });
        self.hear(reply.build().unwrap_or_default(), 0);
    }

    /// A reply to any of the first serials.
    fn answer(&mut self, which: u8) {
        let serial = u32::from(which >> 2) + 1;
        let bytes = match which & 3 {
            0 => MessageBuilder::error("a.b.C", serial)
                .sender("org.freedesktop.DBus")
                .build(),
            1 => MessageBuilder::method_return(serial)
                .sender("org.freedesktop.DBus")
                .body(|body| {
                    body.u32(1);
                })
                .build(),
            2 => MessageBuilder::method_return(serial).sender(":1.2").build(),
            _ => MessageBuilder::method_return(serial)
                .body(|body| {
                    body.str(":1.3");
                })
                .build(),
        };
        self.hear(bytes.unwrap_or_default(), 0);
    }

    fn signal(&mut self, which: u8) {
        let member = ["NameOwnerChanged", "NameLost", "NameAcquired", "Tick"][usize::from(which & 3)];
        let signal =
            MessageBuilder::signal("/", "org.freedesktop.DBus", member).sender("org.freedesktop.DBus");
        let signal = signal.body(|body| {
            body.str("a.b");
            if which & 3 == 0 {
                body.str("").str(if which & 4 == 0 { ":1.3" } else { "" });
            }
        });
        self.hear(signal.build().unwrap_or_default(), 0);
    }

    fn write(&mut self, most: usize) {
        if !self.is_connected || !self.session.wants_write() {
            return;
        }
        let mut slices = Vec::new();
        self.session.next_write(&mut slices, 8);
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        let bytes = length.min(most) as u64;
        self.tell(Event::Sent { bytes });
    }

    fn call(&mut self, how: u8) {
        self.next += 1;
        let id = self.next;
        let to = ["a.b", ":1.3", "org.freedesktop.DBus"][usize::from(how % 3)];
        let bytes = MessageBuilder::method_call("/", "M")
            .destination(to)
            .build()
            .unwrap_or_default();
        let options = CallOptions {
            expects_reply: how & 4 == 0,
            timeout: (how & 8 == 0).then_some(Duration::from_secs(1)),
            idempotent: how & 16 == 0,
            while_down: if how & 32 == 0 {
                WhileDown::Wait
            } else {
                WhileDown::FailFast
            },
        };
        if how == 255 {
            return self.change(id);
        }
        let fds: Vec<Fd> = (how & 64 != 0).then_some(Fd(id as i32)).into_iter().collect();
        self.fds.extend(fds.iter().map(|fd| fd.0));
        let (destination, epoch) = (Some(to.into()), None);
        let message = Outgoing {
            bytes,
            destination,
            epoch,
            fds,
        };
        let call = CallId(id);
        self.open.insert(id);
        self.tell(Event::Command(Command::Send {
            call,
            message,
            options,
        }));
        if how & 128 != 0 && self.open.remove(&id) {
            self.tell(Event::Command(Command::Abandon(call)));
        }
    }

    /// A property has changed.
    fn change(&mut self, id: u64) {
        let member = "PropertiesChanged";
        let values = std::collections::BTreeMap::<&str, Value>::new();
        let names = [["Angle", "Colour", "Open"][id as usize % 3]];
        let signal = MessageBuilder::signal("/", "org.freedesktop.DBus.Properties", member);
        let message = Outgoing {
            bytes: signal.encode(&("a.b", values, &names[..])).unwrap_or_default(),
            destination: None,
            epoch: None,
            fds: Vec::new(),
        };
        let options = CallOptions {
            expects_reply: false,
            timeout: None,
            idempotent: false,
            while_down: WhileDown::Invalidate,
        };
        self.open.insert(id);
        let call = CallId(id);
        self.tell(Event::Command(Command::Send {
            call,
            message,
            options,
        }));
    }

    fn wish(&mut self, what: u8) {
        let id = u64::from(what >> 2);
        let name: Box<str> = "a.b".into();
        let command = match what & 3 {
            0 => {
                let text = ["member='Tick'", "sender='a.b'", "sender=':1.3'", ""][usize::from(what >> 2) % 4];
                let rule: MatchRule = text.parse().unwrap_or_default();
                self.next += 1;
                let stream = StreamId(self.next % 16);
                // A number is never used twice.
                self.tell(Event::Command(Command::Unsubscribe(stream)));
                Command::Subscribe {
                    stream,
                    rule: Box::new(rule),
                }
            }
            1 => {
                let handle = NameId(id % 4);
                self.tell(Event::Command(Command::DropName(handle)));
                let flags = NameFlags {
                    queue: what & 64 != 0,
                    ..NameFlags::default()
                };
                Command::OwnName { handle, name, flags }
            }
            2 => {
                let watch = WatchId(id % 4);
                self.tell(Event::Command(Command::Unwatch(watch)));
                Command::Watch { watch, name }
            }
            _ => {
                self.next += 1;
                self.open.insert(self.next);
                let timeout = Some(Duration::from_secs(1));
                Command::WaitForNames {
                    call: CallId(self.next),
                    names: vec![name],
                    timeout,
                }
            }
        };
        self.tell(Event::Command(command));
    }

    fn unwish(&mut self, what: u8) {
        let id = u64::from(what >> 2);
        self.tell(Event::Command(match what & 3 {
            0 => Command::Unsubscribe(StreamId(id % 16)),
            1 => Command::DropName(NameId(id % 4)),
            2 => Command::Unwatch(WatchId(id % 4)),
            _ => Command::Reply {
                link: id,
                message: Outgoing {
                    bytes: MessageBuilder::method_return(1_u32).build().unwrap_or_default(),
                    destination: None,
                    epoch: None,
                    fds: Vec::new(),
                },
            },
        }));
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        let mut again = 0;
        while let Some(deadline) = self.session.deadline().filter(|deadline| *deadline <= until) {
            again = if deadline > self.now { 0 } else { again + 1 };
            assert!(again < 20, "time that has passed is asked for again");
            self.now = self.now.max(deadline);
            self.tell(Event::Time);
        }
        self.now = until;
    }

    fn tell(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.session.handle(self.now, event, &mut actions);
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        let mut gone = Vec::new();
        match action {
            Action::Dial { attempt } => self.attempt = Some(attempt),
            Action::Cookie { attempt, challenge } => {
                let id = challenge.id;
                let is_known = id.len() % 2 == 0;
                let cookie = is_known.then(|| Cookie {
                    id,
                    created: 0,
                    secret: "c0ffee".to_owned(),
                });
                self.tell(Event::Cookie {
                    attempt,
                    cookie,
                    random: [7; 16],
                });
            }
            Action::HangUp => self.is_connected = false,
            Action::Ended { call, outcome } => {
                assert!(self.open.remove(&call.0), "call {} ended twice", call.0);
                if let Outcome::Reply { fds, .. } = outcome {
                    gone = fds;
                }
            }
            Action::Signal { streams, fds, .. } => {
                assert!(!streams.is_empty());
                gone = fds;
            }
            Action::Incoming { fds, .. } => gone = fds,
            Action::CloseFds(fds) => gone = fds,
            Action::Link(_) => self.tell(Event::Decided(Decision::Replay)),
            Action::Ready(_)
            | Action::Missed { .. }
            | Action::StreamEnded(_)
            | Action::NameState { .. }
            | Action::OwnerChanged { .. }
            | Action::State(_)
            | Action::Closed(_) => {}
        }
        for fd in gone {
            assert!(self.fds.remove(&fd.0), "descriptor {fd} is handed out twice");
        }
    }
}
