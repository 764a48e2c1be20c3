//! Builds the agent that lies, which the tests put in place of the real one.

use std::env;
use std::path::PathBuf;

#[path = "../crates/microagent-guest/guest_program.rs"]
mod guest_program;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let root = here.parent().expect("the tests lie in the workspace");
    let parts = ["tests/hostile-agent", "crates/microagent-proto"];
    let program = guest_program::build(root, &out, "microagent-hostile-agent", &parts);
    println!("cargo::rustc-env=HOSTILE_AGENT={}", program.display());
}
