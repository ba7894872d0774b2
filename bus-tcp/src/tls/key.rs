//! Private keys and certificates, as files.

use super::{Pin, SetupError};
use pem::Pem;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::SigningKey;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An Ed25519 key in PKCS#8 (RFC 8410, section 7) up to the key itself. Version 1, without the public key: all programs read
/// that.
const PKCS8: [u8; 16] = [
    0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
];
/// No key file is longer.
const LONGEST: u64 = 64 * 1024;

/// A private key, and the public one that belongs to it.
#[derive(Clone, Debug)]
pub struct Key {
    pub(super) signing: Arc<dyn SigningKey>,
    spki: Vec<u8>,
}

/// Certificates: an own chain, or authorities.
#[derive(Clone, Debug, Default)]
pub struct Certificates(pub(super) Vec<CertificateDer<'static>>);

/// A key or certificate that cannot be used. Whoever made or installed the file is at fault, except for `Io`.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Others can read the private key.
    #[error("{}: mode {mode:o}: others than its owner can read this private key", path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
        /// How.
        mode: u32,
    },
    /// Not PEM, or not of what it should be.
    #[error("no PEM of a {0}")]
    Pem(&'static str),
    /// The provider does not know such keys.
    #[error("the key is of no use: {0}")]
    Unusable(#[from] SetupError),
}

impl Key {
    /// A new Ed25519 key.
    ///
    /// # Errors
    /// The provider has no such keys, or no randomness.
    pub fn generate(provider: &CryptoProvider) -> Result<(Self, String), KeyError> {
        let mut der = PKCS8.to_vec();
        der.resize(48, 0);
        provider
            .secure_random
            .fill(&mut der[16..])
            .map_err(|_| SetupError(rustls::Error::FailedToGetRandomBytes))?;
        let text = pem::encode(&Pem::new("PRIVATE KEY", der.clone()));
        Ok((
            Self::from_der(provider, PrivatePkcs8KeyDer::from(der).into())?,
            text,
        ))
    }

    /// Makes `path`, which must not exist, with a new key (mode 0600), and `path.pub` with its public half and pin.
    ///
    /// # Errors
    /// Either file exists or cannot be written.
    pub fn generate_files(provider: &CryptoProvider, path: &Path) -> Result<Self, KeyError> {
        let (key, text) = Self::generate(provider)?;
        let mut public = path.as_os_str().to_owned();
        public.push(".pub");
        write_new(path, 0o600, &text)?;
        write_new(Path::new(&public), 0o644, &key.public_text())?;
        Ok(key)
    }

    /// Reads a private key that nobody but its owner can read.
    ///
    /// # Errors
    /// Others can; or it is no key.
    pub fn read(provider: &CryptoProvider, path: &Path) -> Result<Self, KeyError> {
        let failed = |error| KeyError::Io {
            path: path.to_owned(),
            error,
        };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed {
                path: path.to_owned(),
                mode,
            });
        }
        let mut text = String::new();
        file.take(LONGEST).read_to_string(&mut text).map_err(failed)?;
        Self::from_pem(provider, &text)
    }

    /// Reads a private key from PEM, PKCS#8.
    ///
    /// # Errors
    /// It is none.
    pub fn from_pem(provider: &CryptoProvider, text: &str) -> Result<Self, KeyError> {
        let parsed = pem::parse_many(text).map_err(|_| KeyError::Pem("private key"))?;
        let key = parsed
            .into_iter()
            .find(|part| part.tag() == "PRIVATE KEY")
            .ok_or(KeyError::Pem("private key"))?;
        Self::from_der(provider, PrivatePkcs8KeyDer::from(key.into_contents()).into())
    }

    fn from_der(provider: &CryptoProvider, der: PrivateKeyDer<'static>) -> Result<Self, KeyError> {
        let signing = provider.key_provider.load_private_key(der).map_err(SetupError)?;
        let spki = signing
            .public_key()
            .map(|spki| spki.to_vec())
            .ok_or_else(|| SetupError(rustls::Error::General("a key without a public half".into())))?;
        Ok(Self { signing, spki })
    }

    /// Its public half: SubjectPublicKeyInfo, DER.
    #[must_use]
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// What others know it by.
    #[must_use]
    pub fn pin(&self) -> Pin {
        Pin::of(&self.spki)
    }

    /// What stands in `FILE.pub`: a comment with the pin, and the public key as PEM.
    #[must_use]
    pub fn public_text(&self) -> String {
        format!(
            "{}\n{}",
            self.pin(),
            pem::encode(&Pem::new("PUBLIC KEY", self.spki.clone()))
        )
    }
}

impl Certificates {
    /// All certificates of a PEM file.
    ///
    /// # Errors
    /// There is none.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let text = std::fs::read_to_string(path).map_err(|error| KeyError::Io {
            path: path.to_owned(),
            error,
        })?;
        Self::from_pem(&text)
    }

    /// All certificates of a text.
    ///
    /// # Errors
    /// There is none.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let parsed = pem::parse_many(text).map_err(|_| KeyError::Pem("certificate"))?;
        let certificates = parsed.into_iter().filter(|part| part.tag() == "CERTIFICATE");
        let all: Vec<_> = certificates.map(|part| part.into_contents().into()).collect();
        if all.is_empty() {
            Err(KeyError::Pem("certificate"))
        } else {
            Ok(Self(all))
        }
    }
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), KeyError> {
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
    written.map_err(|error| KeyError::Io {
        path: path.to_owned(),
        error,
    })
}
