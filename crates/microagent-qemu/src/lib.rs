//! QEMU's command line as types ([`argv`]) and a client of its monitor ([`qmp`]).
//!
//! Structs are named and spelled as QEMU's switches. `microagent-vm` decides which devices a machine has and how to
//! react to events. This crate starts no processes.

pub mod argv;
pub mod features;
pub mod qmp;
