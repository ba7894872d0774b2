//! What clients send.

use crate::client::{Client, Received};
use crate::files::Files;
use crate::letter::{DRIVER, Kind, Letter, NO_AUTO_START, NO_REPLY, Note, Value};
use crate::model::Meaning;
use crate::random::Random;
use crate::rule::{INTERFACES, MEMBERS, PATHS, Rule, WORDS};

/// Names that clients ask for.
pub(crate) const NAMES: [&str; 4] = [
    "com.example.A",
    "com.example.B",
    "com.example.B.C",
    "org.example.D",
];

/// Who sends, and what there is to send to.
pub(crate) struct Scene<'a> {
    pub(crate) random: &'a mut Random,
    pub(crate) client: &'a mut Client,
    pub(crate) files: &'a mut Files,
    /// Names of others.
    pub(crate) names: &'a [String],
    /// The number of the next message.
    pub(crate) number: &'a mut u64,
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

impl Scene<'_> {
    /// Hello, or rarely something else: then the client must be disconnected.
    pub(crate) fn greeting(&mut self) -> Letter {
        self.client.has_said_hello = true;
        let mut letter = self.driver_call("Hello", Vec::new());
        letter.flags = 0;
        if self.random.percent(3) {
            letter.member = text("GetId");
            self.client.is_done = true;
        }
        letter
    }

    /// Anything that an active client may send.
    pub(crate) fn letter(&mut self) -> Letter {
        match self.random.below(100) {
            0..20 => self.call(),
            20..38 => self.reply(),
            38..53 => self.signal(None),
            53..62 => {
                let to = self.anyone();
                self.signal(Some(to))
            }
            62..72 => self.match_rule(),
            72..83 => self.name(),
            _ => self.question(),
        }
    }

    fn anyone(&mut self) -> String {
        match self.random.below(20) {
            0 => ":1.99999".to_owned(),
            1..7 => self.random.word(&NAMES).to_owned(),
            _ => self
                .random
                .pick(self.names)
                .cloned()
                .unwrap_or_else(|| NAMES[0].to_owned()),
        }
    }

    fn serial(&mut self) -> u32 {
        // Now and then a serial that is in use.
        if self.client.serial == 0 || !self.random.permille(5) {
            self.client.serial += 1;
        }
        self.client.serial
    }

    /// Words for match rules, a number, perhaps many bytes, perhaps files.
    fn fill(&mut self, mut letter: Letter, may_have_files: bool) -> Letter {
        letter.is_big_endian = self.random.percent(15);
        letter.serial = self.serial();
        *self.number += 1;
        let mut values = vec![Value::Str(self.random.word(&WORDS).to_owned())];
        values.push(if self.random.percent(50) {
            Value::Path(self.random.word(&PATHS).to_owned())
        } else {
            Value::Str(self.random.word(&WORDS).to_owned())
        });
        values.push(Value::U64(*self.number));
        match self.random.below(100) {
            0..3 => values.push(Value::Bytes(60_000 + self.random.index(90_000))),
            3..20 => values.push(Value::Bytes(900 + self.random.index(4000))),
            20..40 => values.push(Value::Bytes(self.random.index(200))),
            _ => {}
        }
        if may_have_files && self.client.takes_fds && self.random.percent(25) {
            for index in 0..=self.random.below(3) {
                letter.files.push(self.files.create());
                values.push(Value::Fd(index as u32));
            }
        }
        letter.with(values)
    }

    fn call(&mut self) -> Letter {
        let mut letter = Letter {
            destination: Some(self.anyone()),
            path: text(self.random.word(&PATHS)),
            member: text(self.random.word(&MEMBERS)),
            ..Letter::new(Kind::Call)
        };
        if self.random.percent(80) {
            letter.interface = text(self.random.word(&INTERFACES));
        }
        if self.random.percent(15) {
            letter.flags |= NO_REPLY;
        }
        if self.random.percent(20) {
            letter.flags |= NO_AUTO_START;
        }
        if self.random.percent(4) {
            letter.destination = None;
        }
        self.fill(letter, true)
    }

    /// An answer to a call; rarely one that nobody waits for.
    fn reply(&mut self) -> Letter {
        let to = match self.random.below(20) {
            0 => self.client.answered.clone(),
            1 => Some(Received {
                caller: self.anyone(),
                serial: 1 + self.random.below(20) as u32,
            }),
            _ if self.client.unanswered.is_empty() => None,
            _ => {
                let place = self.random.index(self.client.unanswered.len());
                Some(self.client.unanswered.remove(place))
            }
        };
        match to {
            Some(call) => {
                self.client.answered = Some(call.clone());
                self.reply_to(&call, true)
            }
            None => self.call(),
        }
    }

    pub(crate) fn reply_to(&mut self, call: &Received, may_have_files: bool) -> Letter {
        let is_error = self.random.percent(25);
        let letter = Letter {
            destination: Some(call.caller.clone()),
            reply_serial: Some(call.serial),
            error: is_error.then(|| "com.example.Error.No".to_owned()),
            flags: if self.random.percent(50) { NO_REPLY } else { 0 },
            ..Letter::new(if is_error { Kind::Error } else { Kind::Return })
        };
        self.fill(letter, may_have_files)
    }

    pub(crate) fn signal(&mut self, destination: Option<String>) -> Letter {
        let letter = Letter {
            destination,
            path: text(self.random.word(&PATHS)),
            interface: text(self.random.word(&INTERFACES)),
            member: text(self.random.word(&MEMBERS)),
            ..Letter::new(Kind::Signal)
        };
        self.fill(letter, true)
    }

    fn driver_call(&mut self, member: &str, values: Vec<Value>) -> Letter {
        Letter {
            destination: text(DRIVER),
            path: text("/org/freedesktop/DBus"),
            interface: text(DRIVER),
            member: text(member),
            serial: self.serial(),
            flags: if self.random.percent(10) { NO_REPLY } else { 0 },
            is_big_endian: self.random.percent(10),
            ..Letter::new(Kind::Call)
        }
        .with(values)
    }

    fn match_rule(&mut self) -> Letter {
        if self.random.percent(4) {
            let mut letter = self.driver_call("AddMatch", vec![Value::Str("nonsense='1'".to_owned())]);
            letter.note.is_wrong = true;
            return letter;
        }
        let known = self.random.pick(&self.client.rules).cloned();
        let is_removal = self.random.percent(30);
        let rule = match known {
            // Equal rules are counted.
            Some(rule) if is_removal || self.random.percent(20) => rule,
            _ => Rule::random(self.random, self.names),
        };
        if is_removal {
            if let Some(place) = self.client.rules.iter().position(|known| *known == rule) {
                self.client.rules.remove(place);
            }
        } else {
            self.client.rules.push(rule.clone());
        }
        let values = vec![Value::Str(rule.text(self.random))];
        let mut letter = self.driver_call(if is_removal { "RemoveMatch" } else { "AddMatch" }, values);
        letter.note = Note {
            rules: vec![rule],
            is_wrong: false,
        };
        letter
    }

    fn name(&mut self) -> Letter {
        let is_wrong = self.random.percent(5);
        let name = if is_wrong {
            self.random
                .word(&[":1.1", "nodots", "org.freedesktop.DBus", "a..b"])
        } else {
            self.random.word(&NAMES)
        };
        let name = Value::Str(name.to_owned());
        let mut letter = if self.random.percent(70) {
            let end = if self.random.percent(90) { 8 } else { 64 };
            let flags = self.random.below(end);
            self.driver_call("RequestName", vec![name, Value::U32(flags as u32)])
        } else {
            self.driver_call("ReleaseName", vec![name])
        };
        letter.note.is_wrong = is_wrong;
        letter
    }

    fn question(&mut self) -> Letter {
        let about = if self.random.percent(5) {
            DRIVER.to_owned()
        } else {
            self.anyone()
        };
        let about = vec![Value::Str(about)];
        match self.random.below(76) {
            0..6 => self.driver_call("GetNameOwner", about),
            6..12 => self.driver_call("NameHasOwner", about),
            12..18 => self.driver_call("ListQueuedOwners", about),
            18..24 => self.driver_call("ListNames", Vec::new()),
            24..28 => self.driver_call("GetId", Vec::new()),
            28..32 => self.driver_call("GetConnectionUnixUser", about),
            32..36 => self.driver_call("GetConnectionUnixProcessID", about),
            36..44 => self.driver_call("GetConnectionCredentials", about),
            44..47 | 59..67 => self.driver_call("ReloadConfig", Vec::new()),
            67..75 => {
                let mut letter = self.driver_call("Upgrade", vec![Value::Str("/new".to_owned())]);
                letter.interface = text("org.busdaemon.Restart1");
                letter
            }
            47..50 => self.driver_call("Hello", Vec::new()),
            50..53 => self.driver_call("NoSuchMethod", Vec::new()),
            53..57 => {
                let mut letter = self.driver_call("Ping", Vec::new());
                letter.interface = text("org.freedesktop.DBus.Peer");
                letter.path = text(self.random.word(&PATHS));
                if self.random.percent(50) {
                    letter.destination = None;
                }
                letter
            }
            57..59 => self.become_monitor(),
            _ => {
                // Nothing that the driver does anything with.
                let to = text(DRIVER);
                let mut letter = self.signal(None);
                letter.destination = to;
                letter
            }
        }
    }

    fn become_monitor(&mut self) -> Letter {
        let mut rules = Vec::new();
        for _ in 0..self.random.below(3) {
            rules.push(Rule::random(self.random, self.names));
        }
        let texts = rules.iter().map(|rule| rule.text(self.random)).collect();
        let mut letter = self.driver_call("BecomeMonitor", vec![Value::Strs(texts), Value::U32(0)]);
        letter.interface = text("org.freedesktop.DBus.Monitoring");
        letter.note.rules = rules;
        letter
    }

    /// Bytes that are no message, or one that nobody may send.
    pub(crate) fn malformed(&mut self) -> (Vec<u8>, Meaning) {
        self.client.is_done = true;
        let mut letter = self.signal(None);
        letter.files.clear();
        let values = letter
            .values
            .iter()
            .filter(|value| !matches!(value, Value::Fd(_)))
            .cloned()
            .collect();
        let mut bytes = letter.with(values).encode(None).unwrap_or_default();
        match self.random.below(7) {
            0 => bytes[0] = b'x',
            // A protocol version that does not exist.
            1 => bytes[3] = 9,
            // No serial.
            2 => bytes[8..12].fill(0),
            // An invalid type.
            3 => bytes[1] = 0,
            // The body is not of its signature, or the length of the fields is wrong.
            4 => {
                let end = bytes.len();
                bytes[16..end.min(40)].fill(0xff);
            }
            // Longer than any message may be.
            5 => bytes[12..16].fill(0x7f),
            _ => {
                let mut letter = self.signal(None);
                letter.files = vec![0];
                bytes = letter.encode(None).unwrap_or_default();
            }
        }
        (bytes, Meaning::Malformed)
    }
}
