//! One virtual machine and the process that manages it, the supervisor.
//!
//! For each running workspace there is one supervisor: a process of its own that starts QEMU (and the network stack),
//! communicates with the guest's agent, writes the logs and the state, and ends the machine. [`launch()`] starts it
//! from the caller's process; [`supervise`] is its `main`. Caller and supervisor are connected by a socket. When the
//! caller ends, the supervisor ends the machine; when the supervisor ends, the kernel ends QEMU and the network stack
//! (`PR_SET_PDEATHSIG`). The machine of a started workspace outlives its caller; clients reach its supervisor through
//! a socket in the workspace's directory ([`control`]).
//!
//! Decisions are pure ([`accel`], [`machine`], [`lifecycle`]); one driver ([`supervisor`]) executes them.

pub mod accel;
pub mod architecture;
mod bounded_log;
mod brokers;
mod cgroup;
mod confinement;
pub mod control;
mod core_dump;
mod descriptors;
mod features;
mod file_size;
mod flatten;
mod handed;
mod handover;
mod jail;
mod job_output;
mod kvm;
pub mod launch;
pub mod lifecycle;
pub mod machine;
mod mapped;
mod network_stack;
mod output;
mod overlay;
mod ports;
mod replacements;
mod spawn;
pub mod spec;
pub mod supervisor;
pub mod template;
#[cfg(test)]
mod wire;

pub use accel::{AccelChoice, AccelDecision, KvmFacts, KvmUnusable};
pub use bounded_log::{LogPlace, older as older_log, place_since};
pub use control::{
    Answer, Capture, ControlError, JobOrder, JobRequest, JobStdinStream, Refusal, StoppedMachine,
};
pub use core_dump::never_dump_core;
pub use file_size::fail_oversized_writes;
pub use flatten::{DiskPart, LayerWriter, flatten, read_layers};
pub use jail::Walls;
pub use job_output::{JOB_OUTPUT_LIMIT, JobOutputPiece, JobOutputReader};
pub use launch::{Launched, SuperviseError, launch};
pub use lifecycle::ChangeRequest;
pub use microagent_qemu::argv::Accel;
pub use microagent_store::SUPERVISE_ARGUMENT;
pub use network_stack::member_entries;
pub use output::{OUTPUT_LIMIT, OutputFrame, OutputReader, OutputStream};
pub use overlay::{Backing, OverlayError, create_overlay, grow_overlay};
pub use ports::{BoundPort, PortError, bind_published, choose_ports};
pub use spec::{
    BrokersSpec, CapturedMemory, Claim, DiskSpec, DiskStamp, Ended, ExtraDisk, HealthSpec, LayerFile,
    MachineSpec, Outcome, RelayedOutput, Report, SPEC_LIMIT, SUPERVISOR_PROTOCOL, StartMode, Step,
    SupervisorSpec, Timeline, Work,
};
pub use supervisor::supervise;
