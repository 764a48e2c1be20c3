//! Restarts a workspace according to its restart policy.

use std::time::Duration;

use microagent_model::{HealthState, RestartPolicy, State};
use microagent_store::Supervision;
use tokio::time::{Instant, sleep};

use super::{StartOptions, Workspace, WorkspaceDetails};
use crate::{Error, Event, Progress};

/// Longest delay before a restart.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// After a machine that ran for this time, the delay is the first one again.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// Interval of reading the state of a machine that runs.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Pause after an unhealthy machine could not be ended.
const END_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Options of [`Workspace::supervise`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SuperviseOptions {
    /// Most restarts; `None` for no limit.
    pub max_restarts: Option<u32>,
    /// The first delay before a restart; it doubles up to a minute while machines end early.
    pub delay: Duration,
}

impl Default for SuperviseOptions {
    /// No limit, and a delay of a second.
    fn default() -> SuperviseOptions {
        SuperviseOptions { max_restarts: None, delay: Duration::from_secs(1) }
    }
}

impl SuperviseOptions {
    /// No limit, and a delay of a second.
    pub fn new() -> SuperviseOptions {
        SuperviseOptions::default()
    }

    /// Sets the most restarts.
    #[must_use]
    pub fn max_restarts(self, restarts: u32) -> SuperviseOptions {
        SuperviseOptions { max_restarts: Some(restarts), ..self }
    }

    /// Sets the first delay before a restart.
    #[must_use]
    pub fn delay(self, delay: Duration) -> SuperviseOptions {
        SuperviseOptions { delay, ..self }
    }
}

/// Result of one start in [`Workspace::supervise`].
enum Turn {
    /// The machine has ended or could not be started.
    Ended(Box<WorkspaceDetails>),
    /// The machine was not started, for a temporary reason.
    NotNow(Error),
}

impl Workspace {
    /// Starts the workspace if it is not running, and restarts it according to its restart policy. Returns when the
    /// policy requires no restart, or after the last allowed one. If `progress` is cancelled, the workspace is halted
    /// first. A workspace with the policy [`RestartPolicy::UnlessStopped`] that a user has halted, stopped or killed is
    /// not started.
    ///
    /// An unhealthy workspace is shut down and counts as failed, unless its policy is [`RestartPolicy::Never`].
    ///
    /// A start that fails for a temporary reason (another command uses the workspace or its disks, the host has no
    /// free space) is repeated after the growing delay, with any policy, and does not count as a restart.
    ///
    /// # Errors
    /// Fails when the workspace does not exist or cannot be started for another reason.
    pub async fn supervise(
        &self,
        options: SuperviseOptions,
        progress: &Progress,
    ) -> Result<WorkspaceDetails, Error> {
        progress.check()?;
        let details = self.details()?;
        if self.was_stopped_by_user(&details)? {
            let why = format!("workspace {} was stopped, so it is not started", self.name);
            progress.event(Event::Notice(why));
            return Ok(details);
        }
        let mut restarts = 0;
        self.note_supervision(Supervision { restarts, halted_at: None }, progress);
        let mut delay = options.delay;
        loop {
            let begun = Instant::now();
            let next = match self.turn(restarts, progress).await {
                Err(Error::Cancelled) => return self.halt_at_end(restarts, progress).await,
                Err(error) => return Err(error),
                Ok(Turn::NotNow(error)) => format!("{error}; next try"),
                Ok(Turn::Ended(details)) => {
                    let over = options.max_restarts.is_some_and(|most| restarts >= most);
                    if over || !is_restarted(&details, restarts) {
                        return Ok(*details);
                    }
                    restarts += 1;
                    self.note_supervision(Supervision { restarts, halted_at: None }, progress);
                    format!("workspace {} is {}; restart {restarts}", self.name, details.state)
                }
            };
            delay = if begun.elapsed() >= GOOD_RUN { options.delay } else { delay };
            progress.event(Event::Notice(format!("{next} in {} s", delay.as_secs_f32())));
            tokio::select! {
                () = sleep(delay) => {}
                () = progress.token().cancelled() => return self.details(),
            }
            delay = (2 * delay).min(LONGEST_DELAY);
        }
    }

    /// Whether it is one that is not to be started because a user has ended its last machine. What this process halted
    /// when it was ended itself does not count.
    fn was_stopped_by_user(&self, details: &WorkspaceDetails) -> Result<bool, Error> {
        let candidate = details.restart == RestartPolicy::UnlessStopped
            && details.state.is_resting()
            && details.ended_on_request;
        if !candidate {
            return Ok(false);
        }
        let supervision = Supervision::load(&self.existing()?).map_err(|e| self.damaged(e))?;
        Ok(supervision.halted_at != Some(details.changed_at))
    }

    /// Halts it because this process is ended.
    async fn halt_at_end(&self, restarts: u32, progress: &Progress) -> Result<WorkspaceDetails, Error> {
        if self.state()? == State::Quarantined {
            return self.details();
        }
        let halted = self.halt().await?;
        self.note_supervision(Supervision { restarts, halted_at: Some(halted.changed_at) }, progress);
        Ok(halted)
    }

    /// The workspace is kept running also where that cannot be recorded.
    fn note_supervision(&self, supervision: Supervision, progress: &Progress) {
        if let Err(error) = supervision.save(&self.dir()) {
            progress.event(Event::Notice(format!("the number of restarts is not recorded: {error}")));
        }
    }

    /// One machine, from its start (if it is not running already) to its end.
    async fn turn(&self, restarts: u32, progress: &Progress) -> Result<Turn, Error> {
        if self.state()?.is_resting() {
            match self.start(StartOptions::default(), progress).await {
                Ok(_) => {}
                Err(error) if error.is_retryable() => return Ok(Turn::NotNow(error)),
                // It failed to start, and that is in its record.
                Err(error @ (Error::StartFailed { .. } | Error::SetupFailed { .. })) => {
                    let details = self.details()?;
                    if !is_restarted(&details, restarts) {
                        return Err(error);
                    }
                    progress.event(Event::Notice(error.to_string()));
                    return Ok(Turn::Ended(Box::new(details)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Turn::Ended(Box::new(self.wait_while_healthy(progress).await?)))
    }

    /// Waits for the end of the machine, and ends one that is unhealthy if its policy starts it again.
    async fn wait_while_healthy(&self, progress: &Progress) -> Result<WorkspaceDetails, Error> {
        loop {
            let details = self.details()?;
            if !details.state.is_live() {
                return Ok(details);
            }
            let health = if details.restart == RestartPolicy::Never { None } else { self.health()? };
            let is_unhealthy = health.is_some_and(|report| report.state == HealthState::Unhealthy);
            let pause = match details.state {
                State::Running if is_unhealthy => self.replace_unhealthy(progress).await,
                _ => LOOK_INTERVAL,
            };
            tokio::select! {
                () = progress.token().cancelled() => return Err(Error::Cancelled),
                () = sleep(pause) => {}
            }
        }
    }

    /// Ends the unhealthy machine, and gives the pause before the next look at it.
    async fn replace_unhealthy(&self, progress: &Progress) -> Duration {
        progress.event(Event::Notice(format!("workspace {} is unhealthy; it is shut down", self.name)));
        match self.end_unhealthy().await {
            // It has ended, or was ended or paused in that moment.
            Ok(()) | Err(Error::WrongState { .. }) => LOOK_INTERVAL,
            Err(error) => {
                progress.event(Event::Notice(error.to_string()));
                END_RETRY_INTERVAL
            }
        }
    }
}

fn is_restarted(details: &WorkspaceDetails, restarts: u32) -> bool {
    requires_restart(details.restart, details.state, details.ended_on_request, restarts)
}

fn requires_restart(policy: RestartPolicy, state: State, asked_to_end: bool, restarts: u32) -> bool {
    match policy {
        RestartPolicy::Never => false,
        RestartPolicy::OnFailure { most } => {
            state == State::Failed && most.is_none_or(|most| restarts < most)
        }
        RestartPolicy::Always | RestartPolicy::UnlessStopped => {
            state == State::Failed || (state == State::Stopped && !asked_to_end)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ended_by_itself_is_started_again() {
        use RestartPolicy::{Always, Never, OnFailure, UnlessStopped};
        let on_failure = OnFailure { most: None };
        for (policy, state, asked, wanted) in [
            (Never, State::Failed, false, false),
            (on_failure, State::Failed, false, true),
            (on_failure, State::Stopped, false, false),
            (Always, State::Failed, false, true),
            (Always, State::Stopped, false, true),
            (Always, State::Stopped, true, false),
            (Always, State::Halted, true, false),
            (Always, State::Quarantined, false, false),
            (UnlessStopped, State::Stopped, false, true),
            (UnlessStopped, State::Halted, true, false),
        ] {
            assert_eq!(requires_restart(policy, state, asked, 7), wanted, "{policy} {state} {asked}");
        }
    }

    #[test]
    fn a_policy_with_a_number_ends_after_so_many() {
        let policy = RestartPolicy::OnFailure { most: Some(2) };
        let restarted = [0, 1, 2].map(|restarts| requires_restart(policy, State::Failed, false, restarts));
        assert_eq!(restarted, [true, true, false]);
    }
}
