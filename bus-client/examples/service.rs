//! A service that is there again whenever the bus is. `service [ADDRESS]`; without an address, on the session bus.
#![allow(clippy::print_stdout, reason = "an example shows something")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bus_client::{BoxFuture, Connection, Error, Incoming, Interface, Reply, State};

/// Counts.
struct Counter {
    count: AtomicU64,
}

impl Interface for Counter {
    fn name(&self) -> &str {
        "com.example.Counter"
    }

    fn dispatch(self: Arc<Self>, call: Incoming) -> BoxFuture<Reply> {
        Box::pin(async move {
            match (call.member(), call.decode::<u64>()) {
                (Some("Add"), Ok(more)) => {
                    Reply::new(&(self.count.fetch_add(more, Ordering::Relaxed) + more))
                }
                (Some("Add"), Err(error)) => {
                    Reply::error("org.freedesktop.DBus.Error.InvalidArgs", &error.to_string())
                }
                _ => Reply::unknown_method(&call),
            }
        })
    }
}

fn main() -> Result<(), Error> {
    let builder = match std::env::args().nth(1) {
        Some(address) => Connection::address(&address),
        None => Connection::session(),
    };
    // Name and object are there as long as the connection is, over however many buses.
    let counter = Arc::new(Counter {
        count: AtomicU64::new(0),
    });
    let connection = builder
        .wait_for_bus()
        .name("com.example.Counter")
        .object("/com/example/Counter", counter)
        .connect_thread()?;
    let states = connection.states();
    while let Some(state) = states.wait_next()? {
        println!("{state:?}");
        if state == State::Closed {
            break;
        }
    }
    Ok(())
}
