//! What a user can do about an error, as data. The program that shows a hint converts it to text.

use microagent_image::ImageHint;
use microagent_model::{JobId, VolumeName, WorkspaceName};

/// What a user can do about an [`Error`](crate::Error).
///
/// A program converts the variants to its own operations; [`Hint::Advice`] is a sentence that applies in any program.
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
    /// Use the volume of this name, or delete it.
    DeleteVolume {
        /// The volume.
        name: VolumeName,
    },
    /// Delete the damaged volume; its disk is unchanged until then.
    DeleteDamagedVolume,
    /// Halt the workspace that has the disk.
    HaltHolder {
        /// The workspace, as the lock names it.
        name: String,
    },
    /// Delete the workspaces that name the volume first, or force it.
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
    /// Try the secret again on its own.
    CheckSecret {
        /// The secret.
        name: String,
        /// Its source, as it was written.
        source: String,
    },
    /// Name a spec file that can be read.
    ChooseSpecFile,
    /// Name an image.
    NameImage,
    /// Set an option of a workspace or run otherwise.
    Option(OptionHint),
}

/// Which option of a workspace or run to set otherwise.
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

impl Hint {
    /// A sentence.
    pub(crate) fn advice(text: impl Into<String>) -> Hint {
        Hint::Advice(text.into())
    }
}
