//! Warm starts: machines that continue from a frozen guest instead of booting.
//!
//! That they happen and say so, that a restored machine is a new one, that a template holds nothing of anybody,
//! and that whatever becomes of a template's files, a run never fails for it.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod faults;
mod hosts;
mod newness;
mod starts;
mod support;
