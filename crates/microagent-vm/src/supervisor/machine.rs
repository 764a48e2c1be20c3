//! QEMU and passt as running processes.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::Duration;

use microagent_net::passt_args;
use microagent_qemu::qmp::Qmp;
use microagent_store::{Failure, FailureKind, ProcessId, WorkspaceDir};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::{Shared, VMM_LOG_LIMIT, full_or_boot};
use crate::bounded_log::BoundedLog;
use crate::jail;
use crate::lifecycle::Event;
use crate::machine::{Sockets, command_line};
use crate::spawn::{Program, spawn};
use crate::spec::{PasstSpec, Spec};

/// How long QEMU may take to close its disk.
const QUIT_DEADLINE: Duration = Duration::from_secs(10);

/// How long a killed process may take to be reaped.
const REAP_DEADLINE: Duration = Duration::from_secs(10);

/// The processes of one machine.
pub(super) struct Machine {
    qemu: Child,
    passt: Option<Child>,
    control: Option<UnixStream>,
    quit: Option<oneshot::Sender<()>>,
    console: Shared<BoundedLog>,
    vmm_log: Shared<BoundedLog>,
}

impl Machine {
    /// Starts passt and QEMU. What they print, and what the monitor reports, goes where it belongs from
    /// here on.
    pub(super) fn start(
        spec: &Spec,
        dir: &WorkspaceDir,
        console: Shared<BoundedLog>,
        events: &mpsc::Sender<Event>,
    ) -> Result<Machine, Failure> {
        let vmm_log =
            BoundedLog::create(&dir.vmm_log(), VMM_LOG_LIMIT).map_err(|e| full_or_boot(&e, "log"))?;
        let vmm_log = Rc::new(RefCell::new(vmm_log));
        let (network, mut passt) = match &spec.passt {
            Some(passt) => {
                let (qemu_end, child) = start_passt(passt).map_err(|e| start_failure(&passt.program, &e))?;
                (Some(qemu_end), Some(child))
            }
            None => (None, None),
        };
        let (mut qemu, sockets) =
            start_qemu(spec, network.as_ref()).map_err(|e| start_failure(&spec.machine.qemu, &e))?;
        for stderr in
            [qemu.stderr.take(), passt.as_mut().and_then(|passt| passt.stderr.take())].into_iter().flatten()
        {
            spawn_local(copy_to_log(stderr, Rc::clone(&vmm_log)));
        }
        spawn_local(copy_to_log(sockets.console, Rc::clone(&console)));
        let (quit, quit_asked) = oneshot::channel();
        spawn_local(watch_monitor(sockets.monitor, events.clone(), quit_asked));
        Ok(Machine { qemu, passt, control: Some(sockets.control), quit: Some(quit), console, vmm_log })
    }

    /// QEMU's process.
    pub(super) fn process_id(&self) -> Option<ProcessId> {
        ProcessId::of(i32::try_from(self.qemu.id()?).ok()?)
    }

    /// The control channel, once.
    pub(super) fn take_control(&mut self) -> UnixStream {
        self.control.take().expect("the control channel is taken once, by the worker")
    }

    /// Waits for QEMU's end and says how it came about. Cancel-safe.
    pub(super) async fn gone(&mut self) -> String {
        match self.qemu.wait().await {
            Ok(status) => self.describe(status),
            Err(error) => format!("QEMU cannot be waited for: {error}"),
        }
    }

    /// Ends QEMU in good order: its disk image is closed. Kills it when it takes too long.
    pub(super) async fn quit(&mut self) {
        // A monitor that is gone already means that QEMU is, too.
        let asked = self.quit.take().is_some_and(|quit| quit.send(()).is_ok());
        if !asked || timeout(QUIT_DEADLINE, self.qemu.wait()).await.is_err() {
            self.kill().await;
        }
        self.end_passt().await;
    }

    /// Kills QEMU and waits until it is gone.
    pub(super) async fn kill(&mut self) {
        let _ = self.qemu.start_kill();
        let _ = timeout(REAP_DEADLINE, self.qemu.wait()).await;
        self.end_passt().await;
    }

    /// passt ends when QEMU's socket closes; it is only waited for.
    async fn end_passt(&mut self) {
        if let Some(mut passt) = self.passt.take()
            && timeout(Duration::from_secs(1), passt.wait()).await.is_err()
        {
            let _ = passt.start_kill();
            let _ = timeout(REAP_DEADLINE, passt.wait()).await;
        }
    }

    fn describe(&self, status: ExitStatus) -> String {
        use std::os::unix::process::ExitStatusExt;
        if let Some(signal) = status.signal() {
            return format!("QEMU was killed by signal {signal}");
        }
        if !status.success() {
            let log = self.vmm_log.borrow().tail();
            let words =
                log.lines().rfind(|line| line.contains("qemu")).unwrap_or("it gave no reason").to_owned();
            return format!("QEMU failed: {words}");
        }
        let console = self.console.borrow().tail();
        match console.lines().rfind(|line| line.contains("Kernel panic")) {
            Some(line) => format!("the guest kernel panicked: {}", line.trim()),
            None => "the guest turned itself off before its work was done".to_owned(),
        }
    }
}

/// Our ends of QEMU's sockets.
struct OurEnds {
    console: UnixStream,
    monitor: UnixStream,
    control: UnixStream,
}

fn start_qemu(spec: &Spec, network: Option<&OwnedFd>) -> io::Result<(Child, OurEnds)> {
    let (console, qemu_console) = pair()?;
    let (monitor, qemu_monitor) = pair()?;
    let (control, qemu_control) = pair()?;
    let sockets = Sockets {
        console: qemu_console.as_fd(),
        monitor: qemu_monitor.as_fd(),
        control: qemu_control.as_fd(),
        network: network.map(AsFd::as_fd),
    };
    let line = command_line(&spec.machine, sockets).map_err(io::Error::other)?;
    let mut inherit = vec![sockets.console, sockets.monitor, sockets.control];
    inherit.extend(sockets.network);
    let jail = jail::rules(&spec.machine).map_err(io::Error::other)?;
    let child =
        spawn(Program { path: &spec.machine.qemu, args: line.args(), inherit: &inherit, jail: Some(jail) })?;
    Ok((child, OurEnds { console, monitor, control }))
}

/// Starts passt; gives the end of its socket that is QEMU's. passt jails itself.
fn start_passt(spec: &PasstSpec) -> io::Result<(OwnedFd, Child)> {
    let (qemu_end, passt_end) = StdUnixStream::pair()?;
    let args = passt_args(passt_end.as_fd(), spec.upstream);
    let child =
        spawn(Program { path: &spec.program, args: &args, inherit: &[passt_end.as_fd()], jail: None })?;
    Ok((qemu_end.into(), child))
}

fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}

fn start_failure(program: &std::path::Path, error: &io::Error) -> Failure {
    Failure { kind: FailureKind::Boot, message: format!("cannot start `{}`: {error}", program.display()) }
}

async fn copy_to_log(mut from: impl AsyncRead + Unpin, log: Shared<BoundedLog>) {
    let mut buffer = vec![0; 8192];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        log.borrow_mut().append(&buffer[..read]);
    }
}

/// Watches for the one event that the guest cannot tell of itself: the host's disk is full. Also passes on
/// the wish to quit.
async fn watch_monitor(monitor: UnixStream, events: mpsc::Sender<Event>, mut quit: oneshot::Receiver<()>) {
    let Ok(mut qmp) = Qmp::negotiate(monitor).await else { return };
    loop {
        tokio::select! {
            asked = &mut quit => {
                if asked.is_ok() {
                    let _ = qmp.execute("quit", json!({})).await;
                }
                return;
            }
            event = qmp.next_event() => match event {
                Ok(event) if event.name == "BLOCK_IO_ERROR" && event.data["nospace"] == true => {
                    let message = "the host's disk is full; the guest's write could not be stored".to_owned();
                    let _ = events.send(Event::HostFull(message)).await;
                }
                Ok(_) => {}
                Err(_) => return,
            },
        }
    }
}
