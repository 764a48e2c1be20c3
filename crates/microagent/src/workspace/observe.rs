//! Result, resource usage and settings of a workspace. Reading changes nothing.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use microagent_model::{CommandLine, GuestInit, HealthPlan, State, WorkspaceName};
use microagent_store::{
    HealthReport as RecordedHealth, ProcessId, RecordedResult, Supervision, Workload, read_json,
};
use microagent_vm::Accel;
use microagent_vm::machine::host_memory_limit_mib;
use tokio::time::sleep;

use super::Workspace;
use super::health::{HealthReport, health_plan};
use crate::error::Action;
use crate::streaming::{Streaming, hand_over};
use crate::{Error, RunResult};

/// Interval over which CPU usage is measured.
const SAMPLE: Duration = Duration::from_millis(250);

/// Clock ticks per second in `/proc` (`USER_HZ`): the same on all supported systems.
const TICKS_PER_SECOND: u64 = 100;

/// Resource usage of a machine on its host.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Stats {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Process id of QEMU.
    pub pid: i32,
    /// CPU usage in percent of one CPU; above 100 if it uses several.
    pub cpu_percent: f64,
    /// Resident memory of QEMU in bytes, including pages that it shares with other machines of the same template.
    pub memory_bytes: u64,
    /// Most memory that QEMU can use in bytes: the guest's, the translation buffer (without KVM), and its own.
    pub memory_limit_bytes: u64,
    /// Bytes read from disks since its start.
    pub io_read_bytes: u64,
    /// Bytes written to disks since its start.
    pub io_write_bytes: u64,
    /// Time of the measurement.
    pub sampled_at: Timestamp,
}

/// Further details of a workspace, from [`Workspace::inspect`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Inspection {
    /// The service, which each start runs.
    pub service: Option<CommandLine>,
    /// User of the service and of commands; empty means root.
    pub user: String,
    /// Working directory of both; empty means `/`.
    pub working_dir: String,
    /// Program of interactive sessions, where the guest's shell is not used.
    pub shell: Option<String>,
    /// Which process is process 1.
    pub init: GuestInit,
    /// Names of the variables that the user gave, sorted. Their values are not shown.
    pub env_names: Vec<String>,
    /// The health check, if there is one.
    pub health_check: Option<HealthPlan>,
    /// What the newest checks say of its current or last machine.
    pub health: Option<HealthReport>,
    /// Signal that asks the service to end; the default is SIGTERM.
    pub stop_signal: Option<String>,
    /// Whether its setup steps have not run yet.
    pub setup_pending: bool,
    /// Bytes that its overlay uses on the host.
    pub disk_bytes: u64,
    /// Memory of the host in bytes that its machine uses: of QEMU, supervisor, network stack and brokers together, without
    /// pages of files, which machines of one template share. `None` without a machine.
    pub host_memory_bytes: Option<u64>,
    /// Number of its snapshots.
    pub snapshots: usize,
    /// How often [`Workspace::supervise`] has restarted it since it began.
    pub restarts: u32,
    /// Result of its last command or service; `None` while it has a machine, whose result is not known yet.
    pub result: Option<RunResult>,
}

impl Workspace {
    /// Returns the result of the last run or service that ended, if one has ended.
    ///
    /// # Errors
    /// Fails if the workspace does not exist or its result is damaged.
    pub fn result(&self) -> Result<Option<RunResult>, Error> {
        match read_json::<RecordedResult>(&self.existing()?.result()) {
            Ok(recorded) => Ok(Some(RunResult::of(recorded))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(self.damaged(error)),
        }
    }

    /// Returns details of the workspace that [`Workspace::details`] does not have.
    ///
    /// # Errors
    /// Fails if the workspace does not exist or its files are damaged.
    pub fn inspect(&self) -> Result<Inspection, Error> {
        let dir = self.existing()?;
        let record = self.load()?;
        let workload = Workload::load(&dir).map_err(|e| self.damaged(e))?;
        let of_image = workload.env.len().saturating_sub(workload.given_env);
        let env_names: BTreeSet<_> = workload.env[of_image..].iter().map(|(name, _)| name.clone()).collect();
        Ok(Inspection {
            health_check: health_plan(&record, &workload),
            // The checks of a machine that failed may be the reason.
            health: match record.observed_state() {
                State::Failed => RecordedHealth::load(&dir),
                _ => RecordedHealth::observe(&dir, &record),
            }
            .map(HealthReport::of),
            setup_pending: !workload.setup.is_empty(),
            service: workload.service,
            user: workload.user,
            working_dir: workload.working_dir,
            shell: workload.shell,
            init: workload.init,
            env_names: env_names.into_iter().collect(),
            stop_signal: record.settings.stop_signal.clone().or(workload.stop_signal),
            disk_bytes: disk_bytes(&record.disk(&dir)),
            host_memory_bytes: host_memory_bytes(&record.processes(&dir).all()),
            snapshots: dir.snapshot_tags().map_or(0, |tags| tags.len()),
            // A damaged count is not worth an error.
            restarts: Supervision::load(&dir).unwrap_or_default().restarts,
            result: if record.observed_state().is_live() { None } else { self.result()? },
        })
    }

    /// Measures the resource usage of the machine during a quarter of a second.
    ///
    /// # Errors
    /// Fails if the workspace is not running ([`WrongState`](crate::ErrorKind::WrongState)).
    pub async fn stats(&self) -> Result<Stats, Error> {
        let record = self.observe()?;
        let state = record.observed_state();
        let wrong = || self.wrong_state(state, Action::Measure);
        if !matches!(state, State::Running | State::Stopping | State::Starting) {
            return Err(wrong());
        }
        let vmm = record.machine.vmm.as_ref().ok_or_else(wrong)?;
        let accel =
            if record.machine.backend.as_deref() == Some("linux-kvm") { Accel::Kvm } else { Accel::Tcg };
        let limit_mib = host_memory_limit_mib(record.observed_resources().memory_mib, accel);
        let begun = Instant::now();
        let before = processor_time(vmm).ok_or_else(wrong)?;
        sleep(SAMPLE).await;
        let after = processor_time(vmm).ok_or_else(wrong)?;
        let used = after.saturating_sub(before).as_secs_f64() / begun.elapsed().as_secs_f64();
        let field = |file: &str, key: &str| number(&process_file(vmm, file)?, key);
        Ok(Stats {
            workspace: self.name.clone(),
            pid: vmm.pid,
            cpu_percent: (used * 1000.0).round() / 10.0,
            memory_bytes: field("status", "VmRSS:").ok_or_else(wrong)? * 1024,
            memory_limit_bytes: u64::from(limit_mib) << 20,
            io_read_bytes: field("io", "read_bytes:").unwrap_or(0),
            io_write_bytes: field("io", "write_bytes:").unwrap_or(0),
            sampled_at: Timestamp::now(),
        })
    }

    /// Measures repeatedly, until the workspace is not running.
    ///
    /// # Errors
    /// As [`Workspace::stats`], for the first measurement.
    pub async fn follow_stats(&self) -> Result<Streaming<Stats>, Error> {
        let first = self.stats().await?;
        let workspace = self.clone();
        Ok(Streaming::start(1, |sender| async move {
            hand_over(&sender, first).await?;
            loop {
                match workspace.stats().await {
                    Ok(stats) => hand_over(&sender, stats).await?,
                    // It has ended meanwhile.
                    Err(Error::WrongState { .. }) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        }))
    }
}

impl RunResult {
    pub(crate) fn of(recorded: RecordedResult) -> RunResult {
        RunResult {
            started_at: recorded.started_at,
            exited_at: recorded.exited_at,
            exit_code: recorded.exit_code,
            signal: recorded.signal,
            start_error: recorded.start_error,
            dropped_bytes: recorded.dropped_bytes,
            out_of_memory: recorded.out_of_memory,
            disk_full: recorded.disk_full,
        }
    }
}

fn disk_bytes(disk: &Path) -> u64 {
    fs::metadata(disk).map_or(0, |found| found.blocks() * 512)
}

/// Memory of these processes that nobody else has: it comes back when they end. A supervisor is not dumpable, so nobody
/// reads what it shares with others from `smaps_rollup`.
///
/// # Source
/// `proc_pid_status(5)`.
fn host_memory_bytes(pids: &[i32]) -> Option<u64> {
    let of = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Some(number(&status, "RssAnon:")? + number(&status, "RssShmem:")?)
    };
    (!pids.is_empty()).then(|| pids.iter().filter_map(of).sum::<u64>() * 1024)
}

fn process_file(process: &ProcessId, file: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{}/{file}", process.pid)).ok()?;
    // The number may be another process's by now.
    process.is_alive().then_some(text)
}

fn number(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
}

/// CPU time of a process.
///
/// # Source
/// `proc_pid_stat(5)`, fields 14 (`utime`) and 15 (`stime`), in clock ticks.
fn processor_time(process: &ProcessId) -> Option<Duration> {
    let stat = process_file(process, "stat")?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    let ticks = next()? + next()?;
    Some(Duration::from_micros(ticks * 1_000_000 / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_used_time() {
        let me = ProcessId::current().unwrap();
        let before = processor_time(&me).unwrap();
        let end = before + Duration::from_millis(30);
        while processor_time(&me).unwrap() < end {
            std::hint::black_box(0);
        }
        assert!(number(&process_file(&me, "status").unwrap(), "VmRSS:").unwrap() > 0);
        assert!(host_memory_bytes(&[me.pid]).unwrap() > 0);
        assert_eq!(host_memory_bytes(&[]), None);
    }
}
