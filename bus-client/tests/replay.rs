//! What a client asks of a bus that is there again: in which order, how much at a time, and what a handler may decide about it.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub,
    reason = "a process test: nothing else waits for its clock"
)]

#[path = "support/scripted.rs"]
mod scripted;

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bus_client::{
    BoxFuture, Connection, Decision, Error, Event, Fate, Incoming, Interface, Link, Missed, Reply, Rule,
    State,
};
use bus_wire::{Message, MessageBuilder, MessageType};
use scripted::{authenticate, next_message};

const DRIVER: &str = "org.freedesktop.DBus";

/// What the client says over one link.
struct Heard {
    socket: UnixStream,
    messages: Receiver<Message>,
}

/// A bus whose test says what it answers.
struct Bus {
    directory: tempfile::TempDir,
    links: Receiver<Heard>,
}

impl Bus {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("bus")).unwrap();
        let (told, links) = channel();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let told: Sender<Heard> = told.clone();
                std::thread::spawn(move || hear(socket, &told));
            }
        });
        Self { directory, links }
    }

    fn builder(&self) -> bus_client::Builder {
        Connection::address(&format!(
            "unix:path={}",
            self.directory.path().join("bus").display()
        ))
    }

    fn link(&self) -> Heard {
        self.links.recv_timeout(Duration::from_secs(20)).expect("a link")
    }
}

fn hear(mut socket: UnixStream, told: &Sender<Heard>) {
    let Some(mut held) = authenticate(&mut socket) else {
        return;
    };
    let (say, messages) = channel();
    let heard = Heard {
        socket: socket.try_clone().unwrap(),
        messages,
    };
    if told.send(heard).is_err() {
        return;
    }
    while let Some(message) = next_message(&mut socket, &mut held) {
        if say.send(message).is_err() {
            return;
        }
    }
}

impl Heard {
    /// The bus goes, as far as this client sees it.
    fn hang_up(self) {
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
    }

    fn next(&self) -> Message {
        self.messages
            .recv_timeout(Duration::from_secs(20))
            .expect("a message")
    }

    fn next_within(&self, time: Duration) -> Option<Message> {
        self.messages.recv_timeout(time).ok()
    }

    fn say(&mut self, builder: MessageBuilder<'_>) {
        let bytes = builder.sender(DRIVER).serial(77_u32).build().unwrap();
        self.socket.write_all(&bytes).unwrap();
    }

    /// As a bus does that has all that is asked for.
    fn answer(&mut self, to: &Message) {
        let member = to.member().unwrap_or_default().to_owned();
        let reply = MessageBuilder::method_return(to.serial()).body(|body| match &*member {
            "Hello" => {
                body.str(":1.7");
            }
            "RequestName" => {
                body.u32(1);
            }
            "GetNameOwner" => {
                body.str(":1.9");
            }
            "AddMatch" => {}
            _ => {
                body.str("answer");
            }
        });
        self.say(reply);
    }

    /// Answers until this many calls of that name were answered.
    fn answer_all(&mut self, members: &[&str]) -> Vec<String> {
        let mut seen = Vec::new();
        for _ in members {
            let message = self.next();
            seen.push(message.member().unwrap().to_owned());
            self.answer(&message);
        }
        seen
    }
}

struct Object;

impl Interface for Object {
    fn name(&self) -> &str {
        "com.example.Object"
    }

    fn dispatch(self: Arc<Self>, _: Incoming) -> BoxFuture<Reply> {
        Box::pin(std::future::ready(Reply::new(&7_u32)))
    }
}

/// A connection with all that is replayed, made while a thread lets it in.
fn connected(bus: &Bus, builder: bus_client::Builder) -> (Connection, Heard) {
    let connecting = std::thread::spawn(move || builder.connect_thread());
    let mut link = bus.link();
    let hello = link.next();
    link.answer(&hello);
    (connecting.join().unwrap().unwrap(), link)
}

#[test]
fn the_replay_is_hello_rules_names_owners_and_then_what_waits() {
    let bus = Bus::new();
    let backs = Arc::new(Mutex::new(Vec::new()));
    let told = backs.clone();
    let builder = bus
        .builder()
        .object("/object", Arc::new(Object))
        .on_link(move |link| {
            if let Link::Back { same_bus, failed } = link {
                told.lock().unwrap().push((same_bus, failed.to_vec()));
            }
            Decision::Replay
        });
    let (client, mut link) = connected(&bus, builder);
    // In another order than that of the replay.
    let _watch = client.watch_name("com.example.Watched").unwrap();
    let asked = client.own_name("com.example.Own").replace().start().unwrap();
    let streams = ["A", "B"].map(|member| client.messages(Rule::signal("com.example.I", member)).unwrap());
    let seen = link.answer_all(&["AddMatch", "GetNameOwner", "RequestName", "AddMatch", "AddMatch"]);
    assert_eq!(
        seen,
        ["AddMatch", "GetNameOwner", "RequestName", "AddMatch", "AddMatch"]
    );
    let waits = |id: u64| client.call::<String>("com.example.Watched", "/", "com.example.I.Call", &id);
    link.hang_up();
    while client.state() == State::Up {
        std::thread::sleep(Duration::from_millis(1));
    }
    let calls: Vec<_> = (0..3)
        .map(|id| {
            let call = waits(id);
            let call = std::thread::spawn(move || call.wait());
            std::thread::sleep(Duration::from_millis(30));
            call
        })
        .collect();

    let mut link = bus.link();
    let hello = link.next();
    assert_eq!(hello.member(), Some("Hello"));
    assert!(
        link.next_within(Duration::from_millis(100)).is_none(),
        "nothing before the bus has answered Hello"
    );
    link.answer(&hello);
    // All of it comes before any of it was answered.
    let questions: Vec<Message> = (0..5).map(|_| link.next()).collect();
    let members: Vec<_> = questions
        .iter()
        .map(|message| message.member().unwrap())
        .collect();
    assert_eq!(
        members,
        ["AddMatch", "AddMatch", "AddMatch", "RequestName", "GetNameOwner"]
    );
    let (_, flags): (String, u32) = questions[3].decode().unwrap();
    assert_eq!(
        flags, 4,
        "DO_NOT_QUEUE alone: in replay a name is not taken from others"
    );
    // Calls are answered from now on.
    let call = MessageBuilder::method_call("/object", "Get").interface("com.example.Object");
    link.say(call);
    let reply = link.next();
    assert_eq!(
        (reply.message_type(), reply.reply_serial().map(|s| s.get())),
        (MessageType::MethodReturn, Some(77))
    );
    assert!(
        link.next_within(Duration::from_millis(100)).is_none(),
        "what waits goes out last"
    );
    assert_eq!(client.state(), State::Down);
    // The bus does not take one of the rules: no reason to leave.
    let refused: String = questions[2].decode().unwrap();
    let error = MessageBuilder::error("com.example.No", questions[2].serial());
    link.say(error.body(|body| {
        body.str("no");
    }));
    for question in questions
        .iter()
        .filter(|question| question.serial() != questions[2].serial())
    {
        link.answer(question);
    }
    for id in 0..3_u64 {
        let call = link.next();
        assert_eq!(call.decode::<u64>().unwrap(), id, "in their order");
        let reply = MessageBuilder::method_return(call.serial()).body(|body| {
            body.str("answer");
        });
        let bytes = reply.sender(":1.9").serial(78_u32).build().unwrap();
        link.socket.write_all(&bytes).unwrap();
    }
    for call in calls {
        assert_eq!(call.join().unwrap().unwrap(), "answer");
    }
    let backs = backs.lock().unwrap();
    assert_eq!(backs.len(), 1);
    assert!(backs[0].0, "the same GUID is the same bus");
    let failed: Vec<_> = backs[0]
        .1
        .iter()
        .map(|refusal| (&*refusal.what, &*refusal.name))
        .collect();
    assert_eq!(failed, [(&*refused, "com.example.No")]);
    let notes: Vec<_> = streams
        .iter()
        .map(|stream| stream.wait_next().unwrap().unwrap())
        .collect();
    let is_refused = |event: &Event<_>| matches!(event, Event::Missed(Missed::Refused(_)));
    assert_eq!(
        notes.iter().filter(|event| is_refused(event)).count(),
        1,
        "{notes:?}"
    );
    assert_eq!(asked.as_str(), "com.example.Own");
    assert_eq!(client.state(), State::Up);
}

#[test]
fn no_more_than_64_questions_are_open_at_a_time() {
    const RULES: usize = 400;
    let bus = Bus::new();
    let (client, mut link) = connected(&bus, bus.builder());
    let streams: Vec<_> = (0..RULES)
        .map(|index| {
            client
                .messages(Rule::signal("com.example.I", &format!("M{index}")))
                .unwrap()
        })
        .collect();
    link.answer_all(&["AddMatch"; RULES]);
    link.hang_up();
    let mut link = bus.link();
    let hello = link.next();
    link.answer(&hello);
    let (mut open, mut asked) = (Vec::new(), 0);
    while asked < RULES {
        while let Some(question) = link.next_within(Duration::from_millis(50)) {
            assert_eq!(question.member(), Some("AddMatch"));
            open.push(question);
            asked += 1;
        }
        // The stock bus of a system refuses the 129th.
        assert_eq!(open.len(), 64.min(RULES - (asked - open.len())));
        for question in open.drain(..) {
            link.answer(&question);
        }
    }
    for stream in streams {
        let missed = stream.wait_next().unwrap();
        assert!(
            matches!(missed, Some(Event::Missed(Missed::Outage { same_bus: true }))),
            "{missed:?}"
        );
    }
}

/// A connection whose handler decides so when it is lost; after it was.
fn lost(bus: &Bus, decision: Decision) -> (Connection, bus_client::Signals, Instant) {
    let builder = bus.builder().on_link(move |link| match link {
        Link::Lost(_) => decision,
        Link::Retry(..) | Link::Back { .. } | _ => Decision::Replay,
    });
    let (client, mut link) = connected(bus, builder);
    let stream = client.messages(Rule::signal("com.example.I", "A")).unwrap();
    link.answer_all(&["AddMatch"]);
    link.hang_up();
    while client.state() == State::Up {
        std::thread::sleep(Duration::from_millis(1));
    }
    (client, stream, Instant::now())
}

#[test]
fn a_handler_may_decide_to_come_back_bare() {
    let bus = Bus::new();
    let (client, stream, _) = lost(&bus, Decision::Bare);
    let mut link = bus.link();
    let hello = link.next();
    link.answer(&hello);
    assert!(
        link.next_within(Duration::from_millis(300)).is_none(),
        "nothing is replayed"
    );
    assert_eq!(client.state(), State::Up);
    assert!(
        stream.try_next().is_none(),
        "silent until the next link that replays"
    );
    client.reconnect().unwrap();
    let mut link = bus.link();
    let hello = link.next();
    link.answer(&hello);
    // This loss was decided about in the same way: bare again.
    assert!(link.next_within(Duration::from_millis(100)).is_none());
}

#[test]
fn a_handler_may_decide_to_wait() {
    let bus = Bus::new();
    let (client, stream, lost) = lost(&bus, Decision::Wait(Duration::from_millis(700)));
    let mut link = bus.link();
    assert!(
        lost.elapsed() > Duration::from_millis(650),
        "{:?}",
        lost.elapsed()
    );
    link.answer_all(&["Hello", "AddMatch"]);
    let missed = stream.wait_next().unwrap();
    assert!(
        matches!(missed, Some(Event::Missed(Missed::Outage { .. }))),
        "{missed:?}"
    );
    // Told of a moment later.
    let soon = Instant::now() + Duration::from_secs(10);
    while client.state() != State::Up && Instant::now() < soon {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(client.state(), State::Up);
}

#[test]
fn a_handler_may_decide_to_give_up() {
    let bus = Bus::new();
    let (client, stream, _) = lost(&bus, Decision::GiveUp);
    assert!(stream.wait_next().unwrap().is_none(), "it has ended");
    assert_eq!(client.state(), State::Closed);
    let error = client.call::<()>(DRIVER, "/", "a.b.C", &()).wait().unwrap_err();
    assert!(matches!(error.fate(), Some(Fate::NotSent)), "{error}");
    assert!(!matches!(error, Error::Remote(_)));
    assert!(
        bus.links.recv_timeout(Duration::from_millis(300)).is_err(),
        "nobody comes back"
    );
}
