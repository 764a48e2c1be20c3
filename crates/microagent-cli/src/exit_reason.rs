//! Why a command ended as it did, and what helps: memory that ran out, a full disk, a signal.
//! Pure, except for [`note_ending`].

use microagent::{Workspace, WorkspaceName, signal_name};

use crate::failure::Failure;
use crate::progress::Progress;

/// `SIGINT` and `SIGPIPE`: the user's own key, or a reader that has ended. Shells are silent about them, too.
const EXPECTED: [i32; 2] = [2, 13];

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
    let ending = Ending { name: workspace.name(), memory_mib, signal, out_of_memory, disk_full };
    for note in ending.notes() {
        progress.note(&note);
    }
    Ok(())
}

/// How a command in a workspace ended.
#[derive(Debug)]
struct Ending<'a> {
    name: &'a WorkspaceName,
    memory_mib: u32,
    signal: Option<i32>,
    out_of_memory: Option<&'a str>,
    disk_full: Option<&'a str>,
}

impl Ending<'_> {
    /// A line each.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(program) = self.out_of_memory {
            notes.push(self.out_of_memory(program));
        }
        if let Some(mount) = self.disk_full {
            notes.push(self.disk_full(mount));
        }
        notes.extend(self.signal.and_then(killed));
        notes
    }

    fn out_of_memory(&self, program: &str) -> String {
        let (name, mib) = (self.name, self.memory_mib);
        let more = mib.saturating_mul(2);
        format!(
            "the guest ran out of its {mib} MiB of memory and killed `{}`; give it more: microagent halt {name}, then \
             microagent start {name} --memory {more}",
            program.escape_default()
        )
    }

    fn disk_full(&self, mount: &str) -> String {
        let remedy = match mount {
            "/" => {
                format!(
                    "remove files, or halt it and give it a larger disk: microagent resize {} SIZE",
                    self.name
                )
            }
            _ => "remove files, or detach the volume and grow it: microagent volume resize".to_owned(),
        };
        format!("the disk at `{}` is full; {remedy}", mount.escape_default())
    }
}

/// Says which signal it was, unless nobody wonders.
pub(crate) fn killed(signal: i32) -> Option<String> {
    let name = name(signal).map_or_else(String::new, |name| format!(" ({name})"));
    (!EXPECTED.contains(&signal)).then(|| format!("the command was ended by signal {signal}{name}"))
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
        let ending = |signal, out_of_memory, disk_full| {
            Ending { name: &name, memory_mib: 512, signal, out_of_memory, disk_full }.notes()
        };
        assert_eq!(
            ending(Some(9), Some("a\nb"), Some("/data")),
            [
                "the guest ran out of its 512 MiB of memory and killed `a\\nb`; give it more: microagent halt web, then \
                 microagent start web --memory 1024",
                "the disk at `/data` is full; remove files, or detach the volume and grow it: microagent volume resize",
                "the command was ended by signal 9 (SIGKILL)",
            ]
        );
        assert!(ending(None, None, Some("/"))[0].contains("microagent resize web"));
        for signal in [None, Some(2), Some(13)] {
            assert!(ending(signal, None, None).is_empty());
        }
    }
}
