//! One peer with very many names or match rules: what that costs when the worker dies, and when the bus is upgraded; and
//! that no checkpoint stops the others, however many there are.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_wire::MessageType;
use nix::sys::signal::Signal;
use std::time::Duration;
use support::bystander::Bystander;
use support::process::strike;
use support::raw::{Raw, call};
use support::{Bus, generation, last_pause, recoveries, upgrade, wait_until};

const LIMITS: &str = "<limit name='max_match_rules_per_connection'>60000</limit>
    <limit name='max_names_per_connection'>60000</limit>";
/// Calls that are under way at a time.
const BATCH: u32 = 200;

#[derive(Debug, Clone, Copy)]
enum What {
    /// Rules of 1 kB.
    Rules,
    /// Names of 250 bytes.
    Names,
}

impl What {
    fn call(self, number: u32) -> Vec<u8> {
        match self {
            Self::Rules => {
                let keys =
                    format!("type='signal',interface='org.example.I',path='/org/example/{number}',arg0='");
                let value = "x".repeat(1_020 - keys.len());
                call("AddMatch", |body| {
                    body.str(&format!("{keys}{value}'"));
                })
            }
            Self::Names => {
                let name = format!("org.example.N{number}.");
                let rest = "x".repeat(250 - name.len());
                call("RequestName", |body| {
                    body.str(&format!("{name}{rest}")).u32(4);
                })
            }
        }
    }
}

/// A peer with these.
fn holder(bus: &Bus, what: What, numbers: std::ops::Range<u32>) -> Raw {
    let mut holder = Raw::ready(bus);
    for from in numbers.clone().step_by(BATCH as usize) {
        let batch = from..numbers.end.min(from + BATCH);
        let calls: Vec<u8> = batch.clone().flat_map(|number| what.call(number)).collect();
        holder.send(&calls);
        let mut answers = 0;
        while answers < batch.len() {
            match holder.message().unwrap().message_type() {
                MessageType::MethodReturn => answers += 1,
                MessageType::Signal => {}
                other @ (MessageType::MethodCall | MessageType::Error | MessageType::Unknown(_)) => {
                    panic!("{other:?}")
                }
            }
        }
    }
    holder
}

/// Pauses of so many deaths and upgrades, in milliseconds, the shortest first.
fn pauses(bus: &Bus, times: usize) -> [Vec<f64>; 2] {
    let mut control = bus.caller();
    let (mut deaths, mut upgrades) = (Vec::new(), Vec::new());
    for _ in 0..times {
        let before = recoveries(&mut control);
        assert!(strike(bus.worker().unwrap(), Signal::SIGKILL));
        wait_until("the bus has recovered", || recoveries(&mut control) > before);
        deaths.push(last_pause(&mut control) as f64 / 1000.0);
        let before = generation(&mut control);
        let binary = support::binary().to_str().unwrap();
        assert_eq!(upgrade(&mut control, binary).unwrap(), before + 1);
        upgrades.push(last_pause(&mut control) as f64 / 1000.0);
        // The first checkpoint after it, written in parts.
        std::thread::sleep(Duration::from_millis(500));
    }
    for all in [&mut deaths, &mut upgrades] {
        all.sort_by(f64::total_cmp);
    }
    [deaths, upgrades]
}

#[test]
fn many_names_and_rules_of_one_peer_outlive_the_worker_and_the_binary() {
    let bus = Bus::start_with(LIMITS);
    let mut rules = holder(&bus, What::Rules, 0..3_000);
    let mut names = holder(&bus, What::Names, 0..3_000);
    pauses(&bus, 1);
    let mut control = bus.caller();
    let listed = control.list("ListNames", None).unwrap();
    assert_eq!(
        listed
            .iter()
            .filter(|name| name.starts_with("org.example.N"))
            .count(),
        3_000
    );
    for number in [0, 1_499, 2_999] {
        // Each rule is there, once; each name is the peer's own.
        let rule = bus_wire::Message::parse(What::Rules.call(number).into()).unwrap();
        let rule = rule.body().read_str().unwrap().to_owned();
        for expected in [MessageType::MethodReturn, MessageType::Error] {
            rules.send(&call("RemoveMatch", |body| {
                body.str(&rule);
            }));
            assert_eq!(answer(&mut rules).message_type(), expected);
        }
        names.send(&What::Names.call(number));
        assert_eq!(
            answer(&mut names).body().read_u32().unwrap(),
            4,
            "already the owner"
        );
    }
}

fn answer(raw: &mut Raw) -> bus_wire::Message {
    loop {
        let message = raw.message().unwrap();
        if message.message_type() != MessageType::Signal {
            return message;
        }
    }
}

/// The bound on the pause of a death and of an upgrade with 50,000 names or rules, in milliseconds.
const BOUND: f64 = 100.0;

/// All is measured before anything is judged.
/// `cargo test --release -p bus-cli --test many_entries -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
fn measures_one_peer_with_50_000() {
    let mut beyond = Vec::new();
    for what in [What::Rules, What::Names] {
        let bus = Bus::start_with(LIMITS);
        let _holder = holder(&bus, what, 0..50_000);
        let [deaths, upgrades] = pauses(&bus, 7);
        for (cause, pauses) in [("deaths", deaths), ("upgrades", upgrades)] {
            let median = pauses[pauses.len() / 2];
            eprintln!("{what:?}: {cause}: median {median:.1} ms of {pauses:.1?}");
            if median >= BOUND {
                beyond.push(format!("{what:?}, {cause}: {median:.1} ms"));
            }
        }
    }
    assert!(cfg!(debug_assertions) || beyond.is_empty(), "{beyond:?}");
}

/// Others work while rules come and go, and checkpoints write what has changed.
#[test]
#[ignore = "measures"]
fn measures_checkpoints_with_200_000_rules() {
    let bus = Bus::start_with(LIMITS);
    let mut holders: Vec<Raw> = (0..4)
        .map(|peer| holder(&bus, What::Rules, peer * 50_000..peer * 50_000 + 49_000))
        .collect();
    std::thread::sleep(Duration::from_secs(2));
    let idle = Bystander::start(&bus, Duration::from_micros(500));
    std::thread::sleep(Duration::from_secs(5));
    eprintln!("nothing changes: {}", idle.finish());
    let bystander = Bystander::start(&bus, Duration::from_micros(500));
    for round in 0..5 {
        for (peer, of_peer) in (0..).zip(&mut holders) {
            for number in 0..50 {
                let number = peer * 50_000 + 49_000 + round * 50 + number;
                of_peer.send(&What::Rules.call(number));
                while of_peer.message().unwrap().message_type() != MessageType::MethodReturn {}
            }
        }
        // Enough events for several checkpoints.
        std::thread::sleep(Duration::from_secs(2));
    }
    let waits = bystander.finish();
    eprintln!("rules change: {waits}");
    if !cfg!(debug_assertions) {
        assert!(waits.quantile(0.999) < Duration::from_millis(10), "{waits}");
    }
}
