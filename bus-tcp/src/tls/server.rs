//! A host's end of TLS: raw public keys and certificates on the same listener, whichever the client offers.

use super::counted::Counted;
use super::verify::{Kind, Shared, VerifyClient};
use super::{ALPN, Certificates, Identities, Key, SetupError, binding, exporter, versions};
use crate::carrier::{AcceptedTcp, BoxCarrier, Carrier, Door, Who, tune};
use crate::limits::{BYTES_BEFORE_CERTIFICATE, BYTES_BEFORE_RAW_KEY, Terms};
use crate::resume::Binding;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::{Acceptor, AlwaysResolvesServerRawPublicKeys, CertificateType, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

/// Lets in whoever has a key or certificate that the identities know.
#[derive(Debug)]
pub struct TlsDoor {
    listener: TcpListener,
    identities: Shared,
    raw: Way,
    certificate: Option<Way>,
}

/// How one kind of credentials is dealt with.
#[derive(Clone, Debug)]
struct Way {
    config: Arc<ServerConfig>,
    verify: Arc<VerifyClient>,
}

/// A connection whose ClientHello has come.
pub struct TlsHeard(StartHandshake<Counted<TcpStream>>);

impl TlsDoor {
    /// On `listener`, with `key`: raw public keys only.
    ///
    /// # Errors
    /// The provider cannot do that.
    pub fn raw_key(
        provider: Arc<CryptoProvider>,
        listener: TcpListener,
        key: &Key,
        identities: Identities,
    ) -> Result<Self, SetupError> {
        let identities: Shared = Arc::new(RwLock::new(identities));
        let own = CertifiedKey::new(
            vec![CertificateDer::from(key.spki().to_vec())],
            key.signing.clone(),
        );
        let verify = Arc::new(VerifyClient::new(
            Kind::RawKey,
            identities.clone(),
            &Certificates::default(),
            &provider,
        )?);
        let config = versions(ServerConfig::builder_with_provider(provider))?
            .with_client_cert_verifier(verify.clone())
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::new(own))));
        Ok(Self {
            listener,
            identities,
            raw: Way {
                config: finish(config),
                verify,
            },
            certificate: None,
        })
    }

    /// Lets in clients with certificates, too, to whom `chain` is presented. Those from `authorities` are known by their key or
    /// by a URI, others by their key only.
    ///
    /// # Errors
    /// Key and chain do not belong together, or the provider cannot do that.
    pub fn with_certificates(
        mut self,
        provider: Arc<CryptoProvider>,
        key: &Key,
        chain: Certificates,
        authorities: &Certificates,
    ) -> Result<Self, SetupError> {
        let verify = VerifyClient::new(Kind::Certificate, self.identities.clone(), authorities, &provider)?;
        let verify = Arc::new(verify);
        let own = CertifiedKey::new(chain.0, key.signing.clone());
        own.keys_match()?;
        let config = versions(ServerConfig::builder_with_provider(provider))?
            .with_client_cert_verifier(verify.clone())
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(own)));
        self.certificate = Some(Way {
            config: finish(config),
            verify,
        });
        Ok(self)
    }

    /// Replaces the identities for all who come from now on; a handle that outlives the door's move into its listener. Sessions
    /// of those who are gone end by [`Listener::expel`](crate::Listener::expel).
    #[must_use]
    pub fn identities(&self) -> Arc<RwLock<Identities>> {
        self.identities.clone()
    }

    /// What this kind of client gets. Who offers raw public keys for both ends gets them.
    fn way(&self, heard: &TlsHeard) -> io::Result<(&Way, usize)> {
        let hello = heard.0.client_hello();
        let raw = |types: Option<&[CertificateType]>| {
            types.is_some_and(|types| types.contains(&CertificateType::RawPublicKey))
        };
        if raw(hello.client_cert_types()) && raw(hello.server_cert_types()) {
            return Ok((&self.raw, 0));
        }
        let more = BYTES_BEFORE_CERTIFICATE - BYTES_BEFORE_RAW_KEY;
        let none = || {
            io::Error::new(
                io::ErrorKind::Unsupported,
                "the peer has no raw public key, and no other is accepted",
            )
        };
        self.certificate.as_ref().map(|way| (way, more)).ok_or_else(none)
    }
}

/// No tickets, no storage, no early data.
fn finish(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Arc::new(config)
}

impl Door for TlsDoor {
    type Accepted = AcceptedTcp;
    type Heard = TlsHeard;

    async fn accept(&self) -> io::Result<AcceptedTcp> {
        let (stream, from) = self.listener.accept().await?;
        Ok(AcceptedTcp { stream, from })
    }

    async fn hear(&self, accepted: AcceptedTcp) -> io::Result<TlsHeard> {
        tune(&accepted.stream, Terms::DEFAULT.dead_after)?;
        let counted = Counted::new(accepted.stream, BYTES_BEFORE_RAW_KEY);
        Ok(TlsHeard(
            LazyConfigAcceptor::new(Acceptor::default(), counted).await?,
        ))
    }

    async fn admit(&self, mut heard: TlsHeard) -> io::Result<(BoxCarrier, Who)> {
        let (way, more) = self.way(&heard)?;
        heard.0.io.allow(more);
        let mut tls = heard.0.into_stream(way.config.clone()).await?;
        tls.get_mut().0.authenticated();
        let (_, state) = tls.get_ref();
        let refused = || io::Error::new(io::ErrorKind::PermissionDenied, "an identity that is not known");
        let presented = state
            .peer_certificates()
            .and_then(<[_]>::first)
            .ok_or_else(refused)?;
        let who = way.verify.identify(presented).ok_or_else(refused)?;
        let binding = binding(state, |out| state.export_keying_material(out, exporter(), None))?;
        Ok((Box::new(HostCarrier { tls, binding }), who))
    }
}

impl TlsDoor {
    /// Who is let in from now on. In one step: nobody sees half of it.
    pub fn replace(identities: &RwLock<Identities>, by: Identities) {
        *identities.write().unwrap_or_else(PoisonError::into_inner) = by;
    }
}

struct HostCarrier {
    tls: TlsStream<Counted<TcpStream>>,
    binding: Binding,
}

impl Carrier for HostCarrier {
    fn binding(&self) -> Option<Binding> {
        Some(self.binding)
    }
}

impl AsyncRead for HostCarrier {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for HostCarrier {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
