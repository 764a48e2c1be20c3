//! One call of `microagent`: how it is made, what came of it.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use crate::Home;
use crate::process::Process;
use crate::schema;

/// How long a call may take unless the test says otherwise: emulated guests on busy cores are slow.
const DEADLINE: Duration = Duration::from_secs(150);

/// Most output of a call that is kept; nothing sane prints more.
const OUTPUT_LIMIT: u64 = 1 << 30;

/// How long the pipes of a process that has ended may stay open.
const PIPE_PATIENCE: Duration = Duration::from_secs(5);

/// A call that is being put together.
#[derive(Debug)]
pub struct Invocation<'a> {
    home: &'a Home,
    command: Command,
    words: Vec<OsString>,
    stdin: Vec<u8>,
    stdin_stays: bool,
    stdout_is_read: bool,
    deadline: Duration,
}

impl<'a> Invocation<'a> {
    pub(crate) fn new(home: &'a Home, command: Command) -> Invocation<'a> {
        Invocation {
            home,
            command,
            words: Vec::new(),
            stdin: Vec::new(),
            stdin_stays: false,
            stdout_is_read: true,
            deadline: DEADLINE,
        }
    }

    /// Adds one word.
    #[must_use]
    pub fn arg(mut self, word: impl AsRef<OsStr>) -> Self {
        self.words.push(word.as_ref().to_owned());
        self
    }

    /// Adds words.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.words.extend(words.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// Sets a variable of its environment, which is empty but for `HOME` and `PATH`.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Starts it in another directory than the user's home.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Feeds its standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Feeds its standard input and leaves it open, as somebody does who has more to say later.
    #[must_use]
    pub fn stdin_kept_open(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin_stays = true;
        self.stdin(bytes)
    }

    /// Has nobody read its standard output, a pipe, until it has ended.
    #[must_use]
    pub fn stdout_unread(mut self) -> Self {
        self.stdout_is_read = false;
        self
    }

    /// Gives it more or less time than usual.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Starts it.
    #[track_caller]
    pub fn start(mut self) -> Running<'a> {
        // A process group of its own: what a terminal's Ctrl-C reaches.
        self.command.args(&self.words).process_group(0);
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            self.command.spawn().unwrap_or_else(|e| panic!("cannot start {:?}: {e}", self.command));
        let mut stdin = child.stdin.take().expect("standard input is a pipe");
        let (input, stays) = (self.stdin, self.stdin_stays);
        thread::spawn(move || {
            // A call that does not read its input is not wrong.
            let _ = stdin.write_all(&input);
            if stays {
                std::mem::forget(stdin);
            }
        });
        let out = child.stdout.take().expect("standard output is a pipe");
        let (stdout, unread) = match self.stdout_is_read {
            true => (collect(out), None),
            false => (collect(std::io::empty()), Some(out)),
        };
        let stderr = collect(child.stderr.take().expect("standard error is a pipe"));
        let end = Instant::now() + self.deadline;
        Running { home: self.home, words: self.words, child, stdout, unread, stderr, end, done: false }
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(self) -> Finished {
        self.start().finish()
    }

    /// Runs it to its end, which must be a bad one.
    #[track_caller]
    pub fn failure(self) -> Finished {
        self.run().failure()
    }

    /// Runs it to its end, which must be a good one.
    #[track_caller]
    pub fn success(self) -> Finished {
        self.run().code(0)
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.by_ref().take(OUTPUT_LIMIT).read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// A call that was started. Dropped, it is killed.
#[derive(Debug)]
pub struct Running<'a> {
    home: &'a Home,
    words: Vec<OsString>,
    child: Child,
    stdout: Receiver<Vec<u8>>,
    /// The pipe that nobody reads.
    unread: Option<ChildStdout>,
    stderr: Receiver<Vec<u8>>,
    end: Instant,
    done: bool,
}

impl Running<'_> {
    /// Sends a signal to the process group, as a terminal would.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process_group(Pid::from_child(&self.child), signal);
    }

    /// Kills it as nobody should, and waits for its end.
    #[track_caller]
    pub fn kill(self) -> Finished {
        self.signal(Signal::KILL);
        let finished = self.finish();
        assert_eq!(
            finished.status.signal(),
            Some(Signal::KILL.as_raw()),
            "it ended by itself\n{}",
            finished.told()
        );
        finished
    }

    /// Waits until nothing more goes into the pipe that nobody reads.
    #[track_caller]
    pub fn stalls(&self) {
        let pipe = self.unread.as_ref().expect("nobody reads its output");
        let room = rustix::pipe::fcntl_getpipe_size(pipe).expect("it is a pipe") as u64;
        let mut before = 0;
        crate::wait_for("a full pipe", Duration::from_secs(60), || {
            let waiting = rustix::io::ioctl_fionread(pipe).expect("it is a pipe");
            // Its pages need not be full.
            let is_full = waiting > room / 2 && waiting == before;
            before = waiting;
            if is_full { Ok(()) } else { Err(waiting) }
        });
    }

    /// Whether it has ended.
    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().expect("the child is of this process").is_some()
    }

    /// The supervisor of its machine, once there is one.
    #[track_caller]
    pub fn supervisor(&self) -> Process {
        self.descendant("a supervisor", Process::is_supervisor)
    }

    /// Its machine, once there is one.
    #[track_caller]
    pub fn qemu(&self) -> Process {
        self.descendant("QEMU", Process::is_qemu)
    }

    /// The process of its home that `wanted` is true for.
    #[track_caller]
    pub fn descendant(&self, what: &str, wanted: impl Fn(&Process) -> bool) -> Process {
        crate::wait_for(what, Duration::from_secs(60), || {
            let processes = self.home.processes();
            processes.iter().find(|process| wanted(process)).cloned().ok_or(processes)
        })
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        let status = loop {
            match self.child.try_wait().expect("the child is of this process") {
                Some(status) => break status,
                None if Instant::now() >= self.end => self.expire(),
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        self.done = true;
        let [stdout, stderr] =
            [&self.stdout, &self.stderr].map(|pipe| match pipe.recv_timeout(PIPE_PATIENCE) {
                Ok(bytes) => bytes,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => panic!(
                    "{:?} has ended, but somebody keeps its pipes open: {:#?}",
                    self.words,
                    self.home.processes()
                ),
            });
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        Finished { words: std::mem::take(&mut self.words), status, stdout, stderr }
    }

    /// The time is up: what is known now, before everything is killed.
    #[track_caller]
    fn expire(&mut self) -> ! {
        let processes = self.home.processes();
        self.signal(Signal::KILL);
        let [stdout, stderr] = [&self.stdout, &self.stderr].map(|pipe| {
            String::from_utf8_lossy(&pipe.recv_timeout(PIPE_PATIENCE).unwrap_or_default()).into_owned()
        });
        panic!(
            "{:?} did not end in time\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n--- processes\n{processes:#?}",
            self.words
        )
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.signal(Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// A call that has ended.
#[derive(Debug, Clone)]
pub struct Finished {
    words: Vec<OsString>,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed on standard output.
    pub stdout: Vec<u8>,
    /// What it printed on standard error.
    pub stderr: String,
}

impl Finished {
    /// Fails the test unless it exited with this code.
    #[track_caller]
    pub fn code(self, code: i32) -> Finished {
        assert_eq!(self.status.code(), Some(code), "exit code\n{}", self.told());
        self
    }

    /// Fails the test unless it failed, that is exited with another code than 0.
    #[track_caller]
    pub fn failure(self) -> Finished {
        let failed = self.status.code().is_some_and(|code| code != 0) && self.status.signal().is_none();
        assert!(failed, "it should have failed\n{}", self.told());
        self
    }

    /// Standard output as text.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout)
            .unwrap_or_else(|_| panic!("standard output is not text\n{}", self.told()))
    }

    /// The one JSON document on standard output, which must be as the schema of its command says.
    #[track_caller]
    pub fn json(&self) -> Value {
        let document = serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("no JSON document: {e}\n{}", self.told()));
        if let Some(faults) = schema::faults_of_call(&self.words, &document) {
            panic!("the document is not as its schema says:\n{faults}\n{}", self.told());
        }
        document
    }

    /// The JSON document on standard error that an error is with `--json`: its last line.
    #[track_caller]
    pub fn json_error(&self) -> Value {
        let line = self.stderr.lines().last().unwrap_or_default();
        let document =
            serde_json::from_str(line).unwrap_or_else(|e| panic!("no JSON error: {e}\n{}", self.told()));
        if let Some(faults) = schema::faults("error", &document) {
            panic!("the error is not as its schema says:\n{faults}\n{}", self.told());
        }
        document
    }

    /// What the guest printed: all after the blank line that ends the summary.
    #[track_caller]
    pub fn guest_output(&self) -> &str {
        match self.text().split_once("\n\n") {
            Some((_, output)) => output,
            None => panic!("no summary with a blank line after it\n{}", self.told()),
        }
    }

    /// The value of a line of the summary.
    #[track_caller]
    pub fn summary(&self, key: &str) -> &str {
        let prefix = format!("{key}: ");
        let value = self
            .text()
            .lines()
            .take_while(|line| !line.is_empty())
            .find_map(|line| line.strip_prefix(&prefix));
        value.unwrap_or_else(|| panic!("no line `{key}:` in the summary\n{}", self.told()))
    }

    /// The workspace that the hint of an error names: one that failed and is kept for its logs.
    #[track_caller]
    pub fn failed_workspace(&self) -> &str {
        let name =
            self.stderr.split_once("microagent logs ").and_then(|(_, rest)| rest.split_whitespace().next());
        let name = name.map(|name| name.trim_end_matches(';'));
        name.unwrap_or_else(|| panic!("no hint names a workspace\n{}", self.told()))
    }

    /// Fails the test unless standard error has this text.
    #[track_caller]
    pub fn says(self, text: &str) -> Finished {
        assert!(self.stderr.contains(text), "standard error should say `{text}`\n{}", self.told());
        self
    }

    /// Everything that is known, for the message of a failed test.
    pub fn told(&self) -> String {
        let stdout = String::from_utf8_lossy(&self.stdout);
        format!("{:?}: {}\n--- stdout\n{stdout}\n--- stderr\n{}", self.words, self.status, self.stderr)
    }
}
