//! What runs in a guest: commands, setup steps, and the files that they leave.

use serde::{Deserialize, Serialize};

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandLine {
    /// A program and its arguments.
    Argv(Vec<String>),
    /// A line for `/bin/sh -c`.
    Shell(String),
}

/// Which process of a guest is process 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestInit {
    /// The program that the machine runs: an init of the image works.
    #[default]
    Program,
    /// An init of the agent that reaps orphans; the program is its child.
    Agent,
}

impl std::fmt::Display for GuestInit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            GuestInit::Program => "false",
            GuestInit::Agent => "true",
        })
    }
}

/// A setup step, which is run before the command or service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

impl SetupStep {
    /// Returns the text by which messages name the step.
    pub fn label(&self) -> String {
        match self {
            SetupStep::Shell(line) => line.clone(),
            SetupStep::Script { name, .. } => name.clone(),
        }
    }
}

/// An artifact: a path of the guest that can be fetched by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Its name.
    pub name: String,
    /// Absolute path in the guest.
    pub path: String,
}
