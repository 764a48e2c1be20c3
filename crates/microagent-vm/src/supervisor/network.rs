//! The way from the machine's network device to the host's network: passt as a running process, and the ports that it
//! publishes.
//!
//! passt is started before QEMU. Where ports are published, it is also waited for: a machine whose port is taken does not
//! boot. passt binds its ports before it answers anything, so one answer ([`microagent_net::probe_frame`]) says that it
//! listens.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use microagent_net::{Publish, is_probe_answer, passt_args, probe_frame};
use microagent_store::{Failure, FailureKind, Link, ProcessId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr};
use tokio::time::timeout;

use super::machine::{REAP_DEADLINE, start_failure};
use crate::ports::{PortError, choose_ports};
use crate::spawn::{Program, spawn};
use crate::spec::PasstSpec;

/// How long passt may take to answer for the first time; alone it takes 15 ms.
const READY_DEADLINE: Duration = Duration::from_secs(10);

/// How often passt is started when it ends at once: another program may have been quicker with a port. The port is tried
/// again before each, so only what was picked can be lost more than once.
const ATTEMPTS: usize = 5;

/// How long passt may take to end when its socket is closed.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Largest frame that is read while passt's answer is waited for: none is larger with an MTU of 64 KiB.
const FRAME_LIMIT: usize = 65_536 + 18;

/// Most of passt's last words that are read.
const WORDS_LIMIT: u64 = 16 * 1024;

/// passt, and what it was told to publish.
pub(super) struct Network {
    passt: Child,
    process: Option<ProcessId>,
    published: Vec<Publish>,
    /// The end of its socket that is QEMU's.
    device: Option<OwnedFd>,
    /// Whether its end was told already.
    is_lost: bool,
}

impl Network {
    /// Starts passt, and waits until it listens where it is to listen at all. `mac` is the guest's.
    pub(super) async fn start(spec: &PasstSpec, mac: [u8; 6]) -> Result<Network, Failure> {
        let mut words = String::new();
        for _ in 0..ATTEMPTS {
            let published = choose_ports(&spec.publish).map_err(|e| port_failure(&e))?;
            let network = Network::spawn(spec, published).map_err(|e| start_failure(&spec.program, &e))?;
            if network.published.is_empty() {
                return Ok(network);
            }
            match network.ready(mac).await? {
                Ok(network) => return Ok(network),
                Err(ended) => words = ended,
            }
        }
        Err(Failure { kind: FailureKind::Boot, message: format!("passt failed: {words}") })
    }

    /// passt jails itself.
    fn spawn(spec: &PasstSpec, published: Vec<Publish>) -> io::Result<Network> {
        let (qemu_end, passt_end) = StdUnixStream::pair()?;
        let args = passt_args(passt_end.as_fd(), &published);
        let program = Program { path: &spec.program, args: &args, inherit: &[passt_end.as_fd()], jail: None };
        let passt = spawn(program)?;
        let process = passt.id().and_then(|pid| ProcessId::of(i32::try_from(pid).ok()?));
        Ok(Network { passt, process, published, device: Some(qemu_end.into()), is_lost: false })
    }

    /// Waits for passt's first answer. The inner error is what it said when it ended instead.
    async fn ready(mut self, mac: [u8; 6]) -> Result<Result<Network, String>, Failure> {
        let device = self.device.take().expect("it is taken later, by QEMU");
        match timeout(READY_DEADLINE, probe(device, mac)).await {
            Ok(Ok(device)) => {
                self.device = Some(device);
                Ok(Ok(self))
            }
            Ok(Err(_)) => Ok(Err(self.last_words().await)),
            Err(_) => {
                let message = format!("passt did not answer within {} s", READY_DEADLINE.as_secs());
                self.end().await;
                Err(Failure { kind: FailureKind::Boot, message })
            }
        }
    }

    /// What passt said last before it ended.
    async fn last_words(mut self) -> String {
        let mut words = Vec::new();
        if let Some(stderr) = self.passt.stderr.take() {
            let mut stderr = stderr.take(WORDS_LIMIT);
            // One that does not end is killed below, and has said enough.
            let _ = timeout(END_PATIENCE, stderr.read_to_end(&mut words)).await;
        }
        self.end().await;
        let words = String::from_utf8_lossy(&words);
        let last = words.lines().map(str::trim).rfind(|line| !line.is_empty());
        last.unwrap_or("it gave no reason").to_owned()
    }

    /// The end of passt's socket that is QEMU's, once.
    pub(super) fn take_device(&mut self) -> Option<OwnedFd> {
        self.device.take()
    }

    /// What passt says, once.
    pub(super) fn take_words(&mut self) -> Option<ChildStderr> {
        self.passt.stderr.take()
    }

    /// For the record; none of a passt that has ended already.
    pub(super) fn link(&self) -> Option<Link> {
        let passt = self.process.clone()?;
        Some(Link { passt, published: self.published.clone() })
    }

    /// Waits for passt's end and says how it came about, once. Cancel-safe.
    pub(super) async fn lost(&mut self) -> String {
        if self.is_lost {
            std::future::pending::<()>().await;
        }
        let status = self.passt.wait().await;
        self.is_lost = true;
        match status {
            Ok(status) => format!("passt ended ({status})"),
            Err(error) => format!("passt cannot be waited for: {error}"),
        }
    }

    /// passt ends when QEMU's socket closes; it is only waited for.
    pub(super) async fn end(mut self) {
        drop(self.device.take());
        if timeout(END_PATIENCE, self.passt.wait()).await.is_err() {
            let _ = self.passt.start_kill();
            let _ = timeout(REAP_DEADLINE, self.passt.wait()).await;
        }
    }
}

/// Asks passt for its address and waits for the answer; gives the socket back, with nothing half-read in it. What comes
/// from outside before is dropped, as if the guest had not heard it.
async fn probe(device: OwnedFd, mac: [u8; 6]) -> io::Result<OwnedFd> {
    let stream = StdUnixStream::from(device);
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    stream.write_all(&probe_frame(mac)).await?;
    loop {
        let len = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
        if len > FRAME_LIMIT {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut frame = vec![0; len];
        stream.read_exact(&mut frame).await?;
        if is_probe_answer(&frame) {
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            return Ok(stream.into());
        }
    }
}

fn port_failure(error: &PortError) -> Failure {
    Failure { kind: FailureKind::PortUnavailable, message: format!("{error}: {}", error.source) }
}
