//! Where logins and certificates go, where plain HTTP is allowed, and what a registry may ask for.

use std::fs;
use std::path::Path;

use microagent_image::{Environment, ImageError, ImageEvent, ImageHint};
use microagent_tests::registry::{Registry, RegistryOptions};
use tokio_util::sync::CancellationToken;

use crate::support::faulty::{Act, Faulty, Request};
use crate::support::layout::{Layer, Layout};
use crate::support::{Events, Home, options, text};

/// `u:p` in Base64.
const LOGIN: &str = "dTpw";

fn layer() -> Layer {
    Layer::gzip(&[("file", b"content")])
}

/// A home that is logged in at a registry.
fn logged_in(registry: &str, environment: Environment) -> Home {
    let home = Home::new();
    let file = home.path("auth.json");
    fs::write(&file, serde_json::json!({"auths": {registry: {"auth": LOGIN}}}).to_string()).unwrap();
    let environment = Environment { registry_auth_file: Some(file), ..environment };
    let store = home.store.clone().with_environment(environment);
    Home { store, ..home }
}

/// A host that challenges whoever comes, and names itself as the token server.
fn greedy() -> Faulty {
    Faulty::start(&[], |request| {
        let host = request.headers.get("host").unwrap();
        match request.path.starts_with("/token") {
            true => Act::Json(r#"{"token":"good-token"}"#.to_owned()),
            false => Act::Challenge(format!(r#"Bearer realm="http://{host}/token",service="evil""#)),
        }
    })
}

/// Every request that carried something of a login.
fn with_login(faulty: &Faulty) -> Vec<Request> {
    let carries = |request: &Request| {
        request.headers.contains_key("authorization")
            || format!("{}{}", request.path, request.body).contains("account")
    };
    faulty.requests().into_iter().filter(carries).collect()
}

#[tokio::test]
async fn a_host_that_a_registry_redirects_to_gets_no_login() {
    let (layer, evil) = (layer(), greedy());
    // Both ways to be logged in when the redirect comes: not yet, and already.
    for logs_in_before in [false, true] {
        let (digest, to) = (layer.digest(), format!("http://{}/evil", evil.address));
        let registry = Faulty::start(std::slice::from_ref(&layer), move |request| {
            let known = request.headers.contains_key("authorization");
            match () {
                () if request.path == "/v2/" => Act::Serve,
                () if logs_in_before && !known => Act::Challenge(r#"Basic realm="r""#.to_owned()),
                () if request.is_blob(&digest) => Act::Redirect(to.clone()),
                () => Act::Serve,
            }
        });
        let home = logged_in(&registry.address, Environment::default());
        let error = home.pull(&registry.reference()).await.unwrap_err();
        assert!(
            matches!(&error, ImageError::LoginElsewhere { host, .. } if host == "127.0.0.1"),
            "{error:?}"
        );
        assert!(!error.is_retryable());
        home.assert_no_image();
    }
    let seen = evil.requests();
    assert!(!seen.is_empty() && seen.iter().all(|request| request.path == "/evil"), "{seen:?}");
    assert!(with_login(&evil).is_empty(), "{seen:?}");
}

#[tokio::test]
async fn a_token_server_passes_no_login_on() {
    let evil = greedy();
    for login in [
        serde_json::json!({"auth": LOGIN}),
        serde_json::json!({"auth": LOGIN, "identitytoken": "long-lived"}),
    ] {
        let to = format!("http://{}/token", evil.address);
        let registry = Faulty::start(&[layer()], move |request| {
            let host = request.headers.get("host").unwrap();
            match request.path.as_str() {
                "/v2/" => Act::Serve,
                path if path.starts_with("/token") => Act::Redirect(to.clone()),
                _ => Act::Challenge(format!(r#"Bearer realm="http://{host}/token",service="s""#)),
            }
        });
        let home = Home::new();
        let file = home.path("auth.json");
        fs::write(&file, serde_json::json!({"auths": {&registry.address: login}}).to_string()).unwrap();
        let environment = Environment { registry_auth_file: Some(file), ..Environment::default() };
        let store = home.store.clone().with_environment(environment);
        let error = store
            .ensure(&registry.reference(), &options(), &Events::default(), &CancellationToken::new())
            .await
            .unwrap_err();
        assert!(text(&error).contains("gets no login"), "{}", text(&error));
    }
    assert!(evil.requests().is_empty(), "{:?}", evil.requests());
}

#[tokio::test]
async fn a_login_goes_in_the_clear_from_loopback_to_loopback_only() {
    for (realm, allowed) in [
        ("http://198.51.100.2:5903/token", false),
        ("http://registry.example.invalid/token", false),
        ("ftp://127.0.0.1/token", false),
        ("http://HOST/token", true),
        ("http://localhost:PORT/token", true),
    ] {
        let registry = Faulty::start(&[layer()], move |request| {
            let host = request.headers.get("host").unwrap();
            let port = host.rsplit(':').next().unwrap();
            match (request.path.as_str(), request.headers.get("authorization").map(String::as_str)) {
                (path, Some("Basic dTpw")) if path.starts_with("/token") => {
                    Act::Json(r#"{"token":"good-token"}"#.to_owned())
                }
                ("/v2/", _) | (_, Some("Bearer good-token")) => Act::Serve,
                _ => {
                    let realm = realm.replace("HOST", host).replace("PORT", port);
                    Act::Challenge(format!(r#"Bearer realm="{realm}",service="s""#))
                }
            }
        });
        let home = logged_in(&registry.address, Environment::default());
        match home.pull(&registry.reference()).await {
            Ok(_) => assert!(allowed, "{realm}"),
            Err(error) => {
                assert!(!allowed, "{realm}: {}", text(&error));
                assert!(
                    text(&error).contains("its token server is not reached over https"),
                    "{}",
                    text(&error)
                );
            }
        }
    }
}

#[tokio::test]
async fn plain_http_needs_loopback_or_a_setting() {
    let registry = Faulty::start(&[layer()], |request| {
        let host = request.headers.get("host").unwrap();
        match (request.path.as_str(), request.headers.get("authorization").map(String::as_str)) {
            (path, Some("Basic dTpw")) if path.starts_with("/token") => {
                Act::Json(r#"{"token":"good-token"}"#.to_owned())
            }
            ("/v2/", _) | (_, Some("Bearer good-token")) => Act::Serve,
            _ => Act::Challenge(format!(r#"Bearer realm="http://{host}/token",service="s""#)),
        }
    });
    // The same address, spelled in a way that does not count as loopback.
    let name = registry.address.replace("127.0.0.1", "127.1");
    let reference = format!("{name}/x");
    let error = logged_in(&name, Environment::default()).pull(&reference).await.unwrap_err();
    assert!(matches!(&error, ImageError::PlainHttp { registry } if *registry == name), "{}", text(&error));
    assert!(!error.is_retryable());
    assert_eq!(error.hint(), Some(ImageHint::AllowPlainHttp { registry: name.clone() }));
    assert!(registry.requests().is_empty(), "{:?}", registry.requests());

    let insecure =
        |registry: String| Environment { insecure_registries: vec![registry], ..Environment::default() };
    let error = logged_in(&name, insecure("127.1:1".into())).pull(&reference).await.unwrap_err();
    assert!(matches!(error, ImageError::PlainHttp { .. }), "{}", text(&error));
    let error = logged_in(&name, insecure(name.clone())).pull(&reference).await.unwrap_err();
    // Its token server is another spelling, which nobody has named.
    assert!(text(&error).contains("its token server is not reached over https"), "{}", text(&error));
    let mut both = insecure(name.clone());
    both.insecure_registries.push("127.0.0.1".to_owned());
    logged_in(&name, both).pull(&reference).await.unwrap();
}

#[tokio::test]
async fn retry_after_is_heeded_within_bounds() {
    let registry = Faulty::start(&[layer()], |request| match (request.path.as_str(), request.earlier) {
        ("/v2/x/manifests/latest", 0) => Act::Later("1"),
        _ => Act::Serve,
    });
    let (home, events) = (Home::new(), Events::default());
    home.store.ensure(&registry.reference(), &options(), &events, &CancellationToken::new()).await.unwrap();
    let pauses: Vec<u64> = events
        .all()
        .iter()
        .filter_map(|event| match event {
            ImageEvent::Retrying { pause_ms, .. } => Some(*pause_ms),
            _ => None,
        })
        .collect();
    assert_eq!(pauses, [1000]);

    for when in ["86400", "Fri, 31 Dec 2100 23:59:59 GMT"] {
        let registry = Faulty::start(&[layer()], move |request| match request.path.as_str() {
            "/v2/" => Act::Serve,
            _ => Act::Later(when),
        });
        let error = Home::new().pull(&registry.reference()).await.unwrap_err();
        assert!(
            matches!(error, ImageError::Response { status: 429, .. }) && error.is_retryable(),
            "{error:?}"
        );
        let asked = registry.requests().iter().filter(|request| request.path != "/v2/").count();
        assert_eq!(asked, 1, "a registry that asks for a day is not asked again");
    }
}

#[tokio::test]
async fn a_missing_blob_is_told_from_a_missing_image() {
    let layer = layer();
    let digest = layer.digest();
    let registry = Faulty::start(&[layer], move |request| match request.is_blob(&digest) {
        true => Act::Status(404, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"gone"}]}"#.to_owned()),
        false => Act::Serve,
    });
    let error = Home::new().pull(&registry.reference()).await.unwrap_err();
    assert!(text(&error).contains("answered 404 for blob sha256:"), "{}", text(&error));
    let error = Home::new().pull(&format!("{}/y", registry.address)).await.unwrap_err();
    assert!(matches!(error, ImageError::UnknownImage { .. }), "{}", text(&error));
}

/// `certs.d` with a directory for this registry.
fn certificates(dir: &Path, registry: &Registry, shows_own: bool) -> Environment {
    let own = dir.join(registry.address());
    fs::create_dir_all(&own).unwrap();
    fs::copy(registry.ca_file(), own.join("ca.crt")).unwrap();
    if shows_own {
        let (certificate, key) = registry.certificate();
        fs::copy(certificate, own.join("client.cert")).unwrap();
        fs::copy(key, own.join("client.key")).unwrap();
    }
    let registry_certificate_dirs = vec![dir.join("none"), dir.to_owned()];
    Environment { registry_certificate_dirs, ..Environment::default() }
}

#[tokio::test]
async fn certificates_of_one_registry_are_used_for_it() {
    let tls = RegistryOptions { tls: true, ..RegistryOptions::default() };
    let strict = RegistryOptions { client_certificates: true, ..tls.clone() };
    for (options, shows_own) in [(tls, false), (strict, true)] {
        let registry = Registry::start_with(options).unwrap();
        let home = Home::new();
        let layout = Layout::simple(&home.path("layout"), "certified");
        registry.push(&layout.reference("latest"), "app").unwrap();
        let reference = format!("{}/app", registry.address());
        let dir = tempfile::tempdir().unwrap();
        let environment = certificates(dir.path(), &registry, shows_own);
        Home::with_environment(environment.clone()).pull(&reference).await.unwrap();

        let other = reference.replace("127.0.0.1", "localhost");
        Home::with_environment(environment.clone()).pull(&other).await.unwrap_err();
        if shows_own {
            fs::remove_file(dir.path().join(registry.address()).join("client.cert")).unwrap();
            Home::with_environment(environment.clone()).pull(&reference).await.unwrap_err();
        }
        fs::write(dir.path().join(registry.address()).join("ca.crt"), "nothing").unwrap();
        let error = Home::with_environment(environment).pull(&reference).await.unwrap_err();
        assert!(matches!(error, ImageError::Certificates { .. }), "{}", text(&error));
    }
}
