//! `cargo xtask hosts`: end-to-end tests on other Debian releases, each with its own QEMU.
//!
//! A release is a root file system in `target/hosts/SUITE`, made once by `mmdebstrap`. Nothing is built in it: the
//! test programs and the command of this build run there, in namespaces of their own, through `pivot_root`, because
//! a process under `chroot` cannot make user namespaces, or in containers. Each test is a process of its own with a
//! deadline.

mod root;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::fixtures::{Fixtures, target_directory};
use crate::process::{build_programs_and_tests, capture, cargo, root};
pub(crate) use root::packages as test_packages;
use root::{Outcome, Place, Root};

/// How long one test may take; the same as in `.config/nextest.toml`.
const TEST_DEADLINE: Duration = Duration::from_secs(300);

/// Tests of the short part: one for each way of starting, and one for each thing that depends on QEMU or the host.
const SHORT: [&str; 11] = [
    "run json_has_the_whole_story_and_keeps_the_streams_apart",
    "warm starts::the_second_run_of_a_shape_is_warm_and_says_so",
    "warm starts::every_image_has_a_template_of_its_own",
    "warm starts::cold_and_off_use_none_and_make_none",
    "run a_guest_on_network_user_reaches_other_hosts",
    "sessions exec_keeps_the_streams_apart_and_passes_the_exit_code_on",
    "workspaces a_workspace_lives_from_create_to_delete",
    "workspaces halt_honours_the_stop_signal_of_the_image",
    "workspaces a_paused_guest_stands_still_and_goes_on",
    "commit an_unchanged_workspace_is_an_empty_layer_and_shares_the_disk",
    "volumes a_volume_outlives_its_workspaces",
];

/// Which releases, users and tests.
#[derive(Debug, Args)]
pub(crate) struct Hosts {
    /// Debian releases; all when none is named
    suites: Vec<Suite>,
    /// Run only the short part: each way of starting, network, exec, halt, pause, commit, volume
    #[arg(long)]
    short: bool,
    /// Run only tests whose name contains TEXT; repeatable
    #[arg(long = "test", value_name = "TEXT")]
    tests: Vec<String>,
    /// Run as this user only
    #[arg(long = "as", value_name = "USER")]
    user: Option<Who>,
    /// Run in containers of podman without privileges
    #[arg(long)]
    container: bool,
}

/// A host of the matrix: a release with its QEMU, and who runs the tests in it.
struct Host {
    suite: Suite,
    qemu: String,
    user: Who,
    container: bool,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = if self.user == Who::Root { "root" } else { "ordinary user" };
        let place = if self.container { ", container" } else { "" };
        write!(f, "{}, {user}{place}", self.suite.name())
    }
}

/// What the tests of one host gave.
#[derive(Default)]
struct Tally {
    passed: usize,
    skipped: usize,
    failed: Vec<String>,
    time: Duration,
}

/// A Debian release, and the QEMU that it brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// Debian 12, QEMU 7.2
    Bookworm,
    /// Debian 13, QEMU 10.0
    Trixie,
    /// Debian's testing, the newest QEMU
    Testing,
}

impl Suite {
    const ALL: [Suite; 3] = [Suite::Bookworm, Suite::Trixie, Suite::Testing];

    /// Debian's name of it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Suite::Bookworm => "bookworm",
            Suite::Trixie => "trixie",
            Suite::Testing => "testing",
        }
    }
}

/// Who runs the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Who {
    /// The superuser
    Root,
    /// A user without any privilege
    User,
}

/// Runs the short part in one release as an ordinary user, where another root can be made and entered.
pub(crate) fn short_part(suite: Suite) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can make and enter other roots");
        return Ok(());
    }
    // A host without a mirror of the release, or without namespaces, says nothing about this program.
    if let Err(error) = Root::prepare(suite).and_then(|root| root.qemu_version()) {
        eprintln!("SKIPPED: no root of {}: {error:#}", suite.name());
        return Ok(());
    }
    let user = Some(Who::User);
    Hosts { suites: vec![suite], short: true, tests: Vec::new(), user, container: false }.run()
}

impl Hosts {
    pub(crate) fn run(&self) -> Result<()> {
        ensure!(rustix::process::geteuid().is_root(), "only root can make and enter other roots");
        Fixtures::default().run()?;
        build_programs_and_tests()?;
        let programs = test_programs()?;
        let suites = if self.suites.is_empty() { Suite::ALL.to_vec() } else { self.suites.clone() };
        let users = self.user.map_or_else(|| vec![Who::Root, Who::User], |user| vec![user]);
        let mut rows = Vec::new();
        for suite in suites {
            let root = Root::prepare(suite)?;
            let qemu = root.qemu_version()?;
            eprintln!("==> {}: {qemu}", suite.name());
            for &user in &users {
                let host = Host { suite, qemu: qemu.clone(), user, container: self.container };
                let tally = self.run_on(&host, &root, &programs)?;
                rows.push((host, tally));
            }
        }
        report(&rows)
    }

    /// Runs the chosen tests on one host.
    fn run_on(&self, host: &Host, root: &Root, programs: &BTreeMap<String, PathBuf>) -> Result<Tally> {
        let mut tally = Tally::default();
        let mut missing: Vec<&str> = if self.short { SHORT.to_vec() } else { Vec::new() };
        let place = if host.container { Place::Container } else { Place::Namespaces };
        for (program, path) in programs {
            let ignored = tests_of(path, &["--ignored"])?;
            let tests = tests_of(path, &[])?;
            for test in tests.into_iter().filter(|test| !ignored.contains(test)) {
                let name = format!("{program} {test}");
                missing.retain(|short| *short != name);
                if !self.wants(&name) {
                    continue;
                }
                let begun = Instant::now();
                let (outcome, output) = root.test(path, &test, host.user, place, TEST_DEADLINE)?;
                let time = begun.elapsed();
                tally.time += time;
                match outcome {
                    Outcome::Passed => tally.passed += 1,
                    Outcome::Skipped => tally.skipped += 1,
                    Outcome::Failed => tally.failed.push(name.clone()),
                }
                eprintln!("{outcome:?} {:6.1} s  {host}: {name}", time.as_secs_f64());
                if outcome != Outcome::Passed {
                    eprintln!("{}", output.trim_end());
                }
            }
        }
        ensure!(missing.is_empty(), "the short part names tests that do not exist: {}", missing.join(", "));
        ensure!(tally.passed + tally.failed.len() + tally.skipped > 0, "no test has such a name");
        Ok(tally)
    }

    fn wants(&self, name: &str) -> bool {
        let short = !self.short || SHORT.contains(&name);
        short && (self.tests.is_empty() || self.tests.iter().any(|text| name.contains(text)))
    }
}

/// Prints a line for each host, and what failed where.
///
/// # Errors
/// Fails if a test failed.
fn report(rows: &[(Host, Tally)]) -> Result<()> {
    eprintln!("{:32} {:>7} {:>7} {:>7} {:>8}  QEMU", "host", "passed", "failed", "skipped", "time");
    for (host, tally) in rows {
        let (failed, seconds) = (tally.failed.len(), tally.time.as_secs());
        let qemu = host.qemu.trim_start_matches("QEMU emulator version ");
        eprintln!(
            "{:32} {:7} {failed:7} {:7} {seconds:6} s  {qemu}",
            host.to_string(),
            tally.passed,
            tally.skipped
        );
    }
    let failed =
        rows.iter().flat_map(|(host, tally)| tally.failed.iter().map(move |name| format!("{host}: {name}")));
    let failed: Vec<_> = failed.collect();
    ensure!(failed.is_empty(), "{} tests failed:\n  {}", failed.len(), failed.join("\n  "));
    Ok(())
}

/// The end-to-end test programs of this build, by name.
pub(crate) fn test_programs() -> Result<BTreeMap<String, PathBuf>> {
    let build = ["test", "--workspace", "--tests", "--locked", "--quiet", "--no-run"];
    let messages = capture(cargo().args(build).arg("--message-format=json"))?;
    let manifest = root().join("tests/Cargo.toml");
    let mut programs = BTreeMap::new();
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("cargo printed no JSON")?;
        let is_test =
            message["target"]["kind"][0] == "test" && message["manifest_path"].as_str() == manifest.to_str();
        if let (true, Some(path), Some(name)) =
            (is_test, message["executable"].as_str(), message["target"]["name"].as_str())
        {
            programs.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    ensure!(!programs.is_empty(), "cargo built no end-to-end test");
    Ok(programs)
}

/// The tests of a program; with `--ignored` those that only a verb of their own runs.
pub(crate) fn tests_of(program: &Path, which: &[&str]) -> Result<Vec<String>> {
    let mut command = std::process::Command::new(program);
    let list = capture(command.args(["--list", "--format", "terse"]).args(which))?;
    Ok(list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// The directory of one release.
fn directory(suite: Suite) -> PathBuf {
    target_directory().join("hosts").join(suite.name())
}
