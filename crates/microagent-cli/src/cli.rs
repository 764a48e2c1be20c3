//! The command line: global options, the list of commands, and how clap's errors are turned into this command's.
//!
//! Parsing decides nothing about workspaces; each command's own file turns its arguments into a call.

use std::ffi::OsString;

use clap::error::ErrorKind as ClapErrorKind;
use clap::{ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::args::global::GlobalArgs;
use crate::commands::{
    apply, artifact, change, clone, commit, completions, config, connect, cp, create, delete, diff, doctor,
    egress, events, exec, export, fork, image, job, jobs, kernel, list, logs, man, network, perf, port,
    profiles, rename, resize, restart, result, run, secret, serve, snapshot, start, stats, status, supervise,
    sync, system, template, top, touch, version, volume, wait,
};
use crate::environment;
use crate::failure::Failure;
use crate::output::Format;
use crate::usage;

/// Widest line of a help page; pages stay the same on every wider terminal.
pub(crate) const HELP_WIDTH: usize = 100;

const ABOUT: &str = "Runs OCI images as Linux microVMs, each with its own kernel";

const EXAMPLES: &str = "\
Examples:
  Run one command in a fresh microVM; nothing is left behind:
    microagent run docker.io/library/alpine:3.20 cat /etc/alpine-release

  Run a shell line, with setup steps before it:
    microagent run --image debian:12 --setup 'apt-get update' --exec 'echo ready'

  Check whether this machine can run microVMs:
    microagent doctor

Exit codes: 0 success, 1 failure, 2 usage error, 75 try again later, 130 interrupted.
Results go to standard output; progress, notes and errors go to standard error.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "microagent",
    version,
    about = ABOUT,
    after_help = EXAMPLES,
    max_term_width = HELP_WIDTH,
    disable_help_flag = true,
    subcommand_value_name = "COMMAND"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// All commands, in the order of the help page.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Box<run::RunArgs>),
    Create(Box<create::CreateArgs>),
    Apply(apply::ApplyArgs),
    Start(start::StartArgs),
    Restart(restart::RestartArgs),
    Exec(exec::ExecArgs),
    #[command(visible_alias = "attach")]
    Connect(connect::ConnectArgs),
    Jobs(jobs::JobsArgs),
    Job(job::JobArgs),
    Cp(cp::CpArgs),
    Sync(sync::SyncArgs),
    Halt(change::HaltArgs),
    Stop(change::StopArgs),
    Kill(change::KillArgs),
    Pause(change::PauseArgs),
    #[command(visible_alias = "unpause")]
    Resume(change::ResumeArgs),
    Quarantine(change::QuarantineArgs),
    Supervise(supervise::SuperviseArgs),
    Ps(list::PsArgs),
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    Touch(touch::TouchArgs),
    #[command(visible_alias = "inspect")]
    Status(status::StatusArgs),
    Network(network::NetworkArgs),
    Port(port::PortArgs),
    #[command(visible_alias = "log")]
    Logs(logs::LogsArgs),
    Events(events::EventsArgs),
    Egress(egress::EgressArgs),
    Stats(stats::StatsArgs),
    Top(top::TopArgs),
    Wait(wait::WaitArgs),
    Result(result::ResultArgs),
    Clone(clone::CloneArgs),
    #[command(visible_alias = "branch")]
    Fork(fork::ForkArgs),
    Rename(rename::RenameArgs),
    Resize(resize::ResizeArgs),
    Artifact(artifact::ArtifactArgs),
    Commit(commit::CommitArgs),
    Diff(diff::DiffArgs),
    Export(export::ExportArgs),
    #[command(visible_alias = "rm")]
    Delete(delete::DeleteArgs),
    Secret(secret::SecretArgs),
    Image(image::ImageArgs),
    Volume(volume::VolumeArgs),
    Snapshot(snapshot::SnapshotArgs),
    #[command(flatten)]
    ImageShort(image::ShortForm),
    Serve(serve::ServeArgs),
    System(system::SystemArgs),
    Doctor(doctor::DoctorArgs),
    Profiles(profiles::ProfilesArgs),
    Config(config::ConfigArgs),
    Kernel(kernel::KernelArgs),
    Template(template::TemplateArgs),
    Perf(perf::PerfArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
    Version(version::VersionArgs),
}

impl Command {
    /// Whether the command looks into the state directory, and cannot say more of it than that it is refused.
    pub(crate) fn uses_state(&self) -> bool {
        !matches!(
            self,
            Command::Doctor(_)
                | Command::Profiles(_)
                | Command::Config(_)
                | Command::Completions(_)
                | Command::Man(_)
                | Command::Version(_)
        )
    }

    /// Whether the command can print lines as things happen.
    pub(crate) fn has_stream(&self) -> bool {
        match self {
            Command::Run(_)
            | Command::Create(_)
            | Command::Start(_)
            | Command::Exec(_)
            | Command::Logs(_)
            | Command::Events(_)
            | Command::Egress(_)
            | Command::Stats(_)
            | Command::Sync(_)
            | Command::ImageShort(image::ShortForm::Pull(_)) => true,
            Command::Job(group) => group.prints_lines(),
            Command::Image(group) => matches!(group.command, Some(image::ImageCommand::Pull(_))),
            _ => false,
        }
    }

    /// Whether values of secrets may pass through this process.
    pub(crate) fn may_hold_secrets(&self) -> bool {
        matches!(
            self,
            Command::Run(_)
                | Command::Create(_)
                | Command::Start(_)
                | Command::Restart(_)
                | Command::Supervise(_)
                | Command::Secret(_)
                | Command::Serve(_)
        )
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Request {
    /// A command.
    Command(Box<Cli>),
    /// A text for standard output: help or version.
    Print(String),
}

/// Reads the command line.
///
/// The second value is the output format, known even when the rest cannot be read.
pub(crate) fn parse(args: &[OsString]) -> (Result<Request, Failure>, Format) {
    let mentions = |flag: &str| args.iter().skip(1).take_while(|arg| *arg != "--").any(|arg| arg == flag);
    let (environment_format, environment_error) = match environment::output().as_deref() {
        None | Some("text") => (Format::Text, None),
        Some("json") => (Format::Json, None),
        Some(other) => (Format::Text, Some(bad_output_variable(other))),
    };
    let colour = if mentions("--no-color") { ColorChoice::Never } else { ColorChoice::Auto };
    if colour == ColorChoice::Never {
        anstream::ColorChoice::Never.write_global();
    }
    let mentions_json = mentions("--json") || mentions("--json=document") || mentions("--json=stream");
    let guess = if mentions_json { Format::Json } else { environment_format };
    if let Some(error) = environment_error {
        return (Err(error), guess);
    }
    let mut command = Cli::command()
        .color(colour)
        .mut_args(environment::without_empty_variable)
        .mut_subcommand("create", create::from_snapshot_alone);
    let parsed = command.try_get_matches_from_mut(args).and_then(|matches| Cli::from_arg_matches(&matches));
    match parsed {
        Ok(cli) => {
            let format = if cli.global.json.is_some() { Format::Json } else { environment_format };
            (Ok(request(cli)), format)
        }
        Err(e) if e.kind() == ClapErrorKind::DisplayVersion => (Ok(Request::Print(e.to_string())), guess),
        Err(_) if asks_for_version(args) => (Ok(Request::Print(command.render_version())), guess),
        Err(e) if asks_for_help(e.kind()) || asks_for_help_of_help(args) => (help(args), guess),
        Err(e) => (Err(usage::failure(&e, &command, &command_path(args))), guess),
    }
}

/// `microagent -v`, as Docker is asked for its version.
fn asks_for_version(args: &[OsString]) -> bool {
    matches!(args, [_, flag] if flag == "-v")
}

/// `microagent help --help`, which clap takes for a command of that name.
fn asks_for_help_of_help(args: &[OsString]) -> bool {
    let mut words = args.iter().skip(1).map(OsString::as_os_str);
    words.next() == Some("help".as_ref()) && words.any(|word| word == "--help" || word == "-h")
}

/// The page that was asked for, unless `-h` was meant for something else.
fn help(args: &[OsString]) -> Result<Request, Failure> {
    let path = command_path(args);
    match usage::host_name(args, &path) {
        Some(failure) => Err(failure),
        None => Ok(Request::Print(help_of(&path))),
    }
}

fn request(cli: Cli) -> Request {
    // A group that is named alone explains itself.
    let group: &[&str] = match &cli.command {
        None => &[],
        Some(Command::Job(group)) if group.command.is_none() => &["job"],
        Some(Command::Image(group)) if group.command.is_none() => &["image"],
        Some(Command::Volume(group)) if group.command.is_none() => &["volume"],
        Some(Command::Snapshot(group)) if group.command.is_none() => &["snapshot"],
        Some(Command::Kernel(group)) if group.command.is_none() => &["kernel"],
        Some(Command::Template(group)) if group.command.is_none() => &["template"],
        Some(Command::Secret(group)) if group.command.is_none() => &["secret"],
        Some(Command::Serve(group)) if group.command.is_none() => &["serve"],
        Some(Command::System(group)) if group.command.is_none() => &["system"],
        Some(Command::Config(group)) if group.command.is_none() => &["config"],
        Some(Command::Perf(group)) if group.command.is_none() => &["perf"],
        Some(Command::Port(group)) if group.command.is_none() && group.name.is_none() => &["port"],
        Some(Command::Artifact(group)) if group.command.is_none() && group.name.is_none() => &["artifact"],
        Some(_) => return Request::Command(Box::new(cli)),
    };
    Request::Print(help_of(group))
}

/// The words of the command line that name a command: `image pull` of `--json image pull --help`.
fn command_path(args: &[OsString]) -> Vec<&str> {
    let mut root = Cli::command();
    root.build();
    let mut command = &root;
    let mut path = Vec::new();
    let mut words = args.iter().skip(1).filter_map(|arg| arg.to_str());
    while let Some(word) = words.next() {
        if ["--state-dir", "--accel", "--progress"].contains(&word) {
            words.next();
        } else if word == "help" && path.is_empty() || word.starts_with('-') {
            continue;
        } else if let Some(sub) = command.find_subcommand(word) {
            command = sub;
            path.push(word);
        } else {
            break;
        }
    }
    path
}

/// The help page of a command: short lines for options, and the whole description with examples.
fn help_of(path: &[&str]) -> String {
    let mut root = Cli::command();
    root.build();
    let mut command = &root;
    for name in path {
        command = command.find_subcommand(name).expect("a path of names that were found before");
    }
    let mut page = command.clone();
    if let Some(about) = command.get_long_about() {
        page = page.about(about.clone());
    }
    if let Some(examples) = command.get_after_long_help() {
        page = page.after_help(examples.clone());
    }
    page.render_help().ansi().to_string()
}

/// The command line without what is only recognised to be refused: for completions and manuals.
pub(crate) fn shown_command() -> clap::Command {
    without_hidden(Cli::command())
}

fn without_hidden(command: clap::Command) -> clap::Command {
    let mut shown = clap::Command::new(command.get_name().to_owned())
        .disable_help_flag(true)
        .disable_help_subcommand(true)
        .args(command.get_arguments().filter(|arg| !arg.is_hide_set()).cloned())
        .subcommands(command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned().map(without_hidden));
    if let Some(version) = command.get_version() {
        shown = shown.version(version.to_owned());
    }
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(about) = command.get_long_about() {
        shown = shown.long_about(about.clone());
    }
    let examples = command.get_after_long_help().or(command.get_after_help());
    if let Some(examples) = examples {
        shown = shown.after_long_help(examples.clone());
    }
    for alias in command.get_visible_aliases() {
        shown = shown.visible_alias(alias.to_owned());
    }
    shown
}

fn asks_for_help(kind: ClapErrorKind) -> bool {
    matches!(kind, ClapErrorKind::DisplayHelp | ClapErrorKind::DisplayHelpOnMissingArgumentOrSubcommand)
}

fn bad_output_variable(value: &str) -> Failure {
    Failure::usage(
        format!("{} is `{value}`, expected `text` or `json`", environment::OUTPUT),
        "set it to one of them, or unset it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::global::{Accel, JsonForm};

    fn parse_words(words: &str) -> (Result<Request, Failure>, Format) {
        let args: Vec<OsString> = words.split_whitespace().map(OsString::from).collect();
        parse(&args)
    }

    fn cli(words: &str) -> Cli {
        match parse_words(words).0 {
            Ok(Request::Command(cli)) => *cli,
            other => panic!("{words}: {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_go_before_and_after_the_command() {
        for words in ["microagent --json list", "microagent list --json", "microagent list --json=document"] {
            assert_eq!(cli(words).global.json, Some(JsonForm::Document), "{words}");
        }
        // The next word is no value.
        assert_eq!(cli("microagent --json=stream exec w -- ls").global.json, Some(JsonForm::Stream));
        assert_eq!(cli("microagent list --accel TCG").global.accel, Accel::Tcg);
    }

    #[test]
    fn dockers_flag_for_the_version_is_known() {
        let Ok(Request::Print(text)) = parse_words("microagent -v").0 else { panic!("no version") };
        assert!(text.starts_with("microagent "), "{text}");
        assert!(parse_words("microagent -v list").0.is_err());
    }

    #[test]
    fn a_format_is_known_even_when_the_rest_is_wrong() {
        let (request, format) = parse_words("microagent list --json --nonsense");
        assert!(request.is_err());
        assert_eq!(format, Format::Json);
        assert_eq!(parse_words("microagent --nonsense").1, Format::Text);
    }

    /// Docker's flags, as its own help lists them: each is taken, or answered with a reason and a way.
    #[test]
    fn every_flag_of_docker_is_taken_or_answered() {
        let mut all = Vec::new();
        let lines = include_str!("../tests/docker-flags.txt").lines().filter(|line| !line.starts_with('#'));
        for (verb, flags) in lines.map(|line| line.split_once(": ").unwrap()) {
            for (names, value) in flags.split(' ').map(|flag| match flag.strip_suffix('=') {
                Some(names) => (names, " 1"),
                None => (flag, ""),
            }) {
                for name in names.split(',') {
                    let Err(Failure::Usage { message, hint }) =
                        parse_words(&format!("microagent {verb} {name}{value}")).0
                    else {
                        continue;
                    };
                    let guessed = hint.is_some_and(|hint| hint.starts_with("did you mean"));
                    let unanswered = message.ends_with(&format!("no option {name}")) || guessed;
                    if unanswered {
                        all.push(format!("{verb} {name}: {message}"));
                    }
                }
            }
        }
        assert!(all.is_empty(), "{all:#?}");
    }
}
