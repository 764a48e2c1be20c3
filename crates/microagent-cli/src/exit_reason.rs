//! Why a command ended as it did, and what helps: memory that ran out, a full disk, a signal.
//! Pure, except for [`note_ending`].

use microagent::{Workspace, WorkspaceName, signal_name};

use crate::failure::Failure;
use crate::progress::Progress;

/// `SIGINT` and `SIGPIPE`: the user's own key, or a reader that has ended. Shells are silent about them, too.
const EXPECTED: [i32; 2] = [2, 13];

/// Where the command ran.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'a> {
    /// In a machine of its own, whose notices tell what it lacked.
    Run,
    /// In this workspace.
    Workspace(&'a WorkspaceName),
}

/// Notes what the guest of a workspace had too little of, and which signal ended a command there.
///
/// # Errors
/// Fails when the workspace cannot be read.
pub(crate) fn note_ending(
    progress: &Progress,
    workspace: &Workspace,
    signal: Option<i32>,
    out_of_memory: Option<&str>,
    disk_full: Option<&str>,
) -> Result<(), Failure> {
    if signal.is_none() && out_of_memory.is_none() && disk_full.is_none() {
        return Ok(());
    }
    let memory_mib = workspace.details()?.resources.memory_mib;
    let ending =
        Ending { place: Place::Workspace(workspace.name()), memory_mib, signal, out_of_memory, disk_full };
    for note in ending.notes() {
        progress.note(&note);
    }
    Ok(())
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ending<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) memory_mib: u32,
    pub(crate) signal: Option<i32>,
    pub(crate) out_of_memory: Option<&'a str>,
    pub(crate) disk_full: Option<&'a str>,
}

impl Ending<'_> {
    /// A line each.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(program) = self.out_of_memory {
            notes.push(self.out_of_memory(program));
        }
        if let Some(mount) = self.disk_full {
            notes.push(self.disk_full(mount));
        }
        match self.signal {
            Some(signal) if !EXPECTED.contains(&signal) => notes.push(killed(signal)),
            _ => {}
        }
        notes
    }

    fn out_of_memory(&self, program: &str) -> String {
        let mib = self.memory_mib;
        let more = mib.saturating_mul(2);
        match self.place {
            Place::Run => format!("{mib} MiB of memory were too little; give it more: --memory {more}"),
            Place::Workspace(name) => format!(
                "the guest ran out of its {mib} MiB of memory and killed `{}`; give it more: microagent halt {name}, then \
                 microagent start {name} --memory {more}",
                program.escape_default()
            ),
        }
    }

    fn disk_full(&self, mount: &str) -> String {
        let remedy = match (mount, self.place) {
            ("/", Place::Run) => "give it a larger one: --size-mib".to_owned(),
            ("/", Place::Workspace(name)) => {
                format!("remove files, or halt it and give it a larger disk: microagent resize {name} SIZE")
            }
            _ => "remove files, or detach the volume and grow it: microagent volume resize".to_owned(),
        };
        format!("the disk at `{}` is full; {remedy}", mount.escape_default())
    }
}

/// Says which signal it was.
fn killed(signal: i32) -> String {
    match name(signal) {
        Some(name) => format!("the command was ended by signal {signal} ({name})"),
        None => format!("the command was ended by signal {signal}"),
    }
}

/// The name of a signal.
pub(crate) fn name(signal: i32) -> Option<String> {
    u8::try_from(signal).ok().and_then(signal_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_names_its_remedy() {
        let name: WorkspaceName = "web".parse().unwrap();
        let ending = |place, signal, out_of_memory, disk_full| Ending {
            place,
            memory_mib: 512,
            signal,
            out_of_memory,
            disk_full,
        };
        assert_eq!(
            ending(Place::Run, Some(9), Some("tail"), None).notes(),
            [
                "512 MiB of memory were too little; give it more: --memory 1024",
                "the command was ended by signal 9 (SIGKILL)",
            ]
        );
        assert_eq!(
            ending(Place::Workspace(&name), None, Some("a\nb"), Some("/data")).notes(),
            [
                "the guest ran out of its 512 MiB of memory and killed `a\\nb`; give it more: microagent halt web, then \
                 microagent start web --memory 1024",
                "the disk at `/data` is full; remove files, or detach the volume and grow it: microagent volume resize",
            ]
        );
        for signal in [None, Some(2), Some(13)] {
            assert!(ending(Place::Run, signal, None, None).notes().is_empty());
        }
    }
}
