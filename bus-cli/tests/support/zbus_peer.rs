//! A long-lived client on zbus, which speaks with the harness as the scripted ones do.

use bus_load::{INTERFACE, PATH, Peer, PeerPlan, Tally, fds};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use zbus::export::futures_core::Stream;
use zbus::message::{Message, Type};
use zbus::{Connection, MessageStream, OwnedFd};

/// One call in so many has a descriptor along.
const FD_EVERY: u64 = 10;
const DRIVER: &str = "org.freedesktop.DBus";
const DRIVER_PATH: &str = "/org/freedesktop/DBus";

/// The peer, as the harness sees it.
pub struct ZbusPeer {
    plan: PeerPlan,
    commands: UnboundedSender<String>,
    lines: Receiver<String>,
}

impl ZbusPeer {
    /// Connects in a thread of its own.
    pub fn start(address: &str, plan: PeerPlan) -> ZbusPeer {
        let (commands, received) = unbounded_channel();
        let (say, lines) = channel();
        let (own, address) = (plan.clone(), address.to_owned());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            if let Err(error) = runtime.block_on(live(own, &address, received, say.clone())) {
                let _ = say.send(format!("disconnected {error}"));
            }
        });
        ZbusPeer {
            plan,
            commands,
            lines,
        }
    }
}

impl Peer for ZbusPeer {
    fn who(&self) -> (String, String) {
        (self.plan.id.clone(), self.plan.implementation.clone())
    }

    fn command(&mut self, command: &str) -> anyhow::Result<()> {
        Ok(self.commands.send(command.to_owned())?)
    }

    fn line(&mut self, timeout: Duration) -> anyhow::Result<Option<String>> {
        match self.lines.recv_timeout(timeout) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("its thread has ended"),
        }
    }
}

#[derive(Default)]
struct Books {
    running: bool,
    sent: BTreeMap<String, u64>,
    replies: BTreeMap<String, Tally>,
    got: BTreeMap<String, Tally>,
    outstanding: u32,
    fds_sent: u64,
    fds_received: u64,
    errors: Vec<String>,
}

type Shared = Arc<Mutex<Books>>;

async fn live(
    plan: PeerPlan,
    address: &str,
    mut commands: UnboundedReceiver<String>,
    say: Sender<String>,
) -> zbus::Result<()> {
    let bus = zbus::connection::Builder::address(address).build().await?;
    let mut stream = MessageStream::from(&bus);
    let books = Shared::default();
    for subscribed in &plan.subscribes {
        books
            .lock()
            .unwrap()
            .got
            .insert(subscribed.clone(), Tally::default());
        let rule = format!("type='signal',interface='{INTERFACE}',member='Tick',arg0='{subscribed}'");
        bus.call_method(Some(DRIVER), DRIVER_PATH, Some(DRIVER), "AddMatch", &rule)
            .await?;
    }
    bus.request_name(plan.name()).await?;
    for target in &plan.calls {
        tokio::spawn(call(bus.clone(), plan.clone(), target.clone(), books.clone()));
    }
    tokio::spawn(emit(bus.clone(), plan.clone(), books.clone()));
    let unique = bus.unique_name().map(ToString::to_string).unwrap_or_default();
    let _ = say.send(format!("ready {unique}"));

    // A sign of life from the bus: what came before it has come. Its serial, and what is said when it is there.
    let mut barrier = None;
    let mut progress = tokio::time::interval(Duration::from_millis(300));
    loop {
        tokio::select! {
            message = next(&mut stream) => {
                let Some(message) = message else {
                    return Err(zbus::Error::Failure("the bus closed the connection".to_owned()));
                };
                let message = message?;
                if let Some((serial, word)) = barrier
                    && message.header().reply_serial() == Some(serial)
                {
                    let _ = say.send(String::from(word));
                    barrier = None;
                }
                received(&bus, &message, &books).await?;
            }
            command = commands.recv() => match command.as_deref() {
                Some("go") => books.lock().unwrap().running = true,
                Some("stop") => {
                    books.lock().unwrap().running = false;
                    // Replies come through other tasks, so this loop waits for them where it does not hold them up.
                    let (bus, books, say) = (bus.clone(), books.clone(), say.clone());
                    tokio::spawn(async move {
                        while books.lock().unwrap().outstanding > 0 {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                        if bus.call_method(Some(DRIVER), DRIVER_PATH, Some(DRIVER), "GetId", &()).await.is_ok() {
                            let _ = say.send("stopped".to_owned());
                        }
                    });
                }
                Some("drain") => {
                    let builder = Message::method_call(DRIVER_PATH, "GetId");
                    let question = builder.destination(DRIVER).interface(DRIVER).build(&())?;
                    barrier = Some((question.primary_header().serial_num(), "drained"));
                    bus.send(&question).await?;
                }
                Some("report") => report(&books.lock().unwrap(), &say),
                Some(_) => {}
                None => return Ok(()),
            },
            _ = progress.tick() => {
                let books = books.lock().unwrap();
                let count = books.sent.values().sum::<u64>() + books.got.values().map(Tally::last).sum::<u64>();
                let _ = say.send(format!("progress {count}"));
            }
        }
    }
}

async fn next(stream: &mut MessageStream) -> Option<zbus::Result<Message>> {
    std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}

async fn received(bus: &Connection, message: &Message, books: &Shared) -> zbus::Result<()> {
    let header = message.header();
    if header
        .interface()
        .is_none_or(|interface| interface.as_str() != INTERFACE)
    {
        return Ok(());
    }
    let body = message.body();
    let has_fd = header.member().is_some_and(|member| member.as_str() == "EchoFd");
    let (stream, number): (String, u64) = if has_fd {
        let (stream, number, fd): (String, u64, OwnedFd) = body.deserialize()?;
        let content = fds::number_of(fd.into()).unwrap();
        let mut books = books.lock().unwrap();
        books.fds_received += 1;
        if content != number {
            books
                .errors
                .push(format!("call {number} carries the descriptor of call {content}"));
        }
        (stream, number)
    } else {
        body.deserialize()?
    };
    books
        .lock()
        .unwrap()
        .got
        .entry(stream.clone())
        .or_default()
        .record(number);
    if message.message_type() == Type::MethodCall {
        bus.reply(&header, &(stream, number)).await?;
    }
    Ok(())
}

async fn call(bus: Connection, plan: PeerPlan, target: String, books: Shared) {
    let stream = format!("{}>{target}", plan.id);
    let mut interval = tokio::time::interval(plan.interval);
    loop {
        interval.tick().await;
        let number = {
            let mut books = books.lock().unwrap();
            if !books.running {
                continue;
            }
            books.outstanding += 1;
            let sent = books.sent.entry(stream.clone()).or_default();
            *sent += 1;
            *sent
        };
        let to = (Some(target.as_str()), PATH, Some(INTERFACE));
        let reply = if number % FD_EVERY == 0 {
            books.lock().unwrap().fds_sent += 1;
            let fd = OwnedFd::from(fds::numbered(number).unwrap());
            bus.call_method(to.0, to.1, to.2, "EchoFd", &(&stream, number, fd))
                .await
        } else {
            bus.call_method(to.0, to.1, to.2, "Echo", &(&stream, number))
                .await
        };
        let echoed = reply.and_then(|reply| reply.body().deserialize::<(String, u64)>());
        let mut books = books.lock().unwrap();
        books.outstanding -= 1;
        match echoed {
            Ok((echoed, number)) if echoed == stream => {
                books.replies.entry(stream.clone()).or_default().record(number);
            }
            other => books.errors.push(format!("call {number} to {target}: {other:?}")),
        }
    }
}

async fn emit(bus: Connection, plan: PeerPlan, books: Shared) {
    let stream = plan.stream();
    let mut interval = tokio::time::interval(plan.interval);
    loop {
        interval.tick().await;
        let number = {
            let mut books = books.lock().unwrap();
            if !books.running {
                continue;
            }
            let sent = books.sent.entry(stream.clone()).or_default();
            *sent += 1;
            *sent
        };
        let emitted = bus
            .emit_signal(None::<&str>, PATH, INTERFACE, "Tick", &(&stream, number))
            .await;
        if let Err(error) = emitted {
            books
                .lock()
                .unwrap()
                .errors
                .push(format!("signal {number}: {error}"));
        }
    }
}

fn report(books: &Books, say: &Sender<String>) {
    let mut lines: Vec<String> = books
        .sent
        .iter()
        .map(|(stream, count)| format!("sent {stream} {count}"))
        .collect();
    lines.extend(
        books
            .replies
            .iter()
            .map(|(stream, tally)| format!("replies {stream} {}", tally.counts())),
    );
    lines.extend(
        books
            .got
            .iter()
            .map(|(stream, tally)| format!("got {stream} {}", tally.counts())),
    );
    lines.push(format!("fds {} {}", books.fds_sent, books.fds_received));
    lines.extend(books.errors.iter().map(|error| format!("error {error}")));
    lines.push("end".to_owned());
    lines.into_iter().for_each(|line| {
        let _ = say.send(line);
    });
}
