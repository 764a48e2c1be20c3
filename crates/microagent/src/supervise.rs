//! Starting a workspace again when it ends by itself, as its restart policy says.

use std::time::{Duration, Instant};

use microagent_store::{RestartPolicy, State, WorkspaceName};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{Engine, Error, Event, Observer, WorkspaceDetails};

/// Longest pause before another start.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A life of this length was a good one: the pause after it is the first again.
const GOOD_LIFE: Duration = Duration::from_secs(60);

/// How a workspace is watched over.
#[derive(Debug, Clone)]
pub struct SuperviseOptions {
    /// How often it is started again at most; `None` for as often as it takes.
    pub max_restarts: Option<u32>,
    /// The first pause before another start; it doubles up to a minute while lives are short.
    pub pause: Duration,
}

impl Default for SuperviseOptions {
    /// Without an end, and a pause of a second.
    fn default() -> SuperviseOptions {
        SuperviseOptions { max_restarts: None, pause: Duration::from_secs(1) }
    }
}

impl Engine {
    /// Starts a workspace unless it runs, and starts it again whenever its restart policy says so. Returns when the
    /// policy does not, or no restart is left. When `cancel` says so, it is halted first.
    ///
    /// # Errors
    /// Fails when the workspace is gone or cannot be started for a reason that lies in itself.
    pub async fn supervise(
        &self,
        name: &WorkspaceName,
        options: &SuperviseOptions,
        observer: &dyn Observer,
        cancel: &CancellationToken,
    ) -> Result<WorkspaceDetails, Error> {
        let mut restarts = 0;
        let mut pause = options.pause;
        loop {
            let begun = Instant::now();
            let ended = match self.live_once(name, observer, cancel).await {
                Err(Error::Cancelled) => return self.halt(name).await,
                ended => ended,
            };
            let details = match ended {
                Ok(details) => details,
                // It failed to start, and its record says so.
                Err(error @ (Error::StartFailed { .. } | Error::SetupFailed { .. })) => {
                    let details = self.workspace(name)?;
                    if !goes_on(details.record.restart, &details) {
                        return Err(error);
                    }
                    observer.event(Event::Notice(error.to_string()));
                    details
                }
                Err(error) => return Err(error),
            };
            let over = options.max_restarts.is_some_and(|most| restarts >= most);
            if over || !goes_on(details.record.restart, &details) {
                return Ok(details);
            }
            restarts += 1;
            pause = if begun.elapsed() >= GOOD_LIFE { options.pause } else { pause };
            observer.event(Event::Notice(format!(
                "workspace {name} is {}; start {restarts} again in {} s",
                details.state,
                pause.as_secs_f32(),
            )));
            tokio::select! {
                () = sleep(pause) => {}
                () = cancel.cancelled() => return Ok(details),
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// One life, from its start (if it does not run already) to its end.
    async fn live_once(
        &self,
        name: &WorkspaceName,
        observer: &dyn Observer,
        cancel: &CancellationToken,
    ) -> Result<WorkspaceDetails, Error> {
        if self.workspace(name)?.state.is_resting() {
            self.start(name, observer, cancel).await?;
        }
        self.wait(name, cancel).await
    }
}

/// Whether a workspace that rests now is to be started again.
fn goes_on(policy: RestartPolicy, details: &WorkspaceDetails) -> bool {
    is_restarted(policy, details.state, details.record.asked_to_end)
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
