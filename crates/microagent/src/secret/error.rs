//! Why the value of a secret could not be read. Names sources and never values.

use std::io;
use std::path::PathBuf;

use microagent_image::ImageError;
use microagent_model::SecretReference;

use crate::Hint;

/// A secret without a value. Nothing is booted then.
#[derive(Debug, thiserror::Error)]
#[error("cannot get secret `{name}` from {source_text}")]
#[non_exhaustive]
pub struct SecretError {
    /// The secret.
    pub name: String,
    /// Where its value should be, as it was written.
    pub source_text: String,
    /// What is wrong there.
    #[source]
    pub fault: SecretFault,
}

/// What is wrong with the source of a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretFault {
    /// No such environment variable.
    #[error("the environment variable `{variable}` is not set")]
    Unset {
        /// The variable.
        variable: String,
    },
    /// The value is empty.
    #[error("the value is empty")]
    Empty,
    /// The value of a broker's credential does not fit into a header.
    #[error("the value is not one line of visible characters, and a header can have nothing else")]
    NoHeader,
    /// The value is too large.
    #[error("the value has more than {limit} bytes")]
    TooLarge {
        /// The bound in bytes.
        limit: usize,
    },
    /// This value and those before it are too large.
    #[error("all values together have more than {limit} bytes")]
    TooMuchTogether {
        /// The bound in bytes.
        limit: usize,
    },
    /// The file could not be read.
    #[error("the file cannot be read")]
    Read(#[source] io::Error),
    /// The source is a directory, a device or a pipe.
    #[error("it is not a regular file")]
    NotAFile,
    /// The file does not consist of `NAME=VALUE` lines.
    #[error("line {line} of `{}`: {what}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The file has no such variable.
    #[error("`{}` has no variable `{key}`", path.display())]
    NoVariable {
        /// The file.
        path: PathBuf,
        /// The variable.
        key: String,
    },
    /// A variable that is needed to find Vault is not set.
    #[error("{variable} is not set")]
    VaultUnset {
        /// The variable.
        variable: &'static str,
    },
    /// A setting of Vault is not valid.
    #[error("{variable} is {what}")]
    VaultSetting {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// There is no HTTP client for Vault.
    #[error("there is no HTTP client for Vault")]
    VaultClient(#[source] Box<ImageError>),
    /// Vault did not answer.
    #[error("Vault at {host} does not answer: {reason}")]
    VaultSilent {
        /// Where.
        host: String,
        /// The innermost reason.
        reason: String,
    },
    /// Vault refused.
    #[error("Vault refused with HTTP {status}{said}")]
    VaultRefused {
        /// The status.
        status: u16,
        /// What it said, bounded, after `: `; or nothing.
        said: String,
    },
    /// Vault has nothing at this path, or its newest version was deleted.
    #[error("Vault has no secret there{said}")]
    VaultNothing {
        /// What it said, bounded, after `: `; or nothing.
        said: String,
    },
    /// The answer is not that of the key-value engine, version 2.
    #[error("Vault's answer is not one of the key-value engine, version 2")]
    VaultAnswer,
    /// The secret has no such field.
    #[error("the secret has no field `{field}`")]
    VaultField {
        /// The field.
        field: String,
    },
    /// The field is a list, an object or a fraction.
    #[error("field `{field}` is neither text nor a whole number nor a boolean")]
    VaultKind {
        /// The field.
        field: String,
    },
    /// No helper is set.
    #[error("no helper program is set")]
    NoHelper,
    /// The helper could not be run.
    #[error("the helper `{}` cannot be run", program.display())]
    HelperStart {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The helper failed.
    #[error("the helper failed ({status}){said}")]
    HelperFailed {
        /// How it ended.
        status: String,
        /// The end of what it said on standard error, bounded, after `: `; or nothing.
        said: String,
    },
    /// The helper took too long, and was killed.
    #[error("the helper did not answer within {seconds} s and was killed")]
    HelperLate {
        /// Its time.
        seconds: u64,
    },
}

impl SecretError {
    pub(crate) fn new(reference: &SecretReference, fault: SecretFault) -> SecretError {
        SecretError { name: reference.name.clone(), source_text: reference.source.to_string(), fault }
    }

    /// What can be done about it.
    pub fn hint(&self) -> Hint {
        self.fault.hint().map_or_else(
            || Hint::CheckSecret { name: self.name.clone(), source: self.source_text.clone() },
            Hint::Advice,
        )
    }
}

impl SecretFault {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            SecretFault::Unset { variable } => {
                return Some(format!("set it in the environment of this program: export {variable}"));
            }
            SecretFault::Syntax { .. } => "a line is NAME=VALUE, 'VALUE' or \"VALUE\"; nothing is evaluated",
            SecretFault::VaultUnset { .. } | SecretFault::VaultSetting { .. } => {
                "set VAULT_ADDR and VAULT_TOKEN, as for Vault's own command"
            }
            SecretFault::VaultRefused { status: 503, .. } => "unseal it: vault operator unseal",
            SecretFault::VaultRefused { status: 400..=403, .. } => {
                "check that VAULT_TOKEN is valid and may read this path: vault token lookup"
            }
            SecretFault::VaultNothing { .. } | SecretFault::VaultAnswer => {
                "a path of the key-value engine, version 2, is MOUNT/data/PATH"
            }
            SecretFault::NoHelper => "set MICROAGENT_SECRET_HELPER to the program that prints your secrets",
            SecretFault::TooLarge { .. } | SecretFault::TooMuchTogether { .. } => {
                "secrets are short; put large files into a volume or the image"
            }
            SecretFault::NoHeader => {
                "write the file without a line break at its end, as `printf %s VALUE > FILE` does, or use dotenv:FILE#KEY"
            }
            SecretFault::NotAFile => "use a regular file, not a pipe or device: each start reads it again",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
