//! What models call: tools of `serve mcp` against the command, and the server's memory.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::Bench;
use crate::fixture::SMALL;
use crate::memory::{mib, pss_kib};
use crate::program::run;
use crate::sample::{Peer, Table, interleave, time};

const NAME: &str = "bench-agents";

pub(crate) fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    bench.import(&bench.small_tar()?, SMALL)?;
    let mut server = Server::start(bench)?;
    table.add("memory of `serve mcp` that is idle".to_owned(), mib(pss_kib(server.child.id().into())?));
    server.call("create", &json!({"image": SMALL, "name": NAME}))?;

    let command = |words: &[&str]| {
        let mut command = bench.microagent(&bench.state());
        command.args(words);
        time(|| run(&mut command).map(drop))
    };
    let shared = std::cell::RefCell::new(server);
    let tool = |name: &str, arguments: &Value| time(|| shared.borrow_mut().call(name, arguments));
    let exec = json!({"name": NAME, "command": ["true"]});
    let alone = json!({"image": SMALL, "command": ["true"]});
    let run_words = ["run", "--profile", "tiny", "--network", "isolated", "--quiet", SMALL, "true"];
    for (what, words, name, arguments) in [
        ("`true` in what runs", &["exec", NAME, "--", "true"][..], "exec", &exec),
        ("`true` in a machine of its own", &run_words[..], "run", &alone),
    ] {
        let names = ["microagent", "tool of `serve mcp`"];
        let mut peers: Vec<Peer<'_>> = vec![
            (names[0], Box::new(move || command(words))),
            (names[1], Box::new(move || tool(name, arguments))),
        ];
        let samples = interleave(bench.runs, &mut peers)?;
        table.add_times(what, &names, &samples);
        let ratio = samples[1].median().as_secs_f64() / samples[0].median().as_secs_f64();
        table.add(format!("{what}: the tool's time to the command's"), format!("{ratio:.2}"));
    }
    shared.into_inner().end()
}

/// A server with one client, which is this process.
struct Server {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    id: u64,
}

impl Server {
    fn start(bench: &Bench) -> Result<Server> {
        let mut command = bench.microagent(&bench.state());
        command.args(["serve", "mcp", "--profile", "tiny"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the server")?;
        let (requests, answers) = (child.stdin.take(), child.stdout.take());
        let answers = BufReader::new(answers.context("its output is a pipe")?);
        let mut server = Server { child, requests, answers, id: 0 };
        let client = json!({"name": "bench", "version": "1"});
        server.request(
            "initialize",
            &json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}),
        )?;
        server.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}))?;
        Ok(server)
    }

    fn send(&mut self, message: &Value) -> Result<()> {
        let requests = self.requests.as_mut().context("the server has ended")?;
        Ok(requests.write_all(format!("{message}\n").as_bytes())?)
    }

    fn request(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.id += 1;
        self.send(&json!({"jsonrpc": "2.0", "id": self.id, "method": method, "params": params}))?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).context("the server answers in JSON")?;
        ensure!(answer["id"] == self.id && answer["result"].is_object(), "{method}: {line}");
        Ok(answer["result"].clone())
    }

    fn call(&mut self, tool: &str, arguments: &Value) -> Result<()> {
        let result = self.request("tools/call", &json!({"name": tool, "arguments": arguments}))?;
        ensure!(result["isError"] != true, "{tool}: {result}");
        Ok(())
    }

    /// Closes its input; it deletes what it created.
    fn end(mut self) -> Result<()> {
        self.requests = None;
        ensure!(self.child.wait()?.success(), "the server failed");
        Ok(())
    }
}
