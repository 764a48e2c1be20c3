//! Programs of the guest that prepare the copy of a captured machine: the files in [`DIR`] that can be executed, in the order
//! of their names, as root, before the programs that were captured continue.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use microagent_proto::{Chunk, Command, Exec, ExecRole, Exit};
use tokio::time::{Instant, timeout_at};

use crate::console;
use crate::exec::Executor;

/// Where they are.
const DIR: &str = "/etc/microagent/after-fork.d";

/// How long all of them together may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Most of them.
const COUNT_MAX: usize = 32;

/// Runs all, and returns what failed. After one that fails the next one runs.
pub(crate) async fn run(executor: &Executor) -> Vec<String> {
    let end = Instant::now() + LIMIT;
    let mut failures = Vec::new();
    for path in programs() {
        let shown = path.display();
        let failure = match timeout_at(end, executor.run(&exec(&path))).await {
            Ok(Ok(Exit::Code(0))) => continue,
            Ok(Ok(Exit::Code(code))) => format!("the hook {shown} failed with exit code {code}"),
            Ok(Ok(exit)) => format!("the hook {shown} failed: {exit:?}"),
            Ok(Err(error)) => format!("the hook {shown}: {}", error.message),
            Err(_) => {
                let limit = LIMIT.as_secs();
                failures
                    .push(format!("the hook {shown} was killed: all together took longer than {limit} s"));
                break;
            }
        };
        failures.push(failure);
    }
    failures.iter().for_each(|failure| console::say(failure));
    failures
}

fn programs() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(DIR) else { return Vec::new() };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    let is_program = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    paths.retain(is_program);
    paths.sort();
    paths.truncate(COUNT_MAX);
    paths
}

fn exec(path: &std::path::Path) -> Exec {
    let path = path.as_os_str().as_encoded_bytes().to_vec();
    let search = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    Exec {
        command: Command::Argv(vec![path.into()]),
        env: vec![(Chunk::from(b"PATH".to_vec()), Chunk::from(search.to_vec()))],
        working_dir: Chunk::from(b"/".to_vec()),
        make_working_dir: false,
        user: String::new(),
        stdin: false,
        terminal: None,
        role: ExecRole::Command,
    }
}
