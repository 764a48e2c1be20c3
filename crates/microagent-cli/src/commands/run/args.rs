//! The arguments of `run`, and how they become [`RunOptions`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::Error as ClapError;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueEnum};
use microagent::image::PullPolicy;
use microagent::{
    Artifact, NetworkMode, PROFILES, Profile, RunCommand, RunOptions, SetupStep, WorkspaceName,
};

use super::docker::{DockerFlags, refusal, refuse_network, refuse_volume};
use super::values::{cpus, duration, env_file, env_variable, memory_mib, output};
use crate::failure::Failure;

/// Largest setup script that is read; scripts are text.
const SETUP_FILE_LIMIT: u64 = 1024 * 1024;

const EXAMPLES: &str = "\
Examples:
  One command; the microVM and its disk are gone afterwards:
    microagent run docker.io/library/alpine:3.20 cat /etc/alpine-release

  Steps before it, in the same boot, and a shell line instead of words:
    microagent run --image debian:12 --setup 'apt-get update' \\
      --setup 'apt-get install -y jq' --exec 'jq --version'

  Get a file out of it:
    microagent run --keep --name report --image alpine:3.20 \\
      --output report=/srv/report.txt --exec 'date > /srv/report.txt'
    microagent artifact get report report ./report.txt
    microagent delete report --yes

  A program's view: one JSON document, the command's exit code passed through, at most a minute:
    microagent run --json --propagate-exit-code --timeout 60 alpine:3.20 sh -c 'exit 7'";

const LONG_ABOUT: &str = "\
Runs one command in a fresh microVM, prints how it ended and what it printed, and removes everything.

Options stand before IMAGE: all words after it belong to the guest. Without COMMAND the image's own \
Entrypoint and Cmd run. Exits with 0 when the run completed, whatever the command returned (see `Exit code:` \
or `result.exit_code`), unless --propagate-exit-code is given.";

/// Run one command in a fresh microVM
#[derive(Debug, Args)]
#[command(
    long_about = LONG_ABOUT,
    after_long_help = EXAMPLES,
    override_usage = "microagent run [OPTIONS] IMAGE [COMMAND [ARG]...]\n       \
        microagent run [OPTIONS] --image IMAGE [--exec STRING | COMMAND [ARG]...]"
)]
pub(crate) struct RunArgs {
    /// Image (unless --image names it), then the command and its arguments, all verbatim
    #[arg(value_name = "IMAGE COMMAND", trailing_var_arg = true)]
    words: Vec<String>,

    /// Image to run: a registry reference, `oci:DIR[:TAG]`, `oci-archive:FILE` or `docker-archive:FILE`
    #[arg(long, value_name = "IMAGE", help_heading = "What to run")]
    image: Option<String>,

    /// Shell line to run instead of words; the guest's /bin/sh evaluates it
    #[arg(long, value_name = "STRING", allow_hyphen_values = true, help_heading = "What to run")]
    exec: Option<String>,

    /// Program in place of the image's Entrypoint; COMMAND becomes its arguments
    #[arg(long, value_name = "PROGRAM", conflicts_with = "exec", help_heading = "What to run")]
    entrypoint: Option<String>,

    #[command(flatten)]
    setup: SetupArgs,

    /// Set a variable in the guest; without a value, pass the host's (repeatable)
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = "What to run")]
    env: Vec<String>,

    /// Read variables from a file of NAME=VALUE lines; --env wins (repeatable)
    #[arg(long, value_name = "FILE", help_heading = "What to run")]
    env_file: Vec<PathBuf>,

    /// User, or user and group, in place of the image's
    #[arg(short, long, value_name = "USER[:GROUP]", help_heading = "What to run")]
    user: Option<String>,

    /// Working directory in place of the image's
    #[arg(short, long, value_name = "DIR", help_heading = "What to run")]
    workdir: Option<String>,

    /// When to ask the registry: missing (only for what is not here), always, or never
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "missing",
        hide_possible_values = true,
        help_heading = "What to run"
    )]
    pull: Pull,

    /// Machine size to start from: tiny, small, medium or large (see `microagent profiles`)
    #[arg(long, value_name = "NAME", default_value = "small", value_parser = profile, help_heading = "Machine")]
    profile: Profile,

    /// Memory in MiB, or with a unit such as 512m or 2g
    #[arg(short, long, value_name = "MIB", value_parser = memory_mib, help_heading = "Machine")]
    memory: Option<u32>,

    /// Virtual CPUs
    #[arg(long, value_name = "N", value_parser = cpus, help_heading = "Machine")]
    cpus: Option<u32>,

    /// Size of the disk in MiB; it grows to fit the image
    #[arg(long, value_name = "MIB", help_heading = "Machine")]
    size_mib: Option<u64>,

    /// Network: user (outbound NAT) or isolated (no network device but loopback)
    #[arg(long, alias = "net", value_name = "MODE", default_value = "user", help_heading = "Machine")]
    network: String,

    /// Host name in the guest [default: made from the workspace's name]
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    hostname: Option<String>,

    /// Guest kernel in place of the built-in one: an uncompressed vmlinux
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    pub(super) kernel: Option<PathBuf>,

    /// Boot the kernel instead of starting from a template, and make none
    #[arg(long, help_heading = "Machine")]
    pub(super) cold: bool,

    /// Kill the machine after this time: seconds, or with units such as 1m30s
    #[arg(long, value_name = "SECONDS", value_parser = duration, help_heading = "The run")]
    timeout: Option<Duration>,

    /// Name of the workspace [default: run- and the time in nanoseconds]
    #[arg(long, value_name = "NAME", help_heading = "The run")]
    name: Option<WorkspaceName>,

    /// Keep the workspace: its disk, logs and outputs
    #[arg(long, help_heading = "The run")]
    keep: bool,

    /// Remove everything after the run; this is the default
    #[arg(long, visible_alias = "delete", conflicts_with = "keep", help_heading = "The run")]
    rm: bool,

    /// Declare a file or directory of the guest that `artifact get` can fetch; with --keep (repeatable)
    #[arg(long, value_name = "NAME=/GUEST/PATH", value_parser = output, help_heading = "The run")]
    output: Vec<Artifact>,

    /// Exit with the command's exit code
    #[arg(long, help_heading = "The run")]
    pub(super) propagate_exit_code: bool,

    /// Show no progress
    #[arg(short, long, help_heading = "The run")]
    pub(super) quiet: bool,

    /// Refused with its reason, which depends on the value.
    #[arg(short, long, hide = true, allow_hyphen_values = true)]
    volume: Vec<String>,

    #[command(flatten)]
    docker: DockerFlags,
}

/// `--pull`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pull {
    Missing,
    Always,
    Never,
}

impl From<Pull> for PullPolicy {
    fn from(pull: Pull) -> PullPolicy {
        match pull {
            Pull::Missing => PullPolicy::Missing,
            Pull::Always => PullPolicy::Always,
            Pull::Never => PullPolicy::Never,
        }
    }
}

/// The profile of this name.
pub(crate) fn profile(name: &str) -> Result<Profile, String> {
    Profile::named(name)
        .ok_or_else(|| format!("there are: {}", PROFILES.map(|profile| profile.name).join(", ")))
}

impl RunArgs {
    /// Checks what clap cannot and reads the files that the arguments name.
    pub(super) fn options(&self) -> Result<RunOptions, Failure> {
        self.docker.refuse()?;
        if let Some(volume) = self.volume.first() {
            return Err(refuse_volume(volume));
        }
        let network = self.network_mode()?;
        let (image, words) = self.image_and_words()?;
        let mut options = RunOptions::new(image);
        options.command = self.command(words)?;
        options.setup = self.setup.read()?;
        options.env = self.environment()?;
        options.user.clone_from(&self.user);
        options.working_dir.clone_from(&self.workdir);
        options.outputs = self.outputs()?;
        options.keep = self.keep;
        options.name.clone_from(&self.name);
        options.timeout = self.timeout;
        options.profile = self.profile;
        options.memory_mib = self.memory;
        options.cpu_count = self.cpus;
        options.size_mib = self.size_mib;
        options.hostname.clone_from(&self.hostname);
        options.network = network;
        options.pull = self.pull.into();
        Ok(options)
    }

    /// What to look at when the command could not be started: a word that looks like an option of ours.
    pub(super) fn option_after_image(&self) -> Option<&str> {
        let first = self.image_and_words().ok()?.1.first()?;
        first.starts_with("--").then_some(first)
    }

    fn image_and_words(&self) -> Result<(&str, &[String]), Failure> {
        match (&self.image, self.words.split_first()) {
            (Some(image), _) => Ok((image, &self.words)),
            (None, Some((image, words))) => Ok((image, words)),
            (None, None) => Err(Failure::usage(
                "no image was named",
                "microagent run IMAGE [COMMAND [ARG]...], or see `microagent run --help`",
            )),
        }
    }

    /// Exactly one source: words, `--exec`, or the image.
    fn command(&self, words: &[String]) -> Result<RunCommand, Failure> {
        let words = || words.to_vec();
        match (&self.exec, &self.entrypoint) {
            (Some(_), _) if !words().is_empty() => Err(Failure::usage(
                "the command is given twice: with --exec and as words after the image",
                "use one of them; all words after IMAGE belong to the guest",
            )),
            (Some(line), _) => Ok(RunCommand::Shell(line.clone())),
            // Docker's way to say "no entrypoint": the words alone are the command.
            (None, Some(program)) if program.is_empty() && words().is_empty() => {
                Err(Failure::usage("an empty --entrypoint needs a command", "name one after IMAGE"))
            }
            (None, Some(program)) if program.is_empty() => Ok(RunCommand::Entrypoint(words())),
            (None, Some(program)) => {
                Ok(RunCommand::Entrypoint(std::iter::once(program.clone()).chain(words()).collect()))
            }
            (None, None) if words().is_empty() => Ok(RunCommand::Image),
            (None, None) => Ok(RunCommand::Argv(words())),
        }
    }

    fn environment(&self) -> Result<Vec<(String, String)>, Failure> {
        let mut variables = Vec::new();
        for path in &self.env_file {
            variables.extend(env_file(path)?);
        }
        for text in &self.env {
            variables.extend(env_variable(text)?);
        }
        Ok(variables)
    }

    fn outputs(&self) -> Result<Vec<Artifact>, Failure> {
        for (index, output) in self.output.iter().enumerate() {
            if self.output[..index].iter().any(|earlier| earlier.name == output.name) {
                return Err(Failure::usage(
                    format!("--output declares `{}` twice", output.name),
                    "give each output a name of its own",
                ));
            }
        }
        Ok(self.output.clone())
    }

    fn network_mode(&self) -> Result<NetworkMode, Failure> {
        match self.network.as_str() {
            "user" => Ok(NetworkMode::User),
            "isolated" => Ok(NetworkMode::Isolated),
            other => Err(refuse_network(other)),
        }
    }

    /// Declared outputs of a run that is not kept can never be fetched.
    pub(super) fn useless_outputs(&self) -> bool {
        !self.keep && !self.output.is_empty()
    }
}

/// `--setup` and `--setup-file`, in the order in which they were typed.
#[derive(Debug, Default)]
struct SetupArgs {
    steps: Vec<SetupArg>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SetupArg {
    Line(String),
    File(PathBuf),
}

impl SetupArgs {
    fn read(&self) -> Result<Vec<SetupStep>, Failure> {
        self.steps.iter().map(SetupArg::read).collect()
    }
}

impl SetupArg {
    fn read(&self) -> Result<SetupStep, Failure> {
        match self {
            SetupArg::Line(line) => Ok(SetupStep::Shell(line.clone())),
            SetupArg::File(path) => {
                let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
                Ok(SetupStep::Script { name, content: read_script(path)? })
            }
        }
    }
}

fn read_script(path: &Path) -> Result<Vec<u8>, Failure> {
    use std::io::Read;
    let failed = |source| Failure::File { action: "read setup script", path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut content = Vec::new();
    file.take(SETUP_FILE_LIMIT + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > SETUP_FILE_LIMIT {
        return Err(refusal(
            &format!("--setup-file {}", path.display()),
            "a setup script has at most 1 MiB",
            "let the script fetch what it needs, or put it into the image",
        ));
    }
    Ok(content)
}

impl Args for SetupArgs {
    fn augment_args(command: Command) -> Command {
        command
            .arg(
                Arg::new("setup")
                    .long("setup")
                    .value_name("STRING")
                    .allow_hyphen_values(true)
                    .action(ArgAction::Append)
                    .help_heading("What to run")
                    .help("Shell line to run before the command, in the same boot (repeatable)"),
            )
            .arg(
                Arg::new("setup_file")
                    .long("setup-file")
                    .value_name("FILE")
                    .value_parser(clap::value_parser!(PathBuf))
                    .action(ArgAction::Append)
                    .help_heading("What to run")
                    .help("Script of the host to run before the command, in its place among --setup (repeatable)"),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SetupArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, ClapError> {
        fn indexed<'a, T: Clone + Send + Sync + 'static>(
            matches: &'a ArgMatches,
            id: &'a str,
        ) -> impl Iterator<Item = (usize, T)> + 'a {
            let values = matches.get_many::<T>(id).unwrap_or_default().cloned();
            matches.indices_of(id).unwrap_or_default().zip(values)
        }
        let lines = indexed(matches, "setup").map(|(index, line)| (index, SetupArg::Line(line)));
        let files = indexed(matches, "setup_file").map(|(index, path)| (index, SetupArg::File(path)));
        let mut steps: Vec<_> = lines.chain(files).collect();
        steps.sort_by_key(|(index, _)| *index);
        Ok(SetupArgs { steps: steps.into_iter().map(|(_, step)| step).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), ClapError> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> RunArgs {
        let command = RunArgs::augment_args(Command::new("run").no_binary_name(true));
        RunArgs::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap()
    }

    fn command(words: &[&str]) -> RunCommand {
        args(words).options().unwrap().command
    }

    fn message(words: &[&str]) -> String {
        match args(words).options() {
            Err(Failure::Usage { message, .. }) => message,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    #[test]
    fn all_words_after_the_image_belong_to_the_guest() {
        let argv = |words: &[&str]| RunCommand::Argv(words.iter().map(|&word| word.to_owned()).collect());
        assert_eq!(command(&["alpine", "ls", "-la", "--keep"]), argv(&["ls", "-la", "--keep"]));
        assert_eq!(command(&["alpine", "--keep", "-e", "x"]), argv(&["--keep", "-e", "x"]));
        assert_eq!(command(&["--image", "alpine", "ls", "--rm"]), argv(&["ls", "--rm"]));
        assert_eq!(command(&["alpine", "sh", "-c", "--", "--"]), argv(&["sh", "-c", "--", "--"]));
        assert_eq!(args(&["--keep", "alpine", "--name", "x"]).options().unwrap().name, None);
    }

    #[test]
    fn there_is_exactly_one_command_source() {
        assert_eq!(command(&["alpine"]), RunCommand::Image);
        assert_eq!(command(&["--exec", "-x", "alpine"]), RunCommand::Shell("-x".into()));
        assert_eq!(
            command(&["--entrypoint", "ls", "alpine", "/"]),
            RunCommand::Entrypoint(vec!["ls".into(), "/".into()])
        );
        assert_eq!(command(&["--entrypoint", "", "alpine", "id"]), RunCommand::Entrypoint(vec!["id".into()]));
        assert!(message(&["--exec", "x", "alpine", "ls"]).contains("twice"));
        assert!(message(&["--image", "alpine", "--exec", "x", "ls"]).contains("twice"));
        assert!(message(&["--entrypoint", "", "alpine"]).contains("needs a command"));
        assert!(message(&[]).contains("no image"));
    }

    #[test]
    fn setup_steps_keep_their_order() {
        let args = args(&["--setup", "a", "--setup-file", "b", "--env", "X=1", "--setup", "c", "alpine"]);
        let line = |text: &str| SetupArg::Line(text.to_owned());
        assert_eq!(args.setup.steps, [line("a"), SetupArg::File("b".into()), line("c")]);
    }

    #[test]
    fn flags_become_options() {
        let options = args(&[
            "-e",
            "A=1",
            "-m",
            "1g",
            "--cpus",
            "2.0",
            "--size-mib",
            "4096",
            "--network",
            "isolated",
            "--timeout",
            "1m30s",
            "--name",
            "web",
            "--keep",
            "--output",
            "r=/srv/r",
            "-u",
            "nobody",
            "-w",
            "/tmp",
            "--profile",
            "tiny",
            "--hostname",
            "h",
            "--pull",
            "never",
            "alpine",
        ])
        .options()
        .unwrap();
        assert_eq!(options.env, [("A".to_owned(), "1".to_owned())]);
        assert_eq!(
            (options.memory_mib, options.cpu_count, options.size_mib),
            (Some(1024), Some(2), Some(4096))
        );
        assert_eq!(options.network, NetworkMode::Isolated);
        assert_eq!(options.timeout, Some(Duration::from_secs(90)));
        assert_eq!(options.name.unwrap().as_str(), "web");
        assert!(options.keep);
        assert_eq!(options.outputs, [Artifact { name: "r".into(), path: "/srv/r".into() }]);
        assert_eq!((options.user.as_deref(), options.working_dir.as_deref()), (Some("nobody"), Some("/tmp")));
        assert_eq!((options.profile.name, options.hostname.as_deref()), ("tiny", Some("h")));
        assert_eq!(options.pull, PullPolicy::Never);
    }

    #[test]
    fn refusals_come_before_everything_else() {
        assert!(message(&["--privileged"]).starts_with("--privileged is not possible here"));
        assert!(message(&["-v", "/src:/src", "alpine"]).contains("never shared"));
        assert!(message(&["-it", "alpine", "sh"]).contains("neither a terminal"));
        assert!(message(&["--network", "host", "alpine"]).contains("own kernel"));
        assert!(message(&["--output", "a=/x", "--output", "a=/y", "alpine"]).contains("twice"));
    }
}
