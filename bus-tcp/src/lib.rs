//! A byte stream that outlives its connection: `AsyncRead + AsyncWrite` on both ends, encrypted, both ends authenticated, and
//! resumed after cut cables, changed addresses and restarted hosts, with every byte once and in order.
//!
//! ```no_run
//! use bus_tcp::limits::Terms;
//! use bus_tcp::tls::{Key, TlsDial, provider};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let key = Key::read(&provider(), "robot.key".as_ref())?; // bus keygen robot.key
//!     let host = "spki-sha256:6a1f…".parse()?; //                  the first line of the host's key.pub
//!     let dial = TlsDial::raw_key(provider(), "host:7777", &key, vec![host], &Terms::DEFAULT)?;
//!     let mut session = bus_tcp::connect(dial, Terms::DEFAULT)?;
//!     for number in 0_u32.. {
//!         session.write_all(&number.to_be_bytes()).await?;
//!         let mut answer = [0; 4];
//!         session.read_exact(&mut answer).await?; // `ip link set down`: waits; up again: goes on
//!         assert_eq!(u32::from_be_bytes(answer), number);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! An error of reading or writing means that the *session* is over: the other side stayed away for longer than the window of
//! its [`Terms`](limits::Terms), or ended it. [`runtime::SessionLost`] says how many bytes were taken. Whoever wants to know of
//! connections that come and go asks [`Session::watch`].
//!
//! The other end is a [`Listener`] with one or more doors: [`tls::TlsDoor`], and on links that are trusted
//! [`carrier::PlainDoor`], [`carrier::UnixDoor`], [`carrier::VsockDoor`]. The client's counterparts are in the same places, and
//! [`carrier::CommandDial`] for whatever a command reaches, such as `ssh HOST bus carry`.
//!
//! # Underneath
//!
//! [`session::Session`] and [`host::Host`] are the protocol as plain values: time, randomness and bytes come in as arguments, what
//! has to be done comes out. They can be saved at any moment and continued in another process, and driven by any event loop, with
//! acknowledgements given when *its* journal has committed. Without the feature `runtime` they are all there is, and nothing of
//! this crate makes a system call. `docs/tcp-protocol.md` has the protocol, `docs/security.md` the threat model.
//!
//! Features: `runtime` (tokio), `tls` with `ring` or `aws-lc-rs`, `vsock`; all but aws-lc-rs are on by default.

#[cfg(test)]
extern crate self as bus_tcp;

#[cfg(feature = "runtime")]
pub mod carrier;
pub mod frame;
pub mod host;
mod lease;
pub mod limits;
mod moment;
mod pool;
mod random;
pub mod replay;
pub mod resume;
#[cfg(feature = "runtime")]
pub mod runtime;
pub mod saved;
pub mod session;
#[cfg(feature = "tls")]
pub mod tls;

pub use lease::{client_term, host_term};
pub use moment::Moment;
#[cfg(feature = "runtime")]
pub use runtime::{Event, ListenOptions, Listener, Session, connect, connect_saved};
