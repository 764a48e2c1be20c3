//! `cargo xtask bench`: builds the command and the benchmark, and runs the benchmark.
//!
//! What is measured, and how, is in `bench/`.

use anyhow::Result;
use clap::Args;

use crate::process::{cargo, program, run};

#[derive(Debug, Args)]
pub(crate) struct BenchArguments {
    /// Arguments of the benchmark: `cargo xtask bench -- --help`
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

/// Builds what is measured as it is released, then measures.
pub(crate) fn bench(arguments: &BenchArguments) -> Result<()> {
    let packages = ["--package", "microagent-cli", "--package", "microagent-bench"];
    run(cargo().args(["build", "--release", "--locked", "--quiet"]).args(packages))?;
    run(program("target/release/microagent-bench").args(&arguments.arguments))
}
