//! A case set up on one bus, ready to be run again and again.

use anyhow::{Result, ensure};

use crate::bus::Bus;
use crate::case::{Calls, Load, Others, Signals};
use crate::client::{Arrival, Clients, say_hello};
use crate::message::{Argument, Kind, Parts, Template};

const INTERFACE: &str = "org.example.Load";
const PATH: &str = "/org/example/Load";
const HOLDERS: usize = 10;
const RULES_EACH: usize = 1_000;

/// The clients of one case on one bus.
pub(crate) struct Running {
    path: String,
    clients: Clients,
    work: Work,
}

enum Work {
    Calls {
        shape: Calls,
        calls: Vec<Template>,
        replies: Vec<Template>,
    },
    Signals {
        shape: Signals,
        signal: Template,
    },
    Driver(Vec<Template>),
    Connect {
        at_once: bool,
    },
}

impl Running {
    /// Connects whoever takes part. `judges_rules`: the bus looks at match rules, as the relay does not.
    pub(crate) fn set_up(load: &Load, bus: &Bus, judges_rules: bool) -> Result<Running> {
        let mut clients = Clients::new(&bus.path)?;
        let work = match load {
            Load::Calls(shape) => {
                clients.open(2 * shape.pairs + shape.idle)?;
                let (calls, replies) = (0..shape.pairs)
                    .map(|pair| pair_templates(&clients, pair, shape))
                    .unzip();
                Work::Calls {
                    shape: shape.clone(),
                    calls,
                    replies,
                }
            }
            Load::Signals(shape) => {
                clients.open(1 + shape.subscribers)?;
                for subscriber in 1..=shape.subscribers {
                    clients.add_match(subscriber, &format!("type='signal',interface='{INTERFACE}'"))?;
                }
                if judges_rules && shape.others != Others::None {
                    add_others(&mut clients, shape.others)?;
                }
                let signal = Parts {
                    path: PATH,
                    interface: INTERFACE,
                    member: "Tick",
                    body: &[Argument::Text("load")],
                    ..Parts::new(Kind::Signal)
                };
                Work::Signals {
                    shape: shape.clone(),
                    signal: signal.encode(1),
                }
            }
            Load::Driver(calls) => {
                clients.open(1)?;
                Work::Driver(calls.iter().map(|call| call.encode(1)).collect())
            }
            Load::Connect { at_once } => Work::Connect { at_once: *at_once },
        };
        Ok(Running {
            path: bus.path.clone(),
            clients,
            work,
        })
    }

    /// Does so many operations and returns when the last is answered.
    pub(crate) fn run(&mut self, operations: usize) -> Result<()> {
        let clients = &mut self.clients;
        match &mut self.work {
            Work::Calls {
                shape,
                calls,
                replies,
            } => run_calls(clients, shape, calls, replies, operations),
            Work::Signals { shape, signal } => run_signals(clients, shape, signal, operations),
            Work::Driver(calls) => run_driver(clients, calls, operations),
            Work::Connect { at_once } => {
                for _ in 0..operations {
                    say_hello(&self.path, *at_once)?;
                }
                Ok(())
            }
        }
    }
}

/// The call and the reply of a pair: the caller is connection 2 * pair, who answers is the next.
fn pair_templates(clients: &Clients, pair: usize, shape: &Calls) -> (Template, Template) {
    let bytes = [Argument::Bytes(shape.body)];
    let call = Parts {
        path: PATH,
        interface: INTERFACE,
        member: "Ask",
        destination: clients.name(2 * pair + 1),
        body: if shape.body > 0 { &bytes } else { &[] },
        fds: shape.fds as u32,
        ..Parts::new(Kind::Call)
    };
    let reply = Parts {
        destination: clients.name(2 * pair),
        reply_serial: 1,
        ..Parts::new(Kind::Return)
    };
    (call.encode(1), reply.encode(1))
}

fn add_others(clients: &mut Clients, others: Others) -> Result<()> {
    let first = clients.count();
    clients.open(HOLDERS)?;
    for holder in 0..HOLDERS {
        for number in 0..RULES_EACH {
            let number = holder * RULES_EACH + number;
            let last = match others {
                Others::None => continue,
                Others::Path => format!("path='/org/example/Other{number}'"),
                Others::FirstArgument => format!("arg0='other{number}'"),
                Others::Sender => {
                    let name = format!("org.example.Other{number}");
                    let body = [Argument::Text(&name), Argument::Number(0)];
                    clients.call(
                        first + holder,
                        &Parts::driver("org.freedesktop.DBus", "RequestName", &body),
                    )?;
                    format!("sender='{name}'")
                }
            };
            let rule = format!("type='signal',interface='{INTERFACE}',member='Tick',{last}");
            clients.add_match(first + holder, &rule)?;
        }
    }
    Ok(())
}

fn run_calls(
    clients: &mut Clients,
    shape: &Calls,
    calls: &mut [Template],
    replies: &mut [Template],
    operations: usize,
) -> Result<()> {
    let each = operations / shape.pairs;
    let mut issued = vec![0; shape.pairs];
    let mut done = 0;
    let fds_before = clients.received_fds();
    for pair in 0..shape.pairs {
        for _ in 0..shape.window.min(each) {
            call(clients, 2 * pair, &mut calls[pair], shape)?;
            issued[pair] += 1;
        }
        clients.flush(2 * pair)?;
    }
    while done < each * shape.pairs {
        clients.wait(&mut |clients,
                            Arrival {
                                connection,
                                kind,
                                serial,
                            }| {
            let pair = connection / 2;
            if kind == Kind::Call as u8 {
                send(
                    clients,
                    connection,
                    replies[pair].set_reply_serial(serial),
                    shape.batched,
                )?;
            } else if kind == Kind::Return as u8 {
                done += 1;
                if issued[pair] < each {
                    issued[pair] += 1;
                    call(clients, connection, &mut calls[pair], shape)?;
                }
            }
            Ok(())
        })?;
    }
    let fds = clients.received_fds() - fds_before;
    ensure!(
        fds == done * shape.fds,
        "{fds} descriptors came with {done} calls"
    );
    Ok(())
}

fn call(clients: &mut Clients, connection: usize, message: &mut Template, shape: &Calls) -> Result<()> {
    if shape.fds == 0 {
        return send(clients, connection, message, shape.batched);
    }
    let serial = clients.serial(connection);
    clients.send_with_fds(connection, message.set_serial(serial).bytes(), shape.fds)
}

fn run_signals(
    clients: &mut Clients,
    shape: &Signals,
    signal: &mut Template,
    deliveries: usize,
) -> Result<()> {
    let signals = deliveries / shape.subscribers;
    let (mut sent, mut delivered) = (0, 0);
    while sent < shape.window.min(signals) {
        send(clients, 0, signal, false)?;
        sent += 1;
    }
    while delivered < signals * shape.subscribers {
        clients.wait(&mut |clients, arrival| {
            if arrival.kind == Kind::Signal as u8 {
                delivered += 1;
                if sent < signals && sent - delivered / shape.subscribers < shape.window {
                    send(clients, 0, signal, false)?;
                    sent += 1;
                }
            }
            Ok(())
        })?;
    }
    ensure!(
        delivered == signals * shape.subscribers,
        "more signals came in than were due"
    );
    Ok(())
}

fn run_driver(clients: &mut Clients, calls: &mut [Template], operations: usize) -> Result<()> {
    let total = operations * calls.len();
    send(clients, 0, &mut calls[0], false)?;
    let (mut sent, mut done) = (1, 0);
    while done < total {
        clients.wait(&mut |clients, arrival| {
            if arrival.kind == Kind::Return as u8 {
                done += 1;
                if sent < total {
                    let next = sent % calls.len();
                    send(clients, 0, &mut calls[next], false)?;
                    sent += 1;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn send(clients: &mut Clients, connection: usize, message: &mut Template, batched: bool) -> Result<()> {
    let serial = clients.serial(connection);
    clients.queue(connection, message.set_serial(serial).bytes());
    if batched {
        Ok(())
    } else {
        clients.flush(connection)
    }
}
