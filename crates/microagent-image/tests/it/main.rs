//! The image store against real registries, real archives, and a registry that does everything wrong.

mod archives;
mod cache;
mod faults;
mod registry;
mod support;
