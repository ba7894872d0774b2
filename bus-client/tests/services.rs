//! Services whose bus is gone and comes back: those that need each other, those that the bus starts, names that another took,
//! and what changed meanwhile.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub,
    reason = "a process test: nothing else waits for its clock"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bus_client::{BoxFuture, Connection, Event, Incoming, Interface, Missed, NameState, Reply, Rule, State};
use support::{Bus, COUNTER, Counter};

#[test]
fn two_services_that_need_each_other_are_both_back() {
    let Some(mut bus) = Bus::start() else { return };
    let names = ["com.example.A", "com.example.B"];
    let services: Vec<Connection> = names
        .iter()
        .map(|name| {
            let object = Arc::new(Counter::default());
            bus.builder()
                .name(name)
                .object("/counter", object)
                .connect_thread()
                .unwrap()
        })
        .collect();
    services[0].wait_for_names(&names).wait().unwrap();
    let call = |from: usize| {
        let to = names[1 - from];
        services[from].call::<u64>(to, "/counter", "com.example.Counter.Run", &7_u64)
    };
    assert_eq!(call(0).wait().unwrap() + call(1).wait().unwrap(), 14);
    bus.kill();
    // Each asks the other as soon as the bus is back: neither may be told that there is no such service.
    let asked: Vec<_> = (0..2)
        .map(|from| {
            let call = call(from);
            std::thread::spawn(move || call.wait())
        })
        .collect();
    std::thread::sleep(Duration::from_millis(100));
    bus.start_again();
    for asked in asked {
        assert_eq!(asked.join().unwrap().unwrap(), 7);
    }
}

/// Asks the other for all that it knows whenever the bus is back, and answers such a question only when it knows where it stands
/// itself: when it has asked the bus.
struct Resync {
    served: AtomicU64,
}

impl Interface for Resync {
    fn name(&self) -> &str {
        "com.example.Resync"
    }

    fn dispatch(self: Arc<Self>, call: Incoming) -> BoxFuture<Reply> {
        Box::pin(async move {
            let id = call.connection().call::<String>(
                "org.freedesktop.DBus",
                "/",
                "org.freedesktop.DBus.GetId",
                &(),
            );
            match id.await {
                Ok(id) => {
                    self.served.fetch_add(1, Ordering::SeqCst);
                    Reply::new(&id)
                }
                Err(error) => Reply::error("com.example.Error", &error.to_string()),
            }
        })
    }
}

#[test]
fn two_services_that_resync_from_each_other_are_both_back_each_time() {
    const ROUNDS: usize = 10;
    let Some(mut bus) = Bus::start() else { return };
    let names = ["com.example.A", "com.example.B"];
    let objects: Vec<_> = (0..2)
        .map(|_| {
            Arc::new(Resync {
                served: AtomicU64::new(0),
            })
        })
        .collect();
    let services: Vec<Connection> = (0..2)
        .map(|index| {
            let builder = bus.builder().name(names[index]);
            let builder = builder.object("/resync", objects[index].clone());
            builder.connect_thread().unwrap()
        })
        .collect();
    services[0].wait_for_names(&names).wait().unwrap();
    let (told, ids) = std::sync::mpsc::channel();
    let threads: Vec<_> = (0..2)
        .map(|index| {
            let (service, told) = (services[index].clone(), told.clone());
            let states = service.states();
            std::thread::spawn(move || {
                while let Some(state) = states.wait_next().unwrap() {
                    if state == State::Up {
                        service.wait_for_names(&[names[1 - index]]).wait().unwrap();
                        let call = service.call::<String>(
                            names[1 - index],
                            "/resync",
                            "com.example.Resync.All",
                            &(),
                        );
                        // Within the settle window, or the other is not back.
                        let answer = call.timeout(Duration::from_secs(4)).wait();
                        told.send((index, answer.map_err(|error| error.to_string())))
                            .unwrap();
                    }
                }
            })
        })
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..=ROUNDS {
        let answers: Vec<_> = (0..2)
            .map(|_| {
                ids.recv_timeout(Duration::from_secs(20))
                    .expect("nobody has stalled")
            })
            .collect();
        let of: std::collections::BTreeSet<_> = answers.iter().map(|(index, _)| *index).collect();
        assert_eq!(of.len(), 2, "each has asked once: {answers:?}");
        let answers: Vec<_> = answers
            .into_iter()
            .map(|(index, answer)| answer.unwrap_or_else(|error| panic!("{index} in round {round}: {error}")))
            .collect();
        assert_eq!(answers[0], answers[1], "both of the same bus");
        assert!(seen.insert(answers[0].clone()), "of a bus that is gone");
        if round < ROUNDS {
            bus.kill();
            bus.start_again();
        }
    }
    for object in &objects {
        assert_eq!(object.served.load(Ordering::SeqCst), ROUNDS as u64 + 1);
    }
    services.iter().for_each(Connection::close);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// A program that the bus starts, which notes that it was started and by which process, and serves.
fn activatable(bus: &Bus) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let (directory, program) = (bus.directory.path(), bus.directory.path().join("start"));
    let text = format!(
        "#!/bin/sh\necho $$ >> {}/started\nexec {} {} >> {0}/output 2>&1\n",
        directory.display(),
        support::example("service").display(),
        bus.address()
    );
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    bus.describe(COUNTER, &program);
    directory.join("started")
}

/// The processes of those that were started so far. When this is dropped they are ended.
struct Started(std::path::PathBuf);

impl Started {
    fn processes(&self) -> Vec<nix::unistd::Pid> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        text.lines()
            .map(|line| nix::unistd::Pid::from_raw(line.parse().unwrap()))
            .collect()
    }

    /// The last one; those before have ended.
    fn end(&self) {
        if let Some(process) = self.processes().last() {
            let _ = nix::sys::signal::kill(*process, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.end();
    }
}

/// Callers of an activatable service over kills of the bus, which the service outlives or not. How often it was started.
fn activate(outlives: bool) -> usize {
    const ROUNDS: usize = 3;
    let Some(mut bus) = Bus::start() else {
        return if outlives { 1 } else { ROUNDS + 1 };
    };
    let started = Started(activatable(&bus));
    let clients: Vec<Connection> = (0..4)
        .map(|_| {
            let settle = Duration::from_secs(2);
            bus.builder().settle(settle).connect_thread().unwrap()
        })
        .collect();
    let output = bus.directory.path().join("output");
    let call = |client: &Connection| {
        let output = output.clone();
        let add = client.call::<u64>(COUNTER, "/com/example/Counter", "com.example.Counter.Add", &1_u64);
        std::thread::spawn(move || {
            add.wait().unwrap_or_else(|error| {
                panic!("{error}: {}", std::fs::read_to_string(output).unwrap_or_default())
            })
        })
    };
    let ask = || {
        let calls: Vec<_> = clients.iter().map(call).collect();
        let mut sums: Vec<u64> = calls.into_iter().map(|call| call.join().unwrap()).collect();
        sums.sort_unstable();
        sums
    };
    assert_eq!(ask(), [1, 2, 3, 4]);
    for round in 1..=ROUNDS as u64 {
        bus.kill();
        if !outlives {
            started.end();
        }
        let calls: Vec<_> = clients.iter().map(call).collect();
        bus.start_again();
        let mut sums: Vec<u64> = calls.into_iter().map(|call| call.join().unwrap()).collect();
        sums.sort_unstable();
        let first = if outlives { 4 * round } else { 0 };
        assert_eq!(
            sums,
            (first + 1..first + 5).collect::<Vec<_>>(),
            "one service counts"
        );
    }
    started.processes().len()
}

#[test]
fn an_activatable_service_that_died_with_the_bus_is_started_once() {
    assert_eq!(activate(false), 4);
}

#[test]
fn an_activatable_service_that_comes_back_by_itself_is_not_started_again() {
    assert_eq!(activate(true), 1);
}

#[test]
fn a_name_that_another_has_taken_meanwhile_is_not_stolen_back() {
    let Some(mut bus) = Bus::start() else { return };
    let service = bus.builder().connect_thread().unwrap();
    let (name, state) = service.own_name(COUNTER).replace().wait().unwrap();
    assert_eq!(state, NameState::Owned);
    let states = service.states();
    bus.kill();
    // The service cannot find the bus before the other has the name, and lets it be replaced.
    bus.start_again_at("aside");
    let aside = bus.directory.path().join("aside");
    let other = Connection::address(&format!("unix:path={}", aside.display()));
    let other = other.connect_thread().unwrap();
    let (held, state) = other.own_name(COUNTER).allow_replacement().wait().unwrap();
    assert_eq!(state, NameState::Owned);
    std::fs::rename(&aside, bus.directory.path().join("bus")).unwrap();
    assert_eq!(name.wait_next().unwrap(), Some(NameState::Lost));
    while states.wait_next().unwrap() != Some(State::Down) {}
    while states.wait_next().unwrap() != Some(State::Up) {}
    let owner: String = service
        .call(
            "org.freedesktop.DBus",
            "/org/freedesktop/DBus",
            "org.freedesktop.DBus.GetNameOwner",
            &COUNTER,
        )
        .wait()
        .unwrap();
    assert_eq!(Some(&*owner), other.unique_name().as_deref());
    held.release();
    assert_eq!(name.as_str(), COUNTER);
}

#[test]
fn properties_that_change_without_a_bus_are_told_in_one_signal_when_it_is_back() {
    use bus_client::Value;
    use std::collections::BTreeMap;
    type Changed = (String, BTreeMap<String, Value>, Vec<String>);
    let Some(mut bus) = Bus::start() else { return };
    let service = bus.builder().connect_thread().unwrap();
    let objects = ["/a", "/b"].map(|path| {
        let counter = Arc::new(Counter::default());
        service.objects().add(path, counter).unwrap()
    });
    let client = bus.builder().connect_thread().unwrap();
    let properties = "org.freedesktop.DBus.Properties";
    let changes = client
        .messages(Rule::signal(properties, "PropertiesChanged"))
        .unwrap();
    let next = || loop {
        match changes.wait_next().unwrap().unwrap() {
            Event::Signal(signal) => {
                let body: Changed = signal.decode().unwrap();
                return (signal.path().unwrap().to_owned(), body);
            }
            Event::Missed(Missed::Outage { .. }) => {}
            Event::Missed(missed) => panic!("{missed:?}"),
        }
    };
    let id = client.call::<String>("org.freedesktop.DBus", "/", "org.freedesktop.DBus.GetId", &());
    id.wait().unwrap();
    // With a bus each change is a signal with its value.
    objects[0]
        .changed(&[("Angle", Value::from(7_u32))], &["Open"])
        .wait()
        .unwrap();
    let (path, (interface, values, names)) = next();
    assert_eq!(
        (&*path, &*interface, names),
        ("/a", COUNTER, vec!["Open".to_owned()])
    );
    assert_eq!(values["Angle"].to::<u32>().unwrap(), 7);
    let states = service.states();
    bus.kill();
    while states.wait_next().unwrap() != Some(State::Down) {}
    for angle in 0..1000_u32 {
        let name = ["Angle", "Colour", "Open"][angle as usize % 3];
        let object = &objects[usize::from(angle % 5 == 0)];
        object.changed(&[(name, Value::from(angle))], &[]).wait().unwrap();
    }
    // The service comes back after those who listen.
    bus.start_again_at("aside");
    let aside = bus.directory.path().join("aside");
    let listener = Connection::address(&format!("unix:path={}", aside.display()));
    let listener = listener.connect_thread().unwrap();
    let heard = listener
        .messages(Rule::signal(properties, "PropertiesChanged"))
        .unwrap();
    let id = listener.call::<String>("org.freedesktop.DBus", "/", "org.freedesktop.DBus.GetId", &());
    id.wait().unwrap();
    std::fs::rename(&aside, bus.directory.path().join("bus")).unwrap();
    while states.wait_next().unwrap() != Some(State::Up) {}
    objects[1].changed(&[], &["Last"]).wait().unwrap();
    let mut told = Vec::new();
    while told.len() < 3 {
        let Some(Event::Signal(signal)) = heard.wait_next().unwrap() else {
            continue;
        };
        let (_, values, names): Changed = signal.decode().unwrap();
        assert!(values.is_empty(), "values that are others by now");
        told.push((signal.path().unwrap().to_owned(), names.join(" ")));
    }
    let all = |path: &str| (path.to_owned(), "Angle Colour Open".to_owned());
    assert_eq!(told, [all("/a"), all("/b"), ("/b".to_owned(), "Last".to_owned())]);
}
