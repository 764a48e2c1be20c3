//! The protocol over HTTP, for clients that connect to a server which runs already.
//!
//! Nobody is served without the token: it is checked before anything else of a request is read. `Host` and `Origin` are
//! checked as well, so that a page in a browser reaches nothing, even where it knows the token. Protocol, sessions and
//! streams are `rmcp`'s; connections, bounds and deadlines are here.

mod places;
mod sessions;
mod token;

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use microagent::{CancellationToken, Engine};
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::task::TaskTracker;

use self::places::{Place, Places};
use self::sessions::Sessions;
pub use self::token::{AccessToken, TokenError};
use crate::Policy;
use crate::error::ServeError;
use crate::server::{MESSAGE_LIMIT, Server};

/// Where the protocol is spoken.
pub const HTTP_PATH: &str = "/mcp";

/// Most connections at a time. A further one takes the place of one that has not shown the token, or waits.
const CONNECTIONS_MAX: usize = 128;

/// How long the head of a request may take, and a connection may be without one.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

/// How long the body of a request may take.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// Most bytes of a body that are read to tell its sender that it is too long: who is still sending reads no answer.
const DRAINED_MAX: usize = 8 * MESSAGE_LIMIT;

/// How often idle sessions are looked for.
const IDLE_INTERVAL: Duration = Duration::from_secs(15);

/// How long to wait before another connection is taken, when one could not be: the process may be out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long connections may take to end when the server ends.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// A server that listens and serves nobody yet.
#[derive(Debug)]
pub struct HttpServer {
    listener: StdListener,
    address: SocketAddr,
    hosts: Vec<String>,
}

impl HttpServer {
    /// Listens. `hosts` are names, with or without a port, by which clients may reach it besides this computer's own:
    /// those of a proxy, or those that others know this computer by.
    ///
    /// # Errors
    /// Fails when the address is one that others can reach and no such name is given, or cannot be listened at.
    pub fn bind(address: SocketAddr, hosts: Vec<String>) -> Result<HttpServer, ServeError> {
        if !address.ip().is_loopback() && hosts.is_empty() {
            return Err(ServeError::Exposed { address });
        }
        let failed = |source| ServeError::Listen { address, source };
        let listener = StdListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(HttpServer { listener, address, hosts })
    }

    /// The address of the endpoint, for clients of this computer.
    pub fn url(&self) -> String {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                [127, 0, 0, 1].into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        format!("http://{address}{HTTP_PATH}")
    }

    /// Serves clients that have the token until `cancel` is cancelled. Then commands in progress are killed, and
    /// workspaces deleted as the policy says.
    ///
    /// # Errors
    /// Fails when the name of the server is no label, or workspaces could not be deleted.
    ///
    /// # Source
    /// Model Context Protocol, "Transports", Streamable HTTP; its security section asks for Origin, loopback and
    /// authentication.
    pub async fn serve(
        self,
        engine: Engine,
        policy: Policy,
        token: AccessToken,
        cancel: CancellationToken,
    ) -> Result<(), ServeError> {
        let server = Server::new(engine, policy)?;
        let address = self.address;
        let listener =
            TcpListener::from_std(self.listener).map_err(|source| ServeError::Listen { address, source })?;
        let streams = CancellationToken::new();
        let sessions = Arc::new(Sessions::new());
        let config = StreamableHttpServerConfig::default()
            .with_allowed_hosts(allowed_hosts(address, &self.hosts))
            .with_allowed_origins(allowed_origins(address, &self.hosts))
            .with_max_request_body_bytes(MESSAGE_LIMIT)
            .with_cancellation_token(streams.clone());
        let (of_client, for_clients) = (server.clone(), Arc::clone(&sessions));
        let protocol = StreamableHttpService::new(move || Ok(of_client.clone()), for_clients, config);
        let endpoint = Arc::new(Endpoint { protocol, token, shutdown: server.shutdown().clone() });
        let connections = TaskTracker::new();
        tokio::select! {
            () = accept(&listener, &endpoint, &connections, &streams) => unreachable!("it takes connections until it is dropped"),
            () = end_idle(&sessions) => unreachable!("it looks for idle sessions until it is dropped"),
            () = cancel.cancelled() => {}
        }
        drop(listener);
        // Results of cancelled calls are still sent; the streams end after them.
        let finished = server.finish().await;
        streams.cancel();
        connections.close();
        // A connection that does not end in time ends with the process.
        let _ = timeout(CLOSE_PATIENCE, connections.wait()).await;
        finished
    }
}

/// Names of this computer for itself with any port, because a forwarded one is another; and those that the user gives.
fn allowed_hosts(address: SocketAddr, hosts: &[String]) -> Vec<String> {
    let own = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let bound = [address.ip().to_string()].into_iter().filter(|_| address.ip().is_loopback());
    own.into_iter().chain(bound).chain(hosts.iter().cloned()).collect()
}

/// Pages of the server's own address. Other programs than browsers send no `Origin`.
fn allowed_origins(address: SocketAddr, hosts: &[String]) -> Vec<String> {
    let port = address.port();
    let own = ["localhost", "127.0.0.1", "[::1]"].map(|host| format!("http://{host}:{port}"));
    let others = hosts.iter().flat_map(|host| {
        let port = if host.rsplit(']').next().is_some_and(|rest| rest.contains(':')) { "" } else { ":*" };
        ["http", "https"].map(|scheme| format!("{scheme}://{host}{port}"))
    });
    own.into_iter().chain(others).collect()
}

async fn end_idle(sessions: &Sessions) {
    let mut ticks = interval(IDLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        sessions.end_idle().await;
    }
}

async fn accept(
    listener: &TcpListener,
    endpoint: &Arc<Endpoint>,
    connections: &TaskTracker,
    streams: &CancellationToken,
) {
    let places = Places::new(CONNECTIONS_MAX);
    loop {
        match listener.accept().await {
            Ok((connection, _)) => {
                let place = Arc::new(places.take().await);
                connections.spawn(serve_connection(connection, place, Arc::clone(endpoint), streams.clone()));
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn serve_connection(
    connection: TcpStream,
    place: Arc<Place>,
    endpoint: Arc<Endpoint>,
    end: CancellationToken,
) {
    let held = Arc::clone(&place);
    let service = service_fn(move |request| {
        let (endpoint, place) = (Arc::clone(&endpoint), Arc::clone(&held));
        async move { Ok::<_, Infallible>(endpoint.answer(request, &place).await) }
    });
    let mut serving = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .serve_connection(TokioIo::new(connection), service)
    );
    // An error is the client's: it went away, or does not speak HTTP.
    tokio::select! {
        _ = serving.as_mut() => return,
        () = place.displaced() => return,
        () = end.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// What is behind a connection.
struct Endpoint {
    protocol: StreamableHttpService<Server, Sessions>,
    token: AccessToken,
    shutdown: CancellationToken,
}

impl Endpoint {
    async fn answer(&self, request: Request<Incoming>, place: &Place) -> Answer {
        if !request.headers().get(AUTHORIZATION).is_some_and(|value| self.token.is_in(value.as_bytes())) {
            let mut answer =
                refusal(StatusCode::UNAUTHORIZED, "the bearer token of this server is missing or wrong");
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return answer;
        }
        place.keep();
        if request.uri().path() != HTTP_PATH {
            return refusal(StatusCode::NOT_FOUND, "the protocol is spoken at /mcp");
        }
        if ![Method::GET, Method::POST, Method::DELETE].contains(request.method()) {
            let mut answer =
                refusal(StatusCode::METHOD_NOT_ALLOWED, "the protocol uses GET, POST and DELETE");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST, DELETE"));
            return answer;
        }
        let (head, body) = request.into_parts();
        let body = match timeout(BODY_DEADLINE, read_body(body)).await {
            Ok(Ok(body)) => body,
            Ok(Err(answer)) => return *answer,
            Err(_) => {
                return refusal(StatusCode::REQUEST_TIMEOUT, "the request did not come to its end in time");
            }
        };
        if self.shutdown.is_cancelled() {
            let mut answer = refusal(StatusCode::SERVICE_UNAVAILABLE, "the server is ending");
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
            return answer;
        }
        self.protocol.handle(Request::from_parts(head, Full::new(body))).await
    }
}

/// Reads a body that is not too long.
async fn read_body(mut body: Incoming) -> Result<Bytes, Box<Answer>> {
    let mut bytes = Vec::new();
    let mut len = 0;
    while len <= DRAINED_MAX && !body.is_end_stream() {
        let Some(frame) = body.frame().await else { break };
        let frame =
            frame.map_err(|_| Box::new(refusal(StatusCode::BAD_REQUEST, "the request is not complete")))?;
        let Ok(data) = frame.into_data() else { continue };
        len += data.len();
        if len <= MESSAGE_LIMIT {
            bytes.extend_from_slice(&data);
        }
    }
    match len <= MESSAGE_LIMIT {
        true => Ok(bytes.into()),
        false => Err(Box::new(refusal(StatusCode::PAYLOAD_TOO_LARGE, "a message has at most 8 MiB"))),
    }
}

const _: () = assert!(MESSAGE_LIMIT == 8 * 1024 * 1024, "the text of the refusal has it");

fn refusal(status: StatusCode, text: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from_static(text.as_bytes())).boxed());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(address: &str, hosts: &[&str]) -> Result<HttpServer, ServeError> {
        HttpServer::bind(address.parse().unwrap(), hosts.iter().map(|host| (*host).to_owned()).collect())
    }

    #[test]
    fn only_loopback_is_listened_at_unless_a_host_is_named() {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            assert!(matches!(bind(address, &[]), Err(ServeError::Exposed { .. })), "{address}");
        }
        assert!(bind("127.0.0.1:0", &[]).unwrap().url().starts_with("http://127.0.0.1:"));
        let open = bind("0.0.0.0:0", &["agents.example.org"]).unwrap();
        assert!(open.url().starts_with("http://127.0.0.1:"), "{}", open.url());
    }

    #[test]
    fn hosts_and_origins_are_those_of_the_server() {
        let hosts = ["agents.example.org:8443".to_owned(), "[2001:db8::1]".to_owned()];
        let address = "127.0.0.2:80".parse().unwrap();
        let allowed = allowed_hosts(address, &hosts);
        assert!(allowed.contains(&"127.0.0.2".to_owned()) && allowed.contains(&hosts[0]));
        let origins = allowed_origins(address, &hosts);
        for wanted in ["http://localhost:80", "https://agents.example.org:8443", "https://[2001:db8::1]:*"] {
            assert!(origins.contains(&wanted.to_owned()), "{wanted}: {origins:?}");
        }
        let any = "0.0.0.0:80".parse().unwrap();
        assert!(!allowed_hosts(any, &hosts).contains(&"0.0.0.0".to_owned()));
    }
}
