//! The JSON documents that commands print with `--json`, all of them, and nothing else.
//!
//! Field names are stable; fields are only added. A document is plain data: what fills it in is beside it, what prints it
//! is the command.

pub(crate) mod artifact;
pub(crate) mod completions;
pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod doctor;
pub(crate) mod egress;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod image;
pub(crate) mod kernel;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod network;
pub(crate) mod output;
pub(crate) mod profiles;
pub(crate) mod result;
pub(crate) mod run;
pub(crate) mod secret;
pub(crate) mod state;
pub(crate) mod status;
pub(crate) mod supervise;
pub(crate) mod system;
pub(crate) mod template;
pub(crate) mod version;
pub(crate) mod volume;
pub(crate) mod wait;
