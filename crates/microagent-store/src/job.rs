//! `machine/jobs/ID/` of a workspace: what a job runs, how it ended, what it printed.
//!
//! The supervisor that started a job writes there, everybody reads. What a command printed lies in segments, files named
//! `output-START`: START is the number of bytes that were printed before. A later segment that begins behind the end of the
//! one before tells by that what was not kept in between.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use microagent_model::{JobId, JobState};
use serde::{Deserialize, Serialize};

use crate::atomic::{ReadError, WriteError, read_json, write_json};
use crate::open::{Access, open_file};
use crate::state_dir::{create_private_dir, names_in};
use crate::{ProcessId, WorkspaceDir};

/// Longest command line that is recorded, in bytes. It is for people.
pub const JOB_COMMAND_LIMIT: usize = 4096;

/// Room for a record, with what a file system takes for a file more.
const RESERVE_BYTES: usize = 8 * 1024;

/// How a job is called that has not started yet.
const STARTING_PREFIX: &str = ".starting-";

/// How a segment of its output is called.
const SEGMENT_PREFIX: &str = "output-";

/// `job.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its number.
    pub id: JobId,
    /// The command line, as a shell takes it, cut to [`JOB_COMMAND_LIMIT`].
    pub command: String,
    /// When it was started (host clock).
    pub started_at: Timestamp,
    /// Whether it has a standard input.
    pub stdin: bool,
    /// The supervisor of its machine.
    pub supervisor: Option<ProcessId>,
    /// How it ended; see [`JobRecord::observed_end`].
    pub end: Option<JobEnd>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEnd {
    /// Any state but [`JobState::Running`].
    pub state: JobState,
    /// When, if anybody saw it.
    pub at: Option<Timestamp>,
    /// Exit code; 128 + number for a signal, 124 time limit. None where it ended with its machine and nobody saw how.
    pub exit_code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// How much it printed, if that is known.
    pub printed_bytes: Option<u64>,
    /// The program that the guest's kernel killed meanwhile, because memory ran out.
    pub out_of_memory: Option<String>,
    /// Mount point of a disk of the guest that was full when the command failed.
    pub disk_full: Option<String>,
}

impl JobEnd {
    /// An end of which nothing else is known.
    pub fn unseen(state: JobState) -> JobEnd {
        JobEnd {
            state,
            at: None,
            exit_code: None,
            signal: None,
            printed_bytes: None,
            out_of_memory: None,
            disk_full: None,
        }
    }
}

impl JobRecord {
    /// How it ended, also if no process recorded it: a job ends with the supervisor of its machine.
    pub fn observed_end(&self) -> Option<JobEnd> {
        let is_kept = || self.supervisor.as_ref().is_some_and(ProcessId::is_alive);
        match &self.end {
            Some(end) => Some(end.clone()),
            None => (!is_kept()).then(|| JobEnd::unseen(JobState::MachineEnded)),
        }
    }
}

/// The directory of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobDir {
    path: PathBuf,
}

impl WorkspaceDir {
    /// The directory of one job, existing or not.
    pub fn job(&self, id: JobId) -> JobDir {
        JobDir { path: self.jobs().join(id.to_string()) }
    }

    /// The jobs that there are, oldest first.
    ///
    /// # Errors
    /// Fails when the directory is there and cannot be read.
    pub fn job_ids(&self) -> io::Result<Vec<JobId>> {
        names_in(&self.jobs())
    }

    /// Makes the directory of a job that is being started. It has another name until [`JobDir::publish`].
    ///
    /// # Errors
    /// Fails when it cannot be made. Nothing is left then.
    pub fn begin_job(&self, record: &JobRecord) -> Result<JobDir, WriteError> {
        let path = self.jobs().join(format!("{STARTING_PREFIX}{}", record.id));
        let dir = JobDir { path };
        create_private_dir(&dir.path)
            .map_err(|source| WriteError::Write { path: dir.path.clone(), source })?;
        dir.write(record).and_then(|()| dir.keep_room()).inspect_err(|_| dir.remove())?;
        Ok(dir)
    }

    /// Removes what a supervisor left that was killed while it started a job. The caller is the workspace's supervisor.
    pub fn sweep_jobs(&self) {
        let Ok(entries) = fs::read_dir(self.jobs()) else { return };
        for entry in entries.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(STARTING_PREFIX.as_bytes()) {
                // It is in nobody's way.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    fn jobs(&self) -> PathBuf {
        self.machine().join("jobs")
    }
}

impl JobDir {
    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the record.
    ///
    /// # Errors
    /// Fails when it is missing, unreadable or damaged.
    pub fn load(&self) -> Result<JobRecord, ReadError> {
        read_json(&self.path.join("job.json"))
    }

    /// Reads the record with the end that is true now. A supervisor that ends between two looks has written its last word by
    /// the second.
    ///
    /// # Errors
    /// As [`JobDir::load`].
    pub fn observe(&self) -> Result<JobRecord, ReadError> {
        let record = self.load()?;
        let record = if record.observed_end() == record.end { record } else { self.load()? };
        Ok(JobRecord { end: record.observed_end(), ..record })
    }

    /// Writes the record, atomically. The caller is the supervisor of the job's machine.
    ///
    /// # Errors
    /// Fails when it cannot be replaced; the old one is still there then.
    pub fn write(&self, record: &JobRecord) -> Result<(), WriteError> {
        write_json(&self.path.join("job.json"), record)
    }

    /// Takes some room on the disk for a record that must be written when there is none left.
    fn keep_room(&self) -> Result<(), WriteError> {
        let path = self.reserve();
        // Not zeros, which a file system may keep as a hole.
        let made =
            open_file(&path, Access::Replace).and_then(|mut file| file.write_all(&[0xff; RESERVE_BYTES]));
        made.map_err(|source| WriteError::Write { path, source })
    }

    /// Gives back the room that was taken for the last record; whether there was something to give.
    pub fn give_room(&self) -> bool {
        fs::remove_file(self.reserve()).is_ok()
    }

    fn reserve(&self) -> PathBuf {
        self.path.join("reserve")
    }

    /// Gives a job that has started its name.
    ///
    /// # Errors
    /// Fails when it cannot be renamed.
    pub fn publish(self, workspace: &WorkspaceDir, id: JobId) -> io::Result<JobDir> {
        let place = workspace.job(id);
        fs::rename(&self.path, &place.path)?;
        Ok(place)
    }

    /// Removes it: first its record, without which it is no job, then the rest; best effort.
    pub fn remove(&self) {
        let _ = fs::remove_file(self.path.join("job.json"));
        let _ = fs::remove_dir_all(&self.path);
    }

    /// The file of a segment of its output.
    pub fn segment(&self, start: u64) -> PathBuf {
        self.path.join(format!("{SEGMENT_PREFIX}{start}"))
    }

    /// Where the segments of its output begin, oldest first; none without a directory.
    ///
    /// # Errors
    /// Fails when the directory is there and cannot be read.
    pub fn segment_starts(&self) -> io::Result<Vec<u64>> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut starts = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let start = name.to_str().and_then(|name| name.strip_prefix(SEGMENT_PREFIX));
            starts.extend(start.and_then(|start| start.parse::<u64>().ok()));
        }
        starts.sort_unstable();
        Ok(starts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: JobId) -> JobRecord {
        JobRecord {
            id,
            command: "make test".to_owned(),
            started_at: Timestamp::UNIX_EPOCH,
            stdin: false,
            supervisor: ProcessId::current(),
            end: None,
        }
    }

    #[test]
    fn a_job_has_its_name_once_it_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = WorkspaceDir::at(dir.path());
        assert_eq!(workspace.job_ids().unwrap(), []);
        let ids = ["2", "10"].map(|id| id.parse::<JobId>().unwrap());
        for id in ids {
            let starting = workspace.begin_job(&record(id)).unwrap();
            fs::write(starting.segment(0), "x").unwrap();
            assert!(!workspace.job_ids().unwrap().contains(&id));
            starting.publish(&workspace, id).unwrap();
        }
        let left = workspace.begin_job(&record(JobId::FIRST)).unwrap();
        assert_eq!(workspace.job_ids().unwrap(), ids);
        workspace.sweep_jobs();
        assert!(!left.path().exists());
        let job = workspace.job(ids[1]);
        assert_eq!(job.observe().unwrap(), record(ids[1]));
        for start in [12_000, 700] {
            fs::write(job.segment(start), "x").unwrap();
        }
        assert_eq!(job.segment_starts().unwrap(), [0, 700, 12_000]);
        job.remove();
        assert!(job.load().unwrap_err().is_not_found());
        assert!(job.segment_starts().unwrap().is_empty());
    }

    #[test]
    fn a_job_does_not_outlive_its_supervisor() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = WorkspaceDir::at(dir.path());
        let supervisor = ProcessId::current().map(|me| ProcessId { start_time: me.start_time + 1, ..me });
        let running = JobRecord { supervisor, ..record(JobId::FIRST) };
        let job = workspace.begin_job(&running).unwrap();
        assert_eq!(job.load().unwrap().end, None);
        assert_eq!(job.observe().unwrap().end, Some(JobEnd::unseen(JobState::MachineEnded)));
        let end = JobEnd { exit_code: Some(3), ..JobEnd::unseen(JobState::Exited) };
        job.write(&JobRecord { end: Some(end.clone()), ..running }).unwrap();
        assert_eq!(job.observe().unwrap().end, Some(end));
    }
}
