//! `cargo xtask programs`: real programs in guests, with the time and the memory that each took.
//!
//! The tests are in `tests/tests/programs`; nothing else runs them, because they take minutes and images of gigabytes.

use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::fixtures::Fixtures;
use crate::hosts::{test_programs, tests_of};
use crate::process::{build_programs_and_tests, program};

/// The program with the tests.
const TESTS: &str = "programs";

/// How long one test may take.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// Which programs.
#[derive(Debug, Args)]
pub(crate) struct Programs {
    /// Run only tests whose name contains one of these; all without a name
    #[arg(value_name = "TEXT")]
    names: Vec<String>,
}

impl Programs {
    pub(crate) fn run(&self) -> Result<()> {
        Fixtures::with_programs().run()?;
        build_programs_and_tests()?;
        let programs = test_programs()?;
        let path = programs.get(TESTS).context("there is no test program of that name")?;
        let all = tests_of(path, &["--ignored"])?;
        let is_chosen =
            |test: &&String| self.names.is_empty() || self.names.iter().any(|name| test.contains(name));
        let chosen: Vec<_> = all.iter().filter(is_chosen).collect();
        ensure!(!chosen.is_empty(), "no test has such a name");
        println!("| Program | Time | Memory |\n|---|---:|---:|");
        let mut failed = Vec::new();
        for test in chosen {
            let (passed, printed) = run_test(path, test)?;
            let figures = figures(passed, &printed);
            println!("| {} | {} |", title(test), figures.as_deref().unwrap_or("failed | –"));
            if figures.is_none() {
                eprintln!("{}", printed.trim_end());
                failed.push(test.as_str());
            }
        }
        ensure!(failed.is_empty(), "{} programs failed: {}", failed.len(), failed.join(", "));
        Ok(())
    }
}

/// Runs one test; gives whether it passed, and what it printed.
fn run_test(path: &Path, test: &str) -> Result<(bool, String)> {
    let mut command = program(path);
    command.args([test, "--exact", "--ignored", "--nocapture", "--test-threads", "1"]);
    let mut log = tempfile::tempfile().context("cannot make a file for the output")?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
    let mut child = command.spawn().context("cannot start a test")?;
    let until = Instant::now() + DEADLINE;
    let passed = loop {
        if let Some(status) = child.try_wait()? {
            break status.success();
        }
        if Instant::now() >= until {
            child.kill().context("cannot end a test")?;
            child.wait()?;
            break false;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    std::io::Seek::rewind(&mut log)?;
    let mut printed = Vec::new();
    log.read_to_end(&mut printed)?;
    Ok((passed, String::from_utf8_lossy(&printed).into_owned()))
}

/// The name of a test as words.
fn title(test: &str) -> String {
    test.rsplit("::").next().unwrap_or(test).replace('_', " ")
}

/// Two cells: time and memory, or why nothing was tried. A test that has measured nothing has failed.
fn figures(passed: bool, printed: &str) -> Option<String> {
    let line = |start: &str| printed.lines().find_map(|line| line.split_once(start).map(|(_, rest)| rest));
    let measured = line("measured: ").map(|figures| figures.replace(", ", " | "));
    let skipped = || line("SKIPPED: ").map(|reason| format!("skipped: {reason} | –"));
    passed.then(|| measured.or_else(skipped)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_what_a_test_prints() {
        let printed = "running 1 test\ntest a ... measured: 12.3 s, 456 MiB\nok\n";
        assert_eq!(figures(true, printed).as_deref(), Some("12.3 s | 456 MiB"));
        assert_eq!(figures(false, printed), None);
        assert_eq!(figures(true, "SKIPPED: no server\n").as_deref(), Some("skipped: no server | –"));
        assert_eq!(figures(true, "ok\n"), None);
        assert_eq!(title("engines::docker_builds"), "docker builds");
    }
}
