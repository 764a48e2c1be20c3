//! When a workspace is started again: `never`, `on-failure`, `on-failure:3`, `always`, `unless-stopped`, as Docker has
//! them.

use std::fmt;
use std::str::FromStr;

use serde::de::{DeserializeSeed, EnumAccess, Error, VariantAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The words of a policy, for errors.
const WORDS: &[&str] = &["never", "on-failure", "on-failure:N", "always", "unless-stopped"];

/// When `supervise` starts a workspace again. Records and documents have it as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RestartPolicy {
    /// Never.
    #[default]
    Never,
    /// After it failed.
    OnFailure {
        /// Most restarts; `None` for no limit.
        most: Option<u32>,
    },
    /// Whenever it ended without a request of the user.
    Always,
    /// As `Always`, but `supervise` does not start a workspace whose last machine was ended by a request of the user.
    UnlessStopped,
}

/// Why a text is not a restart policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a restart policy; expected never, on-failure, on-failure:N, always or unless-stopped")]
pub struct RestartPolicyError(String);

impl FromStr for RestartPolicy {
    type Err = RestartPolicyError;

    fn from_str(text: &str) -> Result<RestartPolicy, RestartPolicyError> {
        let wrong = || RestartPolicyError(text.to_owned());
        match text.split_once(':') {
            Some(("on-failure", most)) => {
                let most: u32 = most.parse().map_err(|_| wrong())?;
                Ok(RestartPolicy::OnFailure { most: Some(most).filter(|most| *most > 0) })
            }
            Some(_) => Err(wrong()),
            None => match text {
                "never" | "no" => Ok(RestartPolicy::Never),
                "on-failure" => Ok(RestartPolicy::OnFailure { most: None }),
                "always" => Ok(RestartPolicy::Always),
                "unless-stopped" => Ok(RestartPolicy::UnlessStopped),
                _ => Err(wrong()),
            },
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestartPolicy::Never => f.pad("never"),
            RestartPolicy::OnFailure { most: None } => f.pad("on-failure"),
            RestartPolicy::OnFailure { most: Some(most) } => f.pad(&format!("on-failure:{most}")),
            RestartPolicy::Always => f.pad("always"),
            RestartPolicy::UnlessStopped => f.pad("unless-stopped"),
        }
    }
}

/// The policy between processes.
#[derive(Serialize, Deserialize)]
#[serde(rename = "RestartPolicy")]
enum OnTheWire {
    Never,
    OnFailure(Option<u32>),
    Always,
    UnlessStopped,
}

impl Serialize for RestartPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return serializer.collect_str(self);
        }
        let wire = match *self {
            RestartPolicy::Never => OnTheWire::Never,
            RestartPolicy::OnFailure { most } => OnTheWire::OnFailure(most),
            RestartPolicy::Always => OnTheWire::Always,
            RestartPolicy::UnlessStopped => OnTheWire::UnlessStopped,
        };
        wire.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RestartPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RestartPolicy, D::Error> {
        if deserializer.is_human_readable() {
            // As the words of an enum, so that a reader of files knows where a wrong one is.
            return deserializer.deserialize_enum("RestartPolicy", WORDS, Words);
        }
        Ok(match OnTheWire::deserialize(deserializer)? {
            OnTheWire::Never => RestartPolicy::Never,
            OnTheWire::OnFailure(most) => RestartPolicy::OnFailure { most },
            OnTheWire::Always => RestartPolicy::Always,
            OnTheWire::UnlessStopped => RestartPolicy::UnlessStopped,
        })
    }
}

/// Reads a policy from its word.
struct Words;

impl<'de> Visitor<'de> for Words {
    type Value = RestartPolicy;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a restart policy")
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<RestartPolicy, A::Error> {
        let (policy, rest) = access.variant_seed(Word)?;
        rest.unit_variant().map(|()| policy)
    }
}

/// Reads the word.
struct Word;

impl<'de> DeserializeSeed<'de> for Word {
    type Value = RestartPolicy;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<RestartPolicy, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Word {
    type Value = RestartPolicy;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a restart policy")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<RestartPolicy, E> {
        text.parse().map_err(|_| E::unknown_variant(text, WORDS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_its_text() {
        for text in ["never", "on-failure", "on-failure:3", "always", "unless-stopped"] {
            let policy: RestartPolicy = text.parse().unwrap();
            assert_eq!(policy.to_string(), text);
            assert_eq!(serde_json::to_value(policy).unwrap(), text);
            assert_eq!(serde_json::from_value::<RestartPolicy>(text.into()).unwrap(), policy);
        }
        assert_eq!("no".parse(), Ok(RestartPolicy::Never));
        assert_eq!("on-failure:0".parse(), Ok(RestartPolicy::OnFailure { most: None }));
        for wrong in ["", "sometimes", "always:3", "on-failure:", "on-failure:-1", "on-failure:x"] {
            assert!(wrong.parse::<RestartPolicy>().is_err(), "{wrong}");
        }
    }
}
