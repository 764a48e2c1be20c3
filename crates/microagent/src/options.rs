//! What a run is asked to do.

use std::time::Duration;

use microagent_image::PullPolicy;
use microagent_store::{Artifact, NetworkMode, WorkspaceName};

use crate::Profile;

/// What a one-shot run is asked to do. Start from [`RunOptions::new`] and set what differs.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Image reference, as a user writes it.
    pub image: String,
    /// What to run in it.
    pub command: RunCommand,
    /// Steps before the command, in the same boot; the first that fails fails the run.
    pub setup: Vec<SetupStep>,
    /// Environment, over the image's; later entries win.
    pub env: Vec<(String, String)>,
    /// OCI user in place of the image's.
    pub user: Option<String>,
    /// Working directory in place of the image's.
    pub working_dir: Option<String>,
    /// Paths that `artifact` can fetch from the kept workspace.
    pub outputs: Vec<Artifact>,
    /// Keep the workspace after the run.
    pub keep: bool,
    /// Name; generated when absent.
    pub name: Option<WorkspaceName>,
    /// Wall clock from the start of the machine until it is killed.
    pub timeout: Option<Duration>,
    /// Machine size to start from.
    pub profile: Profile,
    /// Memory in MiB in place of the profile's.
    pub memory_mib: Option<u32>,
    /// Virtual CPUs in place of the profile's.
    pub cpu_count: Option<u32>,
    /// Root disk size in MiB in place of the profile's.
    pub size_mib: Option<u64>,
    /// Host name; made from the workspace's name when absent.
    pub hostname: Option<String>,
    /// How the guest reaches the network.
    pub network: NetworkMode,
    /// When the registry is asked.
    pub pull: PullPolicy,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunCommand {
    /// The image's entrypoint and command.
    Image,
    /// The image's entrypoint, if it has one, with these words in place of its command.
    Argv(Vec<String>),
    /// A shell command line, evaluated by the guest's `/bin/sh`.
    Shell(String),
    /// Exactly this program with these arguments; the image's entrypoint is not used.
    Entrypoint(Vec<String>),
}

/// One step before the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetupStep {
    /// A shell command line, evaluated by the guest's `/bin/sh`.
    Shell(String),
    /// A script, run by its `#!` line or by `/bin/sh`.
    Script {
        /// How messages call it: the host's file name.
        name: String,
        /// Its text.
        content: Vec<u8>,
    },
}

impl RunOptions {
    /// A disposable run of the image's own command on a `small` machine with network `user`.
    pub fn new(image: impl Into<String>) -> RunOptions {
        RunOptions {
            image: image.into(),
            command: RunCommand::Image,
            setup: Vec::new(),
            env: Vec::new(),
            user: None,
            working_dir: None,
            outputs: Vec::new(),
            keep: false,
            name: None,
            timeout: None,
            profile: Profile::default(),
            memory_mib: None,
            cpu_count: None,
            size_mib: None,
            hostname: None,
            network: NetworkMode::default(),
            pull: PullPolicy::default(),
        }
    }

    /// Runs these words (after the image's entrypoint, if it has one).
    #[must_use]
    pub fn argv<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> RunOptions {
        self.command = RunCommand::Argv(words.into_iter().map(Into::into).collect());
        self
    }

    /// Runs a shell command line.
    #[must_use]
    pub fn shell(mut self, line: impl Into<String>) -> RunOptions {
        self.command = RunCommand::Shell(line.into());
        self
    }
}
