//! Runs one command for the host: starts it, carries its streams, tells its end.
//!
//! Output is read only as fast as the host takes it, input is taken only as fast as the command reads it.
//! When the host drops the stream before the end, the command is killed with everything that it started.

mod command;
mod input;
mod streams;

use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use microagent_proto::{
    Chunk, Command, Exec, ExecEvent, Exit, FrameError, OUTPUT_CHUNK_LIMIT, REPLY_LIMIT, StartError, Stream,
    write_message,
};
use rustix::process::Pid;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::cgroup::{Cgroup, Cgroups};
use crate::console;
use crate::reaper::{Reaper, Role};
use crate::spawn::{self, NOTE_LEN, Plan, Spawned};
use crate::user;

use command::{Script, other};
use input::{Input, Target};
use streams::{End, Output, Source, Streams, read_some};

/// How long what was killed may take to be gone; only what hangs in the kernel takes any time.
const KILL_DEADLINE: Duration = Duration::from_secs(2);

/// What commands need of the machine.
#[derive(Debug)]
pub(crate) struct Executor {
    cgroups: Cgroups,
    pub(crate) reaper: Reaper,
    /// A process that waits to become the first command.
    standby: Mutex<Option<Standby>>,
}

impl Executor {
    pub(crate) fn new(cgroups: Cgroups, reaper: Reaper) -> Executor {
        Executor { cgroups, reaper, standby: Mutex::new(None) }
    }

    /// Makes the process of the first command before the command is known, if it is a plain one. Made before a
    /// freeze, it spares every restored machine a good part of a start. There must be one thread.
    pub(crate) fn stand_by(&self) -> io::Result<()> {
        let (streams, child_streams) = streams::pipes(false)?;
        let cgroup = self.cgroups.create()?;
        match spawn::stand_by(child_streams, cgroup.as_fd()) {
            Ok(waiting) => {
                let exited = self.reaper.watch(waiting.pid(), Role::Command);
                *self.standby() = Some(Standby { waiting, streams, cgroup, exited });
                Ok(())
            }
            Err(error) => {
                self.cgroups.retire(cgroup);
                Err(error)
            }
        }
    }

    /// Runs a command, speaking to the host on this stream.
    pub(crate) async fn serve(&self, stream: Stream, exec: &Exec) {
        let (from_host, mut to_host) = tokio::io::split(stream);
        let Started { mut running, cgroup, input, sink } = match self.start(exec) {
            Ok(started) => started,
            Err(error) => return finish(&mut to_host, ExecEvent::NotStarted(error)).await,
        };
        let target = Target { pid: running.pid, reaper: &self.reaper, cgroup: &cgroup };
        tokio::select! {
            // A broken stream ends the conversation as its end does.
            _ = running.converse(exec, &input, &cgroup, &mut to_host) => {}
            () = input.listen(from_host, target) => {}
            () = input.pump(sink) => {}
        }
        // The last event goes out before the cleaning up.
        tokio::task::yield_now().await;
        self.end(running, cgroup);
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
        let Process { spawned, streams, cgroup, exited } = match self.stood_by(exec, &plan) {
            Some(process) => process,
            None => self.make_process(exec, &plan)?,
        };
        let note = match pipe::Receiver::from_owned_fd(spawned.note) {
            Ok(note) => note,
            Err(error) => {
                kill(&cgroup);
                self.cgroups.retire(cgroup);
                return Err(other("cannot watch the process's start", &error));
            }
        };
        let input = Input::new(streams.terminal, streams.input.is_some());
        let running =
            Running { pid: spawned.pid, output: streams.output, note, exited, plan, script, over: false };
        Ok(Started { running, cgroup, input, sink: streams.input })
    }

    /// The process that waits becomes this command, if it can. Only the first command finds one, whatever it is.
    fn stood_by(&self, exec: &Exec, plan: &Plan) -> Option<Process> {
        let Standby { waiting, streams, cgroup, exited } = self.standby().take()?;
        if exec.terminal.is_none()
            && !exec.stdin
            && !exec.service
            && let Ok(spawned) = waiting.go(plan)
        {
            return Some(Process { spawned, streams, cgroup, exited });
        }
        self.cgroups.retire(cgroup);
        None
    }

    fn make_process(&self, exec: &Exec, plan: &Plan) -> Result<Process, StartError> {
        let (streams, child_streams) =
            streams::make(exec).map_err(|e| other("cannot make the standard streams", &e))?;
        let cgroup = self.cgroups.create().map_err(|e| other("cannot make a control group", &e))?;
        match spawn::spawn(plan, child_streams, cgroup.as_fd()) {
            Ok(spawned) => {
                let role = if exec.service { Role::Service } else { Role::Command };
                let exited = self.reaper.watch(spawned.pid, role);
                Ok(Process { spawned, streams, cgroup, exited })
            }
            Err(error) => {
                self.cgroups.retire(cgroup);
                Err(other("cannot make a process", &error))
            }
        }
    }

    fn standby(&self) -> MutexGuard<'_, Option<Standby>> {
        self.standby.lock().expect("no holder of the lock panics")
    }

    /// Leaves background processes of a finished command alone, and kills an unfinished one.
    fn end(&self, running: Running, cgroup: Cgroup) {
        if running.over {
            if running.output.has_open_pipe() {
                tokio::spawn(running.output.discard());
            }
        } else {
            kill(&cgroup);
        }
        self.cgroups.retire(cgroup);
    }
}

fn kill(cgroup: &Cgroup) {
    if let Err(error) = cgroup.kill() {
        console::say_error("cannot kill a command", &error);
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

/// A process that has everything but its command.
#[derive(Debug)]
struct Standby {
    waiting: spawn::Waiting,
    streams: Streams,
    cgroup: Cgroup,
    exited: oneshot::Receiver<Exit>,
}

/// A process that is on its way to becoming its command.
struct Process {
    spawned: Spawned,
    streams: Streams,
    cgroup: Cgroup,
    exited: oneshot::Receiver<Exit>,
}

/// A command that was just started.
struct Started {
    running: Running,
    cgroup: Cgroup,
    input: Input,
    /// Where input goes.
    sink: Option<End>,
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
    /// Whether the main process has ended.
    over: bool,
}

impl Running {
    /// Tells the host everything from the start to the end.
    async fn converse(
        &mut self,
        exec: &Exec,
        input: &Input,
        cgroup: &Cgroup,
        to_host: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), FrameError> {
        if let Some(error) = self.start_error(exec).await {
            self.over = true;
            finish(to_host, ExecEvent::NotStarted(error)).await;
            return Ok(());
        }
        let pid = self.pid.as_raw_nonzero().get().unsigned_abs();
        send(to_host, &ExecEvent::Started { pid }).await?;
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
        // them now.
        drain(self.output.stdout.as_ref(), out, stdout_event, to_host).await?;
        drain(self.output.stderr.as_ref(), err, stderr_event, to_host).await?;
        if input.was_killed() && !cgroup.emptied(KILL_DEADLINE).await.unwrap_or(true) {
            console::say("some processes of a command cannot be killed");
        }
        finish(to_host, ExecEvent::Exited(exit)).await;
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
