//! Secrets: who can read them in a guest, where they are not, and what happens when one cannot be had. Vault is a real
//! server here, OpenBao's.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use microagent_tests::openbao::OpenBao;
use microagent_tests::process::Process;
use microagent_tests::{Finished, Home, User, host, user, wait_for};
use rustix::process::Signal;

/// Digest of a layer without entries, everywhere.
const EMPTY_LAYER: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// Says of the secrets' directory and of one secret who may do what, and what file system that is.
const DESCRIBE: &str = "stat -c '%a %u:%g %F' /run/secrets /run/secrets/TOKEN; stat -f -c %T /run/secrets; \
    grep -o ' /run/secrets .* - tmpfs' /proc/self/mountinfo | sed 's/ shared:[0-9]*//'; cat /run/secrets/TOKEN";

/// A text that is nowhere else.
fn unique(what: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    format!("{what}-{now}-{}-quagga", std::process::id())
}

fn shown(home: &Home, options: &[&str]) -> Finished {
    let words = [&["exec"][..], options, &["web", "--", "cat", "/run/secrets/TOKEN"]].concat();
    home.call().args(words).run()
}

#[test]
fn a_workspace_has_its_secrets_anew_at_each_start() {
    let home = Home::new(User::unprivileged());
    let image = home.configured_image("busybox", &["--config.user", "app"]);
    let file = home.write("token", "first value\n");
    let command = home.microagent(["create", "web", "--network", "isolated", "--image", &image]);
    // A relative path, and a setup step that needs the secret.
    let setup =
        "test \"$(cat /run/secrets/TOKEN)\" = 'first value' && test \"$(cat /run/secrets/OTHER)\" = 42";
    command
        .args(["--secret", "TOKEN=file:token", "--secret", "OTHER=env:ANSWER", "--setup", setup])
        .env("ANSWER", "42")
        .success();
    let status = home.microagent(["status", "web", "--json"]).success().json();
    let reference = format!("file:{}", file.display());
    assert_eq!(status["secrets"][0]["reference"], reference.as_str());
    assert_eq!(
        (&status["secrets"][1]["name"], &status["secrets"][1]["source"]),
        (&"OTHER".into(), &"env".into())
    );
    let text = home.microagent(["status", "web"]).success();
    assert!(text.text().contains(&format!("Secret: TOKEN from {reference}\n")), "{}", text.told());

    // From another directory; and without the variable of the other one, nothing is booted.
    let elsewhere = home.make_dir("elsewhere");
    let start = || home.microagent(["start", "web"]).dir(&elsewhere);
    let failed = start().run().code(1).says("cannot get secret `OTHER` from env:ANSWER").says("Hint: ");
    assert!(!failed.stderr.contains("Booting"), "{}", failed.told());
    assert_eq!((home.state_of("web").as_str(), home.processes().len()), ("prepared", 0));
    start().env("ANSWER", "42").success();

    let described = home.microagent(["exec", "web", "--", "sh", "-c", DESCRIBE]).success();
    let expected = "700 1000:1000 directory\n400 1000:1000 regular file\ntmpfs\n \
        /run/secrets rw,nosuid,nodev,noexec,noatime - tmpfs\nfirst value\n";
    assert_eq!(described.text(), expected);
    assert_eq!(shown(&home, &["--user", "root"]).code(0).text(), "first value\n");
    shown(&home, &["--user", "1234"]).code(1).says("Permission denied");
    home.microagent(["pause", "web"]).success();
    home.microagent(["resume", "web"]).success();
    home.microagent(["halt", "web"]).success();

    home.write("token", "second value\n");
    start().env("ANSWER", "42").success();
    assert_eq!(shown(&home, &[]).code(0).text(), "second value\n");
    home.microagent(["halt", "web"]).success();

    // Empty is as good as missing; a record without its secret still says where it should be.
    home.write("token", "");
    let failed = start().env("ANSWER", "42").run().code(1);
    failed.says("secret `TOKEN`").says("the value is empty");
    fs::remove_file(&file).unwrap();
    let failed = start().arg("--json").env("ANSWER", "42").run().code(1);
    assert_eq!(failed.json_error()["kind"], "secret");
    assert_eq!((home.state_of("web").as_str(), home.processes().len()), ("halted", 0));

    // Of all that, nothing is on its disk.
    let copied = home.microagent(["cp", "web:/run/.", "-"]).success();
    assert!(!String::from_utf8_lossy(&copied.stdout).contains("TOKEN"));
    let commit = home.microagent(["commit", "web", "committed:1", "--json"]).success().json();
    assert_eq!(commit["diff_id"], EMPTY_LAYER, "{commit}");
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

/// Fails the test if one of the files below `dir` has the text.
#[track_caller]
fn is_in_no_file(text: &str, dir: &Path) {
    let found = Command::new("grep").args(["-rlaF", "--", text]).arg(dir).output().unwrap();
    let files = String::from_utf8_lossy(&found.stdout);
    assert!(files.is_empty() && found.status.code() == Some(1), "it is in {files}{found:?}");
}

/// Fails the test if the command line or the environment of one of the processes has the text.
#[track_caller]
fn is_in_no_process(text: &str, processes: &[Process]) {
    assert!(processes.iter().any(Process::is_qemu) && processes.iter().any(Process::is_supervisor));
    for process in processes {
        for file in ["cmdline", "environ"] {
            let content = fs::read(format!("/proc/{}/{file}", process.pid)).unwrap();
            let has = content.windows(text.len()).any(|part| part == text.as_bytes());
            assert!(!has, "{file} of {process:?} has it");
        }
    }
}

#[test]
fn a_secret_is_in_no_file_and_in_no_command_line() {
    // Only root may see the environment of a process that holds secrets.
    let home = Home::new(User::Caller);
    let value = unique("needle");
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("value");
    fs::write(&path, &value).unwrap();
    let secret = format!("TOKEN=file:{}", path.display());
    let options = ["--json", "--profile", "tiny", "--network", "isolated", "--secret", &secret];
    let print = ["sh", "-c", "tr a-z A-Z < /run/secrets/TOKEN"];
    // Cold and frozen on the way, then warm, then warm with the image mounted.
    let mut modes = Vec::new();
    for _ in 0..3 {
        let ran = home.run("busybox", options, &print).success().json();
        assert_eq!(ran["result"]["stdout"], value.to_uppercase().as_str(), "{ran}");
        modes.push(ran["start"]["mode"].as_str().unwrap().to_owned());
        is_in_no_file(&value, &home.state());
    }
    assert_eq!(modes, ["cold", "warm", "warm"]);
    let without = home.run("busybox", ["--profile", "tiny", "--network", "isolated"], &["ls", "/run"]);
    assert_eq!(without.success().guest_output(), "");

    home.create("web", ["--secret", &secret, "--service-command", "echo serving; exec sleep 600"]);
    home.microagent(["start", "web"]).success();
    home.log_has("web", "console.log", "serving");
    is_in_no_file(&value, &home.state());
    is_in_no_process(&value, &home.processes());
    for words in [["logs", "web"], ["events", "web"], ["status", "web"]] {
        assert!(!home.microagent(words).success().text().contains(&value));
    }
    home.microagent(["kill", "web"]).success();
    is_in_no_file(&value, &home.state());
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

/// Core dumps below a directory or beside it, as `core(5)` names them.
fn cores(dirs: &[&Path]) -> Vec<std::path::PathBuf> {
    let entries = dirs.iter().flat_map(|dir| fs::read_dir(dir).unwrap().flatten());
    let is_core = |name: &str| name == "core" || name.starts_with("core.");
    entries
        .map(|entry| entry.path())
        .filter(|path| is_core(path.file_name().unwrap().to_str().unwrap_or("")))
        .collect()
}

#[test]
fn a_crash_leaves_no_core_of_what_held_a_secret() {
    if !user::is_root() {
        return host::skip("an ordinary user cannot write where the supervisor's core would go");
    }
    let home = Home::new(User::Caller);
    // The check itself works only where cores become files: here one that may be dumped is.
    let control = "ulimit -c unlimited; sh -c 'kill -SEGV $$'; ls";
    let control = home.other("sh").args(["-c", control]).run();
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let dumps_files = control.text().contains("core");
    if !dumps_files {
        host::skip(&format!(
            "cores do not become files here (pattern `{}`): limits are looked at alone",
            pattern.trim()
        ));
    }
    let secret = format!("TOKEN=file:{}", home.write("value", unique("core")).display());
    home.create("web", ["--secret", &secret]);
    let places = [Path::new("/"), home.path(), &home.state(), &home.workspace("web")];
    let before = cores(&places);
    // The supervisor's own runtime takes the first SEGV for a stack that may have overflowed.
    for (role, signal) in
        [("supervisor", Signal::ABORT), ("machine", Signal::SEGV), ("machine", Signal::ABORT)]
    {
        let start = format!("ulimit -c unlimited; exec {} start web", home.program().display());
        home.other("sh").args(["-c", &start]).success();
        let processes = home.processes();
        let is_wanted = if role == "supervisor" { Process::is_supervisor } else { Process::is_qemu };
        let process = processes.iter().find(|process| is_wanted(process)).unwrap();
        let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid)).unwrap();
        let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["1", "1", "bytes"]);
        process.signal(signal);
        home.processes_end();
        assert_eq!(cores(&places), before, "the {role} left a core");
        wait_for("the end to be seen", Duration::from_secs(60), || match home.state_of("web").as_str() {
            "failed" => Ok(()),
            other => Err(other.to_owned()),
        });
    }
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn vault_is_read_by_openbao_over_https() {
    let home = Home::new(User::Caller);
    let server = OpenBao::start();
    server.bao(&["kv", "put", "-mount=secret", "team/db", "password=v1", "port=5432"]);
    let call = |token: &str, words: &[&str]| {
        let call = home.call().env("VAULT_ADDR", server.url()).env("VAULT_CACERT", server.ca_certificate());
        call.env("VAULT_TOKEN", token).args(words)
    };
    let check =
        ["secret", "check", "P=vault:secret/data/team/db#password", "N=vault:secret/data/team/db#port"];
    let checked = call(OpenBao::ROOT_TOKEN, &check).success();
    assert_eq!(checked.text(), "P\tok\tsource=vault\tbytes=2\nN\tok\tsource=vault\tbytes=4\n");

    // The newest version counts, at each start anew.
    server.bao(&["kv", "put", "-mount=secret", "team/db", "password=version two"]);
    let image = home.image("busybox");
    let run = ["run", "--network", "isolated", "--secret", check[2], &image, "cat", "/run/secrets/P"];
    let ran = call(OpenBao::ROOT_TOKEN, &run).success();
    assert_eq!(ran.guest_output(), "version two");

    let poor = server.bao(&["token", "create", "-policy=default", "-field=token"]);
    let refused = call(poor.trim(), &run).run().code(1).says("HTTP 403").says("permission denied");
    assert!(!refused.stderr.contains(poor.trim()), "{}", refused.told());
    for (reference, wanted) in [
        ("A=vault:secret/data/team/none#x", "Vault has no secret there"),
        ("A=vault:secret/data/team/db#none", "no field `none`"),
        ("A=vault:none/data/team/db#x", "Vault has no secret there: "),
    ] {
        let failed = call(OpenBao::ROOT_TOKEN, &["secret", "check", reference]).run().code(1);
        assert!(failed.text().contains(wanted), "{reference}: {}", failed.told());
    }
    server.bao(&["kv", "delete", "-mount=secret", "team/db"]);
    call(OpenBao::ROOT_TOKEN, &run).run().code(1).says("Vault has no secret there");
    server.bao(&["operator", "seal"]);
    call(OpenBao::ROOT_TOKEN, &run).run().code(1).says("HTTP 503").says("sealed").says("unseal");
    // The system's certificates do not know this server.
    let strange = home.call().env("VAULT_ADDR", server.url()).env("VAULT_TOKEN", OpenBao::ROOT_TOKEN);
    let strange = strange.args(check).run().code(1);
    assert!(strange.text().contains("certificate"), "{}", strange.told());
    home.nothing_is_left();
}

#[test]
fn checks_name_sources_and_never_values() {
    let home = Home::new(User::unprivileged());
    let value = unique("value");
    home.write(".env", format!("A='{value}'\nexport B=2 # two\n"));
    let helper = home.write("helper", format!("#!/bin/sh\necho \"{value}\"\n"));
    host::must("chmod", &["755", helper.to_str().unwrap()]);
    let words = ["secret", "check", "H=helper:any", "E=env:VALUE", "--secrets-env-file", ".env"];
    let call = || home.microagent(words).env("VALUE", &value).env("MICROAGENT_SECRET_HELPER", &helper);
    let checked = call().success();
    let bytes = value.len();
    let warning = "warning: not encrypted at rest";
    let expected = format!(
        "A\tok\tsource=dotenv\tbytes={bytes}\t{warning}\nB\tok\tsource=dotenv\tbytes=1\t{warning}\n\
         H\tok\tsource=helper\tbytes={bytes}\nE\tok\tsource=env\tbytes={bytes}\t{warning}\n"
    );
    assert_eq!(checked.text(), expected);
    let json = call().args(["--json", "X=env:NOT_SET"]).run().code(1).json();
    assert_eq!((&json[2]["ok"], &json[2]["bytes"]), (&true.into(), &bytes.into()));
    assert!(json[4]["error"].as_str().unwrap().contains("NOT_SET") && json[4]["warning"].is_null(), "{json}");
    assert!(!json.to_string().contains(&value));
    let typed =
        home.run("busybox", ["--secret", "TOKEN=hunter2"], &["true"]).run().code(2).says("env:VARIABLE");
    assert!(!typed.stderr.contains("hunter2"), "{}", typed.told());
    home.nothing_is_left();
}

#[test]
fn a_run_that_waits_for_a_helper_can_be_interrupted() {
    let home = Home::new(User::unprivileged());
    let marker = home.path().join("asked");
    let script = format!("#!/bin/sh\nsleep 600 &\necho > '{}'\nwait\n", marker.display());
    let helper = home.write("helper", script);
    host::must("chmod", &["755", helper.to_str().unwrap()]);
    let options = ["--network", "isolated", "--secret", "TOKEN=helper:any"];
    let call = home.run("busybox", options, &["true"]).env("MICROAGENT_SECRET_HELPER", &helper);
    let running = call.start();
    wait_for("the helper to be asked", Duration::from_secs(60), || {
        marker.exists().then_some(()).ok_or("not yet")
    });
    running.signal(Signal::INT);
    running.finish().code(130);
    home.nothing_is_left();
}
