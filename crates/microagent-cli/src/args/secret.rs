//! `--secret` and `--secrets-env-file`: where the values of secrets are. A value that was typed in place of a reference
//! is never repeated.

use std::path::PathBuf;

use clap::Args;
use microagent::SecretReference;
use microagent::secret::secrets_of_env_file;

use crate::failure::Failure;

/// What to write instead.
const HINT: &str = "write --secret NAME=env:VARIABLE, file:PATH, dotenv:PATH#KEY, vault:MOUNT/data/PATH#FIELD or helper:REF; \
                    never the value itself";

/// The secrets of a workspace.
#[derive(Debug, Args)]
pub(crate) struct SecretArgs {
    /// Secret for /run/secrets/NAME with its reference: env:VAR, file:PATH, dotenv:PATH#KEY,
    /// vault:MOUNT/data/PATH#FIELD or helper:REF (repeatable)
    // Not parsed by clap, which would repeat what it does not understand.
    #[arg(long, value_name = "NAME=SCHEME:REF", help_heading = "What to run")]
    secret: Vec<String>,

    /// Make every variable of a file of NAME=VALUE lines a secret; --secret overrides it (repeatable)
    #[arg(long, value_name = "FILE", help_heading = "What to run")]
    secrets_env_file: Vec<PathBuf>,
}

impl SecretArgs {
    /// All of them.
    pub(crate) fn references(&self) -> Result<Vec<SecretReference>, Failure> {
        let named = self.secret.iter().map(|text| reference(text)).collect::<Result<Vec<_>, _>>()?;
        all_of(named, &self.secrets_env_file)
    }
}

/// A reference as somebody typed it.
pub(crate) fn reference(text: &str) -> Result<SecretReference, Failure> {
    text.parse().map_err(|error: microagent::SecretReferenceError| Failure::usage(error.to_string(), HINT))
}

/// These, and the variables of the files that do not have one of their names; of two files the later one counts.
pub(crate) fn all_of(
    named: Vec<SecretReference>,
    files: &[PathBuf],
) -> Result<Vec<SecretReference>, Failure> {
    for (number, reference) in named.iter().enumerate() {
        if named[..number].iter().any(|earlier| earlier.name == reference.name) {
            let message = format!("secret `{}` is given twice", reference.name);
            return Err(Failure::usage(message, "give each secret a different name"));
        }
    }
    let mut references: Vec<SecretReference> = Vec::new();
    for file in files {
        for reference in secrets_of_env_file(file)? {
            references.retain(|earlier| earlier.name != reference.name);
            references.push(reference);
        }
    }
    references.retain(|reference| named.iter().all(|wins| wins.name != reference.name));
    references.extend(named);
    Ok(references)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_in_place_of_a_reference_is_not_repeated() {
        for text in ["hunter2", "TOKEN=hunter2", "TOKEN=hunter:2", "hunter2=hunter:2"] {
            match reference(text) {
                Err(Failure::Usage { message, hint }) => {
                    let told = format!("{message} {}", hint.unwrap());
                    assert!(!told.contains("hunter"), "{told}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_named_wins_over_files_and_later_files_over_earlier_ones() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            std::fs::write(dir.path().join(name), content).unwrap();
            dir.path().join(name)
        };
        let files = [file("a", "A=1\nB=1\nC=1\n"), file("b", "B=2\n")];
        let named = vec![reference("C=env:C").unwrap()];
        assert!(all_of(vec![named[0].clone(), named[0].clone()], &[]).is_err());
        let made: Vec<String> = all_of(named, &files).unwrap().iter().map(ToString::to_string).collect();
        let of = |name: &str, file: usize| format!("{name}=dotenv:{}#{name}", files[file].display());
        assert_eq!(made, [of("A", 0), of("B", 1), "C=env:C".to_owned()]);
    }
}
