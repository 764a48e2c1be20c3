//! The way from the machine's network device to the host's network: the filter, a thread of this process, and behind it
//! passt as a running process, with the ports that it publishes.
//!
//! passt is started before QEMU. Where ports are published, it is also waited for: a machine whose port is taken does not
//! boot. passt binds its ports before it answers anything, so one answer ([`microagent_net::probe_frame`]) says that it
//! listens.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use microagent_net::{
    Decision, DecisionLog, FilterHandle, FilterOptions, Publish, host_addresses, is_probe_answer, passt_args,
    probe_frame, start_filter,
};
use microagent_store::{Failure, FailureKind, Link, ProcessId, WorkspaceDir};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr};
use tokio::time::timeout;

use super::full_or_boot;
use super::machine::{REAP_DEADLINE, start_failure};
use crate::bounded_log::BoundedLog;
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

/// Bound of the log of decisions in bytes (twice that on disk): some ten thousand of them.
const EGRESS_LOG_LIMIT: u64 = 4 * 1024 * 1024;

/// passt, what it was told to publish, and the filter before it.
pub(super) struct Network {
    passt: Child,
    process: Option<ProcessId>,
    published: Vec<Publish>,
    /// The filter's end of passt's socket, until the filter runs.
    passt_end: Option<OwnedFd>,
    filter: Option<FilterHandle>,
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
        let (ours, theirs) = StdUnixStream::pair()?;
        let args = passt_args(theirs.as_fd(), &published);
        let program = Program { path: &spec.program, args: &args, inherit: &[theirs.as_fd()], jail: None };
        let passt = spawn(program)?;
        let process = passt.id().and_then(|pid| ProcessId::of(i32::try_from(pid).ok()?));
        let passt_end = Some(ours.into());
        Ok(Network { passt, process, published, passt_end, filter: None, is_lost: false })
    }

    /// Waits for passt's first answer. The inner error is what it said when it ended instead.
    async fn ready(mut self, mac: [u8; 6]) -> Result<Result<Network, String>, Failure> {
        let passt_end = self.passt_end.take().expect("it is taken later, by the filter");
        match timeout(READY_DEADLINE, probe(passt_end, mac)).await {
            Ok(Ok(passt_end)) => {
                self.passt_end = Some(passt_end);
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

    /// Starts the filter between QEMU's socket and passt's. QEMU and passt are started before: until here this process has
    /// one thread ([`crate::spawn`]).
    pub(super) fn filter(
        &mut self,
        spec: &PasstSpec,
        device: OwnedFd,
        dir: &WorkspaceDir,
    ) -> Result<(), Failure> {
        let options = FilterOptions {
            policy: spec.egress.clone(),
            published: self.published.iter().map(|publish| publish.guest_port.get()).collect(),
            host_addresses: host_addresses().map_err(|e| full_or_boot(&e, "the host's addresses"))?,
            name_servers: spec.name_servers.clone(),
        };
        let log = BoundedLog::append_to(&dir.egress_log(), EGRESS_LOG_LIMIT)
            .map_err(|e| full_or_boot(&e, "log of the network"))?;
        let passt_end = self.passt_end.take().expect("the filter is started once");
        let filter = start_filter(device, passt_end, options, Box::new(EgressLog(log)))
            .map_err(|e| full_or_boot(&e, "the filter of the network"))?;
        self.filter = Some(filter);
        Ok(())
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

    /// Ends it without waiting for anything that is still on its way.
    pub(super) async fn sever(mut self) {
        let _ = self.passt.start_kill();
        self.end().await;
    }

    /// passt ends when its socket closes, with the filter; it is only waited for.
    pub(super) async fn end(mut self) {
        drop(self.passt_end.take());
        if let Some(filter) = self.filter.take() {
            filter.stop();
        }
        if timeout(END_PATIENCE, self.passt.wait()).await.is_err() {
            let _ = self.passt.start_kill();
            let _ = timeout(REAP_DEADLINE, self.passt.wait()).await;
        }
    }
}

/// `egress.jsonl`.
struct EgressLog(BoundedLog);

impl DecisionLog for EgressLog {
    fn record(&mut self, decision: &Decision) {
        let mut line = serde_json::to_vec(decision).expect("a decision is plain data");
        line.push(b'\n');
        self.0.append(&line);
    }
}

/// Asks passt for its address and waits for the answer; gives the socket back, with nothing half-read in it. What comes
/// from outside before is dropped, as if the guest had not heard it. From the question passt also learns the guest's
/// hardware address, without which it could not reach a guest that has sent nothing yet.
async fn probe(passt_end: OwnedFd, mac: [u8; 6]) -> io::Result<OwnedFd> {
    let stream = StdUnixStream::from(passt_end);
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
