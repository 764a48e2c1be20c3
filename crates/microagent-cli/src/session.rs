//! A command in a guest with our standard input, terminal and signals: `exec` and `connect`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::thread;

use microagent::{
    CancellationToken, Engine, Error, ExecControl, ExecInput, ExecOptions, Execution, OutputSink,
    OutputStream, WorkspaceName,
};
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;

use crate::context::Context;
use crate::failure::Failure;
use crate::signals::Signals;
use crate::terminal::{self, Raw};

/// Bytes of input that are read at once.
const READ_BYTES: usize = 64 * 1024;

/// Pieces of input, signals and sizes that may wait.
const QUEUE: usize = 4;

/// How many Ctrl-C end a command that does not follow them.
const PATIENCE: usize = 3;

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
    /// Runs the command to its end.
    pub(crate) fn run(
        self,
        context: &Context,
        engine: &Engine,
        name: &WorkspaceName,
        options: ExecOptions,
        sink: &mut OutputSink<'_>,
    ) -> Result<Ended, Failure> {
        let token = CancellationToken::new();
        let detached = CancellationToken::new();
        let detach = self.detach.map(|key| (key, detached.clone()));
        let raw = self.raw;
        let ran = context.block_on_unlistening(async {
            let (control, controls) = mpsc::channel(QUEUE);
            let mut input = ExecInput::default().control(controls);
            if let Some(stdin) = self.stdin {
                input = input.stdin(read_in_background(stdin, detach)?);
            }
            let forwarding = tokio::spawn(forward(signals(raw)?, control, raw, token.clone()));
            let raw = if raw { Some(Raw::enter()?) } else { None };
            let ran = tokio::select! {
                ran = engine.exec(name, &options, input, sink, &token) => Some(ran),
                () = detached.cancelled() => None,
            };
            drop(raw);
            forwarding.abort();
            Ok(ran)
        })?;
        match ran {
            None => Ok(Ended::Detached),
            Some(Ok(execution)) => Ok(Ended::Command(execution)),
            // Whoever reads our output has had enough.
            Some(Err(Error::File { source, .. })) => Err(source.into()),
            Some(Err(error)) => Err(error.into()),
        }
    }
}

/// A session at the serial console, until the machine ends (then it gives `false`) or the key is pressed.
pub(crate) fn at_console(
    context: &Context,
    engine: &Engine,
    name: &WorkspaceName,
    key: u8,
) -> Result<bool, Failure> {
    let detached = CancellationToken::new();
    let mut show = |bytes: &[u8]| pass_on(OutputStream::Stdout, bytes);
    let ran = context.block_on(async |token| {
        let keys = read_in_background(Stdin::Ours, Some((key, detached.clone())))?;
        let raw = Raw::enter_for_console()?;
        let ran = tokio::select! {
            ran = engine.console(name, keys, &mut show, &token) => ran.map(|()| false),
            () = detached.cancelled() => Ok(true),
        };
        drop(raw);
        Ok(ran)
    })?;
    match ran {
        Err(Error::File { source, .. }) => Err(source.into()),
        ran => Ok(ran? || detached.is_cancelled()),
    }
}

/// Each stream to its own, as it comes.
pub(crate) fn pass_on(stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
    match stream {
        OutputStream::Stdout => {
            let mut out = io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()
        }
        OutputStream::Stderr => io::stderr().lock().write_all(bytes),
    }
}

/// Reads on a thread of its own: a terminal can only be read by waiting for it. The thread ends with this process.
fn read_in_background(
    stdin: Stdin,
    detach: Option<(u8, CancellationToken)>,
) -> io::Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
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
            if sender.blocking_send(bytes.to_vec()).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// The signals that go to the command. On a terminal in raw mode Ctrl-C is a key like any other.
fn signals(raw: bool) -> io::Result<Signals> {
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

/// Passes signals and sizes on. A hangup means that nobody is left: it ends the command, as many interrupts do.
async fn forward(
    mut signals: Signals,
    control: mpsc::Sender<ExecControl>,
    raw: bool,
    token: CancellationToken,
) {
    let mut interrupts = 0;
    loop {
        let kind = signals.next().await;
        if raw && kind == SignalKind::window_change() {
            if let Some((rows, cols)) = terminal::size() {
                let _ = control.send(ExecControl::Resize { rows, cols }).await;
            }
            continue;
        }
        let ends = kind == SignalKind::interrupt() || kind == SignalKind::terminate();
        interrupts += usize::from(ends);
        if interrupts >= PATIENCE || kind == SignalKind::hangup() {
            return token.cancel();
        }
        if let Ok(signal) = u8::try_from(kind.as_raw_value()) {
            // A conversation that is over needs no signals.
            let _ = control.send(ExecControl::Signal(signal)).await;
        }
    }
}
