//! A user's home of its own for each test: nothing of one test is seen by another, or by the real home.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{self, Process};
use crate::{Finished, Invocation, User, fixtures, host, listing, wait_for};

/// How long processes may take to be gone when nobody waits for them.
const GONE_DEADLINE: Duration = Duration::from_secs(60);

/// Most of one log that a failed test prints, in bytes.
const LOG_TAIL: usize = 8 * 1024;

/// Variables of the caller's that every call is given: how this host makes guests.
const PASSED_ON: [&str; 2] = ["PATH", "MICROAGENT_ACCEL"];

/// A user with an empty home.
#[derive(Debug)]
pub struct Home {
    user: User,
    program: PathBuf,
    dir: TempDir,
}

impl Home {
    /// An empty home of this user.
    #[track_caller]
    pub fn new(user: User) -> Home {
        let dir = tempfile::Builder::new().prefix("microagent-test-").tempdir();
        let dir = dir.unwrap_or_else(|e| panic!("cannot make a home: {e}"));
        user.own(dir.path());
        let mut home = Home { user, program: PathBuf::new(), dir };
        home.program = home.published(&program());
        home
    }

    /// The home directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The state directory that is used unless a call says otherwise.
    pub fn state(&self) -> PathBuf {
        self.path().join(".microagent")
    }

    /// The directory of a workspace.
    pub fn workspace(&self, name: &str) -> PathBuf {
        self.state().join("workspaces").join(name)
    }

    /// Begins a call of `microagent`.
    pub fn call(&self) -> Invocation<'_> {
        Invocation::new(self, self.command(&self.program))
    }

    /// Begins a call of `microagent` with these words.
    pub fn microagent<const N: usize>(&self, words: [&str; N]) -> Invocation<'_> {
        self.call().args(words)
    }

    /// Begins a call of `microagent run`, of an image that is a fixture.
    pub fn run<const N: usize>(&self, image: &str, options: [&str; N], words: &[&str]) -> Invocation<'_> {
        self.call().arg("run").args(options).arg(self.image(image)).args(words)
    }

    /// Makes an isolated workspace from busybox.
    #[track_caller]
    pub fn create<const N: usize>(&self, name: &str, options: [&str; N]) -> Finished {
        let create = ["create", name, "--network", "isolated", "--image", &self.image("busybox")];
        self.microagent(create).args(options).success()
    }

    /// Runs a shell line in a disposable, isolated guest from busybox; the line must succeed.
    #[track_caller]
    pub fn sh(&self, options: &[&str], line: &str) -> Finished {
        let run = self.microagent(["run", "--network", "isolated"]).args(options);
        let run = run.args(["--exec", line, &self.image("busybox")]).success();
        assert_eq!(run.summary("Exit code"), "0", "{}", run.told());
        run
    }

    /// Begins a call of another program, in the same environment and as the same user.
    pub fn other(&self, program: &str) -> Invocation<'_> {
        Invocation::new(self, self.command(Path::new(program)))
    }

    /// Begins a call of `microagent` as this user on a host that `mounts` has changed, a line for a shell of root. Only
    /// root can change a host; nobody else sees it.
    pub fn on_host(&self, mounts: &str) -> Invocation<'_> {
        let line = format!("set -e; {mounts}; exec \"$@\"");
        let call = Invocation::new(self, self.command_of(Path::new("unshare")));
        call.args(["--mount", "sh", "-c", &line, "sh"]).args(self.user.prefix()).arg(&self.program)
    }

    /// The `microagent` binary.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A call as the system takes it, for those that need more than an [`Invocation`].
    pub(crate) fn command_line(&self, words: &[&str]) -> Command {
        let mut command = self.command(&self.program);
        command.args(words);
        command
    }

    /// The words and the environment with which another program starts `microagent` as this home's user.
    pub(crate) fn server_line(&self, words: &[&str]) -> (Vec<String>, BTreeMap<String, String>) {
        let command = self.command_of(&self.program);
        let utf8 = |text: &OsStr| text.to_str().expect("test paths are UTF-8").to_owned();
        let environment =
            command.get_envs().filter_map(|(name, value)| Some((utf8(name), utf8(value?)))).collect();
        let mut line = self.user.prefix();
        line.push(utf8(self.program.as_os_str()));
        line.extend(words.iter().map(|&word| word.to_owned()));
        (line, environment)
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = self.command_of(program);
        self.user.apply(&mut command);
        command
    }

    /// A call by the user who runs the tests.
    fn command_of(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", self.path()).current_dir(self.path());
        for name in PASSED_ON {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    /// A fixture image as the reference of an OCI layout that this user can read.
    pub fn image(&self, name: &str) -> String {
        let layout = self.published(&fixtures::layout(name));
        format!("oci:{}:{}", layout.to_str().expect("test paths are UTF-8"), fixtures::TAG)
    }

    /// A copy of a fixture image with another configuration, as `umoci config` takes it.
    #[track_caller]
    pub fn configured_image(&self, name: &str, config: &[&str]) -> String {
        let layout = self.path().join(format!("{name}-configured"));
        host::must("cp", &["-a", "--", &text(&fixtures::layout(name)), &text(&layout)]);
        let image = format!("{}:{}", text(&layout), fixtures::TAG);
        host::must("umoci", &[&["config", "--image", &image], config].concat());
        host::must("chmod", &["-R", "a+rX", &text(&layout)]);
        format!("oci:{image}")
    }

    /// Writes a file into the home and gives its path.
    #[track_caller]
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, content).unwrap_or_else(|e| panic!("cannot write `{}`: {e}", path.display()));
        self.user.own(&path);
        path
    }

    /// Makes a directory in the home and gives its path.
    #[track_caller]
    pub fn make_dir(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir(&path).unwrap_or_else(|e| panic!("cannot make `{}`: {e}", path.display()));
        self.user.own(&path);
        path
    }

    /// The path itself if this user can read it, else that of a copy in the home.
    #[track_caller]
    pub fn published(&self, path: &Path) -> PathBuf {
        let open = |path: &Path| {
            fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o005 == 0o005)
        };
        let file_open =
            |path: &Path| fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0);
        let closed = !file_open(path)
            || !path.ancestors().skip(1).all(open)
            || listing::listing(path).keys().any(|path| !file_open(path));
        if self.user == User::Caller || !closed {
            return path.to_owned();
        }
        let copy = self.path().join(".fixtures").join(path.file_name().expect("a fixture has a name"));
        if !copy.exists() {
            fs::create_dir_all(copy.parent().expect("the copy lies in the home"))
                .expect("the home is writable");
            host::must("cp", &["-a", "--no-preserve=ownership", "--", &text(path), &text(&copy)]);
            host::must("chmod", &["-R", "a+rX", &text(copy.parent().expect("the copy lies in the home"))]);
        }
        copy
    }

    /// Removes a directory that may be written to at the same time.
    #[track_caller]
    pub fn remove_dir(&self, path: &Path) {
        wait_for("the directory to be removed", GONE_DEADLINE, || match fs::remove_dir_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        });
    }

    /// All processes that belong to this home.
    pub fn processes(&self) -> Vec<Process> {
        process::of_dir(self.path())
    }

    /// Fails the test unless all processes go away by themselves.
    #[track_caller]
    pub fn processes_end(&self) {
        let since = process::own_start_time();
        wait_for("all processes to end", GONE_DEADLINE, || {
            let left = [self.processes(), process::orphaned_network_stacks(since)].concat();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    }

    /// Names of the workspaces on disk.
    pub fn workspaces(&self) -> Vec<String> {
        names_in(&self.state().join("workspaces"))
    }

    /// Fails the test unless processes, workspaces, half-made files and sockets are all gone. Caches stay.
    #[track_caller]
    pub fn nothing_is_left(&self) {
        self.processes_end();
        wait_for("workspaces to be removed", GONE_DEADLINE, || {
            let left = [self.workspaces(), names_in(&self.state().join("tmp"))].concat();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        assert_eq!(listing::channels(self.path()), Vec::<PathBuf>::new(), "sockets are left");
        assert_eq!(self.microagent(["list"]).success().text(), "No workspaces.\n");
    }

    /// Fails the test unless all processes are gone, and all workspaces but these.
    #[track_caller]
    pub fn nothing_but(&self, workspaces: &[&str]) {
        self.processes_end();
        assert_eq!(self.workspaces(), workspaces);
    }

    /// The state that `list` shows for a workspace.
    #[track_caller]
    pub fn state_of(&self, name: &str) -> String {
        let list = self.microagent(["list"]).success();
        let row = list.text().lines().find(|line| line.split_whitespace().next() == Some(name));
        let state = row.and_then(|row| row.split_whitespace().nth(1));
        state.unwrap_or_else(|| panic!("no row for {name}\n{}", list.told())).to_owned()
    }

    /// Waits until a log of a workspace has this text.
    #[track_caller]
    pub fn log_has(&self, workspace: &str, log: &str, text: &str) {
        let path = self.workspace(workspace).join("machine").join(log);
        wait_for(&format!("`{text}` in {log}"), Duration::from_secs(120), || {
            let seen =
                fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
            if seen.contains(text) { Ok(()) } else { Err(tail(&seen).to_owned()) }
        });
    }

    /// The end of all logs of all workspaces.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for workspace in self.workspaces() {
            for log in ["state.json", "console.log", "offline.log", "vmm.log", "supervisor.log"] {
                let Ok(bytes) = fs::read(self.workspace(&workspace).join("machine").join(log)) else {
                    continue;
                };
                let _ = writeln!(text, "--- {workspace}/{log}\n{}", tail(&String::from_utf8_lossy(&bytes)));
            }
        }
        text
    }
}

impl Drop for Home {
    #[expect(clippy::print_stderr, reason = "a failed test shows the logs")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
            for process in self.processes() {
                process.signal(Signal::KILL);
            }
        }
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("test paths are UTF-8").to_owned()
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(LOG_TAIL);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The binary beside the test: `target/PROFILE/microagent`, where the test is `target/PROFILE/deps/NAME`.
#[track_caller]
fn program() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this program is known");
    let profile = test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps");
    let program = profile.join("microagent");
    assert!(
        program.is_file(),
        "`{}` is missing: build it first (cargo build -p microagent-cli)",
        program.display()
    );
    program
}
