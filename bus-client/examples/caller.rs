//! Calls the service of the other example over and over, and says what becomes of each call. `caller ADDRESS COUNT`.
#![allow(clippy::print_stdout, reason = "an example shows something")]

use std::time::Duration;

use bus_client::{Connection, Decision, Error, Fate, Link};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let builder = match arguments.next() {
        Some(address) => Connection::address(&address),
        None => Connection::session(),
    };
    let count = arguments
        .next()
        .and_then(|count| count.parse().ok())
        .unwrap_or(10);
    // To be told is not needed: without this the connection comes back just the same.
    let told = |link: Link<'_>| {
        if let Link::Lost(error) = &link {
            println!("the bus is gone: {error}");
        } else if let Link::Back { same_bus, .. } = &link {
            println!("the bus is back, the same: {same_bus}");
        }
        Decision::Replay
    };
    let connection = builder.wait_for_bus().on_link(told).connect().await?;
    connection.wait_for_names(&["com.example.Counter"]).await?;
    for call in 0..count {
        // One more each time: this must not be done twice, so it is not marked as idempotent.
        let added = connection.call::<u64>(
            "com.example.Counter",
            "/com/example/Counter",
            "com.example.Counter.Add",
            &1_u64,
        );
        match added.await {
            Ok(sum) => println!("call {call}: {sum}"),
            Err(error) if error.fate() == Some(Fate::NotSent) => {
                println!("call {call} was not sent: {error}")
            }
            Err(error) => {
                println!("call {call} may have been counted: {error}");
                error.recovered().await;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
