//! What is done on purpose: to the bus, and by the program that uses the client.

use super::*;

impl World {
    pub(super) fn die(&mut self) -> Check {
        if self.bus.is_none() {
            self.start_bus(self.options.lies, self.options.refuses);
            return Ok(());
        }
        self.checker.stats.deaths += 1;
        // What it had written before may come still.
        if self.random.percent(50) {
            self.client_reads()?;
        }
        if let Some(bus) = self.bus.take() {
            self.ticks = bus.ticks;
        }
        self.unplug()
    }

    pub(super) fn cut(&mut self) -> Check {
        if let Some(bus) = &mut self.bus {
            bus.link = None;
        }
        self.unplug()
    }

    pub(super) fn unplug(&mut self) -> Check {
        self.to_bus.clear();
        if std::mem::take(&mut self.is_connected) {
            self.checker.lost();
            self.tell(Event::Lost(LinkError::Ended))?;
        }
        Ok(())
    }

    pub(super) fn make_call(&mut self) -> Check {
        let id = self.next_id();
        let by_unique = self.random.percent(15);
        let learnt = by_unique.then(|| self.session.epoch().saturating_sub(self.random.below(2)).max(1));
        let destination = match by_unique {
            true => format!(":1.{}", 1 + self.random.below(4)),
            false => self.random.word(&SERVICES).to_owned(),
        };
        let expects_reply = self.random.percent(85);
        let options = CallOptions {
            expects_reply,
            timeout: Some(Duration::from_millis(1 + self.random.below(30_000))),
            idempotent: self.random.percent(25),
            while_down: if self.random.percent(30) {
                WhileDown::FailFast
            } else {
                WhileDown::Wait
            },
        };
        let length = self.random.below(200) as usize;
        let mut builder = MessageBuilder::method_call("/p", "Run")
            .destination(&destination)
            .body(|body| {
                body.u64(id).byte_slice(&vec![7; length]);
            });
        if !expects_reply {
            builder = builder.flags(Flags::NO_REPLY_EXPECTED);
        }
        let fds = match self.random.percent(10) {
            true => vec![Fd(id as i32)],
            false => Vec::new(),
        };
        self.checker.fds.extend(fds.iter().map(|fd| fd.0));
        let bytes = builder
            .unix_fds(fds.len() as u32)
            .build()
            .map_err(|error| error.to_string())?;
        let message = Outgoing {
            bytes,
            destination: Some(destination.clone().into()),
            epoch: learnt,
            fds,
        };
        self.checker.made(id, options, &destination, learnt, self.now);
        let call = CallId(id);
        self.tell(Event::Command(Command::Send {
            call,
            message,
            options,
        }))?;
        if self.random.percent(7) {
            self.checker.abandoned(id);
            self.tell(Event::Command(Command::Abandon(call)))?;
        }
        Ok(())
    }

    pub(super) fn change_wishes(&mut self) -> Check {
        let id = self.next_id();
        match self.random.below(9) {
            0..=2 => {
                let topic = self.random.index(TOPICS.len());
                let member = TOPICS[topic];
                let rule = match self.random.percent(50) {
                    true => format!("type='signal',member='{member}'"),
                    false => format!("type='signal',sender='{}',member='{member}'", SERVICES[topic]),
                };
                let rule: MatchRule = rule.parse().map_err(|error| format!("{error}"))?;
                self.checker.subscribed(id, topic);
                let (stream, rule) = (StreamId(id), Box::new(rule));
                self.tell(Event::Command(Command::Subscribe { stream, rule }))
            }
            3 => {
                let streams: Vec<u64> = self.checker.streams.keys().copied().collect();
                let Some(id) = self.random.pick(&streams).copied() else {
                    return Ok(());
                };
                self.checker.streams.remove(&id);
                self.tell(Event::Command(Command::Unsubscribe(StreamId(id))))
            }
            4 => {
                let name = self.random.word(&NAMES);
                self.names.insert(id, name);
                let flags = NameFlags::default();
                let (handle, name) = (NameId(id), name.into());
                self.tell(Event::Command(Command::OwnName { handle, name, flags }))
            }
            5 => {
                let names: Vec<u64> = self.names.keys().copied().collect();
                let Some(id) = self.random.pick(&names).copied() else {
                    return Ok(());
                };
                self.names.remove(&id);
                self.tell(Event::Command(Command::DropName(NameId(id))))
            }
            6 => {
                let name = self.random.word(&SERVICES);
                self.watches.insert(id, name.to_owned());
                self.checker.owners.insert(id, None);
                let (watch, name) = (WatchId(id), name.into());
                self.tell(Event::Command(Command::Watch { watch, name }))
            }
            7 => {
                let watches: Vec<u64> = self.watches.keys().copied().collect();
                let Some(id) = self.random.pick(&watches).copied() else {
                    return Ok(());
                };
                self.watches.remove(&id);
                self.checker.owners.remove(&id);
                self.tell(Event::Command(Command::Unwatch(WatchId(id))))
            }
            _ => {
                let names: Vec<Box<str>> = SERVICES[..1 + self.random.index(2)]
                    .iter()
                    .map(|name| (*name).into())
                    .collect();
                let timeout = Some(Duration::from_millis(self.random.below(20_000)));
                let options = CallOptions {
                    expects_reply: true,
                    timeout,
                    idempotent: true,
                    while_down: WhileDown::Wait,
                };
                self.checker.made(id, options, "", None, self.now);
                let call = CallId(id);
                self.tell(Event::Command(Command::WaitForNames { call, names, timeout }))
            }
        }
    }

    pub(super) fn change_bus(&mut self) -> Check {
        let service = self.random.word(&SERVICES);
        let topic = self.random.index(TOPICS.len());
        let what = self.random.below(6);
        match &mut self.bus {
            Some(bus) => match what {
                0 => bus.go(service),
                1 | 2 => bus.come(service),
                _ => bus.tick(topic),
            },
            None if what == 0 => self.start_bus(self.options.lies, self.options.refuses),
            None => {}
        }
        Ok(())
    }
}
