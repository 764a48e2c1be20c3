//! The health of a workspace: what its health check says, waiting for it, and the end of one that is not well.

use std::time::Duration;

use jiff::Timestamp;
use microagent_image::ImageConfig;
use microagent_model::{
    CommandLine, HEALTH_RETRIES_MAX, HEALTH_TIME_MAX, HEALTH_TIME_MIN, HealthCommand, HealthPlan,
    HealthSettings, HealthState, State,
};
use microagent_store::{HealthReport as RecordedHealth, Workload, WorkspaceRecord};
use microagent_vm::{ChangeRequest, HealthSpec};
use tokio::time::sleep;

use super::Workspace;
#[cfg(doc)]
use crate::ErrorKind;
use crate::broker::with_brokers;
use crate::error::{Action, InvalidRequest};
use crate::provision::exec_request;
use crate::{Error, Progress};

/// Interval of reading health and state while waiting.
const WAIT_INTERVAL: Duration = Duration::from_millis(100);

/// The health check of a workspace: what its user has set goes over what its image says. A check of the image is about
/// the image's program, so it needs a service.
pub(crate) fn health_plan(record: &WorkspaceRecord, workload: &Workload) -> Option<HealthPlan> {
    let none = HealthSettings::default();
    record.settings.health.plan(if workload.service.is_some() { &workload.health } else { &none })
}

/// A notice that what its user has set of a health check has no use, because there is no check.
pub(crate) fn unused_health(record: &WorkspaceRecord, workload: &Workload) -> Option<String> {
    let HealthSettings { check, interval, timeout, start_period, start_interval, retries } =
        &record.settings.health;
    let times = [interval, timeout, start_period, start_interval];
    let is_set = times.iter().any(|time| time.is_some()) || retries.is_some();
    let has_no_use = is_set && check.is_none() && health_plan(record, workload).is_none();
    has_no_use.then(|| {
        "the times and retries of the health check have no use: neither the workspace nor the image's service has a check"
            .to_owned()
    })
}

/// The health check for its supervisor. The command runs as the service does.
pub(super) fn health_spec(record: &WorkspaceRecord, workload: &Workload) -> Option<HealthSpec> {
    let HealthPlan { command, timing } = health_plan(record, workload)?;
    let exec = exec_request(&with_brokers(workload, &record.brokers), &command);
    Some(HealthSpec { exec, timing })
}

/// What an image says of its health check.
pub(crate) fn health_of_image(config: &ImageConfig) -> HealthSettings {
    let Some(check) = &config.health_check else { return HealthSettings::default() };
    let command = match check.test.split_first() {
        Some((form, _)) if form == "NONE" => HealthCommand::Disabled,
        Some((form, words)) if form == "CMD" && !words.is_empty() => {
            HealthCommand::Run(CommandLine::Argv(words.to_vec()))
        }
        Some((form, [line])) if form == "CMD-SHELL" => HealthCommand::Run(CommandLine::Shell(line.clone())),
        _ => return HealthSettings::default(),
    };
    let time = |ns: u64| (ns != 0).then(|| Duration::from_nanos(ns));
    HealthSettings {
        check: Some(command),
        interval: time(check.interval_ns),
        timeout: time(check.timeout_ns),
        start_period: time(check.start_period_ns),
        start_interval: time(check.start_interval_ns),
        retries: check.retries,
    }
}

/// Refuses times at which no check can be run, and words that are no command.
pub(crate) fn check_health(health: &HealthSettings) -> Result<(), InvalidRequest> {
    let times = [
        ("interval", health.interval, HEALTH_TIME_MIN),
        ("timeout", health.timeout, HEALTH_TIME_MIN),
        ("start interval", health.start_interval, HEALTH_TIME_MIN),
        ("start period", health.start_period, Duration::ZERO),
    ];
    let is_bad = |time: Duration, least: Duration| time < least || time > HEALTH_TIME_MAX;
    if let Some((what, ..)) =
        times.into_iter().find(|(_, time, least)| time.is_some_and(|time| is_bad(time, *least)))
    {
        return Err(InvalidRequest::HealthTime { what });
    }
    if health.retries.is_some_and(|retries| !(1..=HEALTH_RETRIES_MAX).contains(&retries)) {
        return Err(InvalidRequest::HealthRetries);
    }
    let is_empty = match &health.check {
        Some(HealthCommand::Run(CommandLine::Argv(words))) => words.is_empty(),
        Some(HealthCommand::Run(CommandLine::Shell(line))) => line.trim().is_empty(),
        Some(HealthCommand::Disabled) | None => false,
    };
    if is_empty { Err(InvalidRequest::HealthCommand) } else { Ok(()) }
}

/// What the health checks of a machine say, from [`Workspace::health`] and [`Workspace::inspect`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HealthReport {
    /// The state of health.
    pub state: HealthState,
    /// Number of failed checks in a row, without those of the start period.
    pub failing_streak: u32,
    /// The newest checks, oldest first; at most 5.
    pub checks: Vec<HealthResult>,
}

/// The result of one health check.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HealthResult {
    /// When the check was started (host's clock).
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Its exit code; 128 + number for a signal. `None` if it did not end by itself.
    pub exit_code: Option<i32>,
    /// The end of its output.
    pub output: String,
    /// Why it has no exit code, or could not be started.
    pub problem: Option<String>,
}

impl HealthReport {
    pub(in crate::workspace) fn of(recorded: RecordedHealth) -> HealthReport {
        HealthReport {
            state: recorded.state,
            failing_streak: recorded.failing_streak,
            checks: recorded.checks.into_iter().map(HealthResult::of).collect(),
        }
    }
}

impl HealthResult {
    fn of(recorded: microagent_store::HealthResult) -> HealthResult {
        HealthResult {
            started_at: recorded.started_at,
            ended_at: recorded.ended_at,
            exit_code: recorded.exit_code,
            output: recorded.output,
            problem: recorded.problem,
        }
    }
}

impl Workspace {
    /// Returns what the health checks of its machine say; `None` if it has no running machine, or no health check.
    ///
    /// # Errors
    /// Fails if the workspace does not exist or its record is damaged.
    pub fn health(&self) -> Result<Option<HealthReport>, Error> {
        Ok(RecordedHealth::observe(&self.existing()?, &self.observe()?).map(HealthReport::of))
    }

    /// Waits until the workspace is healthy or unhealthy, or has no machine any more. Returns its state and health.
    ///
    /// # Errors
    /// Fails if the workspace does not exist or is deleted during the wait ([`NotFound`](ErrorKind::NotFound)), it has no
    /// health check ([`Invalid`](ErrorKind::Invalid)), or `progress` is cancelled.
    pub async fn wait_healthy(&self, progress: &Progress) -> Result<(State, Option<HealthState>), Error> {
        loop {
            let dir = self.existing()?;
            let record = self.observe()?;
            let workload = Workload::load(&dir).map_err(|e| self.damaged(e))?;
            if health_plan(&record, &workload).is_none() {
                return Err(InvalidRequest::NoHealthCheck { name: self.name.clone() }.into());
            }
            let state = record.observed_state();
            let health = RecordedHealth::observe(&dir, &record).map(|report| report.state);
            let is_known = health.is_some_and(|health| health != HealthState::Starting);
            if is_known || !state.is_live() {
                return Ok((state, health));
            }
            tokio::select! {
                () = progress.token().cancelled() => return Err(Error::Cancelled),
                () = sleep(WAIT_INTERVAL) => {}
            }
        }
    }

    /// Shuts the machine down because its health check failed. The state is then [`Failed`](State::Failed).
    pub(super) async fn end_unhealthy(&self) -> Result<(), Error> {
        let grace = self.observe()?.settings.stop_timeout_s;
        let grace = grace.map(|seconds| Duration::from_secs(seconds.into()));
        self.change(ChangeRequest::EndUnhealthy, Action::Halt, grace).await
    }
}

#[cfg(test)]
mod tests {
    use microagent_image::HealthCheck;

    use super::*;

    #[test]
    fn times_without_a_check_are_noticed() {
        let (_dir, workspace) = crate::workspace::tests::halted();
        let mut record = workspace.load().unwrap();
        let workload = Workload::default();
        assert_eq!(unused_health(&record, &workload), None);
        record.settings.health.retries = Some(2);
        assert!(unused_health(&record, &workload).unwrap().contains("no use"));
        record.settings.health.check = Some(HealthCommand::Disabled);
        assert_eq!(unused_health(&record, &workload), None);
    }

    #[test]
    fn the_forms_of_an_image_are_understood() {
        let of = |test: &[&str]| {
            let test = test.iter().map(|&word| word.to_owned()).collect();
            let check = HealthCheck { test, interval_ns: 1_500_000_000, ..HealthCheck::default() };
            health_of_image(&ImageConfig { health_check: Some(check), ..ImageConfig::default() })
        };
        let argv = CommandLine::Argv(vec!["curl".into(), "-f".into()]);
        assert_eq!(of(&["CMD", "curl", "-f"]).check, Some(HealthCommand::Run(argv)));
        let line = CommandLine::Shell("a || b".into());
        let shell = of(&["CMD-SHELL", "a || b"]);
        assert_eq!(shell.check, Some(HealthCommand::Run(line)));
        assert_eq!((shell.interval, shell.timeout), (Some(Duration::from_millis(1500)), None));
        assert_eq!(of(&["NONE"]).check, Some(HealthCommand::Disabled));
        for nothing in [&["CMD"][..], &["CMD-SHELL"], &["X", "y"], &[]] {
            assert_eq!(of(nothing), HealthSettings::default(), "{nothing:?}");
        }
    }
}
