//! Calls `docker-credential-NAME get`: the registry on its standard input, a JSON answer on its output.
//!
//! A helper is a stranger's program: it gets a deadline, and only so much of what it says is read.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::{CredentialError, Credentials};
use crate::manifest::printable;

/// How long a helper may take; it may ask a person for a password.
const DEADLINE: Duration = Duration::from_secs(30);
/// Most bytes of its answer that are read; tokens have a few kilobytes.
const ANSWER_LIMIT: u64 = 256 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks a helper for the credentials of a server; `None` when it knows none.
pub(super) async fn ask(
    helper: &str,
    server: &str,
    path: Option<&OsStr>,
) -> Result<Option<Credentials>, CredentialError> {
    ask_within(helper, server, path, DEADLINE).await
}

async fn ask_within(
    helper: &str,
    server: &str,
    path: Option<&OsStr>,
    deadline: Duration,
) -> Result<Option<Credentials>, CredentialError> {
    let program = format!("docker-credential-{helper}");
    let start = |source| CredentialError::HelperStart { program: printable(&program), source };
    let executable = find_program(&program, path).map_err(start)?;
    let (status, stdout, stderr) = match timeout(deadline, run(&executable, server)).await {
        Ok(outcome) => outcome.map_err(start)?,
        Err(_) => return Err(CredentialError::HelperTimeout { program, seconds: deadline.as_secs() }),
    };
    let said = String::from_utf8_lossy(if stdout.is_empty() { &stderr } else { &stdout }).trim().to_owned();
    if !status.success() {
        // The words of the protocol for "I have none".
        if said.contains("credentials not found") {
            return Ok(None);
        }
        let detail = if said.is_empty() { status.to_string() } else { printable(&said) };
        return Err(CredentialError::HelperFailed { program, detail });
    }
    match serde_json::from_slice(&stdout) {
        // An answer that says nothing is as good as none.
        Ok(Answer { username, secret }) if username.is_empty() && secret.is_empty() => Ok(None),
        Ok(Answer { username, secret }) if username == "<token>" => {
            Ok(Some(Credentials::IdentityToken(secret)))
        }
        Ok(Answer { username, secret }) => Ok(Some(Credentials::Basic { username, password: secret })),
        // Not shown: it may hold half a secret.
        Err(_) => Err(CredentialError::HelperFailed {
            program,
            detail: "its answer is not the JSON expected".into(),
        }),
    }
}

/// Dropped at the deadline, which kills the helper.
async fn run(executable: &Path, server: &str) -> io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let mut child = Command::new(executable)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().expect("stdin was asked for");
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ask = async move {
        // A helper that ends without reading says why in its answer.
        let _ = stdin.write_all(server.as_bytes()).await;
        let _ = stdin.write_all(b"\n").await;
    };
    let ((), stdout, stderr) = tokio::join!(
        ask,
        read_bounded(stdout.expect("stdout was asked for")),
        read_bounded(stderr.expect("stderr was asked for"))
    );
    Ok((child.wait().await?, stdout?, stderr?))
}

/// Reads to the end, keeping only so much, so that a chatty helper is not stopped by a full pipe.
async fn read_bounded(mut stream: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    (&mut stream).take(ANSWER_LIMIT).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(kept)
}

fn find_program(program: &str, path: Option<&OsStr>) -> io::Result<PathBuf> {
    let plain = program.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if !plain {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a program"));
    }
    std::env::split_paths(path.unwrap_or_default())
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(program))
        .find(|file| file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such program in PATH"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a helper and gives the outcome of asking it.
    async fn outcome(script: &str, deadline: Duration) -> Result<Option<Credentials>, CredentialError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("docker-credential-test");
        let staged = dir.path().join("staged");
        std::fs::write(&staged, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o755)).unwrap();
        // Copied by another process: a fork of a parallel test may still hold our writing descriptor,
        // and executing a file that is open for writing fails.
        let copied = std::process::Command::new("cp").arg(&staged).arg(&file).status().unwrap();
        assert!(copied.success());
        ask_within("test", "r.example.org", Some(dir.path().as_os_str()), deadline).await
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn takes_the_answer() {
        let script =
            r#"read server; printf '{"ServerURL":"%s","Username":"%s","Secret":"s"}' "$server" "$server-$1""#;
        let expected = Credentials::Basic { username: "r.example.org-get".into(), password: "s".into() };
        assert_eq!(outcome(script, LONG).await.unwrap(), Some(expected));
        let token = r#"echo '{"Username":"<token>","Secret":"t"}'"#;
        assert_eq!(outcome(token, LONG).await.unwrap(), Some(Credentials::IdentityToken("t".into())));
        let none = "echo 'credentials not found in native keychain'; exit 1";
        assert_eq!(outcome(none, LONG).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_failure_is_an_error_and_shows_no_secret() {
        let failed = outcome("echo locked >&2; exit 3", LONG).await.unwrap_err();
        assert!(failed.to_string().contains("locked"), "{failed}");
        let garbage = outcome("echo secret-in-garbage", LONG).await.unwrap_err();
        assert!(!garbage.to_string().contains("secret"), "{garbage}");
        let endless = outcome("yes", Duration::from_millis(300)).await.unwrap_err();
        assert!(matches!(endless, CredentialError::HelperTimeout { .. }), "{endless}");
        let silent = outcome("sleep 60", Duration::from_millis(100)).await.unwrap_err();
        assert!(matches!(silent, CredentialError::HelperTimeout { .. }), "{silent}");
    }

    #[tokio::test]
    async fn a_missing_helper_is_an_error() {
        for name in ["missing", "../evil", ""] {
            let error = ask(name, "r", Some("/usr/bin".as_ref())).await.unwrap_err();
            assert!(matches!(error, CredentialError::HelperStart { .. }), "{name}: {error}");
        }
    }
}
