//! Random scripts. A failure prints the seed; `BUS_BROKER_SEED=n` plays that one alone.

use std::collections::BTreeMap;

use bus_wire::{Fd, MessageBuilder, MessageType};

use crate::bus::{Bus, OWNER, Who, check_with, config, one_way, policy};

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

const NAMES: [&str; 4] = ["a.a", "b.b", "c.c", "d.d"];
const RULES: [&str; 6] = [
    "type='signal'",
    "member='S'",
    "eavesdrop='true'",
    "sender='a.a'",
    "arg0='a.a'",
    "path_namespace='/org'",
];

/// The clients of one script.
#[derive(Default)]
struct Crowd {
    /// Those that said Hello and did not become monitors, with their unique names.
    active: Vec<(Who, String)>,
    others: Vec<Who>,
    /// Calls that were read and not answered: by whom, from whom, serial.
    unanswered: Vec<(Who, String, u32)>,
    /// The rest of a message whose first part was sent.
    half_sent: BTreeMap<Who, Vec<u8>>,
}

impl Crowd {
    /// Forgets clients that were disconnected.
    fn look_around(&mut self, bus: &Bus) {
        self.active.retain(|(who, _)| bus.is_open(*who));
        self.others.retain(|who| bus.is_open(*who));
        self.unanswered.retain(|(who, _, _)| bus.is_open(*who));
        self.half_sent.retain(|who, _| bus.is_open(*who));
    }
}

fn play(bus: &mut Bus, seed: u64) {
    let mut dice = Dice(seed);
    let mut crowd = Crowd::default();
    let mut named = 0;
    for _ in 0..150 {
        crowd.look_around(bus);
        let action = dice.below(20);
        if action == 0 || crowd.active.len() < 2 {
            let who = bus.authenticate();
            bus.driver(who, "Hello", |_| {});
            crowd.active.push((who, format!(":1.{named}")));
            named += 1;
            continue;
        }
        let (who, _) = crowd.active[dice.below(crowd.active.len())].clone();
        if let Some(rest) = crowd.half_sent.remove(&who) {
            bus.bytes(who, &rest, &[]);
            continue;
        }
        let (_, unique) = crowd.active[dice.below(crowd.active.len())].clone();
        let to = if dice.below(2) == 0 {
            unique
        } else {
            dice.pick(&NAMES).to_owned()
        };
        match action {
            1 => match dice.below(4) {
                0 => bus.close(who),
                1 => crowd.others.push(bus.accept()),
                2 => crowd.others.push(bus.authenticate()),
                _ => crowd
                    .others
                    .iter()
                    .copied()
                    .take(1)
                    .for_each(|other| bus.close(other)),
            },
            2 | 3 => bus.request_name(who, dice.pick(&NAMES), dice.below(8) as u32),
            4 => {
                let name = dice.pick(&NAMES);
                bus.driver(who, "ReleaseName", |w| {
                    w.str(name);
                });
            }
            5 | 6 => {
                let (member, rule) = (
                    dice.pick(&["AddMatch", "AddMatch", "RemoveMatch"]),
                    dice.pick(&RULES),
                );
                bus.driver(who, member, |w| {
                    w.str(rule);
                });
            }
            7 | 8 => _ = bus.signal(who, "S"),
            9 | 10 => _ = bus.call(who, &to, "M"),
            11 => _ = bus.send(who, one_way(&to, "N")),
            12 | 13 => {
                if !crowd.unanswered.is_empty() {
                    let (who, to, serial) = crowd.unanswered.swap_remove(dice.below(crowd.unanswered.len()));
                    if !crowd.half_sent.contains_key(&who)
                        && crowd.active.iter().any(|(active, _)| *active == who)
                    {
                        bus.reply(who, &to, serial);
                    }
                }
            }
            14 => {
                let fds: Vec<Fd> = (0..1 + dice.below(3)).map(|_| bus.descriptors.make()).collect();
                bus.send_with_fds(who, one_way(&to, "Take"), &fds);
            }
            15 => {
                let text = "long ".repeat(dice.below(1000));
                let signal = MessageBuilder::signal("/org", "a.b", "Long").body(|w| {
                    w.str(&text);
                });
                bus.send(who, signal);
            }
            16 => {
                let message = MessageBuilder::signal("/", "a.b", "Half")
                    .serial(1000u32)
                    .build()
                    .unwrap();
                let (first, rest) = message.split_at(1 + dice.below(message.len() - 1));
                bus.bytes(who, first, &[]);
                crowd.half_sent.insert(who, rest.to_vec());
            }
            17 if dice.below(4) == 0 => {
                bus.become_monitor(who, &[]);
                crowd.active.retain(|(active, _)| *active != who);
                crowd.others.push(who);
            }
            17 => bus.wait(dice.below(40_000) as u64),
            _ => {
                for (message, _) in bus.read_messages(who) {
                    if message.message_type() == MessageType::MethodCall
                        && let Some(sender) = message.sender()
                    {
                        crowd
                            .unanswered
                            .push((who, sender.to_owned(), message.serial().get()));
                    }
                }
            }
        }
    }
    for (who, _) in crowd.active {
        bus.read(who);
    }
}

#[test]
fn random_scripts() {
    let seeds = match std::env::var("BUS_BROKER_SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => 0..30,
    };
    for seed in seeds {
        let mut config = config();
        config.policy = policy(bus_daemon::config::Simple {
            eavesdrop_allowed: seed % 2 == 0,
            ..OWNER
        });
        config.limits.reply_timeout = (seed % 3 == 0).then_some(60_000);
        config.limits.max_outgoing_bytes = [1_000_000, 3_000][seed as usize % 5 / 4];
        let played = std::panic::catch_unwind(|| check_with(&config, |bus| play(bus, seed)));
        assert!(played.is_ok(), "BUS_BROKER_SEED={seed}");
    }
}
