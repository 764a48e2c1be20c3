//! What a user can do about an error, as data. `Display` has words that name no option of any program.

use std::fmt;

use microagent_image::ImageHint;
use microagent_model::{JobId, NetworkName, SnapshotTag, VolumeName, WorkspaceName};

/// What a user can do about an [`Error`](crate::Error), from [`Error::hint`](crate::Error::hint).
///
/// `Display` is an English sentence that applies in any program: lower case, no full stop. A program that has words of
/// its own (names of buttons or options) matches the variants.
///
/// ```
/// use microagent::Hint;
///
/// let hint = Hint::StartFirst { name: "web".parse()? };
/// assert_eq!(hint.to_string(), "start workspace `web` first");
/// # Ok::<(), microagent::NameError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hint {
    /// A sentence: lower case, no full stop.
    Advice(String),
    /// About an image.
    Image(ImageHint),
    /// A Debian package is missing.
    InstallPackage {
        /// The package.
        package: &'static str,
    },
    /// The disk of the state directory is full: remove images or workspaces, or use another directory.
    FreeSpace {
        /// The failed workspace was kept.
        leftover: Option<WorkspaceName>,
    },
    /// Use a kernel with the missing walls, or accept a weak jail.
    AllowWeakJail,
    /// Let the accelerator be chosen: guests run in software emulation on this host.
    UseEmulation,
    /// Use another state directory.
    ChooseStateDir,
    /// See which workspaces exist.
    ListWorkspaces,
    /// Choose another name, or delete the workspace that has it.
    ChooseNameOrDelete {
        /// The workspace.
        name: WorkspaceName,
    },
    /// Name the workspace, because no name could be generated.
    ChooseName,
    /// Delete the damaged workspace.
    DeleteDamagedWorkspace,
    /// Delete the workspace, including the memory that its quarantine keeps.
    DeleteQuarantined {
        /// The workspace.
        name: WorkspaceName,
    },
    /// See which templates exist.
    ListTemplates,
    /// End other machines, or allow more of them.
    EndOthers,
    /// Create a workspace that is kept.
    CreateWorkspace,
    /// Create another workspace from the same spec file.
    CreateFromSpec,
    /// Start the workspace first.
    StartFirst {
        /// The workspace.
        name: WorkspaceName,
    },
    /// Halt the workspace first.
    HaltFirst {
        /// The workspace.
        name: WorkspaceName,
    },
    /// Halt the workspace, apply the file, and start it again.
    HaltAndApply {
        /// The workspace.
        name: WorkspaceName,
    },
    /// Resume the workspace first.
    ResumeFirst {
        /// The workspace.
        name: WorkspaceName,
    },
    /// Release the workspace from its quarantine first.
    ReleaseFirst {
        /// The workspace.
        name: WorkspaceName,
    },
    /// Run commands in the workspace, which is running.
    Exec {
        /// The workspace.
        name: WorkspaceName,
    },
    /// See which snapshots the workspace has.
    ListSnapshots {
        /// The workspace.
        name: WorkspaceName,
    },
    /// Choose another tag, or delete the snapshot.
    DeleteSnapshot {
        /// The workspace.
        name: WorkspaceName,
        /// The snapshot.
        tag: SnapshotTag,
    },
    /// Force the deletion of the snapshot, which is evidence.
    DeleteEvidence {
        /// The workspace.
        name: WorkspaceName,
        /// The snapshot.
        tag: SnapshotTag,
    },
    /// Make a snapshot of the disk only.
    DiskOnlySnapshot {
        /// The workspace.
        name: WorkspaceName,
    },
    /// Make a snapshot of the disk only, and create workspaces from it; or halt the workspace and fork it then.
    ForkDisk {
        /// The workspace.
        name: WorkspaceName,
    },
    /// Give each fork copies of the volumes and bundles that the workspace can write to; or as [`Hint::ForkDisk`].
    CopyVolumes {
        /// The workspace.
        name: WorkspaceName,
    },
    /// Use the disk without the memory.
    DiskOnly,
    /// Use the disk of the snapshot without its memory.
    UseDiskOfSnapshot {
        /// The snapshot, as `WORKSPACE:TAG`.
        snapshot: String,
    },
    /// Delete the damaged snapshot.
    DeleteDamagedSnapshot {
        /// The workspace.
        name: WorkspaceName,
        /// The snapshot.
        tag: SnapshotTag,
    },
    /// See which jobs the workspace has.
    ListJobs {
        /// The workspace.
        name: WorkspaceName,
    },
    /// See what the job printed.
    JobLogs {
        /// The workspace.
        name: WorkspaceName,
        /// The job.
        job: JobId,
    },
    /// Start a job with a standard input.
    StartJobWithStdin {
        /// The workspace.
        name: WorkspaceName,
    },
    /// The workspace belongs to a run in progress: kill it.
    KillRun {
        /// The workspace.
        name: WorkspaceName,
    },
    /// Check the state of the workspace, or kill it.
    StatusOrKill {
        /// The workspace.
        name: WorkspaceName,
    },
    /// Read the log of the workspace, or kill it.
    LogsOrKill {
        /// The workspace.
        name: WorkspaceName,
    },
    /// The workspace was not changed: try again, or restart it first.
    RepeatOrRestart {
        /// The workspace.
        name: WorkspaceName,
    },
    /// Read the log of the workspace, which shows how far the boot got.
    ShowLogs {
        /// The workspace.
        name: WorkspaceName,
    },
    /// Follow the log of the workspace, which shows the console too.
    FollowLogs {
        /// The workspace.
        name: WorkspaceName,
    },
    /// The time limit of the run was reached: raise it, read the log, then delete the workspace.
    TimeLimit {
        /// The workspace.
        name: WorkspaceName,
    },
    /// Read the log of the failed workspace, then delete it.
    LogsOrDelete {
        /// The workspace.
        name: WorkspaceName,
    },
    /// Another program listens at the port: free it, or choose another one.
    FreePort {
        /// The failed workspace was kept.
        leftover: Option<WorkspaceName>,
    },
    /// See which ports the workspace publishes.
    ListPorts {
        /// The workspace.
        name: WorkspaceName,
    },
    /// See which volumes exist, or create this one.
    CreateVolume {
        /// The volume.
        name: VolumeName,
    },
    /// See which private networks exist, or create this one.
    CreateNetwork {
        /// The network.
        name: NetworkName,
    },
    /// Use the volume of this name, or delete it.
    DeleteVolume {
        /// The volume.
        name: VolumeName,
    },
    /// Delete the damaged volume; its disk is unchanged until then.
    DeleteDamagedVolume,
    /// Halt the workspace that uses the disk.
    HaltHolder {
        /// The workspace.
        name: String,
    },
    /// Have the workspaces that join the network leave it first, or force the deletion.
    LeaveNetwork {
        /// The network.
        name: NetworkName,
    },
    /// Delete the workspaces that attach the volume first, or force the deletion.
    DeleteUsers {
        /// The workspaces.
        names: Vec<WorkspaceName>,
    },
    /// Repair a file system that was damaged.
    RepairDisk,
    /// Pack a host directory as a tar file, or copy it into a workspace.
    PackDirectory,
    /// Attach a volume by its name.
    AttachVolume,
    /// Declare artifacts when the workspace is created.
    DeclareArtifact,
    /// Look up only this secret, to see whether it works.
    CheckSecret {
        /// The secret.
        name: String,
        /// Its source, as it was written.
        source: String,
    },
    /// Name a spec file that exists and can be read.
    ChooseSpecFile,
    /// Name an image.
    NameImage,
    /// Set an option of a workspace or run differently.
    Option(OptionHint),
}

/// How an option of a workspace or run has to be set. `Display` is a sentence, as that of [`Hint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OptionHint {
    /// Environment variables have a name without `=`.
    Environment,
    /// The path of an artifact is absolute.
    ArtifactPath,
    /// Use network `user`, or publish no port.
    Publish,
    /// Use network `user`, or set no egress policy.
    Egress,
    /// Use network `user`, or set nothing of DNS.
    Dns,
    /// Use network `user`, or set no network rate.
    NetworkRate,
    /// Allow at least one connection, or use network `isolated`.
    Connections,
    /// Sizes of a volume in MiB.
    VolumeSize {
        /// Smallest one.
        least: u64,
        /// Largest one.
        most: u64,
    },
    /// A timeout greater than 0, or none.
    Timeout,
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hint::Advice(text) => f.write_str(text),
            Hint::Image(hint) => hint.fmt(f),
            Hint::Option(hint) => hint.fmt(f),
            Hint::InstallPackage { package } => write!(f, "install the Debian package `{package}`"),
            Hint::FreeSpace { leftover: None } => f.write_str(
                "free disk space: remove images or workspaces that are not needed, or use another state directory",
            ),
            Hint::FreeSpace { leftover: Some(name) } => {
                write!(f, "free disk space: delete workspace `{name}`, or remove images that are not needed")
            }
            Hint::AllowWeakJail => f.write_str("use a kernel with Landlock, or accept a weaker jail"),
            Hint::UseEmulation => f.write_str("choose the accelerator automatically: guests are emulated on this host"),
            Hint::ChooseStateDir => f.write_str("use another state directory"),
            Hint::FreePort { leftover: None } => {
                f.write_str("another program listens on the port: end that program, or publish another port")
            }
            Hint::FreePort { leftover: Some(name) } => write!(
                f,
                "another program listens on the port: end that program, or publish another port; delete workspace \
                 `{name}`, which is left"
            ),
            Hint::RepairDisk => f.write_str(
                "if the disk was not unmounted cleanly, attach it once for writing; if it is damaged, repair its file \
                 with e2fsck -f",
            ),
            Hint::PackDirectory => f.write_str(
                "pack the directory, `tar -C DIR -cf dir.tar .`, and attach the tar file; or copy it into a workspace",
            ),
            Hint::CheckSecret { name, source } => write!(f, "look up `{source}` on its own, to check secret `{name}`"),
            Hint::ChooseSpecFile => f.write_str("name a spec file that exists and can be read"),
            Hint::NameImage => f.write_str("name an image"),
            Hint::EndOthers => f.write_str("end another machine, wait until one ends, or allow more of them"),
            Hint::CreateNetwork { name } => {
                write!(f, "create private network `{name}`, or join an existing one")
            }
            Hint::LeaveNetwork { name } => write!(
                f,
                "have the workspaces leave private network `{name}` first, or force the deletion; they cannot start without it"
            ),
            Hint::CreateVolume { .. }
            | Hint::DeleteVolume { .. }
            | Hint::DeleteDamagedVolume
            | Hint::HaltHolder { .. }
            | Hint::DeleteUsers { .. }
            | Hint::AttachVolume
            | Hint::ListTemplates => self.of_volume(f),
            Hint::RepeatOrRestart { name } => {
                write!(f, "workspace `{name}` was not changed: try again, or restart it first")
            }
            _ => self.of_workspace(f),
        }
    }
}

impl Hint {
    /// Hints about volumes and templates.
    fn of_volume(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hint::CreateVolume { name } => write!(f, "create volume `{name}`, or name an existing one"),
            Hint::DeleteVolume { name } => write!(f, "use volume `{name}`, or delete it with its data"),
            Hint::DeleteDamagedVolume => {
                f.write_str("delete the volume; its disk, next to the damaged record, was not changed")
            }
            Hint::HaltHolder { name } => {
                write!(f, "one machine can use the disk at a time: halt workspace `{name}` first")
            }
            Hint::DeleteUsers { names } => {
                let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
                write!(
                    f,
                    "delete {} first, or force the deletion; they cannot start afterwards",
                    names.join(", ")
                )
            }
            Hint::AttachVolume => f.write_str("attach the volume by its name"),
            _ => f.write_str("list the templates, to see which keys exist"),
        }
    }

    /// Hints about workspaces.
    fn of_workspace(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hint::ChooseNameOrDelete { name } => {
                write!(f, "choose another name, or delete workspace `{name}`")
            }
            Hint::ChooseName => f.write_str("set the clock of the host, or choose a name for the workspace"),
            Hint::DeleteDamagedWorkspace => f.write_str("delete the damaged workspace"),
            Hint::DeleteQuarantined { name } => {
                write!(f, "kill and delete workspace `{name}`; its memory and its disk are lost")
            }
            Hint::CreateWorkspace => f.write_str("create a workspace, or keep the one of the run"),
            Hint::CreateFromSpec => {
                f.write_str("change the spec file, or create another workspace from it; nothing was changed")
            }
            Hint::StartFirst { name } => write!(f, "start workspace `{name}` first"),
            Hint::HaltFirst { name } => write!(f, "halt workspace `{name}` first"),
            Hint::HaltAndApply { name } => write!(
                f,
                "halt workspace `{name}`, apply the file and start the workspace again; nothing was changed"
            ),
            Hint::ResumeFirst { name } => write!(f, "resume workspace `{name}` first"),
            Hint::ReleaseFirst { name } => write!(f, "halt workspace `{name}` first; its memory is lost"),
            Hint::Exec { name } => write!(f, "run commands in workspace `{name}`, which is running"),
            Hint::ListJobs { name } => write!(f, "list the jobs of workspace `{name}`"),
            Hint::JobLogs { name, job } => write!(f, "read the output of job {job} of workspace `{name}`"),
            Hint::StartJobWithStdin { name } => {
                write!(f, "start the job in workspace `{name}` with a standard input")
            }
            Hint::KillRun { name } => {
                write!(f, "workspace `{name}` belongs to a run and cannot be quarantined: kill it")
            }
            Hint::StatusOrKill { name } => write!(f, "check the state of workspace `{name}`, or kill it"),
            Hint::LogsOrKill { name } => {
                write!(f, "read the log of workspace `{name}` for the reason, or kill the workspace")
            }
            Hint::ShowLogs { name } => {
                write!(f, "read the log of workspace `{name}`: it shows how far the boot got")
            }
            Hint::FollowLogs { name } => {
                write!(f, "follow the log of workspace `{name}`: it shows the console, too")
            }
            Hint::TimeLimit { name } => write!(
                f,
                "the time limit of the run was reached: raise it, read the log of workspace `{name}`, then delete it"
            ),
            Hint::LogsOrDelete { name } => {
                write!(f, "read the log of workspace `{name}`, then delete the workspace")
            }
            Hint::ListPorts { name } => write!(f, "list the published ports of workspace `{name}`"),
            Hint::DeclareArtifact => f.write_str("declare artifacts when the workspace is created"),
            _ => self.of_snapshot(f),
        }
    }

    /// Hints about snapshots.
    fn of_snapshot(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hint::ListSnapshots { name } => write!(f, "list the snapshots of workspace `{name}`"),
            Hint::DeleteSnapshot { name, tag } => {
                write!(f, "choose another tag, or delete snapshot `{tag}` of workspace `{name}`")
            }
            Hint::DeleteEvidence { name, tag } => {
                write!(f, "force the deletion of snapshot `{tag}` of workspace `{name}`")
            }
            Hint::DiskOnlySnapshot { name } => {
                write!(
                    f,
                    "make a snapshot of the disk of workspace `{name}` only; a broker keeps credentials outside"
                )
            }
            Hint::DiskOnly => f.write_str("use the disk without the memory"),
            Hint::ForkDisk { name } => {
                write!(f, "fork the disk of workspace `{name}` only: halt it, or make a snapshot of its disk")
            }
            Hint::CopyVolumes { name } => write!(
                f,
                "give each fork of workspace `{name}` copies of its volumes and bundles; or halt it, or make a snapshot of its disk"
            ),
            Hint::UseDiskOfSnapshot { snapshot } => {
                write!(f, "create a workspace from the disk of snapshot `{snapshot}`, and boot it")
            }
            Hint::DeleteDamagedSnapshot { name, tag } => {
                write!(f, "delete the damaged snapshot `{tag}` of workspace `{name}`")
            }
            _ => f.write_str("list the workspaces, to see which names exist"),
        }
    }

    /// A sentence.
    pub(crate) fn advice(text: impl Into<String>) -> Hint {
        Hint::Advice(text.into())
    }
}

impl fmt::Display for OptionHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OptionHint::Environment => "write the variable as NAME=VALUE, with a name that has no `=`",
            OptionHint::ArtifactPath => "name an absolute path of the guest",
            OptionHint::Publish => "use network mode `user`, or publish no port",
            OptionHint::Egress => "use network mode `user`, or set no egress policy",
            OptionHint::Dns => "use network mode `user`, or set no name servers and names",
            OptionHint::NetworkRate => "use network mode `user`, or set no rate limit of the network",
            OptionHint::Connections => "allow at least 1 connection, or use network mode `isolated`",
            OptionHint::Timeout => "set a time limit greater than 0, or none",
            OptionHint::VolumeSize { least, most } => {
                return write!(f, "choose a size of {least} to {most} MiB");
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hint_has_words_that_name_no_flag() {
        let name: WorkspaceName = "web".parse().unwrap();
        let volume: VolumeName = "web".parse().unwrap();
        let of_name: [fn(WorkspaceName) -> Hint; 20] = [
            |name| Hint::FreeSpace { leftover: Some(name) },
            |name| Hint::ChooseNameOrDelete { name },
            |name| Hint::DeleteQuarantined { name },
            |name| Hint::StartFirst { name },
            |name| Hint::HaltFirst { name },
            |name| Hint::HaltAndApply { name },
            |name| Hint::ResumeFirst { name },
            |name| Hint::ReleaseFirst { name },
            |name| Hint::Exec { name },
            |name| Hint::ListJobs { name },
            |name| Hint::StartJobWithStdin { name },
            |name| Hint::KillRun { name },
            |name| Hint::StatusOrKill { name },
            |name| Hint::LogsOrKill { name },
            |name| Hint::RepeatOrRestart { name },
            |name| Hint::ShowLogs { name },
            |name| Hint::FollowLogs { name },
            |name| Hint::TimeLimit { name },
            |name| Hint::LogsOrDelete { name },
            |name| Hint::ListPorts { name },
        ];
        let named = of_name.into_iter().map(|hint| hint(name.clone())).chain([
            Hint::FreePort { leftover: Some(name.clone()) },
            Hint::JobLogs { name: name.clone(), job: JobId::FIRST },
            Hint::CreateVolume { name: volume.clone() },
            Hint::DeleteVolume { name: volume },
            Hint::CreateNetwork { name: "web".parse().unwrap() },
            Hint::LeaveNetwork { name: "web".parse().unwrap() },
            Hint::HaltHolder { name: "web".to_owned() },
            Hint::DeleteUsers { names: vec![name.clone()] },
            Hint::CheckSecret { name: "web".to_owned(), source: "env:X".to_owned() },
        ]);
        for hint in named {
            assert!(hint.to_string().contains("`web`"), "{hint:?}: {hint}");
        }
        let others = [
            Hint::InstallPackage { package: "qemu" },
            Hint::FreeSpace { leftover: None },
            Hint::FreePort { leftover: None },
            Hint::AllowWeakJail,
            Hint::UseEmulation,
            Hint::EndOthers,
            Hint::ChooseStateDir,
            Hint::ListWorkspaces,
            Hint::ChooseName,
            Hint::DeleteDamagedWorkspace,
            Hint::ListTemplates,
            Hint::CreateWorkspace,
            Hint::CreateFromSpec,
            Hint::DeleteDamagedVolume,
            Hint::RepairDisk,
            Hint::PackDirectory,
            Hint::AttachVolume,
            Hint::DeclareArtifact,
            Hint::ChooseSpecFile,
            Hint::NameImage,
            Hint::Option(OptionHint::VolumeSize { least: 1, most: 2 }),
        ];
        let texts: std::collections::BTreeSet<String> = others.iter().map(Hint::to_string).collect();
        assert_eq!(texts.len(), others.len(), "two hints have the same words");
        for text in texts {
            assert!(!text.contains("--") && !text.contains("microagent"), "{text}");
            assert!(!text.ends_with('.') && text.starts_with(char::is_lowercase), "{text}");
        }
    }
}
