//! Starting what is measured.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::Bench;

/// Runs to the end with nothing shown; what it said is shown when it fails. Gives standard output.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} ended with {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The path as text, for arguments that are made of more than it.
pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the work directory is not UTF-8")
}

impl Bench {
    /// The state directory that runs share.
    pub(crate) fn state(&self) -> std::path::PathBuf {
        self.dir.join("state")
    }

    /// `microagent` on a state directory.
    pub(crate) fn microagent(&self, state: &Path) -> Command {
        let mut command = Command::new(&self.microagent);
        command.env("MICROAGENT_STATE_DIR", state).env("MICROAGENT_PROGRESS", "off");
        command
    }

    /// `microagent run --json` on the shared state directory; the command has to exit with 0.
    pub(crate) fn run_json(&self, flags: &[&str], image: &str, command: &[&str]) -> Result<Value> {
        let mut run_command = self.microagent(&self.state());
        run_command.args(["run", "--json", "--propagate-exit-code"]).args(flags).arg(image).args(command);
        let text = run(&mut run_command)?;
        serde_json::from_str(&text)
            .with_context(|| format!("{run_command:?} printed something else than JSON"))
    }
}
