//! Handles of a running command: its standard input, signals, terminal size.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

#[cfg(doc)]
use super::{Exec, StdinMode};

/// The standard input of a command with [`StdinMode::Piped`], from [`Exec::take_stdin`].
///
/// Dropping this value closes the standard input. If it is never taken, [`Exec::wait`] and [`Exec::collect_output`] close
/// it. It is not an `AsyncWrite`: [`ExecStdin::write`] passes a whole buffer on, and waits while the command does not
/// read. [`ExecEnded`] from a write means that the command has ended; for a command that does not read its whole input
/// (`head -1`), this is not a failure.
///
/// ```no_run
/// # use microagent::{ExecOptions, StdinMode, Workspace};
/// # async fn example(workspace: &Workspace, data: Vec<u8>) -> Result<(), microagent::Error> {
/// let mut exec = workspace.exec(ExecOptions::new(["gzip", "-c"]).stdin(StdinMode::Piped)).await?;
/// let stdin = exec.take_stdin();
/// // Written while the output is read, so that neither side waits for the other.
/// tokio::spawn(async move {
///     if let Some(stdin) = stdin {
///         let _ = stdin.write(data).await;
///     }
/// });
/// let output = exec.collect_output(64 * 1024 * 1024).await?;
/// println!("{} bytes", output.stdout.len());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ExecStdin(pub(super) mpsc::Sender<Vec<u8>>);

/// Controls a running command: signals, terminal size, kill. Cheap to clone. It can be kept after the command has
/// ended; then its methods fail with [`ExecEnded`].
#[derive(Debug, Clone)]
pub struct ExecControl {
    pub(super) controls: mpsc::Sender<Control>,
    pub(super) started: CancellationToken,
}

/// The command has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the command has ended")]
pub struct ExecEnded;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Control {
    Signal(u8),
    Resize { rows: u16, cols: u16 },
    Kill,
}

impl ExecStdin {
    /// Writes bytes. Waits while the command does not read.
    ///
    /// # Errors
    /// Fails when the command has ended.
    pub async fn write(&self, bytes: impl Into<Vec<u8>>) -> Result<(), ExecEnded> {
        self.0.send(bytes.into()).await.map_err(|_| ExecEnded)
    }

    /// As [`ExecStdin::write`], but blocks the thread. Panics on a thread of a tokio runtime.
    ///
    /// # Errors
    /// As [`ExecStdin::write`].
    pub fn blocking_write(&self, bytes: impl Into<Vec<u8>>) -> Result<(), ExecEnded> {
        self.0.blocking_send(bytes.into()).map_err(|_| ExecEnded)
    }
}

impl ExecControl {
    /// Sends a signal, 1 to 64, to the command's process group.
    ///
    /// # Errors
    /// Fails when the command has ended.
    pub async fn signal(&self, signal: u8) -> Result<(), ExecEnded> {
        self.send(Control::Signal(signal)).await
    }

    /// Changes the size of the command's terminal.
    ///
    /// # Errors
    /// Fails when the command has ended.
    pub async fn resize(&self, rows: u16, cols: u16) -> Result<(), ExecEnded> {
        self.send(Control::Resize { rows, cols }).await
    }

    /// Kills the command and its child processes. Output that is not read within half a second is dropped.
    ///
    /// # Errors
    /// Fails when the command has ended.
    pub async fn kill(&self) -> Result<(), ExecEnded> {
        self.send(Control::Kill).await
    }

    /// Waits until the command has started. Does not return if the command cannot be started; [`ExecControl::ended`]
    /// returns then, so wait for both.
    pub async fn started(&self) {
        self.started.cancelled().await;
    }

    /// Whether the command has ended.
    pub fn has_ended(&self) -> bool {
        self.controls.is_closed()
    }

    /// Waits until the command has ended.
    pub async fn ended(&self) {
        self.controls.closed().await;
    }

    async fn send(&self, control: Control) -> Result<(), ExecEnded> {
        self.controls.send(control).await.map_err(|_| ExecEnded)
    }
}
