//! What the figures were measured on.

use std::fs;
use std::process::Command;

use anyhow::Result;
use serde_json::Value;

use crate::Bench;
use crate::program::run;

/// Lines for the head of the report.
pub(crate) fn facts(bench: &Bench) -> Result<Vec<String>> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("");
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory_kib: u64 = memory.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let doctor: Value =
        serde_json::from_str(&run(bench.microagent(&bench.state()).args(["doctor", "--json"]))?)?;
    Ok(vec![
        format!(
            "- host: {cores} CPUs ({}), {} MiB, Linux {}",
            model.trim_matches([' ', '\t', ':']),
            memory_kib >> 10,
            kernel.trim()
        ),
        format!("- load before: {}", load.split_whitespace().next().unwrap_or("?")),
        format!("- {}", first_line("qemu-system-x86_64")),
        format!("- backend: {}", doctor["backend"].as_str().unwrap_or("?")),
        format!("- {}, {}, {}", first_line("podman"), first_line("runc"), first_line("umoci")),
        format!("- {} rounds after warm-up, peers in turn", bench.runs),
    ])
}

fn first_line(program: &str) -> String {
    let version = run(Command::new(program).arg("--version")).unwrap_or_default();
    version.lines().next().map_or_else(|| format!("{program}: not there"), str::to_owned)
}
