//! One run after the other, each with its own clock.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use microagent::{
    CancellationToken, Engine, Error, Event, Observer, Progress, RunOptions, RunReport, StartMode, chain,
};

use super::phases::{Moments, boot, millis, ready};
use crate::documents::perf::Iteration;
use crate::failure::Failure;

/// Which question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// From the call to the result.
    Boot,
    /// From the call to the moment at which the guest can run a command.
    Ready,
}

/// How a machine is to come up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    Cold,
    Warm,
}

impl Start {
    pub(super) fn name(self) -> &'static str {
        match self {
            Start::Cold => "cold",
            Start::Warm => "warm",
        }
    }
}

/// The clock of one run: the library tells when what begins.
struct Clock {
    begun: Instant,
    marks: Mutex<[Option<Duration>; 2]>,
}

impl Clock {
    fn start() -> Clock {
        Clock { begun: Instant::now(), marks: Mutex::default() }
    }

    fn moments(&self) -> Option<Moments> {
        let end = self.begun.elapsed();
        let [booting, command] = *self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Moments { booting: booting?, command: command?, end })
    }
}

impl Observer for Clock {
    fn event(&self, event: Event) {
        let mark = match event {
            Event::Booting { .. } => 0,
            Event::Command => 1,
            _ => return,
        };
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks[mark] = Some(self.begun.elapsed());
    }
}

/// Measures one run. A failed one is a measurement, too; only the user's wish to stop ends the series.
pub(super) async fn measure(
    engine: &Engine,
    options: &RunOptions,
    question: Question,
    (number, start): (u32, Start),
    token: &CancellationToken,
) -> Result<Iteration, Failure> {
    let clock = Arc::new(Clock::start());
    let progress = Progress::new().observer(Arc::clone(&clock)).cancel(token.clone());
    let ran = engine.run(options.clone(), &progress).await;
    let moments = clock.moments();
    let mut iteration = Iteration {
        number,
        start: start.name(),
        start_reason: None,
        backend: None,
        ok: false,
        error: None,
        duration_ms: None,
        full_ready_ms: None,
        phases: None,
    };
    match ran {
        Err(Error::Cancelled) => return Err(Error::Cancelled.into()),
        Err(error) => iteration.error = Some(chain(&error)),
        Ok(report) => {
            let moments = moments.expect("a run that completed has begun its command");
            iteration.duration_ms = Some(millis(moments.end));
            iteration.phases = Some(match question {
                Question::Boot => boot(&moments, &report.timeline, &report.start),
                Question::Ready => ready(&moments, &report.timeline),
            });
            if question == Question::Ready {
                iteration.full_ready_ms = Some(millis(moments.command));
            }
            iteration.error = complaint(&report, start);
            iteration.ok = iteration.error.is_none();
            iteration.backend = Some(report.backend);
            if let StartMode::Cold { reason } = report.start {
                iteration.start_reason = Some(reason);
            }
        }
    }
    Ok(iteration)
}

/// Why a run that completed is not what was to be measured.
fn complaint(report: &RunReport, start: Start) -> Option<String> {
    match (&report.start, start) {
        _ if report.result.exit_code != 0 => {
            Some(format!("the command exited with {}", report.result.exit_code))
        }
        (StartMode::Cold { reason }, Start::Warm) => Some(format!("it started cold: {reason}")),
        _ => None,
    }
}
