//! A workspace that serves while something is measured.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Bench;
use crate::fixture::SMALL;
use crate::program::run;

/// It is killed and deleted when dropped.
pub(crate) struct ServingWorkspace<'a> {
    bench: &'a Bench,
    name: &'static str,
    environment: Vec<(&'static str, &'static str)>,
}

impl<'a> ServingWorkspace<'a> {
    /// Creates one of the small image, in place of what an earlier call may have left.
    pub(crate) fn create(
        bench: &'a Bench,
        name: &'static str,
        environment: &[(&'static str, &'static str)],
        flags: &[&str],
    ) -> Result<ServingWorkspace<'a>> {
        let workspace = ServingWorkspace { bench, name, environment: environment.to_vec() };
        workspace.delete()?;
        run(workspace.call(&["create", name, "--image", SMALL]).args(flags))?;
        Ok(workspace)
    }

    /// Starts it; gives the host's ports that are published.
    pub(crate) fn start(&self) -> Result<Vec<u16>> {
        let started = run(&mut self.call(&["start", self.name, "--json"]))?;
        let started: Value = serde_json::from_str(&started)?;
        let forwards = started["port_forwards"].as_array().context("no ports are published")?;
        let ports = forwards.iter().map(|forward| {
            let port = forward["host_port"].as_u64().and_then(|port| u16::try_from(port).ok());
            port.context("a port was not published")
        });
        ports.collect()
    }

    /// Runs a line of shell in it; gives what it printed.
    pub(crate) fn exec(&self, line: &str) -> Result<String> {
        run(&mut self.call(&["exec", self.name, "--", "sh", "-c", line]))
    }

    /// A call of microagent with the workspace's environment.
    pub(crate) fn call(&self, words: &[&str]) -> Command {
        let mut command = self.bench.microagent(&self.bench.state());
        command.args(words).envs(self.environment.iter().copied());
        command
    }

    fn delete(&self) -> Result<()> {
        run(&mut self.call(&["delete", self.name, "--force", "--yes"])).map(drop)
    }
}

impl Drop for ServingWorkspace<'_> {
    fn drop(&mut self) {
        // What cannot be ended here shows in the next round's `list`.
        let _ = self.delete();
    }
}
