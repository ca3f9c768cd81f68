//! Mutual TLS between nodes and managers: frames, connections, and who is at the other end.
//!
//! ```text
//!  length, 4 bytes big-endian │ postcard of a Request ──►
//!                         ◄── │ length, 4 bytes          │ postcard of an Answer
//! ```
//! One question at a time per connection; connections are kept for the next one. TLS 1.3 only. **Invariant:** no
//! length from the other side is believed beyond a limit, and nothing is waited for without a limit.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::gate::{Gate, Peer};
use super::ids::{Digest, SecretText};
use super::rpc::{
    Answer, Call, FRAME_LEN_MAX, FRAME_LEN_MAX_JOINER, JoinRequest, Link, LinkError, Request,
};
use crate::cluster::pki::{self, NodeName, PkiError};
use crate::model::error::{ApiError, ErrorCode};

/// Connections a manager serves at once.
const CONNECTIONS_MAX: usize = 1024;
/// A handshake takes no longer.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// A connection without a question for so long is closed; one without a certificate sooner.
const IDLE_LIMIT: Duration = Duration::from_secs(300);
const IDLE_LIMIT_JOINER: Duration = Duration::from_secs(10);
/// Sending an answer takes no longer.
const SEND_LIMIT: Duration = Duration::from_secs(30);
/// Connections kept per address.
const IDLE_PER_ADDRESS_MAX: usize = 4;

/// What a node shows of itself and whom it trusts.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Id of the cluster.
    pub cluster: String,
    /// Its private key in PEM.
    pub key: SecretText,
    /// Its certificate in PEM.
    pub certificate: String,
    /// Certificates of the CAs in PEM.
    pub authorities: Vec<String>,
    /// The clock certificates are checked by.
    pub clock: Arc<dyn TimeProvider>,
}

impl Credentials {
    /// With the system's clock.
    pub fn new(
        cluster: String,
        key: SecretText,
        certificate: String,
        authorities: Vec<String>,
    ) -> Credentials {
        Credentials {
            cluster,
            key,
            certificate,
            authorities,
            clock: Arc::new(DefaultTimeProvider),
        }
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, PkiError> {
        let mut roots = RootCertStore::empty();
        for pem in &self.authorities {
            roots.add(pki::der_of(pem)?).map_err(tls_error)?;
        }
        Ok(Arc::new(roots))
    }

    /// The certificate, and the CA behind it: a joining node finds the digest it pins there.
    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, PkiError> {
        let certificates = std::iter::once(&self.certificate).chain(&self.authorities);
        certificates.map(|pem| pki::der_of(pem)).collect()
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, PkiError> {
        let pem = self.key.reveal().as_bytes();
        PrivateKeyDer::from_pem_slice(pem).map_err(|e| PkiError::Read {
            what: "the node's key",
            reason: format!("{e:?}"),
        })
    }

    fn client_config(&self) -> Result<ClientConfig, PkiError> {
        let builder = ClientConfig::builder_with_details(provider(), self.clock.clone());
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]);
        let builder = builder
            .map_err(tls_error)?
            .with_root_certificates(self.roots()?);
        let config = builder.with_client_auth_cert(self.chain()?, self.private_key()?);
        config.map_err(tls_error)
    }

    fn server_config(&self) -> Result<ServerConfig, PkiError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider());
        let verifier = verifier.allow_unauthenticated().build();
        let verifier = verifier.map_err(|e| PkiError::Read {
            what: "the CA's certificate",
            reason: e.to_string(),
        })?;
        let builder = ServerConfig::builder_with_details(provider(), self.clock.clone());
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]);
        let builder = builder
            .map_err(tls_error)?
            .with_client_cert_verifier(verifier);
        let config = builder.with_single_cert(self.chain()?, self.private_key()?);
        config.map_err(tls_error)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn tls_error(e: rustls::Error) -> PkiError {
    PkiError::Read {
        what: "the node's certificates",
        reason: e.to_string(),
    }
}

type ClientStream = client::TlsStream<TcpStream>;

/// A node's connections to managers.
pub struct TlsLink {
    shared: Arc<LinkShared>,
}

struct LinkShared {
    connector: ArcSwap<ClientConfig>,
    /// The name a manager of this cluster has.
    server: ServerName<'static>,
    idle: Mutex<BTreeMap<String, Vec<ClientStream>>>,
}

impl TlsLink {
    /// With a node's credentials.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn new(credentials: &Credentials) -> Result<TlsLink, PkiError> {
        let name = NodeName::manager_of(&credentials.cluster);
        let server = ServerName::try_from(name).map_err(|_| PkiError::NotANode)?;
        let shared = LinkShared {
            connector: ArcSwap::from_pointee(credentials.client_config()?),
            server,
            idle: Mutex::default(),
        };
        Ok(TlsLink {
            shared: Arc::new(shared),
        })
    }

    /// Shows other credentials from now on, and closes what was opened with the old ones.
    ///
    /// # Errors
    /// When they cannot be read; the old ones stay then.
    pub fn renew(&self, credentials: &Credentials) -> Result<(), PkiError> {
        let config = credentials.client_config()?;
        self.shared.connector.store(Arc::new(config));
        self.shared.idle().clear();
        Ok(())
    }
}

impl Link for TlsLink {
    fn call(&self, to: &str, request: Request, limit: Duration) -> Call {
        let shared = self.shared.clone();
        let to = to.to_owned();
        Box::pin(async move {
            let asked = timeout(limit, shared.ask(&to, &request)).await;
            asked.unwrap_or_else(|_| {
                let ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                Err(LinkError::Timeout { to, ms })
            })
        })
    }
}

impl LinkShared {
    fn idle(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<ClientStream>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, to: &str, request: &Request) -> Result<Answer, LinkError> {
        let kept = self.idle().get_mut(to).and_then(Vec::pop);
        if let Some(mut stream) = kept
            && let Ok(answer) = exchange(&mut stream, to, request).await
        {
            self.keep(to, stream);
            return Ok(answer);
        }
        // None was kept, or the other side has closed it meanwhile. Every request can be asked twice.
        let config = self.connector.load_full();
        let mut stream = connect(to, config, self.server.clone()).await?;
        let answer = exchange(&mut stream, to, request).await?;
        self.keep(to, stream);
        Ok(answer)
    }

    fn keep(&self, to: &str, stream: ClientStream) {
        let mut idle = self.idle();
        let streams = idle.entry(to.to_owned()).or_default();
        if streams.len() < IDLE_PER_ADDRESS_MAX {
            streams.push(stream);
        }
    }
}

/// Asks a manager to let this node in. Trusts nobody but the CA that the token pins.
///
/// # Errors
/// When nobody answers there, or it is not a manager of the token's cluster.
pub async fn join(
    to: &str,
    authority: Digest,
    request: JoinRequest,
    clock: Arc<dyn TimeProvider>,
    limit: Duration,
) -> Result<Answer, LinkError> {
    let untrusted = |e: rustls::Error| LinkError::Untrusted {
        to: to.to_owned(),
        reason: e.to_string(),
    };
    let pinned = Arc::new(Pinned {
        authority,
        provider: provider(),
    });
    let builder = ClientConfig::builder_with_details(provider(), clock);
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]);
    let builder = builder.map_err(untrusted)?.dangerous();
    let config = builder
        .with_custom_certificate_verifier(pinned)
        .with_no_client_auth();
    // The cluster's name is not known yet: the verifier reads it from the certificate.
    let server = ServerName::try_from("manager.weft").map_err(|_| LinkError::Garbled {
        to: to.to_owned(),
        reason: "no name".into(),
    })?;
    let asked = timeout(limit, async {
        let mut stream = connect(to, Arc::new(config), server).await?;
        exchange(&mut stream, to, &Request::Join(Box::new(request))).await
    });
    asked.await.unwrap_or_else(|_| {
        let ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        Err(LinkError::Timeout { to: to.into(), ms })
    })
}

/// Believes a manager whose CA has the digest that a join token pins.
#[derive(Debug)]
struct Pinned {
    authority: Digest,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let general = |text: &str| rustls::Error::General(text.to_owned());
        let mut authorities = intermediates.iter();
        let authority = authorities.find(|der| pki::digest(der) == self.authority);
        let authority = authority.ok_or_else(|| general(WRONG_AUTHORITY))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone());
        let verifier = verifier.build().map_err(|e| general(&e.to_string()))?;
        let name = pki::name_of(end_entity).map_err(|e| general(&e.to_string()))?;
        let name = ServerName::try_from(NodeName::manager_of(&name.cluster));
        let name = name.map_err(|_| general("the cluster's name is no name"))?;
        verifier.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

const WRONG_AUTHORITY: &str =
    "its CA is not the one that the join token pins: wrong host or wrong token";

async fn connect(
    to: &str,
    config: Arc<ClientConfig>,
    server: ServerName<'static>,
) -> Result<ClientStream, LinkError> {
    let tcp = TcpStream::connect(to)
        .await
        .map_err(|e| LinkError::Unreachable {
            to: to.to_owned(),
            reason: e.to_string(),
        })?;
    // Small questions are not to wait for each other's acknowledgement.
    let _ = tcp.set_nodelay(true);
    let connector = TlsConnector::from(config);
    connector
        .connect(server, tcp)
        .await
        .map_err(|e| link_error(to, &e))
}

async fn exchange(
    stream: &mut ClientStream,
    to: &str,
    request: &Request,
) -> Result<Answer, LinkError> {
    let asked = async {
        write_frame(stream, request).await?;
        read_frame(stream, FRAME_LEN_MAX).await
    };
    asked.await.map_err(|e| link_error(to, &e))
}

/// TLS errors hide in I/O errors: those that mean the clock or the wrong cluster are told in words.
fn link_error(to: &str, error: &io::Error) -> LinkError {
    let to = to.to_owned();
    let inner = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>());
    let Some(tls) = inner else {
        let reason = error.to_string();
        return match error.kind() {
            io::ErrorKind::InvalidData => LinkError::Garbled { to, reason },
            _ => LinkError::Unreachable { to, reason },
        };
    };
    use rustls::{AlertDescription, CertificateError, Error};
    let reason = match tls {
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "its certificate is not valid yet by this node's clock: set the clock right".into(),
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "its certificate has expired by this node's clock: set the clock right, or renew it there".into(),
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "its certificate is of another CA: it is of another cluster".into()
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "it is no manager of this cluster".into(),
        Error::AlertReceived(
            AlertDescription::CertificateExpired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied,
        ) => format!("it does not accept this node's certificate ({tls})"),
        Error::General(text) => text.clone(),
        other => other.to_string(),
    };
    LinkError::Untrusted { to, reason }
}

async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    value: &impl Serialize,
) -> io::Result<()> {
    let body = postcard::to_stdvec(value).map_err(invalid)?;
    if body.len() > FRAME_LEN_MAX {
        return Err(invalid(format!(
            "a frame of {} bytes is too long to send",
            body.len()
        )));
    }
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    stream.write_all(&frame).await?;
    stream.flush().await
}

async fn read_frame<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    len_max: usize,
) -> io::Result<T> {
    let mut len = [0; 4];
    stream.read_exact(&mut len).await?;
    let len = u32::from_be_bytes(len) as usize;
    if len > len_max {
        return Err(invalid(format!(
            "a frame of {len} bytes, {len_max} are allowed"
        )));
    }
    // Memory grows with what really comes, not with what was announced.
    let mut body = Vec::with_capacity(len.min(FRAME_LEN_MAX_JOINER));
    let read = stream.take(len as u64).read_to_end(&mut body).await?;
    if read < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    postcard::from_bytes(&body).map_err(invalid)
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// A manager's listening socket at work. Dropping it closes every connection.
pub struct TlsServer {
    config: Arc<ArcSwap<ServerConfig>>,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl TlsServer {
    /// Serves a gate on a socket.
    ///
    /// # Errors
    /// When the credentials cannot be read.
    pub fn start(
        listener: TcpListener,
        credentials: &Credentials,
        gate: Arc<Gate>,
    ) -> Result<TlsServer, PkiError> {
        let config = Arc::new(ArcSwap::from_pointee(credentials.server_config()?));
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let address = listener.local_addr().unwrap_or(unknown);
        let accepting = tokio::spawn(accept(listener, config.clone(), gate));
        Ok(TlsServer {
            config,
            address,
            accepting,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Shows other credentials on new connections.
    ///
    /// # Errors
    /// When they cannot be read; the old ones stay then.
    pub fn renew(&self, credentials: &Credentials) -> Result<(), PkiError> {
        self.config.store(Arc::new(credentials.server_config()?));
        Ok(())
    }
}

async fn accept(listener: TcpListener, config: Arc<ArcSwap<ServerConfig>>, gate: Arc<Gate>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, for one: others may close some.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let acceptor = TlsAcceptor::from(config.load_full());
        let gate = gate.clone();
        connections.spawn(async move {
            if let Err(error) = serve(tcp, from, acceptor, &gate).await {
                tracing::debug!(%from, %error, "a connection ended");
            }
            drop(place);
        });
    }
}

async fn serve(
    tcp: TcpStream,
    from: SocketAddr,
    acceptor: TlsAcceptor,
    gate: &Gate,
) -> io::Result<()> {
    let _ = tcp.set_nodelay(true);
    let mut stream = timeout(HANDSHAKE_LIMIT, acceptor.accept(tcp)).await??;
    let peer = peer_of(&stream, from)?;
    let (idle, len_max) = match peer {
        Peer::Joiner(_) => (IDLE_LIMIT_JOINER, FRAME_LEN_MAX_JOINER),
        Peer::Node { .. } => (IDLE_LIMIT, FRAME_LEN_MAX),
    };
    loop {
        let request = match timeout(idle, read_frame(&mut stream, len_max)).await? {
            Ok(request) => request,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let refusal = Answer::Refused(ApiError::new(
                    ErrorCode::InvalidRequest,
                    format!("that is no question: {error}"),
                    "run the same version of weft on all nodes",
                ));
                timeout(SEND_LIMIT, write_frame(&mut stream, &refusal)).await??;
                let _ = timeout(SEND_LIMIT, stream.shutdown()).await;
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        let answer = gate.answer(&peer, request).await;
        timeout(SEND_LIMIT, write_frame(&mut stream, &answer)).await??;
    }
}

fn peer_of(stream: &server::TlsStream<TcpStream>, from: SocketAddr) -> io::Result<Peer> {
    let (_, session) = stream.get_ref();
    match session.peer_certificates().and_then(|chain| chain.first()) {
        None => Ok(Peer::Joiner(from.ip())),
        Some(der) => Ok(Peer::Node {
            name: pki::name_of(der).map_err(|e| invalid(e.to_string()))?,
            certificate: pki::digest(der),
        }),
    }
}

#[cfg(test)]
mod tests;
