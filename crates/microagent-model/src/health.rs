//! Health checks: a command that is run in a guest again and again, and what its results mean. Pure.
//!
//! # Source
//! `HEALTHCHECK` of the Dockerfile reference, and `docker run --health-*`. The defaults are Docker's.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::CommandLine;

/// Shortest time between checks, and shortest time limit of one: each check is a process in the guest and a file on the
/// host.
pub const HEALTH_TIME_MIN: Duration = Duration::from_millis(500);

/// Longest time of a health check's settings.
pub const HEALTH_TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Most failed checks in a row that can be required.
pub const HEALTH_RETRIES_MAX: u32 = 1000;

const _: () = assert!(HEALTH_TIME_MIN.as_millis() < DEFAULTS.interval.as_millis());
const _: () = assert!(HEALTH_TIME_MIN.as_millis() < DEFAULTS.timeout.as_millis());
const _: () = assert!(HEALTH_TIME_MIN.as_millis() < DEFAULTS.start_interval.as_millis());
const _: () = assert!(DEFAULTS.retries <= HEALTH_RETRIES_MAX);

const DEFAULTS: HealthTiming = HealthTiming {
    interval: Duration::from_secs(30),
    timeout: Duration::from_secs(30),
    start_period: Duration::ZERO,
    start_interval: Duration::from_secs(5),
    retries: 3,
};

/// Settings of a health check, from a user or an image. `None` is a value that is not set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthSettings {
    /// The command.
    pub check: Option<HealthCommand>,
    /// Time between the end of a check and the start of the next.
    pub interval: Option<Duration>,
    /// Time limit of a check.
    pub timeout: Option<Duration>,
    /// Time after the start in which failed checks do not count.
    pub start_period: Option<Duration>,
    /// Interval in the start period.
    pub start_interval: Option<Duration>,
    /// Failed checks in a row after which the workspace is unhealthy.
    pub retries: Option<u32>,
}

/// The command of a health check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthCommand {
    /// No check, also if the image has one.
    Disabled,
    /// A command that exits with 0 if all is well.
    Run(CommandLine),
}

/// Times and limits of a health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthTiming {
    /// Time between the end of a check and the start of the next.
    pub interval: Duration,
    /// Time limit of a check.
    pub timeout: Duration,
    /// Time after the start in which failed checks do not count.
    pub start_period: Duration,
    /// Interval in the start period.
    pub start_interval: Duration,
    /// Failed checks in a row after which the workspace is unhealthy.
    pub retries: u32,
}

/// The health check of a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthPlan {
    /// The command.
    pub command: CommandLine,
    /// Its times and limits.
    pub timing: HealthTiming,
}

/// The health of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// No check has succeeded yet, and too few have failed that count.
    Starting,
    /// The last check that counts succeeded, or too few in a row have failed since.
    Healthy,
    /// As many checks in a row have failed as its retries allow.
    Unhealthy,
}

/// State and count of failed checks, as results arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthProgress {
    /// The state.
    pub state: HealthState,
    /// Failed checks in a row that count.
    pub failing_streak: u32,
}

impl HealthSettings {
    /// The check of a workspace whose user says this and whose image says that.
    pub fn plan(&self, image: &HealthSettings) -> Option<HealthPlan> {
        let command = match self.check.as_ref().or(image.check.as_ref())? {
            HealthCommand::Disabled => return None,
            HealthCommand::Run(command) => command.clone(),
        };
        let time = |of: fn(&HealthSettings) -> Option<Duration>, default: Duration| {
            of(self).or(of(image)).unwrap_or(default)
        };
        let bounded = |time: Duration| time.clamp(HEALTH_TIME_MIN, HEALTH_TIME_MAX);
        let timing = HealthTiming {
            interval: bounded(time(|of| of.interval, DEFAULTS.interval)),
            timeout: bounded(time(|of| of.timeout, DEFAULTS.timeout)),
            start_period: time(|of| of.start_period, DEFAULTS.start_period).min(HEALTH_TIME_MAX),
            start_interval: bounded(time(|of| of.start_interval, DEFAULTS.start_interval)),
            retries: self.retries.or(image.retries).unwrap_or(DEFAULTS.retries).clamp(1, HEALTH_RETRIES_MAX),
        };
        Some(HealthPlan { command, timing })
    }
}

impl HealthProgress {
    /// Before the first check.
    pub const START: HealthProgress = HealthProgress { state: HealthState::Starting, failing_streak: 0 };

    /// The pause before the next check, so long after the start.
    pub fn pause(self, timing: &HealthTiming, since_start: Duration) -> Duration {
        match self.is_start(timing, since_start) {
            true => timing.start_interval,
            false => timing.interval,
        }
    }

    /// Whether failed checks do not count yet.
    fn is_start(self, timing: &HealthTiming, since_start: Duration) -> bool {
        self.state == HealthState::Starting && since_start < timing.start_period
    }

    /// After one more check, which began so long after the start.
    #[must_use]
    pub fn after(self, succeeded: bool, timing: &HealthTiming, since_start: Duration) -> HealthProgress {
        if succeeded {
            return HealthProgress { state: HealthState::Healthy, failing_streak: 0 };
        }
        if self.is_start(timing, since_start) {
            return self;
        }
        let failing_streak = self.failing_streak.saturating_add(1);
        let state = if failing_streak >= timing.retries { HealthState::Unhealthy } else { self.state };
        HealthProgress { state, failing_streak }
    }
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            HealthState::Starting => "starting",
            HealthState::Healthy => "healthy",
            HealthState::Unhealthy => "unhealthy",
        })
    }
}

/// A text that is not a state of health.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no health; expected starting, healthy or unhealthy")]
pub struct HealthStateError(String);

impl FromStr for HealthState {
    type Err = HealthStateError;

    fn from_str(text: &str) -> Result<HealthState, HealthStateError> {
        [HealthState::Starting, HealthState::Healthy, HealthState::Unhealthy]
            .into_iter()
            .find(|state| state.to_string() == text)
            .ok_or_else(|| HealthStateError(text.to_owned()))
    }
}

impl fmt::Display for HealthCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HealthCommand::Disabled => f.write_str("none"),
            HealthCommand::Run(CommandLine::Shell(line)) => f.write_str(line),
            HealthCommand::Run(CommandLine::Argv(words)) => f.write_str(&words.join(" ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn line(line: &str) -> Option<HealthCommand> {
        Some(HealthCommand::Run(CommandLine::Shell(line.into())))
    }

    #[test]
    fn what_the_user_says_goes_over_the_images_one_by_one() {
        let image = HealthSettings {
            check: line("image"),
            interval: Some(7 * SECOND),
            retries: Some(9),
            ..HealthSettings::default()
        };
        let user = HealthSettings { interval: Some(2 * SECOND), ..HealthSettings::default() };
        let plan = user.plan(&image).unwrap();
        assert_eq!(plan.command, CommandLine::Shell("image".into()));
        let expected = HealthTiming { interval: 2 * SECOND, retries: 9, ..DEFAULTS };
        assert_eq!(plan.timing, expected);
        let user = HealthSettings { check: line("user"), ..user };
        assert_eq!(user.plan(&image).unwrap().command, CommandLine::Shell("user".into()));
        let none = HealthSettings { check: Some(HealthCommand::Disabled), ..HealthSettings::default() };
        assert_eq!(none.plan(&image), None);
        assert_eq!(HealthSettings::default().plan(&none), None);
        assert_eq!(HealthSettings::default().plan(&HealthSettings::default()), None);
    }

    #[test]
    fn times_of_an_image_stay_within_bounds() {
        let image = HealthSettings {
            check: line("x"),
            interval: Some(Duration::from_nanos(1)),
            timeout: Some(Duration::MAX),
            start_period: Some(Duration::MAX),
            start_interval: Some(Duration::ZERO),
            retries: Some(0),
        };
        let timing = HealthSettings::default().plan(&image).unwrap().timing;
        assert_eq!((timing.interval, timing.timeout), (HEALTH_TIME_MIN, HEALTH_TIME_MAX));
        assert_eq!((timing.start_period, timing.start_interval), (HEALTH_TIME_MAX, HEALTH_TIME_MIN));
        assert_eq!(timing.retries, 1);
    }

    #[test]
    fn so_many_failures_in_a_row_are_unhealthy_and_one_success_is_healthy() {
        let timing = HealthTiming { retries: 2, ..DEFAULTS };
        let states = |results: &[bool]| {
            let mut progress = HealthProgress::START;
            let next = |succeeded: &bool| {
                progress = progress.after(*succeeded, &timing, SECOND);
                progress.state
            };
            results.iter().map(next).collect::<Vec<_>>()
        };
        use HealthState::{Healthy, Starting, Unhealthy};
        assert_eq!(states(&[false, false, false]), [Starting, Unhealthy, Unhealthy]);
        assert_eq!(
            states(&[true, false, true, false, false]),
            [Healthy, Healthy, Healthy, Healthy, Unhealthy]
        );
        assert_eq!(states(&[false, false, true]), [Starting, Unhealthy, Healthy]);
    }

    #[test]
    fn failures_of_the_start_do_not_count_until_something_succeeded() {
        let timing = HealthTiming { retries: 1, start_period: 10 * SECOND, ..DEFAULTS };
        let start = HealthProgress::START;
        assert_eq!(start.after(false, &timing, 9 * SECOND), start);
        assert_eq!(start.after(false, &timing, 10 * SECOND).state, HealthState::Unhealthy);
        let healthy = start.after(true, &timing, SECOND);
        assert_eq!(healthy.after(false, &timing, 2 * SECOND).state, HealthState::Unhealthy);
        assert_eq!(start.pause(&timing, 9 * SECOND), DEFAULTS.start_interval);
        assert_eq!(healthy.pause(&timing, 2 * SECOND), DEFAULTS.interval);
        assert_eq!(start.pause(&timing, 10 * SECOND), DEFAULTS.interval);
    }

    #[test]
    fn a_state_is_its_text() {
        for text in ["starting", "healthy", "unhealthy"] {
            let state: HealthState = text.parse().unwrap();
            assert_eq!(
                (state.to_string().as_str(), serde_json::to_value(state).unwrap()),
                (text, text.into())
            );
        }
        assert!("none".parse::<HealthState>().is_err());
    }
}
