//! Who a peer is: by its key, or by a name in its certificate.

use crate::carrier::Who;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// SHA-256 of a public key (SubjectPublicKeyInfo, DER): `spki-sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Pin(pub [u8; 32]);

/// Text that is no pin. Whoever configured it is at fault.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a pin is spki-sha256: and 64 hexadecimal digits")]
pub struct PinError;

impl Pin {
    /// That of a public key.
    #[must_use]
    pub fn of(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("spki-sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let hex = text
            .strip_prefix("spki-sha256:")
            .filter(|hex| hex.len() == 64 && hex.is_ascii())
            .ok_or(PinError)?;
        let mut pin = [0; 32];
        for (byte, digits) in pin.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16).ok_or(PinError);
            *byte = u8::try_from(digit(digits[0])? * 16 + digit(digits[1])?).map_err(|_| PinError)?;
        }
        Ok(Self(pin))
    }
}

/// Who may come, and what the host knows each by. One name may have several keys: while a key is replaced both are let in, and
/// a session that began with one goes on with the other.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Identities {
    pins: BTreeMap<Pin, Who>,
    /// URIs among a certificate's subject alternative names, compared as they are.
    sans: BTreeMap<String, Who>,
}

impl Identities {
    /// Whoever has this key is `who`.
    #[must_use]
    pub fn pin(mut self, pin: Pin, who: impl Into<Who>) -> Self {
        self.pins.insert(pin, who.into());
        self
    }

    /// Whoever has a certificate, from an authority that the listener trusts, with this URI among its subject alternative
    /// names is `who`.
    #[must_use]
    pub fn san(mut self, uri: impl Into<String>, who: impl Into<Who>) -> Self {
        self.sans.insert(uri.into(), who.into());
        self
    }

    /// Whether anybody is `who`.
    #[must_use]
    pub fn knows(&self, who: &str) -> bool {
        self.pins
            .values()
            .chain(self.sans.values())
            .any(|known| &**known == who)
    }

    pub(super) fn by_pin(&self, pin: &Pin) -> Option<&Who> {
        self.pins.get(pin)
    }

    pub(super) fn by_uri(&self, uri: &str) -> Option<&Who> {
        self.sans.get(uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_read_as_it_is_written_and_nothing_else_is() {
        let pin = Pin::of(b"key");
        assert_eq!(pin.to_string().parse(), Ok(pin));
        assert_eq!(pin.to_string().to_uppercase().parse::<Pin>(), Err(PinError));
        let text = pin.to_string();
        for bad in [
            "",
            "spki-sha256:",
            &text[..text.len() - 1],
            &format!("{text}0"),
            &text.replace(':', "="),
        ] {
            assert_eq!(bad.parse::<Pin>(), Err(PinError), "{bad}");
        }
        assert_eq!(
            format!("spki-sha256:{}+f", "0".repeat(62)).parse::<Pin>(),
            Err(PinError)
        );
    }
}
