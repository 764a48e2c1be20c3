//! Brokers: a guest reaches one server with a credential that it does not have.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use microagent_tests::process::Process;
use microagent_tests::upstream::Upstream;
use microagent_tests::{Finished, Home, User, wait_for};
use rustix::process::Signal;
use serde_json::Value;

fn home() -> Home {
    Home::new(User::unprivileged())
}

/// A text that is nowhere else.
fn unique(what: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    format!("{what}-{now}-{}-quagga", std::process::id())
}

/// Runs a shell line in workspace `app`.
fn guest(home: &Home, line: &str) -> Finished {
    home.microagent(["exec", "app", "--", "sh", "-c", line]).run()
}

/// Whether the memory of a process has the text.
fn memory_has(process: &Process, text: &str) -> bool {
    const CHUNK: usize = 1 << 20;
    let maps = BufReader::new(File::open(format!("/proc/{}/maps", process.pid)).unwrap());
    let memory = File::open(format!("/proc/{}/mem", process.pid)).unwrap();
    let mut chunk = vec![0; CHUNK + text.len()];
    for line in maps.lines() {
        let line = line.unwrap();
        let mut words = line.split_whitespace();
        let (start, end) = words.next().unwrap().split_once('-').unwrap();
        let (mut at, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        if !words.next().unwrap().starts_with('r') {
            continue;
        }
        while at < end {
            let wanted = chunk.len().min(usize::try_from(end - at).unwrap());
            // Some mappings, as of devices, cannot be read.
            let Ok(count @ 1..) = memory.read_at(&mut chunk[..wanted], at) else { break };
            if chunk[..count].windows(text.len()).any(|part| part == text.as_bytes()) {
                return true;
            }
            at += (count.min(CHUNK)) as u64;
        }
    }
    false
}

/// Fails the test if a file of the home has the text.
#[track_caller]
fn is_in_no_file(home: &Home, workspace: &str, text: &str) {
    let dir = home.workspace(workspace);
    let found = Command::new("grep").args(["-rlaF", "--", text]).arg(&dir).output().unwrap();
    assert_eq!((found.stdout, found.status.code()), (Vec::new(), Some(1)));
}

fn requests(home: &Home) -> Vec<Value> {
    let egress = home.microagent(["egress", "app", "--json"]).success().json();
    let all = egress["egress"].as_array().unwrap().clone();
    all.into_iter().filter(|decision| decision["record"] == "request").collect()
}

#[test]
fn a_guest_asks_nginx_with_a_credential_that_it_does_not_have() {
    let home = home();
    let value = unique("needle");
    let upstream = Upstream::start(&home, &format!("Bearer {value}"));
    let broker = format!(
        "API={}/v1,secret=env:TEST_KEY,ca={},allow=GET /*,allow=POST /upload",
        upstream.url,
        upstream.ca.display()
    );
    let create =
        ["create", "app", "--network", "isolated", "--image", &home.image("busybox"), "--broker", &broker];
    home.microagent(create).args(["--broker-env", "SDK_BASE_URL=API"]).success();
    home.microagent(["start", "app"]).env("TEST_KEY", &value).success();

    let host = upstream.url.strip_prefix("https://").unwrap();
    let asked = guest(&home, "wget -qO- $MICROAGENT_BROKER_API/models?x=1").code(0);
    assert_eq!(asked.text(), format!("GET /v1/models?x=1 {host} \n"));
    let asked =
        guest(&home, "wget -qO- --header 'Authorization: mine' --post-data=12345 $SDK_BASE_URL/upload");
    assert_eq!(asked.code(0).text(), format!("POST /v1/upload {host} 5\n"));
    guest(&home, "wget -qO- --post-data=1 $SDK_BASE_URL/models").failure().says("403");
    guest(&home, "wget -qO- $SDK_BASE_URL/../secret").failure().says("400");
    // A redirect is the guest's to follow, where it finds nothing.
    guest(&home, "wget -qO- -T 20 $SDK_BASE_URL/moved").failure();
    // Nothing else is there.
    guest(&home, "nc -w 5 10.0.2.4 80 < /dev/null || nc -w 5 10.0.2.2 8001 < /dev/null").failure();
    guest(&home, "nslookup example.org").failure();

    // A line is written when its request is over, a moment after the guest has the answer.
    wait_for("a line for each request", Duration::from_secs(60), || match requests(&home) {
        lines if lines.len() >= 4 => Ok(()),
        lines => Err(lines),
    });
    let lines: Vec<String> = requests(&home)
        .iter()
        .map(|line| {
            let request = &line["request"];
            let words = ["broker", "method", "path"].map(|key| request[key].as_str().unwrap());
            format!("{} {} {}", words.join(" "), request["status"], line["allowed"])
        })
        .collect();
    let expected = [
        "API GET /models 200 true",
        "API POST /upload 200 true",
        "API POST /models 403 false",
        "API GET /../secret 400 false",
    ];
    assert_eq!(lines[..4], expected);
    let network = home.microagent(["network", "app"]).success();
    let line = format!(
        "Broker: API: http://10.0.2.4:8001 -> {}/v1 with Authorization from env:TEST_KEY",
        upstream.url
    );
    assert!(network.text().contains(&line), "{}", network.told());

    is_in_no_file(&home, "app", &value);
    for words in
        [["logs", "app"], ["events", "app"], ["egress", "app"], ["status", "app"], ["inspect", "app"]]
    {
        assert!(!home.microagent(words).success().text().contains(&value), "{words:?}");
    }
    let status = home.microagent(["status", "app", "--json"]).success().json();
    let supervisor = status["supervisor_pid"].as_i64().unwrap();
    let of_app: Vec<Process> = home
        .processes()
        .into_iter()
        .filter(|process| i64::from(process.parent) == supervisor || process.is_network_stack())
        .collect();
    assert!(
        of_app.iter().any(Process::is_qemu) && of_app.iter().any(Process::is_network_keeper),
        "{of_app:?}"
    );
    let guards: Vec<&Process> = of_app.iter().filter(|process| process.is_of_brokers()).collect();
    assert!(memory_has(guards[0], &value), "the search finds what is there");
    for process in of_app.iter().filter(|process| !process.is_of_brokers()) {
        assert!(!memory_has(process, &value), "{process:?}");
    }
    home.microagent(["delete", "app", "--force", "--yes"]).success();
    upstream.delete(&home);
    home.nothing_is_left();
}

/// A program that knows nothing of brokers.
const PROGRAM: &str = r#"
from openai import OpenAI
client = OpenAI(timeout=200, max_retries=0)
print([model.id for model in client.models.list()], flush=True)
print(client.embeddings.create(model="small", input="text", encoding_format="float").data[0].embedding, flush=True)
messages = [{"role": "user", "content": "say something"}]
for event in client.chat.completions.create(model="small", messages=messages, stream=True):
    print(event.choices[0].delta.content, flush=True)
"#;

#[test]
fn the_openai_client_of_a_guest_speaks_with_nginx_and_gets_events_as_they_come() {
    let home = home();
    let value = unique("needle");
    let upstream = Upstream::start(&home, &format!("Bearer {value}"));
    let broker = format!("API={}/openai,secret=env:TEST_KEY,ca={}", upstream.url, upstream.ca.display());
    let create =
        ["create", "app", "--network", "isolated", "--image", &home.image("openai"), "--broker", &broker];
    home.microagent(create)
        .args(["--broker-env", "OPENAI_BASE_URL=API", "--env", "OPENAI_API_KEY=none"])
        .success();
    home.microagent(["start", "app"]).env("TEST_KEY", &value).success();
    let program = home.write("program.py", PROGRAM);
    home.microagent(["cp", program.to_str().unwrap(), "app:/srv/program.py"]).success();
    home.microagent(["exec", "--detach", "app", "--", "python3", "/srv/program.py"]).success();
    let line = "curl -sSN -H 'Content-Type: application/json' -d '{\"stream\": true}' $OPENAI_BASE_URL/chat/completions";
    home.microagent(["exec", "--detach", "app", "--", "sh", "-c", line]).success();
    let printed = |job: &str, wanted: &str| {
        wait_for(wanted, Duration::from_secs(120), || {
            let logs = home.microagent(["job", "logs", "app", job]).run();
            if logs.text().contains(wanted) { Ok(logs.text().to_owned()) } else { Err(logs.told()) }
        })
    };
    // The first event is here while the upstream has not sent the second one.
    let begun = "['small']\n[0.25, -1.0]\nfirst\n";
    assert_eq!(printed("1", "first"), begun);
    let first = printed("2", "first");
    assert!(first.starts_with("data: {") && !first.contains("second"), "{first}");
    home.microagent(["exec", "upstream", "--", "touch", "/go"]).success();
    assert_eq!(printed("1", "second"), format!("{begun}second\n"));
    assert!(printed("2", "[DONE]").contains("second"));
    for job in ["1", "2"] {
        home.microagent(["job", "wait", "app", job]).success();
    }
    // A body that is longer than any buffer between.
    let sent = guest(
        &home,
        "head -c 3000000 /dev/zero | curl -sS -o /dev/null -w '%{http_code}' --data-binary @- \
                             $OPENAI_BASE_URL/embeddings",
    );
    assert_eq!(sent.code(0).text(), "200");
    guest(&home, "curl -sS --fail $OPENAI_BASE_URL/elsewhere").failure();
    is_in_no_file(&home, "app", &value);
    upstream.delete(&home);
    home.microagent(["delete", "app", "-f", "--yes"]).success();
    home.nothing_is_left();
}

/// Waits until the guest is answered.
#[track_caller]
fn answered(home: &Home, line: &str, wanted: &str) {
    wait_for(&format!("`{wanted}`"), Duration::from_secs(60), || {
        let asked = guest(home, line);
        if asked.stdout == wanted.as_bytes() { Ok(()) } else { Err(asked.told()) }
    });
}

#[test]
fn brokers_that_end_are_started_again_and_nothing_survives_their_guard() {
    let home = home();
    // It answers with a reason, which is an answer of the broker, not of an upstream.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let spec = format!(
        "name: app\nimage: '{}'\nbrokers:\n  - name: API\n    upstream: https://localhost:{free}/v1\n    \
         secret: file:key\n    allow: ['GET /models']\n    env: [SDK_URL]\n",
        home.image("busybox")
    );
    let spec = home.write("microagent.yaml", spec);
    let key = home.write("key", "with a line break\n");
    home.microagent(["create", "--file", spec.to_str().unwrap()]).success();
    home.microagent(["start", "app"]).run().code(1).says("secret `API`").says("not one line").says("Hint: ");
    std::fs::remove_file(&key).unwrap();
    home.microagent(["start", "app"]).run().code(1).says("cannot get secret `API`");
    home.write("key", "one-line");
    home.microagent(["start", "app"]).success();

    let ask = "printf 'GET /models HTTP/1.0\\r\\n\\r\\n' | nc -w 60 10.0.2.4 8001 | head -n 1";
    let unreachable = "HTTP/1.0 502 Bad Gateway\r\n";
    answered(&home, ask, unreachable);
    let of_brokers = || home.processes().into_iter().filter(Process::is_of_brokers).collect::<Vec<_>>();
    let is_guard = |process: &Process, all: &[Process]| !all.iter().any(|other| other.pid == process.parent);
    let all = of_brokers();
    assert_eq!(all.len(), 2, "{all:?}");
    all.iter().find(|process| !is_guard(process, &all)).unwrap().signal(Signal::KILL);
    answered(&home, ask, unreachable);
    for line in ["brokers: their process ended", "brokers: their process runs again"] {
        wait_for(line, Duration::from_secs(60), || {
            let log = home.microagent(["egress", "app"]).success();
            if log.text().contains(line) { Ok(()) } else { Err(log.told()) }
        });
    }

    let all = of_brokers();
    all.iter().find(|process| is_guard(process, &all)).unwrap().signal(Signal::KILL);
    wait_for("the brokers to end", Duration::from_secs(60), || {
        let left = of_brokers();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    answered(&home, "nc -w 60 10.0.2.4 8001 < /dev/null || echo refused", "refused\n");
    // The machine is as it was, and a start brings the brokers back.
    answered(&home, "echo $SDK_URL", "http://10.0.2.4:8001\n");
    home.microagent(["halt", "app"]).success();
    home.microagent(["start", "app"]).success();
    answered(&home, ask, unreachable);

    // A supervisor that is killed takes them with it.
    home.processes().into_iter().find(Process::is_supervisor).unwrap().signal(Signal::KILL);
    home.processes_end();
    home.microagent(["delete", "app", "--force", "--yes"]).success();
    home.nothing_is_left();
}
