//! `microagent status`: everything about one workspace.

use clap::Args;
use microagent::{
    Artifact, Attachment, DiskSource, Inspection, LinkState, NetworkMode, PortForward, Resources,
    RestartPolicy, SecretReference, State, WorkspaceDetails, WorkspaceName,
};
use serde::Serialize;

use crate::commands::network;
use crate::commands::result::ResultDocument;
use crate::context::Context;
use crate::escape;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::progress::size;

const EXAMPLES: &str = "\
Examples:
  How is it?
    microagent status web

  One value for a script:
    microagent status web --json | jq -r .state";

/// Show everything about a workspace
///
/// Its state as it is now, checked against its processes, what it was made from, its size, and how its last command or
/// service ended. Changes nothing.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct StatusArgs {
    /// Workspace
    name: WorkspaceName,
}

#[derive(Debug, Serialize)]
struct Document {
    workspace: WorkspaceName,
    state: State,
    problem: Option<String>,
    created_at: String,
    changed_at: String,
    image: ImageDocument,
    profile: String,
    resources: Resources,
    network: NetworkMode,
    link: Option<LinkState>,
    port_forwards: Vec<PortForward>,
    hostname: String,
    restart: RestartPolicy,
    has_service: bool,
    setup_pending: bool,
    backend: Option<String>,
    supervisor_pid: Option<i32>,
    vmm_pid: Option<i32>,
    disk_bytes: u64,
    disks: Vec<Attachment>,
    outputs: Vec<Artifact>,
    secrets: Vec<SecretDocument>,
    result: Option<ResultDocument>,
}

/// A secret's name and where its value is.
#[derive(Debug, Serialize)]
struct SecretDocument {
    name: String,
    source: &'static str,
    reference: String,
}

#[derive(Debug, Serialize)]
struct ImageDocument {
    reference: String,
    resolved_reference: String,
    digest: String,
}

/// Shows.
pub(crate) fn execute(context: &Context, args: StatusArgs) -> Result<(), Failure> {
    let engine = context.engine();
    let document = Document::new(engine.workspace(&args.name)?, engine.inspect(&args.name)?);
    match context.format {
        Format::Json => print_json(&document),
        Format::Text => print_text(&document.text()),
    }
}

impl From<SecretReference> for SecretDocument {
    fn from(secret: SecretReference) -> SecretDocument {
        SecretDocument {
            source: secret.source.scheme(),
            reference: secret.source.to_string(),
            name: secret.name,
        }
    }
}

impl Document {
    fn new(details: WorkspaceDetails, inspection: Inspection) -> Document {
        let WorkspaceDetails { record, state, failure } = details;
        let link = record.observed_link();
        let port_forwards = record.observed_publish().iter().map(PortForward::from).collect();
        let has_machine = record.has_machine();
        let (profile, resources) = (record.observed_profile().to_owned(), record.observed_resources());
        let pid = |process: Option<microagent::ProcessId>| {
            process.filter(|_| has_machine).map(|process| process.pid)
        };
        Document {
            workspace: record.name,
            state,
            problem: failure.map(|failure| failure.message),
            created_at: record.created_at.to_string(),
            changed_at: record.changed_at.to_string(),
            image: ImageDocument {
                reference: record.image.reference,
                resolved_reference: record.image.resolved_reference,
                digest: record.image.digest,
            },
            profile,
            resources,
            network: record.network,
            link,
            port_forwards,
            hostname: record.hostname,
            restart: record.restart,
            has_service: inspection.has_service,
            setup_pending: inspection.setup_pending,
            backend: record.backend,
            supervisor_pid: pid(record.supervisor),
            vmm_pid: pid(record.vmm),
            disk_bytes: inspection.disk_bytes,
            disks: record.disks,
            outputs: record.outputs,
            secrets: record.secrets.into_iter().map(SecretDocument::from).collect(),
            result: inspection.result.map(ResultDocument::from),
        }
    }

    fn text(&self) -> String {
        let Resources { memory_mib, cpu_count, size_mib } = self.resources;
        let mut lines = vec![("Workspace", self.workspace.to_string()), ("State", self.state.to_string())];
        if let Some(problem) = &self.problem {
            lines.push(("Problem", escape::one_line(problem)));
        }
        if let Some(result) = &self.result {
            lines.push(("Exit code", result.exit_code.to_string()));
        }
        let resources = format!("memory={memory_mib}MiB cpus={cpu_count} disk={size_mib}MiB");
        let mut network = self.network.to_string();
        if self.link == Some(LinkState::Down) {
            network += " (down)";
        }
        lines.extend([
            ("Image", escape::one_line(&self.image.resolved_reference)),
            ("Profile", self.profile.clone()),
            ("Network", network),
            ("Resources", resources),
            ("Hostname", escape::one_line(&self.hostname)),
            ("Restart", self.restart.to_string()),
            ("Service", if self.has_service { "yes" } else { "no" }.to_owned()),
            ("Disk", format!("{} of its own", size(self.disk_bytes))),
            ("Created", self.created_at.clone()),
            ("Changed", self.changed_at.clone()),
        ]);
        lines.extend(self.disks.iter().map(|disk| ("Mounted", escape::one_line(&mounted(disk)))));
        lines.extend(self.port_forwards.iter().map(|forward| ("Published", network::published(forward))));
        for secret in &self.secrets {
            let text = format!("{} from {}", secret.name, secret.reference);
            lines.push(("Secret", escape::one_line(&text)));
        }
        if let Some(pid) = self.vmm_pid {
            lines.push(("Process", pid.to_string()));
        }
        lines.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
    }
}

/// A disk beside the root disk, and where it is.
fn mounted(disk: &Attachment) -> String {
    let source = match &disk.source {
        DiskSource::Volume(name) => format!("volume {name}"),
        DiskSource::Image(path) => path.display().to_string(),
        DiskSource::Bundle(path) => format!("bundle {}", path.display()),
    };
    let how = if disk.read_only { ", read-only" } else { "" };
    format!("{} ({source}{how})", disk.mount_point)
}
