//! Workspaces: made, listed, shown, started and ended.

use std::collections::BTreeMap;

use microagent::error::Action;
use microagent::image::PullPolicy;
use microagent::snapshot::Fork;
use microagent::{
    CreateOptions, Error, LogOptions, SetupStep, StartOptions, State, Workspace, WorkspaceDetails,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::command::check_words;
use crate::call::Call;
use crate::error::ToolError;
use crate::output::{Clipped, Encoding};
use crate::server::Server;
use crate::workspaces::{Workspaces, parse_name};

/// Most setup steps of a workspace: more than a model writes.
const SETUP_MAX: usize = 64;

/// Lines of a console that a result has, where the call does not say.
const LINES_DEFAULT: usize = 100;

/// Most bytes of a console that a result has.
const LOG_LIMIT: usize = 64 * 1024;

/// A workspace to create.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateArguments {
    /// Image reference, such as `python:3.12`; `list` shows which can be used.
    image: String,
    /// Name; one is made up without it. Lower-case letters, digits and dashes.
    #[serde(default)]
    name: Option<String>,
    /// Lines for /bin/sh that run once, before anything else; the first that fails ends the creation.
    #[serde(default)]
    setup: Vec<String>,
    /// Environment variables of every command, in addition to the image's.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Whether it is started at once, as it is without this.
    #[serde(default)]
    start: Option<bool>,
}

/// A call that names nothing but a workspace.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NameArguments {
    /// Name of the workspace.
    name: String,
}

/// A call without arguments.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoArguments {}

/// Which part of a console.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogsArguments {
    /// Name of the workspace.
    name: String,
    /// How many of the newest lines; 100 without it.
    #[serde(default)]
    lines: Option<usize>,
}

/// A workspace.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct WorkspaceDocument {
    /// Its name.
    name: String,
    /// One of `prepared`, `starting`, `running`, `paused`, `stopping`, `halted`, `stopped`, `quarantined`, `failed`.
    state: String,
    /// Image that it was made from.
    image: String,
    /// Memory in MiB.
    memory_mib: u32,
    /// Virtual CPUs.
    cpu_count: u32,
    /// Size of its disk in MiB.
    disk_mib: u64,
    /// `isolated` (no network) or `user`.
    network: String,
    /// When it was created.
    created_at: String,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    /// `starting`, `healthy` or `unhealthy`, if its image has a health check and it has a service.
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<String>,
    /// Tags of its snapshots, the oldest first; only in the result of `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshots: Option<Vec<String>>,
    /// What there is to know of its start, of a fork: which hooks have failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notices: Vec<String>,
}

/// The workspaces of the server.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ListDocument {
    workspaces: Vec<ListedWorkspace>,
    /// Images that can be used: names, or patterns in which `*` stands for any characters.
    images: Vec<String>,
}

/// One of them.
#[derive(Debug, Serialize, JsonSchema)]
struct ListedWorkspace {
    name: String,
    state: String,
    /// Why it failed, or what is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// A part of a console.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct LogsDocument {
    name: String,
    /// The newest lines.
    logs: String,
    /// How `logs` is encoded.
    encoding: Encoding,
    /// Bytes of these lines that were left out.
    omitted_bytes: u64,
}

/// What became of a deletion.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct DeletedDocument {
    name: String,
    /// Always true; a workspace that does not exist is an error.
    deleted: bool,
}

impl From<WorkspaceDetails> for WorkspaceDocument {
    fn from(details: WorkspaceDetails) -> WorkspaceDocument {
        WorkspaceDocument {
            name: details.name.to_string(),
            state: details.state.to_string(),
            image: details.image.reference,
            memory_mib: details.resources.memory_mib,
            cpu_count: details.resources.cpu_count,
            disk_mib: details.resources.size_mib,
            network: details.network.to_string(),
            created_at: details.created_at.to_string(),
            failure: details.failure.map(|failure| failure.message),
            health: None,
            snapshots: None,
            notices: Vec::new(),
        }
    }
}

impl WorkspaceDocument {
    /// A workspace that was just made by a fork.
    pub(super) fn forked(fork: &Fork) -> Result<WorkspaceDocument, Error> {
        Ok(WorkspaceDocument { notices: fork.notices.clone(), ..fork.workspace.details()?.into() })
    }
}

/// Creates a workspace, and starts it.
pub(super) async fn create(
    server: Server,
    call: Call,
    arguments: CreateArguments,
) -> Result<WorkspaceDocument, ToolError> {
    check_words(arguments.env.len())?;
    if arguments.setup.len() > SETUP_MAX {
        return Err(ToolError::invalid(format!("more than {SETUP_MAX} setup steps"))
            .hint("write a script with `write_file` and run it with `exec`"));
    }
    let mut made = server.workspace_options(&arguments.image)?;
    made.setup.extend(arguments.setup.into_iter().map(SetupStep::Shell));
    made.env.extend(arguments.env);
    let name = match &arguments.name {
        Some(name) => parse_name(name)?,
        None => server.engine().made_up_name(&arguments.image)?,
    };
    if server.workspaces().find(name.as_str()).is_ok() {
        return Err(ToolError::exists(format!("workspace `{name}` exists already")).hint(
            "use it: tool `status` shows its state; or choose another name, or delete it with the tool `delete`",
        ));
    }
    let place = server.workspaces().place()?;
    let options = CreateOptions::new(name.clone(), "").workspace(|_| made);
    let created = server.engine().create(options, &call.progress()).await;
    // One whose setup failed stays, for its logs.
    if created.is_ok() || server.workspaces().find(name.as_str()).is_ok() {
        server.workspaces().take(name, place);
    }
    let workspace = created?;
    match arguments.start {
        Some(false) => Ok(workspace.details()?.into()),
        _ => start_workspace(&workspace, &call).await,
    }
}

/// Starts a workspace.
pub(super) async fn start(
    server: Server,
    call: Call,
    arguments: NameArguments,
) -> Result<WorkspaceDocument, ToolError> {
    start_workspace(&server.workspaces().find(&arguments.name)?, &call).await
}

async fn start_workspace(workspace: &Workspace, call: &Call) -> Result<WorkspaceDocument, ToolError> {
    Ok(workspace.start(StartOptions::new(), &call.progress()).await?.into())
}

/// Lists workspaces and images.
pub(super) async fn list(
    server: Server,
    _call: Call,
    _arguments: NoArguments,
) -> Result<ListDocument, ToolError> {
    let all = server.engine().list().await?;
    let ours = all.into_iter().filter(|summary| server.workspaces().is_of_server(&summary.labels));
    let workspaces = ours.map(|summary| ListedWorkspace {
        name: summary.name.to_string(),
        state: summary.state.map_or_else(|| "damaged".to_owned(), |state| state.to_string()),
        problem: summary.problem,
    });
    let images = match &server.policy().images[..] {
        [] => {
            let cached =
                server.engine().images().list().await?.images.into_iter().map(|image| image.reference);
            cached.filter(|name| matches!(server.policy().check_image(name), Ok(PullPolicy::Never))).collect()
        }
        patterns => patterns.iter().map(ToString::to_string).collect(),
    };
    Ok(ListDocument { workspaces: workspaces.collect(), images })
}

/// Shows a workspace.
pub(super) async fn status(
    server: Server,
    _call: Call,
    arguments: NameArguments,
) -> Result<WorkspaceDocument, ToolError> {
    let workspace = server.workspaces().find(&arguments.name)?;
    let health = workspace.health()?.map(|report| report.state.to_string());
    let snapshots = workspace.snapshots().list().await?;
    let snapshots = Some(snapshots.into_iter().map(|snapshot| snapshot.tag.to_string()).collect());
    Ok(WorkspaceDocument { health, snapshots, ..workspace.details()?.into() })
}

/// Reads a console.
pub(super) async fn logs(
    server: Server,
    _call: Call,
    arguments: LogsArguments,
) -> Result<LogsDocument, ToolError> {
    let workspace = server.workspaces().find(&arguments.name)?;
    let mut logs = Clipped::new(LOG_LIMIT);
    let options = LogOptions::new().tail(arguments.lines.unwrap_or(LINES_DEFAULT));
    logs.push(&workspace.logs(options).await?);
    let (logs, encoding, omitted_bytes) = logs.into_text();
    Ok(LogsDocument { name: arguments.name, logs, encoding, omitted_bytes })
}

/// Halts a workspace.
pub(super) async fn halt(
    server: Server,
    _call: Call,
    arguments: NameArguments,
) -> Result<WorkspaceDocument, ToolError> {
    let workspace = server.workspaces().find(&arguments.name)?;
    // A person has put it aside, and releases it.
    let state = workspace.state()?;
    if state == State::Quarantined {
        return Err(Error::WrongState { name: workspace.name().clone(), state, action: Action::Halt }.into());
    }
    Ok(workspace.halt().await?.into())
}

/// Deletes a workspace.
pub(super) async fn delete(
    server: Server,
    _call: Call,
    arguments: NameArguments,
) -> Result<DeletedDocument, ToolError> {
    let workspace = server.workspaces().find(&arguments.name)?;
    Workspaces::delete(&workspace).await?;
    server.workspaces().forget_deleted();
    Ok(DeletedDocument { name: arguments.name, deleted: true })
}
