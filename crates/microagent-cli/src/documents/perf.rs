//! `microagent perf`, in JSON.

use std::collections::BTreeMap;

use microagent::NetworkMode;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

#[cfg(test)]
use crate::documents::schema::Words;

/// `microagent perf boot` and `perf ready`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct PerfDocument {
    pub(crate) image: String,
    pub(crate) exec: String,
    pub(crate) profile: &'static str,
    pub(crate) memory_mib: u32,
    pub(crate) cpu_count: u32,
    #[cfg_attr(test, schemars(with = "Words<microagent::NetworkMode>"))]
    pub(crate) network: NetworkMode,
    /// Unknown when no run completed.
    pub(crate) backend: Option<String>,
    pub(crate) warmups: u32,
    pub(crate) iterations: Vec<Iteration>,
    /// By kind of start: `cold`, `warm`.
    pub(crate) summary: BTreeMap<&'static str, Summary>,
}

/// One measured run.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Iteration {
    /// From 1, over all starts.
    pub(crate) number: u32,
    /// The start that was requested: `cold` or `warm`.
    pub(crate) start: &'static str,
    /// Why it started cold, if it did.
    pub(crate) start_reason: Option<String>,
    /// The backend; the same for all.
    #[serde(skip)]
    pub(crate) backend: Option<String>,
    pub(crate) ok: bool,
    pub(crate) error: Option<String>,
    /// From the call to the result.
    pub(crate) duration_ms: Option<f64>,
    /// From the call to the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) full_ready_ms: Option<f64>,
    #[cfg_attr(test, schemars(with = "Option<BTreeMap<String, f64>>"))]
    pub(crate) phases: Option<Phases>,
}

/// Named durations in milliseconds, in the order in which they happened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Phases(pub(crate) Vec<Phase>);

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Phase {
    /// Its key in JSON, without the unit.
    pub(crate) name: &'static str,
    pub(crate) millis: f64,
    /// Whether it is a part of the phase before it; parts happen at the same time.
    pub(crate) part: bool,
}

impl Serialize for Phases {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for phase in &self.0 {
            map.serialize_entry(&format!("{}_ms", phase.name), &phase.millis)?;
        }
        map.end()
    }
}

/// How one quantity was spread, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Spread {
    pub(crate) min_ms: f64,
    pub(crate) avg_ms: f64,
    pub(crate) p50_ms: f64,
    /// Only with 20 samples or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p95_ms: Option<f64>,
    pub(crate) max_ms: f64,
}

/// All iterations of one kind of start.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Summary {
    /// Iterations, failed ones included.
    pub(crate) count: usize,
    /// Those that failed; they are in none of the figures.
    pub(crate) failures: usize,
    #[serde(flatten)]
    pub(crate) measured: Option<Spread>,
    pub(crate) phases: Vec<PhaseSummary>,
}

/// One phase of all iterations.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct PhaseSummary {
    pub(crate) name: &'static str,
    #[serde(skip)]
    pub(crate) part: bool,
    #[serde(flatten)]
    pub(crate) spread: Spread,
}
