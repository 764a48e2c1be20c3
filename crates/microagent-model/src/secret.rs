//! References to secrets: a name and a place, never a value.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A secret: its name in the guest, and where its value is found at each start. As text `NAME=SCHEME:REFERENCE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretReference {
    /// Name of the file in `/run/secrets`: shaped like the name of an environment variable.
    pub name: String,
    /// Where the value is.
    pub source: SecretSource,
}

/// Where the value of a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// An environment variable of the caller: `env:VAR`.
    Env(String),
    /// A file, whole: `file:PATH`.
    File(PathBuf),
    /// One variable of a file of `NAME=VALUE` lines: `dotenv:PATH#KEY`.
    Dotenv {
        /// The file.
        path: PathBuf,
        /// The variable.
        key: String,
    },
    /// A field of a secret in Vault's second key-value engine: `vault:MOUNT/data/PATH#FIELD`.
    Vault {
        /// Mount, `data` and path, as in the URL behind `/v1/`.
        path: String,
        /// The field.
        field: String,
    },
    /// Whatever the user's helper program makes of it: `helper:REFERENCE`.
    Helper(String),
}

/// Longest name of a secret, in bytes.
const SECRET_NAME_MAX: usize = 128;

/// Why a text is not a reference to a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretReferenceError {
    /// It has no `=`, or no scheme behind it. The text is not repeated: somebody may have typed a value.
    #[error("a secret is written NAME=SCHEME:REFERENCE")]
    Shape,
    /// The name is not valid. Only said where the rest is a reference, so that it is not a part of a value.
    #[error(
        "`{name}` is not a secret name: letters, digits and `_`, no digit first, at most {SECRET_NAME_MAX}"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The scheme is not known. It is not repeated either: values have colons, too.
    #[error("a secret is written NAME=SCHEME:REFERENCE, and SCHEME is env, file, dotenv, vault or helper")]
    Scheme,
    /// What stands behind the scheme is not what the scheme takes.
    #[error("secret `{name}`: {scheme} takes {scheme}:{wanted}")]
    Reference {
        /// The secret's name.
        name: String,
        /// The scheme.
        scheme: &'static str,
        /// What it takes.
        wanted: &'static str,
    },
}

impl SecretSource {
    /// The scheme's name.
    pub fn scheme(&self) -> &'static str {
        match self {
            SecretSource::Env(_) => "env",
            SecretSource::File(_) => "file",
            SecretSource::Dotenv { .. } => "dotenv",
            SecretSource::Vault { .. } => "vault",
            SecretSource::Helper(_) => "helper",
        }
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme())?;
        match self {
            SecretSource::Env(name) | SecretSource::Helper(name) => f.write_str(name),
            SecretSource::File(path) => write!(f, "{}", path.display()),
            SecretSource::Dotenv { path, key } => write!(f, "{}#{key}", path.display()),
            SecretSource::Vault { path, field } => write!(f, "{path}#{field}"),
        }
    }
}

impl FromStr for SecretReference {
    type Err = SecretReferenceError;

    fn from_str(text: &str) -> Result<SecretReference, SecretReferenceError> {
        let (name, source) = text.split_once('=').ok_or(SecretReferenceError::Shape)?;
        let (scheme, reference) = source.split_once(':').ok_or(SecretReferenceError::Shape)?;
        let name = name.to_owned();
        let wrong = |scheme, wanted| SecretReferenceError::Reference { name: name.clone(), scheme, wanted };
        let whole = |scheme, wanted| {
            if reference.is_empty() { Err(wrong(scheme, wanted)) } else { Ok(reference.to_owned()) }
        };
        // The last `#`: paths may have one.
        let parts = |scheme, wanted| match reference.rsplit_once('#') {
            Some((path, key)) if !path.is_empty() && !key.is_empty() => Ok((path.to_owned(), key.to_owned())),
            _ => Err(wrong(scheme, wanted)),
        };
        let source = match scheme {
            "env" => SecretSource::Env(whole("env", "VAR")?),
            "file" => SecretSource::File(whole("file", "PATH")?.into()),
            "dotenv" => {
                let (path, key) = parts("dotenv", "PATH#KEY")?;
                SecretSource::Dotenv { path: path.into(), key }
            }
            "vault" => {
                let (path, field) = parts("vault", "MOUNT/data/PATH#FIELD")?;
                SecretSource::Vault { path, field }
            }
            "helper" => SecretSource::Helper(whole("helper", "REFERENCE")?),
            _ => return Err(SecretReferenceError::Scheme),
        };
        SecretReference::new(name, source)
    }
}

impl SecretReference {
    /// A secret of this name from there.
    ///
    /// # Errors
    /// Fails when the name is not one.
    pub fn new(
        name: impl Into<String>,
        source: SecretSource,
    ) -> Result<SecretReference, SecretReferenceError> {
        let name = name.into();
        if is_variable_name(&name) {
            Ok(SecretReference { name, source })
        } else {
            Err(SecretReferenceError::Name { name })
        }
    }

    /// The same with another path, where it has one: what `change` makes of it.
    ///
    /// # Errors
    /// Fails as `change` does.
    pub fn with_path<E>(
        &self,
        change: impl FnOnce(&Path) -> Result<PathBuf, E>,
    ) -> Result<SecretReference, E> {
        let source = match &self.source {
            SecretSource::File(path) => SecretSource::File(change(path)?),
            SecretSource::Dotenv { path, key } => {
                SecretSource::Dotenv { path: change(path)?, key: key.clone() }
            }
            other => other.clone(),
        };
        Ok(SecretReference { name: self.name.clone(), source })
    }
}

pub(crate) fn is_variable_name(name: &str) -> bool {
    let fits = !name.is_empty() && name.len() <= SECRET_NAME_MAX;
    let starts_well = !name.starts_with(|c: char| c.is_ascii_digit());
    fits && starts_well && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

impl fmt::Display for SecretReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.source)
    }
}

crate::text::as_text!(SecretReference);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_and_written_alike() {
        for text in [
            "TOKEN=env:GITHUB_TOKEN",
            "_KEY2=file:/home/me/a#b",
            "TOKEN=dotenv:.env#dir/.env#TOKEN",
            "TOKEN=vault:secret/data/app/db#password",
            "TOKEN=helper:op://vault/item/field",
        ] {
            let reference: SecretReference = text.parse().unwrap();
            assert_eq!(reference.to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_no_value_is_repeated() {
        for text in ["hunter2", "TOKEN=hunter2", "TOKEN"] {
            assert_eq!(text.parse::<SecretReference>(), Err(SecretReferenceError::Shape));
        }
        for text in ["=env:A", "1A=env:A", "A-B=env:A", "../A=env:A"] {
            let error = text.parse::<SecretReference>().unwrap_err();
            assert!(matches!(error, SecretReferenceError::Name { .. }), "{text}");
        }
        for text in
            ["A=env:", "A=file:", "A=dotenv:x", "A=dotenv:#x", "A=dotenv:x#", "A=vault:x", "A=helper:"]
        {
            let error = text.parse::<SecretReference>().unwrap_err();
            assert!(matches!(error, SecretReferenceError::Reference { .. }), "{text}");
        }
        for text in ["A=http:x", "A=hunter:2", "hunter=2:hunter"] {
            let error = text.parse::<SecretReference>().unwrap_err();
            assert_eq!(error, SecretReferenceError::Scheme);
            assert!(!error.to_string().contains("hunter"), "{error}");
        }
    }

    #[test]
    fn only_paths_of_this_host_are_changed() {
        let below = |path: &Path| Ok::<_, ()>(Path::new("/home/me").join(path));
        for (text, changed) in [
            ("A=file:x/y", "A=file:/home/me/x/y"),
            ("A=dotenv:.env#K", "A=dotenv:/home/me/.env#K"),
            ("A=env:x", "A=env:x"),
            ("A=file:/x", "A=file:/x"),
            ("A=vault:x/data/y#z", "A=vault:x/data/y#z"),
            ("A=helper:./x", "A=helper:./x"),
        ] {
            let reference: SecretReference = text.parse().unwrap();
            assert_eq!(reference.with_path(below).unwrap().to_string(), changed);
        }
        let failing = "A=file:x".parse::<SecretReference>().unwrap().with_path(|_| Err("gone"));
        assert_eq!(failing, Err("gone"));
    }
}
