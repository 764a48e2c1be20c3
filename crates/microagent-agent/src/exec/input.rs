//! What the host sends to a running command: input, sizes, signals.
//!
//! Input waits here for the command, at most [`STDIN_WINDOW`] of it; the rest waits at the host. So a
//! command that does not read holds up nothing else: not its signals, not its output, not its end.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use microagent_proto::{ExecInput, INPUT_LIMIT, MessageReader, STDIN_WINDOW};
use rustix::io::retry_on_intr;
use rustix::process::Pid;
use rustix::termios::{SpecialCodeIndex, tcgetattr, tcgetpgrp};
use tokio::io::AsyncRead;
use tokio::sync::Notify;

use super::Group;
use super::streams::{End, Terminal};
use crate::console;
use crate::reaper::Reaper;
use crate::sys;

/// How much a command takes before the host is told, unless it has taken all: news of every little bit would cost
/// more than the bits.
const NEWS_LEN: usize = STDIN_WINDOW / 4;

/// The host's side of a running command.
#[derive(Debug)]
pub(super) struct Input {
    terminal: Option<Terminal>,
    queue: Mutex<Queue>,
    /// Told when the queue has something new.
    filled: Notify,
    /// Told when the command has taken something.
    taken: Notify,
    killed: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: VecDeque<u8>,
    /// Nothing follows what is in the queue.
    ended: bool,
    /// Nobody takes anything any more; what comes is dropped.
    closed: bool,
    /// Bytes that were taken and that the host was not told of.
    untold: u32,
}

impl Queue {
    /// Whether the host should be told what was taken.
    fn has_news(&self) -> bool {
        self.untold as usize >= NEWS_LEN || (self.untold > 0 && self.bytes.is_empty())
    }
}

/// Whom signals and kills reach.
#[derive(Debug)]
pub(super) struct Target<'a> {
    pub(super) pid: Pid,
    pub(super) reaper: &'a Reaper,
    pub(super) group: &'a Group,
}

impl Input {
    /// For a command on this terminal, if it has one, that takes input or not.
    pub(super) fn new(terminal: Option<Terminal>, takes_input: bool) -> Input {
        let queue = Queue { closed: !takes_input, ..Queue::default() };
        Input {
            terminal,
            queue: Mutex::new(queue),
            filled: Notify::new(),
            taken: Notify::new(),
            killed: AtomicBool::new(false),
        }
    }

    /// Takes what the host sends. Ends when the host is gone or breaks the rules.
    pub(super) async fn listen(&self, from_host: impl AsyncRead + Unpin, target: Target<'_>) {
        let mut messages = MessageReader::new(from_host, INPUT_LIMIT);
        loop {
            match messages.next::<ExecInput>().await {
                Ok(Some(ExecInput::Stdin(bytes))) => {
                    if !self.enqueue(&bytes) {
                        return console::say("the host sent more input than it may");
                    }
                }
                Ok(Some(ExecInput::End)) => {
                    self.queue().ended = true;
                    self.filled.notify_one();
                }
                Ok(Some(ExecInput::Resize { rows, cols })) => self.resize(rows, cols),
                Ok(Some(ExecInput::Signal(signal))) => self.signal(signal, &target),
                Ok(Some(ExecInput::Kill)) => {
                    self.killed.store(true, Ordering::Relaxed);
                    target.group.kill(target.reaper);
                }
                Ok(None) => return,
                Err(error) => return console::say_error("a command's input could not be read", &error),
            }
        }
    }

    /// Passes the queue on to the command, and closes its end after that. Never ends.
    pub(super) async fn pump(&self, sink: &mut Option<End>) {
        if let Some(open) = sink
            && self.pass_on(open).await.is_ok()
        {
            self.close(open).await;
        }
        *sink = None;
        {
            let mut queue = self.queue();
            queue.closed = true;
            queue.bytes = VecDeque::new();
        }
        std::future::pending().await
    }

    /// Waits until the command has taken input that the host was not told of; says how much.
    pub(super) async fn taken(&self) -> u32 {
        loop {
            {
                let mut queue = self.queue();
                if queue.has_news() {
                    return std::mem::take(&mut queue.untold);
                }
            }
            self.taken.notified().await;
        }
    }

    /// Whether the host had the command killed.
    pub(super) fn was_killed(&self) -> bool {
        self.killed.load(Ordering::Relaxed)
    }

    fn enqueue(&self, bytes: &[u8]) -> bool {
        let mut queue = self.queue();
        if queue.closed || queue.ended {
            return true;
        }
        if queue.bytes.len() + queue.untold as usize + bytes.len() > STDIN_WINDOW {
            return false;
        }
        queue.bytes.extend(bytes);
        drop(queue);
        self.filled.notify_one();
        true
    }

    /// Writes until everything is written and nothing follows. Fails when the command has closed its end.
    async fn pass_on(&self, sink: &End) -> std::io::Result<()> {
        loop {
            let (empty, ended) = {
                let queue = self.queue();
                (queue.bytes.is_empty(), queue.ended)
            };
            match (empty, ended) {
                (true, true) => return Ok(()),
                (true, false) => self.filled.notified().await,
                (false, _) => {
                    sink.write(|fd| {
                        let mut queue = self.queue();
                        let bytes = queue.bytes.as_slices().0;
                        let count = retry_on_intr(|| rustix::io::write(fd, bytes))?;
                        queue.bytes.drain(..count);
                        queue.untold += u32::try_from(count).expect("no more than the window");
                        Ok(count)
                    })
                    .await?;
                    if self.queue().has_news() {
                        self.taken.notify_one();
                    }
                }
            }
        }
    }

    /// Ends the command's input. A pipe ends with its last descriptor; a terminal has a key for it.
    async fn close(&self, sink: &End) {
        let Some(terminal) = &self.terminal else { return };
        let Ok(modes) = tcgetattr(terminal.master.fd()) else { return };
        let key = [modes.special_codes[SpecialCodeIndex::VEOF]];
        // A terminal that is hung up needs no end.
        let _ = sink.write(|fd| Ok(retry_on_intr(|| rustix::io::write(fd, &key))?)).await;
    }

    fn resize(&self, rows: u16, cols: u16) {
        if let Some(terminal) = &self.terminal
            && let Err(error) = terminal.resize(rows, cols)
        {
            console::say_error("cannot resize a terminal", &error);
        }
    }

    fn signal(&self, signal: u8, target: &Target<'_>) {
        if !sys::is_signal(signal) {
            return;
        }
        let foreground = self.terminal.as_ref().and_then(|terminal| tcgetpgrp(terminal.master.fd()).ok());
        let reached = foreground.is_some_and(|group| {
            group != target.pid && sys::kill_group(group.as_raw_nonzero().get(), signal.into())
        });
        if !reached {
            target.reaper.signal(target.pid, signal);
        }
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder of the lock panics")
    }
}
