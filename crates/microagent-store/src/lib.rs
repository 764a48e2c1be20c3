//! The state directory: where things lie, how they are written, who holds them.
//!
//! Everything that outlives a process lives in plain files under one directory. This crate knows the
//! paths ([`StateDir`]), writes files so that a crash leaves the old or the new content and nothing
//! between ([`write_atomic`]), takes locks that no child inherits ([`Lock`]) and tells whether a
//! recorded process is still the same one ([`ProcessId`]).
//!
//! It never starts processes and never repairs anything while reading.

mod atomic;
mod control;
mod events;
mod health;
mod job;
mod lock;
mod machine_state;
mod network;
mod open;
mod parents;
mod process;
mod record;
mod removal;
mod remove_tree;
mod settings;
mod snapshot;
mod state_dir;
mod supervision;
mod volume;
mod workload;

pub use atomic::{
    Durability, RECORD_LIMIT, ReadError, WriteError, fsync_dir, read_json, read_json_following, read_limited,
    read_limited_following, write_atomic, write_json,
};
pub use control::{CONTROL_KEY_LEN, ControlKey};
pub use events::{RELEASED, StateEvent};
pub use health::{HEALTH_CHECKS_MAX, HEALTH_OUTPUT_MAX, HealthReport, HealthResult};
pub use job::{JOB_COMMAND_LIMIT, JobDir, JobEnd, JobRecord};
pub use lock::{Lock, LockError};
pub use machine_state::{Link, MachineState, OneStart, printable};
pub use network::{LeaseError, NETWORK_FORMAT, NetworkDir, NetworkLoadError, NetworkRecord};
pub use open::{Access, open_file, open_named};
pub use parents::{UntrustedParent, check_parents};
pub use process::{MachineProcesses, ProcessId, SUPERVISE_ARGUMENT, VMM_NAME, processes_are_hidden};
pub use record::{Identity, LoadError, RecordedResult, WORKSPACE_FORMAT, WorkspaceRecord};
pub use settings::SettingsLock;
pub use snapshot::{FreeError, SNAPSHOT_FORMAT, SnapshotDir, SnapshotManifest};
pub use state_dir::{OpenError, Scratch, StateDir, WorkspaceDir};
pub use supervision::Supervision;
pub use volume::{
    HeldVolume, HoldError, UnplacedVolume, VOLUME_FORMAT, VolumeDir, VolumeHolder, VolumeLoadError,
    VolumeRecord,
};
pub use workload::{WORKLOAD_LIMIT, Workload};
