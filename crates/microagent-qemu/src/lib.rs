//! QEMU as a typed thing: its command line ([`argv`]) and its monitor ([`qmp`]).
//!
//! Structs are named and spelled as QEMU spells its switches. This crate decides nothing: which devices
//! a machine has and what to do about an event is the business of `microagent-vm`. It starts no process.

pub mod argv;
pub mod features;
pub mod qmp;
