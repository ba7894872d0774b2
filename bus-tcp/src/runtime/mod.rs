//! The tokio driver: [`connect`] and [`Listener`] give a [`Session`], which is `AsyncRead + AsyncWrite`.

mod clock;
mod connect;
mod core;
mod engine;
mod events;
mod gate;
mod line;
mod listen;
mod out;
mod stream;
mod timer;
mod troubles;

pub use clock::now;
pub use connect::{CONNECT_TIMEOUT, connect, connect_saved};
pub use engine::{BUDGET, REPLAY};
pub use events::{Event, Stats};
pub use listen::{ListenOptions, Listener};
pub use stream::{Session, SessionLost, Watch};
