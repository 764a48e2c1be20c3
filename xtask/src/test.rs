//! `cargo xtask test`: every check that needs no guest, then all tests, those on real guests included.
//!
//! Cheap checks come first. The test runner comes last, so that its numbers are the last thing seen.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::fixtures::Fixtures;
use crate::hosts::{self, Suite};
use crate::process::{build_programs_and_tests, cargo, has_cargo_command, program, root, run};
use crate::tidy::TidyArguments;
use crate::{deps, docs, fuzz, tidy};

/// Runs everything; stops at the first step that fails.
pub(crate) fn test() -> Result<()> {
    step("format", || run(cargo().args(["fmt", "--all", "--check"])))?;
    step("kernel", || run(&mut program("kernel/check.sh")))?;
    step("dependencies", deps::check)?;
    step("documents", docs::check)?;
    step("tidy", || tidy::check(&TidyArguments::default()))?;
    step("lints", || {
        let what = ["--workspace", "--all-targets", "--locked", "--quiet"];
        run(cargo().arg("clippy").args(what).args(["--", "-D", "warnings"]))
    })?;
    // Lints have checked the dependencies, so this reads only our own crates.
    step("library pages", || {
        let what = ["--workspace", "--no-deps", "--locked", "--quiet"];
        run(cargo().arg("doc").args(what).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    // Checked, not linked: fuzzers need another compiler, their code does not.
    step("fuzz targets", || {
        let check = ["check", "--locked", "--quiet", "--manifest-path", fuzz::MANIFEST];
        run(cargo().args(check).env("MICROAGENT_AGENT", root().join(fuzz::MANIFEST)))
    })?;
    step("fixtures", || Fixtures::default().run())?;
    // End-to-end tests run the command that lies beside them.
    step("build", build_programs_and_tests)?;
    step("documentation tests", || {
        run(cargo().args(["test", "--workspace", "--locked", "--quiet", "--doc"]))
    })?;
    step("Debian 13", || hosts::short_part(Suite::Trixie))?;
    eprintln!("==> tests");
    tests()
}

fn tests() -> Result<()> {
    if has_cargo_command("nextest") {
        return run(cargo().args(["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]));
    }
    run(cargo().args(["test", "--workspace", "--locked", "--no-fail-fast", "--lib", "--bins", "--tests"]))
}

fn step(name: &'static str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("==> {name}");
    let begun = Instant::now();
    work().with_context(|| format!("`make test` failed at: {name}"))?;
    eprintln!("    {name}: ok, {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}
