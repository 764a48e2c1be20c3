//! Samples, and the table that they end in.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Rounds before those that count: caches fill, templates are made.
const WARM_UP: u32 = 2;

/// Durations of one thing.
#[derive(Debug, Default, Clone)]
pub(crate) struct Samples {
    sorted: Vec<Duration>,
}

impl Samples {
    pub(crate) fn push(&mut self, duration: Duration) {
        let at = self.sorted.partition_point(|other| *other <= duration);
        self.sorted.insert(at, duration);
    }

    /// The middle one; of an even number the lower of the two.
    pub(crate) fn median(&self) -> Duration {
        self.sorted.get(self.sorted.len().saturating_sub(1) / 2).copied().unwrap_or_default()
    }

    /// What 95 of 100 take at most.
    pub(crate) fn percentile_95(&self) -> String {
        let rank = (self.sorted.len() * 95).div_ceil(100).max(1);
        self.sorted.get(rank - 1).map_or_else(String::new, |duration| millis(*duration))
    }

    fn range(&self) -> String {
        match (self.sorted.first(), self.sorted.last()) {
            (Some(first), Some(last)) => format!("{} to {}", millis(*first), millis(*last)),
            _ => String::new(),
        }
    }
}

/// One of several ways to do the same: its name, and what is timed. The duration that it gives counts, so
/// that what belongs to cleaning up does not.
pub(crate) type Peer<'a> = (&'a str, Box<dyn FnMut() -> Result<Duration> + 'a>);

/// Does all in turn, `runs` times after a warm-up, and gives the samples in the order of the peers.
pub(crate) fn interleave(runs: u32, peers: &mut [Peer<'_>]) -> Result<Vec<Samples>> {
    let mut samples = vec![Samples::default(); peers.len()];
    for round in 0..WARM_UP + runs {
        for ((name, work), samples) in peers.iter_mut().zip(&mut samples) {
            eprint!("\r\x1b[K{}/{} {name}", round + 1, WARM_UP + runs);
            let took = work()?;
            if round >= WARM_UP {
                samples.push(took);
            }
        }
    }
    eprint!("\r\x1b[K");
    Ok(samples)
}

/// How long something takes.
pub(crate) fn time<T>(work: impl FnOnce() -> Result<T>) -> Result<Duration> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed())
}

/// Rows of a Markdown table.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<[String; 4]>,
}

impl Table {
    /// Adds times of peers; ratios are to the first.
    pub(crate) fn add_times(&mut self, group: &str, names: &[&str], samples: &[Samples]) {
        let first = samples.first().map_or(Duration::ZERO, Samples::median).as_secs_f64();
        for (number, (name, samples)) in names.iter().zip(samples).enumerate() {
            let ratio = match number {
                0 => "1".to_owned(),
                _ => format!("{:.2}", samples.median().as_secs_f64() / first),
            };
            self.rows.push([format!("{group}: {name}"), millis(samples.median()), samples.range(), ratio]);
        }
    }

    /// Adds a fact that is no time.
    pub(crate) fn add(&mut self, what: impl Into<String>, value: impl Into<String>) {
        self.rows.push([what.into(), value.into(), String::new(), String::new()]);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| What | Median | Range | Ratio |\n|---|---|---|---|")?;
        for [what, value, range, ratio] in &self.rows {
            writeln!(f, "| {what} | {value} | {range} | {ratio} |")?;
        }
        Ok(())
    }
}

fn millis(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1000.0;
    match millis {
        ..10.0 => format!("{millis:.2} ms"),
        ..100.0 => format!("{millis:.1} ms"),
        _ => format!("{millis:.0} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        let mut samples = Samples::default();
        for millis in [9, 1, 5, 7, 3] {
            samples.push(Duration::from_millis(millis));
        }
        assert_eq!(samples.median(), Duration::from_millis(5));
        assert_eq!(samples.range(), "1.00 ms to 9.00 ms");
        assert_eq!(samples.percentile_95(), "9.00 ms");
    }

    #[test]
    fn peers_take_turns_and_the_warm_up_does_not_count() {
        let order = std::cell::RefCell::new(String::new());
        let peer = |mark: char| {
            let order = &order;
            move || {
                order.borrow_mut().push(mark);
                Ok(Duration::from_millis(1))
            }
        };
        let mut peers: [Peer<'_>; 2] = [("a", Box::new(peer('a'))), ("b", Box::new(peer('b')))];
        let samples = interleave(2, &mut peers).unwrap();
        drop(peers);
        assert_eq!(order.into_inner(), "abababab");
        assert_eq!(samples[0].sorted.len(), 2);
    }
}
