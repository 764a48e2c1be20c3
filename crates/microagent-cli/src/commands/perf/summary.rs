//! What many measurements come to: medians and ranges. Pure.

use crate::documents::perf::{Iteration, PhaseSummary, Phases, Spread, Summary};
use crate::table::table;

/// Fewest samples that a 95th percentile is told of.
const P95_SAMPLES: usize = 20;

impl Spread {
    fn of(mut samples: Vec<f64>) -> Option<Spread> {
        samples.sort_by(f64::total_cmp);
        let (min_ms, max_ms) = (*samples.first()?, *samples.last()?);
        let count = samples.len();
        Some(Spread {
            min_ms,
            avg_ms: samples.iter().sum::<f64>() / count as f64,
            p50_ms: f64::midpoint(samples[(count - 1) / 2], samples[count / 2]),
            // The nearest rank: the smallest sample that 95 % are not above.
            p95_ms: (count >= P95_SAMPLES).then(|| samples[(count * 95).div_ceil(100) - 1]),
            max_ms,
        })
    }
}

impl Summary {
    /// Sums up what `measured` takes of each iteration, and its phases.
    pub(super) fn of(iterations: &[&Iteration], measured: fn(&Iteration) -> Option<f64>) -> Summary {
        let good = || iterations.iter().filter(|iteration| iteration.ok);
        let phases: Vec<&Phases> = good().filter_map(|iteration| iteration.phases.as_ref()).collect();
        let names = phases.first().map_or(&[][..], |phases| &phases.0);
        let summed = names.iter().filter_map(|phase| {
            let samples = phases.iter().flat_map(|phases| &phases.0);
            let samples = samples.filter(|other| other.name == phase.name).map(|other| other.millis);
            let spread = Spread::of(samples.collect())?;
            Some(PhaseSummary { name: phase.name, part: phase.part, spread })
        });
        Summary {
            count: iterations.len(),
            failures: iterations.len() - good().count(),
            measured: Spread::of(good().filter_map(|iteration| measured(iteration)).collect()),
            phases: summed.collect(),
        }
    }

    /// The median of what was measured.
    pub(super) fn median(&self) -> Option<f64> {
        self.measured.map(|spread| spread.p50_ms)
    }

    /// A table for people; `measured` is what its last line is called.
    pub(super) fn text(&self, start: &str, measured: &str) -> String {
        let done = self.count - self.failures;
        let mut text = format!("{start}: {done} of {} runs\n", self.count);
        let mut rows: Vec<_> = self
            .phases
            .iter()
            .map(|phase| {
                let indent = if phase.part { "    " } else { "  " };
                row(format!("{indent}{}", phase.name.replace('_', " ")), &phase.spread)
            })
            .collect();
        rows.extend(self.measured.iter().map(|spread| row(format!("  {measured}"), spread)));
        let columns = [("  phase", 20), ("median ms", 10), ("min", 10), ("max", 10), ("p95", 0)];
        if done >= P95_SAMPLES {
            text += &table(columns, &rows);
        } else if done > 0 {
            let [columns @ .., _] = columns;
            let rows: Vec<_> = rows.into_iter().map(|[row @ .., _]| row).collect();
            text += &table(columns, &rows);
        }
        text
    }
}

fn row(name: String, spread: &Spread) -> [String; 5] {
    let p95 = spread.p95_ms.map(number).unwrap_or_default();
    [name, number(spread.p50_ms), number(spread.min_ms), number(spread.max_ms), p95]
}

fn number(millis: f64) -> String {
    format!("{millis:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::perf::Phase;

    fn iteration(millis: Option<f64>) -> Iteration {
        let phase = |name, millis, part| Phase { name, millis, part };
        Iteration {
            number: 1,
            start: "warm",
            start_reason: None,
            backend: None,
            ok: millis.is_some(),
            error: None,
            duration_ms: millis,
            full_ready_ms: None,
            phases: millis
                .map(|ms| Phases(vec![phase("configure", ms / 2.0, false), phase("disk", 1.5, true)])),
        }
    }

    fn summary(samples: &[Option<f64>]) -> Summary {
        let iterations: Vec<_> = samples.iter().map(|millis| iteration(*millis)).collect();
        Summary::of(&iterations.iter().collect::<Vec<_>>(), |iteration| iteration.duration_ms)
    }

    #[test]
    fn spreads_are_of_the_good_ones() {
        let summary = summary(&[Some(4.0), None, Some(1.0), Some(2.0), Some(3.0)]);
        assert_eq!((summary.count, summary.failures), (5, 1));
        assert_eq!(
            summary.measured,
            Some(Spread { min_ms: 1.0, avg_ms: 2.5, p50_ms: 2.5, p95_ms: None, max_ms: 4.0 })
        );
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json["p50_ms"], 2.5);
        assert_eq!(json["phases"][0]["name"], "configure");
        assert_eq!(json["phases"][0]["max_ms"], 2.0);
    }

    #[test]
    fn a_percentile_wants_twenty_samples() {
        let spread = |count: u32| Spread::of((1..=count).map(f64::from).collect()).unwrap().p95_ms;
        assert_eq!((spread(19), spread(20), spread(100)), (None, Some(19.0), Some(95.0)));
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn tables_show_parts_below_their_phase() {
        assert_eq!(
            summary(&[Some(10.0), Some(20.0)]).text("warm", "total"),
            "\
warm: 2 of 2 runs
  phase              median ms  min        max
  configure          7.5        5.0        10.0
    disk             1.5        1.5        1.5
  total              15.0       10.0       20.0
"
        );
        assert_eq!(summary(&[None]).text("cold", "total"), "cold: 0 of 1 runs\n");
    }

    #[test]
    fn enough_samples_show_their_percentile() {
        let text = summary(&[Some(10.0); 20]).text("warm", "total");
        assert!(text.contains("max        p95\n"), "{text}");
        assert!(text.ends_with("  total              10.0       10.0       10.0       10.0\n"), "{text}");
    }
}
