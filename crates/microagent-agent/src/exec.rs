//! Runs one command for the host: starts it, carries its streams, tells its end.
//!
//! Output is read only as fast as the host takes it, input is taken only as fast as the command reads it.
//! When the host drops the stream before the end, the command is killed with everything that it started.

mod command;
mod input;
mod streams;

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use microagent_proto::{
    Chunk, Command, Exec, ExecEvent, ExecRole, Exit, FrameError, OUTPUT_CHUNK_LIMIT, REPLY_LIMIT, StartError,
    StartErrorKind, Stream, write_message,
};
use rustix::process::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::cgroup::{Cgroup, Cgroups};
use crate::console;
use crate::events::{Events, Watcher};
use crate::hold::Hold;
use crate::init::Init;
use crate::inspect;
use crate::reaper::{Reaper, Role};
use crate::spawn::{self, ChildStreams, NOTE_LEN, Plan, Spawned};
use crate::user;

use command::{Script, other};
use input::{Input, Target};
use streams::{End, Output, Source, Streams, read_some};

/// `SIGKILL`, as every Linux numbers it.
const SIGKILL: u8 = 9;

/// How long a process that outlives its command may be silent before nobody listens any more, and how long it may speak.
const HELPERS_PAUSE: Duration = Duration::from_millis(250);
const HELPERS_LIMIT: Duration = Duration::from_secs(2);

/// How long what was killed may take to be gone; only what hangs in the kernel takes any time.
const KILL_DEADLINE: Duration = Duration::from_secs(2);

/// What commands need of the machine.
#[derive(Debug)]
pub(crate) struct Executor {
    cgroups: Cgroups,
    pub(crate) init: Arc<Init>,
    pub(crate) reaper: Reaper,
    pub(crate) events: Events,
    pub(crate) hold: Arc<Hold>,
    /// How many commands the host has a stream of.
    attended: watch::Sender<usize>,
    /// The main program, between the session that was captured and its successor.
    parked: Mutex<Option<Started>>,
}

impl Executor {
    pub(crate) fn new(
        cgroups: Cgroups,
        init: Arc<Init>,
        reaper: Reaper,
        events: Events,
    ) -> io::Result<Executor> {
        let hold = Arc::new(Hold::new(cgroups.root()?)?);
        let (attended, parked) = (watch::Sender::new(0), Mutex::default());
        Ok(Executor { cgroups, init, reaper, events, hold, attended, parked })
    }

    /// Runs a command, speaking to the host on this stream.
    pub(crate) async fn serve(&self, stream: Stream, exec: &Exec) {
        // What begins while programs are held would not be.
        self.hold.ended().await;
        let (from_host, mut to_host) = tokio::io::split(stream);
        match self.start(exec) {
            Ok(started) => self.attend(started, from_host, to_host).await,
            Err(error) => finish(&mut to_host, ExecEvent::NotStarted(error)).await,
        }
    }

    /// Tells the host of the main program on this stream, as the session before did.
    pub(crate) async fn adopt(&self, stream: Stream) {
        let (from_host, mut to_host) = tokio::io::split(stream);
        let parked = self.parked().take();
        if let Some(started) = parked {
            return self.attend(started, from_host, to_host).await;
        }
        let message = "the guest has no main program that nobody listens to".to_owned();
        let error = StartError { kind: StartErrorKind::Other, message };
        finish(&mut to_host, ExecEvent::NotStarted(error)).await;
    }

    /// Runs a command of the agent's own to its end, and says how it ended.
    pub(crate) async fn run(&self, exec: &Exec) -> Result<Exit, StartError> {
        let Started { mut running, group, .. } = self.start(exec)?;
        let unused = Output { stdout: None, stderr: None };
        let discarding = tokio::spawn(std::mem::replace(&mut running.output, unused).discard());
        // Killed where it is dropped before its end.
        let mut run = Run { executor: self, started: Some((running, group)), discarding };
        let Some((running, _)) = &mut run.started else { return Ok(Exit::Signal(SIGKILL)) };
        if let Some(error) = running.start_error(exec).await {
            running.over = true;
            return Err(error);
        }
        let exit = (&mut running.exited).await.unwrap_or(Exit::Signal(SIGKILL));
        running.over = true;
        Ok(exit)
    }

    /// Waits until the host has no stream of a command any more, for at most this time.
    pub(crate) async fn unattended(&self, patience: Duration) {
        let mut attended = self.attended.subscribe();
        // Who hangs in the kernel is not waited for.
        let _ = timeout(patience, attended.wait_for(|count| *count == 0)).await;
    }

    /// Speaks to the host about a command until one of both ends it.
    async fn attend(
        &self,
        started: Started,
        from_host: impl AsyncRead + Unpin,
        mut to_host: impl AsyncWrite + Unpin,
    ) {
        self.attended.send_modify(|count| *count += 1);
        let Started { exec, mut running, group, input, mut sink } = started;
        let target = Target { pid: running.pid, reaper: &self.reaper, group: &group };
        tokio::select! {
            // A broken stream ends the conversation as its end does.
            _ = running.converse(&exec, &input, &group, &mut to_host) => {}
            () = input.listen(from_host, target) => {}
            () = input.pump(&mut sink) => {}
        }
        if exec.role.is_main() && !running.over && self.hold.is_renewed() {
            *self.parked() = Some(Started { exec, running, group, input, sink });
        } else {
            // The last event goes out before the cleaning up.
            tokio::task::yield_now().await;
            self.end(running, group);
        }
        self.attended.send_modify(|count| *count -= 1);
    }

    fn parked(&self) -> std::sync::MutexGuard<'_, Option<Started>> {
        self.parked.lock().expect("no holder of the lock panics")
    }

    fn start(&self, exec: &Exec) -> Result<Started, StartError> {
        let identity = user::resolve(&exec.user)?;
        let script = match &exec.command {
            Command::Script(text) => {
                Some(Script::write(text, &identity).map_err(|e| other("cannot store the script", &e))?)
            }
            Command::Argv(_) | Command::Shell(_) => None,
        };
        let plan = command::plan(exec, identity, script.as_ref())?;
        let Process { spawned, streams, group, exited } = self.make_process(exec, &plan)?;
        let note = match pipe::Receiver::from_owned_fd(spawned.note) {
            Ok(note) => note,
            Err(error) => {
                group.kill(&self.reaper);
                self.retire(group);
                return Err(other("cannot watch the process's start", &error));
            }
        };
        let input = Input::new(streams.terminal, streams.input.is_some());
        let watcher = self.events.watch();
        let running = Running {
            pid: spawned.pid,
            output: streams.output,
            note,
            exited,
            plan,
            script,
            events: self.events.clone(),
            watcher,
            begun: false,
            over: false,
        };
        Ok(Started { exec: exec.clone(), running, group, input, sink: streams.input })
    }

    fn make_process(&self, exec: &Exec, plan: &Plan) -> Result<Process, StartError> {
        let (streams, child_streams) =
            streams::make(exec).map_err(|e| other("cannot make the standard streams", &e))?;
        let made = if exec.role == ExecRole::Main {
            self.init.become_main(plan, child_streams).map(|spawned| (spawned, Group::Guest(self.init.pid())))
        } else {
            self.spawn(plan, child_streams)
        };
        let (spawned, group) = made.map_err(|e| other("cannot make a process", &e))?;
        let role = if exec.role.is_main() { Role::Main } else { Role::Command };
        let exited = self.reaper.watch(spawned.pid, role);
        Ok(Process { spawned, streams, group, exited })
    }

    fn spawn(&self, plan: &Plan, streams: ChildStreams) -> io::Result<(Spawned, Group)> {
        let cgroup = self.cgroups.create()?;
        match spawn::spawn(plan, streams, cgroup.as_fd(), self.init.namespace()) {
            Ok(spawned) => Ok((spawned, Group::Cgroup(cgroup))),
            Err(error) => {
                self.cgroups.retire(cgroup);
                Err(error)
            }
        }
    }

    /// Leaves background processes of a finished command alone, and kills an unfinished one.
    fn end(&self, running: Running, group: Group) {
        if running.over {
            if running.output.has_open_pipe() {
                tokio::spawn(running.output.discard());
            }
        } else {
            group.kill(&self.reaper);
        }
        self.retire(group);
    }

    fn retire(&self, group: Group) {
        if let Group::Cgroup(cgroup) = group {
            self.cgroups.retire(cgroup);
        }
    }
}

/// Everything that a command has started.
#[derive(Debug)]
enum Group {
    Cgroup(Cgroup),
    /// All processes of the guest: they end with their process 1.
    Guest(Pid),
}

impl Group {
    fn kill(&self, reaper: &Reaper) {
        match self {
            Group::Cgroup(cgroup) => {
                if let Err(error) = cgroup.kill() {
                    console::say_error("cannot kill a command", &error);
                }
            }
            Group::Guest(init) => reaper.signal(*init, SIGKILL),
        }
    }

    /// Waits until all of it is gone, for a while; `false` if something still is there.
    async fn emptied(&self) -> bool {
        match self {
            Group::Cgroup(cgroup) => cgroup.emptied(KILL_DEADLINE).await.unwrap_or(true),
            // The kernel tells the end of a process 1 when all others are gone.
            Group::Guest(_) => true,
        }
    }
}

async fn send(to_host: &mut (impl AsyncWrite + Unpin), event: &ExecEvent) -> Result<(), FrameError> {
    write_message(to_host, event, REPLY_LIMIT).await
}

/// Sends the last event. A host that is gone misses nothing.
async fn finish(to_host: &mut (impl AsyncWrite + Unpin), event: ExecEvent) {
    if send(to_host, &event).await.is_ok() {
        let _ = to_host.shutdown().await;
    }
}

/// A process that is on its way to becoming its command.
struct Process {
    spawned: Spawned,
    streams: Streams,
    group: Group,
    exited: oneshot::Receiver<Exit>,
}

/// A command that was started.
#[derive(Debug)]
struct Started {
    exec: Exec,
    running: Running,
    group: Group,
    input: Input,
    /// Where input goes.
    sink: Option<End>,
}

/// A command of the agent's own. Without its end it is killed.
struct Run<'a> {
    executor: &'a Executor,
    started: Option<(Running, Group)>,
    discarding: JoinHandle<()>,
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if let Some((running, group)) = self.started.take() {
            if !running.over {
                self.discarding.abort();
            }
            self.executor.end(running, group);
        }
    }
}

/// A command on its way.
#[derive(Debug)]
struct Running {
    pid: Pid,
    output: Output,
    note: pipe::Receiver,
    exited: oneshot::Receiver<Exit>,
    plan: Plan,
    /// Removes the script's file when the command is over.
    script: Option<Script>,
    events: Events,
    watcher: Watcher,
    /// Whether the host was told that it runs.
    begun: bool,
    /// Whether the main process has ended.
    over: bool,
}

impl Running {
    /// Tells the host everything from the start to the end.
    async fn converse(
        &mut self,
        exec: &Exec,
        input: &Input,
        group: &Group,
        to_host: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), FrameError> {
        if !self.begun
            && let Some(error) = self.start_error(exec).await
        {
            self.over = true;
            finish(to_host, ExecEvent::NotStarted(error)).await;
            return Ok(());
        }
        self.begun = true;
        send(to_host, &ExecEvent::Started).await?;
        let mut buffers = [vec![0; OUTPUT_CHUNK_LIMIT], vec![0; OUTPUT_CHUNK_LIMIT]];
        let [out, err] = &mut buffers;
        let exit = loop {
            let event = tokio::select! {
                count = read_some(&mut self.output.stdout, out) => stdout_event(&out[..count]),
                count = read_some(&mut self.output.stderr, err) => stderr_event(&err[..count]),
                count = input.taken() => ExecEvent::StdinTaken(count),
                exit = &mut self.exited => break exit.unwrap_or(Exit::Signal(9)),
            };
            let ended =
                matches!(&event, ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) if bytes.is_empty());
            if !ended {
                send(to_host, &event).await?;
            }
        };
        self.over = true;
        self.script = None;
        // Background processes may hold the streams open for ever; what the command itself wrote is in
        // them now, and what helpers of it still have to say comes soon.
        self.hear_helpers(&mut buffers, to_host).await?;
        let [out, err] = &mut buffers;
        drain(self.output.stdout.as_ref(), out, stdout_event, to_host).await?;
        drain(self.output.stderr.as_ref(), err, stderr_event, to_host).await?;
        if input.was_killed() && !group.emptied().await {
            console::say("some processes of a command cannot be killed");
        }
        self.events.catch_up();
        if let Some(program) = self.watcher.killed_for_memory() {
            send(to_host, &ExecEvent::OutOfMemory { program }).await?;
        }
        if exit != Exit::Code(0)
            && let Some(mount) = inspect::full_disk()
        {
            send(to_host, &ExecEvent::DiskFull { mount }).await?;
        }
        finish(to_host, ExecEvent::Exited(exit)).await;
        Ok(())
    }

    /// Takes what comes from processes that outlive the command for a moment, such as the other end of `> >(logger)`.
    async fn hear_helpers(
        &mut self,
        buffers: &mut [Vec<u8>; 2],
        to_host: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), FrameError> {
        let [out, err] = buffers;
        let end = Instant::now() + HELPERS_LIMIT;
        while self.output.has_open_pipe() {
            let event = tokio::select! {
                count = read_some(&mut self.output.stdout, out) => stdout_event(&out[..count]),
                count = read_some(&mut self.output.stderr, err) => stderr_event(&err[..count]),
                () = sleep_until(end.min(Instant::now() + HELPERS_PAUSE)) => return Ok(()),
            };
            let ended =
                matches!(&event, ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) if bytes.is_empty());
            if !ended {
                send(to_host, &event).await?;
            }
            if Instant::now() > end {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Waits until the program runs (`None`) or the child says why it cannot.
    async fn start_error(&mut self, exec: &Exec) -> Option<StartError> {
        let mut note = [0; NOTE_LEN];
        if self.note.read_exact(&mut note).await.is_err() {
            // Closed by execve, or by a death that the exit status tells of.
            return None;
        }
        let (stage, error) = spawn::read_note(note);
        Some(command::start_error(exec, &self.plan, stage, &error))
    }
}

fn stdout_event(bytes: &[u8]) -> ExecEvent {
    ExecEvent::Stdout(Chunk::from(bytes))
}

fn stderr_event(bytes: &[u8]) -> ExecEvent {
    ExecEvent::Stderr(Chunk::from(bytes))
}

/// Sends what is in a stream now, and no more than that.
async fn drain(
    source: Option<&Source>,
    buffer: &mut [u8],
    event: fn(&[u8]) -> ExecEvent,
    to_host: &mut (impl AsyncWrite + Unpin),
) -> Result<(), FrameError> {
    let Some(source) = source else { return Ok(()) };
    let mut left = source.backlog();
    while left > 0 {
        let limit = left.min(buffer.len());
        let Some(count) = source.read_now(&mut buffer[..limit]) else { break };
        left -= count;
        send(to_host, &event(&buffer[..count])).await?;
    }
    Ok(())
}
