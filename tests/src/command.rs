//! One call of `microagent`: how it is made, what came of it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use crate::Home;
use crate::process::Process;
use crate::schema;

/// How long a call may take unless the test says otherwise: emulated guests on busy cores are slow.
const DEADLINE: Duration = Duration::from_secs(150);

/// Most output of a call that is kept; nothing sane prints more.
const OUTPUT_LIMIT: u64 = 1 << 30;

/// Bytes that a pipe takes when it is empty.
const FITS_EVERY_PIPE: usize = 4096;

/// How long the pipes of a process that has ended may stay open.
const PIPE_PATIENCE: Duration = Duration::from_secs(30);

/// How long a call may take to come to something that it does on its way: it may boot a guest before.
const STEP_DEADLINE: Duration = Duration::from_secs(120);

/// How long a guest has at least to show that it follows a signal.
const SIGNAL_PATIENCE: Duration = Duration::from_millis(600);

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
        let (input, mut stdin) = std::io::pipe().expect("there are pipes");
        self.command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        // What fits the pipe is there before the call is.
        let (first, rest) = self.stdin.split_at(self.stdin.len().min(FITS_EVERY_PIPE));
        stdin.write_all(first).expect("an empty pipe takes a page");
        let mut child =
            self.command.spawn().unwrap_or_else(|e| panic!("cannot start {:?}: {e}", self.command));
        let (rest, stays) = (rest.to_vec(), self.stdin_stays);
        thread::spawn(move || {
            // A call that does not read its input is not wrong.
            let _ = stdin.write_all(&rest);
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

/// What comes out of a pipe, as it comes.
#[derive(Debug)]
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    ended: Receiver<()>,
}

impl Collected {
    fn text_so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// All of it, once the pipe is closed; none if that takes too long.
    fn whole(&self) -> Option<Vec<u8>> {
        self.ended.recv_timeout(PIPE_PATIENCE).ok()?;
        Some(std::mem::take(&mut self.bytes.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn collect(pipe: impl Read + Send + 'static) -> Collected {
    let (sender, ended) = channel();
    let bytes = Arc::<Mutex<Vec<u8>>>::default();
    let collected = Arc::clone(&bytes);
    thread::spawn(move || {
        let mut pipe = pipe.take(OUTPUT_LIMIT);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match pipe.read(&mut buffer) {
                Ok(count @ 1..) => collected
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
            }
        }
        let _ = sender.send(());
    });
    Collected { bytes, ended }
}

/// A call that was started. Dropped, it is killed.
#[derive(Debug)]
pub struct Running<'a> {
    home: &'a Home,
    words: Vec<OsString>,
    child: Child,
    stdout: Collected,
    /// The pipe that nobody reads.
    unread: Option<ChildStdout>,
    stderr: Collected,
    end: Instant,
    done: bool,
}

impl Running<'_> {
    /// Sends a signal to the process group, as a terminal would.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process_group(Pid::from_child(&self.child), signal);
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
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

    /// Waits until it has printed this on standard output.
    #[track_caller]
    pub fn prints(&self, text: &str) {
        crate::wait_for(&format!("`{text}` of {:?}", self.words), STEP_DEADLINE, || {
            let seen = [&self.stdout, &self.stderr].map(Collected::text_so_far);
            if seen[0].contains(text) { Ok(()) } else { Err(seen) }
        });
    }

    /// Waits until it has told this on standard error.
    #[track_caller]
    pub fn tells(&self, text: &str) {
        crate::wait_for(&format!("`{text}` from {:?}", self.words), STEP_DEADLINE, || {
            let seen = self.stderr.text_so_far();
            if seen.contains(text) { Ok(()) } else { Err(seen) }
        });
    }

    /// Waits until nothing more goes into the pipe that nobody reads.
    #[track_caller]
    pub fn stalls(&self) {
        let pipe = self.unread.as_ref().expect("nobody reads its output");
        // The other end, opened once more: it takes nothing as long as all pages of the pipe are in use.
        let end = File::options()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(format!("/proc/self/fd/{}", pipe.as_raw_fd()))
            .expect("a pipe can be opened by its name");
        let mut before = 0;
        crate::wait_for("a full pipe", STEP_DEADLINE, || {
            let mut ends = [PollFd::new(&end, PollFlags::OUT)];
            poll(&mut ends, Some(&rustix::time::Timespec::default())).expect("a pipe can be polled");
            let is_full = !ends[0].revents().contains(PollFlags::OUT);
            let waiting = rustix::io::ioctl_fionread(pipe).expect("it is a pipe");
            // The last page need not be full.
            let is_still = waiting == before;
            before = waiting;
            if is_full && is_still { Ok(()) } else { Err(waiting) }
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
        crate::wait_for(what, STEP_DEADLINE, || {
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
        let [stdout, stderr] = [&self.stdout, &self.stderr].map(|pipe| match pipe.whole() {
            Some(bytes) => bytes,
            None => panic!(
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
            let whole = pipe.whole().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            whole.unwrap_or_else(|| pipe.text_so_far())
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

    /// Fails the test unless it exited with this code, or as cancelled because its guest took too long over a signal that
    /// it was sent after `asked`: a command is ended whatever its guest does, as soon as that had its time.
    #[track_caller]
    pub fn code_or_cancelled(self, code: i32, asked: Instant) -> Finished {
        let cancelled = self.status.code() == Some(130) && asked.elapsed() >= SIGNAL_PATIENCE;
        assert!(cancelled || self.status.code() == Some(code), "exit code {code}\n{}", self.told());
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

    /// The objects on standard output that `--json=stream` prints, each of which must be as the schema of lines says.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        let lines = self.text().lines().map(|line| {
            assert!(
                line.starts_with(r#"{"type":""#),
                "the type does not come first: {line}\n{}",
                self.told()
            );
            let line = serde_json::from_str(line)
                .unwrap_or_else(|e| panic!("no JSON: {e}: {line}\n{}", self.told()));
            if let Some(faults) = schema::faults("stream", &line) {
                panic!("the line is not as its schema says:\n{faults}\n{line}\n{}", self.told());
            }
            line
        });
        lines.collect()
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
