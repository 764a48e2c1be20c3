//! Starts QEMU in its jail with its files and sockets, and a second process that waits in case the machine cannot be
//! restored.
//! A machine that cannot be restored is replaced by one that boots. By then the supervisor is confined and cannot
//! start programs. So the process of the second one is forked before: it enters its jail, waits for one byte, and
//! then executes QEMU.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;

use microagent_qemu::argv::Accel;
use microagent_qemu::features::Features;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::machine::REAP_DEADLINE;
use super::notified::Notified;
use super::plan::Plan;
use crate::cgroup::{Bounds, MachineGroup};
use crate::handed::{Handed, MachineFiles, open_again};
use crate::handover::take_over;
use crate::jail::{Account, FileAccess, Jail, Jailed, Limits};
use crate::machine::{
    CAPTURES_MAX, STATE_SET, Sockets, Start, command_line, host_memory_limit_mib, throttle_disks,
};
use crate::spawn::{Numbers, Process, Program, Trigger, spawn, spawn_waiting};
use crate::spec::{MachineSpec, SupervisorSpec};

/// Most that a state has beside the memory, in bytes; it is some hundred KiB.
const DEVICES_STATE_BYTES: u64 = 64 << 20;

/// QEMU, or what will be QEMU, with our ends of its sockets.
pub(super) struct Qemu {
    pub(super) child: Process,
    pub(super) console: UnixStream,
    pub(super) monitor: UnixStream,
    pub(super) control: OwnedFd,
    /// The state that it restores.
    pub(super) state: Option<Incoming>,
    /// What the monitor is told before the guest runs.
    pub(super) first: Vec<(&'static str, Value)>,
    /// The calls that it is answered, if it has the memory of a template.
    pub(super) notified: Option<Notified>,
}

/// A state that QEMU restores.
pub(super) struct Incoming {
    /// Where it is, in QEMU's words.
    pub(super) uri: String,
    /// Whether it has the memory, too.
    pub(super) has_memory: bool,
}

/// A process that waits to execute QEMU.
pub(super) struct StandBy {
    qemu: Qemu,
    trigger: Trigger,
}

impl StandBy {
    /// The numbers of its process.
    pub(super) fn numbers(&self) -> Numbers {
        self.qemu.child.numbers()
    }

    /// Makes it execute QEMU.
    ///
    /// # Errors
    /// Fails when the process is gone.
    pub(super) fn execute(self) -> io::Result<Qemu> {
        self.trigger.fire()?;
        Ok(self.qemu)
    }

    /// Ends it: it is not needed.
    pub(super) async fn end(mut self) {
        self.qemu.child.kill();
        let _ = timeout(REAP_DEADLINE, self.qemu.child.wait()).await;
    }
}

/// All processes of one machine that are, or can become, QEMU.
pub(super) struct Processes {
    pub(super) qemu: Qemu,
    /// For a machine that is restored.
    pub(super) stand_by: Option<StandBy>,
    /// The user that they are, if they are not ours.
    pub(super) account: Option<Account>,
    /// The control group that they are in.
    pub(super) group: MachineGroup,
}

/// Starts QEMU, and beside a machine that is restored the process that can take its place.
pub(super) fn start(
    spec: &SupervisorSpec,
    plan: &Plan,
    network: Option<BorrowedFd<'_>>,
    claimed: &[File],
    features: Features,
) -> io::Result<Processes> {
    let account = Account::choose(&spec.machine.qemu, spec.machine.kvm).ok();
    let files = MachineFiles::open(&spec.machine, claimed, account.as_ref())?;
    let group = machine_group(&spec.machine);
    let access = if features.read_only_memory { FileAccess::Read } else { FileAccess::ReadWrite };
    let memory = plan.template().map(|ram| Handed::memory(ram, access, account.as_ref())).transpose()?;
    // Sets are searched for a descriptor with the access that is asked for.
    let state = plan.state().map(|state| open_again(state, FileAccess::Read)).transpose()?;
    let start = plan.start(memory.as_ref().map(Handed::fd), state.as_ref().map(AsFd::as_fd));
    let maker = Maker { spec, network, files: &files, account: account.as_ref(), group: &group, features };
    let qemu = maker.start(start, memory.as_ref(), |program| Ok((spawn(program)?, ())))?.0;
    let stand_by = match plan.is_restored() {
        true => Some(maker.start(Start::Boot, None, spawn_waiting)?),
        false => None,
    };
    let stand_by = stand_by.map(|(qemu, trigger)| StandBy { qemu, trigger });
    Ok(Processes { qemu, stand_by, account, group })
}

/// What all processes of one machine get.
struct Maker<'a> {
    spec: &'a SupervisorSpec,
    network: Option<BorrowedFd<'a>>,
    files: &'a MachineFiles,
    account: Option<&'a Account>,
    group: &'a MachineGroup,
    features: Features,
}

impl Maker<'_> {
    /// Starts one in its jail; `memory` is the template's, opened for QEMU.
    fn start<T>(
        &self,
        start: Start<'_>,
        memory: Option<&Handed>,
        spawn: impl FnOnce(Program<'_>) -> io::Result<(Process, T)>,
    ) -> io::Result<(Qemu, T)> {
        let (console, qemu_console) = pair()?;
        let (monitor, qemu_monitor) = pair()?;
        let (control, qemu_control) = StdUnixStream::pair()?;
        let (control, qemu_control) = (OwnedFd::from(control), OwnedFd::from(qemu_control));
        let sockets = Sockets {
            console: qemu_console.as_fd(),
            monitor: qemu_monitor.as_fd(),
            control: qemu_control.as_fd(),
            network: self.network,
        };
        let mut inherit = vec![sockets.console, sockets.monitor, sockets.control];
        inherit.extend(sockets.network);
        let (layers, extra) = (self.files.layers(), self.files.extra());
        // The kernel of a template is loaded again only for a guest that may restart.
        let boots = !start.is_from_template() || self.spec.work.is_detached();
        let names = self.files.names(boots, &layers, &extra);
        inherit.extend(names.all());
        inherit.extend(start.state());
        inherit.extend(start.memory());
        let machine = &self.spec.machine;
        let line = command_line(machine, start, sockets, names, self.features);
        let mut reopened = if boots { self.files.reopened() } else { Vec::new() };
        reopened.extend(memory.and_then(Handed::reopened));
        let jailed = Jailed {
            qemu: &machine.qemu,
            kvm: machine.kvm,
            account: self.account,
            state_dir: &self.spec.state_dir,
            reopened: &reopened,
            limits: limits(machine, inherit.len() + CAPTURES_MAX as usize, self.files.largest_bytes()?),
        };
        let mut jail = Jail::prepare(jailed, line.args()).map_err(io::Error::other)?;
        let mut listener = None;
        if matches!(start, Start::Restore { .. }) {
            let (ours, theirs) = StdUnixStream::pair()?;
            (jail, listener) = (jail.notifying(theirs), Some(ours));
        }
        let path = jail.program();
        let program =
            Program { path: &path, args: line.args(), inherit: &inherit, stdin: None, jail: Some(jail) };
        let (child, more) = spawn(program)?;
        self.group.take_in(child.numbers().pid);
        let listener = listener.and_then(|from| take_over(&from, 0).ok()?.1.pop());
        let memory_bytes = u64::from(machine.memory_mib) << 20;
        let notified = listener.map(|listener| Notified { listener, memory_bytes });
        let state = start.state().map(|state| Incoming {
            uri: match self.features.file_migration {
                true => format!("file:{}", STATE_SET.filename()),
                false => format!("fd:{}", state.as_raw_fd()),
            },
            has_memory: matches!(start, Start::RestoreWhole { .. }),
        });
        let first = throttle_disks(machine, start);
        Ok((Qemu { child, console, monitor, control, state, first, notified }, more))
    }
}

fn machine_group(machine: &MachineSpec) -> MachineGroup {
    let bounds = Bounds { memory_mib: memory_limit_mib(machine), cpu_count: machine.cpu_count };
    MachineGroup::make(bounds, std::process::id())
}

fn memory_limit_mib(machine: &MachineSpec) -> u32 {
    let accel = if machine.kvm { Accel::Kvm } else { Accel::Tcg };
    host_memory_limit_mib(machine.memory_mib, accel)
}

/// Limits of the process of a machine, by the number of descriptors that it inherits and the size of its largest disk.
fn limits(machine: &MachineSpec, inherited: usize, largest_disk: u64) -> Limits {
    // The state of a machine has its memory in it, where that is no file of its own.
    let state = (u64::from(machine.memory_mib) << 20) + DEVICES_STATE_BYTES;
    Limits::new(inherited, largest_disk.max(state), u64::from(memory_limit_mib(machine)) << 20)
}

fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}
