//! Against a registry that breaks off, lies, stalls and floods.

use std::fs;
use std::time::Duration;

use microagent_image::{Digest, Environment, ImageError, ImageEvent, ImageHint, NetworkOptions, PullPolicy};
use tokio_util::sync::CancellationToken;

use crate::support::faulty::{Act, Faulty, Request};
use crate::support::layout::{Layer, noise};
use crate::support::{Events, Home, advice, assert_clean_disk, options, text};

const MIB: usize = 1 << 20;

/// A layer of a few MiB that does not compress.
fn big_layer() -> Layer {
    Layer::plain(&[("big", &noise(7, 3 * MIB))])
}

fn small_layer() -> Layer {
    Layer::gzip(&[("small", b"content")])
}

/// Decides about one blob and serves everything else.
fn about(
    digest: Digest,
    decide: impl Fn(&Request) -> Act + Send + Sync + 'static,
) -> impl Fn(&Request) -> Act + Send + Sync {
    move |request| if request.is_blob(&digest) { decide(request) } else { Act::Serve }
}

#[tokio::test]
async fn goes_on_where_the_connection_broke() {
    let layer = big_layer();
    let (digest, size) = (layer.digest(), layer.bytes.len() as u64);
    let faulty = Faulty::start(
        &[layer],
        about(
            digest.clone(),
            |request| if request.earlier < 3 { Act::BreakAfter(700_000) } else { Act::Serve },
        ),
    );
    let home = Home::new();
    let events = Events::default();
    let image =
        home.store.ensure(&faulty.reference(), &options(), &events, &CancellationToken::new()).await.unwrap();
    assert_clean_disk(&image.disk);
    assert_eq!(image.digest, faulty.manifest.to_string());
    // Each byte once: whatever the client had not read when the connection broke is sent again, and nothing else.
    let ranges: Vec<u64> =
        faulty.requests().iter().filter(|r| r.is_blob(&digest)).map(Request::range_start).collect();
    assert_eq!(ranges.len(), 4);
    assert_eq!(ranges[0], 0);
    assert!(ranges.windows(2).all(|pair| pair[0] < pair[1] && pair[1] <= pair[0] + 700_000), "{ranges:?}");
    assert_eq!(faulty.sent(&digest), size - ranges[3] + 3 * 700_000);
    let retries = events.all().iter().filter(|event| matches!(event, ImageEvent::Retrying { .. })).count();
    assert_eq!(retries, 3);
}

#[tokio::test]
async fn gives_up_in_the_end_and_the_next_pull_goes_on() {
    let layer = big_layer();
    let (digest, size) = (layer.digest(), layer.bytes.len() as u64);
    let breaking =
        Faulty::start(std::slice::from_ref(&layer), about(digest.clone(), |_| Act::BreakAfter(300_000)));
    let home = Home::new();
    let error = home.pull(&breaking.reference()).await.unwrap_err();
    assert!(matches!(&error, ImageError::Interrupted { received, .. } if *received > 0), "{}", text(&error));
    assert!(error.is_retryable());
    assert!(advice(&error).contains("continues where it stopped"));
    home.assert_no_image();
    let kept = fs::metadata(home.state().images().join("partial").join(digest.hex())).unwrap().len();
    assert!(kept > 0 && kept < size);

    // Another server, so another reference; the layer is the same.
    let good = Faulty::start(&[layer], |_| Act::Serve);
    home.pull(&good.reference()).await.unwrap();
    assert_eq!(good.sent(&digest), size - kept);
    assert_eq!(home.files("partial"), [""; 0]);
}

#[tokio::test]
async fn starts_again_where_it_cannot_go_on() {
    let layer = big_layer();
    let digest = layer.digest();
    let home = Home::new();
    home.state().prepare().unwrap();
    let partial = home.state().images().join("partial");
    let leftovers: [&[u8]; 3] = [
        // Not what the blob begins with, as a crash of the machine can leave it.
        &[0; 1000],
        // All there, and wrong.
        &vec![0; layer.bytes.len()],
        // Longer than the blob.
        &vec![1; layer.bytes.len() + 1],
    ];
    for (act, leftover) in [
        (Act::Serve, leftovers[0]),
        (Act::IgnoreRange, &layer.bytes[..1000]),
        (Act::Serve, leftovers[1]),
        (Act::Serve, leftovers[2]),
    ] {
        fs::create_dir_all(&partial).unwrap();
        fs::write(partial.join(digest.hex()), leftover).unwrap();
        let faulty = Faulty::start(std::slice::from_ref(&layer), about(digest.clone(), move |_| act.clone()));
        let image = home.pull(&faulty.reference()).await.unwrap();
        assert_clean_disk(&image.disk);
        drop(image);
        home.store.delete(&faulty.reference()).unwrap();
        assert_eq!(home.files("blobs/sha256"), [""; 0]);
    }
}

#[tokio::test]
async fn wrong_content_is_refused_and_thrown_away() {
    let layer = big_layer();
    let digest = layer.digest();
    let home = Home::new();
    let faulty = Faulty::start(std::slice::from_ref(&layer), about(digest.clone(), |_| Act::Garble));
    let error = home.pull(&faulty.reference()).await.unwrap_err();
    assert!(matches!(&error, ImageError::WrongDigest { expected, .. } if *expected == digest), "{error:?}");
    assert!(!error.is_retryable());

    let faulty = Faulty::start(std::slice::from_ref(&layer), about(digest.clone(), |_| Act::Endless));
    let error = home.pull(&faulty.reference()).await.unwrap_err();
    assert!(matches!(&error, ImageError::WrongSize { longer: true, .. }), "{error:?}");
    assert!(faulty.sent(&digest) < (layer.bytes.len() + 16 * MIB) as u64);

    // A manifest that announces less than the blob has.
    let faulty = Faulty::start_announcing(std::slice::from_ref(&layer), &[1000], |_| Act::Serve);
    let error = home.pull(&faulty.reference()).await.unwrap_err();
    assert!(matches!(&error, ImageError::WrongSize { longer: true, expected: 1000, .. }), "{error:?}");

    // And one that announces more: the blob never ends as announced.
    let more = layer.bytes.len() as u64 + 1;
    let faulty = Faulty::start_announcing(std::slice::from_ref(&layer), &[more], |_| Act::Serve);
    let error = home.pull(&faulty.reference()).await.unwrap_err();
    assert!(matches!(&error, ImageError::Interrupted { .. }), "{error:?}");

    home.assert_no_image();
    assert_eq!(home.files("blobs/sha256").len(), 1, "only the configuration, which is right, is kept");
}

#[tokio::test]
async fn a_manifest_that_is_not_what_was_asked_for_is_refused() {
    let home = Home::new();
    let garbling =
        |request: &Request| if request.path.contains("/manifests/") { Act::Garble } else { Act::Serve };
    let faulty = Faulty::start(&[small_layer()], garbling);
    let error = home.pull(&format!("{}/x@{}", faulty.address, faulty.manifest)).await.unwrap_err();
    assert!(matches!(error, ImageError::WrongDigest { .. }), "{error:?}");
    let error = home.pull(&faulty.reference()).await.unwrap_err();
    assert!(matches!(error, ImageError::Manifest { .. }), "{error:?}");

    let flooding =
        |request: &Request| if request.path.contains("/manifests/") { Act::Endless } else { Act::Serve };
    let faulty = Faulty::start(&[small_layer()], flooding);
    let error = home.pull(&faulty.reference()).await.unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error:?}");
    home.assert_no_image();
}

#[tokio::test]
async fn a_registry_in_trouble_gets_another_chance_but_not_for_ever() {
    let home = Home::new();
    let troubled = |request: &Request| match request.earlier {
        0 | 1 if request.path != "/v2/" => Act::Status(503, "overloaded \u{1b}[31m".repeat(100_000)),
        _ => Act::Serve,
    };
    let faulty = Faulty::start(&[small_layer()], troubled);
    home.pull(&faulty.reference()).await.unwrap();

    let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow \u001b[31mdown"}]}"#;
    let limiting = |request: &Request| {
        if request.path == "/v2/" { Act::Serve } else { Act::Status(429, body.to_owned()) }
    };
    let faulty = Faulty::start(&[small_layer()], limiting);
    let error = home.pull(&faulty.reference()).await.unwrap_err();
    assert!(matches!(error, ImageError::Response { status: 429, .. }) && error.is_retryable(), "{error:?}");
    assert!(error.to_string().contains("slow  [31mdown"), "{error}");
    let attempts = faulty.requests().iter().filter(|request| request.path != "/v2/").count();
    assert_eq!(attempts, usize::try_from(NetworkOptions::default().attempts).unwrap());
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_told_at_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let home = Home::new();
    let events = Events::default();
    let cancel = CancellationToken::new();
    let error = home.store.ensure(&format!("{address}/x"), &options(), &events, &cancel).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }) && error.is_retryable(), "{error:?}");
    assert!(!events.all().iter().any(|event| matches!(event, ImageEvent::Retrying { .. })));
    home.assert_no_image();
}

#[tokio::test]
async fn a_registry_that_falls_silent_is_given_up() {
    let layer = big_layer();
    let faulty =
        Faulty::start(std::slice::from_ref(&layer), about(layer.digest(), |_| Act::StallAfter(1000)));
    let home = Home::new();
    let mut options = options();
    (options.network.read_timeout, options.network.attempts) = (Duration::from_secs(3), 2);
    let events = Events::default();
    let error = home
        .store
        .ensure(&faulty.reference(), &options, &events, &CancellationToken::new())
        .await
        .unwrap_err();
    assert!(matches!(&error, ImageError::Interrupted { .. }), "{}", text(&error));
    home.assert_no_image();
}

#[tokio::test]
async fn cancelled_in_the_middle_nothing_is_half_made() {
    let layer = big_layer();
    let digest = layer.digest();
    let faulty = Faulty::start(
        std::slice::from_ref(&layer),
        about(digest.clone(), |request| match request.earlier {
            0 => Act::StallAfter(MIB),
            _ => Act::Serve,
        }),
    );
    let home = Home::new();
    let cancel = CancellationToken::new();
    let (options, events) = (options(), Events::default());
    let partial = home.state().images().join("partial").join(digest.hex());
    let reference = faulty.reference();
    let pull = home.store.ensure(&reference, &options, &events, &cancel);
    let until_half = async {
        while fs::metadata(&partial).map_or(0, |m| m.len()) < MIB as u64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cancel.cancel();
    };
    let (outcome, ()) = tokio::join!(pull, until_half);
    assert!(matches!(outcome, Err(ImageError::Cancelled)), "{outcome:?}");
    home.assert_no_image();
    faulty.release();

    home.pull(&faulty.reference()).await.unwrap();
    let resumed = faulty.requests().iter().filter(|r| r.is_blob(&digest)).map(Request::range_start).max();
    assert_eq!(resumed, Some(MIB as u64));
}

#[tokio::test]
async fn what_cannot_fit_is_refused_before_it_is_fetched() {
    let layer = small_layer();
    let faulty = Faulty::start_announcing(std::slice::from_ref(&layer), &[1 << 60], |_| Act::Serve);
    let home = Home::new();
    let error = home.pull(&faulty.reference()).await.unwrap_err();
    assert!(
        matches!(&error, ImageError::DiskFull { needed: Some(needed), .. } if *needed == 1 << 60),
        "{error:?}"
    );
    assert_eq!(faulty.sent(&layer.digest()), 0);
    assert_eq!(error.hint(), Some(ImageHint::FreeSpace));
}

/// A registry with a token server, which gives `good-token` for the right login.
fn with_tokens(layers: &[Layer], is_login: fn(&Request) -> bool) -> Faulty {
    Faulty::start(layers, move |request| {
        let (path, _) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let authorization = request.headers.get("authorization").map(String::as_str);
        match (path, authorization) {
            ("/v2/", _) => Act::Serve,
            ("/token", _) if is_login(request) => Act::Json(r#"{"token":"good-token"}"#.to_owned()),
            ("/token", _) => Act::Status(401, r#"{"details":"who are you"}"#.to_owned()),
            (_, Some("Bearer good-token")) => Act::Serve,
            _ => {
                let host = request.headers.get("host").unwrap();
                Act::Challenge(format!(
                    r#"Bearer realm="http://{host}/token",service="s",scope="repository:x:pull",error="invalid_token""#
                ))
            }
        }
    })
}

#[tokio::test]
async fn exchanges_logins_for_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let home_with = |entry: serde_json::Value, faulty: &Faulty| {
        let file = dir.path().join("auth.json");
        fs::write(&file, serde_json::json!({"auths": {&faulty.address: entry}}).to_string()).unwrap();
        Home::with_environment(Environment { registry_auth_file: Some(file), ..Environment::default() })
    };
    let basic = |request: &Request| {
        // dTpw is u:p.
        request.headers.get("authorization").is_some_and(|login| login == "Basic dTpw")
            && request.path.contains("service=s")
            && request.path.contains("scope=repository%3Ax%3Apull")
    };
    let faulty = with_tokens(&[small_layer(), big_layer()], basic);
    home_with(serde_json::json!({"auth": "dTpw"}), &faulty).pull(&faulty.reference()).await.unwrap();
    let tokens = faulty.requests().iter().filter(|request| request.path.starts_with("/token")).count();
    assert_eq!(tokens, 1, "one token does for all blobs");

    let error =
        home_with(serde_json::json!({"auth": "dTpx"}), &faulty).pull(&faulty.reference()).await.unwrap_err();
    assert!(matches!(error, ImageError::Denied { authenticated: true, .. }), "{error:?}");
    let error = Home::new().pull(&faulty.reference()).await.unwrap_err();
    assert!(matches!(error, ImageError::Denied { authenticated: false, .. }), "{error:?}");

    let anonymous = with_tokens(&[small_layer()], |request| !request.headers.contains_key("authorization"));
    Home::new().pull(&anonymous.reference()).await.unwrap();

    let refresh = |request: &Request| {
        request.method == "POST"
            && request.body.contains("grant_type=refresh_token")
            && request.body.contains("refresh_token=a%26b")
    };
    let faulty = with_tokens(&[small_layer()], refresh);
    home_with(serde_json::json!({"identitytoken": "a&b"}), &faulty).pull(&faulty.reference()).await.unwrap();
}

#[tokio::test]
async fn follows_redirects_to_storage_and_takes_no_login_there() {
    let layer = small_layer();
    let digest = layer.digest();
    let storage = Faulty::start(std::slice::from_ref(&layer), |_| Act::Serve);
    let to = format!("http://{}/v2/x/blobs/{digest}", storage.address);
    let registry = Faulty::start(std::slice::from_ref(&layer), move |request| {
        match request.headers.get("authorization").map(String::as_str) {
            Some("Basic dTpw") if request.is_blob(&digest) => Act::Redirect(to.clone()),
            Some("Basic dTpw") => Act::Serve,
            _ if request.path == "/v2/" => Act::Serve,
            _ => Act::Challenge(r#"Basic realm="r""#.to_owned()),
        }
    });
    let home = Home::new();
    let file = home.path("auth.json");
    fs::write(&file, serde_json::json!({"auths": {&registry.address: {"auth": "dTpw"}}}).to_string())
        .unwrap();
    let environment = Environment { registry_auth_file: Some(file), ..Environment::default() };
    home.store
        .clone()
        .with_environment(environment)
        .ensure(&registry.reference(), &options(), &Events::default(), &CancellationToken::new())
        .await
        .unwrap();
    let asked = storage.requests();
    assert_eq!(asked.len(), 1);
    assert!(!asked[0].headers.contains_key("authorization"), "{asked:?}");
}

#[tokio::test]
async fn endless_redirects_are_not_followed() {
    let faulty = Faulty::start(&[small_layer()], |request| match request.path.as_str() {
        "/v2/" => Act::Serve,
        path => Act::Redirect(format!("{path}x")),
    });
    let home = Home::new();
    let error = home.pull(&faulty.reference()).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }) && !error.is_retryable(), "{error:?}");
    assert!(text(&error).contains("too many redirects"), "{}", text(&error));
    assert!(faulty.requests().len() < 10);
}

#[tokio::test]
async fn goes_through_a_proxy_except_to_loopback() {
    let proxy = Faulty::start(&[], |_| Act::Status(502, String::new()));
    let environment =
        Environment { https_proxy: Some(format!("http://{}", proxy.address)), ..Environment::default() };
    let home = Home::with_environment(environment.clone());
    home.ensure("registry.example.invalid/x", PullPolicy::Always).await.unwrap_err();
    let requests = proxy.requests();
    assert!(!requests.is_empty());
    assert!(
        requests.iter().all(|r| r.method == "CONNECT" && r.path == "registry.example.invalid:443"),
        "{requests:?}"
    );

    let faulty = Faulty::start(&[small_layer()], |_| Act::Serve);
    home.pull(&faulty.reference()).await.unwrap();
    assert_eq!(proxy.requests().len(), requests.len());

    let direct = Environment { no_proxy: Some(".example.invalid".to_owned()), ..environment };
    Home::with_environment(direct).pull("registry.example.invalid/x").await.unwrap_err();
    assert_eq!(proxy.requests().len(), requests.len());
}
