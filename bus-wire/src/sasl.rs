//! The server's side of authentication (specification, "Authentication Protocol").

use serde::{Deserialize, Serialize};

/// An authentication mechanism that a server offers (specification, "Authentication Mechanisms").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mechanism {
    /// EXTERNAL: the identity that the kernel vouches for.
    External,
    /// ANONYMOUS: no identity.
    Anonymous,
}
