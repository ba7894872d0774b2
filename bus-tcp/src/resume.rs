//! What proves that a carrier belongs to a session.
//!
//! A session's identifier alone is worth nothing: RESUME has a MAC under the session's secret, over something that only
//! the two ends of *this* carrier know (TLS's exporter) or that the host just made up (a nonce). So a RESUME that was
//! captured fails on any other carrier.

use crate::frame::{Resume, Resumed};
use hmac::{Hmac, KeyInit, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::fmt;

/// The label under which both ends export 32 bytes from TLS, without a context (RFC 8446, section 7.5).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-bus-session-1";

/// Names a session. Worthless without its secret.
#[derive(Clone, Copy, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct SessionId(pub [u8; 16]);

/// The key of a session's MACs.
#[derive(Clone, Copy, Deserialize, Eq, PartialEq, Serialize)]
pub struct Secret(pub [u8; 32]);

/// What the host of a carrier without TLS makes up for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Nonce(pub [u8; 32]);

/// What MACs on one carrier are bound to: the exporter of its TLS connection, or the host's nonce.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Binding(pub [u8; 32]);

/// HMAC-SHA-256.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mac(pub [u8; 32]);

impl Secret {
    /// Fills in the MAC of `resume`.
    pub fn sign_resume(&self, binding: &Binding, resume: &mut Resume) {
        resume.mac = Mac(self
            .mac(b"resume", binding, &resume.signed())
            .finalize()
            .into_bytes()
            .into());
    }

    /// Fills in the MAC of `resumed`.
    pub fn sign_resumed(&self, binding: &Binding, resumed: &mut Resumed) {
        resumed.mac = Mac(self
            .mac(b"resumed", binding, &resumed.signed())
            .finalize()
            .into_bytes()
            .into());
    }

    /// Whether the MAC is that of this secret, on this carrier. Takes the same time whatever differs.
    #[must_use]
    pub fn signed_resume(&self, binding: &Binding, resume: &Resume) -> bool {
        self.mac(b"resume", binding, &resume.signed())
            .verify_slice(&resume.mac.0)
            .is_ok()
    }

    /// Whether the MAC is that of this secret, on this carrier. Takes the same time whatever differs.
    #[must_use]
    pub fn signed_resumed(&self, binding: &Binding, resumed: &Resumed) -> bool {
        self.mac(b"resumed", binding, &resumed.signed())
            .verify_slice(&resumed.mac.0)
            .is_ok()
    }

    fn mac(&self, purpose: &[u8], binding: &Binding, body: &[u8]) -> Hmac<Sha256> {
        #[allow(clippy::expect_used)] // RFC 2104 takes keys of any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("a key of 32 bytes");
        mac.update(purpose);
        mac.update(&binding.0);
        mac.update(body);
        mac
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to tell sessions apart in a log.
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl fmt::Debug for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Binding(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Preamble;

    fn resume() -> Resume {
        Resume {
            preamble: Preamble::OURS,
            session: SessionId([1; 16]),
            attempt: 2,
            received: 3,
            mac: Mac([0; 32]),
        }
    }

    #[test]
    fn a_mac_holds_for_its_secret_carrier_and_fields_only() {
        let (secret, binding) = (Secret([4; 32]), Binding([5; 32]));
        let mut signed = resume();
        secret.sign_resume(&binding, &mut signed);
        assert!(secret.signed_resume(&binding, &signed));
        assert!(!secret.signed_resume(&Binding([6; 32]), &signed));
        assert!(!Secret([6; 32]).signed_resume(&binding, &signed));
        for changed in [
            Resume { attempt: 3, ..signed },
            Resume {
                received: 4,
                ..signed
            },
            Resume {
                session: SessionId([2; 16]),
                ..signed
            },
            Resume {
                preamble: Preamble {
                    oldest: 0,
                    ..signed.preamble
                },
                ..signed
            },
        ] {
            assert!(!secret.signed_resume(&binding, &changed), "{changed:?}");
        }
    }

    #[test]
    fn the_mac_is_hmac_sha256_of_purpose_binding_and_body() {
        // Computed with Python's hmac module from docs/tcp-protocol.md.
        let mut signed = resume();
        Secret([4; 32]).sign_resume(&Binding([5; 32]), &mut signed);
        let hex: String = signed.mac.0.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, MAC_OF_PYTHON);
    }

    const MAC_OF_PYTHON: &str = "106a9dace6f11164d6ff57158c450a586fc9f6e87f6e2fd8fce14d85a35bc381";
}
