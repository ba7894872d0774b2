//! TCP with TLS 1.3, both ends authenticated: by raw public keys (RFC 7250), or by certificates.
//!
//! All that is known of rustls stands in this module. No session tickets, no resumption of TLS and no early data: a session is
//! resumed by its own secret, on a connection that is new in all respects.

mod client;
mod counted;
mod identity;
mod key;
mod server;
mod verify;

pub use client::{TlsDial, Trust};
pub use identity::{Identities, Pin, PinError};
pub use key::{Certificates, Key, KeyError};
pub use server::{TlsDoor, TlsHeard};

use crate::resume::{Binding, EXPORTER_LABEL};
use rustls::crypto::CryptoProvider;
use rustls::{CommonState, ConfigBuilder, ConfigSide, WantsVerifier};
use std::io;
use std::sync::Arc;

/// What both ends speak inside TLS.
pub const ALPN: &[u8] = b"bus-session/1";

/// A configuration cannot be made. Whoever gave keys or certificates is at fault.
#[derive(Debug, thiserror::Error)]
#[error("TLS cannot be set up: {0}")]
pub struct SetupError(#[from] rustls::Error);

/// The provider of this build: `ring`, or aws-lc-rs where that feature alone is on. Programs with another give it to the
/// constructors that take one.
#[cfg(any(feature = "ring", feature = "aws-lc-rs"))]
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    #[cfg(feature = "ring")]
    let provider = rustls::crypto::ring::default_provider();
    #[cfg(not(feature = "ring"))]
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Arc::new(provider)
}

fn versions<S: ConfigSide>(
    builder: ConfigBuilder<S, rustls::WantsVersions>,
) -> Result<ConfigBuilder<S, WantsVerifier>, rustls::Error> {
    builder.with_protocol_versions(&[&rustls::version::TLS13])
}

/// What MACs on this connection are bound to. Refuses one that does not speak our protocol.
fn binding(
    state: &CommonState,
    export: impl FnOnce([u8; 32]) -> Result<[u8; 32], rustls::Error>,
) -> io::Result<Binding> {
    if state.alpn_protocol() != Some(ALPN) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the peer does not speak bus-session/1",
        ));
    }
    let exported = export([0; 32]).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Binding(exported))
}

const fn exporter() -> &'static [u8] {
    EXPORTER_LABEL
}
