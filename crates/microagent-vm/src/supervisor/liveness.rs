//! Checks whether the agent of a running guest still answers. A guest kernel that hangs, or an agent that was
//! stopped, cannot report that, and commands would wait without end.

use std::cell::Cell;
use std::time::Duration;

use microagent_model::State;
use microagent_proto::{FsUsage, GuestError, REPLY_LIMIT, REQUEST_LIMIT, Request, SessionHandle};
use microagent_proto::{read_message, write_message};
use tokio::time::sleep;

use super::answer_budget::{AnswerBudget, Exhausted};

/// Interval of requests.
const PING_INTERVAL: Duration = Duration::from_secs(8);

/// Deadline of an answer, in the guest's own time. On an idle host it takes a millisecond.
const PING_TIME: Duration = Duration::from_secs(18);

/// What clients are promised.
const TOLD_WITHIN: Duration = Duration::from_secs(30);
const _: () = assert!(PING_INTERVAL.as_secs() + PING_TIME.as_secs() + 4 <= TOLD_WITHIN.as_secs());

/// The state of a machine as its tasks see it.
#[derive(Debug)]
pub(super) struct StateWatch {
    state: Cell<State>,
    changes: Cell<u64>,
}

impl StateWatch {
    /// Begins with this state.
    pub(super) fn new(state: State) -> StateWatch {
        StateWatch { state: Cell::new(state), changes: Cell::new(0) }
    }

    /// The state now.
    pub(super) fn get(&self) -> State {
        self.state.get()
    }

    /// How often the state has changed.
    pub(super) fn changes(&self) -> u64 {
        self.changes.get()
    }

    /// Another state; gives the one before.
    pub(super) fn set(&self, state: State) -> State {
        if state != self.state.get() {
            self.changes.set(self.changes.get() + 1);
        }
        self.state.replace(state)
    }
}

/// Waits until the agent leaves a question unanswered while the guest runs, and gives the message for it. `budget` is
/// that of the machine's first answer.
pub(super) async fn unresponsive(
    session: &SessionHandle,
    budget: &AnswerBudget,
    watch: &StateWatch,
) -> String {
    watch_agent(session, &budget.with_own_time(PING_TIME), watch, PING_INTERVAL).await
}

async fn watch_agent(
    session: &SessionHandle,
    budget: &AnswerBudget,
    watch: &StateWatch,
    interval: Duration,
) -> String {
    loop {
        sleep(interval).await;
        if watch.get() != State::Running {
            // A paused guest answers nothing, and what starts or stops has deadlines of its own.
            continue;
        }
        let changes = watch.changes();
        let exhausted = tokio::select! {
            biased;
            () = ping(session) => continue,
            exhausted = budget.exhausted() => exhausted,
        };
        // A guest that was paused meanwhile, or had no processor of the host, has another try.
        if exhausted == Exhausted::Guest && watch.changes() == changes {
            return format!("the guest hangs: its agent did not answer {}", budget.describe(&exhausted));
        }
    }
}

/// Any answer is one. A session that broke is told by its driver.
async fn ping(session: &SessionHandle) {
    let Ok(mut stream) = session.open().await else { return };
    if write_message(&mut stream, &Request::FsUsage, REQUEST_LIMIT).await.is_ok() {
        let _ = read_message::<Result<FsUsage, GuestError>, _>(&mut stream, REPLY_LIMIT).await;
    }
}

#[cfg(test)]
mod tests {
    use microagent_proto::{guest_session, host_session};
    use tokio::time::timeout;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(2);

    /// The end of a watch over an agent that answers nothing, if it comes within this time.
    async fn watched(state: State, within: Duration) -> Option<String> {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (session, driver) = host_session(ours);
        let (mut incoming, guest) = guest_session(theirs);
        let tasks = [tokio::spawn(driver), tokio::spawn(guest)];
        let mute = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Some(stream) = incoming.recv().await {
                held.push(stream);
            }
        });
        let budget = AnswerBudget::of(false, Duration::from_secs(1), None).with_own_time(MOMENT);
        let watch = StateWatch::new(state);
        let found = timeout(within, watch_agent(&session, &budget, &watch, MOMENT)).await.ok();
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
        mute.abort();
        found
    }

    #[tokio::test]
    async fn a_silent_agent_hangs_only_while_its_guest_runs() {
        let hangs = watched(State::Running, Duration::from_secs(60)).await;
        assert!(hangs.is_some_and(|message| message.contains("hangs")));
        for state in [State::Paused, State::Starting, State::Stopping, State::Quarantined] {
            assert_eq!(watched(state, 100 * MOMENT).await, None, "{state:?}");
        }
    }
}
