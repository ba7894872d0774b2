//! Authentication (specification, "Authentication Protocol"): both sides, as plain values without I/O.
//!
//! [`SaslServer`] can be saved in the middle of a line and goes on where it was. [`SaslClient`] asks for what lies in files,
//! and is given it.

mod client;
pub mod cookie;
mod line;
mod server;

pub use client::{
    ClientMechanism, SaslClient, SaslClientConfig, SaslClientDone, SaslClientError, SaslClientEvent,
    SaslClientStep,
};
pub use line::MAX_LINE;
pub use server::{
    CookieQuestion, MAX_ERRORS, MAX_REJECTIONS, NONCE, SaslConfig, SaslDone, SaslError, SaslServer,
    SaslStage, SaslState, SaslStep,
};

/// An authentication mechanism that a server offers (specification, "Authentication Mechanisms").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Mechanism {
    /// EXTERNAL: the identity that the kernel vouches for.
    External,
    /// DBUS_COOKIE_SHA1: who can read a file of a user's is that user.
    CookieSha1,
    /// ANONYMOUS: no identity.
    Anonymous,
}

impl Mechanism {
    /// All, the best first.
    pub const ALL: [Self; 3] = [Self::External, Self::CookieSha1, Self::Anonymous];

    /// Its name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::External => "EXTERNAL",
            Self::CookieSha1 => "DBUS_COOKIE_SHA1",
            Self::Anonymous => "ANONYMOUS",
        }
    }

    /// By its name on the wire, which is case-sensitive.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mechanism| mechanism.as_str() == name)
    }
}
