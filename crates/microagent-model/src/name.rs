//! Names of workspaces, volumes and private networks. They are also file names and host names, so they are checked when
//! they are made.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name, in bytes: the longest host name label.
const NAME_MAX: usize = 63;

/// Longest beginning of a made-up name.
const MADE_UP_BASE: usize = 40;

// A hyphen and the digits of a `u32` follow.
const _: () = assert!(MADE_UP_BASE + 1 + 10 <= NAME_MAX);

/// A name that starts with one of some characters, and continues with those and others.
macro_rules! plain_name {
    ($what:literal, $name:ident, $error:ident, $first:ident: $first_words:literal, $others:literal) => {
        #[doc = concat!("A checked ", $what, " name: starts with a ", $first_words, ", then those and ", $others, ", at most 63 bytes.")]
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        #[doc = concat!("Why a name is not a ", $what, " name.")]
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        #[error(
            "`{name}` is not a {} name: it must start with a {}, continue with those, {}, and have at most {NAME_MAX} \
             characters", $what, $first_words, $others
        )]
        pub struct $error {
            name: String,
        }

        impl $name {
            /// Checks a name. [`FromStr`] and [`TryFrom`] do the same.
            ///
            /// # Errors
            #[doc = concat!("Fails if the text is not a ", $what, " name.")]
            pub fn new(name: &str) -> Result<$name, $error> {
                name.parse()
            }
        }

        impl FromStr for $name {
            type Err = $error;

            fn from_str(name: &str) -> Result<Self, $error> {
                let others: &str = $others;
                let is_other = |c: char| c.is_ascii_punctuation() && c != '`' && others.contains(c);
                let continues = name.chars().all(|c| $first(c) || is_other(c));
                if name.starts_with($first) && continues && name.len() <= NAME_MAX {
                    Ok($name(name.to_owned()))
                } else {
                    Err($error { name: name.chars().take(80).collect() })
                }
            }
        }

        crate::text::as_file_name!($name);
    };
}

// Without `.`, so that what has an ending is a file.
plain_name!("volume", VolumeName, VolumeNameError, is_letter_or_digit: "letter or digit", "`_` or `-`");
plain_name!("network", NetworkName, NetworkNameError, is_of_host_name: "lower-case letter or digit", "`-`");

fn is_letter_or_digit(c: char) -> bool {
    c.is_ascii_alphanumeric()
}

fn is_of_host_name(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// A checked workspace name: starts with a letter or digit, then letters, digits, `.`, `_` and `-`, at
/// most 63 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkspaceName(String);

/// Why a name is not a workspace name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` is not a workspace name: it must start with a letter or digit, continue with letters, digits, `.`, `_` or `-`, \
     and have at most {NAME_MAX} characters"
)]
pub struct NameError {
    name: String,
}

impl WorkspaceName {
    /// Checks a name. `"web".parse()` and [`TryFrom`] do the same.
    ///
    /// # Errors
    /// Fails if the text is not a workspace name.
    pub fn new(name: &str) -> Result<WorkspaceName, NameError> {
        name.parse()
    }

    /// The name as a host name label: lower case, `.` and `_` become `-`, no `-` at the end.
    pub fn to_hostname(&self) -> String {
        let label = self.0.to_ascii_lowercase().replace(['.', '_'], "-");
        label.trim_end_matches('-').to_owned()
    }
}

impl FromStr for WorkspaceName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        let goes_on_well = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if starts_well && goes_on_well && name.len() <= NAME_MAX {
            Ok(WorkspaceName(name.to_owned()))
        } else {
            Err(NameError { name: name.chars().take(80).collect() })
        }
    }
}

impl WorkspaceName {
    /// A name for a workspace that is made from this image and was given none: the image's own name and a number.
    pub fn made_up(image: &str, number: u32) -> WorkspaceName {
        let last = image.rsplit('/').next().unwrap_or_default();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let base: String = last
            .trim_start_matches(['_', '-'])
            .chars()
            .take_while(|c| is_plain(*c))
            .take(MADE_UP_BASE)
            .collect();
        let base = if base.is_empty() { "workspace" } else { &base };
        WorkspaceName(format!("{base}-{number:06}"))
    }
}

crate::text::as_file_name!(WorkspaceName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_and_refuses() {
        for good in ["a", "web", "run-1781167799699801876", "A.b_c-9", &"x".repeat(63)] {
            assert!(good.parse::<WorkspaceName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", "_a", "a/b", "a b", "a*", "é", "a\0", &"x".repeat(64)] {
            assert!(bad.parse::<WorkspaceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_is_made_up_from_the_image() {
        for (image, name) in [
            ("alpine:3.20", "alpine-000007"),
            ("docker.io/library/debian@sha256:00", "debian-000007"),
            ("oci-archive:/tmp/my_app.tar", "my_app-000007"),
            ("/", "workspace-000007"),
            (&"x".repeat(90), &format!("{}-000007", "x".repeat(MADE_UP_BASE))),
        ] {
            let made_up = WorkspaceName::made_up(image, 7);
            assert_eq!(made_up.as_str(), name);
            assert_eq!(made_up.as_str().parse(), Ok(made_up.clone()));
        }
    }

    #[test]
    fn volumes_and_networks_have_plainer_names() {
        for good in ["a", "data", "0-a", "Data", "my_data", &"x".repeat(63)] {
            assert!(good.parse::<VolumeName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "_a", "a.b", "a`b", "a b", "a/b", "..", "é", &"x".repeat(64)] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad}");
            assert!(bad.parse::<NetworkName>().is_err(), "{bad}");
        }
        for bad in ["Data", "my_data"] {
            assert!(bad.parse::<NetworkName>().is_err(), "{bad}");
        }
        let error = "a.b".parse::<VolumeName>().unwrap_err().to_string();
        let words =
            "start with a letter or digit, continue with those, `_` or `-`, and have at most 63 characters";
        assert!(error.ends_with(words), "{error}");
    }

    #[test]
    fn becomes_a_host_name() {
        let name: WorkspaceName = "My.App_1-".parse().unwrap();
        assert_eq!(name.to_hostname(), "my-app-1");
    }
}
