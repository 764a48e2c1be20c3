//! Headers: which are passed on, in both directions. Pure.

use hyper::HeaderMap;
use hyper::header::{self, HeaderName, HeaderValue};
use microagent_model::HOP_BY_HOP_HEADERS;

/// Removes what belongs to a connection: also the headers that `Connection` names.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP_HEADERS {
        headers.remove(name);
    }
}

/// Removes every spelling of a header: some servers take `_` for `-`.
pub(crate) fn remove_alike(headers: &mut HeaderMap, name: &HeaderName) {
    let plain = |name: &HeaderName| name.as_str().replace('_', "-");
    let wanted = plain(name);
    let alike: Vec<HeaderName> = headers.keys().filter(|key| plain(key) == wanted).cloned().collect();
    for name in alike {
        headers.remove(name);
    }
}

/// Headers by which some servers take another method or path than those of the request's first line.
const OVERRIDES: [&str; 5] =
    ["x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url"];

/// A header that gives a request another method or path, in whatever spelling: some servers take `_` for `-`.
pub(crate) fn overriding(headers: &HeaderMap) -> Option<&'static str> {
    headers.keys().find_map(|key| {
        let plain = key.as_str().replace('_', "-");
        OVERRIDES.into_iter().find(|name| *name == plain)
    })
}

/// Whether a request asks for a connection of another protocol that has no other way to be served.
pub(crate) fn wants_websocket(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::UPGRADE)
        .iter()
        .any(|value| value.as_bytes().to_ascii_lowercase().windows(9).any(|part| part == b"websocket"))
}

/// Makes the headers of a request of the guest those of the request to the upstream.
pub(crate) fn for_upstream(
    headers: &mut HeaderMap,
    host: &HeaderValue,
    credential: (&HeaderName, &HeaderValue),
    body_bytes: Option<u64>,
) {
    let had_length = headers.contains_key(header::CONTENT_LENGTH);
    strip_hop_by_hop(headers);
    headers.remove(header::EXPECT);
    // From here on the parser's own count holds.
    headers.remove(header::CONTENT_LENGTH);
    if let Some(bytes) = body_bytes.filter(|bytes| had_length || *bytes > 0) {
        headers.insert(header::CONTENT_LENGTH, bytes.into());
    }
    headers.insert(header::HOST, host.clone());
    let (name, value) = credential;
    remove_alike(headers, name);
    headers.insert(name.clone(), value.clone());
}

/// Makes the headers of an answer of the upstream those of the answer to the guest.
pub(crate) fn for_guest(headers: &mut HeaderMap) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    strip_hop_by_hop(headers);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn texts(headers: &HeaderMap) -> Vec<String> {
        let mut all: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        all.sort();
        all
    }

    #[test]
    fn what_belongs_to_a_connection_ends_here() {
        let mut headers = map(&[
            ("host", "10.0.2.4:8001"),
            ("connection", "keep-alive, X-Secret-Hop"),
            ("connection", "x-other"),
            ("x-secret-hop", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "Basic x"),
            ("expect", "100-continue"),
            ("content-length", "5"),
            ("authorization", "Bearer guest"),
            ("authorization", "Bearer guest 2"),
            ("x-kept", "yes"),
        ]);
        let name = HeaderName::from_static("authorization");
        let credential = (&name, &HeaderValue::from_static("Bearer real"));
        for_upstream(&mut headers, &HeaderValue::from_static("api.example"), credential, Some(7));
        let expected =
            ["authorization: Bearer real", "content-length: 7", "host: api.example", "x-kept: yes"];
        assert_eq!(texts(&headers), expected);
    }

    #[test]
    fn no_spelling_of_the_credentials_header_is_the_guests() {
        let mut headers = map(&[("x_api_key", "guest"), ("x-api_key", "guest"), ("X-Api-Key", "guest")]);
        // Naming it as a header of the connection removes the guest's only.
        headers.append("connection", "x-api-key, host".parse().unwrap());
        let name = HeaderName::from_static("x-api-key");
        let credential = (&name, &HeaderValue::from_static("real"));
        for_upstream(&mut headers, &HeaderValue::from_static("api.example"), credential, None);
        assert_eq!(texts(&headers), ["host: api.example", "x-api-key: real"]);
    }

    #[test]
    fn every_spelling_of_an_overriding_header_is_found() {
        for name in [
            "X-HTTP-Method-Override",
            "x_http_method",
            "X-Method_Override",
            "x-original-url",
            "X-Rewrite-URL",
        ] {
            assert!(overriding(&map(&[("accept", "*/*"), (name, "DELETE")])).is_some(), "{name}");
        }
        assert_eq!(overriding(&map(&[("x-http", "1"), ("x-forwarded-for", "1")])), None);
    }

    #[test]
    fn a_length_is_said_where_one_was_said_or_there_is_a_body() {
        let host = HeaderValue::from_static("a");
        let name = HeaderName::from_static("authorization");
        let value = HeaderValue::from_static("x");
        for (given, bytes, expected) in [
            (None, Some(0), None),
            (None, None, None),
            (Some("0"), Some(0), Some("0")),
            (Some("9"), Some(9), Some("9")),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(given) = given {
                headers.insert("content-length", given.parse().unwrap());
            }
            for_upstream(&mut headers, &host, (&name, &value), bytes);
            assert_eq!(headers.get("content-length").map(|value| value.to_str().unwrap()), expected);
        }
    }

    #[test]
    fn an_answer_has_one_framing() {
        let mut headers = map(&[("content-length", "3"), ("transfer-encoding", "chunked"), ("x-kept", "1")]);
        for_guest(&mut headers);
        assert_eq!(texts(&headers), ["x-kept: 1"]);
        let mut headers = map(&[("content-length", "3"), ("connection", "close")]);
        for_guest(&mut headers);
        assert_eq!(texts(&headers), ["content-length: 3"]);
        assert!(wants_websocket(&map(&[("upgrade", "h2c, WebSocket")])));
        assert!(!wants_websocket(&map(&[("upgrade", "h2c")])));
    }
}
