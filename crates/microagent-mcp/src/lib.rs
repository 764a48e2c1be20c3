//! A server of the Model Context Protocol: operations of the library as tools that a model calls.
//!
//! **What a model may do is the person's decision, not the model's**: [`Policy`] fixes images, network, sizes and the
//! number of workspaces, and a call outside of it is refused with the name of the rule. No tool takes a path of the host
//! or reads the host's environment; contents travel in the calls. A server handles only workspaces that carry its label,
//! and deletes those that it created when it ends, unless its policy keeps them.
//!
//! The protocol itself is `rmcp`'s. This crate never writes to standard output but through it, in [`serve_stdio`].

mod call;
mod error;
mod hints;
mod http;
mod output;
mod policy;
mod schema;
mod server;
mod stdio;
mod tool;
mod tools;
mod workspaces;

pub use error::ServeError;
pub use http::{AccessToken, HTTP_PATH, HttpServer, TokenError};
pub use policy::{ImagePattern, Leftovers, PatternError, Policy, SERVER_LABEL};
pub use stdio::serve_stdio;
pub use tools::names as tool_names;
