//! The roles of the raw connections, and how many of each a plan asks for.

use super::spec::{Emission, Spec, Tag, Target};
use crate::plan::LoadPlan;
use crate::{INTERFACE, PATH};
use std::time::Duration;

/// The name that several connections queue for.
pub(crate) const QUEUED_NAME: &str = "org.busdaemon.Load.Queue";
/// The stream of signals that piles up for the stopped reader.
pub(crate) const FLOOD: &str = "flood";
/// Bytes in each signal of it: a second's worth is more than the sockets between can hold.
const FLOOD_PAYLOAD: usize = 8 << 10;

/// The well-known name of the raw connection `id`.
pub(crate) fn name_of(id: &str) -> String {
    format!("org.busdaemon.Load.{id}")
}

fn target(id: &str, interval: Duration, window: u32) -> Target {
    Target {
        destination: name_of(id),
        interval,
        window,
        ..Target::default()
    }
}

fn named(id: String) -> Spec {
    Spec {
        names: vec![name_of(&id)],
        id,
        ..Spec::default()
    }
}

/// All connections of a plan that are open from start to end, and the first churners.
pub(crate) fn specs(plan: &LoadPlan) -> Vec<Spec> {
    let mut specs = Vec::new();
    pairs(plan, &mut specs);
    broadcasts(plan, &mut specs);
    for index in 0..plan.fd_pairs {
        specs.push(named(format!("fd{index}b")));
        let calls = vec![Target {
            fd_every: 1,
            ..target(&format!("fd{index}b"), plan.interval, 4)
        }];
        specs.push(Spec {
            calls,
            ..named(format!("fd{index}a"))
        });
    }
    for index in 0..plan.queued_owners {
        let names = vec![QUEUED_NAME.to_owned()];
        specs.push(Spec {
            id: format!("queue{index}"),
            names,
            tag: Tag::Queued,
            ..Spec::default()
        });
    }
    for index in 0..plan.churners {
        specs.push(churner(plan, index, 0));
    }

    specs.push(named("large-receiver".to_owned()));
    let large = Target {
        payload: plan.large_message,
        on_command: true,
        ..target("large-receiver", Duration::ZERO, 1)
    };
    specs.push(Spec {
        calls: vec![large],
        tag: Tag::Large,
        ..named("large-sender".to_owned())
    });

    let slow = named("slow".to_owned());
    specs.push(Spec {
        subscribes: vec![FLOOD.to_owned()],
        tag: Tag::StoppedReader,
        ..slow
    });
    let flood = Emission {
        stream: FLOOD.to_owned(),
        interval: plan.interval / 4,
        destination: Some(name_of("slow")),
        payload: FLOOD_PAYLOAD,
        fd_every: plan.fd_every,
    };
    specs.push(Spec {
        emits: Some(flood),
        tag: Tag::Flooder,
        ..named("flooder".to_owned())
    });

    specs.push(Spec {
        tag: Tag::Keeper,
        ..named("keeper".to_owned())
    });
    specs.push(Spec {
        calls: vec![target("keeper", plan.interval, 16)],
        ..named("asker".to_owned())
    });

    let rules = vec![format!("type='signal',interface='{INTERFACE}',path='{PATH}'")];
    specs.push(Spec {
        id: "monitor".to_owned(),
        monitor: true,
        rules,
        ..Spec::default()
    });
    specs
}

fn pairs(plan: &LoadPlan, specs: &mut Vec<Spec>) {
    for index in 0..plan.pairs {
        for (own, other) in [("a", "b"), ("b", "a")] {
            let calls = vec![Target {
                fd_every: plan.fd_every,
                ..target(&format!("p{index}{other}"), plan.interval, 2)
            }];
            specs.push(Spec {
                calls,
                ..named(format!("p{index}{own}"))
            });
        }
    }
    for (index, destination) in plan.call_also.iter().enumerate() {
        let own = index % specs.len().max(1);
        let interval = plan.interval * 4;
        specs[own].calls.push(Target {
            destination: destination.clone(),
            interval,
            window: 1,
            ..Target::default()
        });
    }
}

fn broadcasts(plan: &LoadPlan, specs: &mut Vec<Spec>) {
    let stream = |index: u32| format!("tick:b{}", index % plan.broadcasters.max(1));
    for index in 0..plan.subscribers {
        let mut subscribes = vec![stream(index), stream(index + 1)];
        subscribes.dedup();
        let rules = subscribes.iter().enumerate().map(|(which, stream)| {
            let sender = name_of(stream.trim_start_matches("tick:"));
            // Each kind of filter is someone's only way to its signals.
            match (index as usize + which) % 3 {
                0 => format!("type='signal',interface='{INTERFACE}',arg0='{stream}'"),
                1 => format!("type='signal',sender='{sender}',path='{PATH}',member='Tick'"),
                _ => format!("path_namespace='/org/busdaemon',arg0='{stream}',sender='{sender}'"),
            }
        });
        let rules = rules.collect();
        specs.push(Spec {
            id: format!("s{index}"),
            rules,
            subscribes,
            ..Spec::default()
        });
    }
    for index in 0..plan.broadcasters {
        let emits = Emission {
            stream: stream(index),
            interval: plan.interval,
            destination: None,
            payload: 0,
            // The first is heard by clients of other implementations too, which expect nothing but text and number.
            fd_every: if index == 0 { 0 } else { plan.fd_every },
        };
        specs.push(Spec {
            emits: Some(emits),
            ..named(format!("b{index}"))
        });
    }
}

/// The churner `index` at its `visit`th visit.
pub(crate) fn churner(plan: &LoadPlan, index: u32, visit: u64) -> Spec {
    Spec {
        id: format!("churn{index}-{visit}"),
        names: vec![name_of(&format!("churn{index}"))],
        rules: vec![format!("type='signal',arg0='nothing-{visit}'")],
        calls: vec![
            target("p0a", plan.interval, 1),
            target("keeper", plan.interval, 1),
        ],
        call_limit: Some(3),
        tag: Tag::Churner,
        ..Spec::default()
    }
}

/// A connection whose handshake is held half-way.
pub(crate) fn half_handshake(plan: &LoadPlan, visit: u64) -> Spec {
    Spec {
        id: format!("handshake-{visit}"),
        calls: vec![target("p0a", plan.interval, 1)],
        call_limit: Some(1),
        tag: Tag::Handshake,
        ..Spec::default()
    }
}
