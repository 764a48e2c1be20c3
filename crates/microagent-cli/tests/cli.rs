//! The command as a person or a script meets it: every help page, refusals, errors, exit codes.
//!
//! Hermetic: no environment but a temporary home, no state. Nothing here starts a guest. Snapshots are
//! rewritten with `SNAPSHOTS=overwrite cargo test -p microagent-cli`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use snapbox::cmd::{Command, OutputAssert};
use snapbox::{Assert, Data, Redactions, assert_data_eq, cmd, str};
use tempfile::TempDir;

/// Every command that a person can name.
const COMMANDS: &[&str] = &[
    "",
    "run",
    "create",
    "apply",
    "start",
    "exec",
    "connect",
    "cp",
    "sync",
    "halt",
    "stop",
    "kill",
    "pause",
    "resume",
    "quarantine",
    "supervise",
    "ps",
    "list",
    "status",
    "logs",
    "events",
    "stats",
    "top",
    "diff",
    "export",
    "image history",
    "wait",
    "result",
    "clone",
    "artifact",
    "artifact get",
    "delete",
    "secret",
    "secret check",
    "image",
    "image list",
    "image pull",
    "image import",
    "image delete",
    "image prune",
    "doctor",
    "jobs",
    "job",
    "job status",
    "job logs",
    "job wait",
    "job signal",
    "job stdin",
    "job kill",
    "profiles",
    "kernel",
    "kernel verify",
    "volume",
    "volume create",
    "volume list",
    "volume status",
    "volume resize",
    "volume delete",
    "template",
    "template list",
    "template build",
    "template prune",
    "perf",
    "perf boot",
    "perf ready",
    "completions",
    "man",
    "version",
];

/// A home of its own, empty.
struct Home {
    dir: TempDir,
}

impl Home {
    fn new() -> Home {
        Home { dir: tempfile::tempdir().unwrap() }
    }

    fn command(&self) -> Command {
        let mut redactions = Redactions::new();
        redactions.insert("[HOME]", self.dir.path().to_owned()).unwrap();
        Command::new(cmd::cargo_bin!("microagent"))
            .with_assert(Assert::new().action_env("SNAPSHOTS").normalize_paths(false).redact_with(redactions))
            .env_clear()
            .env("HOME", self.dir.path())
            .current_dir(self.dir.path())
    }

    #[track_caller]
    fn run(&self, words: &str) -> OutputAssert {
        self.command().args(words.split_whitespace()).assert()
    }

    fn is_empty(&self) -> bool {
        fs::read_dir(self.dir.path()).unwrap().next().is_none()
    }
}

#[track_caller]
fn run(words: &str) -> OutputAssert {
    Home::new().run(words)
}

#[test]
fn help_pages() {
    let home = Home::new();
    for words in COMMANDS {
        let name = if words.is_empty() { "microagent".to_owned() } else { words.replace(' ', "-") };
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help").join(format!("{name}.txt"));
        home.run(&format!("{words} --help")).success().stderr_eq("").stdout_eq(Data::read_from(&page, None));
    }
    assert!(home.is_empty());
}

#[test]
fn groups_and_the_bare_command_explain_themselves() {
    for words in ["", "secret", "image", "volume", "kernel", "artifact", "template", "perf", "system"] {
        let help = run(&format!("{words} --help")).success().get_output().stdout.clone();
        run(words).success().stderr_eq("").stdout_eq(String::from_utf8(help).unwrap());
    }
    run("help run").success().stderr_eq("");
}

#[test]
fn versions_agree() {
    let line = format!("microagent {}\n", env!("CARGO_PKG_VERSION"));
    for words in ["version", "--version", "-V"] {
        run(words).success().stdout_eq(line.clone()).stderr_eq("");
    }
}

#[test]
fn wrong_command_lines_exit_with_2_and_say_what_to_type() {
    let cases = [
        (
            "lsit",
            str![[r#"
Error: there is no command `lsit`
Hint: did you mean `list`?

"#]],
        ),
        (
            "run --kep alpine",
            str![[r#"
Error: `microagent run` has no option --kep
Hint: did you mean `--keep`?

"#]],
        ),
        (
            "aply --file x",
            str![[r#"
Error: there is no command `aply`
Hint: did you mean `apply`?

"#]],
        ),
        (
            "run",
            str![[r#"
Error: no image was given
Hint: microagent run IMAGE [COMMAND [ARG]...], or see `microagent run --help`

"#]],
        ),
        (
            "create",
            str![[r#"
Error: no image was given
Hint: microagent create NAME --image IMAGE, or see `microagent create --help`

"#]],
        ),
        (
            "create web --image alpine --broker x",
            str![[r#"
Error: invalid value 'x' for '--broker <NAME=URL,secret=SCHEME:REF[,KEY=VALUE]>': a broker is written NAME=https://HOST[/BASE],secret=SCHEME:REFERENCE
Hint: such as --broker API=https://api.example.org,secret=env:API_KEY

"#]],
        ),
        (
            "create web --image alpine --profile huge",
            str![[r#"
Error: invalid value 'huge' for '--profile <NAME>': expected one of: tiny, small, medium, large
Hint: `microagent profiles` shows their sizes; --memory, --cpus and --size-mib set others

"#]],
        ),
        (
            "fork web --count 0",
            str![[r#"
Error: invalid value '0' for '--count <N>': 0 is not a number from 1 to 256
Hint: see `microagent fork --help`

"#]],
        ),
        (
            "delete --yes",
            str![[r#"
Error: the following required arguments were not provided: <NAME>...
Hint: see `microagent delete --help`

"#]],
        ),
        (
            "logs ../x",
            str![[r#"
Error: invalid value '../x' for '<NAME>...': `../x` is not a workspace name: it must start with a letter or digit, continue with letters, digits, `.`, `_` or `-`, and have at most 63 characters
Hint: see `microagent logs --help`

"#]],
        ),
        (
            "run --timeout soon alpine",
            str![[r#"
Error: invalid value 'soon' for '--timeout <SECONDS>': it is a number of seconds, or with units as in 1m30s
Hint: see `microagent run --help`

"#]],
        ),
        (
            "run --cpus 1.5 alpine",
            str![[r#"
Error: invalid value '1.5' for '--cpus <N>': fractions of a CPU are not supported; use --cpus 2
Hint: see `microagent run --help`

"#]],
        ),
        (
            "run --exec x alpine ls",
            str![[r#"
Error: the command is given twice: with --exec and after the image
Hint: use one of them; all words after IMAGE belong to the command

"#]],
        ),
        (
            "run --keep --rm alpine",
            str![[r#"
Error: the argument '--keep' cannot be used with '--rm'
Hint: see `microagent run --help`

"#]],
        ),
        (
            "list --accel xen",
            str![[r#"
Error: invalid value 'xen' for '--accel <WHICH>' [possible values: auto, kvm, tcg]
Hint: see `microagent list --help`

"#]],
        ),
        (
            "perf boot",
            str![[r#"
Error: no image was given
Hint: name one with --image; `microagent image list` shows those that are here

"#]],
        ),
        (
            "perf ready --image alpine --network host",
            str![[r#"
Error: invalid value 'host' for '--network <MODE>': expected one of: user, isolated
Hint: see `microagent perf ready --help`

"#]],
        ),
        (
            "delete web",
            str![[r#"
Error: no workspace `web`
Hint: `microagent list` shows the saved workspaces

"#]],
        ),
    ];
    for (words, expected) in cases {
        let code = if words == "delete web" { 1 } else { 2 };
        run(words).code(code).stdout_eq("").stderr_eq(expected);
    }
}

#[test]
fn dockers_verbs_get_an_answer() {
    let cases = [
        (
            "build .",
            str![[r#"
Error: there is no command `build`
Hint: microagent does not build images: build with Docker, Buildah or your CI, then run the result

"#]],
        ),
        (
            "image inspect alpine",
            str![[r#"
Error: there is no command `image inspect`
Hint: microagent image list --json | jq '.images[] | select(.resolved_reference | endswith("REF"))'

"#]],
        ),
        (
            "container ls",
            str![[r#"
Error: there is no command `container`
Hint: omit `container`: microagent VERB, such as microagent ps or microagent delete NAME

"#]],
        ),
    ];
    for (words, expected) in cases {
        run(words).code(2).stdout_eq("").stderr_eq(expected);
    }
}

/// The whole table is gone through by a test beside it; this is how its answers look.
#[test]
fn dockers_flags_are_refused_with_the_way_that_works() {
    let cases = [
        (
            "run --privileged alpine id",
            str![[r#"
Error: --privileged is not possible here: the guest has its own kernel and is root on it; there are no host privileges to grant or drop
Hint: omit it: inside the microVM root can do everything already

"#]],
        ),
        (
            "run -v /srv:/data alpine ls",
            str![[r#"
Error: --volume /srv:/data is not possible here: a directory of the host is never shared with a guest, which sees block devices only
Hint: pipe it in, `tar -C DIR -c . | microagent run -v -:/guest/path IMAGE`, or attach a tar file of it, -v dir.tar:/guest/path; or copy it into a workspace with microagent cp, or keep both the same with microagent sync; for files without a known ending use --disk or --bundle

"#]],
        ),
        (
            "run -dit alpine sh",
            str![[r#"
Error: -d cannot be combined with -i or -t: a command in the background has no terminal
Hint: omit -i and -t; for a shell in a machine that stays: microagent create NAME --image IMAGE, microagent start NAME, microagent connect NAME

"#]],
        ),
        (
            "run --net=host alpine",
            str![[r#"
Error: --network host is not possible here: the guest has its own kernel and cannot share the host's network
Hint: use --network user: outbound NAT, and the ports that -p publishes

"#]],
        ),
        (
            "run -p 8080:80 --network isolated nginx",
            str![[r#"
Error: --publish (-p) is not possible here: with --network isolated the guest has no network device
Hint: use --network user, or omit the option

"#]],
        ),
        (
            "run -P nginx",
            str![[r#"
Error: --publish-all (-P) is not possible here: ports that an image exposes are not published automatically
Hint: publish each port: -p HOST_PORT:PORT; HOST_PORT 0 picks a free port

"#]],
        ),
    ];
    for (words, expected) in cases {
        let home = Home::new();
        home.run(words).code(2).stdout_eq("").stderr_eq(expected);
        assert!(home.is_empty(), "{words}");
    }
}

#[test]
fn errors_are_one_json_line_where_json_was_asked_for() {
    let usage = str![[r#"
{"kind":"invalid","message":"`microagent list` has no option --nonsense","hint":"see `microagent list --help`","retryable":false}

"#]];
    run("list --json --nonsense").code(2).stdout_eq("").stderr_eq(usage);
    let missing = str![[r#"
{"kind":"not_found","message":"no workspace `web`","hint":"`microagent list` shows the saved workspaces","retryable":false}

"#]];
    run("--json logs web").code(1).stdout_eq("").stderr_eq(missing.clone());
    Home::new()
        .command()
        .env("MICROAGENT_OUTPUT", "json")
        .args(["logs", "web"])
        .assert()
        .code(1)
        .stderr_eq(missing);
}

#[test]
fn spec_files_are_read_strictly() {
    let home = Home::new();
    let call = |words: &str, text: &str| {
        fs::write(home.dir.path().join("spec.yaml"), text).unwrap();
        home.command().current_dir(home.dir.path()).args(words.split_whitespace()).assert().stdout_eq("")
    };
    call("run --file spec.yaml", "image: busybox\nsetup_files:\n  - a.sh\n").code(2).stderr_eq(str![[r#"
Error: spec.yaml:2:1: key `setup_files` is not known
  2 | setup_files:
    | ^
Hint: did you mean `setupFiles`?

"#]]);
    call("create --file spec.yaml", "resources:\n  memoryMiB: lots\n").code(2).stderr_eq(str![[r#"
Error: spec.yaml:2:14: expected a whole number that fits
  2 |   memoryMiB: lots
    |              ^
Hint: write one without quotes and units

"#]]);
    call("apply --file spec.yaml", "secrets:\n  TOKEN: hunter2\n").code(2).stderr_eq(str![[r#"
Error: spec.yaml:2:3: secret `TOKEN`: where it is is written SCHEME:REFERENCE, and SCHEME is env, file, dotenv, vault or helper
Hint: write each secret as NAME: SCHEME:REFERENCE, once

"#]]);
    call("run --file spec.yaml", "exec: a\ncommand: [b]\n").code(2).stderr_eq(str![[r#"
Error: spec.yaml: the command is given twice: `exec`, and `command` or `entrypoint`
Hint: keep one of them

"#]]);
    call("create --file spec.yaml", "image: busybox\n").code(2).stderr_eq(str![[r#"
Error: spec.yaml: no name is given
Hint: add `name`, or give one to the command

"#]]);
    call("create web --file spec.yaml", "").code(2).stderr_eq(str![[r#"
Error: spec.yaml: no image is named
Hint: add the key `image`, or use --image

"#]]);
    call("apply --file spec.yaml", "image: busybox\n").code(2).stderr_eq(str![[r#"
Error: no workspace was named
Hint: microagent apply NAME --file SPEC, or give the file a `name`

"#]]);
    call("apply --file spec.yaml", "name: web\nkeep: true\n").code(1).stderr_eq(str![[r#"
Note: `keep` of the spec file has no effect on apply
Error: no workspace `web`
Hint: `microagent list` shows the saved workspaces

"#]]);
    call("run --json --file spec.yaml", "imge: x\n").code(2).stderr_eq(str![[r#"
{"kind":"invalid","message":"spec.yaml:1:1: key `imge` is not known","hint":"did you mean `image`?","retryable":false}

"#]]);
    home.command().args(["run", "--file", "missing.yaml"]).assert().code(2).stderr_eq(str![[r#"
Error: cannot read spec file `missing.yaml`: No such file or directory (os error 2)
Hint: give the file with --file; no file is read without it

"#]]);
    // A file that lies there is not read unless it is named.
    fs::write(home.dir.path().join("microagent.yaml"), "nonsense").unwrap();
    home.command().current_dir(home.dir.path()).arg("run").assert().code(2).stderr_eq(str![[r#"
Error: no image was given
Hint: microagent run IMAGE [COMMAND [ARG]...], or see `microagent run --help`

"#]]);
}

#[test]
fn an_argument_that_is_no_text_is_refused_with_another_way() {
    let bytes = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"a\xff");
    Home::new().command().args(["run", "alpine", "echo"]).arg(bytes).assert().code(2).stderr_eq(str![[r#"
Error: an argument is not UTF-8
Hint: pass other bytes to the guest by standard input (-i), or in a file: microagent cp

"#]]);
}

#[test]
fn the_environment_is_checked_like_flags() {
    let with = |name: &str, value: &str| Home::new().command().env(name, value).arg("list").assert();
    with("MICROAGENT_OUTPUT", "yaml").code(2).stderr_eq(str![[r#"
Error: MICROAGENT_OUTPUT is `yaml`, expected `text` or `json`
Hint: set it to one of them, or unset it

"#]]);
    with("MICROAGENT_ACCEL", "xen").code(2).stdout_eq("");
    with("MICROAGENT_PROGRESS", "loud").code(2).stdout_eq("");
    with("MICROAGENT_WARM", "sometimes").code(2).stderr_eq(str![[r#"
Error: MICROAGENT_WARM is `sometimes`, expected `on` or `off`
Hint: set it to one of them, or unset it

"#]]);
    for value in ["on", "off", "OFF", "0", ""] {
        with("MICROAGENT_WARM", value).success();
    }
    with("NO_COLOR", "1").success();
}

#[test]
fn reading_an_empty_state_says_so_and_makes_nothing() {
    let home = Home::new();
    home.run("list").success().stdout_eq("No workspaces.\n").stderr_eq("");
    home.run("ls").success().stdout_eq("No workspaces.\n").stderr_eq("");
    home.run("list --json").success().stderr_eq("").stdout_eq(str![[r#"
{
  "workspaces": []
}

"#]]);
    home.run("image list").success().stdout_eq("No images.\n").stderr_eq("");
    home.run("images").success().stdout_eq("No images.\n").stderr_eq("");
    home.run("template list").success().stdout_eq("No templates.\n").stderr_eq("");
    home.run("volume list").success().stdout_eq("No volumes.\n").stderr_eq("");
    home.run("template prune --all").success().stdout_eq("Nothing to remove.\n").stderr_eq("");
    home.run("delete nothing --yes").success().stdout_eq("Nothing to delete: nothing\n").stderr_eq("");
    assert!(home.is_empty());
}

#[test]
fn a_state_directory_that_others_can_change_is_refused() {
    let home = Home::new();
    let state = home.dir.path().join(".microagent");
    // What a command that trusts it would sweep away.
    let precious = state.join("tmp/deleted-precious");
    fs::create_dir_all(&precious).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o777)).unwrap();
    for words in
        ["list", "delete web --yes", "image list", "volume create data", "logs web", "apply --file x"]
    {
        home.run(words).failure().stdout_eq("").stderr_eq(str![[r#"
Error: other users can write to state directory `[HOME]/.microagent` (mode 777)
Hint: choose another directory with --state-dir or MICROAGENT_STATE_DIR

"#]]);
    }
    let doctor = home.run("doctor").get_output().stdout.clone();
    assert!(String::from_utf8(doctor).unwrap().contains("other users can write to state directory"));
    home.run("version").success();
    assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
    assert!(precious.exists());
    fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
    home.run("list").success();
}

#[test]
fn no_command_waits_for_a_fifo_in_the_state_directory() {
    let home = Home::new();
    let state = home.dir.path().join(".microagent");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    for name in [
        "workspaces/web/workspace.json",
        "volumes/data/volume.json",
        "images/refs/one.json",
        "templates/key/manifest.json",
    ] {
        let path = state.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    }
    fs::create_dir_all(state.join("tmp")).unwrap();
    for words in [
        "list",
        "ps",
        "status web",
        "logs web",
        "kill web",
        "image list",
        "image prune",
        "volume list",
        "volume status data",
        "template list",
        "doctor",
        "volume delete data",
        "delete web --yes",
    ] {
        let command = home.command().args(words.split_whitespace()).timeout(Duration::from_secs(60));
        let output = command.output().unwrap();
        assert!(output.status.code().is_some(), "{words}: {output:?}");
    }
    home.run("status web").failure().stderr_eq(str![[r#"
Error: no workspace `web`
Hint: `microagent list` shows the saved workspaces

"#]]);
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let home = Home::new();
    for name in ["MICROAGENT_STATE_DIR", "MICROAGENT_ACCEL", "MICROAGENT_PROGRESS", "MICROAGENT_OUTPUT"] {
        home.command()
            .env(name, "")
            .arg("list")
            .assert()
            .success()
            .stdout_eq("No workspaces.\n")
            .stderr_eq("");
    }
    home.run("list --state-dir=").code(2);
}

#[test]
fn sizes_have_an_upper_bound_wherever_they_are_given() {
    let home = Home::new();
    let spec = home.dir.path().join("microagent.yaml");
    let too_large = |size: u64| {
        format!("Error: a disk of {size} MiB is too large\nHint: give at most 8388608 MiB (8 TiB)\n")
    };
    // 2^44 MiB are 2^64 bytes, which wraps around to an empty disk.
    for size in [8_388_609, 20_000_000, 17_592_186_044_416, 17_592_186_044_417] {
        fs::write(&spec, format!("image: x\nresources:\n  sizeMiB: {size}\n")).unwrap();
        for words in
            ["run --size-mib SIZE x", "create web --image x --size-mib SIZE", "run --file microagent.yaml"]
        {
            let words = words.replace("SIZE", &size.to_string());
            home.run(&words).code(2).stdout_eq("").stderr_eq(too_large(size));
        }
        home.run(&format!("volume create data --size-mib {size}")).code(2);
    }
    home.run("list").success().stdout_eq("No workspaces.\n");
}

#[test]
fn a_damaged_workspace_is_listed_and_can_be_deleted() {
    let home = Home::new();
    let record = home.dir.path().join(".microagent/workspaces/web");
    fs::create_dir_all(&record).unwrap();
    fs::create_dir(home.dir.path().join(".microagent/tmp")).unwrap();
    fs::write(record.join("workspace.json"), "{").unwrap();
    home.run("list")
        .success()
        .stdout_eq(str![[r#"
NAME                     STATE        BACKEND      PROFILE      NETWORK    RESTART        AGE   TTL   PORTS IMAGE
web                      damaged      -            -            -          -              -     -     -     -

"#]])
        .stderr_eq(str![[r#"
Note: web: cannot load workspace `web`: `[HOME]/.microagent/workspaces/web/workspace.json` is damaged: EOF while parsing an object at line 1 column 1

"#]]);
    home.run("delete web").code(2).stdout_eq("").stderr_eq(str![[r#"
Error: deleting needs a confirmation, but standard input is not a terminal
Hint: add --yes, or --force to kill running workspaces

"#]]);
    home.run("delete web --yes").success().stdout_eq("Deleted: web\n");
    home.run("list").success().stdout_eq("No workspaces.\n");
}

#[test]
fn a_damaged_template_is_listed_and_pruned() {
    let home = Home::new();
    let template = home.dir.path().join(".microagent/templates/00112233445566778899aabbccddeeff");
    fs::create_dir_all(&template).unwrap();
    fs::create_dir(home.dir.path().join(".microagent/tmp")).unwrap();
    fs::write(template.join("manifest.json"), "{").unwrap();
    home.run("template list").success().stderr_eq("").stdout_eq(str![[r#"
KEY          MEMORY    CPUS NETWORK  BACKEND   DISK         SIZE        CREATED              LAST USED            STALE
001122334455 -         -    -        -         -            0 B         -                    [..] yes

"#]]);
    home.run("template prune").success().stdout_eq("Removed 1 template, 0 B.\n").stderr_eq("");
    home.run("template list").success().stdout_eq("No templates.\n");
    assert!(!template.exists());
}

#[test]
fn doctor_says_whether_starts_are_warm() {
    let detail = |home: &Home, warm: &str| {
        let doctor = home.command().env("MICROAGENT_WARM", warm).args(["doctor", "--json"]).assert();
        let json: serde_json::Value = serde_json::from_slice(&doctor.get_output().stdout).unwrap();
        let checks = json["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == "warm_start").unwrap();
        assert_eq!(check["status"], "ok");
        check["detail"].as_str().unwrap().to_owned()
    };
    let home = Home::new();
    assert_eq!(detail(&home, "on"), "on, no templates yet: the first run of each size makes one");
    assert_eq!(detail(&home, "off"), "off, turned off by MICROAGENT_WARM; no templates yet");
    assert!(home.is_empty());
}

#[test]
fn completions_name_what_there_is() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&format!("completions {shell}")).success().stderr_eq("").get_output().stdout.clone();
        let script = String::from_utf8(script).unwrap();
        assert!(script.contains("propagate-exit-code") && script.contains("dry-run"), "{shell}");
        assert!(!script.contains("--privileged"), "{shell}");
    }
    run("completions tcsh").code(2).stdout_eq("");
}

#[test]
fn manual_pages_are_printed_and_written() {
    let home = Home::new();
    home.run("man --dir man/man1").success().stdout_eq("[..] pages written to man/man1\n");
    let written = fs::read_to_string(home.dir.path().join("man/man1/microagent-run.1")).unwrap();
    assert_data_eq!(written.clone(), home.run("man run").success().get_output().stdout.clone());
    assert!(written.contains(".SH SYNOPSIS"), "{written}");
    home.run("man walk").code(2).stdout_eq("");
}

#[test]
fn profiles_for_programs() {
    let json = run("profiles --json").success().stderr_eq("").get_output().stdout.clone();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["default"], "small");
    assert_eq!(json["profiles"][1]["memory_mib"], 512);
}

/// Asks bash what it would complete a line with.
#[track_caller]
fn completed(state: &std::path::Path, line: &str) -> Vec<String> {
    let script = r#"
        source <(microagent completions bash)
        COMP_WORDS=($1 "$2"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _microagent_names microagent "$2" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_microagent"));
    let path = format!("{}:/usr/bin:/bin", program.parent().unwrap().display());
    let (words, current) = line.rsplit_once(' ').unwrap();
    let output = std::process::Command::new("bash")
        .args(["--norc", "-c", script, "bash", words, current])
        .env("PATH", path)
        .env("MICROAGENT_STATE_DIR", state)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_names_and_modes() {
    let state = tempfile::tempdir().unwrap();
    for name in ["data", "dump"] {
        let made = std::process::Command::new(env!("CARGO_BIN_EXE_microagent"))
            .args(["volume", "create", name])
            .env("MICROAGENT_STATE_DIR", state.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    assert_eq!(completed(state.path(), "microagent volume delete du"), ["dump"]);
    assert_eq!(completed(state.path(), "microagent run -v d"), ["data", "dump"]);
    assert_eq!(completed(state.path(), "microagent run --network "), ["user", "isolated"]);
    assert_eq!(completed(state.path(), "microagent res"), ["restart", "resume", "result", "resize"]);

    let job = state.path().join("workspaces/web/machine/jobs/12");
    fs::create_dir_all(&job).unwrap();
    let record = r#"{"id": 12, "command": "true", "started_at": "2026-11-22T10:00:00Z", "stdin": false,
        "supervisor": null, "end": null}"#;
    fs::write(job.join("job.json"), record).unwrap();
    assert_eq!(completed(state.path(), "microagent job status we"), ["web"]);
    assert_eq!(completed(state.path(), "microagent job logs --tail 5 web "), ["12"]);
}
