//! Connections: taken with or without TLS, so many of them and no more, and none for nothing.
//!
//! A client that sends its request's head or body a byte a minute, or nothing, is let go.

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

/// How many connections are open at a time.
pub const MOST: usize = 8192;

/// How long a request's head may take, from the end of the request before it.
const HEAD: Duration = Duration::from_secs(30);

/// How long a client may take to agree on TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long to wait where no connection can be taken: the process has no descriptor left.
const PATIENCE: Duration = Duration::from_millis(50);

/// Has all of this process's TLS done by ring, which it has anyway.
pub fn use_ring() {
    // It fails where that was said before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Takes connections, for ever.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<TlsAcceptor>,
    room: Arc<Semaphore>,
) {
    loop {
        // Never closed.
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(taken) => taken,
            Err(error) => {
                tracing::warn!("a connection cannot be taken: {error}");
                sleep(PATIENCE).await;
                continue;
            }
        };
        // Messages are small, and somebody waits for each.
        let _ = stream.set_nodelay(true);
        let (router, tls) = (router.clone(), tls.clone());
        tokio::spawn(async move {
            connection(stream, from, router, tls).await;
            drop(permit);
        });
    }
}

async fn connection(stream: TcpStream, from: SocketAddr, router: Router, tls: Option<TlsAcceptor>) {
    let Some(tls) = tls else { return http(stream, from, router).await };
    match timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => http(stream, from, router).await,
        Ok(Err(error)) => tracing::debug!("{from}: no TLS: {error}"),
        Err(_) => tracing::debug!("{from}: TLS took too long"),
    }
}

async fn http<S>(stream: S, from: SocketAddr, router: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(from));
        request.map(Body::new)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!("{from}: {error}");
    }
}

/// TLS with a certificate and its key, both PEM.
///
/// # Errors
/// A sentence that names the file.
pub fn tls(certificate: &Path, key: &Path) -> Result<TlsAcceptor, String> {
    let of_certificate = |error: &dyn std::fmt::Display| {
        format!("--tls-certfile {}: is no PEM file of certificates: {error}", certificate.display())
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| of_certificate(&error))?;
    if chain.is_empty() {
        return Err(of_certificate(&"it has none"));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| {
        format!("--tls-keyfile {}: is no PEM file of a private key: {error}", key.display())
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private));
    let mut config = config.map_err(|error| {
        format!("--tls-keyfile {}: does not fit the certificate: {error}", key.display())
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
