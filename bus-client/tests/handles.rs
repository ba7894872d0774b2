//! Calls, streams, names and objects on a bus that stays.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bus_client::{
    BoxFuture, Connection, Error, Event, Fate, FdIndex, Incoming, Interface, Listener, Missed, NameState,
    Reply, Rule,
};
use support::{Bus, COUNTER, Counter};

const DRIVER: &str = "org.freedesktop.DBus";

/// An object that does what its tests need.
struct Odd {
    cancelled: Arc<AtomicU64>,
}

impl Interface for Odd {
    fn name(&self) -> &str {
        "com.example.Odd"
    }

    fn dispatch(self: Arc<Self>, call: Incoming) -> BoxFuture<Reply> {
        Box::pin(async move {
            match call.member().unwrap_or_default() {
                "Panic" => panic!("on purpose"),
                // Calls whoever called it, and waits for the answer.
                "Back" => {
                    let back = call.connection().call_back::<u64>(
                        &call,
                        "/counter",
                        "com.example.Counter.Run",
                        &5_u64,
                    );
                    match back.await {
                        Ok(answer) => Reply::new(&answer),
                        Err(error) => Reply::error("com.example.Error", &error.to_string()),
                    }
                }
                // To wait on the driver's own thread is an error.
                "Wait" => {
                    let id = call
                        .connection()
                        .call::<String>(DRIVER, "/", "org.freedesktop.DBus.GetId", &());
                    Reply::new(&format!("{:?}", id.wait()))
                }
                "Hang" => {
                    call.cancelled().await;
                    self.cancelled.fetch_add(1, Ordering::SeqCst);
                    Reply::new(&())
                }
                "Who" => Reply::new(&call.credentials().await.unwrap().uid.unwrap()),
                "Open" => {
                    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
                    let text: String = call.decode().unwrap();
                    (&ours).write_all(text.as_bytes()).unwrap();
                    Reply::new(&FdIndex(0)).with_fds(vec![OwnedFd::from(theirs)])
                }
                _ => Reply::unknown_method(call.message()),
            }
        })
    }
}

fn odd(bus: &Bus) -> (Connection, Arc<AtomicU64>) {
    let cancelled = Arc::new(AtomicU64::new(0));
    let object = Arc::new(Odd {
        cancelled: cancelled.clone(),
    });
    let service = bus
        .builder()
        .name("com.example.Odd")
        .object("/odd", object)
        .connect_thread()
        .unwrap();
    service.wait_for_names(&["com.example.Odd"]).wait().unwrap();
    (service, cancelled)
}

#[test]
fn a_handler_may_panic_call_back_and_not_wait() {
    let Some(bus) = Bus::start() else { return };
    let (_service, _) = odd(&bus);
    let counter = Arc::new(Counter::default());
    let client = bus
        .builder()
        .object("/counter", counter.clone())
        .connect_thread()
        .unwrap();
    let call = |member: &str| {
        client.call_raw(
            "com.example.Odd",
            "/odd",
            &format!("com.example.Odd.{member}"),
            &(),
            Vec::new(),
        )
    };
    let error = call("Panic").wait().unwrap_err();
    assert_eq!(
        error.remote().unwrap().name(),
        "org.freedesktop.DBus.Error.Failed"
    );
    assert_eq!(call("Back").wait().unwrap().decode::<u64>().unwrap(), 5);
    assert_eq!(counter.runs(5), 1);
    let waited = call("Wait").wait().unwrap();
    assert!(
        waited.decode::<&str>().unwrap().contains("WouldDeadlock"),
        "{waited:?}"
    );
    assert_eq!(
        call("Who").wait().unwrap().decode::<u32>().unwrap(),
        nix::unistd::geteuid().as_raw()
    );
    let error = call("Nothing").wait().unwrap_err();
    assert_eq!(
        error.remote().unwrap().name(),
        "org.freedesktop.DBus.Error.UnknownMethod"
    );
}

#[test]
fn descriptors_go_both_ways() {
    let Some(bus) = Bus::start() else { return };
    let (_service, _) = odd(&bus);
    let client = bus.builder().connect_thread().unwrap();
    let reply = client
        .call_raw(
            "com.example.Odd",
            "/odd",
            "com.example.Odd.Open",
            &"hello",
            Vec::new(),
        )
        .wait()
        .unwrap();
    let index: FdIndex = reply.decode().unwrap();
    let fd = reply.fd(index).unwrap().try_clone_to_owned().unwrap();
    let mut text = [0; 5];
    std::os::unix::net::UnixStream::from(fd)
        .read_exact(&mut text)
        .unwrap();
    assert_eq!(&text, b"hello");
    // One of ours, to the bus itself, which has no use for it and must not choke on it.
    let fd: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let error = client.call_raw(
        DRIVER,
        "/org/freedesktop/DBus",
        "org.freedesktop.DBus.GetId",
        &FdIndex(0),
        vec![fd],
    );
    assert!(error.wait().unwrap_err().remote().is_some());
}

#[test]
fn a_call_whose_caller_is_gone_is_cancelled() {
    let Some(mut bus) = Bus::start() else { return };
    let (_service, cancelled) = odd(&bus);
    let client = bus.builder().connect_thread().unwrap();
    client
        .call::<()>("com.example.Odd", "/odd", "com.example.Odd.Hang", &())
        .detach()
        .unwrap();
    let hangs = client.call::<()>("com.example.Odd", "/odd", "com.example.Odd.Hang", &());
    let error = hangs.timeout(Duration::from_millis(200)).wait().unwrap_err();
    assert_eq!(error.fate(), Some(Fate::Unknown), "{error}");
    bus.kill();
    let mut rounds = 0;
    while cancelled.load(Ordering::SeqCst) < 2 {
        rounds += 1;
        assert!(rounds < 1000, "not cancelled");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn dropped_calls_leave_the_stream_of_bytes_whole() {
    let Some(bus) = Bus::start() else { return };
    let counter = Arc::new(Counter::default());
    let _service = bus
        .builder()
        .name(COUNTER)
        .object("/counter", counter.clone())
        .connect_thread()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = bus.builder().connect().await.unwrap();
        client.wait_for_names(&[COUNTER]).await.unwrap();
        let large = vec![7_u8; 3 << 20];
        for id in 0..30_u64 {
            // Dropped while a message of megabytes is half way through the socket.
            let call = client.call::<()>(COUNTER, "/counter", "com.example.Counter.Waste", &(id, &large));
            let _ = tokio::time::timeout(Duration::from_micros(id * 100), call.into_future()).await;
            let ran: u64 = client
                .call(COUNTER, "/counter", "com.example.Counter.Run", &id)
                .await
                .unwrap();
            assert_eq!((ran, counter.runs(id)), (id, 1));
        }
        // The driver is a task of this very thread.
        let error = client
            .call::<u64>(COUNTER, "/counter", "com.example.Counter.Run", &1_u64)
            .wait();
        assert!(matches!(error, Err(Error::WouldDeadlock)), "{error:?}");
    });
}

#[test]
fn a_slow_stream_is_told_how_many_it_missed_and_delays_nobody() {
    let Some(bus) = Bus::start() else { return };
    let service = bus.builder().connect_thread().unwrap();
    let client = bus.builder().connect_thread().unwrap();
    let slow = client
        .signals::<u64>(Rule::signal("com.example.Counter", "Tick"))
        .unwrap();
    let quick = client
        .signals::<u64>(Rule::signal("com.example.Counter", "Tock"))
        .unwrap();
    client
        .call::<String>(DRIVER, "/", "org.freedesktop.DBus.GetId", &())
        .wait()
        .unwrap();
    let count = 12_000_u64;
    for tick in 0..count {
        service
            .emit("/counter", "com.example.Counter.Tick", &tick)
            .detach()
            .unwrap();
    }
    service
        .emit("/counter", "com.example.Counter.Tock", &1_u64)
        .wait()
        .unwrap();
    let tock = quick.wait_next().unwrap();
    assert!(matches!(tock, Some(Event::Signal(1))), "{tock:?}");
    let (mut next, mut lagged) = (0, 0);
    while let Some(event) = slow.try_next() {
        match event {
            Event::Signal(tick) => {
                assert_eq!(tick, next);
                next += 1;
            }
            Event::Missed(Missed::Lagged { count }) => {
                lagged += count;
                next += count;
            }
            Event::Missed(missed) => panic!("{missed:?}"),
        }
    }
    assert_eq!(next, count);
    assert_eq!(lagged, count - 10_000);
}

#[test]
fn names_are_owned_queued_lost_and_released() {
    let Some(bus) = Bus::start() else { return };
    let [first, second] = [(), ()].map(|()| bus.builder().connect_thread().unwrap());
    let watch = second.watch_name(COUNTER).unwrap();
    assert_eq!(watch.wait_next().unwrap().unwrap().new, None);
    let (name, state) = first.own_name(COUNTER).allow_replacement().wait().unwrap();
    assert_eq!(state, NameState::Owned);
    assert_eq!(watch.wait_next().unwrap().unwrap().new, first.unique_name());
    let (refused, state) = second.own_name(COUNTER).wait().unwrap();
    assert_eq!(state, NameState::Taken);
    drop(refused);
    let (taken, state) = second.own_name(COUNTER).replace().wait().unwrap();
    assert_eq!(state, NameState::Owned);
    assert_eq!(name.wait_next().unwrap(), Some(NameState::Lost));
    assert_eq!(watch.wait_next().unwrap().unwrap().new, second.unique_name());
    let (queued, state) = first.own_name(COUNTER).queue().wait().unwrap();
    assert_eq!(state, NameState::Queued);
    taken.release();
    assert_eq!(queued.wait_next().unwrap(), Some(NameState::Owned));
    drop((name, queued));
    assert_eq!(watch.wait_next().unwrap().unwrap().new, first.unique_name());
    assert_eq!(watch.wait_next().unwrap().unwrap().new, None);
}

#[test]
fn peers_without_a_bus() {
    let directory = tempfile::tempdir().unwrap();
    let address = format!("unix:path={}", directory.path().join("peer").display());
    let listener = Listener::bind(&address).unwrap();
    let counter = Arc::new(Counter::default());
    let served = counter.clone();
    let serve = std::thread::spawn(move || {
        let builder = listener.accept().wait().unwrap().unwrap();
        let peer = builder.object("/counter", served).connect_thread().unwrap();
        peer.emit("/counter", "com.example.Counter.Tick", &9_u64)
            .wait()
            .unwrap();
        (listener, peer)
    });
    let client = Connection::peer(&address).connect_thread().unwrap();
    let ticks = client.signals::<u64>(Rule::signal("com.example.Counter", "Tick"));
    for id in 0..100_u64 {
        let ran: u64 = client
            .call("", "/counter", "com.example.Counter.Run", &id)
            .wait()
            .unwrap();
        assert_eq!((ran, counter.runs(id)), (id, 1));
    }
    let (_listener, peer) = serve.join().unwrap();
    drop(ticks);
    // The other goes: what is asked then is not sent, and the connection looks for the next one.
    peer.close();
    drop(peer);
    let states = client.states();
    while states.wait_next().unwrap() != Some(bus_client::State::Down) {}
    let call = client.call::<u64>("", "/counter", "com.example.Counter.Run", &1_u64);
    let error = call
        .while_down(bus_client::WhileDown::FailFast)
        .wait()
        .unwrap_err();
    assert_eq!(error.fate(), Some(Fate::NotSent), "{error}");
}

#[test]
fn peers_that_nobody_takes_are_hung_up_on_and_the_listener_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let address = format!("unix:path={}", directory.path().join("peer").display());
    let listener = Listener::bind(&address).unwrap();
    let path = directory.path().join("peer");
    let many: Vec<_> = (0..200)
        .map(|_| std::os::unix::net::UnixStream::connect(&path).unwrap())
        .collect();
    let hung_up = |mut socket: &std::os::unix::net::UnixStream| {
        socket.set_nonblocking(true).unwrap();
        matches!(socket.read(&mut [0]), Ok(0))
    };
    let mut rounds = 0;
    while many.iter().filter(|socket| hung_up(socket)).count() < 200 - 128 {
        rounds += 1;
        assert!(rounds < 1000, "not hung up on");
        std::thread::sleep(Duration::from_millis(10));
    }
    for _ in 0..128 {
        drop(listener.accept().wait().unwrap().expect("one that has waited"));
    }
    // One that comes when there is room again.
    let client = std::thread::spawn(move || Connection::peer(&address).connect_thread());
    let peer = listener.accept().wait().unwrap().expect("another one");
    let _peer = peer.connect_thread().unwrap();
    client.join().unwrap().unwrap();
}

#[test]
fn a_name_or_a_path_that_is_none_is_an_error_of_connecting() {
    let Some(bus) = Bus::start() else { return };
    let counter = Arc::new(Counter::default());
    for builder in [
        bus.builder().name("no name"),
        bus.builder().object("no/path", counter),
    ] {
        let error = builder.connect_thread().unwrap_err();
        assert!(matches!(error, Error::Name(_)), "{error:?}");
        assert_eq!(error.fate(), Some(Fate::NotSent));
    }
}

#[test]
fn where_there_is_no_bus_it_says_so_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let address = format!("unix:path={}", directory.path().join("none").display());
    let error = Connection::address(&address).connect_thread().unwrap_err();
    assert!(matches!(error, Error::Connect(_)), "{error:?}");
    assert!(matches!(
        Connection::address("nonsense").connect_thread(),
        Err(Error::Address(_))
    ));
    let error = Connection::address("carrier-pigeon:name=Hans")
        .connect_thread()
        .unwrap_err();
    assert!(error.to_string().contains("transport"), "{error}");
}

#[test]
fn of_a_list_of_addresses_the_first_that_can_be_connected_to() {
    let Some(bus) = Bus::start() else { return };
    let list = format!("unix:path=/nowhere/at/all;{}", bus.address());
    let client = Connection::address(&list).connect_thread().unwrap();
    assert!(client.unique_name().unwrap().starts_with(":1."));
}

/// The child of a fork has the memory of the connection, and no driver.
#[test]
fn a_forked_child_cannot_use_the_connection() {
    let Some(bus) = Bus::start() else { return };
    let client = bus.builder().connect_thread().unwrap();
    let call = client.call::<String>(DRIVER, "/", "org.freedesktop.DBus.GetId", &());
    #[allow(unsafe_code)]
    // SAFETY: the child does nothing but look at a process id and leave.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            let is_refused = matches!(call.detach(), Err(Error::Forked));
            // SAFETY: leaving at once is what is wanted.
            #[allow(unsafe_code)]
            unsafe {
                nix::libc::_exit(if is_refused { 0 } else { 1 })
            }
        }
        nix::unistd::ForkResult::Parent { child } => {
            let status = nix::sys::wait::waitpid(child, None).unwrap();
            assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
            call.wait().unwrap();
        }
    }
}

#[test]
fn raw_messages_and_a_filter() {
    let Some(bus) = Bus::start() else { return };
    let seen = Arc::new(AtomicU64::new(0));
    let count = seen.clone();
    let counter = Arc::new(Counter::default());
    let service = bus
        .builder()
        .object("/counter", counter.clone())
        .filter(move |message| {
            count.fetch_add(1, Ordering::SeqCst);
            message.member() == Some("Taken")
        })
        .connect_thread()
        .unwrap();
    let to = service.unique_name().unwrap();
    let client = bus.builder().connect_thread().unwrap();
    let raw = bus_wire::MessageBuilder::method_call("/counter", "Run")
        .destination(&to)
        .encode(&3_u64)
        .unwrap();
    let reply = client.send(raw, Vec::new()).unwrap().wait().unwrap().unwrap();
    assert_eq!(reply.decode::<u64>().unwrap(), 3);
    let taken = client
        .call::<()>(&to, "/counter", "Taken", &())
        .timeout(Duration::from_millis(300));
    assert_eq!(taken.wait().unwrap_err().fate(), Some(Fate::Unknown));
    assert_eq!(seen.load(Ordering::SeqCst), 2);
    assert!(client.send(vec![1, 2, 3], Vec::new()).is_err());
}

/// One call at a time; each asks somebody else in between.
struct Serial {
    running: AtomicU64,
    order: std::sync::Mutex<Vec<u64>>,
}

impl Interface for Serial {
    fn name(&self) -> &str {
        "com.example.Serial"
    }

    fn is_serial(&self) -> bool {
        true
    }

    fn dispatch(self: Arc<Self>, call: Incoming) -> BoxFuture<Reply> {
        Box::pin(async move {
            assert_eq!(self.running.fetch_add(1, Ordering::SeqCst), 0, "two at a time");
            let (to, id): (String, u64) = call.decode().unwrap();
            let answer = if to.is_empty() {
                // Others would come in between, if they could.
                let id = call
                    .connection()
                    .call::<String>(DRIVER, "/", "org.freedesktop.DBus.GetId", &());
                id.await.map(|_| 0)
            } else {
                let back = call
                    .connection()
                    .call::<u64>(&to, "/caller", "com.example.Caller.Ask", &id);
                back.await
            };
            self.order.lock().unwrap().push(id);
            self.running.fetch_sub(1, Ordering::SeqCst);
            match answer {
                Ok(answer) => Reply::new(&answer),
                Err(error) => Reply::error("com.example.Error", &error.to_string()),
            }
        })
    }
}

/// Asked by the serial interface, it calls that back, and says with which error it could not.
struct Caller;

impl Interface for Caller {
    fn name(&self) -> &str {
        "com.example.Caller"
    }

    fn dispatch(self: Arc<Self>, call: Incoming) -> BoxFuture<Reply> {
        Box::pin(async move {
            let back = call
                .connection()
                .call::<u64>("com.example.Serial", "/serial", "Run", &("", 99_u64));
            let error = back.await.unwrap_err();
            let is_refused = error.remote().unwrap().name() == bus_client::WOULD_DEADLOCK;
            Reply::new(&u64::from(is_refused))
        })
    }
}

fn serial(bus: &Bus) -> (Connection, Arc<Serial>, Connection) {
    let object = Arc::new(Serial {
        running: AtomicU64::new(0),
        order: std::sync::Mutex::default(),
    });
    let service = bus
        .builder()
        .name("com.example.Serial")
        .object("/serial", object.clone())
        .connect_thread()
        .unwrap();
    let client = bus
        .builder()
        .name("com.example.Caller")
        .object("/caller", Arc::new(Caller))
        .connect_thread()
        .unwrap();
    client
        .wait_for_names(&["com.example.Serial", "com.example.Caller"])
        .wait()
        .unwrap();
    (service, object, client)
}

#[test]
fn calls_of_a_serial_interface_run_one_after_the_other_in_order() {
    let Some(bus) = Bus::start() else { return };
    let (_service, object, client) = serial(&bus);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let calls = (0..2000_u64).map(|id| {
            let call = client.call::<u64>("com.example.Serial", "/serial", "Run", &("", id));
            call.into_future()
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap();
        }
    });
    assert_eq!(*object.order.lock().unwrap(), (0..2000).collect::<Vec<_>>());
}

#[test]
fn a_call_back_into_a_serial_interface_that_waits_is_refused_and_hangs_nobody() {
    let Some(bus) = Bus::start() else { return };
    let (_service, object, client) = serial(&bus);
    let own = client.unique_name().unwrap();
    // By its unique name, which says who it is, and by a name whose owner has to be asked for.
    for (id, name) in [(1_u64, &*own), (2, "com.example.Caller")] {
        let call = client.call::<u64>("com.example.Serial", "/serial", "Run", &(name, id));
        assert_eq!(call.wait().unwrap(), 1, "{name}");
    }
    // Whoever is not waited for has its turn.
    let other = bus.builder().connect_thread().unwrap();
    let call = other.call::<u64>("com.example.Serial", "/serial", "Run", &("", 3_u64));
    assert_eq!(call.wait().unwrap(), 0);
    assert_eq!(*object.order.lock().unwrap(), [1, 2, 3]);
}
