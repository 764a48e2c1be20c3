//! Who we are at a registry: podman's and Docker's login files, and the helper programs they name.
//!
//! The files are looked at in podman's order and the first with an answer wins. A file or entry that is
//! not there means anonymous; one that is there and broken, or a helper that fails, is an error: a pull
//! that quietly continues without the login it was given fails later with a reason that misleads.
//!
//! # Source
//! `containers-auth.json(5)`, Docker's `config.json` and its credential helper protocol.

mod helper;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use microagent_store::{ReadError, read_json_following};
use serde::Deserialize;

use crate::environment::Environment;
use crate::manifest::null_is_empty;
use crate::reference::{DEFAULT_REGISTRY, RegistryReference};

/// The key under which Docker keeps the login for its own registry.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Padding is optional in files that people edit.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How to log in. Its `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// User name and password.
    Basic { username: String, password: String },
    /// A refresh token, to be exchanged for an access token.
    IdentityToken(String),
    /// An access token.
    RegistryToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credentials::Basic { .. } => "Basic",
            Credentials::IdentityToken(_) => "IdentityToken",
            Credentials::RegistryToken(_) => "RegistryToken",
        })
    }
}

/// Why there are no credentials for a registry although some are configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// A login file exists and cannot be used.
    #[error("cannot use login file `{}`", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ReadError,
    },
    /// An entry of a login file is not valid.
    #[error("the entry for `{key}` in login file `{}` is not base64 of USER:PASSWORD", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The entry.
        key: String,
    },
    /// The credential helper that a login file names is not found or cannot be started.
    #[error("cannot start credential helper `{program}`")]
    HelperStart {
        /// The program.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The credential helper failed, or its answer is not valid.
    #[error("credential helper `{program}` failed: {detail}")]
    HelperFailed {
        /// The program.
        program: String,
        /// What it said, made printable.
        detail: String,
    },
    /// The credential helper did not answer in time.
    #[error("credential helper `{program}` did not answer within {seconds} seconds")]
    HelperTimeout {
        /// The program.
        program: String,
        /// How long it had.
        seconds: u64,
    },
}

impl CredentialError {
    /// What a person can do about it.
    pub(crate) fn hint(&self) -> String {
        match self {
            CredentialError::File { path, .. } | CredentialError::Entry { path, .. } => {
                format!("log in again with `docker login` or `podman login`, or repair `{}`", path.display())
            }
            CredentialError::HelperStart { program, .. } => {
                format!(
                    "install `{program}`, or remove it from `credHelpers` and `credsStore` in the login file"
                )
            }
            CredentialError::HelperFailed { program, .. }
            | CredentialError::HelperTimeout { program, .. } => {
                format!("try the helper by hand: echo REGISTRY | {program} get")
            }
        }
    }
}

/// `auth.json` and `config.json` have the same shape.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct LoginFile {
    #[serde(deserialize_with = "null_is_empty")]
    auths: BTreeMap<String, Entry>,
    #[serde(deserialize_with = "null_is_empty")]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// What a login file says about a repository.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Credentials(Credentials),
    AskHelper { helper: String, server: String },
    Broken { key: String },
    Nothing,
}

/// Finds the credentials for a repository; `None` is anonymous.
pub(crate) async fn find(
    reference: &RegistryReference,
    environment: &Environment,
) -> Result<Option<Credentials>, CredentialError> {
    for path in login_files(environment) {
        let explicit = environment.registry_auth_file.as_ref() == Some(&path);
        let file: LoginFile = match read_json_following(&path) {
            Ok(file) => file,
            Err(error) if error.is_not_found() && !explicit => continue,
            Err(source) => return Err(CredentialError::File { path, source }),
        };
        match look_up(&file, reference) {
            Answer::Credentials(credentials) => return Ok(Some(credentials)),
            Answer::Broken { key } => return Err(CredentialError::Entry { path, key }),
            Answer::AskHelper { helper, server } => {
                if let Some(credentials) = helper::ask(&helper, &server, environment.path.as_deref()).await? {
                    return Ok(Some(credentials));
                }
            }
            Answer::Nothing => {}
        }
    }
    Ok(None)
}

/// An explicit file is the only one, as with podman.
fn login_files(environment: &Environment) -> Vec<PathBuf> {
    if let Some(explicit) = &environment.registry_auth_file {
        return vec![explicit.clone()];
    }
    let join = |dir: &Option<PathBuf>, name: &str| dir.as_deref().map(|dir: &Path| dir.join(name));
    [
        join(&environment.runtime_dir, "containers/auth.json"),
        join(&environment.config_home, "containers/auth.json"),
        join(&environment.docker_config, "config.json"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn look_up(file: &LoginFile, reference: &RegistryReference) -> Answer {
    let helper = file.cred_helpers.iter().find(|(key, _)| normalised(key) == reference.registry);
    if let Some((server, helper)) = helper {
        return Answer::AskHelper { helper: helper.clone(), server: server.clone() };
    }
    for scope in scopes(reference) {
        let entry = file.auths.iter().find(|(key, _)| normalised(key) == scope);
        match entry.map(|(key, entry)| (key, decode(entry))) {
            Some((_, Decoded::Credentials(credentials))) => return Answer::Credentials(credentials),
            Some((key, Decoded::Broken)) => return Answer::Broken { key: key.clone() },
            // Docker leaves empty entries beside a credential store; the store has the answer then.
            Some((_, Decoded::Empty)) | None => {}
        }
    }
    match &file.creds_store {
        Some(helper) if !helper.is_empty() => {
            let hub = reference.registry == DEFAULT_REGISTRY;
            let server = if hub { DOCKER_HUB_KEY.to_owned() } else { reference.registry.clone() };
            Answer::AskHelper { helper: helper.clone(), server }
        }
        _ => Answer::Nothing,
    }
}

/// What an entry may be filed under, the most special first: repository, its parents, the registry.
fn scopes(reference: &RegistryReference) -> Vec<String> {
    let mut scopes = Vec::new();
    let mut scope = reference.name();
    while let Some((parent, _)) = scope.rsplit_once('/') {
        let parent = parent.to_owned();
        scopes.push(std::mem::replace(&mut scope, parent));
    }
    scopes.push(scope);
    scopes
}

/// Docker files logins under URLs (`https://host/v1/`), podman under `host[/namespace[/repository]]`.
fn normalised(key: &str) -> String {
    let schemeless = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let name = match schemeless {
        // Of a URL only the host counts.
        Some(rest) => rest.split('/').next().unwrap_or(rest),
        None => key.trim_end_matches('/'),
    };
    let (host, rest) = name.split_once('/').map_or((name, ""), |(host, rest)| (host, rest));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    match rest {
        "" | "v1" | "v2" => host.to_owned(),
        rest => format!("{host}/{rest}"),
    }
}

enum Decoded {
    Credentials(Credentials),
    Empty,
    Broken,
}

fn decode(entry: &Entry) -> Decoded {
    let filled = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    if let Some(token) = filled(&entry.identitytoken) {
        return Decoded::Credentials(Credentials::IdentityToken(token));
    }
    if let Some(token) = filled(&entry.registrytoken) {
        return Decoded::Credentials(Credentials::RegistryToken(token));
    }
    if let Some(auth) = filled(&entry.auth) {
        let text = BASE64.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        return match text.as_deref().and_then(|text| text.split_once(':')) {
            Some((username, password)) => Decoded::Credentials(Credentials::Basic {
                username: username.to_owned(),
                // Docker pads old entries with NUL bytes.
                password: password.trim_end_matches('\0').to_owned(),
            }),
            None => Decoded::Broken,
        };
    }
    match (filled(&entry.username), filled(&entry.password)) {
        (Some(username), Some(password)) => Decoded::Credentials(Credentials::Basic { username, password }),
        _ => Decoded::Empty,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::ImageReference;

    fn reference(text: &str) -> RegistryReference {
        match text.parse().unwrap() {
            ImageReference::Registry(reference) => reference,
            other => panic!("{other:?}"),
        }
    }

    fn answer(file: &str, image: &str) -> Answer {
        look_up(&serde_json::from_str(file).unwrap(), &reference(image))
    }

    fn basic(username: &str, password: &str) -> Answer {
        let (username, password) = (username.to_owned(), password.to_owned());
        Answer::Credentials(Credentials::Basic { username, password })
    }

    fn helper(helper: &str, server: &str) -> Answer {
        Answer::AskHelper { helper: helper.to_owned(), server: server.to_owned() }
    }

    #[test]
    fn finds_the_entry_that_fits_best() {
        // dTpw is u:p, dTI6cDI is u2:p2 without padding.
        let file = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dTpw"},
            "r.example.org": {"auth": "dTpw"},
            "r.example.org/team": {"auth": "dTI6cDI"},
            "https://old.example.org/v2/": {"username": "a", "password": "b"},
            "empty.example.org": {},
            "token.example.org": {"auth": "dTpw", "identitytoken": "t"},
            "broken.example.org": {"auth": "dQ=="}
        }}"#;
        for (image, expected) in [
            ("busybox", basic("u", "p")),
            ("docker.io/a/b", basic("u", "p")),
            ("r.example.org/x", basic("u", "p")),
            ("r.example.org/team/x", basic("u2", "p2")),
            ("r.example.org/teams/x", basic("u", "p")),
            ("old.example.org/x", basic("a", "b")),
            ("empty.example.org/x", Answer::Nothing),
            ("other.example.org/x", Answer::Nothing),
            ("r.example.org:5000/x", Answer::Nothing),
            ("token.example.org/x", Answer::Credentials(Credentials::IdentityToken("t".into()))),
            ("broken.example.org/x", Answer::Broken { key: "broken.example.org".into() }),
        ] {
            assert_eq!(answer(file, image), expected, "{image}");
        }
    }

    #[test]
    fn asks_the_helper_that_is_named() {
        let file = r#"{"auths": {"r.example.org": {}, "static.example.org": {"auth": "dTpw"}},
            "credHelpers": {"gcr.example.org": "gcloud"}, "credsStore": "secretservice"}"#;
        for (image, expected) in [
            ("gcr.example.org/x", helper("gcloud", "gcr.example.org")),
            ("r.example.org/x", helper("secretservice", "r.example.org")),
            ("busybox", helper("secretservice", DOCKER_HUB_KEY)),
            ("static.example.org/x", basic("u", "p")),
        ] {
            assert_eq!(answer(file, image), expected, "{image}");
        }
    }

    #[test]
    fn takes_files_that_hold_other_things_too() {
        let file = r#"{"auths": null, "credHelpers": null, "psFormat": "x", "HttpHeaders": {"a": "b"}}"#;
        assert_eq!(answer(file, "busybox"), Answer::Nothing);
        assert_eq!(answer("{}", "busybox"), Answer::Nothing);
    }

    #[test]
    fn debug_shows_no_secret() {
        let credentials = Credentials::Basic { username: "user".into(), password: "secret".into() };
        assert!(!format!("{credentials:?}").contains("secret"));
    }

    #[tokio::test]
    async fn an_explicit_file_is_the_only_one_and_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let docker = dir.path().join("docker");
        std::fs::create_dir(&docker).unwrap();
        std::fs::write(docker.join("config.json"), r#"{"auths": {"docker.io": {"auth": "dTpw"}}}"#).unwrap();
        let explicit = dir.path().join("auth.json");
        let mut environment = Environment { docker_config: Some(docker), ..Environment::default() };
        assert!(find(&reference("busybox"), &environment).await.unwrap().is_some());

        environment.registry_auth_file = Some(explicit.clone());
        let missing = find(&reference("busybox"), &environment).await;
        assert!(matches!(missing, Err(CredentialError::File { .. })), "{missing:?}");
        std::fs::write(&explicit, "{}").unwrap();
        assert_eq!(find(&reference("busybox"), &environment).await.unwrap(), None);
        std::fs::write(&explicit, "{").unwrap();
        assert!(find(&reference("busybox"), &environment).await.is_err());
    }
}
