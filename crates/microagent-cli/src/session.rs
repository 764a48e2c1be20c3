//! A command in a guest with our standard input, terminal and signals: `exec` and `connect`.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use microagent::{
    CancellationToken, Error, Exec, ExecControl, ExecOptions, ExecOutput, ExecStdin, Execution, OutputStream,
    StdinMode, Workspace,
};
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::context::Context;
use crate::failure::Failure;
use crate::signals::Signals;
use crate::stream::Passing;
use crate::terminal::{self, Raw};
use crate::writer::{STALL, WriteMeter, Writer};

/// Bytes of input that are read at once.
const READ_BYTES: usize = 64 * 1024;

/// Pieces of keys that may wait.
const QUEUE: usize = 4;

/// How many Ctrl-C end a command that does not follow them.
const PATIENCE: usize = 3;

/// How long the guest may take to show that it can deliver a signal.
pub(crate) const SIGN_OF_LIFE: Duration = Duration::from_millis(700);

/// How often it is checked after a signal whether the output is read, for [`STALL`] each: what a slow guest has printed
/// by then may fill a pipe that nobody reads a moment later.
const STALL_CHECKS: usize = 20;

/// Where a command's standard input comes from.
pub(crate) enum Stdin {
    /// This process's.
    Ours,
    /// A file.
    File(File),
}

/// How a command is connected to us.
pub(crate) struct Session {
    /// Its standard input, if it has one.
    pub(crate) stdin: Option<Stdin>,
    /// Whether our terminal is the command's.
    pub(crate) raw: bool,
    /// The key that ends the session, where one does.
    pub(crate) detach: Option<u8>,
}

/// How a session ended.
pub(crate) enum Ended {
    /// With its command.
    Command(Execution),
    /// By the key.
    Detached,
}

impl Session {
    /// Runs the command to its end and passes what it prints on as it comes.
    pub(crate) fn run(
        self,
        context: &Context,
        workspace: &Workspace,
        options: ExecOptions,
        mut passing: Passing,
    ) -> Result<Ended, Failure> {
        let limit = options.timeout;
        self.hold(context, workspace, options, async |exec, writer| {
            pass_on(exec, writer, &mut passing, limit).await
        })
    }

    /// Runs the command to its end and collects what it prints.
    pub(crate) fn collect(
        self,
        context: &Context,
        workspace: &Workspace,
        options: ExecOptions,
        limit: usize,
    ) -> Result<ExecOutput, Failure> {
        let mut collected = None;
        self.hold(context, workspace, options, async |exec, _writer| {
            let output = exec.collect_output(limit).await?;
            let execution = output.execution.clone();
            collected = Some(output);
            Ok(execution)
        })?;
        collected.ok_or_else(|| Error::Cancelled.into())
    }

    async fn hold_async(
        self,
        workspace: &Workspace,
        options: ExecOptions,
        serve: impl AsyncFnOnce(Exec, Writer) -> Result<Execution, Failure>,
    ) -> Result<Ended, Failure> {
        let (token, detached) = (CancellationToken::new(), CancellationToken::new());
        let hung_up = CancellationToken::new();
        let detach = self.detach.map(|key| (key, detached.clone()));
        let mode = if self.stdin.is_some() { StdinMode::Piped } else { StdinMode::Empty };
        let mut signals = signals(self.raw)?;
        let mut exec = tokio::select! {
            exec = workspace.exec(options.stdin(mode)) => exec?,
            kind = interrupted(&mut signals) => return Err(ended_by(kind == SignalKind::hangup())),
        };
        if let (Some(from), Some(to)) = (self.stdin, exec.take_stdin()) {
            feed_in_background(from, to, detach)?;
        }
        let writer = Writer::start()?;
        let receiver = Receiver {
            workspace: workspace.clone(),
            control: exec.control(),
            meter: writer.meter(),
            terminate: Terminate::Asks,
            asked_to_end: CancellationToken::new(),
            hung_up: hung_up.clone(),
        };
        let forwarding = tokio::spawn(forward(signals, receiver, self.raw, token.clone()));
        let raw = if self.raw { Some(Raw::enter()?) } else { None };
        let ended = tokio::select! {
            ended = serve(exec, writer) => ended.map(Ended::Command),
            () = token.cancelled() => Err(ended_by(hung_up.is_cancelled())),
            () = detached.cancelled() => Ok(Ended::Detached),
        };
        drop(raw);
        forwarding.abort();
        ended
    }

    fn hold(
        self,
        context: &Context,
        workspace: &Workspace,
        options: ExecOptions,
        serve: impl AsyncFnOnce(Exec, Writer) -> Result<Execution, Failure>,
    ) -> Result<Ended, Failure> {
        context.block_on_unlistening(self.hold_async(workspace, options, serve))
    }
}

/// Writes what the command prints. Once its time limit was reached, a reader that takes nothing is not waited for.
async fn pass_on(
    mut exec: Exec,
    mut writer: Writer,
    passing: &mut Passing,
    limit: Option<Duration>,
) -> Result<Execution, Failure> {
    let control = exec.control();
    let meter = writer.meter();
    let time_up = limit.map(|limit| Instant::now() + limit);
    let writing = async {
        while let Some(frame) = exec.next().await {
            if let Some((stream, bytes)) = passing.piece(frame)? {
                writer.write(stream, bytes).await?;
            }
        }
        for (stream, bytes) in passing.rest()? {
            writer.write(stream, bytes).await?;
        }
        writer.finish().await
    };
    let written = tokio::select! {
        written = writing => Some(written),
        () = stalled_after(time_up, &control, &meter) => None,
    };
    if let Some(Err(failure)) = written {
        // Whoever reads our output has had enough.
        return Err(failure);
    }
    Ok(exec.wait().await?)
}

/// Waits until the command has been ended by its time limit and nobody takes what it printed; for ever where it ends
/// otherwise.
async fn stalled_after(time_up: Option<Instant>, control: &ExecControl, meter: &WriteMeter) {
    let Some(time_up) = time_up else { return std::future::pending().await };
    sleep_until(time_up).await;
    if control.has_ended() {
        return std::future::pending().await;
    }
    control.ended().await;
    while !meter.is_stalled().await {
        sleep(STALL).await;
    }
}

/// A session at the serial console, until the machine ends (then it gives `false`) or the key is pressed.
pub(crate) fn at_console(context: &Context, workspace: &Workspace, key: u8) -> Result<bool, Failure> {
    context.block_on(async |token| {
        let detached = CancellationToken::new();
        let mut console = workspace.console().await?;
        let mut writer = Writer::start()?;
        let mut keys = keys_in_background((key, detached.clone()))?;
        let raw = Raw::enter_for_console()?;
        let showing = async {
            loop {
                tokio::select! {
                    shown = console.next() => match shown {
                        Some(bytes) => writer.write(OutputStream::Stdout, bytes).await?,
                        None => return writer.finish().await.map(|()| false),
                    },
                    typed = keys.recv() => match typed {
                        Some(bytes) if console.write(&bytes).await => {}
                        _ => return Ok(detached.is_cancelled()),
                    },
                }
            }
        };
        let left = tokio::select! {
            left = showing => left,
            () = token.cancelled() => Err(Error::Cancelled.into()),
            () = detached.cancelled() => Ok(true),
        };
        drop(raw);
        left
    })
}

/// Reads on a thread of its own: a terminal can only be read by waiting for it. The thread ends with this process.
fn read_in_background(
    stdin: Stdin,
    detach: Option<(u8, CancellationToken)>,
    mut take: impl FnMut(Vec<u8>) -> bool + Send + 'static,
) -> io::Result<()> {
    thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut from: Box<dyn Read> = match stdin {
            Stdin::Ours => Box::new(io::stdin()),
            Stdin::File(file) => Box::new(file),
        };
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let bytes = &buffer[..count];
            if let Some((key, token)) = &detach
                && bytes.contains(key)
            {
                return token.cancel();
            }
            if !take(bytes.to_vec()) {
                return;
            }
        }
    })?;
    Ok(())
}

pub(crate) fn feed_in_background(
    from: Stdin,
    to: ExecStdin,
    detach: Option<(u8, CancellationToken)>,
) -> io::Result<()> {
    read_in_background(from, detach, move |bytes| to.blocking_write(bytes).is_ok())
}

fn keys_in_background(detach: (u8, CancellationToken)) -> io::Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, keys) = mpsc::channel(QUEUE);
    // Keys that find the queue full are lost: the key that ends the session has to be read all the same.
    read_in_background(Stdin::Ours, Some(detach), move |bytes| {
        !matches!(sender.try_send(bytes), Err(mpsc::error::TrySendError::Closed(_)))
    })?;
    Ok(keys)
}

/// This process's standard input, in pieces.
pub(crate) fn input_in_background() -> io::Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, input) = mpsc::channel(QUEUE);
    read_in_background(Stdin::Ours, None, move |bytes| sender.blocking_send(bytes).is_ok())?;
    Ok(input)
}

/// The signals that go to the command. On a terminal in raw mode Ctrl-C is a key like any other.
pub(crate) fn signals(raw: bool) -> io::Result<Signals> {
    let size = SignalKind::window_change();
    let mut kinds = vec![
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ];
    if raw {
        kinds.push(size);
    }
    Signals::of(&kinds)
}

/// Waits for a signal that ends us while there is no command yet.
async fn interrupted(signals: &mut Signals) -> SignalKind {
    let ending = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    loop {
        let kind = signals.next().await;
        if ending.contains(&kind) {
            return kind;
        }
    }
}

/// What is said when a signal ended us: nothing of a hangup, which is how `ssh` ends its ProxyCommand.
fn ended_by(hangup: bool) -> Failure {
    if hangup { Failure::HungUp } else { Error::Cancelled.into() }
}

/// Where signals go, and who may not take them.
pub(crate) struct Receiver {
    /// Whose guest it is.
    pub(crate) workspace: Workspace,
    /// The command.
    pub(crate) control: ExecControl,
    /// Who takes what it prints.
    pub(crate) meter: WriteMeter,
    /// What SIGTERM means.
    pub(crate) terminate: Terminate,
    /// Triggered when a signal that asks it to end was passed on.
    pub(crate) asked_to_end: CancellationToken,
    /// Triggered by a hangup.
    pub(crate) hung_up: CancellationToken,
}

/// What SIGTERM means to a command in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terminate {
    /// The command gets it, and decides.
    Asks,
    /// The command gets it, and has a moment to end by itself.
    Ends,
}

impl Receiver {
    /// Waits until it shows that the command cannot follow a signal that ends it, or nobody would hear of it: its guest
    /// does not answer, or what it prints is not taken. Otherwise it decides for itself, and this never returns.
    async fn cannot_end(&self) {
        let silent = async {
            if self.workspace.is_responsive(SIGN_OF_LIFE).await {
                std::future::pending::<()>().await;
            }
        };
        let stalled = async {
            for _ in 0..STALL_CHECKS {
                if self.meter.would_stall().await {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! { () = silent => {} () = stalled => {} }
    }
}

/// Passes signals and sizes on. A hangup means that nobody is left: it ends the command, as many interrupts do, and as
/// one does that the command cannot follow.
pub(crate) async fn forward(mut signals: Signals, receiver: Receiver, raw: bool, token: CancellationToken) {
    let receiver = Arc::new(receiver);
    let control = receiver.control.clone();
    let mut interrupts = 0;
    loop {
        let kind = signals.next().await;
        if raw && kind == SignalKind::window_change() {
            if let Some((rows, cols)) = terminal::size() {
                // A command that has ended needs no size.
                let _ = control.resize(rows, cols).await;
            }
            continue;
        }
        let ends = kind == SignalKind::interrupt() || kind == SignalKind::terminate();
        interrupts += usize::from(ends);
        if kind == SignalKind::hangup() {
            receiver.hung_up.cancel();
        }
        if interrupts >= PATIENCE || kind == SignalKind::hangup() {
            return token.cancel();
        }
        let sent = match u8::try_from(kind.as_raw_value()) {
            Ok(signal) => control.signal(signal).await,
            Err(_) => Ok(()),
        };
        if ends && sent.is_ok() {
            receiver.asked_to_end.cancel();
        }
        if ends && sent.is_err() {
            // The command has ended; only its output is still being written.
            return token.cancel();
        }
        if ends {
            let (receiver, token) = (Arc::clone(&receiver), token.clone());
            tokio::spawn(async move {
                if kind == SignalKind::terminate() && receiver.terminate == Terminate::Ends {
                    sleep(SIGN_OF_LIFE).await;
                } else {
                    receiver.cannot_end().await;
                }
                token.cancel();
            });
        }
    }
}
