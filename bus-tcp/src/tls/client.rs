//! A client's end of TLS.

use super::verify::{Kind, VerifyHost};
use super::{ALPN, Certificates, Key, Pin, SetupError, binding, exporter, versions};
use crate::carrier::{BoxCarrier, Carrier, Dial, Dialing, connect_tcp};
use crate::limits::Terms;
use crate::resume::Binding;
use rustls::ClientConfig;
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::CertifiedKey;
use std::io;
use std::pin::Pin as Pinned;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Which host a client believes.
#[derive(Clone, Debug)]
pub enum Trust {
    /// One that has one of these keys. More than one while the host's key is replaced.
    Pins(Vec<Pin>),
    /// One with a certificate for its name from one of these authorities.
    Authorities(Certificates),
}

/// Connects by TCP and TLS.
#[derive(Clone, Debug)]
pub struct TlsDial {
    address: String,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
    dead_after: Duration,
}

impl TlsDial {
    /// To `address` (`host:port`), with a raw public key. The host's key must be one of the pins.
    ///
    /// # Errors
    /// The provider cannot do that.
    pub fn raw_key(
        provider: Arc<CryptoProvider>,
        address: impl Into<String>,
        key: &Key,
        pins: Vec<Pin>,
        terms: &Terms,
    ) -> Result<Self, SetupError> {
        let verify = VerifyHost::new(Kind::RawKey, pins, &Certificates::default(), &provider)?;
        let own = CertifiedKey::new(
            vec![CertificateDer::from(key.spki().to_vec())],
            key.signing.clone(),
        );
        let config = versions(ClientConfig::builder_with_provider(provider))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verify))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::new(own))));
        Self::new(address.into(), config, terms)
    }

    /// To `address` (`host:port`), with a certificate.
    ///
    /// # Errors
    /// Key and certificate do not belong together, or the provider cannot do that.
    pub fn certificate(
        provider: Arc<CryptoProvider>,
        address: impl Into<String>,
        key: &Key,
        chain: Certificates,
        trust: Trust,
        terms: &Terms,
    ) -> Result<Self, SetupError> {
        let (pins, authorities) = match trust {
            Trust::Pins(pins) => (pins, Certificates::default()),
            Trust::Authorities(authorities) => (Vec::new(), authorities),
        };
        let verify = VerifyHost::new(Kind::Certificate, pins, &authorities, &provider)?;
        let own = CertifiedKey::new(chain.0, key.signing.clone());
        own.keys_match()?;
        let config = versions(ClientConfig::builder_with_provider(provider))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verify))
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(own)));
        Self::new(address.into(), config, terms)
    }

    fn new(address: String, mut config: ClientConfig, terms: &Terms) -> Result<Self, SetupError> {
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        let host = address
            .rsplit_once(':')
            .map_or(address.as_str(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| SetupError(rustls::Error::General(format!("{host}: {error}"))))?;
        Ok(Self {
            address,
            name,
            config: Arc::new(config),
            dead_after: terms.dead_after,
        })
    }

    /// At most so many bytes in one TLS record: on a slow link the other side can use only whole ones.
    ///
    /// # Errors
    /// Less than 32.
    pub fn with_records_of(mut self, most: usize) -> Result<Self, SetupError> {
        let config = Arc::make_mut(&mut self.config);
        config.max_fragment_size = Some(most);
        if most < 32 {
            return Err(SetupError(rustls::Error::BadMaxFragmentSize));
        }
        Ok(self)
    }
}

impl Dial for TlsDial {
    fn dial<'a>(&'a mut self, _: Option<&'a str>) -> Dialing<'a> {
        Box::pin(async move {
            let tcp = connect_tcp(&self.address, self.dead_after).await?;
            let tls = TlsConnector::from(self.config.clone())
                .connect(self.name.clone(), tcp)
                .await?;
            let (_, state) = tls.get_ref();
            let binding = binding(state, |out| state.export_keying_material(out, exporter(), None))?;
            Ok(Box::new(ClientCarrier { tls, binding }) as BoxCarrier)
        })
    }
}

struct ClientCarrier {
    tls: TlsStream<TcpStream>,
    binding: Binding,
}

impl Carrier for ClientCarrier {
    fn binding(&self) -> Option<Binding> {
        Some(self.binding)
    }
}

impl AsyncRead for ClientCarrier {
    fn poll_read(
        mut self: Pinned<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pinned::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientCarrier {
    fn poll_write(
        mut self: Pinned<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pinned::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pinned<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pinned::new(&mut self.tls).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pinned<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pinned::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pinned<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pinned::new(&mut self.tls).poll_shutdown(cx)
    }
}
