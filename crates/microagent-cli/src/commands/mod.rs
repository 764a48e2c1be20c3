//! One file per command: its arguments, the call into the library, what it prints.

pub(crate) mod artifact;
pub(crate) mod change;
pub(crate) mod commit;
pub(crate) mod completions;
pub(crate) mod connect;
pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod doctor;
pub(crate) mod exec;
pub(crate) mod image;
pub(crate) mod kernel;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod perf;
pub(crate) mod profiles;
pub(crate) mod run;
pub(crate) mod start;
pub(crate) mod template;
pub(crate) mod version;
