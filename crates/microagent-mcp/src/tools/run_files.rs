//! One command in a machine of its own that gets files and makes some: a workspace that is deleted when they are read.

use std::time::Duration;

use microagent::{CreateOptions, StartOptions, Workspace, WorkspaceOptions};

use super::command::{CommandArguments, Output, run_in};
use super::files::{DecodedFile, FileDocument, NewFile};
use super::run::{RunDocument, UnreadFile};
use crate::call::Call;
use crate::error::ToolError;
use crate::server::Server;
use crate::workspaces::Workspaces;

/// Most files that a run gets.
const FILES_MAX: usize = 64;

/// Most bytes of them together.
const FILES_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most files that the result of a run has.
const OUTPUTS_MAX: usize = 16;

/// Most bytes of each of them.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// The files of a run.
pub(super) struct Files {
    given: Vec<DecodedFile>,
    wanted: Vec<String>,
}

impl Files {
    /// Those of a call, if they are not too many.
    pub(super) fn check(given: Vec<NewFile>, wanted: Vec<String>) -> Result<Files, ToolError> {
        let more = "for more files use `create`, `write_file`, `exec` and `read_file`";
        if given.len() > FILES_MAX || wanted.len() > OUTPUTS_MAX {
            let message = format!("more than {FILES_MAX} `files` or {OUTPUTS_MAX} `outputs`");
            return Err(ToolError::invalid(message).hint(more));
        }
        let given = given.into_iter().map(NewFile::decode).collect::<Result<Vec<_>, _>>()?;
        if given.iter().map(|file| file.content.len()).sum::<usize>() > FILES_BYTES_MAX {
            let message = format!("`files` have more than {FILES_BYTES_MAX} bytes together");
            return Err(ToolError::invalid(message).hint(more));
        }
        Ok(Files { given, wanted })
    }
}

/// Runs a command between the files that it gets and those that it makes.
pub(super) async fn run(
    server: &Server,
    call: &Call,
    options: WorkspaceOptions,
    command: CommandArguments,
    files: Files,
    timeout: Duration,
    output: Output,
) -> Result<RunDocument, ToolError> {
    let place = server.workspaces().place()?;
    let name = server.engine().made_up_name(&options.image)?;
    let workspace = server.engine().workspace(&name);
    let image = options.image.clone();
    let create = CreateOptions::new(name, "").workspace(|_| options);
    let ran = async {
        server.engine().create(create, &call.progress()).await?;
        let config = server.engine().images().get(&image).await?.config;
        workspace.start(StartOptions::new(), &call.progress()).await?;
        for file in files.given {
            file.write(&workspace, call).await?;
        }
        let (exec, stdin) = command.of_image(&config.entrypoint, &config.cmd).into_exec(timeout)?;
        let result = run_in(&workspace, call, exec, stdin, output).await?;
        let (read, unread) = read_all(&workspace, call, files.wanted).await;
        let digest = workspace.details()?.image.digest;
        Ok(RunDocument::with_files(result, digest, read, unread))
    };
    let ran = ran.await;
    // Whatever became of it. The error that the caller gets is that of the run.
    let _ = Workspaces::delete(&workspace).await;
    drop(place);
    ran
}

async fn read_all(
    workspace: &Workspace,
    call: &Call,
    paths: Vec<String>,
) -> (Vec<FileDocument>, Vec<UnreadFile>) {
    let (mut read, mut unread) = (Vec::new(), Vec::new());
    for path in paths {
        match FileDocument::read(workspace, call, path.clone(), 0, OUTPUT_BYTES_MAX).await {
            Ok(file) => read.push(file),
            Err(error) => unread.push(UnreadFile { path, problem: error.into_message() }),
        }
    }
    (read, unread)
}
