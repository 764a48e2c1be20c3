//! The arguments that every command has which makes a workspace, for one run or to be kept.

use std::path::{Path, PathBuf};

use clap::error::Error as ClapError;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueEnum};
use microagent::image::PullPolicy;
use microagent::text::setup_script;
use microagent::{Artifact, NetworkMode, PROFILES, Profile, SetupStep, SpecFile, WorkspaceOptions};

use crate::commands::run::{cpus, env_file, env_variable, memory_mib, refuse_network, refuse_volume};
use crate::failure::Failure;

/// What a workspace is made from, but for its image.
#[derive(Debug, Args)]
pub(crate) struct WorkspaceArgs {
    /// Start from a spec file, as `microagent.yaml`; flags go over it, and nothing is read without this
    #[arg(long, value_name = "SPEC", help_heading = "What to run")]
    file: Option<PathBuf>,

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

    /// When to ask the registry: missing (only for what is not here), always, or never [default: missing]
    #[arg(long, value_name = "WHEN", hide_possible_values = true, help_heading = "What to run")]
    pull: Option<Pull>,

    /// Machine size to start from: tiny, small, medium or large (see `microagent profiles`) [default:
    /// small]
    #[arg(long, value_name = "NAME", value_parser = profile, help_heading = "Machine")]
    profile: Option<Profile>,

    /// Memory in MiB, or with a unit such as 512m or 2g
    #[arg(short, long, value_name = "MIB", value_parser = memory_mib, help_heading = "Machine")]
    memory: Option<u32>,

    /// Virtual CPUs
    #[arg(long, value_name = "N", value_parser = cpus, help_heading = "Machine")]
    cpus: Option<u32>,

    /// Size of the disk in MiB; it grows to fit the image
    #[arg(long, value_name = "MIB", help_heading = "Machine")]
    size_mib: Option<u64>,

    /// Network: user (outbound NAT) or isolated (no network device but loopback) [default: user]
    #[arg(long, alias = "net", value_name = "MODE", help_heading = "Machine")]
    network: Option<String>,

    /// Host name in the guest [default: made from the workspace's name]
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    hostname: Option<String>,

    /// Refused with its reason, which depends on the value.
    #[arg(short, long, hide = true, allow_hyphen_values = true)]
    volume: Vec<String>,
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

impl WorkspaceArgs {
    /// What the spec file says, or nothing where there is none.
    pub(crate) fn spec(&self) -> Result<SpecFile, Failure> {
        match &self.file {
            Some(path) => read_spec(path),
            None => Ok(SpecFile::default()),
        }
    }

    /// Lays the flags over what a spec file says. A value takes the place of the file's; of a list, an entry takes the
    /// place of the file's with the same name, and others are added behind the file's.
    pub(crate) fn lay_over(
        &self,
        options: &mut WorkspaceOptions,
        outputs: &[Artifact],
    ) -> Result<(), Failure> {
        if let Some(volume) = self.volume.first() {
            return Err(refuse_volume(volume));
        }
        if let Some(mode) = &self.network {
            options.network = network_mode(mode)?;
        }
        distinct(outputs)?;
        options.setup.extend(self.setup.read()?);
        options.env.extend(self.environment()?);
        lay_list_over(&mut options.outputs, outputs, |output| &output.name);
        lay_value_over(&mut options.user, &self.user);
        lay_value_over(&mut options.working_dir, &self.workdir);
        lay_value_over(&mut options.memory_mib, &self.memory);
        lay_value_over(&mut options.cpu_count, &self.cpus);
        lay_value_over(&mut options.size_mib, &self.size_mib);
        lay_value_over(&mut options.hostname, &self.hostname);
        options.profile = self.profile.unwrap_or(options.profile);
        options.pull = self.pull.map_or(options.pull, PullPolicy::from);
        Ok(())
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
}

/// Reads a spec file. Its paths are absolute then, whatever directory the supervisor runs in.
pub(crate) fn read_spec(path: &Path) -> Result<SpecFile, Failure> {
    let absolute = std::path::absolute(path).map_err(|source| Failure::File {
        action: "resolve",
        path: path.to_owned(),
        source,
    })?;
    Ok(SpecFile::read(&absolute).map_err(microagent::Error::from)?)
}

/// What to say of keys of a spec file that are not for the command that reads it.
pub(crate) fn idle_keys(keys: &[&str], command: &str) -> Option<String> {
    let says = if keys.len() == 1 { "says" } else { "say" };
    (!keys.is_empty())
        .then(|| format!("`{}` of the spec file {says} nothing to {command}", keys.join("`, `")))
}

fn lay_value_over<T: Clone>(of_file: &mut Option<T>, flag: &Option<T>) {
    if flag.is_some() {
        of_file.clone_from(flag);
    }
}

fn lay_list_over<T: Clone, K: PartialEq + ?Sized>(of_file: &mut Vec<T>, flags: &[T], key: fn(&T) -> &K) {
    for flag in flags {
        match of_file.iter_mut().find(|entry| key(entry) == key(flag)) {
            Some(entry) => entry.clone_from(flag),
            None => of_file.push(flag.clone()),
        }
    }
}

fn network_mode(mode: &str) -> Result<NetworkMode, Failure> {
    match mode {
        "user" => Ok(NetworkMode::User),
        "isolated" => Ok(NetworkMode::Isolated),
        other => Err(refuse_network(other)),
    }
}

/// No two outputs have one name.
fn distinct(outputs: &[Artifact]) -> Result<(), Failure> {
    for (index, output) in outputs.iter().enumerate() {
        if outputs[..index].iter().any(|earlier| earlier.name == output.name) {
            return Err(Failure::usage(
                format!("--output declares `{}` twice", output.name),
                "give each output a name of its own",
            ));
        }
    }
    Ok(())
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
            SetupArg::File(path) => Ok(setup_script(path)?),
        }
    }
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
                    .help("Shell line to run before anything else (repeatable)"),
            )
            .arg(
                Arg::new("setup_file")
                    .long("setup-file")
                    .value_name("FILE")
                    .value_parser(clap::value_parser!(PathBuf))
                    .action(ArgAction::Append)
                    .help_heading("What to run")
                    .help("Script of the host to run in its place among --setup (repeatable)"),
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

    #[test]
    fn setup_steps_keep_their_order() {
        let command = WorkspaceArgs::augment_args(Command::new("create").no_binary_name(true));
        let words = ["--setup", "a", "--setup-file", "b", "--env", "X=1", "--setup", "c"];
        let args = WorkspaceArgs::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap();
        let line = |text: &str| SetupArg::Line(text.to_owned());
        assert_eq!(args.setup.steps, [line("a"), SetupArg::File("b".into()), line("c")]);
    }
}
