//! `cargo xtask fuzz`: each fuzz target in turn, for a bounded time.
//!
//! What is checked in of inputs lies in `fuzz/seeds`, small and minimised; what a run finds grows in `fuzz/corpus`,
//! which is not checked in.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{capture, has_cargo_command, program, root, run};

/// Most memory that a target may take, in MiB.
const MEMORY_MIB: u32 = 2048;
/// Longest that one input may take, in seconds: nothing here takes a tenth of it.
const INPUT_SECONDS: u32 = 60;
/// Where fuzzers are described; every `[[bin]]` is one.
pub(crate) const MANIFEST: &str = "fuzz/Cargo.toml";

/// Fuzz each decoder of hostile bytes; needs a nightly compiler and cargo-fuzz
#[derive(Debug, clap::Args)]
pub(crate) struct FuzzArguments {
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,

    /// Targets; all of them without any
    targets: Vec<String>,
}

impl FuzzArguments {
    /// Runs the targets; stops at the first that finds something.
    pub(crate) fn run(&self) -> Result<()> {
        if !has_cargo_command("fuzz") {
            bail!("cargo-fuzz is missing: cargo install cargo-fuzz --locked");
        }
        let all = targets()?;
        let chosen = if self.targets.is_empty() { &all } else { &self.targets };
        for target in chosen {
            if !all.contains(target) {
                bail!("there is no fuzz target `{target}`; there are {}", all.join(", "));
            }
            eprintln!("==> {target}");
            self.fuzz(target).with_context(|| format!("fuzz target `{target}` found something"))?;
        }
        Ok(())
    }

    fn fuzz(&self, target: &str) -> Result<()> {
        let (corpus, seeds) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}"));
        for dir in [&corpus, &seeds] {
            fs::create_dir_all(root().join(dir)).with_context(|| format!("cannot make `{dir}`"))?;
        }
        let mut fuzz = nightly();
        fuzz.args(["fuzz", "run", target, &corpus, &seeds, "--"]);
        fuzz.arg(format!("-max_total_time={}", self.seconds));
        fuzz.arg(format!("-rss_limit_mb={MEMORY_MIB}"));
        fuzz.arg(format!("-timeout={INPUT_SECONDS}"));
        // A thread that ends at the wrong moment counts as a leak.
        run(fuzz.args(["-detect_leaks=0", "-print_final_stats=1"]))
    }
}

/// Cargo of the nightly toolchain. Targets that carry the guest's files carry any file in the agent's place.
fn nightly() -> Command {
    let mut cargo = program("cargo");
    cargo.arg("+nightly").env_remove("CARGO").env("MICROAGENT_AGENT", root().join(MANIFEST));
    cargo
}

/// The names of all targets, in the manifest's order.
fn targets() -> Result<Vec<String>> {
    let what = ["metadata", "--no-deps", "--format-version", "1", "--manifest-path", MANIFEST];
    let described: serde_json::Value = serde_json::from_str(&capture(program("cargo").args(what))?)?;
    let targets = described["packages"][0]["targets"].as_array().context("cargo lists no targets")?;
    Ok(targets.iter().filter_map(|target| target["name"].as_str().map(str::to_owned)).collect())
}
