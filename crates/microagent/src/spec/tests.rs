use microagent_model::{DiskSource, SetupStep};

use super::*;
use crate::{Hint, RunCommand};

fn parse(text: &str) -> Result<SpecFile, SpecError> {
    SpecFile::parse(Path::new("/specs/microagent.yaml"), text)
}

fn file(text: &str) -> SpecFile {
    parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Whether a hint says something.
fn has_words(hint: &Hint) -> bool {
    !matches!(hint, Hint::Advice(text) if text.is_empty())
}

/// Line, column, message and hint of what is wrong.
#[track_caller]
fn wrong(text: &str) -> (u64, u64, String, String) {
    match parse(text) {
        Err(SpecError::Wrong { line, column, message, hint, .. }) => (line, column, message, hint),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn every_key_becomes_an_option() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("setup.sh"), "echo script").unwrap();
    std::fs::write(dir.path().join("vars"), "FROM_FILE=1\nBOTH=file\n").unwrap();
    let path = dir.path().join("microagent.yaml");
    let text = "
name: web
image: debian:12
pull: never
profile: medium
restart: on-failure:3
service: [python3, -m, http.server]
shell: zsh
hostname: box
user: '1000'
workdir: /srv
setup: [apt-get update]
setupFiles: [setup.sh]
env: {PORT: 8080, DEBUG: true, EMPTY: '', NO: no, BOTH: spec}
envFiles: [vars]
resources: {memoryMiB: 700, cpuCount: 3, sizeMiB: 4096}
network:
  mode: user
  forwards: ['8080:80', {hostPort: 0, guestPort: 22, host: 0.0.0.0, protocol: tcp}, '53-54:53-54/udp',
    {hostPort: 443, guestPort: 443, host: '::1'}]
  dns: [192.0.2.53, '[2001:db8::53]:5353']
  dnsSearch: [corp.example]
  dnsHost: true
  addHosts: ['DB:10.1.2.3', 'proxy:host-gateway']
  hostForwards: ['11434=localhost:11434', {guestPort: 5432, host: 10.1.2.3, hostPort: 15432}]
egress: {mode: allowlist, allow: [example.org, 10.0.0.0/8], maxConnections: 7, maxBytes: 1000}
volumes: ['data:/data:ro', './in.tar:/in', {name: more, mountpoint: /more}, {path: sub/x.img, mountpoint: /x, mode: ro}]
disks: [{path: disk.ext4, mountpoint: /disk}]
bundles: [{path: /abs/src.tgz, mountpoint: /src, mode: ro}]
secrets: {TOKEN: 'env:GITHUB', KEY: 'file:./secret.txt', DB: 'dotenv:.env#DB'}
outputs: [{name: report, path: /srv/report}]
";
    std::fs::write(&path, text).unwrap();
    let options = SpecFile::read(&path).unwrap().create_options(&|_| None).unwrap();
    let workspace = &options.workspace;
    let of_dir = |name: &str| dir.path().join(name);
    assert_eq!((options.name.as_str(), workspace.image.as_str()), ("web", "debian:12"));
    assert_eq!((workspace.pull, workspace.profile.name), (PullPolicy::Never, "medium"));
    assert_eq!(
        (options.restart, options.shell.as_deref()),
        (RestartPolicy::OnFailure { most: Some(3) }, Some("zsh"))
    );
    let words = ["python3", "-m", "http.server"].map(str::to_owned).to_vec();
    assert_eq!(options.service, Some(RunCommand::Entrypoint(words)));
    assert_eq!(workspace.hostname.as_deref(), Some("box"));
    assert_eq!((workspace.user.as_deref(), workspace.working_dir.as_deref()), (Some("1000"), Some("/srv")));
    let script = SetupStep::Script { name: "setup.sh".into(), content: b"echo script".to_vec() };
    assert_eq!(workspace.setup, [SetupStep::Shell("apt-get update".into()), script]);
    let env: Vec<_> = workspace.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(env, ["FROM_FILE=1", "BOTH=file", "BOTH=spec", "DEBUG=true", "EMPTY=", "NO=no", "PORT=8080"]);
    assert_eq!(
        (workspace.memory_mib, workspace.cpu_count, workspace.size_mib),
        (Some(700), Some(3), Some(4096))
    );
    let publish: Vec<_> = workspace.publish.iter().map(ToString::to_string).collect();
    assert_eq!(
        publish,
        [
            "127.0.0.1:8080:80/tcp",
            "0.0.0.0:0:22/tcp",
            "127.0.0.1:53:53/udp",
            "127.0.0.1:54:54/udp",
            "[::1]:443:443/tcp"
        ]
    );
    let forwards: Vec<_> = workspace.forwards.iter().map(ToString::to_string).collect();
    assert_eq!(forwards, ["11434=127.0.0.1:11434", "5432=10.1.2.3:15432"]);
    let hosts: Vec<_> = workspace.dns.hosts.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["db:10.1.2.3", "proxy:host-gateway"]);
    let dns = &workspace.dns;
    assert_eq!((dns.servers.len(), dns.search.len(), dns.host_file), (2, 1, true));
    let egress = &workspace.egress;
    assert_eq!((egress.mode, egress.allow.len()), (EgressMode::Allowlist, 2));
    assert_eq!((egress.max_connections, egress.max_bytes), (7, 1000));
    let disks: Vec<_> = workspace
        .disks
        .iter()
        .map(|disk| (disk.source.clone(), disk.mount_point.as_str(), disk.read_only))
        .collect();
    assert_eq!(
        disks,
        [
            (DiskSource::Volume("data".parse().unwrap()), "/data", true),
            (DiskSource::Bundle(of_dir("in.tar")), "/in", false),
            (DiskSource::Volume("more".parse().unwrap()), "/more", false),
            (DiskSource::Image(of_dir("sub/x.img")), "/x", true),
            (DiskSource::Image(of_dir("disk.ext4")), "/disk", false),
            (DiskSource::Bundle("/abs/src.tgz".into()), "/src", true),
        ]
    );
    let secrets: Vec<_> = workspace.secrets.iter().map(ToString::to_string).collect();
    let of_dir = |name: &str| of_dir(name).display().to_string();
    assert_eq!(
        secrets,
        [
            format!("DB=dotenv:{}#DB", of_dir(".env")),
            format!("KEY=file:{}", of_dir("secret.txt")),
            "TOKEN=env:GITHUB".to_owned()
        ]
    );
    assert_eq!(workspace.outputs, [Artifact { name: "report".into(), path: "/srv/report".into() }]);
}

#[test]
fn the_keys_of_a_run() {
    let run = |text: &str| file(&format!("image: i\n{text}")).run_options(&|_| None).unwrap();
    let argv = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    assert_eq!(run("").command, RunCommand::Image);
    assert_eq!(run("exec: date; id").command, RunCommand::Shell("date; id".into()));
    assert_eq!(run("command: [ls, 3, -l]").command, RunCommand::Argv(argv(&["ls", "3", "-l"])));
    assert_eq!(run("entrypoint: ls\ncommand: [-l]").command, RunCommand::Entrypoint(argv(&["ls", "-l"])));
    assert_eq!(run("entrypoint: [ls, /]").command, RunCommand::Entrypoint(argv(&["ls", "/"])));
    assert_eq!(run("entrypoint: ''\ncommand: [id]").command, RunCommand::Entrypoint(argv(&["id"])));
    for (text, seconds) in [("90", 90), ("1m30s", 90), ("'5'", 5)] {
        assert_eq!(run(&format!("timeout: {text}")).timeout, Some(Duration::from_secs(seconds)), "{text}");
    }
    assert!(run("keep: true").keep && !run("keep: false").keep && !run("").keep);
    let of_other = file("restart: always\nservice: x\nshell: y\nexec: z\nkeep: true");
    assert_eq!(of_other.not_for_run(), ["restart", "service", "shell"]);
    assert_eq!(of_other.only_for_run(), ["exec", "keep"]);
}

#[test]
fn json_and_an_empty_file_are_spec_files_too() {
    let json = file(r#"{"image": "busybox", "env": {"A": "1"}, "resources": {"memoryMiB": 64}}"#);
    assert_eq!((json.image.as_deref(), json.resources.memory_mib), (Some("busybox"), Some(64)));
    for empty in ["", "# nothing\n", "---\n", "env:\nresources:\nnetwork:\negress:\nvolumes:\n"] {
        assert_eq!(file(empty), file(""), "{empty}");
    }
}

#[test]
fn images_in_files_are_looked_for_beside_the_spec_file() {
    for (image, meant) in [
        ("oci:layout:tag", "oci:/specs/layout:tag"),
        ("oci-archive:../a.tar", "oci-archive:/specs/../a.tar"),
        ("docker-archive:/abs.tar", "docker-archive:/abs.tar"),
        ("localhost:5000/oci:1", "localhost:5000/oci:1"),
    ] {
        assert_eq!(file(&format!("image: '{image}'")).image.as_deref(), Some(meant));
    }
}

#[test]
fn an_unknown_key_is_named_with_the_nearest() {
    for (text, line, column, hint) in [
        ("imge: x", 1, 1, "did you mean `image`?"),
        ("image: x\nsetupfiles: []", 2, 1, "did you mean `setupFiles`?"),
        ("setup-files: []", 1, 1, "did you mean `setupFiles`?"),
        ("setup_file: []", 1, 1, "did you mean `setupFiles`?"),
        ("memory_mib: 3", 1, 1, "did you mean `resources.memoryMiB`?"),
        ("memory: 3", 1, 1, "did you mean `resources.memoryMiB`?"),
        ("resources:\n  memory_mib: 3", 2, 3, "did you mean `memoryMiB`?"),
        ("resources: {memory: 3}", 1, 13, "did you mean `resources.memoryMiB`?"),
        ("resources: {cpucount: 3}", 1, 13, "did you mean `cpuCount`?"),
        ("ports: []", 1, 1, "did you mean `network.forwards`?"),
        ("network:\n  forward: []", 2, 3, "did you mean `forwards`?"),
        ("network:\n  forwards:\n  - hostPort: 1\n    guest_port: 2", 4, 5, "did you mean `guestPort`?"),
        ("environment: {}", 1, 1, "did you mean `env`?"),
        ("volumes: [{name: a, target: /b}]", 1, 21, "did you mean `mountpoint`?"),
        ("outputs:\n  - pth: /x", 2, 5, "did you mean `path`?"),
    ] {
        let (at_line, at_column, message, said) = wrong(text);
        assert_eq!((at_line, at_column, said.as_str()), (line, column, hint), "{text}");
        assert!(message.ends_with("is not known"), "{text}: {message}");
    }
    assert!(wrong("zzzzzz: 1").3.starts_with("there are: name, image, "));
}

#[test]
fn what_other_programs_have_is_said_not_to_be_here() {
    for (text, says) in [
        ("files: [{src: a, dst: /a}]", "copy them in"),
        ("mediation: {enabled: true}", "egress"),
        ("model: x", "no models"),
        ("modelRunner: {}", "no models"),
        ("agent: {}", "secrets"),
        ("network: {ipv6Gateway: x}", "where their host has it"),
        ("resources: {headroomMiB: 1}", "sizeMiB"),
    ] {
        let (_, _, message, hint) = wrong(text);
        assert!(message.ends_with("is not supported") && hint.contains(says), "{text}: {message}; {hint}");
    }
}

#[test]
fn wrong_values_are_shown_where_they_stand() {
    for (text, line, column, says) in [
        ("resources:\n  memoryMiB: lots", 2, 14, "a whole number"),
        ("resources: {memoryMiB: -1}", 1, 24, "a whole number"),
        ("resources: {cpuCount: 4294967296}", 1, 23, "a whole number"),
        ("resources: 3", 1, 12, "keys with values"),
        ("setup: apt-get update", 1, 8, "a list"),
        ("image: [a]", 1, 8, "a text"),
        ("image: x\nkeep: yes", 2, 7, "true or false"),
        ("name: 'a b'", 1, 7, "not a workspace name"),
        ("profile: hug", 1, 10, "tiny, small, medium, large"),
        ("restart: sometimes", 1, 10, "not possible"),
        ("network: {mode: bridge}", 1, 17, "not possible"),
        ("network: {forwards: ['53:53/sctp']}", 1, 22, "only `tcp` and `udp`"),
        ("network: {forwards: [8080]}", 1, 22, "HOST_PORT:]GUEST_PORT"),
        ("network: {forwards: [{hostPort: 1}]}", 1, 23, "`guestPort` is missing"),
        ("egress: {allow: ['*.example.org']}", 1, 18, "pattern"),
        ("volumes: [data]", 1, 11, "SOURCE:/GUEST/PATH"),
        ("volumes: ['da.ta:/x']", 1, 11, "not a volume name"),
        ("outputs: [{name: a, path: b}]", 1, 10, "absolute"),
        ("timeout: soon", 1, 10, "number of seconds"),
        ("image: *nowhere", 1, 8, "anchor"),
        ("image: 'x", 1, 8, "quote"),
        ("a\n- b", 1, 1, ""),
        ("image: a\nimage: b", 2, 1, "is given twice"),
        ("image: a\n---\nimage: b", 2, 1, "more than one document"),
        ("image: !mine a", 1, 14, "tag"),
    ] {
        let (at_line, at_column, message, hint) = wrong(text);
        assert_eq!((at_line, at_column), (line, column), "{text}: {message}");
        assert!(message.contains(says) && !hint.is_empty(), "{text}: {message}");
    }
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    for (text, says) in [
        ("exec: a\ncommand: [b]", "given twice"),
        ("exec: a\nentrypoint: b", "given twice"),
        ("service: a\nimageCommand: true", "given twice"),
        ("service: []", "no program"),
        ("volumes: [{name: a, path: b, mountpoint: /x}]", "either a `name` or a `path`"),
        ("volumes: [{mountpoint: /x}]", "either a `name` or a `path`"),
        ("network: {forwards: [{hostPort: 1, guestPort: 0}]}", "not a valid port"),
        ("network: {forwards: [{hostPort: 1, guestPort: 1, protocol: sctp}]}", "only `tcp` and `udp`"),
    ] {
        match parse(text) {
            Err(error @ SpecError::Meaning { .. }) => assert!(error.to_string().contains(says), "{error}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    assert!(file("service: a\nimageCommand: false").service.is_some());
    let nameless = file("image: a").create_options(&|_| None).unwrap_err();
    assert!(nameless.to_string().contains("no name"), "{nameless}");
    assert!(file("name: a").run_options(&|_| None).unwrap_err().to_string().contains("no image"));
}

#[test]
fn a_snippet_shows_the_line_and_the_place() {
    let snippet = |text: &str| parse(text).unwrap_err().snippet().map(str::to_owned);
    assert_eq!(snippet("image: x\nimge: y\n").unwrap(), "2 | imge: y\n  | ^");
    assert_eq!(snippet("resources:\n\n  memoryMiB: x").unwrap(), "3 |   memoryMiB: x\n  |              ^");
    let long = format!("network: {{mode: {}}}", "x".repeat(10_000));
    assert!(snippet(&long).unwrap().len() < 300);
    let far = format!("setup: [{}{{}}]", "a,".repeat(300));
    assert!(snippet(&far).unwrap().len() < 300);
    assert_eq!(snippet("{\n  \"image\": \"x\",\n  \"nope\": 3\n}").unwrap(), "3 |   \"nope\": 3\n  |   ^");
}

#[test]
fn nothing_of_a_private_block_is_repeated() {
    for text in [
        "secrets:\n  TOKEN: hunter2",
        "secrets: {TOKEN: hunter2}",
        "secrets: {TOKEN: 'hunter2:3'}",
        "secrets: hunter2",
        "secrets: [TOKEN=hunter2]",
        "secrets:\n  TOKEN: 'hunter2:x'\n  TOKEN: hunter2",
        "secrets:\n  TOKEN: [hunter2]",
        "env: hunter2",
        "env: [A=hunter2]",
        "env:\n  - A=hunter2",
        "env:\n  A=hunter2: x",
        "env:\n  A: [hunter2]\nimage: x",
        "env:\n  A:\n    B: hunter2",
        "env:\n  A: hunter2\n  A: hunter2",
        "env:\n  A: 'hunter2",
        "{\"secrets\": {\"TOKEN\": \"hunter2\"}}",
        "{\"env\": {\"A\": \"hunter2\"}, \"imgae\": 3}",
        "{\n  \"env\": {\n    \"A\": [\"hunter2\"]\n  }\n}",
    ] {
        let error = parse(text).unwrap_err();
        let said = format!("{error} {:?} {:?} {error:?}", error.hint(), error.snippet());
        assert!(!said.contains("hunter2"), "{text}: {said}");
    }
}

#[test]
fn bombs_and_mountains_are_refused() {
    let mut bomb = "setup: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for depth in 1..12 {
        use std::fmt::Write;
        let aliases = vec![format!("*a{}", depth - 1); 9].join(", ");
        writeln!(bomb, "x{depth}: &a{depth} [{aliases}]").unwrap();
    }
    let deep = format!("command: {}{}", "[".repeat(10_000), "]".repeat(10_000));
    let wide = format!("setup:\n{}", "- x\n".repeat(200_000));
    let aliased = format!("setup: &s [{}]\ncommand: *s\n", "x, ".repeat(60_000));
    let nested = format!("env: &e\n  A: &v '{}'\n  B: *v\nimage: *e\n", "x".repeat(1000));
    let copied = format!("setup: [&s {}{}]\n", "x".repeat(500_000), ", *s".repeat(100_000));
    for text in [&bomb, &deep, &wide, &aliased, &nested, &copied] {
        let error = parse(text).unwrap_err();
        assert!(error.to_string().len() < 1000 && has_words(&error.hint()), "{error}");
    }
    for text in [&wide, &copied] {
        let (_, _, message, _) = wrong(text);
        assert!(message.contains("too large"), "{message}");
    }
    // What people write with them still works.
    let file = file("setup: [&s apt-get update, *s]\nenv: &e {A: 1}\nsecrets: {<<: {}}\n");
    assert_eq!(file.setup.unwrap(), ["apt-get update", "apt-get update"]);
}

#[test]
fn a_file_that_is_no_text_or_too_large_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spec.yaml");
    let read = |content: &[u8]| {
        std::fs::write(&path, content).unwrap();
        SpecFile::read(&path)
    };
    assert!(matches!(read(b"image: \xff"), Err(SpecError::NotText { offset: 7, .. })));
    let mountain = "#".repeat(1024 * 1024 + 1);
    assert!(matches!(read(mountain.as_bytes()), Err(SpecError::TooLarge { limit: 1_048_576, .. })));
    assert!(read(&mountain.as_bytes()[1..]).is_ok());
    assert!(matches!(SpecFile::read(&dir.path().join("none")), Err(SpecError::Read { .. })));
    assert!(matches!(SpecFile::read(dir.path()), Err(SpecError::Read { .. })));
    assert!(SpecFile::read(dir.path()).unwrap_err().hint() == Hint::ChooseSpecFile);
}

proptest::proptest! {
    #[test]
    fn whatever_is_in_it_nothing_panics(text in "(image|env|setup|volumes|network)?[:\\[\\]{}&*!|>'\"a-z0-9 \n\t#,-]{0,200}") {
        if let Err(error) = parse(&text) {
            proptest::prop_assert!(error.to_string().len() < 2000 && has_words(&error.hint()));
        }
    }
}
