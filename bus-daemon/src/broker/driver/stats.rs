//! `org.freedesktop.DBus.Debug.Stats`: how full the bus is.

use bus_wire::BodyWriter;

use super::{Call, Fault, Named, named};
use crate::broker::{Broker, Peer, System, expects_reply};

/// Numbers of one kind for the whole bus: a key each, as in the reference implementation.
pub(super) fn bus(broker: &mut Broker, call: Call<'_>, system: &mut dyn System) -> Result<(), Fault> {
    let stats = broker.stats();
    let memory = system.journal_memory().unwrap_or_default();
    let bytes = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let peaks = broker.peers().map(|peer| &peer.peaks);
    let (peak_rules, peak_names) = peaks.fold((0, 0), |(rules, names), peaks| {
        (peaks.rules.max(rules), peaks.names.max(names))
    });
    // Unique names count as names.
    let numbers = [
        ("Serial", broker.driver_serial()),
        // There is no pool that all lists take their memory from.
        ("ListMemPoolUsedBytes", 0),
        ("ListMemPoolCachedBytes", 0),
        ("ListMemPoolAllocatedBytes", 0),
        ("ActiveConnections", stats.active),
        ("IncompleteConnections", stats.incomplete),
        ("MatchRules", stats.rules),
        ("PeakMatchRules", stats.peak_rules),
        ("PeakMatchRulesPerConnection", peak_rules),
        ("BusNames", stats.names),
        ("PeakBusNames", stats.peak_names),
        ("PeakBusNamesPerConnection", peak_names + 1),
        ("org.busdaemon.JournalLogBytes", bytes(memory.log)),
        ("org.busdaemon.JournalExtentBytes", bytes(memory.extents)),
        ("org.busdaemon.JournalCheckpointBytes", bytes(memory.checkpoints)),
        ("org.busdaemon.StoreBytes", bytes(memory.store)),
    ];
    let held = broker.holdings();
    let large_numbers = [
        ("org.busdaemon.MemoryCap", memory.cap),
        ("org.busdaemon.MemoryHeld", memory.used + broker.held_outside()),
        ("org.busdaemon.QueuedBytes", held.queued),
        ("org.busdaemon.InputBytes", held.input),
        ("org.busdaemon.StateBytes", held.state),
        ("org.busdaemon.EnvironmentBytes", held.environment),
        ("org.busdaemon.RefusedForMemory", held.refused),
        ("org.busdaemon.HeldBackForMemory", held.paced),
        ("org.busdaemon.DismissedForMemory", held.dismissed),
    ];
    broker.send_driver_reply(call.caller, call.message, |w| {
        w.array("{sv}", |w| {
            write_numbers(&numbers, w);
            for (key, number) in large_numbers {
                w.dict_entry(|w| {
                    w.str(key).variant("t", |w| {
                        w.u64(number);
                    });
                });
            }
        });
    });
    Ok(())
}

pub(super) fn peer(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let name = call.message.body().read_str()?;
    let peer = match named(broker, name, "statistics")? {
        Named::Peer(peer) => peer,
        Named::Driver => {
            let text = format!("GetConnectionStats is not meaningful for the message bus \"{name}\" itself");
            return Err(Fault::invalid_args(text));
        }
    };
    let unique = peer.unique_name().to_owned();
    let numbers = numbers_of(broker, peer);
    broker.send_driver_reply(call.caller, call.message, |w| {
        w.array("{sv}", |w| {
            let (bookkeeping, traffic) = &numbers;
            write_numbers(bookkeeping, w);
            w.dict_entry(|w| {
                w.str("UniqueName").variant("s", |w| {
                    w.str(&unique);
                });
            });
            write_numbers(traffic, w);
        });
    });
    Ok(())
}

type Number = (&'static str, u32);

/// What comes before the key `UniqueName`, and what comes after it.
fn numbers_of(broker: &Broker, peer: &Peer) -> ([Number; 5], [Number; 10]) {
    let incoming = count(peer.framer.partial_bytes());
    let outgoing = u32::try_from(peer.out.len()).unwrap_or(u32::MAX);
    let peaks = &peer.peaks;
    let bookkeeping = [
        ("Serial", broker.driver_serial()),
        ("MatchRules", count(broker.rules_of(peer.id).count())),
        ("PeakMatchRules", peaks.rules),
        ("BusNames", count(broker.names().held_count(peer.id) + 1)),
        ("PeakBusNames", peaks.names + 1),
    ];
    let traffic = [
        // A message is dealt with as soon as it is complete: what waits is the one that is not.
        ("IncomingMessages", 0),
        ("IncomingBytes", incoming),
        ("IncomingFDs", count(peer.framer.pending_fds())),
        ("PeakIncomingBytes", incoming),
        ("PeakIncomingFDs", count(peer.framer.pending_fds())),
        // A queue is one stream of bytes, in which messages are not told apart.
        ("OutgoingMessages", u32::from(!peer.out.is_empty())),
        ("OutgoingBytes", outgoing),
        ("OutgoingFDs", count(peer.out.queued_fds())),
        (
            "PeakOutgoingBytes",
            u32::try_from(peaks.outgoing_bytes).unwrap_or(u32::MAX),
        ),
        ("PeakOutgoingFDs", peaks.outgoing_fds),
    ];
    (bookkeeping, traffic)
}

/// Bytes of the texts of all rules that one answer may have: it is put together at once, while others wait.
const MOST_TEXT: usize = 2 << 20;

/// The rules of every peer, as their canonical text.
///
/// # Errors
/// `LimitsExceeded`: they are longer than 2 MiB in all.
pub(super) fn match_rules(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    if !expects_reply(call.message) {
        return Ok(());
    }
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    let mut length = 0;
    for peer in broker.active_peers() {
        let mut texts = Vec::new();
        for rule in broker.rules_of(peer.id) {
            let text = rule.to_string();
            length += text.len();
            if length > MOST_TEXT {
                return Err(Fault::limits_exceeded(format!(
                    "The match rules of all connections are more than {MOST_TEXT} bytes"
                )));
            }
            texts.push(text);
        }
        all.push((peer.unique_name().to_owned(), texts));
    }
    broker.send_driver_reply(call.caller, call.message, |w| {
        w.array("{sas}", |w| {
            for (name, rules) in &all {
                w.dict_entry(|w| {
                    w.str(name).str_array(rules.iter().map(String::as_str));
                });
            }
        });
    });
    Ok(())
}

fn write_numbers(numbers: &[(&str, u32)], w: &mut BodyWriter) {
    for (key, number) in numbers {
        w.dict_entry(|w| {
            w.str(key).variant("u", |w| {
                w.u32(*number);
            });
        });
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
