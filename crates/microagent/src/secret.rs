//! Looks up the values of secrets, for each start.
//!
//! A workspace's record has only references. Each start looks up all values before anything is booted, and fails if
//! one is missing or empty. Values are held in memory that is overwritten when it is freed, and leave this process
//! only through the supervisor's socket. No error, event or `Debug` shows a value.

mod dotenv;
mod error;
mod file;
mod helper;
mod vault;

use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;

use microagent_model::{Broker, SecretReference, SecretSource};
use microagent_proto::{SECRET_LIMIT, SECRETS_LIMIT, SECRETS_MAX, Secret, SecretValue};
use microagent_vm::{BrokersSpec, SupervisorSpec};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

pub use self::error::{SecretError, SecretFault};
use crate::error::InvalidRequest;
use crate::{Engine, Error, Progress};

/// Returns the value of an environment variable.
pub type Lookup = dyn Fn(&str) -> Option<OsString> + Send + Sync;

/// The sources of secrets. `Default` has no variables, no Vault and no helper.
#[derive(Clone)]
#[non_exhaustive]
pub struct SecretEnvironment {
    /// Looks up `env:VAR`.
    pub variables: Arc<Lookup>,
    /// `VAULT_ADDR`: the URL of Vault, or of OpenBao.
    pub vault_address: Option<String>,
    /// `VAULT_TOKEN`.
    pub vault_token: Option<Zeroizing<String>>,
    /// `VAULT_NAMESPACE`.
    pub vault_namespace: Option<String>,
    /// `VAULT_CACERT`: certificates to trust instead of the system's, only for Vault.
    pub vault_ca_cert: Option<PathBuf>,
    /// `MICROAGENT_SECRET_HELPER`: the program behind `helper:REFERENCE`, a path, or a name in
    /// [`EngineOptions::search_path`](crate::EngineOptions::search_path). It runs in the environment of this process.
    pub helper: Option<PathBuf>,
}

impl Default for SecretEnvironment {
    fn default() -> SecretEnvironment {
        SecretEnvironment {
            variables: Arc::new(|_| None),
            vault_address: None,
            vault_token: None,
            vault_namespace: None,
            vault_ca_cert: None,
            helper: None,
        }
    }
}

/// Without the token, and without the address, which may hold a login.
impl fmt::Debug for SecretEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretEnvironment")
            .field("vault_namespace", &self.vault_namespace)
            .field("vault_ca_cert", &self.vault_ca_cert)
            .field("helper", &self.helper)
            .finish_non_exhaustive()
    }
}

/// The result of looking up one secret.
#[derive(Debug)]
#[non_exhaustive]
pub struct SecretCheck {
    /// The secret.
    pub reference: SecretReference,
    /// Length of the value in bytes, or the error.
    pub outcome: Result<usize, SecretError>,
}

impl SecretCheck {
    /// A warning about a source that works.
    pub fn warning(&self) -> Option<&'static str> {
        match self.reference.source {
            SecretSource::Env(_) | SecretSource::File(_) | SecretSource::Dotenv { .. } => {
                Some("not encrypted at rest")
            }
            SecretSource::Vault { .. } | SecretSource::Helper(_) => None,
        }
    }
}

/// Returns a reference for each variable of a file of `NAME=VALUE` lines, with the same names and an absolute path.
///
/// # Errors
/// Fails if the file cannot be read, has another format, or has a name that is not valid for a secret.
pub fn secrets_of_env_file(path: &Path) -> Result<Vec<SecretReference>, Error> {
    let source = |key: &str| SecretSource::Dotenv { path: path.to_owned(), key: key.to_owned() };
    let text = file::read(path).and_then(|content| dotenv::parse(&content, path));
    let entries = text.map_err(|fault| Error::SecretFile { path: path.to_owned(), source: fault })?;
    let mut references: Vec<SecretReference> = Vec::new();
    for entry in entries {
        if references.iter().any(|earlier| earlier.name == entry.key) {
            continue;
        }
        let reference =
            SecretReference::new(&entry.key, source(&entry.key)).map_err(InvalidRequest::SecretName)?;
        references.push(stored(&reference)?);
    }
    Ok(references)
}

/// The variables of a file of `NAME=VALUE` lines, none if it is no such file, with the lengths of their values.
#[cfg(feature = "fuzzing")]
pub(crate) fn lengths_of_variables(content: &SecretValue, path: &Path) -> Vec<(String, usize)> {
    let entries = dotenv::parse(content, path).unwrap_or_default();
    entries.into_iter().map(|entry| (entry.key, entry.value.0.len())).collect()
}

/// A reference as a record has it.
pub(crate) fn stored(reference: &SecretReference) -> Result<SecretReference, Error> {
    reference.with_path(|path| std::path::absolute(path)).map_err(|source| Error::File {
        action: "find",
        path: ".".into(),
        source,
    })
}

/// Refuses secrets that cannot be delivered with any values.
pub(crate) fn check_references(references: &[SecretReference]) -> Result<(), InvalidRequest> {
    if references.len() > SECRETS_MAX {
        return Err(InvalidRequest::TooManySecrets { count: references.len() });
    }
    for (number, reference) in references.iter().enumerate() {
        if references[..number].iter().any(|earlier| earlier.name == reference.name) {
            return Err(InvalidRequest::SecretTwice { name: reference.name.clone() });
        }
    }
    Ok(())
}

/// The secrets of one start with their values.
#[derive(Debug, Clone, Default)]
pub(crate) struct Resolved {
    secrets: Vec<Secret>,
    brokers: Option<BrokersSpec>,
}

impl Resolved {
    /// Has a machine deliver them to this user of its image, and its brokers use theirs.
    pub(crate) fn deliver(self, mut spec: SupervisorSpec, owner: &str) -> SupervisorSpec {
        spec.configure.secrets = self.secrets;
        if let Some(network) = &mut spec.network {
            network.brokers = self.brokers;
        }
        owner.clone_into(&mut spec.configure.secrets_owner);
        spec
    }
}

impl Engine {
    /// Looks up the value of each secret and returns the results without the values.
    ///
    /// # Errors
    /// Fails when `progress` is cancelled.
    pub async fn check_secrets(
        &self,
        references: &[SecretReference],
        progress: &Progress,
    ) -> Result<Vec<SecretCheck>, Error> {
        progress.check()?;
        let mut checks = Vec::new();
        for reference in references {
            let outcome = unless_cancelled(self.resolve(reference), progress.token()).await?;
            let outcome = outcome.map(|value| value.0.len());
            checks.push(SecretCheck { reference: reference.clone(), outcome });
        }
        Ok(checks)
    }

    /// The values of all secrets of a start, or the first reason why there cannot be.
    pub(crate) async fn resolve_secrets(
        &self,
        references: &[SecretReference],
        brokers: &[Broker],
        cancel: &CancellationToken,
    ) -> Result<Resolved, Error> {
        let values = self.secret_values(references, cancel).await?;
        let named = references.iter().zip(values);
        let secrets = named.map(|(reference, value)| Secret { name: reference.name.clone(), value });
        Ok(Resolved { secrets: secrets.collect(), brokers: self.resolve_brokers(brokers, cancel).await? })
    }

    /// The value of each of them.
    pub(crate) async fn secret_values(
        &self,
        references: &[SecretReference],
        cancel: &CancellationToken,
    ) -> Result<Vec<SecretValue>, Error> {
        let mut values = Vec::new();
        let mut total = 0;
        for reference in references {
            let value = unless_cancelled(self.resolve(reference), cancel).await??;
            total += value.0.len();
            if total > SECRETS_LIMIT {
                let fault = SecretFault::TooMuchTogether { limit: SECRETS_LIMIT };
                return Err(SecretError::new(reference, fault).into());
            }
            values.push(value);
        }
        Ok(values)
    }

    async fn resolve(&self, reference: &SecretReference) -> Result<SecretValue, SecretError> {
        let environment = &self.options().secrets;
        let value = match &reference.source {
            SecretSource::Env(variable) => variable_value(environment, variable),
            SecretSource::File(path) => file::read(path),
            SecretSource::Dotenv { path, key } => {
                file::read(path).and_then(|content| dotenv::value(&content, path, key))
            }
            SecretSource::Vault { path, field } => {
                vault::read(environment, &self.options().environment, path, field).await
            }
            SecretSource::Helper(argument) => match self.secret_helper() {
                Ok(program) => helper::ask(&program, argument).await,
                Err(fault) => Err(fault),
            },
        };
        value.and_then(usable).map_err(|fault| SecretError::new(reference, fault))
    }

    fn secret_helper(&self) -> Result<PathBuf, SecretFault> {
        let helper = self.options().secrets.helper.as_deref().ok_or(SecretFault::NoHelper)?;
        if helper.components().count() > 1 {
            return absolute(helper)
                .map_err(|source| SecretFault::HelperStart { program: helper.to_owned(), source });
        }
        std::env::split_paths(&self.options().search_path)
            .map(|dir| dir.join(helper))
            .find(|program| program.is_file())
            .ok_or_else(|| SecretFault::HelperStart {
                program: helper.to_owned(),
                source: std::io::ErrorKind::NotFound.into(),
            })
    }
}

fn variable_value(environment: &SecretEnvironment, name: &str) -> Result<SecretValue, SecretFault> {
    let value =
        (environment.variables)(name).ok_or_else(|| SecretFault::Unset { variable: name.to_owned() })?;
    Ok(SecretValue(value.into_vec()))
}

/// Checks that a value is neither empty nor too large.
fn usable(value: SecretValue) -> Result<SecretValue, SecretFault> {
    match value.0.len() {
        0 => Err(SecretFault::Empty),
        1..=SECRET_LIMIT => Ok(value),
        _ => Err(SecretFault::TooLarge { limit: SECRET_LIMIT }),
    }
}

async fn unless_cancelled<T>(work: impl Future<Output = T>, cancel: &CancellationToken) -> Result<T, Error> {
    tokio::select! {
        done = work => Ok(done),
        () = cancel.cancelled() => Err(Error::Cancelled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EngineOptions;

    fn engine(variables: &'static [(&str, &str)]) -> Engine {
        let lookup = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let secrets = SecretEnvironment { variables: Arc::new(lookup), ..SecretEnvironment::default() };
        Engine::new(EngineOptions { secrets, ..EngineOptions::new("/nonexistent", "/nonexistent") })
    }

    fn references(texts: &[&str]) -> Vec<SecretReference> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn values_come_from_where_the_references_say() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, dotenv) = (dir.path().join("plain"), dir.path().join(".env"));
        std::fs::write(&plain, b" \xff\x00two\nlines\n").unwrap();
        std::fs::write(&dotenv, "A=1\nKEY='quoted value' # comment\n").unwrap();
        let wanted = references(&[
            "ENV=env:TOKEN",
            &format!("FILE=file:{}", plain.display()),
            &format!("DOTENV=dotenv:{}#KEY", dotenv.display()),
        ]);
        let engine = engine(&[("TOKEN", " with blanks ")]);
        let resolved = engine.resolve_secrets(&wanted, &[], &CancellationToken::new()).await.unwrap();
        let values: Vec<(&str, &[u8])> =
            resolved.secrets.iter().map(|secret| (secret.name.as_str(), secret.value.0.as_slice())).collect();
        let expected: [(&str, &[u8]); 3] =
            [("ENV", b" with blanks "), ("FILE", b" \xff\x00two\nlines\n"), ("DOTENV", b"quoted value")];
        assert_eq!(values, expected);
        assert!(!format!("{resolved:?}").contains("quoted"));
        let checks = engine.check_secrets(&wanted, &Progress::new()).await.unwrap();
        let lengths: Vec<usize> = checks.iter().map(|check| *check.outcome.as_ref().unwrap()).collect();
        assert_eq!(lengths, [13, 13, 12]);
        assert!(checks.iter().all(|check| check.warning().is_some()));
    }

    #[tokio::test]
    async fn missing_and_empty_values_are_errors_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            std::fs::write(dir.path().join(name), content).unwrap();
            dir.path().join(name).display().to_string()
        };
        let (empty, dotenv) = (file("empty", ""), file(".env", "EMPTY=\nFULL=x\n"));
        let large = file("large", &"x".repeat(SECRET_LIMIT + 1));
        let cases = [
            ("A=env:UNSET".to_owned(), "`UNSET` is not set"),
            ("A=env:EMPTY".to_owned(), "empty"),
            (format!("A=file:{empty}"), "empty"),
            (format!("A=file:{empty}-none"), "No such file"),
            (format!("A=file:{}", dir.path().display()), "not a regular file"),
            ("A=file:/dev/zero".to_owned(), "not a regular file"),
            (format!("A=file:{large}"), "more than 65536 bytes"),
            (format!("A=dotenv:{dotenv}#EMPTY"), "empty"),
            (format!("A=dotenv:{dotenv}#NONE"), "no variable `NONE`"),
            ("A=vault:x/data/y#z".to_owned(), "VAULT_ADDR is not set"),
            ("A=helper:x".to_owned(), "no helper"),
        ];
        let engine = engine(&[("EMPTY", "")]);
        for (text, wanted) in cases {
            let reference = references(&[&text]);
            let error = engine.resolve_secrets(&reference, &[], &CancellationToken::new()).await.unwrap_err();
            let message = microagent_proto::chain(&error);
            assert!(message.contains(wanted) && message.contains("`A`"), "{text}: {message}");
            assert!(message.contains(&reference[0].source.to_string()), "{text}: {message}");
            assert!(error.hint().is_some(), "{text}");
        }
    }

    #[tokio::test]
    async fn all_together_have_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        std::fs::write(&path, "x".repeat(SECRET_LIMIT)).unwrap();
        let most = SECRETS_LIMIT / SECRET_LIMIT;
        let wanted = |count: usize| {
            let text = |number| format!("S{number}=file:{}", path.display());
            (0..count).map(|number| text(number).parse().unwrap()).collect::<Vec<SecretReference>>()
        };
        let engine = engine(&[]);
        engine.resolve_secrets(&wanted(most), &[], &CancellationToken::new()).await.unwrap();
        let error =
            engine.resolve_secrets(&wanted(most + 1), &[], &CancellationToken::new()).await.unwrap_err();
        assert!(microagent_proto::chain(&error).contains("together"), "{error}");
    }

    #[test]
    fn no_name_is_given_twice_and_none_is_one_too_many() {
        assert!(check_references(&references(&["A=env:X", "B=env:X"])).is_ok());
        assert!(check_references(&references(&["A=env:X", "A=env:Y"])).is_err());
        let many: Vec<SecretReference> =
            (0..=SECRETS_MAX).map(|number| format!("S{number}=env:X").parse().unwrap()).collect();
        assert!(check_references(&many[1..]).is_ok());
        assert!(check_references(&many).is_err());
    }

    #[test]
    fn an_env_file_becomes_references_to_its_variables() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".env");
        std::fs::write(&path, "B=1\nexport A=2\nB=3\n").unwrap();
        let made: Vec<String> = secrets_of_env_file(&path).unwrap().iter().map(ToString::to_string).collect();
        let reference = |name: &str| format!("{name}=dotenv:{}#{name}", path.display());
        assert_eq!(made, [reference("B"), reference("A")]);
        assert!(secrets_of_env_file(&dir.path().join("none")).is_err());
    }

    #[tokio::test]
    async fn a_cancelled_check_is_given_up() {
        let cancel = CancellationToken::new();
        cancel.cancel();
        let waiting = unless_cancelled(std::future::pending::<()>(), &cancel).await;
        assert!(matches!(waiting, Err(Error::Cancelled)));
    }
}
