//! What a server lets a model do. Pure: it decides, and does nothing.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use microagent::WorkspaceOptions;
use microagent::image::{ImageReference, PullPolicy, RegistryReference};

use crate::error::ToolError;

/// Label of every workspace of a server; its value is the server's name.
pub const SERVER_LABEL: &str = "microagent.mcp";

/// Longest pattern, in bytes: longer than any name in a registry.
const PATTERN_MAX: usize = 512;

/// Most patterns that a refusal names.
const SHOWN_PATTERNS: usize = 20;

/// What a server lets a model do. Start from [`Policy::new`] and set what differs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Policy {
    /// Name of the server. It handles the workspaces that have it as the value of [`SERVER_LABEL`].
    pub server: String,
    /// Images that a model may name; they are pulled when they are missing. Without any, those of the cache may be
    /// named, and nothing is pulled.
    pub images: Vec<ImagePattern>,
    /// What every workspace gets. A model chooses image, environment and setup steps in addition, and nothing else.
    pub workspace: WorkspaceOptions,
    /// Most workspaces and runs at a time.
    pub max_workspaces: usize,
    /// Longest time limit of a command.
    pub max_timeout: Duration,
    /// What becomes of workspaces when the server ends.
    pub leftovers: Leftovers,
}

/// What becomes of the workspaces of a server when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Leftovers {
    /// They are deleted.
    #[default]
    Delete,
    /// They stay as they are.
    Keep,
}

impl Policy {
    /// Images of the cache; four workspaces made like this; commands of up to an hour.
    pub fn new(server: impl Into<String>, workspace: WorkspaceOptions) -> Policy {
        Policy {
            server: server.into(),
            images: Vec::new(),
            workspace,
            max_workspaces: 4,
            max_timeout: Duration::from_secs(60 * 60),
            leftovers: Leftovers::default(),
        }
    }

    /// When the source of an image is asked that a model names.
    pub(crate) fn check_image(&self, image: &str) -> Result<PullPolicy, ToolError> {
        let reference = image.parse::<ImageReference>().map_err(|error| {
            let message = format!("`{}` is not an image reference: {error}", image.escape_debug());
            ToolError::invalid(message).hint(error.hint())
        })?;
        match (&self.images[..], &reference) {
            // What is in the cache was brought there by the person.
            ([], ImageReference::Registry(_)) => Ok(PullPolicy::Never),
            (patterns, reference) if patterns.iter().any(|pattern| pattern.allows(image, reference)) => {
                Ok(self.workspace.pull)
            }
            _ => Err(ToolError::refused(format!(
                "image `{image}` is not one that this server allows (rule `allow-image`)"
            ))
            .hint(self.image_hint())),
        }
    }

    /// The time limit of a command, in place of which a model may name a shorter or longer one.
    pub(crate) fn check_timeout(&self, seconds: Option<u64>) -> Result<Duration, ToolError> {
        let most = self.max_timeout;
        match seconds.map(Duration::from_secs) {
            None => Ok(DEFAULT_TIMEOUT.min(most)),
            Some(Duration::ZERO) => Err(ToolError::invalid("timeout_s is 0").hint("give at least 1")),
            Some(time) if time <= most => Ok(time),
            Some(_) => Err(ToolError::refused(format!(
                "timeout_s is longer than the {} s that this server allows (rule `max-timeout`)",
                most.as_secs()
            ))
            .hint("give a shorter timeout_s, or split the work")),
        }
    }

    /// Which images there are, in words for a model.
    pub(crate) fn image_hint(&self) -> String {
        if self.images.is_empty() {
            return "the tool `list` shows the images that can be used".to_owned();
        }
        let shown: Vec<_> = self.images.iter().take(SHOWN_PATTERNS).map(ToString::to_string).collect();
        format!("allowed: {}", shown.join(", "))
    }
}

/// Time limit of a command for which a model names none: below the 60 s after which clients give a call up.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(50);

/// Which images a model may name.
///
/// A name is matched as it is completed (`docker.io/library/python`) and as people write it (`python`). `*` stands for
/// any characters but `/`, and `**` for any at all. A pattern without tag and digest allows every tag and digest. An image
/// in the host's file system, such as `oci-archive:/srv/app.tar`, is allowed by its very text only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePattern {
    text: String,
}

/// Why a text is not a pattern of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pattern of images has 1 to {PATTERN_MAX} characters and no blanks")]
pub struct PatternError;

impl FromStr for ImagePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<ImagePattern, PatternError> {
        let is_bad = |c: char| c.is_whitespace() || c.is_control();
        if text.is_empty() || text.len() > PATTERN_MAX || text.contains(is_bad) {
            return Err(PatternError);
        }
        Ok(ImagePattern { text: text.to_owned() })
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl ImagePattern {
    /// Whether it allows an image, given what its text means.
    fn allows(&self, text: &str, reference: &ImageReference) -> bool {
        match reference {
            ImageReference::Registry(image) => self.allows_registry(image),
            // A path of the host, or what another program of the host has.
            ImageReference::Local(_) | ImageReference::Daemon(_) => self.text == text,
        }
    }

    fn allows_registry(&self, image: &RegistryReference) -> bool {
        let (name, selector) = self.split();
        let full = image.name();
        let short = full.strip_prefix("docker.io/").unwrap_or(&full);
        let short = short.strip_prefix("library/").unwrap_or(short);
        let selected = match (selector, &image.digest) {
            (Selector::Any, _) => true,
            (Selector::Tag(tag), None) => matches(tag, image.tag.as_deref().unwrap_or("latest")),
            (Selector::Digest(digest), Some(found)) => matches(digest, found.as_str()),
            (Selector::Tag(_), Some(_)) | (Selector::Digest(_), None) => false,
        };
        selected && (matches(name, &full) || matches(name, short))
    }

    fn split(&self) -> (&str, Selector<'_>) {
        if let Some((name, digest)) = self.text.split_once('@') {
            return (name, Selector::Digest(digest));
        }
        match self.text.rsplit_once(':') {
            // A colon before a slash is that of a port.
            Some((name, tag)) if !tag.contains('/') => (name, Selector::Tag(tag)),
            _ => (&self.text, Selector::Any),
        }
    }
}

enum Selector<'a> {
    Any,
    Tag(&'a str),
    Digest(&'a str),
}

/// Whether a pattern with `*` and `**` stands for a text.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    // `row[t]`: whether the pattern so far stands for the first `t` bytes.
    let mut row = vec![false; text.len() + 1];
    row[0] = true;
    let mut at = 0;
    while at < pattern.len() {
        let mut next = vec![false; text.len() + 1];
        if pattern[at] == b'*' {
            let crosses = pattern.get(at + 1) == Some(&b'*');
            next[0] = row[0];
            for t in 1..=text.len() {
                next[t] = row[t] || (next[t - 1] && (crosses || text[t - 1] != b'/'));
            }
            at += if crosses { 2 } else { 1 };
        } else {
            for t in 1..=text.len() {
                next[t] = row[t - 1] && text[t - 1] == pattern[at];
            }
            at += 1;
        }
        row = next;
    }
    row[text.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(images: &[&str]) -> Policy {
        let images = images.iter().map(|text| text.parse().unwrap()).collect();
        Policy { images, ..Policy::new("mcp", WorkspaceOptions::new("")) }
    }

    fn allows(pattern: &str, image: &str) -> bool {
        policy(&[pattern]).check_image(image).is_ok()
    }

    #[test]
    fn a_pattern_allows_what_it_names_and_nothing_else() {
        let digest = format!("python@sha256:{}", "0".repeat(64));
        for (pattern, image) in [
            ("python", "python"),
            ("python", "python:3.12"),
            ("python", "docker.io/library/python:3.12"),
            ("python", &digest),
            ("python@*", &digest),
            ("python:3.*", "python:3.12-slim"),
            ("docker.io/library/*", "debian:12"),
            ("team/*", "team/app"),
            ("registry.example.org:5000/team/*", "registry.example.org:5000/team/app:1"),
            ("registry.example.org/**", "registry.example.org/a/b/c"),
            ("**", "registry.example.org/a/b/c:2"),
            ("*", "debian"),
            ("oci-archive:/srv/app.tar", "oci-archive:/srv/app.tar"),
        ] {
            assert!(allows(pattern, image), "{pattern} {image}");
        }
        for (pattern, image) in [
            ("python", "pythonx"),
            ("python", "registry.example.org/library/python"),
            ("python", "evil/python"),
            ("python*", "python.example.org/x"),
            ("*", "registry.example.org/x"),
            ("python:3.*", "python:2.7"),
            ("python:3.12", &digest),
            ("team/*", "team/app/deep"),
            ("**", "oci:/etc"),
            ("oci:/srv/*", "oci:/srv/.."),
            ("**", "docker-daemon:app"),
            ("docker-archive:/srv/app.tar", "docker-archive:/srv/app.tar:other"),
        ] {
            assert!(!allows(pattern, image), "{pattern} {image}");
        }
    }

    #[test]
    fn without_patterns_the_cache_is_allowed_and_nothing_is_pulled() {
        assert!(matches!(policy(&[]).check_image("python"), Ok(PullPolicy::Never)));
        assert!(matches!(policy(&["python"]).check_image("python"), Ok(PullPolicy::Missing)));
        for image in ["oci:/etc", "docker-archive:/root/x.tar", "docker-daemon:app", "", "A B"] {
            assert!(policy(&[]).check_image(image).is_err(), "{image}");
        }
    }

    #[test]
    fn a_refusal_names_the_rule_and_what_is_allowed() {
        let error = policy(&["python", "debian:12"]).check_image("alpine").unwrap_err();
        let told = serde_json::to_value(&error).unwrap();
        assert_eq!((&told["kind"], &told["retryable"]), (&"refused".into(), &false.into()));
        assert!(told["message"].as_str().unwrap().contains("`allow-image`"), "{told}");
        assert_eq!(told["hint"], "allowed: python, debian:12");
    }

    #[test]
    fn patterns_have_a_form() {
        for bad in ["", "a b", "a\n", &"x".repeat(PATTERN_MAX + 1)] {
            assert_eq!(bad.parse::<ImagePattern>(), Err(PatternError), "{bad:?}");
        }
    }

    #[test]
    fn a_time_limit_has_bounds() {
        let policy = Policy { max_timeout: Duration::from_secs(60), ..policy(&[]) };
        assert_eq!(policy.check_timeout(None).unwrap(), DEFAULT_TIMEOUT);
        assert_eq!(policy.check_timeout(Some(60)).unwrap().as_secs(), 60);
        assert!(policy.check_timeout(Some(0)).is_err() && policy.check_timeout(Some(61)).is_err());
        let short = Policy { max_timeout: Duration::from_secs(5), ..policy };
        assert_eq!(short.check_timeout(None).unwrap().as_secs(), 5);
    }
}
