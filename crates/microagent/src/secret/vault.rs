//! Reads a field of a secret in Vault's key-value engine, version 2; OpenBao is the same.
//!
//! One request, within one deadline, and an answer within one bound. The token goes into a header and nowhere else; a
//! redirect (a standby sends to the active server) takes it along, but never from `https` to `http`.
//!
//! # Source
//! Vault's API: "Read secret version" of the KV secrets engine version 2, and "HTTP status codes".

use std::error::Error as _;
use std::net::IpAddr;
use std::time::Duration;

use microagent_image::{Environment, NetworkOptions, ProxyMode, http_client};
use microagent_proto::SecretValue;
use reqwest::header::HeaderValue;
use reqwest::{RequestBuilder, Response, Url};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::timeout;
use zeroize::{Zeroize, Zeroizing};

use super::helper::shown;
use super::{SecretEnvironment, SecretFault};

/// How long all of it may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long Vault may take to be connected to, and to send anything.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of an answer: as large as Vault lets a secret be by default.
const ANSWER_LIMIT: usize = 1024 * 1024;

/// The value of a field.
pub(super) async fn read(
    secrets: &SecretEnvironment,
    network: &Environment,
    path: &str,
    field: &str,
) -> Result<SecretValue, SecretFault> {
    read_within(secrets, network, path, field, DEADLINE).await
}

async fn read_within(
    secrets: &SecretEnvironment,
    network: &Environment,
    path: &str,
    field: &str,
    deadline: Duration,
) -> Result<SecretValue, SecretFault> {
    let url = url(secrets, path)?;
    let host = host(&url);
    let request = request(secrets, network, url)?;
    let silent = |reason: String| SecretFault::VaultSilent { host: host.clone(), reason };
    let asking = async {
        let answer = request.send().await.map_err(|e| silent(innermost(e)))?;
        let status = answer.status().as_u16();
        let body = bounded_body(answer).await.map_err(silent)?;
        let token = secrets.vault_token.as_ref().map_or("", |token| token.as_str());
        match status {
            200 => field_of(&body, field),
            404 => Err(SecretFault::VaultNothing { said: errors(&body, token) }),
            status => Err(SecretFault::VaultRefused { status, said: errors(&body, token) }),
        }
    };
    match timeout(deadline, asking).await {
        Ok(read) => read,
        Err(_) => Err(silent(format!("it took more than {} s", deadline.as_secs()))),
    }
}

/// `VAULT_ADDR/v1/PATH`.
fn url(secrets: &SecretEnvironment, path: &str) -> Result<Url, SecretFault> {
    let variable = "VAULT_ADDR";
    let wrong = |what| SecretFault::VaultSetting { variable, what };
    let address = secrets.vault_address.as_deref().ok_or(SecretFault::VaultUnset { variable })?;
    let mut url = Url::parse(address.trim()).map_err(|_| wrong("no URL"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(wrong("no URL of http or https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("a URL with a login, which Vault does not know"));
    }
    url.set_query(None);
    url.set_fragment(None);
    let mut segments = url.path_segments_mut().map_err(|()| wrong("no URL of http or https"))?;
    segments.pop_if_empty().push("v1").extend(path.split('/').filter(|part| !part.is_empty()));
    drop(segments);
    Ok(url)
}

/// Host and port, for messages.
fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn request(
    secrets: &SecretEnvironment,
    network: &Environment,
    url: Url,
) -> Result<RequestBuilder, SecretFault> {
    let header = |variable, text: &str| {
        let value = HeaderValue::from_str(text.trim());
        value.map_err(|_| SecretFault::VaultSetting { variable, what: "not a text that Vault can have made" })
    };
    let variable = "VAULT_TOKEN";
    let token = secrets.vault_token.as_ref().ok_or(SecretFault::VaultUnset { variable })?;
    let mut token = header(variable, token)?;
    token.set_sensitive(true);
    let proxies = if is_loopback(&url) { ProxyMode::Direct } else { ProxyMode::Environment };
    let mut network = network.clone();
    if let Some(ca) = &secrets.vault_ca_cert {
        (network.ssl_cert_file, network.ssl_cert_dir) = (Some(ca.clone()), None);
    }
    let mut options = NetworkOptions::default();
    (options.connect_timeout, options.read_timeout) = (CONNECT_TIMEOUT, CONNECT_TIMEOUT);
    let client =
        http_client(&network, &options, proxies).map_err(|e| SecretFault::VaultClient(Box::new(e)))?;
    let mut request = client.get(url).header("X-Vault-Request", "true").header("X-Vault-Token", token);
    if let Some(namespace) = &secrets.vault_namespace {
        request = request.header("X-Vault-Namespace", header("VAULT_NAMESPACE", namespace)?);
    }
    Ok(request)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The reason at the end of the chain: the rest names the URL over and over.
fn innermost(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        reason = deeper.to_string();
        cause = deeper.source();
    }
    reason
}

async fn bounded_body(mut answer: Response) -> Result<Zeroizing<Vec<u8>>, String> {
    let announced = answer.content_length().unwrap_or(0);
    let room = usize::try_from(announced).unwrap_or(usize::MAX).min(ANSWER_LIMIT);
    let mut body = Zeroizing::new(Vec::with_capacity(room));
    while let Some(chunk) = answer.chunk().await.map_err(innermost)? {
        if body.len() + chunk.len() > ANSWER_LIMIT {
            return Err(format!("its answer has more than {ANSWER_LIMIT} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[derive(Deserialize)]
struct Answer {
    data: Versioned,
}

#[derive(Deserialize)]
struct Versioned {
    data: Fields,
    /// What only version 2 of the engine has.
    #[serde(rename = "metadata")]
    _metadata: serde::de::IgnoredAny,
}

/// Fields of a secret, overwritten when they are dropped.
#[derive(Deserialize)]
#[serde(transparent)]
struct Fields(Map<String, Value>);

impl Drop for Fields {
    fn drop(&mut self) {
        self.0.values_mut().for_each(wipe);
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(values) => values.iter_mut().for_each(wipe),
        Value::Object(fields) => fields.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A text as it is, whole numbers and truth values as JSON writes them.
fn field_of(body: &[u8], field: &str) -> Result<SecretValue, SecretFault> {
    let answer: Answer = serde_json::from_slice(body).map_err(|_| SecretFault::VaultAnswer)?;
    match answer.data.data.0.get(field) {
        None | Some(Value::Null) => Err(SecretFault::VaultField { field: field.to_owned() }),
        Some(Value::String(text)) => Ok(SecretValue(text.as_bytes().to_vec())),
        Some(value @ Value::Bool(_)) => Ok(SecretValue(value.to_string().into_bytes())),
        Some(Value::Number(number)) if number.is_i64() || number.is_u64() => {
            Ok(SecretValue(number.to_string().into_bytes()))
        }
        Some(_) => Err(SecretFault::VaultKind { field: field.to_owned() }),
    }
}

/// What Vault says is wrong; nothing when it says nothing, or our token.
fn errors(body: &[u8], token: &str) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(default)]
        errors: Vec<String>,
    }
    let refusal: Refusal = serde_json::from_slice(body).unwrap_or(Refusal { errors: Vec::new() });
    let said = refusal.errors.join("; ");
    if !token.is_empty() && said.contains(token) { String::new() } else { shown(said.as_bytes()) }
}

#[cfg(test)]
mod tests;
