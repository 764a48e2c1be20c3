//! The JSON documents that commands print with `--json`, all of them, and nothing else.
//!
//! Field names are stable; fields are only added. A document is plain data: what fills it in is beside it, what prints it
//! is the command.

/// A document that has some fields of a type of the library, each converted with `From`.
macro_rules! document {
    ($(#[$about:meta])* $name:ident of $source:ty { $($(#[$field_about:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, serde::Serialize)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        pub(crate) struct $name {
            $($(#[$field_about])* pub(crate) $field: $kind,)*
        }

        impl From<$source> for $name {
            fn from(source: $source) -> $name {
                $name { $($field: From::from(source.$field),)* }
            }
        }
    };
}

pub(crate) mod apply;
pub(crate) mod artifact;
pub(crate) mod commit;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod egress;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod export;
pub(crate) mod fork;
pub(crate) mod health;
pub(crate) mod image;
pub(crate) mod job;
pub(crate) mod kernel;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod network;
pub(crate) mod output;
pub(crate) mod perf;
pub(crate) mod private_network;
pub(crate) mod profiles;
pub(crate) mod result;
pub(crate) mod run;
#[cfg(test)]
mod schema;
pub(crate) mod secret;
pub(crate) mod shared;
pub(crate) mod snapshot;
pub(crate) mod state;
pub(crate) mod stats;
pub(crate) mod status;
pub(crate) mod stream;
pub(crate) mod supervise;
pub(crate) mod sync;
pub(crate) mod system;
pub(crate) mod template;
pub(crate) mod top;
pub(crate) mod version;
pub(crate) mod volume;
pub(crate) mod wait;
