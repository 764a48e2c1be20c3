//! A command's standard streams: three pipes, or one terminal. The agent's ends never block.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use microagent_proto::Exec;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::spawn::ChildStreams;
use crate::sys;

/// Most that a terminal can hold of what was written to it, in bytes: the kernel bounds its buffer at less.
const TERMINAL_BUFFER: usize = 64 * 1024;

/// The agent's end of a pipe or a terminal.
#[derive(Debug, Clone)]
pub(super) struct End(Arc<AsyncFd<OwnedFd>>);

impl End {
    fn new(fd: OwnedFd) -> io::Result<End> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(End(Arc::new(sys::watch(fd)?)))
    }

    /// Reads what there is; 0 bytes at the end. Can be dropped without a loss.
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = |fd: &OwnedFd| Ok(rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut *buffer))?);
        self.0.async_io(Interest::READABLE, read).await
    }

    /// Calls `write` as soon as there is room, until it writes something or fails.
    pub(super) async fn write(&self, write: impl FnMut(&OwnedFd) -> io::Result<usize>) -> io::Result<usize> {
        self.0.async_io(Interest::WRITABLE, write).await
    }

    /// The descriptor itself.
    pub(super) fn fd(&self) -> &OwnedFd {
        self.0.get_ref()
    }
}

/// The agent's ends of a command's standard streams.
#[derive(Debug)]
pub(super) struct Streams {
    /// Takes input, if the command is given any.
    pub(super) input: Option<End>,
    pub(super) output: Output,
    pub(super) terminal: Option<Terminal>,
}

/// A terminal, seen from its controlling side.
#[derive(Debug, Clone)]
pub(super) struct Terminal {
    pub(super) master: End,
    /// Held open, so that a program that closes its streams for a moment does not end the terminal.
    _peer: Arc<OwnedFd>,
}

impl Terminal {
    /// Tells the terminal, and the programs on it, its size.
    pub(super) fn resize(&self, rows: u16, cols: u16) -> io::Result<()> {
        Ok(tcsetwinsize(self.master.fd(), size(rows, cols))?)
    }
}

fn size(rows: u16, cols: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Makes the streams that a request asks for: the agent's ends and the child's.
pub(super) fn make(exec: &Exec) -> io::Result<(Streams, ChildStreams)> {
    let Some(wanted) = &exec.terminal else { return pipes(exec.stdin) };
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    unlockpt(&master)?;
    let peer = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    let mut modes = tcgetattr(&peer)?;
    // The key that erases takes a whole character and not its last byte.
    modes.input_modes |= InputModes::IUTF8;
    tcsetattr(&peer, OptionalActions::Now, &modes)?;
    tcsetwinsize(&master, size(wanted.rows, wanted.cols))?;
    let master = End::new(master)?;
    let child = ChildStreams::Terminal(peer.try_clone()?);
    let output = Output { stdout: Some(Source::Terminal(master.clone())), stderr: None };
    let input = exec.stdin.then(|| master.clone());
    Ok((Streams { input, output, terminal: Some(Terminal { master, _peer: Arc::new(peer) }) }, child))
}

/// Pipes, for standard input only if there is any.
pub(super) fn pipes(with_stdin: bool) -> io::Result<(Streams, ChildStreams)> {
    let (child_stdin, input) = if with_stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        (Some(read), Some(End::new(write)?))
    } else {
        (None, None)
    };
    let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let output = Output {
        stdout: Some(Source::Pipe(End::new(stdout)?)),
        stderr: Some(Source::Pipe(End::new(stderr)?)),
    };
    let child = ChildStreams::Pipes { stdin: child_stdin, stdout: child_stdout, stderr: child_stderr };
    Ok((Streams { input, output, terminal: None }, child))
}

/// Where output comes from.
#[derive(Debug)]
pub(super) enum Source {
    Pipe(End),
    Terminal(End),
}

impl Source {
    fn end(&self) -> &End {
        match self {
            Source::Pipe(end) | Source::Terminal(end) => end,
        }
    }

    /// Bounds what can be in it now, in bytes.
    pub(super) fn backlog(&self) -> usize {
        match self {
            Source::Pipe(end) => rustix::io::ioctl_fionread(end.fd())
                .map_or(0, |left| usize::try_from(left).unwrap_or(usize::MAX)),
            // The kernel counts only a part of it; a read finds the rest.
            Source::Terminal(_) => TERMINAL_BUFFER,
        }
    }

    /// Reads without waiting; `None` when there is nothing.
    pub(super) fn read_now(&self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            match rustix::io::read(self.end().fd().as_fd(), &mut *buffer) {
                Ok(count) => return (count > 0).then_some(count),
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }
}

/// Standard output and error; `None` after their end. A terminal's output is all in the first.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) stdout: Option<Source>,
    pub(super) stderr: Option<Source>,
}

impl Output {
    /// Whether something may still come, through pipes that background processes hold.
    pub(super) fn has_open_pipe(&self) -> bool {
        [&self.stdout, &self.stderr].into_iter().any(|source| matches!(source, Some(Source::Pipe(_))))
    }

    /// Takes what background processes still write, so that they neither block nor die of it.
    pub(super) async fn discard(mut self) {
        let mut buffers = [vec![0; 4096], vec![0; 4096]];
        let [out, err] = &mut buffers;
        while self.has_open_pipe() {
            tokio::select! {
                _ = read_some(&mut self.stdout, out) => {}
                _ = read_some(&mut self.stderr, err) => {}
            }
        }
    }
}

/// Reads at least one byte; gives 0 when the source ends, and is pending for ever after that.
pub(super) async fn read_some(source: &mut Option<Source>, buffer: &mut [u8]) -> usize {
    let Some(open) = source else { return std::future::pending().await };
    match open.end().read(buffer).await {
        Ok(count) if count > 0 => count,
        Ok(_) | Err(_) => {
            *source = None;
            0
        }
    }
}
