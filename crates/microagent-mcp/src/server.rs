//! The server: what it says of itself, and how calls reach tools.

use std::sync::Arc;
use std::time::Duration;

use microagent::{Engine, NetworkMode, WorkspaceOptions};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation, ListToolsResult,
    PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool as Definition,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::call::Call;
use crate::error::{ServeError, ToolError};
use crate::policy::{Leftovers, Policy};
use crate::tool::Tool;
use crate::tools;
use crate::workspaces::Workspaces;

/// Longest message of a client, in bytes: the contents of a file in base64, and more than a command can have.
pub(crate) const MESSAGE_LIMIT: usize = 8 * 1024 * 1024;

/// Most calls at a time. Each may hold the contents of a file and the output of a command.
const CALLS_MAX: usize = 32;

/// How long calls may take to end when the server ends: a command is killed, or a machine.
const CALL_PATIENCE: Duration = Duration::from_secs(20);

/// A server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Engine,
    policy: Policy,
    tools: Vec<Tool>,
    workspaces: Workspaces,
    slots: Semaphore,
    calls: TaskTracker,
    shutdown: CancellationToken,
}

impl Server {
    /// A server that serves nobody yet.
    ///
    /// # Errors
    /// Fails when its name cannot be the value of a label.
    pub(crate) fn new(engine: Engine, policy: Policy) -> Result<Server, ServeError> {
        let label = format!("{}={}", crate::SERVER_LABEL, policy.server);
        if policy.server.is_empty() || microagent::parse_label(&label).is_err() {
            return Err(ServeError::Name { name: policy.server });
        }
        let workspaces = Workspaces::new(engine.clone(), &policy);
        Ok(Server {
            shared: Arc::new(Shared {
                engine,
                policy,
                tools: tools::all(),
                workspaces,
                slots: Semaphore::new(CALLS_MAX),
                calls: TaskTracker::new(),
                shutdown: CancellationToken::new(),
            }),
        })
    }

    /// The library.
    pub(crate) fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    /// What a model may do.
    pub(crate) fn policy(&self) -> &Policy {
        &self.shared.policy
    }

    /// Its workspaces.
    pub(crate) fn workspaces(&self) -> &Workspaces {
        &self.shared.workspaces
    }

    /// What every workspace gets, with the server's labels and an image that the policy allows.
    pub(crate) fn workspace_options(&self, image: &str) -> Result<WorkspaceOptions, ToolError> {
        let pull = self.policy().check_image(image)?;
        let mut options = self.policy().workspace.clone().pull(pull);
        image.clone_into(&mut options.image);
        self.workspaces().label(&mut options.labels);
        Ok(options)
    }

    /// Cancelled when the server ends.
    pub(crate) fn shutdown(&self) -> &CancellationToken {
        &self.shared.shutdown
    }

    /// Ends what is in progress, and deletes what goes with the server.
    ///
    /// # Errors
    /// Names the workspaces that could not be deleted.
    pub(crate) async fn finish(&self) -> Result<(), ServeError> {
        self.shutdown().cancel();
        self.shared.calls.close();
        // A call that does not end in time ends with the process.
        let _ = timeout(CALL_PATIENCE, self.shared.calls.wait()).await;
        match self.policy().leftovers {
            Leftovers::Delete => self.workspaces().delete_leftovers().await,
            Leftovers::Keep => Ok(()),
        }
    }

    async fn call(
        &self,
        request: CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResult, ErrorData> {
        let Some(tool) = self.shared.tools.iter().find(|tool| tool.definition.name == request.name) else {
            return Err(ErrorData::invalid_params(format!("there is no tool `{}`", request.name), None));
        };
        let result = match self.shared.slots.try_acquire() {
            Ok(_slot) => {
                let call = Call::new(context, self.shutdown());
                let work = tool.call(self.clone(), call.clone(), request.arguments.unwrap_or_default());
                let result = call.reporting(work).await;
                call.token().cancel();
                result
            }
            Err(_) => Err(ToolError::busy(format!("{CALLS_MAX} calls are in progress already"))
                .hint("wait for one of them to end")),
        };
        Ok(match result {
            Ok(value) => CallToolResult::structured(value),
            // Clients hold structured content against the schema of results, which an error does not have.
            Err(error) => CallToolResult::error(vec![ContentBlock::text(
                serde_json::to_string(&error).expect("an error is plain data"),
            )]),
        })
    }

    /// What a model is told before it calls anything.
    fn instructions(&self) -> String {
        let policy = self.policy();
        let network = match policy.workspace.network {
            NetworkMode::Isolated => "Workspaces have no network.",
            NetworkMode::User => "Workspaces reach the network as far as the person allowed it.",
        };
        let images = match &policy.images[..] {
            [] => "Images: those that `list` shows.".to_owned(),
            _ => format!("Images: {}.", policy.image_hint()),
        };
        format!(
            "Runs commands in Linux microVMs, which are isolated from the host. Use `run` for one command in a fresh \
             microVM that is deleted afterwards. For several steps use `create`, then `exec`, `write_file` and \
             `read_file`, and `delete` at the end. {network} {images} At most {} workspaces and runs at a time.",
            policy.max_workspaces
        )
    }
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let name = Implementation::new("microagent", env!("CARGO_PKG_VERSION"))
            .with_title("microagent")
            .with_description("Runs OCI images as Linux microVMs");
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(name)
            .with_instructions(self.instructions())
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let tools = self.shared.tools.iter().map(|tool| tool.definition.clone()).collect();
        Ok(ListToolsResult::with_all_items(tools))
    }

    fn get_tool(&self, name: &str) -> Option<Definition> {
        self.shared.tools.iter().find(|tool| tool.definition.name == name).map(|tool| tool.definition.clone())
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let call = self.call(request, &context);
        Ok(self.shared.calls.track_future(call).await?.into())
    }
}
