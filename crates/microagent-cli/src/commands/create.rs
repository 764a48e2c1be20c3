//! `microagent create`: a workspace that is kept between its starts.

use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use microagent::spec::Service;
use microagent::spec::value::output;
use microagent::{
    Artifact, CancellationToken, CreateOptions, Error, Event, ImageReport, NameError, Observer,
    RestartPolicy, RunCommand, SnapshotName, SpecFile, Workspace, WorkspaceName, WorkspaceOptions,
};

use crate::args::docker::CreateDockerFlags;
use crate::args::workspace::{WorkspaceArgs, idle_keys};
use crate::context::Context;
use crate::documents::create::CreateDocument;
use crate::documents::shared::ResourcesDocument;
use crate::documents::stream::StreamLine;
use crate::failure::Failure;
use crate::notices::Notices;
use crate::output::{Format, print_json, print_text};
use crate::stream::print_line;
use crate::{environment, escape, run_output};

const EXAMPLES: &str = "\
Examples:
  Create a machine to work in, set up once:
    microagent create web --image debian:12 --setup 'apt-get update && apt-get install -y python3'
    microagent start web
    microagent exec web -- python3 --version

  Create a workspace with a service:
    microagent create api --image python:3.12 --service-command 'python3 -u -m http.server 8000'

  Run the image's own command as the service:
    microagent create db --image postgres:16 --image-command -e POSTGRES_PASSWORD=secret

  As in Docker: the image, then the service's arguments:
    microagent create --name job debian:12 sleep 100";

const LONG_ABOUT: &str = "\
Creates a workspace: a disk made from an image, a size, and settings. Its state is `prepared` until `microagent start` \
starts it. Its disk is kept across halt, stop and kill until `microagent delete`.

With --image or --file the first word is the name, else it is the image. Words after it are the service: arguments of the \
image's Entrypoint, or a program and its arguments where the image has none. Without a service, the machine runs nothing \
by itself; an image's own command needs --image-command.

Setup steps run once, during this command, in a machine of their own. If one fails, the workspace stays in state \
`failed`, so that its logs can be read; its next start runs the setup again, on a fresh disk.";

/// Create a workspace
#[derive(Debug, Args)]
#[command(
    long_about = LONG_ABOUT,
    after_long_help = EXAMPLES,
    override_usage = "microagent create [OPTIONS] NAME --image IMAGE [COMMAND [ARG]...]\n       \
        microagent create [OPTIONS] [--name NAME] IMAGE [COMMAND [ARG]...]\n       \
        microagent create [OPTIONS] [NAME] --file SPEC [COMMAND [ARG]...]\n       \
        microagent create NAME --from-snapshot WORKSPACE:TAG"
)]
pub(crate) struct CreateArgs {
    /// Name of the workspace where --image or --file gives the image, else the image
    #[arg(value_name = "NAME|IMAGE")]
    first: Option<String>,

    /// Service: a program and its arguments, all verbatim; the machine ends when it ends
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    words: Vec<String>,

    /// Name of the workspace, as in Docker [default: the image's name and a number]
    #[arg(long, value_name = "NAME")]
    name: Option<WorkspaceName>,

    /// Image: a registry reference, `oci:DIR[:TAG]`, `oci-archive:FILE` or `docker-archive:FILE`
    #[arg(long, value_name = "IMAGE", help_heading = "What to run")]
    image: Option<String>,

    /// Create it from a snapshot, with the settings that the workspace had then; other options are not allowed
    #[arg(long, value_name = "WORKSPACE:TAG", help_heading = "What to run")]
    from_snapshot: Option<SnapshotName>,

    /// Start the workspace from the snapshot, with the processes of that time if the snapshot has the memory
    #[arg(long, help_heading = "What to run")]
    start: bool,

    /// Service: a shell line that every start runs; the machine ends when it ends
    #[arg(long, value_name = "STRING", allow_hyphen_values = true, help_heading = "What to run")]
    service_command: Option<String>,

    /// Use the image's Entrypoint and Cmd as the service
    #[arg(long, conflicts_with_all = ["service_command", "entrypoint"], help_heading = "What to run")]
    image_command: bool,

    /// Program of the service instead of the image's Entrypoint; COMMAND becomes its arguments
    #[arg(long, value_name = "PROGRAM", conflicts_with = "service_command", help_heading = "What to run")]
    entrypoint: Option<String>,

    /// Program of interactive sessions [default: bash where the image has it, else sh]
    #[arg(long, value_name = "PROGRAM", help_heading = "What to run")]
    shell: Option<String>,

    #[command(flatten)]
    workspace: WorkspaceArgs,

    /// Declare a file or directory of the guest that `artifact get` can fetch (repeatable)
    #[arg(long, value_name = "NAME=/GUEST/PATH", value_parser = output, help_heading = "What to run")]
    output: Vec<Artifact>,

    /// When `microagent supervise` restarts it: never, on-failure[:N], always or unless-stopped [default: never]
    #[arg(long, value_name = "WHEN", help_heading = "Machine")]
    restart: Option<RestartPolicy>,

    /// Do not report progress
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    docker: CreateDockerFlags,
}

/// Lets `--from-snapshot` be given with a name alone: all settings are the snapshot's.
pub(crate) fn from_snapshot_alone(command: clap::Command) -> clap::Command {
    const ALLOWED: [&str; 5] = ["from_snapshot", "start", "first", "name", "quiet"];
    let others = command.get_arguments().map(|arg| arg.get_id().clone());
    let others: Vec<_> = others.filter(|id| !ALLOWED.contains(&id.as_str())).collect();
    command.mut_arg("from_snapshot", |arg| arg.conflicts_with_all(others))
}

/// Makes up the name of a workspace from its image.
type MadeUpName<'a> = dyn Fn(&str) -> Result<WorkspaceName, Failure> + 'a;

/// Creates.
pub(crate) fn execute(context: &Context, args: CreateArgs) -> Result<(), Failure> {
    if let Some(source) = &args.from_snapshot {
        return create_from(context, &args, source);
    }
    let mut spec = args.workspace.spec()?;
    if spec.from_snapshot.is_some() {
        return create_from_file(context, &args, spec);
    }
    args.check_start()?;
    let idle = idle_keys(&spec.only_for_run(), "create");
    context.config().lay_under(&mut spec, args.workspace.network());
    let engine = context.engine();
    let options = args.options(spec, &|image| Ok(engine.made_up_name(image)?))?;
    let has_service = options.service.is_some();
    let progress = context.progress(args.quiet);
    if let Some(note) = idle {
        progress.note(&note);
    }
    let details = Arc::new(CreationDetails::default());
    let created = context.block_on(async |token| {
        let (details, progress) = (Arc::clone(&details), Arc::clone(&progress));
        let work = microagent::Progress::new().cancel(token).observer(move |event: Event| {
            details.take(&event);
            progress.event(event);
        });
        Ok(engine.create(options, &work).await)
    })?;
    progress.end();
    let workspace = match created {
        Ok(workspace) => workspace,
        Err(error) => return Err(run_output::failed(context, error)?),
    };
    let (image, mut notices) = details.taken();
    let image = image.ok_or_else(|| Failure::Other {
        message: "the image of the new workspace is not known".to_owned(),
        hint: None,
    })?;
    if !has_service && let Some(note) = idle_command(&image.command) {
        progress.note(&note);
        notices.push(note);
    }
    print(context, CreateDocument::new(workspace.details()?, Some(image), notices))
}

impl CreateArgs {
    /// clap does not ask for an option that another one of the command line excludes, as --image does.
    fn check_start(&self) -> Result<(), Failure> {
        if self.start && self.from_snapshot.is_none() {
            return Err(Failure::usage(
                "--start needs --from-snapshot, or a spec file with `fromSnapshot`",
                "create the workspace without it, then: microagent start NAME",
            ));
        }
        Ok(())
    }

    /// Takes the name for a file that names a snapshot, and refuses other options: the file has them as keys.
    fn check_file_alone(&self, spec: &mut SpecFile) -> Result<(), Failure> {
        let words = self.name_and_image(spec)?;
        let mut options = WorkspaceOptions::new("");
        self.workspace.lay_over(&mut options, &self.output)?;
        let others = self.image.is_some()
            || self.service_command.is_some()
            || self.image_command
            || self.entrypoint.is_some()
            || self.shell.is_some()
            || self.restart.is_some();
        self.docker.refuse()?;
        if others || !words.is_empty() || options != WorkspaceOptions::new("") {
            return Err(Failure::usage(
                "the spec file names a snapshot (`fromSnapshot`), which no option but --name and --start goes with",
                "write the settings into the file",
            ));
        }
        Ok(())
    }
}

/// Creates from a snapshot.
fn create_from(context: &Context, args: &CreateArgs, source: &SnapshotName) -> Result<(), Failure> {
    let name = match (&args.name, &args.first) {
        (Some(name), None) => name.clone(),
        (None, Some(first)) => first.parse().map_err(|error: NameError| {
            Failure::usage(error.to_string(), "microagent create NAME --from-snapshot WORKSPACE:TAG")
        })?,
        _ => {
            return Err(Failure::usage(
                "a workspace that is created from a snapshot needs one name",
                "microagent create NAME --from-snapshot WORKSPACE:TAG",
            ));
        }
    };
    let snapshots = context.engine().workspace(&source.workspace).snapshots();
    created(context, args, async |work, token| {
        if args.start {
            return snapshots.start_workspace(&source.tag, &name, &work).await;
        }
        tokio::select! {
            created = snapshots.create_workspace(&source.tag, &name) => created,
            // A workspace that is not complete is never seen.
            () = token.cancelled() => Err(Error::Cancelled),
        }
    })
}

/// Creates from the snapshot that a spec file names.
fn create_from_file(context: &Context, args: &CreateArgs, mut spec: SpecFile) -> Result<(), Failure> {
    args.check_file_alone(&mut spec)?;
    let engine = context.engine();
    if let Some(note) = idle_keys(&spec.only_for_run(), "create") {
        context.progress(args.quiet).note(&note);
    }
    created(context, args, async |work, _| {
        let host = environment::passed_through;
        match args.start {
            true => engine.start_from_snapshot(&spec, &host, &work).await,
            false => engine.create_from_snapshot(&spec, &host).await,
        }
    })
}

/// Shows the progress of a creation from a snapshot, and its result.
fn created(
    context: &Context,
    args: &CreateArgs,
    create: impl AsyncFnOnce(microagent::Progress, CancellationToken) -> Result<Workspace, Error>,
) -> Result<(), Failure> {
    let (progress, notices) = (context.progress(args.quiet), Arc::new(Notices::default()));
    let created = context.block_on(async |token| {
        let (shown, notices) = (Arc::clone(&progress), Arc::clone(&notices));
        let work = microagent::Progress::new().cancel(token.clone()).observer(move |event: Event| {
            notices.take(&event);
            shown.event(event);
        });
        Ok(create(work, token).await)
    });
    progress.end();
    match created? {
        Ok(created) => print(context, CreateDocument::new(created.details()?, None, notices.taken())),
        Err(error) => Err(run_output::failed(context, error)?),
    }
}

fn print(context: &Context, document: CreateDocument) -> Result<(), Failure> {
    match context.format {
        Format::Json if context.streams() => print_line(&StreamLine::Create(Box::new(document))),
        Format::Json => print_json(&document),
        Format::Text => print_text(&document.text()),
    }
}

/// What is told while a workspace is created, and belongs to the answer.
#[derive(Default)]
struct CreationDetails(Mutex<(Option<ImageReport>, Vec<String>)>);

impl CreationDetails {
    fn take(&self, event: &Event) {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::ImageReady(image) => taken.0 = Some(image.clone()),
            Event::Notice(notice) => taken.1.push(notice.clone()),
            _ => {}
        }
    }

    fn taken(&self) -> (Option<ImageReport>, Vec<String>) {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What to say of an image's command that nothing starts. A bare shell would end at once, and is not missed.
fn idle_command(command: &[String]) -> Option<String> {
    const SHELLS: [&str; 5] = ["sh", "bash", "ash", "dash", "zsh"];
    let is_shell = |word: &String| SHELLS.contains(&word.rsplit('/').next().unwrap_or_default());
    let nothing_to_say = match command {
        [] => true,
        [only] => is_shell(only),
        _ => false,
    };
    let words = escape::one_line(&command.join(" "));
    (!nothing_to_say).then(|| {
        format!("start will not run the image's own command ({words}); --image-command makes it the service")
    })
}

impl CreateArgs {
    fn options(&self, mut spec: SpecFile, made_up: &MadeUpName<'_>) -> Result<CreateOptions, Failure> {
        self.docker.refuse()?;
        spec.image = self.image.clone().or(spec.image);
        let command = self.name_and_image(&mut spec)?;
        if spec.image.is_none() && !self.workspace.has_spec() {
            return Err(Failure::usage(
                "no image was given",
                "microagent create NAME --image IMAGE, or see `microagent create --help`",
            ));
        }
        // What a file describes is found by its name again.
        if spec.name.is_none()
            && !self.workspace.has_spec()
            && let Some(image) = &spec.image
        {
            spec.name = Some(made_up(image)?);
        }
        if let Some(line) = &self.service_command {
            (spec.service, spec.image_command) = (Some(Service::Shell(line.clone())), None);
        }
        if self.image_command {
            (spec.service, spec.image_command) = (None, Some(true));
        }
        spec.shell = self.shell.clone().or(spec.shell);
        spec.restart = self.restart.or(spec.restart);
        let mut options = spec.create_options(&environment::passed_through)?;
        options.service = self.service(command)?.or(options.service);
        self.workspace.lay_over(&mut options.workspace, &self.output)?;
        Ok(options)
    }

    /// Takes name or image from the first word, and gives the words of the service.
    fn name_and_image(&self, spec: &mut SpecFile) -> Result<Vec<String>, Failure> {
        let first = match (&self.first, &spec.image) {
            (Some(first), None) if !self.workspace.has_spec() => {
                spec.image = Some(first.clone());
                None
            }
            (Some(first), _) if self.name.is_none() => {
                let name = first.parse().map_err(|error: NameError| {
                    Failure::usage(
                        error.to_string(),
                        "microagent create [--name NAME] IMAGE [COMMAND [ARG]...]",
                    )
                })?;
                spec.name = Some(name);
                None
            }
            // Name and image are options, so all words are the service.
            (first, _) => first.clone(),
        };
        spec.name = self.name.clone().or(spec.name.take());
        Ok(first.into_iter().chain(self.words.iter().cloned()).collect())
    }

    /// The service that words and `--entrypoint` make.
    fn service(&self, words: Vec<String>) -> Result<Option<RunCommand>, Failure> {
        if !words.is_empty() && (self.image_command || self.service_command.is_some()) {
            return Err(Failure::usage(
                "the service is given twice: as words and with an option",
                "keep the words, --service-command or --image-command",
            ));
        }
        Ok(match &self.entrypoint {
            Some(program) if program.is_empty() && words.is_empty() => {
                return Err(Failure::usage(
                    "an empty --entrypoint needs a command",
                    "give a command after the image or the name",
                ));
            }
            // Docker's way to say "no entrypoint": the words alone are the command.
            Some(program) if program.is_empty() => Some(RunCommand::Entrypoint(words)),
            Some(program) => Some(RunCommand::Entrypoint([vec![program.clone()], words].concat())),
            None if words.is_empty() => None,
            None => Some(RunCommand::Argv(words)),
        })
    }
}

impl CreateDocument {
    fn text(&self) -> String {
        let ResourcesDocument { memory_mib, cpu_count, size_mib } = self.resources;
        let joined: String = self.joined.iter().map(|name| format!("Private network: {name}\n")).collect();
        format!(
            "Workspace: {}\nState: {}\nProfile: {}\nNetwork: {}\n{joined}\
             Resources: memory={memory_mib}MiB cpus={cpu_count} disk={size_mib}MiB\n",
            self.workspace, self.state, self.profile, self.network,
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn made_up(image: &str) -> Result<WorkspaceName, Failure> {
        Ok(WorkspaceName::made_up(image, 1))
    }

    fn options(words: &[&str]) -> Result<CreateOptions, Failure> {
        let command = CreateArgs::augment_args(Command::new("create").no_binary_name(true));
        CreateArgs::from_arg_matches(&command.try_get_matches_from(words).unwrap())
            .unwrap()
            .options(SpecFile::default(), &made_up)
    }

    #[test]
    fn only_a_snapshot_can_be_started_at_once() {
        let command = CreateArgs::augment_args(Command::new("create").no_binary_name(true));
        let words = ["web", "--image", "i", "--start"];
        let matches = from_snapshot_alone(command).try_get_matches_from(words).unwrap();
        let refused = CreateArgs::from_arg_matches(&matches).unwrap().check_start();
        let Err(Failure::Usage { message, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(message, "--start needs --from-snapshot, or a spec file with `fromSnapshot`");
    }

    #[test]
    fn a_file_that_names_a_snapshot_is_changed_by_its_keys_alone() {
        let checked = |words: &[&str]| {
            let text = "{fromSnapshot: 'lab:prepared', env: {A: b}}";
            let mut spec = SpecFile::parse(std::path::Path::new("/specs/microagent.yaml"), text).unwrap();
            let command = CreateArgs::augment_args(Command::new("create").no_binary_name(true));
            let words = [&["--file", "/specs/microagent.yaml"], words].concat();
            let matches = from_snapshot_alone(command).try_get_matches_from(words).unwrap();
            CreateArgs::from_arg_matches(&matches).unwrap().check_file_alone(&mut spec).map(|()| spec.name)
        };
        let name = checked(&["web", "--start", "--quiet"]).unwrap();
        assert_eq!(name, Some("web".parse().unwrap()));
        assert_eq!(checked(&["--name", "api"]).unwrap(), Some("api".parse().unwrap()));
        for other in [
            &["web", "--memory", "1g"][..],
            &["web", "--image", "i"],
            &["web", "sleep", "1"],
            &["web", "-e", "A=c"],
            &["web", "--restart", "always"],
            &["web", "--output", "a=/a"],
        ] {
            assert!(matches!(checked(other), Err(Failure::Usage { .. })), "{other:?}");
        }
    }

    #[test]
    fn flags_become_options() {
        let made =
            options(&["web", "--image", "i", "--restart", "on-failure:3", "--service-command", "x"]).unwrap();
        assert_eq!((made.name.as_str(), made.restart), ("web", RestartPolicy::OnFailure { most: Some(3) }));
        assert_eq!(made.service, Some(RunCommand::Shell("x".into())));
        let made = options(&["--name", "web", "--image", "i", "--image-command", "--shell", "ash"]).unwrap();
        assert_eq!((made.service, made.shell.as_deref()), (Some(RunCommand::Image), Some("ash")));
        assert_eq!(
            options(&["web", "--image", "i", "--restart", "no"]).unwrap().restart,
            RestartPolicy::Never
        );
    }

    #[test]
    fn words_are_name_or_image_and_then_the_service() {
        let argv =
            |words: &[&str]| Some(RunCommand::Argv(words.iter().map(|&word| word.to_owned()).collect()));
        for (words, name, service) in [
            (&["--name", "c1", "i", "sleep", "100"][..], "c1", argv(&["sleep", "100"])),
            (&["c1", "--image", "i", "sh", "-c", "x"], "c1", argv(&["sh", "-c", "x"])),
            (&["--name", "c1", "--image", "i", "sleep"], "c1", argv(&["sleep"])),
            (&["i"], "i-000001", None),
            (&["i", "sleep", "--name", "x"], "i-000001", argv(&["sleep", "--name", "x"])),
        ] {
            let made = options(words).unwrap();
            assert_eq!((made.name.as_str(), made.workspace.image.as_str()), (name, "i"), "{words:?}");
            assert_eq!(made.service, service, "{words:?}");
        }
        let entry = options(&["--entrypoint", "/x", "i", "--", "-y"]).unwrap().service;
        assert_eq!(entry, Some(RunCommand::Entrypoint(vec!["/x".into(), "-y".into()])));
        for twice in [&["--image-command", "i", "ls"][..], &["--service-command", "x", "i", "ls"]] {
            assert!(matches!(options(twice), Err(Failure::Usage { .. })), "{twice:?}");
        }
        assert!(options(&[]).is_err() && options(&["a/b", "--image", "i"]).is_err());
        assert!(options(&["--entrypoint", "", "i"]).is_err());
    }

    #[test]
    fn an_image_command_that_nothing_starts_is_named() {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        assert!(
            idle_command(&words(&["nginx", "-g", "daemon off;"])).unwrap().contains("(nginx -g daemon off;)")
        );
        assert_eq!((idle_command(&[]), idle_command(&words(&["/bin/sh"]))), (None, None));
    }

    #[test]
    fn dockers_flags_are_refused_with_their_reason() {
        for flag in ["--privileged", "--pid=host", "-v=/a:/b", "--device=x"] {
            let refused = options(&["web", "--image", "i", flag]).unwrap_err();
            assert!(matches!(refused, Failure::Usage { hint: Some(_), .. }), "{flag}");
        }
    }

    #[test]
    fn flags_go_over_a_spec_file() {
        let merged = |text: &str, words: &[&str]| {
            let spec = SpecFile::parse(std::path::Path::new("/specs/microagent.yaml"), text).unwrap();
            let command = CreateArgs::augment_args(Command::new("create").no_binary_name(true));
            let words = [&["--file", "/specs/microagent.yaml"], words].concat();
            let matches = command.try_get_matches_from(words).unwrap();
            CreateArgs::from_arg_matches(&matches).unwrap().options(spec, &made_up)
        };
        const FILE: &str = "{name: web, image: i, restart: always, service: x, shell: ash}";
        let file = merged(FILE, &[]).unwrap();
        assert_eq!((file.name.as_str(), file.workspace.image.as_str()), ("web", "i"));
        assert_eq!((file.restart, file.shell.as_deref()), (RestartPolicy::Always, Some("ash")));
        assert_eq!(file.service, Some(RunCommand::Shell("x".into())));
        let flags = merged(FILE, &["api", "--image", "j", "--restart", "never", "--shell", "sh"]).unwrap();
        assert_eq!((flags.name.as_str(), flags.workspace.image.as_str()), ("api", "j"));
        assert_eq!((flags.restart, flags.shell.as_deref()), (RestartPolicy::Never, Some("sh")));
        let image = merged(FILE, &["--image-command"]).unwrap();
        assert_eq!(image.service, Some(RunCommand::Image));
        let line = merged("{name: a, image: i, imageCommand: true}", &["--service-command", "y"]).unwrap();
        assert_eq!(line.service, Some(RunCommand::Shell("y".into())));
        assert!(merged("image: i", &[]).is_err() && merged("name: a", &[]).is_err());
    }
}
