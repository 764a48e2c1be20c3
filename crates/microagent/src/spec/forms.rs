//! Values that a spec file can write in more than one way, and values that have a text of their own.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use microagent_model::{
    Artifact, Labels, SecretReference, SecretReferenceError, SettingError, Tmpfs, Ulimit, check_label,
    check_sysctl,
};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Service;
use super::value;
use crate::{PROFILES, Profile};

/// A value in its short form, a text of one line, or in its long one, a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form<S, L> {
    /// As a flag has it.
    Short(S),
    /// Taken apart.
    Long(L),
}

/// Types with a short form.
pub(super) trait Short: Sized {
    /// How it is written, for errors.
    const SHAPE: &str;

    /// Reads it.
    fn short(text: &str) -> Result<Self, String>;
}

impl<'de, S: Short, L: Deserialize<'de>> Deserialize<'de> for Form<S, L> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Forms<S, L>(PhantomData<(S, L)>);

        impl<'de, S: Short, L: Deserialize<'de>> Visitor<'de> for Forms<S, L> {
            type Value = Form<S, L>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "the text {} or a mapping", S::SHAPE)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                S::short(text).map(Form::Short).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                L::deserialize(MapAccessDeserializer::new(map)).map(Form::Long)
            }
        }
        deserializer.deserialize_any(Forms(PhantomData))
    }
}

/// A text, or a list of words.
pub(super) enum Words {
    /// A text.
    Text(String),
    /// Words.
    List(Vec<String>),
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrList;

        impl<'de> Visitor<'de> for TextOrList {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of words")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Words, E> {
                Ok(Words::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Words, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = list.next_element()? {
                    words.push(word);
                }
                Ok(Words::List(words))
            }
        }
        deserializer.deserialize_any(TextOrList)
    }
}

/// A block in which nothing stands is one that is not there.
pub(super) fn or_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

pub(super) fn entrypoint<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    Ok(Option::<Words>::deserialize(deserializer)?.map(|words| match words {
        Words::Text(program) => vec![program],
        Words::List(words) => words,
    }))
}

pub(super) fn service<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Service>, D::Error> {
    Ok(Option::<Words>::deserialize(deserializer)?.map(Service::from))
}

pub(super) fn profile<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Profile>, D::Error> {
    let Some(name) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let unknown = || {
        let names = PROFILES.map(|profile| profile.name).join(", ");
        D::Error::custom(format!("there is no profile `{name}`; there are: {names}"))
    };
    Profile::named(&name).map(Some).ok_or_else(unknown)
}

/// Seconds or a text: both are texts to YAML.
pub(super) fn timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    value::duration(&text).map(Some).map_err(D::Error::custom)
}

/// Names are checked here, where their place is known. None is repeated: somebody may have written `NAME=VALUE`.
pub(super) fn env<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    let Some(env) = Option::<BTreeMap<String, String>>::deserialize(deserializer)? else { return Ok(None) };
    let bad =
        |name: &String| name.is_empty() || name.contains(|c: char| c.is_whitespace() || "=\0".contains(c));
    if env.keys().any(bad) {
        return Err(D::Error::custom("a name in `env` is empty, or has a blank or `=` in it"));
    }
    Ok(Some(env))
}

/// Values are texts or numbers: both are texts to YAML.
pub(super) fn sysctls<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    let Some(sysctls) = Option::<BTreeMap<String, String>>::deserialize(deserializer)? else {
        return Ok(None);
    };
    for (name, value) in &sysctls {
        check_sysctl(name, value).map_err(|error| D::Error::custom(format!("sysctl `{name}`: {error}")))?;
    }
    Ok(Some(sysctls))
}

pub(super) fn tmpfs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Tmpfs>>, D::Error> {
    let Some(all) = Option::<Vec<String>>::deserialize(deserializer)? else { return Ok(None) };
    let read = |text: String| {
        text.parse().map_err(|error: SettingError| D::Error::custom(format!("tmpfs `{text}`: {error}")))
    };
    all.into_iter().map(read).collect::<Result<_, _>>().map(Some)
}

pub(super) fn ulimits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Ulimit>>, D::Error> {
    let Some(all) = Option::<BTreeMap<String, String>>::deserialize(deserializer)? else { return Ok(None) };
    let read = |(name, limits): (String, String)| {
        Ulimit::new(&name, &limits).map_err(|error| D::Error::custom(format!("ulimit `{name}`: {error}")))
    };
    all.into_iter().map(read).collect::<Result<_, _>>().map(Some)
}

pub(super) fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Labels>, D::Error> {
    let Some(labels) = Option::<Labels>::deserialize(deserializer)? else { return Ok(None) };
    for (name, value) in &labels {
        check_label(name, value).map_err(|error| D::Error::custom(format!("label `{name}`: {error}")))?;
    }
    Ok(Some(labels))
}

pub(super) fn secrets<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<SecretReference>>, D::Error> {
    let Some(secrets) = Option::<BTreeMap<String, String>>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let read = |(name, source): (String, String)| {
        format!("{name}={source}").parse().map_err(|error| {
            // Those speak of the flag, of which the file has the two halves.
            D::Error::custom(match error {
                SecretReferenceError::Shape | SecretReferenceError::Scheme => format!(
                    "secret `{name}`: where it is is written SCHEME:REFERENCE, and SCHEME is env, file, dotenv, vault or \
                     helper"
                ),
                error => error.to_string(),
            })
        })
    };
    secrets.into_iter().map(read).collect::<Result<_, _>>().map(Some)
}

/// A file or directory of the guest that `artifact get` can fetch.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Output {
    /// What `artifact get` calls it.
    name: String,
    /// Absolute path in the guest.
    path: String,
}

pub(super) fn outputs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Artifact>>, D::Error> {
    let Some(outputs) = Option::<Vec<Output>>::deserialize(deserializer)? else { return Ok(None) };
    let read = |output: Output| {
        value::artifact(&output.name, &output.path)
            .map_err(|why| D::Error::custom(format!("output `{}`: {why}", output.name)))
    };
    outputs.into_iter().map(read).collect::<Result<_, _>>().map(Some)
}
