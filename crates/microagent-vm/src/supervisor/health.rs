//! Runs the health check of a machine, one check at a time, and records what comes of it.
//!
//! A check is a command in the guest like any other, with a time limit. While the machine does not run (paused, being
//! stopped) there are no checks, and one that was interrupted by such a change does not count. What the guest sends is
//! limited and not trusted: it can only lie about its own health.

use std::rc::{Rc, Weak};
use std::time::Duration;

use jiff::Timestamp;
use microagent_model::{HealthProgress, HealthState, State};
use microagent_proto::{
    Exec, ExecEvent, ExecInput, Exit, INPUT_LIMIT, MessageReader, REPLY_LIMIT, Request, SessionHandle,
    write_message,
};
use microagent_store::{HEALTH_OUTPUT_MAX, HealthReport, HealthResult, WorkspaceDir};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::control_server::ControlServer;
use super::liveness::StateWatch;
use super::worker::{Trouble, ask, closed};
use crate::spec::HealthSpec;

/// How long a check that is killed may take to be gone; then the agent kills it with its stream.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// How long the guest may take to accept the order to kill a check.
const TELL_DEADLINE: Duration = Duration::from_secs(2);
const _: () = assert!(TELL_DEADLINE.as_secs() < KILL_PATIENCE.as_secs());

/// The task that runs the checks. It ends when this is dropped.
pub(super) struct HealthWatch(JoinHandle<()>);

impl Drop for HealthWatch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl HealthWatch {
    /// Starts with the pause before the first check, at the start of the service.
    pub(super) fn start(
        spec: HealthSpec,
        dir: WorkspaceDir,
        server: &Rc<ControlServer>,
        state: Rc<StateWatch>,
    ) -> HealthWatch {
        let checks = Checks {
            spec,
            dir,
            server: Rc::downgrade(server),
            state,
            report: HealthReport::starting(),
            progress: HealthProgress::START,
        };
        checks.save();
        HealthWatch(spawn_local(checks.run()))
    }
}

struct Checks {
    spec: HealthSpec,
    dir: WorkspaceDir,
    /// Where the session with the guest is. The socket must not stay open for a check.
    server: Weak<ControlServer>,
    state: Rc<StateWatch>,
    report: HealthReport,
    progress: HealthProgress,
}

impl Checks {
    async fn run(mut self) {
        let start = Instant::now();
        loop {
            sleep(self.progress.pause(&self.spec.timing, start.elapsed())).await;
            let session = self.server.upgrade().and_then(|server| server.session());
            let Some(session) = session.filter(|_| self.state.get() == State::Running) else { continue };
            let (changes, since_start) = (self.state.changes(), start.elapsed());
            let result = check(&session, self.spec.exec.clone(), self.spec.timing.timeout).await;
            // It was interrupted by a pause or by the end.
            if self.state.changes() != changes || self.state.get() != State::Running {
                continue;
            }
            self.take(result, since_start);
        }
    }

    fn take(&mut self, result: HealthResult, since_start: Duration) {
        let before = self.progress.state;
        self.progress = self.progress.after(result.succeeded(), &self.spec.timing, since_start);
        if self.progress.state != before {
            self.dir.note_event(State::Running, Some(&news(self.progress.state, &result)));
        }
        (self.report.state, self.report.failing_streak) = (self.progress.state, self.progress.failing_streak);
        self.report.push(result);
        self.save();
    }

    /// On a full disk the health that is shown is an old one; the next check tries again.
    fn save(&self) {
        let _ = self.report.save(&self.dir);
    }
}

/// The line for the workspace's events.
fn news(state: HealthState, result: &HealthResult) -> String {
    let why = match (&result.problem, result.exit_code) {
        _ if state == HealthState::Healthy => String::new(),
        (Some(problem), _) => format!(": {problem}"),
        (None, code) => format!(": the check exited with {}", code.unwrap_or_default()),
    };
    format!("health: {state}{why}")
}

/// Runs one check. A guest that does anything else than to run it has failed it.
async fn check(session: &SessionHandle, exec: Exec, limit: Duration) -> HealthResult {
    let started_at = Timestamp::now();
    let deadline = Instant::now() + limit;
    let mut output = Tail::default();
    let ended = match timeout_at(deadline, start(session, exec)).await {
        Ok(Ok(mut command)) => command.follow(deadline, limit, &mut output).await,
        Ok(Err(trouble)) => Err(describe(trouble)),
        Err(_) => Err(too_slow(limit)),
    };
    let (exit_code, problem) = match ended {
        Ok(code) => (Some(code), None),
        Err(problem) => (None, Some(problem)),
    };
    HealthResult::new(started_at, exit_code, &output.0, problem)
}

async fn start(session: &SessionHandle, exec: Exec) -> Result<CheckCommand, Trouble> {
    let (from, to) = tokio::io::split(ask(session, &Request::Exec(exec)).await?);
    Ok(CheckCommand { replies: MessageReader::new(from, REPLY_LIMIT), to })
}

/// A check that was requested of the guest.
struct CheckCommand {
    replies: MessageReader<ReadHalf<microagent_proto::Stream>>,
    to: WriteHalf<microagent_proto::Stream>,
}

impl CheckCommand {
    /// Waits for its exit code, and kills it at the deadline.
    async fn follow(&mut self, deadline: Instant, limit: Duration, output: &mut Tail) -> Result<i32, String> {
        match timeout_at(deadline, self.exit_code(output)).await {
            Ok(ended) => ended,
            Err(_) => {
                let kill = write_message(&mut self.to, &ExecInput::Kill, INPUT_LIMIT);
                if matches!(timeout(TELL_DEADLINE, kill).await, Ok(Ok(()))) {
                    let _ = timeout(KILL_PATIENCE, self.exit_code(output)).await;
                }
                Err(too_slow(limit))
            }
        }
    }

    async fn exit_code(&mut self, output: &mut Tail) -> Result<i32, String> {
        loop {
            let event = self.replies.next().await.map_err(|error| describe(error.into()))?;
            match event.ok_or_else(|| describe(closed()))? {
                ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => output.push(&bytes),
                ExecEvent::Exited(Exit::Code(code)) => return Ok(i32::from(code)),
                ExecEvent::Exited(Exit::Signal(signal)) => return Ok(128 + i32::from(signal)),
                ExecEvent::Exited(_) => return Err("the guest turned itself off".to_owned()),
                ExecEvent::NotStarted(error) => return Err(format!("cannot be started: {}", error.message)),
                ExecEvent::Started
                | ExecEvent::StdinTaken(_)
                | ExecEvent::OutOfMemory { .. }
                | ExecEvent::DiskFull { .. } => {}
            }
        }
    }
}

/// The end of what a check printed.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(HEALTH_OUTPUT_MAX)..];
        let surplus = (self.0.len() + bytes.len()).saturating_sub(HEALTH_OUTPUT_MAX);
        self.0.drain(..surplus);
        self.0.extend_from_slice(bytes);
    }
}

fn too_slow(limit: Duration) -> String {
    format!("took longer than {} s", limit.as_secs_f32())
}

fn describe(trouble: Trouble) -> String {
    match trouble {
        Trouble::Guest(message)
        | Trouble::Channel(message)
        | Trouble::Disk(message)
        | Trouble::Setting(message)
        | Trouble::Host(message)
        | Trouble::HostTooSlow(message) => message,
    }
}

#[cfg(test)]
mod tests {
    use microagent_proto::{Chunk, Command, ExecRole, guest_session, host_session, read_message};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    fn exec() -> Exec {
        Exec {
            command: Command::Shell(Chunk::from(&b"true"[..])),
            env: Vec::new(),
            working_dir: Chunk::from(&b""[..]),
            make_working_dir: false,
            user: String::new(),
            stdin: false,
            terminal: None,
            role: ExecRole::Command,
        }
    }

    /// The result of a check in a guest that sends these events and then nothing until the check is killed.
    async fn checked(events: Vec<ExecEvent>) -> HealthResult {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (session, driver) = host_session(ours);
        let (mut incoming, guest) = guest_session(theirs);
        let tasks = [tokio::spawn(driver), tokio::spawn(guest)];
        let agent = tokio::spawn(async move {
            let mut stream = incoming.recv().await.unwrap();
            let _: Option<Request> = read_message(&mut stream, 1 << 20).await.unwrap();
            for event in events {
                write_message(&mut stream, &event, REPLY_LIMIT).await.unwrap();
            }
            while !matches!(read_message(&mut stream, INPUT_LIMIT).await, Ok(Some(ExecInput::Kill)) | Err(_))
            {
            }
        });
        let result = check(&session, exec(), LIMIT).await;
        tasks.iter().for_each(JoinHandle::abort);
        agent.abort();
        result
    }

    #[tokio::test]
    async fn an_exit_code_decides() {
        let printed = || ExecEvent::Stdout(Chunk::from(&b"well\n"[..]));
        let exited = |code| ExecEvent::Exited(Exit::Code(code));
        let well = checked(vec![ExecEvent::Started, printed(), exited(0)]).await;
        assert_eq!((well.exit_code, well.output.as_str(), well.succeeded()), (Some(0), "well\n", true));
        let ill = checked(vec![ExecEvent::Started, exited(3)]).await;
        assert_eq!((ill.exit_code, ill.succeeded()), (Some(3), false));
        assert_eq!(news(HealthState::Unhealthy, &ill), "health: unhealthy: the check exited with 3");
        let killed = checked(vec![ExecEvent::Started, ExecEvent::Exited(Exit::Signal(9))]).await;
        assert_eq!((killed.exit_code, killed.succeeded()), (Some(137), false));
    }

    #[tokio::test]
    async fn a_guest_that_answers_nothing_or_without_end_fails_the_check() {
        for events in [Vec::new(), vec![ExecEvent::Started]] {
            let silent = checked(events).await;
            assert_eq!((silent.exit_code, silent.succeeded()), (None, false));
            assert_eq!(silent.problem.as_deref(), Some("took longer than 0.2 s"));
        }
        let line = || ExecEvent::Stderr(Chunk::from(&[b'x'; 10_000][..]));
        let flood = checked(std::iter::repeat_with(line).take(50).collect()).await;
        assert!(!flood.succeeded() && flood.output.len() == HEALTH_OUTPUT_MAX);
    }
}
