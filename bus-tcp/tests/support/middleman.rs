//! Somebody between client and host who has the keys of both, and says alerts of TLS in the name of either.

use bus_tcp::tls::{ALPN, Key, provider};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::cipher::{OutboundChunks, OutboundPlainMessage};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ConnectionTrafficSecrets, ContentType, DigitallySignedStruct, DistinguishedName, Error,
    ExtractedSecrets, ProtocolVersion, ServerConfig, SignatureScheme, SupportedCipherSuite,
};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Who hears an alert.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hears {
    Client,
    Host,
}

/// An alert to be said on the connection there is, which goes silent with it, and stays open until this is done.
pub struct Order {
    pub to: Hears,
    pub level: u8,
    pub code: u8,
    pub until: oneshot::Receiver<()>,
}

pub struct Middleman {
    pub address: SocketAddr,
    pub orders: mpsc::Sender<Order>,
}

impl Middleman {
    /// Between whoever comes and `host`. It has the private keys of both ends, as PEM.
    pub async fn new(host: SocketAddr, host_key: (&Key, &str), client_key: (&Key, &str)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(as_host(certified(host_key)));
        let connector = TlsConnector::from(as_client(certified(client_key)));
        let (orders, mut receiver) = mpsc::channel::<Order>(1);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                // One at a time: whoever comes meanwhile waits.
                pass(near, host, &acceptor, &connector, &mut receiver).await;
            }
        });
        Self { address, orders }
    }
}

async fn pass(
    near: TcpStream,
    host: SocketAddr,
    acceptor: &TlsAcceptor,
    connector: &TlsConnector,
    orders: &mut mpsc::Receiver<Order>,
) {
    let Ok(mut near) = acceptor.accept(near).await else {
        return;
    };
    let far = TcpStream::connect(host).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut far = connector.connect(name, far).await.unwrap();
    let (mut up, mut down) = (vec![0; 16_384], vec![0; 16_384]);
    let order = loop {
        tokio::select! {
            count = near.read(&mut up) => {
                let Ok(count @ 1..) = count else { return };
                far.write_all(&up[..count]).await.unwrap();
                far.flush().await.unwrap();
            }
            count = far.read(&mut down) => {
                let Ok(count @ 1..) = count else { return };
                near.write_all(&down[..count]).await.unwrap();
                near.flush().await.unwrap();
            }
            order = orders.recv() => match order {
                Some(order) => break order,
                None => return,
            },
        }
    };
    let (mut near, near_state) = near.into_inner();
    let (mut far, far_state) = far.into_inner();
    let record = match order.to {
        Hears::Client => {
            let suite = near_state.negotiated_cipher_suite().unwrap();
            alert(suite, near_state.dangerous_extract_secrets().unwrap(), &order)
        }
        Hears::Host => {
            let suite = far_state.negotiated_cipher_suite().unwrap();
            alert(suite, far_state.dangerous_extract_secrets().unwrap(), &order)
        }
    };
    let stream = match order.to {
        Hears::Client => &mut near,
        Hears::Host => &mut far,
    };
    stream.write_all(&record).await.unwrap();
    let _ = order.until.await;
}

/// The next record of whoever has these secrets: encrypted, as all are (RFC 8446, section 6).
fn alert(suite: SupportedCipherSuite, secrets: ExtractedSecrets, order: &Order) -> Vec<u8> {
    let (number, secrets) = secrets.tx;
    let (key, iv) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv),
        _ => panic!("another cipher"),
    };
    let mut encrypter = suite.tls13().unwrap().aead_alg.encrypter(key, iv);
    let plain = OutboundPlainMessage {
        typ: ContentType::Alert,
        version: ProtocolVersion::TLSv1_3,
        payload: OutboundChunks::Single(&[order.level, order.code]),
    };
    encrypter.encrypt(plain, number).unwrap().encode()
}

fn certified((key, pem): (&Key, &str)) -> Arc<CertifiedKey> {
    let der = PrivatePkcs8KeyDer::from(pem::parse(pem).unwrap().into_contents());
    let signing = provider().key_provider.load_private_key(der.into()).unwrap();
    let spki = CertificateDer::from(key.spki().to_vec());
    Arc::new(CertifiedKey::new(vec![spki], signing))
}

fn as_host(key: Arc<CertifiedKey>) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Anybody))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.enable_secret_extraction = true;
    Arc::new(config)
}

fn as_client(key: Arc<CertifiedKey>) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    Arc::new(config)
}

/// Believes everybody.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        unreachable!("only TLS 1.3 is spoken")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        unreachable!("only TLS 1.3 is spoken")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
