//! The processes of a running guest. Its agent lists them; no program of the image runs.

use std::time::Duration;

use microagent_model::WorkspaceName;
use microagent_proto::{GuestError, PROCESSES_MAX, ProcessInfo, Request};

use super::Workspace;
use crate::Error;
use crate::error::{Action, ConnectionFault};

/// The processes of a guest, from [`Workspace::processes`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ProcessList {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Its processes, by their numbers.
    pub processes: Vec<GuestProcess>,
}

/// A process of a guest. All of it is what the guest says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuestProcess {
    /// Its number in the guest.
    pub pid: u32,
    /// The number of its parent; 0 for process 1, and for what was started from outside.
    pub parent_pid: u32,
    /// Number of its user.
    pub uid: u32,
    /// Name of its user in the guest; the number, if it has none.
    pub user: String,
    /// Time on processors.
    pub cpu_time: Duration,
    /// Time since its start.
    pub age: Duration,
    /// Resident memory in bytes.
    pub memory_bytes: u64,
    /// Words of its command line, cut after 1024 bytes; of a process without one, the kernel's name in brackets.
    pub command: Vec<String>,
}

impl GuestProcess {
    fn of(process: ProcessInfo) -> GuestProcess {
        let words = process.command.strip_suffix(&[0]).unwrap_or(&process.command).split(|byte| *byte == 0);
        let user = if process.user.is_empty() { process.uid.to_string() } else { process.user };
        GuestProcess {
            pid: process.pid,
            parent_pid: process.parent,
            uid: process.uid,
            user,
            cpu_time: Duration::from_micros(process.cpu_us),
            age: Duration::from_micros(process.age_us),
            memory_bytes: process.memory_bytes,
            command: words.map(|word| String::from_utf8_lossy(word).into_owned()).collect(),
        }
    }

    /// Returns the share of one processor that it has had since its start, in percent.
    pub fn cpu_percent(&self) -> f64 {
        if self.age.is_zero() {
            return 0.0;
        }
        let percent = self.cpu_time.as_secs_f64() / self.age.as_secs_f64() * 100.0;
        (percent * 10.0).round() / 10.0
    }
}

impl Workspace {
    /// Lists the processes of the running guest, at most 32 768.
    ///
    /// # Errors
    /// Fails if the workspace is not running ([`WrongState`](crate::ErrorKind::WrongState)) or the guest does not answer
    /// ([`RunFailed`](crate::ErrorKind::RunFailed)).
    pub async fn processes(&self) -> Result<ProcessList, Error> {
        let guest = self.running_guest(Action::Measure)?;
        let mut stream = guest.request(&Request::Processes).await?;
        let mut processes = Vec::new();
        loop {
            let some = stream.reply::<Result<Vec<ProcessInfo>, GuestError>>().await?;
            let some = some.map_err(|error| guest.refusal(error))?;
            if some.is_empty() {
                break;
            }
            processes.extend(some.into_iter().map(GuestProcess::of));
            if processes.len() > PROCESSES_MAX {
                return Err(guest.gone(ConnectionFault::TooManyProcesses));
            }
        }
        Ok(ProcessList { workspace: self.name.clone(), processes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_shown_with_its_words() {
        let info = |command: &[u8]| ProcessInfo {
            pid: 7,
            parent: 1,
            uid: 5,
            user: String::new(),
            cpu_us: 500_000,
            age_us: 2_000_000,
            memory_bytes: 1,
            command: command.to_vec().into(),
        };
        let process = GuestProcess::of(info(b"sh\0-c\0\0\xff\0"));
        assert_eq!(process.command, ["sh", "-c", "", "\u{fffd}"]);
        assert_eq!((process.user.as_str(), process.cpu_percent()), ("5", 25.0));
        assert_eq!(GuestProcess::of(info(b"[kworker]")).command, ["[kworker]"]);
        assert_eq!(GuestProcess::of(ProcessInfo { age_us: 0, ..info(b"x") }).cpu_percent(), 0.0);
    }
}
