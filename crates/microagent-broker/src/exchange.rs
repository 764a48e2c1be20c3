//! One request of the guest and its answer.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use jiff::Timestamp;
use microagent_model::decisions;
use microagent_model::egress::{BrokeredRequest, Decision, Reason, Subject};
use microagent_model::{AllowedRequest, Broker};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep_until;

use crate::REQUESTS_MAX;
use crate::audit::Audit;
use crate::body::{BodyError, IDLE_MAX, Passed, Progress};
use crate::headers::{for_guest, for_upstream, overriding, wants_websocket};
use crate::instructions::{EndpointError, Instructions};
use crate::path::{allows, check_target};
use crate::upstream::{ConnectError, UpstreamClient, client};

/// Longest method and path of a line of the audit, in bytes.
const METHOD_SHOWN_MAX: usize = 32;
const PATH_SHOWN_MAX: usize = 1024;

/// When a guest that was turned away may ask again, in seconds.
const RETRY_AFTER: &str = "1";

type GuestBody = UnsyncBoxBody<Bytes, BodyError>;
type UpstreamBody = Passed<()>;

/// All endpoints of one machine, and their common bounds.
pub(crate) struct Exchanges {
    endpoints: Vec<ServedEndpoint>,
    places: Arc<Semaphore>,
    audit: Arc<Audit>,
}

/// An endpoint that requests can be passed on by.
struct ServedEndpoint {
    broker: Broker,
    header: (HeaderName, HeaderValue),
    host: HeaderValue,
    client: UpstreamClient<UpstreamBody>,
}

/// Why a request is not passed on.
struct Refusal {
    status: StatusCode,
    reason: Reason,
    says: String,
}

impl Refusal {
    fn new(status: StatusCode, reason: Reason, says: impl Into<String>) -> Refusal {
        Refusal { status, reason, says: says.into() }
    }
}

impl Exchanges {
    pub(crate) fn new(instructions: Instructions, audit: Arc<Audit>) -> Result<Exchanges, EndpointError> {
        let Instructions { endpoints, certificates } = instructions;
        let served = endpoints.into_iter().map(|endpoint| {
            let value = endpoint.header_value()?;
            let client = client(&endpoint.broker, endpoint.authorities(&certificates))?;
            let broker = endpoint.broker.clone();
            let refused =
                || EndpointError::Host { name: broker.name().to_owned(), host: broker.upstream.host.clone() };
            let host = broker.upstream.authority().parse().map_err(|_| refused())?;
            let name = broker.header.parse().map_err(|_| refused())?;
            Ok(ServedEndpoint { header: (name, value), host, client, broker })
        });
        let endpoints = served.collect::<Result<_, _>>()?;
        Ok(Exchanges { endpoints, places: Arc::new(Semaphore::new(REQUESTS_MAX)), audit })
    }

    pub(crate) fn has_endpoint(&self, number: usize) -> bool {
        number < self.endpoints.len()
    }

    /// Passes a request on, and gives the answer, or says why there is none.
    pub(crate) async fn pass_on(&self, number: usize, request: Request<Incoming>) -> Response<GuestBody> {
        let endpoint = &self.endpoints[number];
        let name = endpoint.broker.name();
        let place = Arc::clone(&self.places).try_acquire_owned();
        let mut line = AuditLine::begin(Arc::clone(&self.audit), name, &request);
        let answered = match place {
            Ok(place) => {
                line.place = Some(place);
                endpoint.exchange(request, &line).await
            }
            Err(_) => {
                let says = format!("{REQUESTS_MAX} requests are under way; no more are passed on at a time");
                Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Reason::Connections, says))
            }
        };
        match answered {
            Ok(answer) => {
                line.status = Some(answer.status());
                let (head, body) = answer.into_parts();
                let received = Arc::clone(&line.received);
                let body = Passed::new(body, received, line);
                Response::from_parts(head, body.boxed_unsync())
            }
            Err(refusal) => {
                line.status = Some(refusal.status);
                line.reason = refusal.reason;
                refused(name, &refusal)
            }
        }
    }
}

impl ServedEndpoint {
    async fn exchange(
        &self,
        request: Request<Incoming>,
        line: &AuditLine,
    ) -> Result<Response<Incoming>, Refusal> {
        let target = self.target(&request)?;
        let (mut head, body) = request.into_parts();
        for_upstream(
            &mut head.headers,
            &self.host,
            (&self.header.0, &self.header.1),
            body.size_hint().exact(),
        );
        head.uri = target;
        head.version = Version::HTTP_11;
        head.extensions.clear();
        let body = Passed::new(body, Arc::clone(&line.sent), ());
        let asking = self.client.request(Request::from_parts(head, body));
        let mut answer = tokio::select! {
            answer = asking => answer.map_err(|error| unreachable_upstream(&error))?,
            () = idle(&line.sent) => return Err(Refusal::new(
                StatusCode::GATEWAY_TIMEOUT,
                Reason::Upstream,
                format!("the upstream did not answer within {} seconds", IDLE_MAX.as_secs()),
            )),
        };
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let says = "the upstream switched to a protocol that nobody asked for";
            return Err(Refusal::new(StatusCode::BAD_GATEWAY, Reason::Upstream, says));
        }
        for_guest(answer.headers_mut());
        Ok(answer)
    }

    /// The URL that a request leads to, if it is passed on.
    fn target(&self, request: &Request<Incoming>) -> Result<Uri, Refusal> {
        let malformed = |says: String| Refusal::new(StatusCode::BAD_REQUEST, Reason::Malformed, says);
        // The answer to TRACE repeats the request with its headers.
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            let says = format!("{} is not passed on", request.method());
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Reason::Malformed, says));
        }
        if wants_websocket(request.headers()) {
            let says = "a broker does not pass WebSocket on";
            return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, Reason::Malformed, says));
        }
        let framings = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
        if framings.iter().all(|name| request.headers().contains_key(name)) {
            return Err(malformed("the request has two lengths".to_owned()));
        }
        let uri = request.uri();
        if uri.authority().is_some() || uri.scheme().is_some() {
            return Err(malformed("a broker is no proxy: ask for a path".to_owned()));
        }
        check_target(uri.path()).map_err(|fault| malformed(fault.to_string()))?;
        let Broker { upstream, allow, .. } = &self.broker;
        if !allows(allow, request.method().as_str(), uri.path()) {
            return Err(not_allowed(request, allow));
        }
        if let Some(name) = overriding(request.headers()).filter(|_| !allow.is_empty()) {
            let says = format!(
                "the header `{name}` would make another request of it, at which `allow` has not looked"
            );
            return Err(Refusal::new(StatusCode::FORBIDDEN, Reason::NotAllowed, says));
        }
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let path = format!("{}{}{query}", upstream.base, uri.path());
        let unusual = || malformed("the query has a character that no URL has".to_owned());
        let path = PathAndQuery::try_from(path).map_err(|_| unusual())?;
        Uri::builder()
            .scheme("https")
            .authority(upstream.authority())
            .path_and_query(path)
            .build()
            .map_err(|_| unusual())
    }
}

fn not_allowed(request: &Request<Incoming>, allow: &[AllowedRequest]) -> Refusal {
    let patterns: Vec<String> = allow.iter().map(ToString::to_string).collect();
    let says = format!(
        "{} {} is not allowed; allowed is: {}",
        shown(request.method().as_str(), METHOD_SHOWN_MAX),
        shown(request.uri().path(), PATH_SHOWN_MAX),
        patterns.join(", ")
    );
    Refusal::new(StatusCode::FORBIDDEN, Reason::NotAllowed, says)
}

/// Ends when nothing of a body has moved for too long.
async fn idle(sent: &Progress) {
    loop {
        let until = sent.last() + IDLE_MAX;
        sleep_until(until).await;
        if sent.last() + IDLE_MAX <= until {
            return;
        }
    }
}

/// Why an upstream gave no answer.
fn unreachable_upstream(error: &hyper_util::client::legacy::Error) -> Refusal {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<ConnectError>() {
            let status = match cause {
                ConnectError::TooLate => StatusCode::GATEWAY_TIMEOUT,
                _ => StatusCode::BAD_GATEWAY,
            };
            let reason = if cause.is_certificate() { Reason::Certificate } else { Reason::Upstream };
            return Refusal::new(status, reason, format!("the upstream: {cause}"));
        }
        source = cause.source();
    }
    let says = format!("the upstream gave no answer: {}", microagent_proto::chain(error));
    Refusal::new(StatusCode::BAD_GATEWAY, Reason::Upstream, says)
}

/// The answer to a request that is not passed on. The connection stays: what is left of the body is read or it closes.
fn refused(name: &str, refusal: &Refusal) -> Response<GuestBody> {
    let text = format!("microagent broker {name}: {}\n", refusal.says);
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = refusal.status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if refusal.status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
    }
    answer
}

/// The line of one request, which is written when it is dropped: with the answer's body, or where the request ends.
struct AuditLine {
    audit: Arc<Audit>,
    broker: String,
    method: String,
    path: String,
    status: Option<StatusCode>,
    reason: Reason,
    sent: Arc<Progress>,
    received: Arc<Progress>,
    /// Its place among those that are under way.
    place: Option<OwnedSemaphorePermit>,
}

impl AuditLine {
    fn begin(audit: Arc<Audit>, broker: &str, request: &Request<Incoming>) -> AuditLine {
        AuditLine {
            audit,
            broker: broker.to_owned(),
            method: shown(request.method().as_str(), METHOD_SHOWN_MAX),
            path: shown(request.uri().path(), PATH_SHOWN_MAX),
            status: None,
            reason: Reason::Broker,
            sent: Progress::new(),
            received: Progress::new(),
            place: None,
        }
    }
}

impl Drop for AuditLine {
    fn drop(&mut self) {
        let request = BrokeredRequest {
            broker: std::mem::take(&mut self.broker),
            method: std::mem::take(&mut self.method),
            path: std::mem::take(&mut self.path),
            status: self.status.map(|status| status.as_u16()),
            sent_bytes: self.sent.bytes(),
            received_bytes: self.received.bytes(),
            duration_ms: self.sent.milliseconds(),
        };
        let allowed = self.reason == Reason::Broker;
        self.audit.record(&Decision {
            request: Some(Box::new(request)),
            ..decisions::new(Timestamp::now(), Subject::Request, allowed, self.reason)
        });
    }
}

/// A text of the guest for a line: visible characters, cut.
fn shown(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for character in text.escape_debug() {
        if shown.len() + character.len_utf8() > most {
            shown.push('…');
            break;
        }
        shown.push(character);
    }
    shown
}

const _: () = assert!(PATH_SHOWN_MAX + METHOD_SHOWN_MAX < 2048, "a line fits into a message");
const _: () = assert!(Duration::from_secs(60).as_secs() < IDLE_MAX.as_secs(), "models think for minutes");
