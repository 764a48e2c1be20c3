//! The image store against real registries, real archives, and a registry that does everything wrong.

// Helpers of tests count as tests.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod archives;
mod cache;
mod commit;
mod faults;
mod local;
mod logins;
mod outgoing;
mod registry;
mod support;
