//! The registry protocol: manifests and blobs, with login. Pulling is here, pushing in [`upload`].
//!
//! Hand-written on top of an HTTP client, because every read from a registry has a bound here: manifests,
//! token answers and error texts as well as blobs. Nothing is verified here; whoever asks for content
//! compares size and digest. Nothing is retried here either, except once after a login.
//!
//! HTTPS everywhere; plain HTTP only to loopback and to registries that the caller names for it, when HTTPS does
//! not answer there. A login goes to the registry's own origin and to the token server that it names, and to no
//! host that either of them redirects to.
//!
//! # Source
//! OCI distribution specification 1.1; Docker token authentication specification.

pub(crate) mod challenge;
pub(crate) mod retry_after;
mod upload;

use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use self::challenge::{Challenge, Scheme};
pub(crate) use self::upload::Arrival;
use crate::credentials::{self, Credentials};
use crate::digest::Digest;
use crate::environment::Environment;
use crate::error::{ImageError, certificate_problem, is_unknown_host, speaks_plain_http};
use crate::manifest::{ACCEPTED, MANIFEST_LIMIT, printable};
use crate::network::{self, NetworkOptions, RegistryClients};
use crate::reference::{DEFAULT_REGISTRY, RegistryReference, host_of, is_loopback};

/// Where `docker.io` really is.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
/// Largest answer of a token server.
const TOKEN_LIMIT: u64 = 1024 * 1024;
/// Most bytes of an error answer that are read.
const ERROR_LIMIT: u64 = 16 * 1024;
/// Most characters of an error answer that are shown.
const DETAIL_MAX: usize = 200;
/// For a whole small answer (manifest, token), however slowly it drips.
const SMALL_ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// How long a push waits for an answer at most; each upload watches for a standstill by itself.
const PUSH_READ_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// What we want of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Pull,
    Push,
}

/// A repository in a registry, with our login there.
pub(crate) struct Registry<'a> {
    reference: &'a RegistryReference,
    access: Access,
    environment: &'a Environment,
    base: Url,
    http: RegistryClients,
    login: Mutex<Option<Login>>,
}

#[derive(Clone)]
struct Login {
    header: HeaderValue,
    /// Whether it stands for somebody; anonymous tokens do not.
    authenticated: bool,
}

/// A manifest or index, unverified.
pub(crate) struct RawManifest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: Option<String>,
}

/// The rest of a blob, unverified.
pub(crate) struct BlobBody {
    response: Response,
    /// Where in the blob it starts: as asked for, or zero when the registry cannot do that.
    pub(crate) offset: u64,
    registry: String,
}

impl BlobBody {
    /// The next bytes; `None` at the end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<impl AsRef<[u8]>>, ImageError> {
        self.response.chunk().await.map_err(|source| unreachable(&self.registry, source))
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ErrorEntry {
    code: String,
    message: String,
}

impl<'a> Registry<'a> {
    /// Finds out how to talk to the registry. Sends nothing, except to loopback.
    pub(crate) async fn connect(
        reference: &'a RegistryReference,
        environment: &'a Environment,
        options: &NetworkOptions,
        access: Access,
    ) -> Result<Registry<'a>, ImageError> {
        // The client's timeout runs while a request is being sent, however much of it moves.
        let read_timeout = match access {
            Access::Pull => options.read_timeout,
            Access::Push => PUSH_READ_TIMEOUT,
        };
        let options = NetworkOptions { read_timeout, ..options.clone() };
        let http = network::registry_clients(environment, &options, reference)?;
        let host = match reference.registry.as_str() {
            DEFAULT_REGISTRY => DOCKER_HUB_HOST,
            other => other,
        };
        let at = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/v2/")).expect("a checked registry host makes a URL")
        };
        let mut base = at("https");
        let may_be_plain = reference.is_loopback() || environment.is_insecure(&reference.registry);
        if may_be_plain && let Err(error) = http.content.get(base.clone()).send().await {
            if certificate_problem(&error).is_some() {
                return Err(unreachable(&reference.registry, error));
            }
            base = at("http");
        }
        Ok(Registry { reference, access, environment, base, http, login: Mutex::new(None) })
    }

    /// The registry as the reference names it.
    pub(crate) fn name(&self) -> &str {
        &self.reference.registry
    }

    /// Fetches a manifest or index by tag or digest.
    pub(crate) async fn manifest(&self, selector: &str) -> Result<RawManifest, ImageError> {
        let what = || format!("manifest `{selector}`");
        let url = self.url(&format!("manifests/{selector}"));
        let fetch = async {
            let response = self.send(|http| http.get(url.clone()).header(ACCEPT, ACCEPTED)).await?;
            if response.status() == StatusCode::NOT_FOUND {
                let (reference, detail) = (self.reference.to_string(), self.error_detail(response).await);
                return Err(ImageError::UnknownImage { reference, detail });
            }
            let response = self.expect(response, &[StatusCode::OK], &what()).await?;
            let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            // Parameters such as a character set say nothing here.
            let content_type =
                content_type.and_then(|value| value.split(';').next()).map(|v| v.trim().to_owned());
            let bytes = self.read(response, MANIFEST_LIMIT, what).await?;
            Ok(RawManifest { bytes, content_type })
        };
        self.within_deadline(what, fetch).await
    }

    /// Starts fetching a blob from a byte on. `None` when the registry has nothing from there on.
    pub(crate) async fn blob(&self, digest: &Digest, offset: u64) -> Result<Option<BlobBody>, ImageError> {
        let url = self.url(&format!("blobs/{digest}"));
        let request = |http: &Client| match offset {
            0 => http.get(url.clone()),
            offset => http.get(url.clone()).header(RANGE, format!("bytes={offset}-")),
        };
        let response = self.send(request).await?;
        if offset > 0 && response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(None);
        }
        let expected = [StatusCode::OK, StatusCode::PARTIAL_CONTENT];
        let response = self.expect(response, &expected, &format!("blob {digest}")).await?;
        let offset = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                if range.and_then(range_start) != Some(offset) {
                    return Ok(None);
                }
                offset
            }
            _ => 0,
        };
        Ok(Some(BlobBody { response, offset, registry: self.reference.registry.clone() }))
    }

    fn url(&self, tail: &str) -> Url {
        self.base.join(&format!("{}/{tail}", self.reference.repository)).expect("checked names make a URL")
    }

    /// Sends a request, logging in when the registry asks for it.
    async fn send(&self, request: impl Fn(&Client) -> RequestBuilder) -> Result<Response, ImageError> {
        let known = self.login.lock().await.clone();
        let response = self.try_send(&request, known.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        self.check_origin(&response)?;
        let challenges: Vec<Challenge> = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        drop(response);
        // Several downloads may be refused at once when a token ends: one logs in, the others use it.
        let mut login = self.login.lock().await;
        let stale = known.as_ref().map(|login| &login.header);
        if login.is_none() || login.as_ref().map(|login| &login.header) == stale {
            *login = Some(self.log_in(&challenges).await?);
        }
        let fresh = login.clone();
        drop(login);
        let response = self.try_send(&request, fresh.as_ref()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.check_origin(&response)?;
            let detail = self.error_detail(response).await;
            let authenticated = fresh.is_some_and(|login| login.authenticated);
            return Err(self.denied(detail, authenticated));
        }
        Ok(response)
    }

    /// Refuses to log in at a host that the registry redirected to: a login is for the registry.
    fn check_origin(&self, response: &Response) -> Result<(), ImageError> {
        if response.url().origin() == self.base.origin() {
            return Ok(());
        }
        let host = printable(response.url().host_str().unwrap_or_default());
        Err(ImageError::LoginElsewhere { registry: self.reference.registry.clone(), host })
    }

    async fn try_send(
        &self,
        request: &impl Fn(&Client) -> RequestBuilder,
        login: Option<&Login>,
    ) -> Result<Response, ImageError> {
        let mut request = request(&self.http.content);
        if let Some(login) = login {
            request = request.header(AUTHORIZATION, login.header.clone());
        }
        request.send().await.map_err(|source| unreachable(&self.reference.registry, source))
    }

    /// Answers a challenge: with user and password, or with a token that a token server gives for them.
    async fn log_in(&self, challenges: &[Challenge]) -> Result<Login, ImageError> {
        let registry = || self.reference.registry.clone();
        let credentials = credentials::find(self.reference, self.environment)
            .await
            .map_err(|source| ImageError::Credentials { registry: registry(), source })?;
        let authenticated = credentials.is_some();
        let find = |scheme| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let header = match (find(Scheme::Bearer), find(Scheme::Basic), credentials) {
            (_, _, Some(Credentials::RegistryToken(token))) => bearer(&token),
            (Some(challenge), _, credentials) => bearer(&self.token(challenge, credentials).await?),
            (None, Some(_), Some(Credentials::Basic { username, password })) => basic(&username, &password),
            _ => {
                return Err(self.denied(String::new(), authenticated));
            }
        };
        let header = header.ok_or_else(|| ImageError::Protocol {
            registry: registry(),
            detail: "its token does not fit into a header".to_owned(),
        })?;
        Ok(Login { header, authenticated })
    }

    /// Whether logins may go to a token server. Over plain HTTP only from a registry that is reached that way
    /// itself: from loopback to loopback, or to a host that is named as insecure.
    fn may_log_in_at(&self, realm: &Url) -> bool {
        let host = realm.host_str().unwrap_or_default();
        let authority = realm.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let from_loopback = self.reference.is_loopback();
        match realm.scheme() {
            "https" => true,
            "http" if self.base.scheme() == "http" => {
                from_loopback && is_loopback(host_of(&authority)) || self.environment.is_insecure(&authority)
            }
            _ => false,
        }
    }

    /// Asks the token server that the challenge names.
    async fn token(
        &self,
        challenge: &Challenge,
        credentials: Option<Credentials>,
    ) -> Result<String, ImageError> {
        let protocol = |detail: &str| ImageError::Protocol {
            registry: self.reference.registry.clone(),
            detail: detail.to_owned(),
        };
        let realm = challenge.parameter("realm").and_then(|realm| Url::parse(realm).ok());
        let mut realm = realm.ok_or_else(|| protocol("its login challenge names no token server"))?;
        if !self.may_log_in_at(&realm) {
            return Err(protocol("its token server is not reached over https"));
        }
        let http = &self.http.login;
        let repository = &self.reference.repository;
        let scope = match (self.access, challenge.parameter("scope")) {
            (Access::Pull, Some(scope)) => scope.to_owned(),
            (Access::Pull, None) => format!("repository:{repository}:pull"),
            // One token for all of a push, also when the first question was a mere look.
            (Access::Push, _) => format!("repository:{repository}:pull,push"),
        };
        let mut fields = vec![("scope", scope.as_str())];
        fields.extend(challenge.parameter("service").map(|service| ("service", service)));
        let authenticated = credentials.is_some();
        let request = match &credentials {
            Some(Credentials::IdentityToken(token)) => {
                fields.extend([
                    ("grant_type", "refresh_token"),
                    ("refresh_token", token),
                    ("client_id", "microagent"),
                ]);
                let form = form_encoded(&fields);
                http.post(realm).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
            }
            Some(Credentials::Basic { username, password }) => {
                fields.push(("account", username));
                realm.query_pairs_mut().extend_pairs(&fields);
                http.get(realm).basic_auth(username, Some(password))
            }
            Some(Credentials::RegistryToken(_)) | None => {
                realm.query_pairs_mut().extend_pairs(&fields);
                http.get(realm)
            }
        };
        let what = || "a login token".to_owned();
        let ask = async {
            let response = request.send().await.map_err(|e| unreachable(&self.reference.registry, e))?;
            if matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                return Err(self.denied(self.error_detail(response).await, authenticated));
            }
            let response = self.expect(response, &[StatusCode::OK], &what()).await?;
            self.read(response, TOKEN_LIMIT, what).await
        };
        let bytes = self.within_deadline(what, ask).await?;
        let answer: TokenAnswer = serde_json::from_slice(&bytes).unwrap_or_default();
        answer.token.or(answer.access_token).ok_or_else(|| protocol("its token server gave no token"))
    }

    /// Passes an expected answer on and turns any other into an error.
    async fn expect(
        &self,
        response: Response,
        expected: &[StatusCode],
        what: &str,
    ) -> Result<Response, ImageError> {
        let status = response.status();
        if expected.contains(&status) {
            return Ok(response);
        }
        let authenticated = self.login.lock().await.as_ref().is_some_and(|login| login.authenticated);
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|value| retry_after::parse(value, Timestamp::now()));
        let detail = self.error_detail(response).await;
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.denied(detail, authenticated),
            _ => ImageError::Response {
                registry: self.reference.registry.clone(),
                what: what.to_owned(),
                status: status.as_u16(),
                detail,
                retry_after,
            },
        })
    }

    fn denied(&self, detail: String, authenticated: bool) -> ImageError {
        let reference = self.reference.to_string();
        match self.access {
            Access::Pull => ImageError::Denied { reference, detail, authenticated },
            Access::Push => ImageError::PushDenied { reference, detail, authenticated },
        }
    }

    /// What an error answer says, made printable and short.
    async fn error_detail(&self, response: Response) -> String {
        // An answer that cannot be read in full says less; its status is known already.
        let bytes = self.read(response, ERROR_LIMIT, String::new).await.unwrap_or_default();
        let said = match serde_json::from_slice::<ErrorAnswer>(&bytes) {
            Ok(answer) => {
                let entries = answer.errors.into_iter().take(4);
                let texts: Vec<String> = entries.map(|e| format!("{} {}", e.code, e.message)).collect();
                texts.join("; ")
            }
            Err(_) => String::new(),
        };
        printable(said.trim()).chars().take(DETAIL_MAX).collect()
    }

    async fn read(
        &self,
        mut response: Response,
        limit: u64,
        what: impl Fn() -> String,
    ) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        while let Some(chunk) =
            response.chunk().await.map_err(|source| unreachable(&self.reference.registry, source))?
        {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(ImageError::TooLarge { what: what(), limit });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    async fn within_deadline<T>(
        &self,
        what: impl Fn() -> String,
        work: impl Future<Output = Result<T, ImageError>>,
    ) -> Result<T, ImageError> {
        tokio::time::timeout(SMALL_ANSWER_DEADLINE, work).await.unwrap_or_else(|_| {
            let (registry, seconds) = (self.reference.registry.clone(), SMALL_ANSWER_DEADLINE.as_secs());
            Err(ImageError::Protocol {
                registry,
                detail: format!("no whole answer for {} in {seconds} s", what()),
            })
        })
    }
}

fn unreachable(registry: &str, source: reqwest::Error) -> ImageError {
    let (registry, source) = (registry.to_owned(), source.without_url());
    if speaks_plain_http(&source) {
        return ImageError::PlainHttp { registry };
    }
    if !is_unknown_host(&source) {
        return ImageError::Unreachable { registry, source };
    }
    // Nobody misspells the default registry: without it there is no network, or none with name servers.
    if registry == DEFAULT_REGISTRY || !network::has_default_route() {
        return ImageError::Offline { registry, source };
    }
    ImageError::UnknownRegistry { registry, source }
}

fn bearer(token: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {token}"))
}

fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    use base64::Engine as _;
    let login = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    sensitive(&format!("Basic {login}"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn form_encoded(fields: &[(&str, &str)]) -> String {
    let mut url = Url::parse("http://form/").expect("a literal URL");
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}

/// The first byte in `bytes FIRST-LAST/SIZE`.
fn range_start(header: &str) -> Option<u64> {
    header.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_where_a_range_starts() {
        for (header, start) in [
            ("bytes 10-19/20", Some(10)),
            ("bytes 10-19/*", Some(10)),
            ("bytes */20", None),
            ("items 10-19/20", None),
            ("", None),
        ] {
            assert_eq!(range_start(header), start, "{header}");
        }
    }

    #[test]
    fn form_fields_are_escaped() {
        assert_eq!(form_encoded(&[("a", "b&c d")]), "a=b%26c+d");
    }
}
