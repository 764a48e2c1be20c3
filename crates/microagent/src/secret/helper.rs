//! Asks the user's helper program: the reference is its one argument, the value its standard output.
//!
//! One newline at the end of the output is not part of the value, because programs print lines; everything else is.
//! The program gets a deadline, only so much of what it says is read, and it is killed with everything that it started
//! when it takes too long, says too much or nobody wants its answer any more.

use std::io;
use std::path::Path;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use microagent_proto::{SECRET_LIMIT, SecretValue};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::SecretFault;

/// How long a helper may take; it may ask a person for a password.
const DEADLINE: Duration = Duration::from_secs(30);

/// Most of what it says on standard error that is kept, and most of that which is shown, in bytes.
const STDERR_LIMIT: usize = 4 * 1024;
const SHOWN_LIMIT: usize = 300;

/// How long its last words may take after its end.
const WORDS_PATIENCE: Duration = Duration::from_millis(200);

/// The helper's answer.
pub(super) async fn ask(program: &Path, argument: &str) -> Result<SecretValue, SecretFault> {
    ask_within(program, argument, DEADLINE).await
}

async fn ask_within(program: &Path, argument: &str, deadline: Duration) -> Result<SecretValue, SecretFault> {
    let start = |source| SecretFault::HelperStart { program: program.to_owned(), source };
    let answer = match timeout(deadline, run(program, argument)).await {
        Ok(answer) => answer.map_err(start)?,
        Err(_) => return Err(SecretFault::HelperLate { seconds: deadline.as_secs() }),
    };
    let Answer { mut value, stderr, status } = answer;
    match status {
        None => Err(SecretFault::TooLarge { limit: SECRET_LIMIT }),
        Some(status) if status.success() => {
            if value.0.last() == Some(&b'\n') {
                value.0.pop();
            }
            Ok(value)
        }
        Some(status) => Err(SecretFault::HelperFailed { status: status.to_string(), said: shown(&stderr) }),
    }
}

struct Answer {
    value: SecretValue,
    stderr: Vec<u8>,
    /// None of a helper that said too much.
    status: Option<ExitStatus>,
}

/// Dropped before its end, it kills the helper.
async fn run(program: &Path, argument: &str) -> io::Result<Answer> {
    let mut child = Command::new(program)
        .arg(argument)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let stdout = child.stdout.take().expect("stdout was asked for");
    let stderr = child.stderr.take().expect("stderr was asked for");
    let mut said = Vec::new();
    let (value, status) = {
        let mut listening = pin!(listen(stderr, &mut said));
        let mut answering = pin!(async {
            let value = read_value(stdout).await?;
            let status = match value.0.len() > SECRET_LIMIT + 1 {
                true => None,
                false => {
                    let status = child.wait().await?;
                    // It has been reaped, so its number may be somebody else's soon; what it left running may continue.
                    group.let_go();
                    Some(status)
                }
            };
            io::Result::Ok((value, status))
        });
        let mut heard = false;
        loop {
            tokio::select! {
                answer = &mut answering => {
                    if !heard {
                        // Its last words may still be in the pipe; what it left running may hold that open for ever.
                        let _ = timeout(WORDS_PATIENCE, listening).await;
                    }
                    break answer?;
                }
                () = &mut listening, if !heard => heard = true,
            }
        }
    };
    Ok(Answer { value, stderr: said, status })
}

/// What the helper says, up to two bytes more than a value may have: a newline, and one that shows that it is too much.
async fn read_value(stream: impl AsyncRead + Unpin) -> io::Result<SecretValue> {
    let most = SECRET_LIMIT + 2;
    let mut value = SecretValue(Vec::with_capacity(most));
    stream.take(most as u64).read_to_end(&mut value.0).await?;
    Ok(value)
}

/// Keeps the beginning of what it says, and reads on, so that it is not stopped by a full pipe.
async fn listen(mut stream: impl AsyncRead + Unpin, said: &mut Vec<u8>) {
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let room = STDERR_LIMIT.saturating_sub(said.len()).min(count);
        said.extend_from_slice(&buffer[..room]);
    }
}

/// The process group of a helper that still runs.
struct Group(Option<Pid>);

impl Group {
    fn let_go(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // Its leader has not been reaped, so the group is still its own.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// One line of what somebody else said, with `: ` before it; nothing when it said nothing.
pub(super) fn shown(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let words: Vec<&str> = text.split(|c: char| c.is_control() || c.is_whitespace()).collect();
    let line = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let mut end = line.len().min(SHOWN_LIMIT);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    match (end, end < line.len()) {
        (0, _) => String::new(),
        (_, true) => format!(": {}…", &line[..end]),
        (_, false) => format!(": {line}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use tempfile::TempDir;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    struct Helper {
        dir: TempDir,
    }

    impl Helper {
        fn new(script: &str) -> Helper {
            let dir = tempfile::tempdir().unwrap();
            let staged = dir.path().join("staged");
            fs::write(&staged, format!("#!/bin/sh\ncd '{}'\n{script}\n", dir.path().display())).unwrap();
            fs::set_permissions(&staged, fs::Permissions::from_mode(0o755)).unwrap();
            // Copied by another process: a fork of a parallel test may still hold our writing descriptor,
            // and executing a file that is open for writing fails.
            let copied =
                std::process::Command::new("cp").arg(&staged).arg(dir.path().join("helper")).status();
            assert!(copied.unwrap().success());
            Helper { dir }
        }

        async fn ask(&self, argument: &str, deadline: Duration) -> Result<SecretValue, SecretFault> {
            ask_within(&self.dir.path().join("helper"), argument, deadline).await
        }

        /// Process ids that the script wrote down.
        fn pids(&self) -> Vec<i32> {
            let text = fs::read_to_string(self.dir.path().join("pids")).unwrap();
            text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
        }

        fn all_are_gone(&self) {
            let end = Instant::now() + LONG;
            let is_there = |pid: &i32| microagent_store::ProcessId::of(*pid).is_some();
            while self.pids().iter().any(is_there) {
                assert!(Instant::now() < end, "processes of the helper are left: {:?}", self.pids());
                std::thread::yield_now();
            }
        }
    }

    #[tokio::test]
    async fn the_output_is_the_value_but_for_one_newline() {
        for (script, value) in [
            ("echo \"<$1>\"", &b"<op://vault/item field>"[..]),
            ("printf 'plain'", b"plain"),
            ("printf 'two\\n\\n'", b"two\n"),
            ("printf 'crlf\\r\\n'", b"crlf\r"),
            ("printf '\\377\\000x'", b"\xff\0x"),
            ("echo warning >&2; echo value", b"value"),
            ("cat; echo nothing to read", b"nothing to read"),
            ("true", b""),
        ] {
            let got = Helper::new(script).ask("op://vault/item field", LONG).await.unwrap();
            assert_eq!(got.0, value, "{script}");
        }
    }

    #[tokio::test]
    async fn a_failure_is_told_with_what_it_said_and_without_a_value() {
        let failed =
            Helper::new("echo hunter2; echo 'locked:\n log in first' >&2; exit 3").ask("x", LONG).await;
        let text = failed.unwrap_err().to_string();
        assert_eq!(text, "the helper failed (exit status: 3): locked: log in first");
        let loud = Helper::new("yes 'no no' | head -c 100000 >&2; exit 1").ask("x", LONG).await.unwrap_err();
        assert!(loud.to_string().len() < 500, "{loud}");
        let none = ask(Path::new("/nonexistent/helper"), "x").await.unwrap_err();
        assert!(matches!(none, SecretFault::HelperStart { .. }), "{none}");
    }

    /// Time passes only while nothing is to be done, so not before the helper has come so far.
    #[tokio::test(start_paused = true)]
    async fn a_helper_that_hangs_is_killed_with_everything_that_it_started() {
        let late = async |script: &str| {
            let helper = Helper::new(script);
            let pids = helper.dir.path().join("pids");
            let until_it_hangs = async {
                let end = Instant::now() + LONG;
                while !pids.exists() {
                    assert!(Instant::now() < end, "the helper does nothing");
                    tokio::task::yield_now().await;
                }
            };
            let (late, ()) = tokio::join!(helper.ask("x", Duration::from_secs(2)), until_it_hangs);
            helper.all_are_gone();
            late.unwrap_err()
        };
        let hung = late("sleep 600 & echo $$ $! > pids.new; mv pids.new pids; wait").await;
        assert!(matches!(hung, SecretFault::HelperLate { seconds: 2 }), "{hung}");
        // One that answers and then does not end is no better.
        let hung =
            late("echo value; exec >&- 2>&-; echo $$ > pids.new; mv pids.new pids; exec sleep 600").await;
        assert!(matches!(hung, SecretFault::HelperLate { .. }), "{hung}");
    }

    #[tokio::test]
    async fn a_helper_that_floods_is_killed_at_the_bound() {
        let helper = Helper::new("echo $$ > pids; exec yes");
        let flood = helper.ask("x", LONG).await.unwrap_err();
        assert!(matches!(flood, SecretFault::TooLarge { .. }), "{flood}");
        helper.all_are_gone();
        let most = format!("head -c {SECRET_LIMIT} /dev/zero | tr '\\0' x; echo");
        assert_eq!(Helper::new(&most).ask("x", LONG).await.unwrap().0.len(), SECRET_LIMIT);
    }

    #[tokio::test]
    async fn a_helper_that_nobody_waits_for_any_more_is_killed() {
        let helper = Helper::new("echo $$ > pids.new; mv pids.new pids; exec sleep 600");
        let pids = helper.dir.path().join("pids");
        {
            let asking = helper.ask("x", LONG);
            tokio::pin!(asking);
            while !pids.exists() {
                let done = timeout(Duration::from_millis(5), &mut asking).await;
                assert!(done.is_err(), "it ended: {done:?}");
            }
        }
        helper.all_are_gone();
    }
}
