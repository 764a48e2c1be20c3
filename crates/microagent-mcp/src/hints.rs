//! What to do about an error, in words for a model: they name tools.

use microagent::image::ImageHint;
use microagent::{Error, Hint, OptionHint};

/// One sentence, where something can be done with the tools.
pub(crate) fn of(error: &Error) -> Option<String> {
    let hint = error.hint()?;
    Some(match &hint {
        Hint::Advice(text) => text.clone(),
        Hint::ListWorkspaces => "the tool `list` shows the workspaces of this server".to_owned(),
        Hint::ChooseNameOrDelete { .. } => "choose another name, or omit it to have one made up".to_owned(),
        Hint::StartFirst { name } => format!("start it first: tool `start` with name `{name}`"),
        Hint::HaltFirst { name } => format!("halt it first: tool `halt` with name `{name}`"),
        Hint::Exec { name } => format!("it is running already: tool `exec` with name `{name}`"),
        Hint::ShowLogs { name }
        | Hint::LogsOrKill { name }
        | Hint::LogsOrDelete { name }
        | Hint::StatusOrKill { name } => {
            format!("tool `logs` with name `{name}` may show the reason; tool `delete` removes it")
        }
        Hint::ListJobs { .. } => "the tool `exec_start` gives the numbers of commands".to_owned(),
        Hint::JobLogs { name, job } => {
            format!("its output is kept: tool `exec_poll` with name `{name}` and job `{job}`")
        }
        Hint::ListSnapshots { .. } => "the tool `status` shows the tags of all snapshots".to_owned(),
        Hint::DeleteSnapshot { .. } => {
            "choose another tag, or delete that snapshot: tool `delete_snapshot`".to_owned()
        }
        Hint::DeleteDamagedWorkspace => "delete it with the tool `delete`".to_owned(),
        Hint::FreeSpace { .. } => {
            "the host is out of space or memory: delete workspaces that are not needed with the tool `delete`"
                .to_owned()
        }
        Hint::Image(ImageHint::PullFirst | ImageHint::ListImages) => {
            "the tool `list` shows the images that can be used".to_owned()
        }
        Hint::Image(ImageHint::Advice(text)) => text.clone(),
        Hint::Option(OptionHint::Environment) => {
            "names of variables are not empty and have no `=`".to_owned()
        }
        Hint::ResumeFirst { .. }
        | Hint::ReleaseFirst { .. }
        | Hint::DeleteQuarantined { .. }
        | Hint::InstallPackage { .. }
        | Hint::AllowWeakJail
        | Hint::UseEmulation
        | Hint::ChooseStateDir => {
            "only the person who runs this server can change that; tell them the message".to_owned()
        }
        _ => return None,
    })
}
