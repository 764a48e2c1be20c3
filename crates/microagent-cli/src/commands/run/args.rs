//! The arguments of `run`, and how they become [`RunOptions`].

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use microagent::spec::value::{duration, output};
use microagent::{Artifact, RunCommand, RunOptions, SpecFile, WorkspaceName};

use super::streams::StreamArgs;
use crate::args::boot::BootModeArgs;
use crate::args::docker::{DockerFlags, refusal};
use crate::args::workspace::WorkspaceArgs;
use crate::environment;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  Run one command; the microVM and its disk are removed afterwards:
    microagent run docker.io/library/alpine:3.20 cat /etc/alpine-release

  Run setup steps first, in the same boot, and a shell line as the command:
    microagent run --image debian:12 --setup 'apt-get update' \\
      --setup 'apt-get install -y jq' --exec 'jq --version'

  Get a file out of a run:
    microagent run --keep --name report --image alpine:3.20 \\
      --output report=/srv/report.txt --exec 'date > /srv/report.txt'
    microagent artifact get report report ./report.txt
    microagent delete report --yes

  Open a shell, feed a script, use the output, print one JSON document for programs:
    microagent run -it alpine:3.20 sh
    microagent run -i alpine:3.20 sh < script.sh
    VERSION=$(microagent run -q alpine:3.20 cat /etc/alpine-release)
    microagent run --json --propagate-exit-code --timeout 60 alpine:3.20 sh -c 'exit 7'";

const LONG_ABOUT: &str = "\
Runs one command in a fresh microVM, prints how it ended and its output, and removes everything. With -i, -t or --stream \
the output comes while the command runs, and the summary goes to standard error; with --raw or -q there is none.

Options go before IMAGE: all words after it belong to the command. Without COMMAND the image's \
Entrypoint and Cmd run. Exits with 0 when the run completed, whatever the command returned (see `Exit code:` \
or `result.exit_code`), unless --propagate-exit-code is given.";

/// Run one command in a fresh microVM
#[derive(Debug, Args)]
#[command(
    long_about = LONG_ABOUT,
    after_long_help = EXAMPLES,
    override_usage = "microagent run [OPTIONS] IMAGE [COMMAND [ARG]...]\n       \
        microagent run [OPTIONS] --image IMAGE [--exec STRING | COMMAND [ARG]...]\n       \
        microagent run [OPTIONS] --file SPEC [--exec STRING | COMMAND [ARG]...]"
)]
pub(crate) struct RunArgs {
    /// Image (unless --image or --file gives it), then the command and its arguments, all verbatim
    #[arg(value_name = "IMAGE COMMAND", trailing_var_arg = true)]
    words: Vec<String>,

    /// Image to run: a registry reference, `oci:DIR[:TAG]`, `oci-archive:FILE` or `docker-archive:FILE`
    #[arg(long, value_name = "IMAGE", help_heading = "What to run")]
    image: Option<String>,

    /// Shell line to run instead of COMMAND; the guest's /bin/sh evaluates it
    #[arg(long, value_name = "STRING", allow_hyphen_values = true, help_heading = "What to run")]
    exec: Option<String>,

    /// Program instead of the image's Entrypoint; COMMAND becomes its arguments
    #[arg(long, value_name = "PROGRAM", conflicts_with = "exec", help_heading = "What to run")]
    entrypoint: Option<String>,

    #[command(flatten)]
    workspace: WorkspaceArgs,

    /// Guest kernel instead of the built-in one: an uncompressed vmlinux
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    pub(super) kernel: Option<PathBuf>,

    #[command(flatten, next_help_heading = "Machine")]
    pub(super) boot: BootModeArgs,

    /// Kill the machine after this time: seconds, or with units such as 1m30s
    #[arg(long, value_name = "SECONDS", value_parser = duration, help_heading = "The run")]
    timeout: Option<Duration>,

    /// Name of the workspace [default: run- and the time in nanoseconds]
    #[arg(long, value_name = "NAME", help_heading = "The run")]
    name: Option<WorkspaceName>,

    /// Keep the workspace: its disk, logs and outputs
    #[arg(long, help_heading = "The run")]
    keep: bool,

    /// Remove everything after the run (the default without -d)
    #[arg(long, visible_alias = "delete", conflicts_with = "keep", help_heading = "The run")]
    rm: bool,

    /// Declare a file or directory of the guest that `artifact get` can fetch; with --keep (repeatable)
    #[arg(long, value_name = "NAME=/GUEST/PATH", value_parser = output, help_heading = "The run")]
    output: Vec<Artifact>,

    /// Exit with the command's exit code
    #[arg(
        long,
        env = environment::PROPAGATE_EXIT_CODE,
        hide_env_values = true,
        value_parser = clap::builder::FalseyValueParser::new(),
        help_heading = "The run"
    )]
    pub(super) propagate_exit_code: bool,

    #[command(flatten)]
    pub(super) streams: StreamArgs,

    #[command(flatten)]
    docker: DockerFlags,
}

impl RunArgs {
    /// Checks what clap cannot and reads the files that the arguments name.
    pub(super) fn options(&self, spec: SpecFile) -> Result<RunOptions, Failure> {
        self.docker.refuse()?;
        if let Some(flag) = self.workspace.health_flag().filter(|_| !self.streams.detach) {
            return Err(refusal(
                flag,
                "a run ends with its command and has no health check",
                "with -d the command is a service with a health check; --timeout limits the time of a run",
            ));
        }
        let spec = self.over(spec)?;
        let mut options = spec.run_options(&environment::passed_through)?;
        self.workspace.lay_over(&mut options.workspace, &self.output)?;
        Ok(options)
    }

    /// What the spec file says, or nothing.
    pub(super) fn spec(&self) -> Result<SpecFile, Failure> {
        self.workspace.spec()
    }

    /// The network that a flag names.
    pub(super) fn network(&self) -> Option<&str> {
        self.workspace.network()
    }

    /// Lays the flags that are the run's own over what a spec file says.
    fn over(&self, mut spec: SpecFile) -> Result<SpecFile, Failure> {
        if self.image.is_some() {
            spec.image.clone_from(&self.image);
        }
        let words = match (&spec.image, self.words.split_first()) {
            (Some(_), _) => &self.words[..],
            (None, Some((image, words))) => {
                spec.image = Some(image.clone());
                words
            }
            (None, None) => {
                return Err(Failure::usage(
                    "no image was given",
                    "microagent run IMAGE [COMMAND [ARG]...], or see `microagent run --help`",
                ));
            }
        };
        self.command_over(&mut spec, words)?;
        spec.keep = if self.keep || self.rm { Some(self.keep) } else { spec.keep };
        // As Docker has it: what runs in the background stays, unless that is said.
        spec.keep = spec.keep.or(self.streams.detach.then_some(true));
        spec.name = self.name.clone().or(spec.name);
        spec.timeout = self.timeout.or(spec.timeout);
        Ok(spec)
    }

    /// Exactly one source: words, `--exec`, what the file says, or the image. Another program takes the file's words
    /// with it; other words leave its program.
    fn command_over(&self, spec: &mut SpecFile, words: &[String]) -> Result<(), Failure> {
        match (&self.exec, &self.entrypoint) {
            (Some(_), _) if !words.is_empty() => {
                return Err(Failure::usage(
                    "the command is given twice: with --exec and after the image",
                    "use one of them; all words after IMAGE belong to the command",
                ));
            }
            // Docker's way to say "no entrypoint": the words alone are the command.
            (None, Some(program)) if program.is_empty() && words.is_empty() => {
                return Err(Failure::usage(
                    "an empty --entrypoint needs a command",
                    "give a command after IMAGE",
                ));
            }
            _ => {}
        }
        if let Some(line) = &self.exec {
            (spec.exec, spec.entrypoint, spec.command) = (Some(line.clone()), None, None);
        }
        if let Some(program) = &self.entrypoint {
            (spec.exec, spec.entrypoint, spec.command) = (None, Some(vec![program.clone()]), None);
        }
        if !words.is_empty() {
            (spec.exec, spec.command) = (None, Some(words.to_vec()));
        }
        Ok(())
    }
}

/// What to look at when the command could not be started: a word that looks like an option of `run`.
pub(super) fn option_after_image(options: &RunOptions) -> Option<&str> {
    match &options.command {
        RunCommand::Argv(words) => words.first().map(String::as_str).filter(|word| word.starts_with('-')),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};
    use microagent::NetworkMode;
    use microagent::image::PullPolicy;
    use microagent::{Attachment, WorkspaceOptions};

    use super::*;

    fn args(words: &[&str]) -> RunArgs {
        let command = RunArgs::augment_args(Command::new("run").no_binary_name(true));
        RunArgs::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap()
    }

    fn command(words: &[&str]) -> RunCommand {
        args(words).options(SpecFile::default()).unwrap().command
    }

    fn message(words: &[&str]) -> String {
        match args(words).options(SpecFile::default()) {
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
        assert_eq!(
            args(&["--keep", "alpine", "--name", "x"]).options(SpecFile::default()).unwrap().name,
            None
        );
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
        .options(SpecFile::default())
        .unwrap();
        let workspace = options.workspace;
        assert_eq!(workspace.env, [("A".to_owned(), "1".to_owned())]);
        assert_eq!(
            (workspace.memory_mib, workspace.cpu_count, workspace.size_mib),
            (Some(1024), Some(2), Some(4096))
        );
        assert_eq!(workspace.network, NetworkMode::Isolated);
        assert_eq!(options.timeout, Some(Duration::from_secs(90)));
        assert_eq!(options.name.unwrap().as_str(), "web");
        assert!(options.keep);
        assert_eq!(workspace.outputs, [Artifact { name: "r".into(), path: "/srv/r".into() }]);
        assert_eq!(
            (workspace.user.as_deref(), workspace.working_dir.as_deref()),
            (Some("nobody"), Some("/tmp"))
        );
        assert_eq!((workspace.profile.name, workspace.hostname.as_deref()), ("tiny", Some("h")));
        assert_eq!(workspace.pull, PullPolicy::Never);
    }

    #[test]
    fn refusals_come_before_everything_else() {
        assert!(message(&["--privileged"]).starts_with("--privileged is not possible here"));
        assert!(message(&["--health-cmd", "true", "alpine"]).contains("no health check"));
        assert!(message(&["-v", "/src:/src", "alpine"]).contains("never shared"));
        assert!(message(&["--network", "host", "alpine"]).contains("own kernel"));
        assert!(message(&["--output", "a=/x", "--output", "a=/y", "alpine"]).contains("twice"));
    }

    /// What a run is to be that these words and a spec file ask for.
    fn merged(text: &str, words: &[&str]) -> RunOptions {
        let spec = SpecFile::parse(std::path::Path::new("/specs/microagent.yaml"), text).unwrap();
        args(words).options(spec).unwrap()
    }

    #[test]
    fn a_flag_takes_the_place_of_the_files_value() {
        const FILE: &str = "{name: web, image: i, pull: never, profile: tiny, hostname: h, user: u, workdir: /w, \
            resources: {memoryMiB: 100, cpuCount: 1, sizeMiB: 900}, network: {mode: isolated}, timeout: 9, keep: true}";
        let file = merged(FILE, &[]);
        let none = merged(FILE, &["--image", "j"]);
        assert_eq!((file.workspace.image.as_str(), none.workspace.image.as_str()), ("i", "j"));
        assert_eq!((file.name.as_ref().unwrap().as_str(), file.keep), ("web", true));
        assert_eq!((file.timeout, file.workspace.pull), (Some(Duration::from_secs(9)), PullPolicy::Never));
        assert_eq!((file.workspace.profile.name, file.workspace.network), ("tiny", NetworkMode::Isolated));
        assert_eq!((file.workspace.memory_mib, file.workspace.cpu_count), (Some(100), Some(1)));
        let flags = merged(
            FILE,
            &[
                "--name",
                "api",
                "--pull",
                "always",
                "--profile",
                "large",
                "--hostname",
                "g",
                "-u",
                "v",
                "-w",
                "/x",
                "-m",
                "200",
                "--cpus",
                "2",
                "--size-mib",
                "1000",
                "--network",
                "user",
                "--timeout",
                "8",
                "--rm",
            ],
        );
        assert_eq!((flags.name.as_ref().unwrap().as_str(), flags.keep), ("api", false));
        assert_eq!((flags.timeout, flags.workspace.pull), (Some(Duration::from_secs(8)), PullPolicy::Always));
        let workspace = &flags.workspace;
        assert_eq!((workspace.profile.name, workspace.network), ("large", NetworkMode::User));
        assert_eq!((workspace.memory_mib, workspace.cpu_count), (Some(200), Some(2)));
        assert_eq!((workspace.size_mib, workspace.hostname.as_deref()), (Some(1000), Some("g")));
        assert_eq!((workspace.user.as_deref(), workspace.working_dir.as_deref()), (Some("v"), Some("/x")));
        assert!(merged("image: i", &["--keep"]).keep && merged("image: i\nkeep: false", &["--keep"]).keep);
    }

    #[test]
    fn lists_of_file_and_flags_go_together_by_name() {
        let file = "{image: i, env: {A: file, B: file}, setup: [first], \
            outputs: [{name: a, path: /file}, {name: b, path: /file}]}";
        let flags = ["-e", "A=flag", "--setup", "second", "--output", "b=/flag", "--output", "c=/flag"];
        let workspace = merged(file, &flags).workspace;
        let last = |wanted: &str| {
            workspace.env.iter().rev().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
        };
        assert_eq!((last("A"), last("B")), (Some("flag"), Some("file")));
        let outputs: Vec<_> = workspace.outputs.iter().map(|output| (&*output.name, &*output.path)).collect();
        assert_eq!(outputs, [("a", "/file"), ("b", "/flag"), ("c", "/flag")]);
        let labels: Vec<_> = workspace.setup.iter().map(microagent::SetupStep::label).collect();
        assert_eq!(labels, ["first", "second"]);
    }

    #[test]
    fn ports_and_egress_of_flags_go_over_those_of_the_file() {
        let file = "{image: i, network: {forwards: ['8080:80', '2222:22']}, \
            egress: {mode: allowlist, allow: [a.example], maxConnections: 5, maxBytes: 6}}";
        let shown = |words: &[&str]| {
            let WorkspaceOptions { publish, egress, .. } = merged(file, words).workspace;
            let publish: Vec<_> = publish.iter().map(ToString::to_string).collect();
            let allow: Vec<_> = egress.allow.iter().map(ToString::to_string).collect();
            let numbers = (egress.max_connections, egress.max_bytes);
            (publish.join(" "), egress.mode.to_string(), allow.join(" "), numbers)
        };
        let owned = |ports: &str, mode: &str, allow: &str, numbers| {
            (ports.to_owned(), mode.to_owned(), allow.to_owned(), numbers)
        };
        let of_file = "127.0.0.1:8080:80/tcp 127.0.0.1:2222:22/tcp";
        assert_eq!(shown(&[]), owned(of_file, "allowlist", "a.example", (5, 6)));
        let flags = ["-p", "9090:80", "-p", "1:1", "--egress", "open", "--egress-allow", "b.example"];
        let numbers = ["--egress-max-connections", "7", "--egress-max-bytes", "8b"];
        assert_eq!(
            shown(&[&flags[..], &numbers].concat()),
            owned(
                "127.0.0.1:2222:22/tcp 127.0.0.1:9090:80/tcp 127.0.0.1:1:1/tcp",
                "open",
                "a.example b.example",
                (7, 8)
            )
        );
    }

    #[test]
    fn a_secret_of_a_flag_takes_the_place_of_the_files() {
        let file = "{image: i, secrets: {A: 'env:A', B: 'file:b'}}";
        let workspace = merged(file, &["--secret", "B=env:B", "--secret", "C=helper:c"]).workspace;
        let secrets: Vec<_> = workspace.secrets.iter().map(ToString::to_string).collect();
        assert_eq!(secrets, ["A=env:A", "B=env:B", "C=helper:c"]);
    }

    #[test]
    fn a_flag_mounts_in_place_of_the_file() {
        let file = "{image: i, volumes: ['a:/a', 'b:/b:ro'], disks: [{path: x.img, mountpoint: /x}]}";
        let words = ["-v", "c:/b", "--disk", "/y:/x:ro", "--bundle", "/z.tar:/z"];
        let mounted = |words: &[&str]| {
            let disks = merged(file, words).workspace.disks;
            let one =
                |disk: &Attachment| format!("{} {:?} {}", disk.mount_point, disk.source, disk.read_only);
            disks.iter().map(one).collect::<Vec<_>>()
        };
        let volume = |name: &str| format!("Volume(VolumeName(\"{name}\"))");
        let a = format!("/a {} false", volume("a"));
        let b = format!("/b {} true", volume("b"));
        assert_eq!(mounted(&[]), [a.clone(), b, "/x Image(\"/specs/x.img\") false".to_owned()]);
        let c = format!("/b {} false", volume("c"));
        let rest = ["/x Image(\"/y\") true".to_owned(), "/z Bundle(\"/z.tar\") false".to_owned()];
        assert_eq!(mounted(&words), [vec![a, c], rest.to_vec()].concat());
    }

    #[test]
    fn the_command_of_the_file_gives_way_to_that_of_the_line() {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let argv = |words: &[&str]| RunCommand::Argv(owned(words));
        let entrypoint = |words: &[&str]| RunCommand::Entrypoint(owned(words));
        let shell = |line: &str| RunCommand::Shell(line.to_owned());
        let program = "image: i\nentrypoint: ls\ncommand: [-l]";
        for (file, words, command) in [
            ("image: i\nexec: x", &[][..], shell("x")),
            ("image: i\nexec: x", &["--exec", "y"], shell("y")),
            ("image: i\nexec: x", &["ls", "-a"], argv(&["ls", "-a"])),
            ("image: i\nexec: x", &["--entrypoint", "id"], entrypoint(&["id"])),
            ("image: i\ncommand: [ls]", &["--exec", "y"], shell("y")),
            ("image: i\ncommand: [ls]", &["id", "-u"], argv(&["id", "-u"])),
            (program, &[], entrypoint(&["ls", "-l"])),
            (program, &["--", "-a"], entrypoint(&["ls", "-a"])),
            (program, &["--entrypoint", "id"], entrypoint(&["id"])),
            (program, &["--entrypoint", "id", "--", "-u"], entrypoint(&["id", "-u"])),
            (program, &["--entrypoint", "", "date"], entrypoint(&["date"])),
            // Without an image in the file the first word names one, as ever.
            ("command: [ls]", &["alpine", "id"], argv(&["id"])),
            ("command: [ls]", &["alpine"], argv(&["ls"])),
        ] {
            // Options of `run` end where the words begin.
            assert_eq!(merged(file, words).command, command, "{file} {words:?}");
        }
    }
}
