//! Real programs in guests, minutes of them: `cargo xtask programs` runs these tests, `make test` does not. Each says what
//! time and memory it took.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod browser;
mod clients;
mod databases;
mod engines;
mod init;
mod languages;
mod networks;
mod support;
mod tracing;
