//! Starting a workspace again when it ends by itself, as its restart policy says.

use std::time::Duration;

use microagent_model::{RestartPolicy, State};
use tokio::time::{Instant, sleep};

use super::{StartOptions, Workspace, WorkspaceDetails};
use crate::{Error, Event, Progress};

/// Longest delay before a restart.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// A machine that ran for so long was a good one: the delay after it is the first again.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// How a workspace is restarted.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SuperviseOptions {
    /// How often it is restarted at most; `None` for no limit.
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

    /// Restarts it at most this number of times.
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

/// How one turn of [`Workspace::supervise`] ended.
enum Turn {
    /// Its machine has ended, or could not be brought up.
    Ended(Box<WorkspaceDetails>),
    /// It was not started, for a reason that passes by itself.
    NotNow(Error),
}

impl Workspace {
    /// Starts the workspace unless it is running, and restarts it whenever its restart policy wants it. Returns when the
    /// policy does not, or no restart is left. When `progress` is cancelled, it is halted first.
    ///
    /// A start that fails for a reason that passes by itself (another command uses the workspace or its disks, the host
    /// is out of space) is tried again after the growing delay, whatever the policy is; it is not a restart.
    ///
    /// # Errors
    /// Fails when the workspace does not exist or cannot be started for another reason.
    pub async fn supervise(
        &self,
        options: SuperviseOptions,
        progress: &Progress,
    ) -> Result<WorkspaceDetails, Error> {
        let mut restarts = 0;
        let mut delay = options.delay;
        loop {
            let begun = Instant::now();
            let next = match self.turn(progress).await {
                Err(Error::Cancelled) => return self.halt().await,
                Err(error) => return Err(error),
                Ok(Turn::NotNow(error)) => format!("{error}; next try"),
                Ok(Turn::Ended(details)) => {
                    let over = options.max_restarts.is_some_and(|most| restarts >= most);
                    if over || !is_restarted(details.restart, details.state, details.ended_on_request) {
                        return Ok(*details);
                    }
                    restarts += 1;
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

    /// One machine, from its start (if it is not running already) to its end.
    async fn turn(&self, progress: &Progress) -> Result<Turn, Error> {
        if self.state()?.is_resting() {
            match self.start(StartOptions::default(), progress).await {
                Ok(_) => {}
                Err(error) if error.is_retryable() => return Ok(Turn::NotNow(error)),
                // It failed to start, and that is in its record.
                Err(error @ (Error::StartFailed { .. } | Error::SetupFailed { .. })) => {
                    let details = self.details()?;
                    if !is_restarted(details.restart, details.state, details.ended_on_request) {
                        return Err(error);
                    }
                    progress.event(Event::Notice(error.to_string()));
                    return Ok(Turn::Ended(Box::new(details)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Turn::Ended(Box::new(self.wait(progress).await?)))
    }
}

fn is_restarted(policy: RestartPolicy, state: State, asked_to_end: bool) -> bool {
    match policy {
        RestartPolicy::Never => false,
        RestartPolicy::OnFailure => state == State::Failed,
        RestartPolicy::Always => state == State::Failed || (state == State::Stopped && !asked_to_end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ended_by_itself_is_started_again() {
        use RestartPolicy::{Always, Never, OnFailure};
        for (policy, state, asked, wanted) in [
            (Never, State::Failed, false, false),
            (OnFailure, State::Failed, false, true),
            (OnFailure, State::Stopped, false, false),
            (Always, State::Failed, false, true),
            (Always, State::Stopped, false, true),
            (Always, State::Stopped, true, false),
            (Always, State::Halted, true, false),
            (Always, State::Quarantined, false, false),
        ] {
            assert_eq!(is_restarted(policy, state, asked), wanted, "{policy} {state} {asked}");
        }
    }
}
