//! QEMU and the network stack as running processes.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::Duration;

use microagent_model::{FailureKind, WorkspaceFailure};
use microagent_qemu::features::Features;
use microagent_qemu::qmp::QmpError;
use microagent_store::{Link, ProcessId, WorkspaceDir};
use rustix::io::Errno;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{sleep, timeout};

use super::guest_end::GuestEnd;
use super::monitor::{Monitor, hold_monitor};
use super::network::{LinkChange, Network};
use super::notified;
use super::plan::Plan;
use super::qemu::{self, Processes, Qemu, StandBy};
use super::{Shared, VMM_LOG_LIMIT, full_or_boot};
use crate::bounded_log::BoundedLog;
use crate::cgroup::MachineGroup;
use crate::jail::Account;
use crate::lifecycle::{Event, MachineExit};
use crate::machine::NETDEV;
use crate::spawn::{Numbers, Process};
use crate::spec::SupervisorSpec;

/// The signal to a process whose memory is a file on a full file system.
const SIGBUS: i32 = 7;

/// Deadline for QEMU to close its disk.
pub(super) const QUIT_DEADLINE: Duration = Duration::from_secs(10);

/// How long the last words of an ended process may take.
const WORDS_PATIENCE: Duration = Duration::from_secs(5);

/// Deadline for reaping a killed process.
pub(super) const REAP_DEADLINE: Duration = Duration::from_secs(10);

/// How often it is looked whether QEMU's main thread is there.
const MAIN_THREAD_INTERVAL: Duration = Duration::from_secs(5);

/// Deadline for QEMU to set a link down.
pub(super) const LINK_DEADLINE: Duration = Duration::from_secs(2);

/// How often a machine that was reset is told to run, and how many times.
const RESET_POLL_INTERVAL: Duration = Duration::from_millis(2);
const RESET_POLLS: usize = 1000;

/// QEMU with the tasks that read from it.
struct Attached {
    child: Process,
    control: OwnedFd,
    keys: Option<OwnedWriteHalf>,
    monitor: Monitor,
    words: Option<JoinHandle<()>>,
    guest_end: GuestEnd,
}

/// Where a machine's words go.
struct Logs {
    console: Shared<BoundedLog>,
    vmm: Shared<BoundedLog>,
}

/// What a machine loses of itself, or gets back.
pub(super) enum Loss {
    Machine(MachineExit),
    Link(LinkChange),
}

/// The processes of one machine.
pub(super) struct Machine {
    qemu: Attached,
    /// Takes QEMU's place if the guest cannot be restored.
    stand_by: Option<StandBy>,
    network: Option<Network>,
    features: Features,
    logs: Logs,
    /// The user that QEMU is, if it is not ours.
    account: Option<Account>,
    /// Removed when QEMU is gone.
    group: MachineGroup,
}

impl Machine {
    /// Starts the network stack and QEMU. What they print, and what the monitor reports, goes where it belongs from
    /// here on.
    pub(super) async fn start(
        spec: &SupervisorSpec,
        plan: &Plan,
        files: &[File],
        features: Features,
        dir: &WorkspaceDir,
        console: Shared<BoundedLog>,
        events: &mpsc::Sender<Event>,
    ) -> Result<Machine, WorkspaceFailure> {
        let vmm_log =
            BoundedLog::create(&dir.vmm_log(), VMM_LOG_LIMIT).map_err(|e| full_or_boot(&e, "log"))?;
        let vmm_log = Rc::new(RefCell::new(vmm_log));
        let cannot_start = |e: io::Error| start_failure(&spec.machine.qemu, &e);
        let (mut network, device) = match (&spec.network, &spec.configure.network) {
            (Some(network), Some(guest)) => {
                let (ours, theirs) = StdUnixStream::pair().map_err(cannot_start)?;
                (Some(Network::start(network, guest.mac.0, ours.into(), dir)?), Some(theirs))
            }
            _ => (None, None),
        };
        let theirs = device.as_ref().map(AsFd::as_fd);
        let processes = qemu::start(spec, plan, theirs, files, features).map_err(cannot_start)?;
        for stderr in network.iter_mut().flat_map(Network::take_stderr) {
            spawn_local(copy_to_log(stderr, Rc::clone(&vmm_log)));
        }
        let logs = Logs { console, vmm: vmm_log };
        let Processes { qemu, stand_by, account, group } = processes;
        let qemu = attach(qemu, &logs, features, events);
        Ok(Machine { qemu, stand_by, network, features, logs, account, group })
    }

    /// Kills QEMU, which has not restored its guest, and boots one in its place. The network stays.
    ///
    /// # Errors
    /// Fails when nothing waits for that any more.
    pub(super) async fn boot_instead(&mut self, events: &mpsc::Sender<Event>) -> io::Result<()> {
        self.kill_qemu().await;
        let stand_by = self.stand_by.take().ok_or_else(|| io::Error::other("no process waits to boot it"))?;
        self.qemu = attach(stand_by.execute()?, &self.logs, self.features, events);
        Ok(())
    }

    /// Its guest has answered: nothing has to take its place.
    pub(super) fn dismiss_stand_by(&mut self) {
        if let Some(stand_by) = self.stand_by.take() {
            spawn_local(stand_by.end());
        }
    }

    /// Its control group.
    pub(super) fn group(&self) -> &MachineGroup {
        &self.group
    }

    /// Whether its processes are of a user that is not ours.
    pub(super) fn has_account(&self) -> bool {
        self.account.is_some()
    }

    /// Everything that was started for it.
    pub(super) fn children(&self) -> Vec<Numbers> {
        let network = self.network.iter().flat_map(Network::children);
        let stand_by = self.stand_by.as_ref().map(StandBy::numbers);
        [self.qemu.child.numbers()].into_iter().chain(network).chain(stand_by).collect()
    }

    /// What is known of the end of its guest.
    pub(super) fn guest_end(&self) -> GuestEnd {
        self.qemu.guest_end.clone()
    }

    /// QEMU's process.
    pub(super) fn process_id(&self) -> Option<ProcessId> {
        ProcessId::of(self.qemu.child.id()?)
    }

    /// What its network device leads to, if it has one.
    pub(super) fn link(&self) -> Option<Link> {
        self.network.as_ref().and_then(Network::link)
    }

    /// Its network, if it has one.
    pub(super) fn network(&mut self) -> Option<&mut Network> {
        self.network.as_mut()
    }

    /// Waits until it has lost something of itself: QEMU, or its network, for a moment or for good. Cancel-safe.
    pub(super) async fn loss(&mut self) -> Loss {
        let network = &mut self.network;
        let link_change = async {
            match network {
                Some(network) => network.change().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = exit(&mut self.qemu.child) => {}
            change = link_change => return Loss::Link(change),
        }
        Loss::Machine(self.gone().await)
    }

    /// The control channel, for one conversation at a time: a guest that was booted again is greeted on the same one.
    pub(super) fn control_channel(&self) -> io::Result<UnixStream> {
        let channel = StdUnixStream::from(self.qemu.control.try_clone()?);
        channel.set_nonblocking(true)?;
        UnixStream::from_std(channel)
    }

    /// Resets the machine, whose processors are stopped, and lets them run.
    pub(super) fn reset(&self) -> impl Future<Output = Result<(), QmpError>> + 'static {
        let monitor = self.monitor();
        async move {
            // What makes a reset by the guest stop the machine makes ours do so, too.
            let on_reset = |action: &str| ("set-action", json!({ "reboot": action }));
            monitor
                .execute(vec![on_reset("reset"), ("system_reset", json!({})), on_reset("shutdown")])
                .await?;
            for _ in 0..RESET_POLLS {
                // QEMU resets a moment after it has said so, and refuses to run until then.
                match monitor.execute(vec![("cont", json!({}))]).await {
                    Err(QmpError::Refused { .. }) => sleep(RESET_POLL_INTERVAL).await,
                    done => return done,
                }
            }
            monitor.execute(vec![("cont", json!({}))]).await
        }
    }

    /// Where the serial console is typed at, once.
    pub(super) fn take_keys(&mut self) -> OwnedWriteHalf {
        self.qemu.keys.take().expect("the console is taken once, by the control server")
    }

    /// The monitor, for freezing.
    pub(super) fn monitor(&self) -> Monitor {
        self.qemu.monitor.clone()
    }

    /// Waits for QEMU's end and returns how it ended. Cancel-safe.
    pub(super) async fn gone(&mut self) -> MachineExit {
        match exit(&mut self.qemu.child).await {
            Ok(status) => {
                // Its last words may still be in the pipe.
                if let Some(words) = self.qemu.words.as_mut() {
                    let _ = timeout(WORDS_PATIENCE, words).await;
                    self.qemu.words = None;
                }
                self.describe(status)
            }
            Err(error) => MachineExit::Died(format!("QEMU cannot be waited for: {error}")),
        }
    }

    /// Makes QEMU quit, so that it closes its disk image. Kills it after a deadline.
    pub(super) async fn quit(&mut self) {
        // A monitor that is gone already means that QEMU is, too.
        if !self.qemu.monitor.quit() || timeout(QUIT_DEADLINE, self.qemu.child.wait()).await.is_err() {
            self.kill_qemu().await;
        }
        self.end_network().await;
    }

    /// Kills QEMU, waits until it is gone, and ends the network.
    pub(super) async fn kill(&mut self) {
        self.kill_qemu().await;
        self.end_network().await;
    }

    async fn kill_qemu(&mut self) {
        self.qemu.child.kill();
        let _ = timeout(REAP_DEADLINE, self.qemu.child.wait()).await;
    }

    /// Takes the network away for good: its stack is killed, so nothing passes whatever QEMU does, and QEMU is told
    /// that the link is down.
    pub(super) fn sever(&mut self) -> impl Future<Output = ()> + 'static {
        let (network, monitor) = (self.network.take(), self.monitor());
        async move {
            let Some(network) = network else { return };
            network.sever().await;
            let down = vec![("set_link", json!({ "name": NETDEV, "up": false }))];
            // A QEMU that does not take it has nobody at the other end all the same.
            let _ = timeout(LINK_DEADLINE, monitor.execute(down)).await;
        }
    }

    async fn end_network(&mut self) {
        // It holds the link open.
        if let Some(stand_by) = self.stand_by.take() {
            stand_by.end().await;
        }
        if let Some(network) = self.network.take() {
            network.end().await;
        }
    }

    fn describe(&self, status: ExitStatus) -> MachineExit {
        use std::os::unix::process::ExitStatusExt;
        if status.signal() == Some(SIGBUS) {
            return MachineExit::Died(
                "QEMU was killed by signal 7: the file system that holds the guest's memory is full"
                    .to_owned(),
            );
        }
        if let Some(signal) = status.signal() {
            return MachineExit::Died(format!("QEMU was killed by signal {signal}"));
        }
        if !status.success() {
            let log = self.logs.vmm.borrow().tail();
            let words =
                log.lines().rfind(|line| line.contains("qemu")).unwrap_or("it gave no reason").to_owned();
            return MachineExit::Died(format!("QEMU failed: {words}"));
        }
        MachineExit::Died("QEMU ended without a reason".to_owned())
    }
}

/// Starts what reads from QEMU.
fn attach(mut qemu: Qemu, logs: &Logs, features: Features, events: &mpsc::Sender<Event>) -> Attached {
    let stderr = qemu.child.take_stderr();
    let words = stderr.map(|stderr| spawn_local(copy_to_log(stderr, Rc::clone(&logs.vmm))));
    let (shown, keys) = qemu.console.into_split();
    spawn_local(copy_to_log(shown, Rc::clone(&logs.console)));
    let (monitor, commanded) = Monitor::new();
    let guest_end = GuestEnd::new(Rc::clone(&logs.console));
    if let Some(notified) = qemu.notified {
        let vmm_log = Rc::clone(&logs.vmm);
        spawn_local(async move {
            if let Err(error) = notified::answer(notified).await {
                vmm_log.borrow_mut().append(format!("microagent: QEMU's calls: {error}\n").as_bytes());
            }
        });
    }
    let (qemu_words, ends) = ((qemu.first, qemu.state, features), guest_end.clone());
    spawn_local(hold_monitor(qemu.monitor, qemu_words, events.clone(), commanded, ends));
    Attached { child: qemu.child, control: qemu.control, keys: Some(keys), monitor, words, guest_end }
}

/// Why a program could not be started, with all causes, and with the limit to raise where that would help.
pub(super) fn start_failure(program: &std::path::Path, error: &io::Error) -> WorkspaceFailure {
    let mut message = format!("cannot start `{}`", program.display());
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        message.push_str(&format!(": {error}"));
        let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if number.map(Errno::from_raw_os_error) == Some(Errno::MFILE) {
            message.push_str("; raise the limit of open files (`ulimit -n`)");
        }
        cause = error.source();
    }
    WorkspaceFailure { kind: FailureKind::Boot, message }
}

async fn copy_to_log(mut from: impl AsyncRead + Unpin, log: Shared<BoundedLog>) {
    let mut buffer = vec![0; 8192];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        log.borrow_mut().append(&buffer[..read]);
    }
}

/// Waits for the end of QEMU. One whose main thread has ended, while others run the guest's processors, answers nothing and
/// does not end by itself: it is killed. Cancel-safe.
async fn exit(qemu: &mut Process) -> io::Result<ExitStatus> {
    loop {
        if let Ok(ended) = timeout(MAIN_THREAD_INTERVAL, qemu.wait()).await {
            return ended;
        }
        if qemu.id().is_some_and(ProcessId::has_lost_its_main_thread) {
            qemu.kill();
        }
    }
}
