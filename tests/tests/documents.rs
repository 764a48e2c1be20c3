//! What every command prints with `--json`, on a real guest, against the schema of its command. The harness checks each
//! document (`microagent_tests::schema`); here it is all of them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;

use microagent_tests::registry::Registry;
use microagent_tests::{Home, User, schema};

/// Calls commands and notes whose documents were seen.
struct Documents<'a> {
    home: &'a Home,
    seen: BTreeSet<String>,
}

impl Documents<'_> {
    #[track_caller]
    fn call(&mut self, words: &[&str]) {
        let words = [words, &["--json"]].concat();
        self.home.call().args(&words).success().json();
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        self.seen.insert(schema::schema_name(&words));
    }

    #[track_caller]
    fn call_all(&mut self, lines: &[&str]) {
        for line in lines {
            self.call(&line.split(' ').collect::<Vec<_>>());
        }
    }

    /// As `call`, with the command in front, for one whose other options must come before words of its own.
    #[track_caller]
    fn call_with(&mut self, command: &[&str], rest: &[&str]) {
        let words = [command, &["--json"], rest].concat();
        self.home.call().args(&words).success().json();
        self.seen.insert(command.join("-"));
    }
}

#[test]
fn every_document_is_as_its_schema_says() {
    let registry = Registry::start().expect("a registry");
    let home = Home::new(User::Caller);
    let image = home.image("busybox");
    let pushed = format!("{}/made:1", registry.address());
    let mut documents = Documents { home: &home, seen: BTreeSet::new() };

    documents.call_all(&[
        "version",
        "profiles",
        "doctor",
        "kernel verify",
        "completions bash",
        "man",
        "man --dir pages",
        "list",
        "system df",
        "config show",
        "volume create data --size-mib 16",
        "volume resize data --size-mib 32",
        "volume status data",
        "volume list",
        "network create backend",
        "network list",
        "network inspect backend",
        "network delete backend",
    ]);
    home.write("token", "value");
    documents.call(&["secret", "check", "TOKEN=file:token", "FROM=env:PATH"]);

    documents.call(&["image", "pull", &image]);
    documents.call(&["image", "tag", &image, &pushed]);
    documents.call(&["image", "push", &pushed]);
    documents.call(&["image", "save", "-o", "saved.tar", &pushed]);
    documents.call(&["image", "load", "-i", "saved.tar"]);
    home.make_dir("tree");
    home.write("tree/file", "content");
    home.other("tar").args(["-cf", "tree.tar", "-C", "tree", "."]).success();
    documents.call(&["image", "import", "tree.tar", "tree:1"]);
    documents.call(&["image", "list"]);
    documents.call(&["image", "history", "tree:1"]);
    documents.call(&["image", "delete", "tree:1"]);

    workspace(&mut documents, &image, &pushed);

    let series = ["--image", &image, "--network", "isolated", "--profile", "tiny", "--iterations", "1"];
    documents.call(&[&["perf", "boot"][..], &series].concat());
    documents.call(&[&["perf", "ready", "--start", "warm"][..], &series].concat());
    documents.call_all(&["template build --network isolated", "template list"]);
    let templates = home.microagent(["template", "list", "--json"]).success().json();
    let key = templates["templates"][0]["key"].as_str().expect("a template").to_owned();
    documents.call(&["template", "delete", &key[..12]]);
    home.microagent(["template", "delete", &key]).run().code(1).says("no template");
    documents.call(&["template", "prune", "--all"]);
    documents.call_all(&[
        "delete web copy -f",
        "volume delete data --yes",
        "image prune",
        "volume prune --yes",
        "system prune --yes",
    ]);

    home.run("busybox", ["--json=stream", "--network", "isolated"], &["true"]).success().json_lines();
    documents.seen.insert("stream".to_owned());
    home.microagent(["status", "web", "--json"]).run().code(1).json_error();
    documents.seen.insert("error".to_owned());
    let files =
        fs::read_dir(schema::dir()).expect("the schemas").map(|entry| entry.expect("a schema").path());
    let all: BTreeSet<_> = files.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    assert_eq!(documents.seen, all, "a schema that no call was checked against, or the other way round");
}

/// The commands of jobs.
fn jobs(documents: &mut Documents<'_>) {
    documents.home.microagent(["exec", "--detach", "--json", "web", "--", "cat"]).success().json();
    documents.seen.insert("exec-detach".to_owned());
    documents.home.microagent(["exec", "--detach", "web", "--", "sleep", "10000"]).success();
    documents.call_all(&[
        "job wait web 1",
        "jobs web",
        "job status web 1",
        "job logs web 1",
        "job signal web 2 WINCH",
        "job kill web 2",
    ]);
}

/// The commands of a run and of a workspace.
fn workspace(documents: &mut Documents<'_>, image: &str, pushed: &str) {
    documents.call_with(&["run"], &["--network", "isolated", image, "echo", "hello"]);
    let create = ["--image", image, "--service-command", "echo up; sleep 10000", "--publish", "0:80"];
    let more = ["--volume", "data:/data", "--output", "report=/root/report", "--secret", "TOKEN=file:token"];
    documents.call(&[&["create", "web"][..], &create, &more].concat());
    documents.call(&["start", "web"]);
    documents.call_with(
        &["exec"],
        &["web", "--", "sh", "-c", "echo done > /root/report; nslookup none.invalid; :"],
    );
    jobs(documents);
    documents.call_all(&[
        "cp web:/root/report report-copy",
        "sync tree web:/root/tree",
        "logs web",
        "status web",
        "top web",
        "diff web",
        "export web -o web.tar",
        "stats web",
        "stats",
        "network web",
        "port web",
        "egress web",
        "events web",
        "list",
        "ps",
        "artifact web",
        "pause web",
        "resume web",
        "restart web",
        "touch web --ttl 1h",
        "quarantine web",
        "kill web",
        "start web",
        "halt web",
        "port remove web 0",
        "port add web 80",
        "wait web",
        "artifact get web report fetched",
    ]);
    documents.call(&["commit", "web", pushed, "--push"]);
    documents.call_all(&[
        "clone web double",
        "rename double copy",
        "resize copy 2g",
        "fork copy forked",
        "delete forked --yes",
        "snapshot create copy --tag one",
        "snapshot list copy",
        "snapshot export copy:one copy.snapshot",
        "snapshot import copy.snapshot brought",
        "delete brought --yes",
        "snapshot restore copy one --yes",
        "snapshot delete copy one --yes",
        "start copy",
        "stop copy",
        "supervise copy --install",
    ]);
    documents.call(&["supervise", "copy", "--uninstall"]);
    documents.home.write("spec.yaml", format!("image: '{image}'\nenv: {{NEW: value}}\n"));
    documents.call(&["apply", "copy", "--file", "spec.yaml", "--dry-run"]);
    documents.call_with(&["run"], &["--keep", "--name", "job", "--network", "isolated", image, "true"]);
    documents.call_all(&["result job", "delete job --yes"]);
    documents.call(&["create", "brief", "--image", image, "--service-command", "echo up"]);
    documents.call(&["supervise", "brief"]);
}
