//! `microagent status`: everything about workspaces.

use clap::Args;
use microagent::egress::EgressMode;
use microagent::{LinkState, WorkspaceName};

use crate::context::Context;
use crate::documents::health::{HealthCheckDocument, HealthDocument};
use crate::documents::network::EgressPolicyDocument;
use crate::documents::shared::ResourcesDocument;
use crate::documents::status::{
    AttachmentDocument, DiskSourceDocument, LimitsDocument, SettingsDocument, StatusDocument,
};
use crate::escape;
use crate::failure::Failure;
use crate::output::{Format, brokered, forwarded, name_lines, print_json, print_text, published, size};
use crate::several::each;

const EXAMPLES: &str = "\
Examples:
  Show everything:
    microagent status web

  Print one value, for a script:
    microagent status web --json | jq -r .state";

/// Show everything about workspaces
///
/// Shows each one's current state, checked against its processes, its image, size and settings, and how its last command or
/// service ended. Changes nothing.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct StatusArgs {
    /// Workspaces
    #[arg(value_name = "NAME", required = true)]
    names: Vec<WorkspaceName>,
}

/// Shows one after the other; the first failure is reported after the last.
pub(crate) fn execute(context: &Context, args: &StatusArgs) -> Result<(), Failure> {
    let mut blocks = 0..;
    each(context, &args.names, |name| show(context, name, blocks.next() == Some(0)))
}

fn show(context: &Context, name: &WorkspaceName, first: bool) -> Result<(), Failure> {
    let workspace = context.engine().workspace(name);
    let document = StatusDocument::new(workspace.details()?, workspace.inspect()?);
    match context.format {
        Format::Json => print_json(&document),
        Format::Text if first => print_text(&document.text()),
        Format::Text => print_text(&format!("\n{}", document.text())),
    }
}

impl StatusDocument {
    fn text(&self) -> String {
        let ResourcesDocument { memory_mib, cpu_count, size_mib } = self.resources;
        let mut lines = vec![("Workspace", self.workspace.to_string()), ("State", self.state.to_string())];
        if let Some(health) = &self.health {
            lines.push(("Health", health_line(health)));
        }
        if let Some(problem) = &self.problem {
            lines.push(("Problem", escape::one_line(problem)));
        }
        if !self.weak_jail.is_empty() {
            lines.push(("Weak jail", self.weak_jail.join("; ")));
        }
        if let Some(result) = &self.result {
            lines.push(("Exit code", result.exit_code.to_string()));
        }
        let resources = format!("memory={memory_mib}MiB cpus={cpu_count} disk={size_mib}MiB");
        let mut network = self.network.to_string();
        if self.link == Some(LinkState::Down) {
            network += " (down)";
        }
        let restart = match self.restarts {
            0 => self.restart.to_string(),
            count => format!("{} (restarted {count} times)", self.restart),
        };
        lines.extend([
            ("Image", escape::one_line(&self.image.resolved_reference)),
            ("Profile", self.profile.clone()),
            ("Network", network),
            ("Resources", resources),
            ("Hostname", escape::one_line(&self.hostname)),
            ("Restart", restart),
            ("Service", if self.has_service { "yes" } else { "no" }.to_owned()),
            ("Disk", format!("{} of its own", size(self.disk_bytes))),
            ("Snapshots", self.snapshots.to_string()),
            ("Created", self.created_at.clone()),
            ("Changed", self.changed_at.clone()),
        ]);
        lines.extend(self.limits().map(|limits| ("Limits", limits)));
        lines.extend(self.workload_lines());
        lines.extend(self.settings_lines());
        lines.extend(self.disks.iter().map(|disk| ("Mounted", escape::one_line(&mounted(disk)))));
        lines.extend(self.port_forwards.iter().map(|forward| ("Published", published(forward))));
        for output in &self.outputs {
            lines.push(("Output", escape::one_line(&format!("{}={}", output.name, output.path.display()))));
        }
        for (name, value) in &self.labels {
            lines.push(("Label", escape::one_line(&format!("{name}={value}"))));
        }
        lines.extend(self.host_forwards.iter().map(|forward| ("Forwarded", forwarded(forward))));
        lines.extend(self.joined.iter().map(|name| ("Private network", name.to_string())));
        lines.extend(self.brokers.iter().map(|broker| ("Broker", brokered(broker))));
        lines.extend(name_lines(&self.dns));
        for secret in &self.secrets {
            let text = format!("{} from {}", secret.name, secret.reference);
            lines.push(("Secret", escape::one_line(&text)));
        }
        lines.extend(self.host_memory_bytes.map(|bytes| ("Memory", format!("{} of the host", size(bytes)))));
        if let Some(pid) = self.vmm_pid {
            lines.push(("Process", pid.to_string()));
        }
        lines.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
    }
}

impl StatusDocument {
    /// The rates in one line, if there is one.
    fn limits(&self) -> Option<String> {
        let LimitsDocument { disk_bps, disk_iops, net_bps } = self.limits;
        let bytes = |rate: Option<u64>| rate.map(|rate| format!("{}/s", size(rate)));
        let requests = disk_iops.map(|rate| format!("{rate}/s"));
        let rates = [("disk", bytes(disk_bps)), ("disk-requests", requests), ("network", bytes(net_bps))];
        let rates: Vec<_> =
            rates.into_iter().filter_map(|(what, rate)| Some(format!("{what}={}", rate?))).collect();
        (!rates.is_empty()).then(|| rates.join(" "))
    }

    /// What runs, and as whom; defaults are not repeated.
    fn workload_lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        lines.extend(self.service.as_ref().map(|words| ("Command", escape::one_line(&words.join(" ")))));
        let texts = [("User", &self.user), ("Workdir", &self.workdir)];
        for (key, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            lines.push((key, escape::one_line(text)));
        }
        if self.init {
            lines.push(("Init", "yes".to_owned()));
        }
        lines.extend(self.health_check.as_ref().map(|check| ("Health check", checked(check))));
        let optional = [("Shell", &self.shell), ("Stop signal", &self.stop_signal)];
        for (key, text) in optional {
            lines.extend(text.as_ref().map(|text| (key, escape::one_line(text))));
        }
        lines.extend(self.stop_timeout_seconds.map(|seconds| ("Stop timeout", format!("{seconds} s"))));
        lines.extend(self.ttl_seconds.map(|seconds| ("Time to live", format!("{seconds} s"))));
        lines.extend(self.expires_at.clone().map(|at| ("Expires", at)));
        if !self.env_names.is_empty() {
            lines.push(("Environment", escape::one_line(&self.env_names.join(", "))));
        }
        let EgressPolicyDocument { mode, allow, .. } = &self.egress;
        if *mode != EgressMode::Public || !allow.is_empty() {
            let allowed =
                if allow.is_empty() { String::new() } else { format!(", allows {}", allow.join(", ")) };
            lines.push(("Egress", format!("{mode}{allowed}")));
        }
        lines
    }

    /// Settings of the guest's system that differ from the defaults.
    fn settings_lines(&self) -> Vec<(&'static str, String)> {
        let SettingsDocument { sysctls, ulimits, tmpfs, shm_bytes, read_only } = &self.settings;
        let mut lines = Vec::new();
        let sysctl = |(name, value)| ("Sysctl", escape::one_line(&format!("{name}={value}")));
        lines.extend(sysctls.iter().map(sysctl));
        lines.extend(ulimits.iter().map(|limit| ("Limit", limit.clone())));
        lines.extend(tmpfs.iter().map(|tmpfs| ("Tmpfs", escape::one_line(tmpfs))));
        lines.extend(shm_bytes.map(|bytes| ("Shared memory", size(bytes))));
        if *read_only {
            lines.push(("Root disk", "read-only".to_owned()));
        }
        lines
    }
}

/// The state, and the newest check if it failed.
fn health_line(health: &HealthDocument) -> String {
    let mut line = health.state.to_string();
    let Some(check) = health.checks.last() else { return line };
    let failed = match (&check.problem, check.exit_code) {
        (Some(problem), _) => problem.clone(),
        (None, Some(0) | None) => return line,
        (None, Some(code)) => format!("exit code {code}"),
    };
    line += &format!(" ({} failed in a row; the newest check: {failed}", health.failing_streak);
    let printed = check.output.trim();
    if !printed.is_empty() {
        line += &format!(", `{printed}`");
    }
    escape::one_line(&(line + ")"))
}

/// The check, and when it is run.
fn checked(check: &HealthCheckDocument) -> String {
    let HealthCheckDocument { command, interval_seconds, timeout_seconds, retries, .. } = check;
    let words = escape::one_line(&command.join(" "));
    format!("{words} (every {interval_seconds} s, at most {timeout_seconds} s, unhealthy after {retries})")
}

/// A further disk, and where it is.
fn mounted(disk: &AttachmentDocument) -> String {
    let source = match &disk.source {
        DiskSourceDocument::Volume(name) => format!("volume {name}"),
        DiskSourceDocument::Image(path) => path.display().to_string(),
        DiskSourceDocument::Bundle(path) => format!("bundle {}", path.display()),
    };
    let how = if disk.read_only { ", read-only" } else { "" };
    format!("{} ({source}{how})", disk.mount_point)
}
