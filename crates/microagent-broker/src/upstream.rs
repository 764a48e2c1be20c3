//! Connections to an upstream: its name looked up for each, its certificate checked, HTTP/1.1 inside of TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use microagent_model::{AddressClass, Broker, Upstream};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use crate::instructions::EndpointError;
use crate::{HEAD_MAX, HEADERS_MAX};

/// How long it may take to look a name up and to connect, with TLS.
const CONNECT_DEADLINE: Duration = Duration::from_secs(20);

/// How long one of several addresses may take.
const ADDRESS_DEADLINE: Duration = Duration::from_secs(6);

/// How long an idle connection is kept for the next request, and how many are.
const IDLE_KEPT: Duration = Duration::from_secs(30);
const IDLE_CONNECTIONS_MAX: usize = 8;

/// Bytes that are read from a connection at once. rustls alone reads 4 KiB, so a download would cost a system call for
/// a quarter of each record.
const READ_BYTES: usize = 64 * 1024;

/// A client of one upstream. It follows no redirect.
pub(crate) type UpstreamClient<B> = Client<Connector, B>;

/// Makes the client of a broker.
pub(crate) fn client<'a, B>(
    broker: &Broker,
    authorities: impl Iterator<Item = CertificateDer<'a>>,
) -> Result<UpstreamClient<B>, EndpointError>
where
    B: http_body::Body + Send,
    B::Data: Send,
{
    let Upstream { host, port, .. } = &broker.upstream;
    let server_name = ServerName::try_from(host.clone())
        .map_err(|_| EndpointError::Host { name: broker.name().to_owned(), host: host.clone() })?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.map(CertificateDer::into_owned));
    let mut tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring serves the default protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let is_named = host.parse::<IpAddr>().is_ok() || host == "localhost";
    let target = Target {
        host: host.clone(),
        port: port.get(),
        server_name,
        tls: TlsConnector::from(Arc::new(tls)),
        is_private: broker.private || is_named,
    };
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_KEPT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .http1_max_buf_size(HEAD_MAX)
        .http1_max_headers(HEADERS_MAX)
        .set_host(false)
        .build(Connector(Arc::new(target))))
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("its name cannot be looked up: {0}")]
    Lookup(io::Error),
    #[error("its name resolves to {0}, which is not a public address; `private` allows that")]
    NotPublic(IpAddr),
    #[error("its name resolves to no address")]
    NoAddress,
    #[error("cannot connect to it: {0}")]
    Tcp(io::Error),
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("it did not answer within {} seconds", CONNECT_DEADLINE.as_secs())]
    TooLate,
}

impl ConnectError {
    /// Whether there is none because the upstream's certificate was refused.
    pub(crate) fn is_certificate(&self) -> bool {
        let ConnectError::Tls(error) = self else { return false };
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        matches!(cause, Some(rustls::Error::InvalidCertificate(_)))
    }
}

struct Target {
    host: String,
    port: u16,
    server_name: ServerName<'static>,
    tls: TlsConnector,
    /// Whether addresses that are not public may be connected to.
    is_private: bool,
}

/// Connects to one upstream, whatever URL is asked for.
#[derive(Clone)]
pub(crate) struct Connector(Arc<Target>);

impl Service<Uri> for Connector {
    type Response = TokioIo<UpstreamConnection>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let target = Arc::clone(&self.0);
        Box::pin(async move {
            let connected = timeout(CONNECT_DEADLINE, target.connect()).await;
            connected.unwrap_or(Err(ConnectError::TooLate)).map(TokioIo::new)
        })
    }
}

impl Target {
    async fn connect(&self) -> Result<UpstreamConnection, ConnectError> {
        let found = lookup_host((self.host.as_str(), self.port)).await.map_err(ConnectError::Lookup)?;
        let mut last = ConnectError::NoAddress;
        for address in found {
            if !self.is_private && !is_public(address.ip()) {
                last = ConnectError::NotPublic(address.ip());
                continue;
            }
            match self.connect_to(address).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect_to(&self, address: SocketAddr) -> Result<UpstreamConnection, ConnectError> {
        let connecting = timeout(ADDRESS_DEADLINE, TcpStream::connect(address));
        let tcp = connecting.await.map_err(|_| ConnectError::TooLate)?.map_err(ConnectError::Tcp)?;
        // Refused in no case that matters: a delay is all that it would mean.
        let _ = tcp.set_nodelay(true);
        let tcp = BufReader::with_capacity(READ_BYTES, tcp);
        let tls = self.tls.connect(self.server_name.clone(), tcp).await.map_err(ConnectError::Tls)?;
        Ok(UpstreamConnection(tls))
    }
}

/// Whether an address is one of the Internet, which anybody's name may lead to.
fn is_public(address: IpAddr) -> bool {
    AddressClass::of(address) == AddressClass::Public
}

/// A connection to an upstream.
pub(crate) struct UpstreamConnection(TlsStream<BufReader<TcpStream>>);

impl Connection for UpstreamConnection {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for UpstreamConnection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(context, buffer)
    }
}

impl AsyncWrite for UpstreamConnection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_internet_are_told_from_others() {
        for (address, public) in [
            ("8.8.8.8", true),
            ("10.1.2.3", false),
            ("127.0.0.1", false),
            ("168.63.129.16", false),
            ("192.0.0.192", false),
            ("2606:4700::1111", true),
            ("::1", false),
            ("fd00::1", false),
            ("2001:0:4136:e378::1", false),
            ("2002:a00:1::1", false),
            ("64:ff9b::a00:1", false),
            ("64:ff9b::808:808", true),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        }
    }
}
