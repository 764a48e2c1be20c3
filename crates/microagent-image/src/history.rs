//! The history of an image of the cache: what each step of its build did, and which layer came of it.
//!
//! Builders write it for people. It says nothing that is checked, and may have fewer steps than there are layers.
//!
//! # Source
//! OCI image specification 1.1, `config.md`, `history`.

use jiff::Timestamp;
use microagent_store::read_limited;
use serde::Deserialize;

use crate::config::{self, CONFIG_LIMIT, ConfigError};
use crate::error::ImageError;
use crate::manifest::null_is_empty;
use crate::record::LayerRecord;
use crate::store::ImageStore;

/// The history of one image.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ImageHistory {
    /// The full reference of the image.
    pub resolved_reference: String,
    /// Digest of its manifest.
    pub digest: String,
    /// The steps, the last one first.
    pub steps: Vec<HistoryStep>,
}

/// One step of the build of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistoryStep {
    /// When the step was run.
    pub created_at: Option<Timestamp>,
    /// The command, in the words of the builder; empty if there are none.
    pub created_by: String,
    /// The author.
    pub author: Option<String>,
    /// The message.
    pub comment: Option<String>,
    /// The layer that it made; `None` if it changed the configuration only.
    pub layer: Option<HistoryLayer>,
}

/// The layer of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistoryLayer {
    /// Its digest as it is stored.
    pub digest: String,
    /// Its size as it is stored, usually compressed.
    pub bytes: u64,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default, deserialize_with = "null_is_empty")]
    history: Vec<Step>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Step {
    created: Option<String>,
    created_by: Option<String>,
    author: Option<String>,
    comment: Option<String>,
    empty_layer: Option<bool>,
}

impl ImageStore {
    /// Reads the history of an image of the cache, by reference or digest.
    ///
    /// # Errors
    /// Fails if there is no such image, or its configuration is missing or damaged.
    pub fn history(&self, reference: &str) -> Result<ImageHistory, ImageError> {
        let record = self.named(reference)?;
        let missing = || ImageError::MissingBlob {
            reference: record.resolved_reference.clone(),
            digest: record.config_digest.clone(),
        };
        let bytes = match read_limited(&self.cache.blob(&record.config_digest), CONFIG_LIMIT) {
            Err(error) if error.is_not_found() => return Err(missing()),
            read => read.map_err(|source| ImageError::Read { source })?,
        };
        let wrong = |source| ImageError::Config { reference: record.resolved_reference.clone(), source };
        config::decode(&bytes).map_err(wrong)?;
        Ok(ImageHistory {
            resolved_reference: record.resolved_reference.clone(),
            digest: record.manifest_digest.to_string(),
            steps: steps(&bytes, &record.layers).map_err(wrong)?,
        })
    }
}

/// The steps of a configuration with the layers of its manifest, the last one first.
fn steps(config: &[u8], layers: &[LayerRecord]) -> Result<Vec<HistoryStep>, ConfigError> {
    let document: Document =
        serde_json::from_slice(config).map_err(|source| ConfigError::Decode { source })?;
    let mut layers =
        layers.iter().map(|layer| HistoryLayer { digest: layer.digest.to_string(), bytes: layer.size });
    let text = |text: Option<String>| text.filter(|text| !text.is_empty());
    let mut steps: Vec<HistoryStep> = document
        .history
        .into_iter()
        .map(|step| HistoryStep {
            created_at: step.created.and_then(|at| at.parse().ok()),
            created_by: step.created_by.unwrap_or_default(),
            author: text(step.author),
            comment: text(step.comment),
            layer: if step.empty_layer == Some(true) { None } else { layers.next() },
        })
        .collect();
    // Layers that nobody has described.
    steps.extend(layers.map(|layer| HistoryStep {
        created_at: None,
        created_by: String::new(),
        author: None,
        comment: None,
        layer: Some(layer),
    }));
    steps.reverse();
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::digest::Digest;

    fn layer(content: &[u8]) -> LayerRecord {
        LayerRecord { digest: Digest::of(content), size: content.len() as u64 }
    }

    fn told(config: &serde_json::Value, layers: &[LayerRecord]) -> Vec<(String, Option<u64>)> {
        let steps = steps(&serde_json::to_vec(config).unwrap(), layers).unwrap();
        steps.into_iter().map(|step| (step.created_by, step.layer.map(|layer| layer.bytes))).collect()
    }

    #[test]
    fn steps_have_the_layers_that_came_of_them() {
        let config = json!({"history": [
            {"created": "2024-05-01T10:00:00Z", "created_by": "ADD rootfs", "comment": ""},
            {"created_by": "CMD [\"sh\"]", "empty_layer": true},
            {"created": "yesterday", "created_by": "RUN x", "author": "me"},
        ]});
        let layers = [layer(b"one"), layer(b"twotwo"), layer(b"x")];
        let wanted = [
            (String::new(), Some(1)),
            ("RUN x".to_owned(), Some(6)),
            ("CMD [\"sh\"]".to_owned(), None),
            ("ADD rootfs".to_owned(), Some(3)),
        ];
        assert_eq!(told(&config, &layers), wanted);
        let steps = steps(&serde_json::to_vec(&config).unwrap(), &layers).unwrap();
        assert_eq!(steps[3].created_at.unwrap().to_string(), "2024-05-01T10:00:00Z");
        assert_eq!((steps[1].created_at, steps[1].author.as_deref()), (None, Some("me")));
        assert_eq!(steps[3].comment, None);
    }

    #[test]
    fn an_image_without_history_has_its_layers() {
        for config in [json!({}), json!({"history": null}), json!({"history": []})] {
            assert_eq!(told(&config, &[layer(b"one")]), [(String::new(), Some(3))]);
        }
        // More steps than layers.
        let config = json!({"history": [{"created_by": "a"}, {}]});
        assert_eq!(told(&config, &[layer(b"one")]), [(String::new(), None), ("a".to_owned(), Some(3))]);
        assert!(steps(br#"{"history": 1}"#, &[]).is_err());
    }
}
