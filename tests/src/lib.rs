//! The harness of the end-to-end tests: a home of its own for each test, commands with a deadline, and the
//! means to prove that nothing is left.
//!
//! The tests run the `microagent` binary that lies beside them in the target directory and the images that
//! `cargo xtask fixtures` made, on real guests. Nothing here replaces a part of the product. A test that
//! cannot run on this host prints why ([`host::skip`]); nothing is skipped silently.
//!
//! Waits are conditions with a deadline ([`wait::wait_for`]), and a failure carries the logs of all
//! workspaces of its home.

pub mod clients;
pub mod command;
pub mod far_end;
pub mod fixtures;
pub mod home;
pub mod host;
pub mod hostile;
pub mod kernel;
pub mod listing;
pub mod mcp;
pub mod openbao;
pub mod process;
pub mod pty;
pub mod registry;
pub mod schema;
pub mod site;
pub mod snapshot_file;
pub mod upstream;
pub mod user;
pub mod wait;

pub use command::{Finished, Invocation, Running};
pub use home::Home;
pub use user::User;
pub use wait::wait_for;
