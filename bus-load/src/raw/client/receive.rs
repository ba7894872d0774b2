//! What a raw connection does with what comes in.

use super::{Client, Pending};
use crate::link::{Read, Scratch};
use crate::{INTERFACE, fds};
use anyhow::{Context, bail};
use bus_wire::{Framed, Message, MessageBuilder, MessageType};

/// Reads in a row before the other connections get their turn.
const READS_PER_TURN: usize = 16;
/// What a raw connection says when it is introspected.
const INTROSPECTION: &str = r#"<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
<node><interface name="org.busdaemon.Load1">
<method name="Echo"><arg type="s" direction="in"/><arg type="t" direction="in"/>
<arg type="s" direction="out"/><arg type="t" direction="out"/></method>
<method name="EchoFd"><arg type="s" direction="in"/><arg type="t" direction="in"/><arg type="h" direction="in"/>
<arg type="s" direction="out"/><arg type="t" direction="out"/></method>
<signal name="Tick"><arg type="s"/><arg type="t"/></signal>
</interface></node>
"#;

impl Client {
    /// Reads and handles what is there. False if there may be more.
    pub(crate) fn receive(&mut self, scratch: &mut Scratch) -> bool {
        for _ in 0..READS_PER_TURN {
            if self.closed.is_some() || !self.reading || !self.readable {
                return true;
            }
            match self.try_receive(scratch) {
                Ok(Read::Some) => {}
                Ok(Read::Nothing) => self.readable = false,
                Ok(Read::End) => self.close("the bus closed the connection".to_owned()),
                Err(error) => self.fail(&error),
            }
        }
        false
    }

    fn try_receive(&mut self, scratch: &mut Scratch) -> anyhow::Result<Read> {
        let read = self.link.read(scratch)?;
        while let Some(framed) = self.link.next()? {
            self.traffic += 1;
            self.handle(framed)?;
        }
        Ok(read)
    }

    fn handle(&mut self, framed: Framed) -> anyhow::Result<()> {
        let message = &framed.message;
        match message.message_type() {
            MessageType::MethodCall if self.spec.monitor => self.monitored(message)?,
            MessageType::MethodCall => self.called(&framed)?,
            MessageType::Signal if message.interface() == Some(INTERFACE) => self.signalled(&framed)?,
            MessageType::Signal => self.bus_signal(message)?,
            MessageType::MethodReturn | MessageType::Error => self.replied(&framed)?,
            MessageType::Unknown(_) => {}
        }
        // Descriptors that nobody asked for.
        for &fd in &framed.fds {
            if self.link.take_fd(fd).is_some() {
                self.error("a descriptor came with a message that should have none".to_owned());
            }
        }
        Ok(())
    }

    fn called(&mut self, framed: &Framed) -> anyhow::Result<()> {
        let message = &framed.message;
        let sender = message.sender().context("a call without a sender")?;
        // Programs that declare what they take and give have a method of its own for descriptors, answered without one.
        let answers_with_fds = match message.member() {
            Some("Echo") if message.interface() == Some(INTERFACE) => true,
            Some("EchoFd") if message.interface() == Some(INTERFACE) => false,
            _ => return self.other_call(message, sender),
        };
        let (stream, number) = self.record(message)?;
        let came = self.take_descriptors(framed, &stream, number)?;
        self.fds_received += came;
        let descriptors = super::descriptors(if answers_with_fds { came } else { 0 }, number)?;
        self.fds_sent += descriptors.len() as u64;
        let reply = MessageBuilder::method_return(message.serial().get())
            .destination(sender)
            .serial(self.next_serial())
            .unix_fds(descriptors.len() as u32)
            .body(|body| {
                body.str(&stream);
                body.u64(number);
                if !descriptors.is_empty() {
                    body.unix_fd_index(0);
                }
            })
            .build()?;
        if self.keeping {
            self.kept.push((reply, descriptors));
        } else {
            self.link.queue(reply, descriptors);
        }
        Ok(())
    }

    /// Takes the descriptors that came with message `number` of a stream: the one that its signature tells of, with
    /// the right content, and no other. How many there were.
    fn take_descriptors(&mut self, framed: &Framed, stream: &str, number: u64) -> anyhow::Result<u64> {
        for &fd in &framed.fds {
            let content = fds::number_of(self.link.take_fd(fd).context("a descriptor named twice")?)?;
            if content != number {
                self.error(format!(
                    "{stream}: message {number} carries the descriptor of message {content}"
                ));
            }
        }
        let (came, due) = (framed.fds.len(), framed.message.signature().matches('h').count());
        if came != due {
            self.error(format!(
                "{stream}: message {number} carries {came} descriptors, not {due}"
            ));
        }
        Ok(came as u64)
    }

    /// Tools introspect what they are about to call.
    fn other_call(&mut self, message: &Message, sender: &str) -> anyhow::Result<()> {
        let (call, serial) = (message.serial().get(), self.next_serial());
        let reply = match message.member() {
            Some("Introspect") => MessageBuilder::method_return(call)
                .destination(sender)
                .serial(serial)
                .body(|body| {
                    body.str(INTROSPECTION);
                }),
            _ => MessageBuilder::error("org.freedesktop.DBus.Error.UnknownMethod", call)
                .destination(sender)
                .serial(serial)
                .body(|body| {
                    body.str("There is Echo, and nothing else");
                }),
        };
        self.link.queue(reply.build()?, Vec::new());
        Ok(())
    }

    fn signalled(&mut self, framed: &Framed) -> anyhow::Result<()> {
        let message = &framed.message;
        let (stream, number) = self.record(message)?;
        let came = self.take_descriptors(framed, &stream, number)?;
        match message.destination() {
            // A monitor has a copy of what goes to another.
            Some(_) if !self.spec.monitor => self.fds_received += came,
            _ => self.fds_copied += came,
        }
        if !self.spec.subscribes.contains(&stream) && !self.spec.monitor {
            self.error(format!("a signal of {stream} came, which no rule asked for"));
        }
        Ok(())
    }

    /// A monitor sees calls that are not its own; it checks the signals only.
    fn monitored(&mut self, message: &Message) -> anyhow::Result<()> {
        bail!("a monitor of signals was shown a call of {:?}", message.member())
    }

    fn record(&mut self, message: &Message) -> anyhow::Result<(String, u64)> {
        let mut body = message.body();
        let stream = body.read_str()?.to_owned();
        let number = body.read_u64()?;
        let sender = message.sender().unwrap_or_default();
        match self.senders.get(&stream) {
            Some(known) if known == sender => {}
            Some(known) => {
                let text = format!("{stream}: the sender changed from {known} to {sender}");
                self.error(text);
            }
            None => {
                self.senders.insert(stream.clone(), sender.to_owned());
            }
        }
        match self.got.get_mut(&stream) {
            Some(tally) => tally.record(number),
            None => self.got.entry(stream.clone()).or_default().record(number),
        }
        Ok((stream, number))
    }

    fn bus_signal(&mut self, message: &Message) -> anyhow::Result<()> {
        let own = message.destination().is_some() && message.destination() == self.unique.as_deref();
        if !own || self.spec.monitor {
            return Ok(());
        }
        let name = message.body().read_str()?.to_owned();
        match message.member() {
            Some("NameAcquired") if self.acquired.insert(name.clone()) => {}
            Some("NameAcquired") => self.error(format!("NameAcquired came twice for {name}")),
            Some("NameLost") if self.acquired.contains(&name) => {
                self.error(format!("the name {name} was lost"))
            }
            _ => {}
        }
        Ok(())
    }

    fn replied(&mut self, framed: &Framed) -> anyhow::Result<()> {
        let message = &framed.message;
        let serial = message
            .reply_serial()
            .context("a reply without a reply serial")?
            .get();
        if self.spec.monitor && message.destination() != self.unique.as_deref() && self.unique.is_some() {
            return Ok(());
        }
        let Some(pending) = self.pending.remove(&serial) else {
            self.error(format!("a reply came to serial {serial}, which awaits none"));
            return Ok(());
        };
        if message.message_type() == MessageType::Error {
            let name = message.error_name().unwrap_or_default();
            let text = message.body().read_str().unwrap_or_default().to_owned();
            let what = match &pending {
                Pending::Hello => "Hello".to_owned(),
                Pending::Setup(what) => what.clone(),
                Pending::Call { target, number } => {
                    format!("call {number} of {}", self.calls[*target].stream)
                }
                Pending::Barrier => "GetId".to_owned(),
            };
            self.error(format!("{what} answered with {name}: {text}"));
        }
        match pending {
            Pending::Hello => self.unique = Some(message.body().read_str()?.to_owned()),
            Pending::Setup(_) => {}
            Pending::Barrier => self.barriers -= 1,
            Pending::Call { target, number } => {
                let state = &mut self.calls[target];
                state.outstanding -= 1;
                if message.message_type() == MessageType::MethodReturn {
                    state.replies.record(number);
                    let stream = state.stream.clone();
                    self.fds_received += self.take_descriptors(framed, &stream, number)?;
                    let state = &self.calls[target];
                    // Echo services of other programs may answer without a body.
                    if message.signature().starts_with("st") {
                        let mut body = message.body();
                        let (stream, echoed) = (body.read_str()?, body.read_u64()?);
                        if (stream, echoed) != (state.stream.as_str(), number) {
                            bail!(
                                "call {number} of {} was answered with {stream} {echoed}",
                                state.stream
                            );
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
