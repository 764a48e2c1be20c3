//! The forms in which people write values, for spec files and for whoever reads the same forms elsewhere: durations,
//! artifacts, variables, setup scripts.
//!
//! The environment of the host is not read: whoever allows `NAME` to mean the host's value hands in a [`Lookup`].

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use jiff::SignedDuration;
use microagent_model::{Artifact, SetupStep};
use microagent_store::open_named;

use crate::error::InvalidRequest;
use crate::limits::SCRIPT_LIMIT;
use crate::{Error, Lookup};

/// Largest environment file that is read.
const ENV_FILE_LIMIT: u64 = 1024 * 1024;

/// Longest timeout: a year, so that adding it to any clock is safe.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Why a text is not a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DurationError {
    /// It is 0.
    #[error("a time limit must be greater than 0")]
    Zero,
    /// It is over a year.
    #[error("a time limit is at most a year")]
    Long,
    /// It is something else.
    #[error("it is a number of seconds, or with units as in 1m30s")]
    Form,
}

/// Why a text is not an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// There is no `=`.
    #[error("write it as NAME=/guest/path")]
    Form,
    /// The name has other characters, or begins with another one.
    #[error("the name consists of letters, digits, `.`, `_` and `-`")]
    Name,
    /// The path is relative.
    #[error("the path is absolute, in the guest")]
    Path,
}

/// Why a text is not a variable. Never repeats it: it may hold a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VariableError {
    /// The name is empty or has spaces.
    #[error("the name is empty or has spaces")]
    Name,
    /// The host's value is not UTF-8.
    #[error("its value on the host is not UTF-8")]
    Value,
}

/// Seconds, or with units: `90`, `0.5`, `1m30s`, `2h`, `1.5s`.
///
/// # Errors
/// Says what a duration looks like, or that it is too short or too long.
pub fn duration(text: &str) -> Result<Duration, DurationError> {
    let text = text.trim();
    let with_units = |text: &str| {
        text.parse::<SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok())
    };
    let duration = match text.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => {
            with_units(&format!("{text}s"))
        }
        Err(_) => with_units(text),
    };
    match duration {
        Some(duration) if duration.is_zero() => Err(DurationError::Zero),
        Some(duration) if duration <= LONGEST_TIMEOUT => Ok(duration),
        Some(_) => Err(DurationError::Long),
        None => Err(DurationError::Form),
    }
}

/// `NAME=/guest/path`.
///
/// # Errors
/// Says how it is written.
pub fn output(text: &str) -> Result<Artifact, ArtifactError> {
    let (name, path) = text.split_once('=').ok_or(ArtifactError::Form)?;
    artifact(name, path)
}

/// An artifact of this name at this path of the guest.
///
/// # Errors
/// Says what is wrong with either.
pub fn artifact(name: &str, path: &str) -> Result<Artifact, ArtifactError> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.starts_with(['.', '-']) || !name.chars().all(is_name) {
        return Err(ArtifactError::Name);
    }
    if !path.starts_with('/') || path.contains('\0') {
        return Err(ArtifactError::Path);
    }
    Ok(Artifact { name: name.to_owned(), path: path.to_owned() })
}

/// `NAME=VALUE`, or `NAME` for the host's value; a name that the host does not have is left out, as Docker does.
///
/// # Errors
/// Says what is wrong with it, without repeating it.
pub fn variable(text: &str, host: &Lookup) -> Result<Option<(String, String)>, VariableError> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '\0') {
        return Err(VariableError::Name);
    }
    if let Some(value) = value {
        return Ok(Some((name.to_owned(), value)));
    }
    match host(name).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some((name.to_owned(), value))),
        Some(Err(_)) => Err(VariableError::Value),
    }
}

/// Docker's file format: a variable per line as in `--env`, `#` starts a comment line, nothing is unquoted.
///
/// # Errors
/// Fails when the file cannot be read, is larger than 1 MiB, or has a line that is no variable.
pub fn env_file(path: &Path, host: &Lookup) -> Result<Vec<(String, String)>, Error> {
    let failed = |source| Error::File { action: "read environment file", path: path.to_owned(), source };
    let text = String::from_utf8(read(path, ENV_FILE_LIMIT).map_err(failed)?)
        .map_err(|_| failed(io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8")))?;
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim_start).enumerate();
    let read = |(index, line)| match variable(line, host) {
        Ok(variable) => variable.map(Ok),
        Err(source) => {
            let (path, line) = (path.to_owned(), index + 1);
            Some(Err(InvalidRequest::EnvironmentLine { path, line, source }.into()))
        }
    };
    lines.filter(|(_, line)| !line.trim_end().is_empty() && !line.starts_with('#')).filter_map(read).collect()
}

/// A script of the host as a setup step.
///
/// # Errors
/// Fails when the file cannot be read or is larger than 1 MiB.
pub fn setup_script(path: &Path) -> Result<SetupStep, Error> {
    let failed =
        |source: io::Error| Error::File { action: "read setup script", path: path.to_owned(), source };
    let content = read(path, SCRIPT_LIMIT as u64).map_err(failed)?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok(SetupStep::Script { name, content })
}

fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open_named(path)?.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 1 MiB"));
    }
    Ok(content)
}

const _: () = assert!(ENV_FILE_LIMIT == 1024 * 1024 && SCRIPT_LIMIT == 1024 * 1024, "the message has it");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_in_seconds_or_with_units() {
        for (text, millis) in
            [("5", 5000), ("1m30s", 90_000), ("1.5s", 1500), ("0.5", 500), ("2h", 7_200_000), ("200ms", 200)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", ".", "1.2.3", "0.0", "0", "-5", "-5s", "5 parsecs", "9999999999999999999", "2y"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn outputs_have_a_name_and_an_absolute_path() {
        assert_eq!(output("r=/a=b"), Ok(Artifact { name: "r".into(), path: "/a=b".into() }));
        for text in ["r", "=/a", "r=", "r=a/b", "../r=/a", "a b=/a"] {
            assert!(output(text).is_err(), "{text}");
        }
    }

    #[test]
    fn environment_files_are_dockers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        let host = |name: &str| (name == "OF_HOST").then(|| "host".into());
        std::fs::write(&path, "\u{feff}# comment\n\nA=1\n  B=\"two\"\nC=x y \nOF_HOST\nNOT_SET\n").unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let read = env_file(&path, &host).unwrap();
        assert_eq!(read, [pair("A", "1"), pair("B", "\"two\""), pair("C", "x y "), pair("OF_HOST", "host")]);
        std::fs::write(&path, "# one\nhunter2 B=1\n").unwrap();
        let error = env_file(&path, &host).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("line 2") && !message.contains("hunter2"), "{message}");
        assert!(matches!(env_file(&dir.path().join("none"), &host), Err(Error::File { .. })));
    }

    #[test]
    fn files_have_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        std::fs::write(&path, vec![b'#'; 1024 * 1024 + 1]).unwrap();
        for error in [setup_script(&path).unwrap_err(), env_file(&path, &|_| None).unwrap_err()] {
            assert!(matches!(&error, Error::File { source, .. } if source.to_string().contains("1 MiB")));
        }
    }
}
