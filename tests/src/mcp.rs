//! A client of the Model Context Protocol that a test drives: `rmcp`'s, over the standard streams of a server or over HTTP.

use std::fs;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rmcp::model::{
    CallToolRequestParams, CallToolResult, ClientConfig, ProgressNotificationParam, ProtocolVersion, Tool,
};
use rmcp::service::{
    ClientLifecycleMode, NotificationContext, RoleClient, RunningService, serve_client_with_lifecycle,
};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ClientHandler, ServiceError};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::Home;

/// How long a call may take; a guest may be started in it.
const CALL_DEADLINE: Duration = Duration::from_secs(180);

/// How long a server may take to end.
const END_DEADLINE: Duration = Duration::from_secs(60);

/// Which era of the protocol a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Era {
    /// With a handshake, up to 2025-11-25.
    Initialize,
    /// Without one, from 2026-07-28.
    Discover,
}

/// A client, and its server if that goes with it.
#[derive(Debug)]
pub struct McpClient {
    runtime: Runtime,
    service: RunningService<RoleClient, Recorder>,
    server: Option<Child>,
    notes: Arc<Mutex<Vec<String>>>,
}

/// A server that listens.
#[derive(Debug)]
pub struct McpServer {
    runtime: Runtime,
    child: Child,
    /// Where it listens.
    pub url: String,
    /// What it serves to.
    pub token: String,
}

/// Notes what the server reports of calls in progress.
#[derive(Debug, Clone)]
struct Recorder(Arc<Mutex<Vec<String>>>);

impl ClientHandler for Recorder {
    fn get_info(&self) -> ClientConfig {
        ClientConfig::default()
    }

    async fn on_progress(&self, note: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        self.0.lock().expect("no holder panics").push(note.message.unwrap_or_default());
    }
}

/// A call in progress.
#[derive(Debug)]
pub struct McpCall<'a> {
    client: &'a McpClient,
    task: JoinHandle<Result<CallToolResult, ServiceError>>,
}

impl McpClient {
    /// Starts `serve mcp` with these options, and a client of this era.
    #[track_caller]
    pub fn start(home: &Home, era: Era, options: &[&str]) -> McpClient {
        let words = [&["serve", "mcp"], options].concat();
        let mut command = home.command_line(&words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let runtime = Runtime::new().expect("an event loop");
        let notes = Arc::new(Mutex::new(Vec::new()));
        let recorder = Recorder(Arc::clone(&notes));
        let (server, service) = runtime.block_on(async {
            let mut server = Command::from(command).spawn().expect("the server starts");
            let streams = server.stdout.take().zip(server.stdin.take()).expect("its streams are pipes");
            let serving = serve_client_with_lifecycle(recorder, streams, era.lifecycle());
            let service = timeout(CALL_DEADLINE, serving).await.expect("the server answers in time");
            (server, service.expect("the server speaks the protocol"))
        });
        McpClient { runtime, service, server: Some(server), notes }
    }

    /// The tools.
    pub fn tools(&self) -> Vec<Tool> {
        self.runtime.block_on(self.service.list_all_tools()).expect("tools are listed")
    }

    /// Begins a call.
    pub fn begin(&self, tool: &'static str, arguments: Value) -> McpCall<'_> {
        let Value::Object(arguments) = arguments else { panic!("arguments are an object: {arguments}") };
        let peer = self.service.peer().clone();
        let request = CallToolRequestParams::new(tool).with_arguments(arguments);
        McpCall { client: self, task: self.runtime.spawn(async move { peer.call_tool(request).await }) }
    }

    /// Calls a tool; gives its structured result, or its error.
    #[track_caller]
    pub fn call(&self, tool: &'static str, arguments: Value) -> Result<Value, Value> {
        self.begin(tool, arguments).finish()
    }

    /// Calls a tool that must succeed.
    #[track_caller]
    pub fn done(&self, tool: &'static str, arguments: Value) -> Value {
        self.call(tool, arguments).unwrap_or_else(|error| panic!("{tool}: {error}"))
    }

    /// Calls a tool that must fail with an error of this kind; gives the error.
    #[track_caller]
    pub fn fails(&self, tool: &'static str, arguments: Value, kind: &str) -> Value {
        match self.call(tool, arguments) {
            Err(error) if error["kind"] == kind => error,
            other => panic!("{tool}: expected an error of kind {kind}, got {other:?}"),
        }
    }

    /// What was reported of calls in progress.
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().expect("no holder panics").clone()
    }

    /// Process id of the server.
    pub fn pid(&self) -> i32 {
        let pid = self.server.as_ref().and_then(Child::id).expect("the server runs");
        i32::try_from(pid).expect("process ids are small")
    }

    /// Closes the connection to a server that listens.
    #[track_caller]
    pub fn disconnect(self) {
        let McpClient { runtime, service, .. } = self;
        let ended = runtime.block_on(async { timeout(END_DEADLINE, service.cancel()).await });
        ended.expect("the client ends").expect("the client works");
    }

    /// Closes the server's standard input and waits for its end.
    #[track_caller]
    pub fn close(self) -> ExitStatus {
        let McpClient { runtime, service, server, .. } = self;
        let mut server = server.expect("the server goes with its client");
        runtime.block_on(async {
            timeout(END_DEADLINE, service.cancel())
                .await
                .expect("the client ends")
                .expect("the client works");
            timeout(END_DEADLINE, server.wait())
                .await
                .expect("the server ends in time")
                .expect("it is a child")
        })
    }
}

impl Era {
    fn lifecycle(self) -> ClientLifecycleMode {
        match self {
            Era::Initialize => ClientLifecycleMode::Initialize,
            Era::Discover => {
                ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
            }
        }
    }
}

impl McpServer {
    /// Starts `serve mcp --listen` with these options at a free port of loopback.
    #[track_caller]
    pub fn start(home: &Home, options: &[&str]) -> McpServer {
        let words =
            [&["serve", "mcp", "--listen", "127.0.0.1:0", "--token-file", "mcp-token"], options].concat();
        let mut command = home.command_line(&words);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let runtime = Runtime::new().expect("an event loop");
        let (child, url) = runtime.block_on(async {
            let mut child = Command::from(command).spawn().expect("the server starts");
            let mut url = String::new();
            let mut lines = BufReader::new(child.stdout.as_mut().expect("it is a pipe"));
            let read = timeout(END_DEADLINE, lines.read_line(&mut url)).await;
            read.expect("the server listens in time").expect("its output is text");
            (child, url.trim().to_owned())
        });
        let token = fs::read_to_string(home.path().join("mcp-token")).expect("the server wrote its token");
        McpServer { runtime, child, url, token: token.trim().to_owned() }
    }

    /// A client of this era.
    #[track_caller]
    pub fn connect(&self, era: Era) -> McpClient {
        // The client wants one even for plain HTTP. Another test of this process may have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = Runtime::new().expect("an event loop");
        let notes = Arc::new(Mutex::new(Vec::new()));
        let recorder = Recorder(Arc::clone(&notes));
        let config =
            StreamableHttpClientTransportConfig::with_uri(self.url.as_str()).auth_header(self.token.as_str());
        let service = runtime.block_on(async {
            let transport = StreamableHttpClientTransport::from_config(config);
            let serving = serve_client_with_lifecycle(recorder, transport, era.lifecycle());
            timeout(CALL_DEADLINE, serving).await.expect("the server answers in time")
        });
        McpClient { runtime, service: service.expect("the server speaks the protocol"), server: None, notes }
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        self.url.strip_prefix("http://").and_then(|rest| rest.split('/').next()).expect("it is an address")
    }

    /// Ends it by SIGTERM.
    #[track_caller]
    pub fn close(self) -> ExitStatus {
        let McpServer { runtime, mut child, .. } = self;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).expect("the server runs");
        kill_process(pid, Signal::TERM).expect("it is a child");
        runtime.block_on(async {
            timeout(END_DEADLINE, child.wait())
                .await
                .expect("the server ends in time")
                .expect("it is a child")
        })
    }
}

impl McpCall<'_> {
    /// Waits for the result.
    #[track_caller]
    pub fn finish(self) -> Result<Value, Value> {
        let McpCall { client, task } = self;
        let result = client.runtime.block_on(async { timeout(CALL_DEADLINE, task).await });
        let result = result.expect("the server answers in time").expect("the call is not interrupted");
        let result = result.unwrap_or_else(|error| panic!("the call is no call: {error}"));
        let text = result.content.first().and_then(|block| block.as_text()).map(|text| text.text.clone());
        let text: Value = serde_json::from_str(&text.expect("a result has a text")).expect("it is JSON");
        if result.is_error == Some(true) {
            assert_eq!(result.structured_content, None, "errors are not held against the schema of results");
            return Err(text);
        }
        assert_eq!(result.structured_content.as_ref(), Some(&text), "both forms say the same");
        Ok(text)
    }

    /// Gives the call up: the server is told that nobody waits for it any more.
    pub fn give_up(self) {
        self.task.abort();
    }
}
