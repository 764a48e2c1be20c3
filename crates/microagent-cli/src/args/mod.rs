//! Arguments that several commands share: how they are spelled, read and refused.
//!
//! Nothing here runs a command; commands import from here and never from each other.

pub(crate) mod boot;
pub(crate) mod broker;
pub(crate) mod docker;
pub(crate) mod docker_flags;
pub(crate) mod docker_verbs;
pub(crate) mod global;
pub(crate) mod health;
pub(crate) mod image_change;
pub(crate) mod listing;
pub(crate) mod machine;
pub(crate) mod names;
pub(crate) mod secret;
pub(crate) mod settings;
pub(crate) mod stop_timeout;
pub(crate) mod values;
pub(crate) mod workspace;
