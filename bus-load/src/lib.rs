//! Counted load for a message bus.
//!
//! Hundreds of raw connections that speak the wire protocol themselves, and unmodified programs of other
//! implementations, put a bus under load. Every message carries a number within its stream (one sender, one
//! kind, one receiver or subject), every receiver checks every number, and the [`Report`] says exactly what was
//! lost, doubled, reordered or disconnected.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use bus_load::{Hook, Load, LoadPlan};
//! let mut load = Load::start("unix:path=/run/bus", LoadPlan::default())?;
//! load.go()?;
//! load.hold(&Hook::ALL)?; // half a large message written, half a handshake, calls pending, a reader stopped
//! // ... upgrade the bus here ...
//! load.release(&Hook::ALL)?; // and all of it is completed
//! let report = load.finish()?;
//! assert!(report.is_clean(), "{report}");
//! # Ok(()) }
//! ```

mod account;
mod caller;
pub mod clock;
pub mod fds;
mod link;
mod load;
pub mod peers;
mod plan;
mod raw;
mod real;
mod report;
mod tally;

pub use account::Account;
pub use caller::{CallError, Caller};
pub use link::{Handshake, socket_address};
pub use load::{Load, Progress};
pub use plan::{Hook, LoadPlan};
pub use real::{Peer, PeerPlan, Program, Script, echo_service, implementations, watchers};
pub use report::{Report, Row};
pub use tally::{Counts, Tally};

/// The object path at which every peer of the load serves `Echo` and from which it emits `Tick`.
pub const PATH: &str = "/org/busdaemon/Load";
/// The interface of `Echo(st) -> (st)` and `Tick(st)`: the stream's name and the number within it.
pub const INTERFACE: &str = "org.busdaemon.Load1";
