//! Whether a peer is who it should be, in the handshake: who is not gets an alert, and nothing else.

use super::identity::Pin;
use super::{Certificates, Identities};
use crate::carrier::Who;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use std::sync::{Arc, PoisonError, RwLock};

/// The identities of a listener: replaced as one when they are read again.
pub(super) type Shared = Arc<RwLock<Identities>>;

/// Kind of the credentials on a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    RawKey,
    Certificate,
}

const REFUSED: Error = Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);

/// The pin of what a peer presents.
fn pin(kind: Kind, presented: &CertificateDer<'_>) -> Result<Pin, Error> {
    match kind {
        Kind::RawKey => Ok(Pin::of(presented)),
        Kind::Certificate => Ok(Pin::of(
            &ParsedCertificate::try_from(presented)?.subject_public_key_info(),
        )),
    }
}

/// Who presents this. Certificates are known by their key, or by a URI if an authority vouches for it.
pub(super) fn who(
    kind: Kind,
    presented: &CertificateDer<'_>,
    vouched: bool,
    among: &Identities,
) -> Option<Who> {
    if let Some(who) = among.by_pin(&pin(kind, presented).ok()?) {
        return Some(who.clone());
    }
    if kind == Kind::RawKey || !vouched {
        return None;
    }
    let certificate = webpki::EndEntityCert::try_from(presented).ok()?;
    certificate
        .valid_uri_names()
        .find_map(|uri| among.by_uri(uri))
        .cloned()
}

fn verify_signature(
    kind: Kind,
    algorithms: &WebPkiSupportedAlgorithms,
    message: &[u8],
    presented: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    match kind {
        Kind::RawKey => {
            let spki = SubjectPublicKeyInfoDer::from(presented.as_ref());
            verify_tls13_signature_with_raw_key(message, &spki, signature, algorithms)
        }
        Kind::Certificate => verify_tls13_signature(message, presented, signature, algorithms),
    }
}

/// Only TLS 1.3 is configured; nobody comes here.
const OLD: Error = Error::PeerIncompatible(rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13);

/// Checks clients.
#[derive(Debug)]
pub(super) struct VerifyClient {
    kind: Kind,
    identities: Shared,
    authorities: Option<Arc<dyn ClientCertVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl VerifyClient {
    pub(super) fn new(
        kind: Kind,
        identities: Shared,
        authorities: &Certificates,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let authorities = match roots(authorities)? {
            Some(roots) => Some(
                WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
                    .build()
                    .map_err(|error| Error::General(error.to_string()))?,
            ),
            None => None,
        };
        Ok(Self {
            kind,
            identities,
            authorities,
            algorithms: provider.signature_verification_algorithms,
        })
    }

    /// Who it is, whether it was vouched for already or not.
    pub(super) fn identify(&self, presented: &CertificateDer<'_>) -> Option<Who> {
        let identities = self.identities.read().unwrap_or_else(PoisonError::into_inner);
        who(self.kind, presented, self.authorities.is_some(), &identities)
    }
}

impl ClientCertVerifier for VerifyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let pinned = {
            let identities = self.identities.read().unwrap_or_else(PoisonError::into_inner);
            identities.by_pin(&pin(self.kind, end_entity)?).is_some()
        };
        if pinned {
            return Ok(ClientCertVerified::assertion());
        }
        match &self.authorities {
            Some(authorities) if self.kind == Kind::Certificate => {
                authorities.verify_client_cert(end_entity, intermediates, now)?;
            }
            Some(_) | None => return Err(REFUSED),
        }
        self.identify(end_entity)
            .map(|_| ClientCertVerified::assertion())
            .ok_or(REFUSED)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(OLD)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(self.kind, &self.algorithms, message, presented, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.kind == Kind::RawKey
    }
}

/// Checks hosts: one of the pins, or a certificate for the name from an authority.
#[derive(Debug)]
pub(super) struct VerifyHost {
    kind: Kind,
    pins: Vec<Pin>,
    authorities: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl VerifyHost {
    pub(super) fn new(
        kind: Kind,
        pins: Vec<Pin>,
        authorities: &Certificates,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let authorities = match roots(authorities)? {
            Some(roots) => Some(
                WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
                    .build()
                    .map_err(|error| Error::General(error.to_string()))?,
            ),
            None => None,
        };
        Ok(Self {
            kind,
            pins,
            authorities,
            algorithms: provider.signature_verification_algorithms,
        })
    }
}

impl ServerCertVerifier for VerifyHost {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.pins.contains(&pin(self.kind, end_entity)?) {
            return Ok(ServerCertVerified::assertion());
        }
        match &self.authorities {
            Some(authorities) if self.kind == Kind::Certificate && self.pins.is_empty() => {
                authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            Some(_) | None => Err(REFUSED),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(OLD)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(self.kind, &self.algorithms, message, presented, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.kind == Kind::RawKey
    }
}

fn roots(authorities: &Certificates) -> Result<Option<Arc<RootCertStore>>, Error> {
    if authorities.0.is_empty() {
        return Ok(None);
    }
    let mut roots = RootCertStore::empty();
    for authority in &authorities.0 {
        roots.add(authority.clone())?;
    }
    Ok(Some(Arc::new(roots)))
}
