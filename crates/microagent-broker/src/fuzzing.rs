//! Doors for fuzzers.

use microagent_model::AllowedRequest;

/// Whether a path is passed on if these patterns are allowed.
pub fn passes(patterns: &[AllowedRequest], path: &str) -> bool {
    crate::path::check_target(path).is_ok() && crate::path::allows(patterns, "GET", path)
}
