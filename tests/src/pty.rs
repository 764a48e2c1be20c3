//! A call on a terminal of its own: what a person sees and types.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionread;
use rustix::process::{Pid, Signal, ioctl_tiocsctty, kill_process, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::{Home, wait_for};

/// How long something may take to be shown, or a call to end: a guest may have to boot for it.
const DEADLINE: Duration = Duration::from_secs(120);

/// Bytes that a terminal holds for its reader (`N_TTY_BUF_SIZE`).
const TERMINAL_BYTES: u64 = 4096;

/// A call of `microagent` on a terminal.
#[derive(Debug)]
pub struct Pty {
    child: Child,
    terminal: File,
    shown: Receiver<Vec<u8>>,
    /// What has been shown and not yet been looked at.
    seen: String,
}

impl Pty {
    /// Starts a call on a terminal with so many lines and columns.
    #[track_caller]
    pub fn start(home: &Home, words: &[&str], size: (u16, u16)) -> Pty {
        let mut pty = Pty::start_unread(home, words, size);
        let (sender, shown) = channel();
        let mut reader = pty.terminal.try_clone().expect("a descriptor more");
        thread::spawn(move || {
            let mut buffer = vec![0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        pty.shown = shown;
        pty
    }

    /// Starts a call on a terminal that shows nothing: nobody reads what is written to it.
    #[track_caller]
    pub fn start_unread(home: &Home, words: &[&str], (rows, cols): (u16, u16)) -> Pty {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("there are terminals");
        grantpt(&terminal).and_then(|()| unlockpt(&terminal)).expect("the terminal was just opened");
        let name = ptsname(&terminal, Vec::new()).expect("it has a name");
        let name = name.into_string().expect("names of terminals are ASCII");
        let end = || -> OwnedFd {
            let end = File::options().read(true).write(true).open(&name);
            end.expect("the other end can be opened").into()
        };
        let mut command = home.command_line(words);
        command.stdin(Stdio::from(end())).stdout(Stdio::from(end())).stderr(Stdio::from(end()));
        command.env("TERM", "xterm");
        set_controlling_terminal(&mut command);
        let terminal = File::from(terminal);
        resize(&terminal, rows, cols);
        let child = command.spawn().expect("the call can be started");
        // Ours would keep the terminal alive after the call's end.
        drop(command);
        Pty { child, terminal, shown: channel().1, seen: String::new() }
    }

    /// Waits until nothing more goes to a terminal that nobody reads.
    #[track_caller]
    pub fn stalls(&self) {
        let mut before = 0;
        wait_for("a full terminal", DEADLINE, || {
            let waiting = ioctl_fionread(&self.terminal).expect("it is a terminal");
            let is_full = waiting > TERMINAL_BYTES / 2 && waiting == before;
            before = waiting;
            if is_full { Ok(()) } else { Err(waiting) }
        });
    }

    /// Types.
    #[track_caller]
    pub fn types(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).expect("the terminal takes what is typed");
    }

    /// Gives the terminal another size.
    #[track_caller]
    pub fn resize(&self, rows: u16, cols: u16) {
        resize(&self.terminal, rows, cols);
    }

    /// Waits until this is shown, after what was waited for before.
    #[track_caller]
    pub fn shows(&mut self, text: &str) {
        let (shown, seen) = (&self.shown, &mut self.seen);
        wait_for(&format!("`{text}` on the terminal"), DEADLINE, || {
            while let Ok(bytes) = shown.try_recv() {
                seen.push_str(&String::from_utf8_lossy(&bytes));
            }
            match seen.find(text) {
                Some(at) => {
                    seen.drain(..at + text.len());
                    Ok(())
                }
                None => Err(seen.clone()),
            }
        });
    }

    /// Whether keys are echoed by the terminal itself, as outside of raw mode.
    #[track_caller]
    pub fn echoes(&self) -> bool {
        let modes = tcgetattr(&self.terminal).expect("a terminal has modes");
        modes.local_modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }

    /// Waits until the terminal is as it was before a session.
    #[track_caller]
    pub fn restored(&self) {
        wait_for("the terminal's modes", DEADLINE, || if self.echoes() { Ok(()) } else { Err(()) });
    }

    /// Sends the call a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the call is running");
    }

    /// Waits for the end; gives the exit code.
    #[track_caller]
    pub fn finish(mut self) -> i32 {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("the child is of this process") {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < end, "it did not end; the terminal shows {:?}", self.seen);
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn resize(terminal: &File, rows: u16, cols: u16) {
    let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("a terminal has a size");
}

/// Makes standard input the terminal of a session of its own, as a login does.
#[allow(unsafe_code, reason = "the hook between fork and exec")]
fn set_controlling_terminal(command: &mut Command) {
    // SAFETY: between fork and exec only two plain system calls are made.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        });
    }
}
