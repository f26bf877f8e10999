//! TLS to etcd. It takes the certificates that Go's does: a server's own certificate as its authority, whatever it
//! says of itself, and keys on the curve P-521.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use etcd_client::{Channel, Client, ConnectOptions};
use hyper::Uri;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::Endpoint;
use tower::service_fn;

use super::access::Material;
use super::p521;

/// What a connection is secured with, from certificates as they were read.
pub(super) fn config(material: &Material) -> Result<Arc<ClientConfig>, String> {
    let cannot = |error: Error| error.to_string();
    let provider = Arc::new(p521::provider());
    let mut roots = RootCertStore::empty();
    let trusted = match &material.ca {
        Some(pem) => certificates(pem),
        None => rustls_native_certs::load_native_certs().certs,
    };
    // Of what is no authority, a server's own certificate can still be trusted.
    roots.add_parsable_certificates(trusted.iter().cloned());
    if roots.is_empty() && material.ca.is_none() {
        return Err("no native certs found".to_owned());
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&provider)).build();
    let inner = verifier.map_err(|error| error.to_string())?;
    let trusted = if material.ca.is_some() { trusted } else { Vec::new() };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(cannot)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { inner, trusted }));
    let mut config = match &material.identity {
        Some((chain, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| error.to_string())?;
            builder.with_client_auth_cert(certificates(chain), key).map_err(cannot)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Why reading from a connection failed last. A server that refuses a certificate says so after the handshake, when
/// HTTP tells no more than that the connection is closed.
#[derive(Debug, Clone, Default)]
pub(super) struct LastWord(Arc<Mutex<Option<String>>>);

impl LastWord {
    /// Nothing more once it has been told.
    pub(super) fn take(&self) -> Option<String> {
        self.0.lock().take()
    }

    fn note(&self, error: &io::Error) {
        *self.0.lock() = Some(error.to_string());
    }
}

/// A client of the server at `url`, which begins with `https://`. Unless `options` name a user, nothing is sent yet.
pub(super) async fn connect(
    url: &str,
    endpoint: impl FnOnce(Endpoint) -> Endpoint,
    options: ConnectOptions,
    config: Arc<ClientConfig>,
    last_word: LastWord,
) -> Result<Client, etcd_client::Error> {
    let invalid = |what: &str| etcd_client::Error::InvalidArgs(format!("{url}: {what}"));
    // TLS is spoken below what takes this for plain.
    let plain = format!("http://{}", url.trim_start_matches("https://"));
    let uri: Uri = plain.parse().map_err(|_| invalid("it is no URL"))?;
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let name =
        ServerName::try_from(host.clone()).map_err(|_| invalid("no certificate is for such a name"))?;
    let port = uri.port_u16().unwrap_or(443);
    let connector = TlsConnector::from(config);
    let secured = service_fn(move |_: Uri| {
        let (connector, host, name) = (connector.clone(), host.clone(), name.clone());
        let last_word = last_word.clone();
        async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            let stream = connector.connect(name, stream).await?;
            Ok::<_, io::Error>(TokioIo::new(Heard { stream, last_word, failed: None }))
        }
    });
    let channel = endpoint(Endpoint::from(uri)).connect_with_connector_lazy(secured);
    Client::from_channel(Channel::Tonic(channel), Some(options)).await
}

/// A connection whose last word is noted.
struct Heard {
    stream: TlsStream<TcpStream>,
    last_word: LastWord,
    /// Why a write failed, until what the server has said before is read.
    failed: Option<io::Error>,
}

impl Heard {
    /// What a write came to. One that fails waits for the server's last word: its alert may lie unread before the end
    /// that makes the write fail.
    fn after_hearing<T>(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TlsStream<TcpStream>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.failed.is_none() {
            match write(Pin::new(&mut self.stream), context) {
                Poll::Ready(Err(error)) => self.failed = Some(error),
                other => return other,
            }
        }
        let mut bytes = [0; 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(self.as_mut().poll_read(context, &mut buffer)).ok();
            if buffer.filled().is_empty() {
                let gone = || io::ErrorKind::BrokenPipe.into();
                return Poll::Ready(Err(self.failed.take().unwrap_or_else(gone)));
            }
        }
    }
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(Err(error)) = &read {
            self.last_word.note(error);
        }
        read
    }
}

impl AsyncWrite for Heard {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.after_hearing(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.after_hearing(context, |stream, context| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The certificates in a PEM text that has been found to hold some.
fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect()
}

/// Trusts authorities, and servers whose own certificate is among those given as authorities.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.inner.verify_server_cert(server, between, name, ocsp, now) {
            // That it is not signed by an authority, or is one itself. Its dates have been looked at before.
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::Other(_)))
                if self.trusted.iter().any(|trusted| trusted == server) =>
            {
                verify_server_name(&ParsedCertificate::try_from(server)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        server: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, server, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        server: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, server, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
