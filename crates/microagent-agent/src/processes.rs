//! Tells the host which processes the guest's programs have: those of their PID namespace, with the numbers that they
//! themselves see.
//!
//! Everything comes from the agent's own `/proc`; no program of the image runs. A process that ends meanwhile is left
//! out.
//!
//! # Source
//! `proc_pid_stat(5)`, `proc_pid_status(5)`, `proc_pid_cmdline(5)`, `pid_namespaces(7)`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};

use microagent_proto::{
    Chunk, FrameError, GuestError, GuestErrorKind, PROCESS_COMMAND_LIMIT, PROCESS_USER_LIMIT,
    PROCESSES_IN_REPLY, PROCESSES_MAX, ProcessInfo, REPLY_LIMIT, Stream, write_message,
};
use rustix::fs::{Dir, Mode, OFlags, openat};
use tokio::io::AsyncWriteExt;

use crate::init::agent_proc;
use crate::user;

/// Clock ticks per second in `/proc` (`USER_HZ`): the same on all supported systems.
const TICKS_PER_SECOND: u64 = 100;

/// Most bytes that are read of a file of `/proc`; `status` and `stat` have some thousand.
const FILE_LIMIT: u64 = 16 * 1024;

/// Tells the host, speaking on this stream.
pub(crate) async fn serve(mut stream: Stream) -> Result<(), FrameError> {
    let listed = tokio::task::spawn_blocking(list).await.unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
    match listed {
        Ok(processes) => {
            for some in processes.chunks(PROCESSES_IN_REPLY).chain([&[][..]]) {
                let reply: Result<&[ProcessInfo], GuestError> = Ok(some);
                write_message(&mut stream, &reply, REPLY_LIMIT).await?;
            }
        }
        Err(error) => {
            let message = format!("cannot list processes: {error}");
            let reply = Err::<Vec<ProcessInfo>, _>(GuestError { kind: GuestErrorKind::Other, message });
            write_message(&mut stream, &reply, REPLY_LIMIT).await?;
        }
    }
    stream.shutdown().await.map_err(FrameError::Transport)
}

fn list() -> io::Result<Vec<ProcessInfo>> {
    let uptime_us = uptime_us(&read("uptime")?).ok_or(io::ErrorKind::InvalidData)?;
    let users = user::names();
    let proc =
        openat(agent_proc(), c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // As the agent sees them: its number, and the process.
    let mut seen = Vec::new();
    for entry in Dir::read_from(&proc)? {
        let entry = entry?;
        let number = entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok());
        if let Some(number) = number
            && let Some(process) = describe_process(number, uptime_us, &users)
        {
            seen.push((number, process));
        }
        if seen.len() >= PROCESSES_MAX {
            break;
        }
    }
    let inner: BTreeMap<u32, u32> = seen.iter().map(|(number, process)| (*number, process.pid)).collect();
    let mut processes: Vec<ProcessInfo> = seen
        .into_iter()
        .map(|(_, process)| ProcessInfo {
            parent: inner.get(&process.parent).copied().unwrap_or(0),
            ..process
        })
        .collect();
    processes.sort_unstable_by_key(|process| process.pid);
    Ok(processes)
}

/// One process by the number that the agent sees, with that of its parent; `None` for one of no program of the guest.
fn describe_process(number: u32, uptime_us: u64, users: &BTreeMap<u32, String>) -> Option<ProcessInfo> {
    let status = read(&format!("{number}/status")).ok()?;
    let stat = read(&format!("{number}/stat")).ok()?;
    let command = read_bytes(&format!("{number}/cmdline"), PROCESS_COMMAND_LIMIT as u64).ok()?;
    describe(&status, &stat, command, uptime_us, users)
}

fn describe(
    status: &str,
    stat: &str,
    command: Vec<u8>,
    uptime_us: u64,
    users: &BTreeMap<u32, String>,
) -> Option<ProcessInfo> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let mut numbers = field("NSpid:")?.split_whitespace().map(str::parse::<u32>);
    // The agent's own number for it comes first.
    let pid = numbers.nth(1)?.ok()?;
    let uid = field("Uid:")?.split_whitespace().nth(1)?.parse().ok()?;
    let resident_kib: u64 =
        field("VmRSS:").and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    let (before, after) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
    // Fields 4, 14, 15 and 22 of the whole line, of which two lie before the parenthesis.
    let (parent, user_time, system_time, start) = (ticks(1)?, ticks(11)?, ticks(12)?, ticks(19)?);
    let micros = |ticks: u64| ticks.saturating_mul(1_000_000 / TICKS_PER_SECOND);
    let command =
        if command.is_empty() { format!("[{}]", before.split_once('(')?.1).into_bytes() } else { command };
    let mut user = users.get(&uid).cloned().unwrap_or_default();
    let most = (0..=PROCESS_USER_LIMIT).rev().find(|at| user.is_char_boundary(*at)).unwrap_or(0);
    user.truncate(most);
    Some(ProcessInfo {
        pid,
        parent: u32::try_from(parent).ok()?,
        uid,
        user,
        cpu_us: micros(user_time.saturating_add(system_time)),
        age_us: uptime_us.saturating_sub(micros(start)),
        memory_bytes: resident_kib.saturating_mul(1024),
        command: Chunk::from(command),
    })
}

/// Time since the boot, from the first word of `/proc/uptime`: seconds with two decimals.
fn uptime_us(text: &str) -> Option<u64> {
    let (seconds, hundredths) = text.split_whitespace().next()?.split_once('.')?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000 + hundredths.parse::<u64>().ok()? * 10_000)
}

fn read(path: &str) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&read_bytes(path, FILE_LIMIT)?).into_owned())
}

fn read_bytes(path: &str, limit: u64) -> io::Result<Vec<u8>> {
    let file = openat(agent_proc(), path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::new();
    File::from(file).take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tsh\nPPid:\t80\nUid:\t0\t1000\t0\t0\nVmRSS:\t     912 kB\nNSpid:\t93\t7\n";
    const STAT: &str =
        "93 (a) (b)) S 80 93 93 0 -1 4194560 210 0 0 0 12 30 0 0 20 0 1 0 1500 4321280 228 0 0";

    #[test]
    fn a_process_is_described_as_its_own_namespace_sees_it() {
        let users = BTreeMap::from([(1000, "app".to_owned())]);
        let process = describe(STATUS, STAT, b"sh\0-c\0x\0".to_vec(), 20_000_000, &users).unwrap();
        assert_eq!((process.pid, process.parent, process.uid, process.user.as_str()), (7, 80, 1000, "app"));
        assert_eq!((process.cpu_us, process.age_us, process.memory_bytes), (420_000, 5_000_000, 912 * 1024));
        assert_eq!(process.command.as_slice(), b"sh\0-c\0x\0");
        let nameless = describe(STATUS, STAT, Vec::new(), 0, &BTreeMap::new()).unwrap();
        assert_eq!((nameless.command.as_slice(), nameless.user.as_str()), (&b"[a) (b)]"[..], ""));
    }

    #[test]
    fn processes_of_the_agents_own_namespace_are_none_of_the_guests() {
        let own = STATUS.replace("NSpid:\t93\t7", "NSpid:\t93");
        assert_eq!(describe(&own, STAT, Vec::new(), 0, &BTreeMap::new()), None);
        assert_eq!(describe(STATUS, "93 (torn", Vec::new(), 0, &BTreeMap::new()), None);
    }

    #[test]
    fn the_time_since_the_boot_is_read() {
        assert_eq!(uptime_us("12.34 40.00\n"), Some(12_340_000));
        assert_eq!(uptime_us("soon"), None);
    }
}
