//! A modelled bus for one client, which can die at any byte, come back as itself or as another, refuse, be slow and lie.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bus_wire::sasl::{Mechanism, SaslConfig, SaslServer};
use bus_wire::{Fd, Flags, Framer, Guid, MatchRule, Message, MessageBuilder, MessageType};
use bytes::Bytes;

use crate::random::Random;

pub(super) const DRIVER: &str = "org.freedesktop.DBus";
/// Services that exist, and may be away.
pub(super) const SERVICES: [&str; 3] = ["test.One", "test.Two", "test.Three"];
/// Names that the client wants for itself.
pub(super) const NAMES: [&str; 2] = ["client.One", "client.Two"];
/// Topics of signals: member names, and their senders.
pub(super) const TOPICS: [&str; 3] = ["TickOne", "TickTwo", "TickThree"];

/// How a bus behaves.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Manners {
    /// In so many of a thousand cases a rule or name is refused.
    pub(super) refuses: u32,
    /// In so many of a thousand cases what it says is nonsense.
    pub(super) lies: u32,
}

/// One bus, from its start to its death, with all its peers.
#[derive(Debug)]
pub(super) struct Bus {
    guid: Guid,
    manners: Manners,
    next_unique: u32,
    /// Who owns which of [`SERVICES`]: the number of its unique name.
    owners: BTreeMap<&'static str, u32>,
    /// Services that were there at some time.
    were_there: BTreeSet<&'static str>,
    /// How many signals of each topic were sent, by whoever, ever.
    pub(super) ticks: BTreeMap<&'static str, u64>,
    pub(super) link: Option<BusLink>,
}

/// The bus's end of a link.
#[derive(Debug)]
pub(super) struct BusLink {
    sasl: Option<SaslServer>,
    framer: Framer,
    /// What the client is still to read.
    pub(super) output: Vec<u8>,
    pub(super) unique: Option<u32>,
    /// Counted, by canonical text.
    pub(super) rules: BTreeMap<String, u32>,
    pub(super) names: Vec<String>,
    /// Calls that services have to answer: caller's serial, the service, what it is to run, and whether a reply is wanted.
    pending: Vec<(u32, &'static str, u64, bool)>,
    serial: u32,
}

/// What the client has brought about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Happened {
    /// A service ran this call.
    Ran { call: u64, service: &'static str },
    /// A message came for this unique name.
    ForUnique { call: u64, name: String },
    /// Nobody has the name: whoever could be activated now would be.
    Activated { name: String },
    /// The client sent what is no valid message.
    Invalid(String),
}

impl Bus {
    pub(super) fn new(guid: u8, manners: Manners, services: &[&'static str]) -> Self {
        let mut bus = Self {
            guid: Guid::from_bytes([guid; 16]),
            manners,
            next_unique: 0,
            owners: BTreeMap::new(),
            were_there: BTreeSet::new(),
            ticks: BTreeMap::new(),
            link: None,
        };
        for service in services {
            bus.come(service);
        }
        bus
    }

    pub(super) fn was_there(&self, service: &str) -> bool {
        self.were_there.contains(service)
    }

    pub(super) fn owner(&self, service: &str) -> Option<String> {
        self.owners.get(service).map(|unique| format!(":1.{unique}"))
    }

    /// A service appears.
    pub(super) fn come(&mut self, service: &'static str) {
        if !self.owners.contains_key(service) {
            let unique = self.unique();
            self.owners.insert(service, unique);
            self.were_there.insert(service);
            self.owner_changed(service, "", &format!(":1.{unique}"));
        }
    }

    /// A service goes.
    pub(super) fn go(&mut self, service: &'static str) {
        if let Some(unique) = self.owners.remove(service) {
            let mut unanswered = Vec::new();
            if let Some(link) = &mut self.link {
                let gone = link.pending.extract_if(.., |(_, name, _, _)| *name == service);
                unanswered.extend(gone.filter(|(_, _, _, wants_reply)| *wants_reply));
            }
            for (serial, _, _, _) in unanswered {
                self.error(serial, "org.freedesktop.DBus.Error.NoReply");
            }
            self.owner_changed(service, &format!(":1.{unique}"), "");
        }
    }

    fn unique(&mut self) -> u32 {
        self.next_unique += 1;
        self.next_unique
    }

    /// The client connects.
    pub(super) fn accept(&mut self) {
        let config = SaslConfig {
            guid: self.guid,
            mechanisms: vec![Mechanism::External],
            can_pass_fds: true,
        };
        self.link = Some(BusLink {
            sasl: Some(SaslServer::new(config, Some(0))),
            framer: Framer::new(1 << 27),
            output: Vec::new(),
            unique: None,
            rules: BTreeMap::new(),
            names: Vec::new(),
            pending: Vec::new(),
            serial: 0,
        });
    }

    /// A signal of a topic: its sender is the service with the same number.
    pub(super) fn tick(&mut self, topic: usize) {
        let (member, service) = (TOPICS[topic], SERVICES[topic]);
        if !self.owners.contains_key(service) {
            return;
        }
        let count = self.ticks.entry(member).or_default();
        *count += 1;
        let count = *count;
        let Some(owner) = self.owners.get(service).copied() else {
            return;
        };
        let sender = format!(":1.{owner}");
        self.signal(&sender, Some(service), "test.Topic", member, |builder| {
            builder.body(|body| {
                body.u64(count);
            })
        });
    }

    fn owner_changed(&mut self, name: &str, old: &str, new: &str) {
        self.signal(DRIVER, None, DRIVER, "NameOwnerChanged", |builder| {
            builder.body(|body| {
                body.str(name).str(old).str(new);
            })
        });
    }

    fn signal(
        &mut self,
        sender: &str,
        known_as: Option<&str>,
        interface: &str,
        member: &str,
        body: impl FnOnce(MessageBuilder<'_>) -> MessageBuilder<'_>,
    ) {
        let Some(link) = &mut self.link else { return };
        let builder = MessageBuilder::signal("/p", interface, member).sender(sender);
        let serial = link.next_serial();
        let bytes = body(builder.serial(serial)).build().unwrap_or_default();
        let Ok(message) = Message::parse(bytes.clone().into()) else {
            return;
        };
        let is_wanted = link.rules.iter().any(|(text, count)| {
            *count > 0 && text.parse().is_ok_and(|rule| matches(&rule, &message, known_as))
        });
        if is_wanted {
            link.output.extend(bytes);
        }
    }

    /// Bytes of the client, cut anywhere.
    pub(super) fn read(&mut self, bytes: &[u8], fds: Vec<Fd>, random: &mut Random) -> Vec<Happened> {
        let mut happened = Vec::new();
        let Some(link) = &mut self.link else {
            return happened;
        };
        let mut used = 0;
        if let Some(sasl) = &mut link.sasl {
            match sasl.feed(bytes, &mut link.output) {
                Ok(step) => {
                    used = step.consumed;
                    if step.done.is_some() {
                        link.sasl = None;
                    }
                }
                Err(error) => happened.push(Happened::Invalid(error.to_string())),
            }
        }
        link.framer.push(Bytes::copy_from_slice(&bytes[used..]), fds);
        loop {
            let Some(link) = &mut self.link else {
                return happened;
            };
            match link.framer.next() {
                Ok(Some(framed)) => self.message(&framed.message, random, &mut happened),
                Ok(None) => return happened,
                Err(error) => {
                    happened.push(Happened::Invalid(error.to_string()));
                    return happened;
                }
            }
        }
    }

    fn message(&mut self, message: &Message, random: &mut Random, happened: &mut Vec<Happened>) {
        if random.permille(self.manners.lies) {
            self.lie(message, random);
        }
        match message.destination() {
            Some(DRIVER) => self.driver(message, random),
            Some(name) if name.starts_with(':') => {
                let call = message.body().read_u64().unwrap_or_default();
                let name = name.to_owned();
                self.run_by_unique(message, call, &name);
                happened.push(Happened::ForUnique { call, name });
            }
            Some(name) if message.message_type() == MessageType::MethodCall => {
                let call = message.body().read_u64().unwrap_or_default();
                match self.owners.keys().find(|service| **service == name).copied() {
                    Some(service) => {
                        let wants_reply = !message.flags().contains(Flags::NO_REPLY_EXPECTED);
                        if let Some(link) = &mut self.link {
                            link.pending
                                .push((message.serial().get(), service, call, wants_reply));
                        }
                    }
                    None => {
                        happened.push(Happened::Activated {
                            name: name.to_owned(),
                        });
                        self.error(
                            message.serial().get(),
                            "org.freedesktop.DBus.Error.ServiceUnknown",
                        );
                    }
                }
            }
            _ => {}
        }
    }

    fn run_by_unique(&mut self, message: &Message, call: u64, name: &str) {
        let owner = self
            .owners
            .iter()
            .find(|(_, unique)| format!(":1.{unique}") == name);
        if let (Some((service, _)), Some(link)) = (owner, &mut self.link) {
            link.pending.push((message.serial().get(), service, call, true));
        } else {
            self.error(
                message.serial().get(),
                "org.freedesktop.DBus.Error.ServiceUnknown",
            );
        }
    }

    /// The services run what they were asked for.
    pub(super) fn run(&mut self, most: usize) -> Vec<Happened> {
        let mut happened = Vec::new();
        let Some(link) = &mut self.link else {
            return happened;
        };
        let count = link.pending.len().min(most);
        for (serial, service, call, wants_reply) in link.pending.drain(..count).collect::<Vec<_>>() {
            happened.push(Happened::Ran { call, service });
            let owner = self.owners.get(service).copied().unwrap_or_default();
            if wants_reply {
                let sender = format!(":1.{owner}");
                let own = link.next_serial();
                let reply = MessageBuilder::method_return(serial).sender(&sender).serial(own);
                let reply = reply.body(|body| {
                    body.u64(call);
                });
                link.output.extend(reply.build().unwrap_or_default());
            }
        }
        happened
    }

    fn error(&mut self, serial: u32, name: &str) {
        if let Some(link) = &mut self.link {
            let own = link.next_serial();
            let error = MessageBuilder::error(name, serial).sender(DRIVER).serial(own);
            link.output.extend(error.build().unwrap_or_default());
        }
    }

    fn answer(&mut self, serial: u32, body: impl FnOnce(MessageBuilder<'_>) -> MessageBuilder<'_>) {
        if let Some(link) = &mut self.link {
            let own = link.next_serial();
            let reply = MessageBuilder::method_return(serial).sender(DRIVER).serial(own);
            link.output.extend(body(reply).build().unwrap_or_default());
        }
    }

    fn driver(&mut self, message: &Message, random: &mut Random) {
        let serial = message.serial().get();
        let mut body = message.body();
        let argument = body.read_str().unwrap_or_default().to_owned();
        let refused = random.permille(self.manners.refuses);
        match message.member() {
            Some("Hello") => {
                let unique = self.unique();
                if let Some(link) = &mut self.link {
                    link.unique = Some(unique);
                }
                self.answer(serial, |reply| {
                    reply.body(|body| {
                        body.str(&format!(":1.{unique}"));
                    })
                });
            }
            Some("AddMatch" | "RequestName") if refused => {
                self.error(serial, "org.freedesktop.DBus.Error.LimitsExceeded");
            }
            Some("AddMatch") => {
                if let Some(link) = &mut self.link {
                    *link.rules.entry(argument).or_default() += 1;
                }
                self.answer(serial, |reply| reply);
            }
            Some("RemoveMatch") => {
                if let Some(link) = &mut self.link {
                    let count = link.rules.entry(argument.clone()).or_default();
                    let is_there = *count > 0 || self.manners.lies > 0;
                    assert!(is_there, "a rule that is not there is removed: {argument}");
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        link.rules.remove(&argument);
                    }
                }
                self.answer(serial, |reply| reply);
            }
            Some("RequestName") => {
                if let Some(link) = &mut self.link {
                    link.names.push(argument);
                }
                self.answer(serial, |reply| {
                    reply.body(|body| {
                        body.u32(1);
                    })
                });
            }
            Some("ReleaseName") => {
                if let Some(link) = &mut self.link {
                    link.names.retain(|name| *name != argument);
                }
                self.answer(serial, |reply| {
                    reply.body(|body| {
                        body.u32(1);
                    })
                });
            }
            Some("GetNameOwner") => match self.owners.get(&*argument).copied() {
                Some(owner) => self.answer(serial, |reply| {
                    reply.body(|body| {
                        body.str(&format!(":1.{owner}"));
                    })
                }),
                None => self.error(serial, "org.freedesktop.DBus.Error.NameHasNoOwner"),
            },
            _ => self.error(serial, "org.freedesktop.DBus.Error.UnknownMethod"),
        }
    }

    /// Something that no honest bus says.
    fn lie(&mut self, message: &Message, random: &mut Random) {
        let serial = message.serial().get().wrapping_add(random.below(3) as u32);
        match random.below(7) {
            0 => self.error(serial.max(1), "org.freedesktop.DBus.Error.Failed"),
            1 => self.answer(serial.max(1), |reply| reply),
            2 => self.answer(serial.wrapping_mul(77).max(1), |reply| {
                reply.body(|body| {
                    body.str(":1.1");
                })
            }),
            3 => {
                if let Some(link) = &mut self.link {
                    let own = link.next_serial();
                    let name = random.word(&SERVICES);
                    let signal = MessageBuilder::signal("/p", DRIVER, "NameOwnerChanged")
                        .sender(if random.percent(50) { ":1.666" } else { DRIVER })
                        .serial(own)
                        .body(|body| {
                            body.str(name).str(":1.9").str(":1.666");
                        });
                    link.output.extend(signal.build().unwrap_or_default());
                }
            }
            4 => {
                if let Some(link) = &mut self.link {
                    let own = link.next_serial();
                    let signal =
                        MessageBuilder::signal("/p", DRIVER, random.word(&["NameLost", "NameAcquired"]))
                            .sender(DRIVER)
                            .serial(own)
                            .body(|body| {
                                body.str(random.word(&NAMES));
                            });
                    link.output.extend(signal.build().unwrap_or_default());
                }
            }
            5 => {
                if let Some(link) = &mut self.link {
                    let garbage = (0..random.below(40)).map(|_| random.next() as u8);
                    link.output.extend(garbage.collect::<Vec<_>>());
                }
            }
            _ => {
                if let Some(link) = &mut self.link {
                    let own = link.next_serial();
                    let call = MessageBuilder::method_call("/x", "Do").sender(":1.9").serial(own);
                    link.output.extend(call.build().unwrap_or_default());
                }
            }
        }
    }

    /// The settle window of a client that has seen this bus come up at `up`.
    pub(super) fn is_settling(up: Duration, now: Duration, settle: Duration) -> bool {
        now < up + settle
    }
}

impl BusLink {
    fn next_serial(&mut self) -> u32 {
        self.serial += 1;
        self.serial
    }
}

fn matches(rule: &MatchRule, message: &Message, known_as: Option<&str>) -> bool {
    let sender = match rule.sender.as_deref() {
        None => true,
        Some(name) => message.sender() == Some(name) || known_as == Some(name),
    };
    let first = message.body().read_str().ok();
    sender
        && rule
            .member
            .as_deref()
            .is_none_or(|member| message.member() == Some(member))
        && rule
            .args
            .iter()
            .all(|condition| condition.matches(first.map(bus_wire::Arg::Str)))
}
