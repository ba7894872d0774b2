//! Somebody innocent: a client that calls a partner all the time, counts every call, and notes how long each took.

use super::Bus;
use super::raw::Raw;
use bus_load::clock;
use bus_wire::{MessageBuilder, MessageType};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const PATH: &str = "/org/busdaemon/Bystander";

/// Two connections with a thread each: one calls, the other answers.
pub struct Bystander {
    is_over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    caller: JoinHandle<Waits>,
    partner: JoinHandle<u64>,
}

impl Bystander {
    /// Begins to call, with this pause between an answer and the next call.
    pub fn start(bus: &Bus, pause: Duration) -> Bystander {
        let (mut partner, mut caller) = (Raw::ready(bus), Raw::ready(bus));
        let (is_over, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let name = partner.unique.clone();
        let (over, count) = (is_over.clone(), answered.clone());
        Bystander {
            is_over,
            answered,
            caller: std::thread::spawn(move || {
                let mut waits = Waits::default();
                for number in 1u32.. {
                    let last = over.load(Ordering::Relaxed);
                    waits.0.push(ping(
                        &mut caller,
                        &name,
                        number,
                        if last { "Last" } else { "Echo" },
                    ));
                    count.fetch_add(1, Ordering::Relaxed);
                    if last {
                        break;
                    }
                    std::thread::sleep(pause);
                }
                waits.0.sort_unstable();
                waits
            }),
            partner: std::thread::spawn(move || answer_all(&mut partner)),
        }
    }

    /// Calls answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Calls no more. Every call was answered, once and with its own number.
    pub fn finish(self) -> Waits {
        self.is_over.store(true, Ordering::Relaxed);
        let waits = self.caller.join().expect("the bystander's calls are answered");
        let heard = self.partner.join().expect("the partner hears every call");
        assert_eq!(heard, waits.0.len() as u64);
        waits
    }
}

fn ping(caller: &mut Raw, partner: &str, number: u32, member: &str) -> Duration {
    let call = MessageBuilder::method_call(PATH, member).destination(partner);
    let call = call.serial(number).body(|body| {
        body.u32(number);
    });
    let begun = clock::now();
    caller.send(&call.build().unwrap());
    loop {
        let message = caller.message().expect("the bystander was disconnected");
        let Some(serial) = message.reply_serial() else {
            continue;
        };
        assert_eq!(serial.get(), number, "a reply that nobody waits for");
        assert_eq!(
            message.message_type(),
            MessageType::MethodReturn,
            "{:?}",
            message.error_name()
        );
        assert_eq!(message.body().read_u32(), Ok(number));
        return clock::now() - begun;
    }
}

fn answer_all(partner: &mut Raw) -> u64 {
    let mut heard = 0;
    loop {
        let message = partner.message().expect("the partner was disconnected");
        if message.message_type() != MessageType::MethodCall {
            continue;
        }
        heard += 1;
        assert_eq!(
            message.body().read_u32(),
            Ok(heard),
            "a call was lost or came twice"
        );
        let reply = MessageBuilder::method_return(message.serial().get());
        let reply = reply
            .destination(message.sender().unwrap())
            .serial(heard)
            .body(|body| {
                body.u32(heard);
            });
        partner.send(&reply.build().unwrap());
        if message.member() == Some("Last") {
            return u64::from(heard);
        }
    }
}

/// How long the calls took, in order of length.
#[derive(Debug, Default)]
pub struct Waits(Vec<Duration>);

impl Waits {
    /// Of so many.
    pub fn of(mut waits: Vec<Duration>) -> Waits {
        waits.sort_unstable();
        Waits(waits)
    }

    /// Of several who waited.
    pub fn of_all(all: Vec<Waits>) -> Waits {
        Waits::of(all.into_iter().flat_map(|waits| waits.0).collect())
    }

    /// The time within which `share` of the calls were answered, from 0 to 1.
    pub fn quantile(&self, share: f64) -> Duration {
        let last = self.0.len() - 1;
        self.0[(last as f64 * share).round() as usize]
    }

    pub fn longest(&self) -> Duration {
        self.quantile(1.0)
    }
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [half, most, nearly, longest] = [0.5, 0.99, 0.999, 1.0].map(|share| self.quantile(share));
        let count = self.0.len();
        write!(
            f,
            "{count} calls, p50 {half:.2?}, p99 {most:.2?}, p99.9 {nearly:.2?}, longest {longest:.2?}"
        )
    }
}
